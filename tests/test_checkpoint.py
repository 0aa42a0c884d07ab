"""Published, nested, prefixed and own checkpoints load; others are refused."""

import logging
import os
import pickle
import re
import subprocess
import sys
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseTTAModel
from mmengine.runner import CheckpointLoader, load_checkpoint, save_checkpoint
from synthetic import published_shapes, synthetic_checkpoint, synthetic_image
from torch import nn

from mmhatnet import HATNet
from mmhatnet.checkpoints.files import read_checkpoint
from mmhatnet.checkpoints.folder import find_checkpoint
from mmhatnet.checkpoints.loading import (
    load_weights,
    read_pretrained,
    verify_checkpoint,
    verify_resumable,
    verify_start,
)
from mmhatnet.checkpoints.safe_loader import Checkpoint, load_weights_only
from mmhatnet.errors import CheckpointError

CONVERT = Path(__file__).parents[1] / 'tools' / 'convert_checkpoint.py'


@pytest.fixture(scope='module')
def published() -> dict:
    return synthetic_checkpoint('tiny')


@pytest.fixture(scope='module')
def expected(published: dict) -> list[torch.Tensor]:
    model = HATNet('tiny').eval()
    model.load_state_dict(published, strict=False)
    with torch.no_grad():
        return model(synthetic_image(1, 3, 65, 97))


def assert_loaded(model: HATNet, expected: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for feature, reference in zip(model.eval()(synthetic_image(1, 3, 65, 97)), expected):
            torch.testing.assert_close(feature, reference)


@pytest.mark.parametrize('wrapper', [None, 'model', 'state_dict'])
@pytest.mark.parametrize('through', ['load_checkpoint', 'init_cfg'])
def test_published_checkpoint(published, expected, tmp_path, wrapper, through, capfd) -> None:
    path = tmp_path / 'published.pth'
    torch.save({wrapper: published, 'epoch': 300} if wrapper else published, path)
    if through == 'init_cfg':
        model = HATNet('tiny', init_cfg=dict(type='Pretrained', checkpoint=str(path)))
        model.init_weights()
    else:
        model = HATNet('tiny')
        load_checkpoint(model, str(path), map_location='cpu', logger=logging.getLogger('none'))
    assert_loaded(model, expected)


def test_mmengine_reports_unexpected_and_missing_keys(published, tmp_path, caplog) -> None:
    path = tmp_path / 'published.pth'
    torch.save({k: v for k, v in published.items() if k != 'ds3.norm.bias'}, path)
    logger = logging.getLogger('report')
    logger.propagate = True
    load_checkpoint(HATNet('tiny'), str(path), logger=logger)
    assert 'unexpected key in source state_dict: classifier.1.weight, classifier.1.bias' in (
        caplog.text
    )
    assert 'missing keys in source state_dict: stages.2.downsample.norm.bias' in caplog.text
    assert 'proj_norm' not in caplog.text


@pytest.mark.parametrize('native', [False, True])
def test_backbone_of_a_detector(published, expected, tmp_path, native) -> None:
    if native:
        source = HATNet('tiny')
        source.load_state_dict(published, strict=False)
        weights = source.state_dict()
    else:
        weights = published
    path = str(tmp_path / 'detector.pth')
    weights = {f'backbone.{key}': value for key, value in weights.items()}
    torch.save({'state_dict': {**weights, 'neck.weight': torch.ones(1)}, 'meta': {}}, path)

    init_cfg = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
    model = HATNet('tiny', init_cfg=init_cfg)
    model.init_weights()
    assert_loaded(model, expected)

    detector = torch.nn.ModuleDict({'backbone': HATNet('tiny')})
    load_checkpoint(detector, path, logger=logging.getLogger('none'))
    assert_loaded(detector['backbone'], expected)


def test_own_checkpoint_round_trip(published, expected, tmp_path) -> None:
    source, path = HATNet('tiny'), str(tmp_path / 'own.pth')
    source.load_state_dict(published, strict=False)
    save_checkpoint({'state_dict': source.state_dict(), 'meta': dict(epoch=1)}, path)
    target = HATNet('tiny')
    load_checkpoint(target, path, strict=True)
    assert_loaded(target, expected)


def test_fewer_stages_load_their_weights(published) -> None:
    model = HATNet('tiny', out_indices=(0, 1))
    result = model.load_state_dict(published, strict=False)
    assert result.missing_keys == []
    assert {key.split('.')[1] for key in result.unexpected_keys if 'stages' in key} == {'2', '3'}


@pytest.mark.parametrize(
    ('arch', 'other', 'difference'),
    [
        ('small', 'tiny', 'stem.conv2.weight'),
        ('small', 'medium', 'stage 0 has 3 blocks instead of 2'),
        ('medium', 'small', 'stage 0 has 2 blocks instead of 3'),
        ('large', 'medium', 'stage 1 has 6 blocks instead of 8'),
    ],
)
def test_another_variant_is_one_clear_error(arch, other, difference, tmp_path) -> None:
    path = str(tmp_path / 'other.pth')
    torch.save({k: torch.zeros(v.shape) for k, v in published_shapes(other).items()}, path)
    model = HATNet(arch)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"HAT-Net '{other}'.* is HAT-Net '{arch}'") as error:
        load_checkpoint(model, path, logger=logging.getLogger('none'))
    if arch != 'small' or other != 'tiny':
        assert difference in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_other_input_channels_are_named() -> None:
    with pytest.raises(ValueError, match=r'stem.conv1.weight .*\(16, 3, 3, 3\).*\(16, 4, 3, 3\)'):
        HATNet('tiny', in_channels=4).load_state_dict(synthetic_checkpoint('tiny'))


