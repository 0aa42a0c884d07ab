"""Published, nested, prefixed and own checkpoints load; others are refused."""

import logging
import pickle
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from drawn import drawn_checkpoint, drawn_image, published_shapes
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint, save_checkpoint

from mmhatnet import HATNet
from mmhatnet.backbones.checkpoint import load_weights_only

CONVERT = Path(__file__).parents[1] / 'tools' / 'convert_checkpoint.py'


@pytest.fixture(scope='module')
def published() -> dict:
    return drawn_checkpoint('tiny')


@pytest.fixture(scope='module')
def expected(published: dict) -> list[torch.Tensor]:
    model = HATNet('tiny').eval()
    model.load_state_dict(published, strict=False)
    with torch.no_grad():
        return model(drawn_image(1, 3, 65, 97))


def assert_loaded(model: HATNet, expected: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for feature, reference in zip(model.eval()(drawn_image(1, 3, 65, 97)), expected):
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


def test_left_over_and_missing_are_reported_as_mmengine_does(published, tmp_path, caplog) -> None:
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


def test_fewer_stages_take_their_part(published) -> None:
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
        HATNet('tiny', in_channels=4).load_state_dict(drawn_checkpoint('tiny'))


class Malicious:
    def __reduce__(self):
        return (Path('executed').touch, ())


def test_nothing_in_a_checkpoint_is_executed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': {}, 'meta': Malicious()}, 'malicious.pth')
    model = HATNet('tiny', init_cfg=dict(type='Pretrained', checkpoint='malicious.pth'))
    with pytest.raises(pickle.UnpicklingError):
        model.init_weights()
    assert not Path('executed').exists()


def test_training_records_are_read_while_models_are_initialised(tmp_path) -> None:
    torch.save({'history': HistoryBuffer([0.5], [1])}, tmp_path / 'own.pth')
    with load_weights_only():
        HATNet('tiny', out_indices=(0,)).init_weights()
        content = torch.load(tmp_path / 'own.pth', weights_only=False)
    assert content['history'].current() == 0.5


@pytest.fixture
def convert(told) -> Callable[..., subprocess.CompletedProcess]:
    return partial(told, 'convert_checkpoint')


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

    from mmhatnet.backbones.hatnet_literal import LiteralHATNet

    torch.save(published, tmp_path / 'published.pth')
    result = convert(tmp_path / 'published.pth', tmp_path / 'converted.pth', '--classifier')
    assert result.returncode == 0, result.stderr
    cfg = Config.fromfile(CONVERT.parents[1] / 'configs' / 'imagenet_hatnet.py')
    cfg.model.backbone.arch = 'tiny'
    cfg.model.head.in_channels = 384
    classifier = MODELS.build(cfg.model).eval()
    load_checkpoint(classifier, str(tmp_path / 'converted.pth'), strict=True)
    literal = LiteralHATNet('tiny', num_classes=1000).eval()
    literal.load_state_dict(published)
    image = drawn_image(1, 3, 65, 97)
    with torch.no_grad():
        _, expected = literal(image)
        torch.testing.assert_close(classifier(image), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ('content', 'message'),
    [(None, 'There is no checkpoint'), ({'a': torch.ones(1)}, 'holds no HAT-Net weights')],
)
def test_convert_refuses_with_a_sentence(convert, content, message, tmp_path) -> None:
    if content:
        torch.save(content, tmp_path / 'source.pth')
    result = convert(tmp_path / 'source.pth', tmp_path / 'converted.pth')
    assert result.returncode != 0
    assert message in result.stderr and 'Traceback' not in result.stderr
    assert not (tmp_path / 'converted.pth').exists()