class Malicious:
    def __reduce__(self):
        return (Path('executed').touch, ())


@pytest.mark.parametrize('zipped', [True, False])
def test_nothing_in_a_checkpoint_is_executed(zipped, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    content = {'state_dict': {}, 'meta': Malicious()}
    torch.save(content, 'malicious.pth', _use_new_zipfile_serialization=zipped)
    model = HATNet('tiny', init_cfg=dict(type='Pretrained', checkpoint='malicious.pth'))
    with pytest.raises(CheckpointError, match='malicious.pth holds more than weights'):
        model.init_weights()
    assert not Path('executed').exists()
    assert os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'


def test_training_records_are_read_after_a_model_is_initialized(tmp_path) -> None:
    hub = {'log_scalars': {'loss': HistoryBuffer([0.5], [1])}}
    torch.save({'message_hub': hub}, tmp_path / 'own.pth')
    with load_weights_only():
        HATNet('tiny', out_indices=(0,)).init_weights()
        content = CheckpointLoader.load_checkpoint(str(tmp_path / 'own.pth'))
    assert content['message_hub']['log_scalars']['loss'].current() == 0.5


def test_settings_and_records_beside_weights(tmp_path) -> None:
    settings = Namespace(data=tmp_path, more=Namespace(lr=0.1))
    content = dict(
        model={'weight': torch.ones(2)},
        args=settings,
        message_hub=dict(
            log_scalars=dict(loss=HistoryBuffer([0.5], [1])),
            runtime_info=dict(best_score=np.float32(0.25), folder=tmp_path),
        ),
        mmhatnet=dict(scores=np.array([1, 2], dtype='uint8'), seeds=('Python', (1, 2))),
        meta=dict(dataset_meta=ConfigDict(skeleton=dict(length=3))),
    )
    torch.save(content, tmp_path / 'here.pth')
    # NumPy 1 and 2 name their modules differently.
    with zipfile.ZipFile(tmp_path / 'here.pth') as here:
        for version, name in (('1', b'numpy.core.'), ('2', b'numpy._core.')):
            with zipfile.ZipFile(tmp_path / f'numpy{version}.pth', 'w') as there:
                for entry in here.infolist():
                    data = here.read(entry)
                    if entry.filename.endswith('data.pkl'):
                        data = data.replace(b'numpy._core.', b'numpy.core.')
                        data = data.replace(b'numpy.core.', name)
                    there.writestr(entry.filename, data)
            read = read_checkpoint(tmp_path / f'numpy{version}.pth')
            hub = read['message_hub']
            assert read['model']['weight'].sum() == 2
            assert hub['log_scalars']['loss'].current() == 0.5
            assert hub['runtime_info'] == dict(best_score=0.25)
            assert read['mmhatnet']['scores'].tolist() == [1, 2]
            assert read['mmhatnet']['seeds'] == ('Python', (1, 2))
            assert read['meta'] == dict(dataset_meta=dict(skeleton=dict(length=3)))
            assert 'args' not in read, 'settings should be omitted'
    with pytest.raises(pickle.UnpicklingError):  # plain torch.load still refuses the file
        torch.load(tmp_path / 'here.pth', weights_only=True)


@pytest.mark.parametrize(
    ('content', 'what'),
    [
        (b'', 'is empty'),
        (bytes(5000), 'is empty or starts with zeros'),
        (b'\n<!DOCTYPE html><html>Not Found</html>', 'is a web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid', 'is a Git LFS pointer.*git lfs pull'),
        (b'_base_ = "a.py"\nmodel = dict()', 'is Python code, not'),
        (b'{"message": "Not Found"}', 'is text, not a checkpoint.*Not Found'),
        (pickle.dumps({'weight': 1}), 'is a pickle, not a checkpoint'),
        (lambda saved: saved[:2000], 'is incomplete, its end is missing after 2,000 bytes'),
        (lambda saved: saved[:-9], 'is incomplete'),
        (lambda saved: saved[:300] + bytes(300) + saved[600:], 'is damaged'),
        (b'\xff\xd8\xff\xe0' + bytes(9), 'is not a PyTorch checkpoint'),
    ],
)
def test_damaged_and_wrong_files_are_named(content, what, tmp_path) -> None:
    path = tmp_path / 'file.pth'
    if callable(content):
        torch.save({'weight': torch.ones(9000)}, path)
        content = content(path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f'{path} {what}') as refusal:
        read_checkpoint(path)
    assert '\n' not in str(refusal.value) and 'weights_only' not in str(refusal.value)


@pytest.mark.parametrize(
    ('save', 'what'),
    [
        (lambda path: torch.save(nn.Linear(2, 2), path), 'holds torch.nn.*Linear, which belongs'),
        (lambda path: torch.save({'model': nn.Linear(2, 2)}, path), 'holds torch.nn.*Linear'),
        (lambda path: torch.save(torch.ones(2), path), 'holds a Tensor instead of named weights'),
        (lambda path: torch.jit.script(nn.Identity()).save(str(path)), 'is a TorchScript program'),
        (lambda path: np.savez(path.open('wb'), a=np.ones(2)), 'is a ZIP archive'),
        (lambda path: tarfile.open(path, 'w').close(), 'is (empty|a tar archive)'),
        (
            lambda path: torch.save({0: torch.ones(2)}, path),
            'holds a dict instead of named',
        ),
        (lambda path: path.mkdir(), 'is a folder'),
        (lambda path: None, 'There is no checkpoint .*file.pth: `mmhatnet train`'),
    ],
)
def test_files_that_hold_no_weights_are_named(save, what, tmp_path) -> None:
    path = tmp_path / 'file.pth'
    save(path)
    with pytest.raises(CheckpointError, match=what) as refusal:
        read_checkpoint(path)
    assert '\n' not in str(refusal.value) and 'weights_only' not in str(refusal.value)


def test_safetensors(tmp_path, monkeypatch) -> None:
    path = tmp_path / 'weights.safetensors'
    path.write_bytes((2).to_bytes(8, 'little') + b'{}')
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(CheckpointError, match='install the safetensors package'):
        read_checkpoint(path)
    package = SimpleNamespace(load_file=lambda path: {'weight': torch.ones(1)})
    monkeypatch.setitem(sys.modules, 'safetensors.torch', package)
    monkeypatch.setitem(sys.modules, 'safetensors', SimpleNamespace(torch=package))
    assert [*read_checkpoint(path)] == ['weight']


SMALL = dict(
    embed_dims=(8,),
    head_dim=8,
    depths=(1,),
    kernel_sizes=(3,),
    mlp_ratios=(2,),
    windows=(None,),
    poolings=(None,),
)
small = partial(HATNet, SMALL, out_indices=(0,))


def small_weights(prefix: str = '') -> dict:
    return {prefix + key: value + 1 for key, value in small().state_dict().items()}


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.', 'net.encoder.'])
@pytest.mark.parametrize('wrappers', [[], ['model'], ['state_dict'], ['ema', 'state_dict']])
@pytest.mark.parametrize('through', ['init_cfg', 'load_state_dict'])
def test_backbone_is_found(prefix, wrappers, through, tmp_path, capfd) -> None:
    content = {**small_weights(prefix), 'neck.weight': torch.ones(1)}
    for wrapper in wrappers:
        content = {'optimizer': {'state': {0: torch.ones(1)}}, wrapper: content, 'epoch': 3}
    if through == 'load_state_dict':
        model = small()
        missing = model.load_state_dict(content, strict=False).missing_keys
        assert missing == []
    else:
        path = str(tmp_path / 'any.pth')
        torch.save(content, path)
        model = small(init_cfg=dict(type='Pretrained', checkpoint=path))
        model.init_weights()
        assert '19 of 19 tensors of the backbone are in the checkpoint' in capfd.readouterr().out
    assert model.state_dict()['stem.norm.weight'].unique() == 2


def test_weights_are_taken_before_their_averages() -> None:
    model, content = small(), {'model_ema': small_weights(), 'model': small().state_dict()}
    model.load_state_dict(content)
    assert model.stem.norm.weight.unique() == 1


@pytest.mark.parametrize('prefix', [{}, {'prefix': 'neck.'}, {'prefix': 'head.'}])
def test_loading_nothing_is_an_error(prefix, tmp_path, monkeypatch) -> None:
    """PyTorch's load_state_dict(strict=False) still accepts such weights."""
    path, weights = (
        str(tmp_path / 'other.pth'),
        {'neck.stages.0.blocks.0.attn.w_msa.weight': torch.ones(1)},
    )
    torch.save({'state_dict': weights}, path)
    backbone = dict(arch=SMALL, out_indices=(0,))
    backbone['init_cfg'] = dict(type='Pretrained', checkpoint=path, **prefix)
    with pytest.raises(CheckpointError, match='0 of 19 tensors|head. is not in') as refusal:
        HATNet(**backbone).init_weights()
    assert path in str(refusal.value)
    monkeypatch.setenv('LOCAL_RANK', '0')
    with pytest.raises(CheckpointError, match='0 of 19 tensors of the backbone.*other.pth'):
        read_pretrained(Config(dict(model=dict(backbone=dict(type='HATNet', **backbone)))))
    small().load_state_dict(weights, strict=False)


@pytest.mark.parametrize(
    ('saved', 'settings', 'message'),
    [
        ('', {}, None),
        ('module.', {}, None),
        ('backbone.', dict(prefix='backbone'), None),
        (
            'encoder.',
            {},
            r'other.pth holds none of the .* weights of model.backbone, a ResNet, .*'
            r"set prefix='encoder\.'",
        ),
        ('encoder.', dict(prefix='neck.'), r"set prefix='encoder\.'"),
        (None, {}, 'name a file for this module'),
    ],
)
def test_files_for_backbones_of_other_packages(
    saved, settings, message, tmp_path, monkeypatch
) -> None:
    from mmdet.models import ResNet

    path = str(tmp_path / 'other.pth')
    weights = {f'{saved}{key}': value for key, value in ResNet(18).state_dict().items()}
    torch.save({'state_dict': {'a.b': torch.ones(1)} if saved is None else weights}, path)
    init_cfg = dict(type='Pretrained', checkpoint=path, **settings)
    backbone = dict(type='mmdet.ResNet', depth=18, init_cfg=init_cfg)
    monkeypatch.setenv('LOCAL_RANK', '0')
    with nullcontext() if message is None else pytest.raises(CheckpointError, match=message):
        read_pretrained(Config(dict(model=dict(backbone=backbone))))


class Classifier(nn.Module):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.backbone, self.head = small(), nn.Linear(8, classes)
        self.bn = nn.BatchNorm1d(2)
        self.register_buffer('scale', torch.ones(1))


class Flipped(BaseTTAModel):
    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module

    def merge_preds(self, data_samples_list: list) -> None:
        pass


META = dict(classes=('cat', 'dog'))


@pytest.mark.parametrize(
    ('saved', 'meta', 'tested', 'refusal'),
    [
        ({}, {'dataset_meta': META}, META, None),
        ({}, {'dataset_meta': {'classes': ['Cat', 'DOG']}}, META, None),
        ({}, {'dataset_meta': {'classes': ('dog', 'cat')}}, None, None),
        ({}, {}, META, None),
        ({'scale': None, 'bn.num_batches_tracked': None}, {}, META, None),
        ({}, {'dataset_meta': {'classes': ('dog', 'cat')}}, META, "class 0 is 'dog' .* 'cat' in"),
        ({}, {'CLASSES': ('cat', 'cow')}, META, "class 1 is 'cow' in the .* --ignore-classes"),
        ({}, {'dataset_meta': {'classes': ('cat',)}}, META, '1 classes and .* 2, .* 1 is none'),
        (
            {'head.weight': None},
            {},
            META,
            'lacks 1 of the 25 weights of this .* head.weight',
        ),
        ({'bn.running_var': None}, {}, META, 'lacks 1 of the 25 weights .* bn.running_var'),
        (
            {'head.weight': torch.ones(3, 8)},
            {'dataset_meta': {'classes': ('cat', 'dog', 'owl')}},
            META,
            r'belongs to another model: size mismatch for head.weight.*was trained for 3 classes',
        ),
        ({'backbone.stem.conv2.weight': torch.ones(9, 16, 3, 3)}, {}, META, 'stem.conv2.weight'),
    ],
)
def test_a_test_needs_all_weights_and_the_same_classes(
    saved, meta, tested, refusal, tmp_path
) -> None:
    weights = {**Classifier().state_dict(), **saved}
    weights = {f'module.{k}': v for k, v in weights.items() if v is not None}
    path = str(tmp_path / 'epoch_1.pth')
    torch.save(dict(state_dict=weights, meta=meta, ema_state_dict={}), path)
    model, checkpoint = Flipped(Classifier()), Checkpoint(path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if refusal is None:
        verify_checkpoint(checkpoint, model, tested)
    else:
        with pytest.raises(CheckpointError, match=f'{path}.*{refusal}'):
            verify_checkpoint(checkpoint, model, tested)
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items()), (
        'verification changed the model'
    )
    assert all(isinstance(value, nn.Parameter) for value in model.parameters())


@pytest.mark.parametrize(
    ('saved', 'said'),
    [
        ({}, r'25 of 25 weights of the model are those of .*\.pth$'),
        (
            {'head.weight': torch.ones(3, 8), 'head.bias': torch.ones(3)},
            r'23 of 25 .*; 2 are of another shape there, such as head.weight$',
        ),
        (
            {'bn.running_var': None, 'head.bias': torch.ones(3)},
            r'23 of 25 .*; 1 are not in it, such as bn.running_var; 1 are of another shape',
        ),
    ],
)
def test_training_says_how_many_weights_it_starts_from(saved, said, tmp_path) -> None:
    weights = {**Classifier().state_dict(), **saved}
    path = str(tmp_path / 'start.pth')
    torch.save({k: v for k, v in weights.items() if v is not None}, path)
    model = Classifier()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert re.search(said, verify_start(Checkpoint(path), Flipped(model)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model._load_state_dict_post_hooks


def test_training_does_not_start_from_a_file_that_fits_nothing(tmp_path) -> None:
    path = tmp_path / 'backbone.pth'
    torch.save(small().state_dict(), path)
    message = f'load_from={path} holds none of the 25 weights .* init_cfg=dict.* instead of load_'
    with pytest.raises(CheckpointError, match=message):
        verify_start(Checkpoint(str(path)), Classifier())


def test_half_precision_fits(tmp_path) -> None:
    source, model = Classifier(), Classifier()
    torch.save(source.half().state_dict(), tmp_path / 'half.pth')
    checkpoint = Checkpoint(str(tmp_path / 'half.pth'))
    verify_checkpoint(checkpoint, model)
    load_weights(Flipped(model), checkpoint)
    assert torch.equal(model.head.weight, source.head.weight.float())


def test_the_last_checkpoint_is_found(tmp_path, capsys) -> None:
    for name in ('epoch_2.pth', 'epoch_10.pth', 'best_coco_mAP_epoch_11.pth'):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9, 1e9))
    record, second = tmp_path / 'last_checkpoint', str(tmp_path / 'epoch_2.pth')
    tenth = str(tmp_path / 'epoch_10.pth')
    assert find_checkpoint(tmp_path) == tenth, 'the last epoch is the last checkpoint'
    for recorded in (second, '/elsewhere/epoch_2.pth', 'work/epoch_2.pth\n', r'C:\w\epoch_2.pth'):
        record.write_text(recorded)
        assert find_checkpoint(tmp_path) == find_checkpoint(record) == second
    assert capsys.readouterr().out == ''
    for garbled in (b'', b'\n', b'\0\0\0', b'\xff\xfe', b'.', b'/', b'../..'):
        record.write_bytes(garbled)
        assert find_checkpoint(tmp_path) == find_checkpoint(record) == tenth
    record.write_text('/elsewhere/epoch_3.pth')
    assert find_checkpoint(tmp_path) == tenth
    assert 'names /elsewhere/epoch_3.pth' in capsys.readouterr().out
    assert find_checkpoint(second) == second and find_checkpoint('http://a/b') == 'http://a/b'
    assert find_checkpoint(tmp_path / 'absent') is None
    (tmp_path / 'new').mkdir()
    assert find_checkpoint(tmp_path / 'new') is None
    (tmp_path / 'new' / 'last_checkpoint').write_text('/elsewhere/epoch_3.pth')
    with pytest.raises(CheckpointError, match='last_checkpoint names /elsewhere/epoch_3.pth'):
        find_checkpoint(tmp_path / 'new')


def test_the_newest_checkpoint_says_itself_when_it_was_saved(tmp_path) -> None:
    """Copying a folder changes the times of its files, so these cannot tell."""
    for name, saved in (('epoch_3', '20260101_120000'), ('epoch_9', '20250101_120000')):
        content = dict(state_dict=small_weights(), meta=dict(time=saved))
        torch.save(content, tmp_path / f'{name}.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_9.pth'))
    assert find_checkpoint(tmp_path) == str(tmp_path / 'epoch_3.pth')
    torch.save(dict(content, meta=dict(time='20260101_120001')), tmp_path / 'latest.pth')
    assert find_checkpoint(tmp_path) == str(tmp_path / 'latest.pth')


def test_resuming_needs_a_training_state(tmp_path, capsys) -> None:
    path = tmp_path / 'epoch_1.pth'
    torch.save({'state_dict': small_weights(), 'epoch': 3}, path)
    message = r'weights but no training state \(epoch, iter, message_hub\).*load_from='
    with pytest.raises(CheckpointError, match=message):
        verify_resumable(Checkpoint(str(path)))
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    state = dict(state_dict={}, meta=dict(epoch=1, iter=9), message_hub=hub, optimizer={})
    torch.save(state, path)
    verify_resumable(Checkpoint(str(path)))
    assert capsys.readouterr().out == ''
    torch.save({k: v for k, v in state.items() if k != 'optimizer'}, path)
    verify_resumable(Checkpoint(str(path)))
    assert 'no optimizer state' in capsys.readouterr().out


@pytest.fixture
def convert(run_tool_captured) -> Callable[..., subprocess.CompletedProcess]:
    return partial(run_tool_captured, 'convert_checkpoint')


def test_convert_backbone(convert, published, expected, tmp_path) -> None:
    torch.save({'model': published}, tmp_path / 'published.pth')
    result = convert(tmp_path / 'published.pth', tmp_path / 'converted.pth')
    assert result.returncode == 0, result.stderr
    model = HATNet('tiny')
    load_checkpoint(model, str(tmp_path / 'converted.pth'), strict=True)
    assert_loaded(model, expected)


def test_convert_classifier(convert, published, tmp_path) -> None:
    from mmengine.config import Config
    from mmpretrain.registry import MODELS

    from mmhatnet.backbones.hatnet_reference import ReferenceHATNet

    torch.save(published, tmp_path / 'published.pth')
    result = convert(tmp_path / 'published.pth', tmp_path / 'converted.pth', '--classifier')
    assert result.returncode == 0, result.stderr
    cfg = Config.fromfile(CONVERT.parents[1] / 'configs' / 'imagenet_hatnet.py')
    cfg.model.backbone.arch = 'tiny'
    cfg.model.head.in_channels = 384
    classifier = MODELS.build(cfg.model).eval()
    load_checkpoint(classifier, str(tmp_path / 'converted.pth'), strict=True)
    reference = ReferenceHATNet('tiny', num_classes=1000).eval()
    reference.load_state_dict(published)
    image = synthetic_image(1, 3, 65, 97)
    with torch.no_grad():
        _, expected = reference(image)
        torch.testing.assert_close(classifier(image), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'There is no checkpoint'),
        (
            {'a': torch.ones(1)},
            'does not hold all weights of any variant of GLNet, HAT-Net, OmniNet',
        ),
    ],
)
def test_convert_names_bad_input(convert, content, message, tmp_path) -> None:
    if content:
        torch.save(content, tmp_path / 'source.pth')
    result = convert(tmp_path / 'source.pth', tmp_path / 'converted.pth')
    assert result.returncode != 0
    assert message in result.stderr and 'Traceback' not in result.stderr
    assert not (tmp_path / 'converted.pth').exists()
