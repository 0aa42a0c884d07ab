"""The configs of the other backbones match their names, train and test."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from experiments import (
    CONFIGS,
    OF_OTHER_BACKBONES,
    assert_named_for_content,
    assert_trains_and_tests,
    identify,
    rest_slow,
)
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import import_modules_from_strings
from networks import NETWORKS
from synthetic import synthetic_image, synthetic_value

from mmhatnet import OmniNet
from mmhatnet.checkpoints.loading import read_pretrained
from mmhatnet.config_checks import require_channels, require_complete, require_known_settings
from mmhatnet.errors import CheckpointError, ConfigError

FOLDERS = ('p2t', 'shunted', 'stvit', 'glnet', 'omninet')
METAFILE = {
    model['Config']: model
    for folder in FOLDERS
    for model in yaml.safe_load((CONFIGS / folder / 'metafile.yml').read_text())['Models']
}
# The others differ from these by a few numbers.
ORDINARY = [path for path in OF_OTHER_BACKBONES if re.search('-(s|small|4g)_', path.stem)]
ORDINARY += [path for path in OF_OTHER_BACKBONES if path.parent.name == 'toy']
# One task of each network, and each task at least once. The others train in the slow tests.
TRAINED = (
    'p2t/mask-rcnn_p2t-s_fpn_1x_coco',
    'shunted/retinanet_shunted-s_fpn_1x_coco',
    'stvit/stvit-s_fpn_4xb4-80k_ade20k-512x512',
    'glnet/glnet-4g_16xb128_in1k',
    'omninet/retinanet_omninet-s_fpn_1x_coco',
)
TRAINED = [CONFIGS / f'{name}.py' for name in TRAINED]
# Parameters of the whole model in millions, from P2T's README.
PUBLISHED = {
    name.format(variant): millions
    for variant, *figures in (
        ('t', 31.3, 21.1, 15.4),
        ('s', 43.7, 33.8, 27.8),
        ('b', 55.7, 45.8, 39.8),
        ('l', 74.0, 64.4, 58.1),
    )
    for name, millions in zip(
        (
            'mask-rcnn_p2t-{}_fpn_1x_coco',
            'retinanet_p2t-{}_fpn_1x_coco',
            'p2t-{}_fpn_4xb4-80k_ade20k-512x512',
        ),
        figures,
    )
}
pytestmark = pytest.mark.usefixtures('all_coco_classes')


def test_every_network_has_the_four_tasks() -> None:
    names = {path.stem for path in OF_OTHER_BACKBONES}
    for folder in FOLDERS:
        variants = [
            arch
            for name in NETWORKS
            if name.startswith(folder)
            for arch in NETWORKS[name].parameters
        ]
        for arch in variants:
            gpus = 16 if folder == 'glnet' else 8
            assert f'{folder}-{arch.replace("_", "-")}_{gpus}xb128_in1k' in names
            # There are no detectors with learned slots or token labels.
            if arch != 'stl_paramslot':
                letter = arch if folder == 'glnet' else arch[0]
                assert f'mask-rcnn_{folder}-{letter}_fpn_1x_coco' in names
                assert f'retinanet_{folder}-{letter}_fpn_1x_coco' in names
                assert f'{folder}-{letter}_fpn_4xb4-80k_ade20k-512x512' in names
        assert f'maskrcnn_{folder}_toy' in names


@pytest.mark.parametrize('path', rest_slow(OF_OTHER_BACKBONES, *ORDINARY), ids=identify)
def test_name_describes_the_config(path: Path) -> None:
    cfg = Config.fromfile(path)
    import_modules_from_strings(**cfg.custom_imports)
    require_complete(cfg, 'train', 'val', 'test')
    require_known_settings(cfg)
    require_channels(cfg, 'train', 'val', 'test')
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(copy.deepcopy(cfg.model))

    backbone = cfg.model.backbone
    parameters = sum(p.numel() for p in model.parameters())
    assert METAFILE[f'configs/{identify(path)}.py']['Metadata']['Parameters'] == parameters
    assert round(parameters / 1e6, 1) == PUBLISHED.get(path.stem, round(parameters / 1e6, 1))
    if path.parent.name == 'toy':
        assert not cfg.goals and 'init_cfg' not in backbone
        return
    assert_named_for_content(path, cfg)
    if cfg.default_scope == 'mmpretrain':
        known = {
            arch: number
            for network in NETWORKS.values()
            if type(model.backbone) is network.network
            for arch, number in network.parameters.items()
        }
        known |= {'4g_tklb': 27_514_593, '9g_tklb': 60_779_617}
        assert parameters == known[backbone.arch]
        assert 'init_cfg' not in backbone
    elif path.parent.name == 'omninet':  # no weights are published
        assert 'init_cfg' not in backbone
    else:
        checkpoint = f'checkpoints/{path.parent.name}_{backbone.arch}.pth'
        assert backbone.init_cfg == dict(type='Pretrained', checkpoint=checkpoint)


def test_training_does_not_start_without_the_weights(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    cfg = Config.fromfile(CONFIGS / 'p2t' / 'mask-rcnn_p2t-t_fpn_1x_coco.py')
    hint = r'init_cfg.checkpoint=FILE, or .* random weights with .*init_cfg=None'
    with pytest.raises(CheckpointError, match=f'no checkpoint checkpoints/p2t_tiny.pth.*{hint}'):
        read_pretrained(cfg)
    cfg.model.backbone.init_cfg = None
    read_pretrained(cfg)


def test_a_neck_for_another_variant_is_refused() -> None:
    cfg = Config.fromfile(CONFIGS / 'omninet' / 'mask-rcnn_omninet-s_fpn_1x_coco.py')
    cfg.model.backbone.arch = 'base'
    with pytest.raises(ConfigError, match='neck.in_channels is 384, but model.backbone gives 768'):
        require_channels(cfg, 'train')


def test_options_of_the_readme_name_weights(tmp_path: Path, monkeypatch) -> None:
    """OmniNet's configs name no weights, but those of its classifier can be given."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    (options,) = re.findall(
        r'--cfg-options (\S+=Pretrained) (\S+)=FILE',
        (CONFIGS / 'omninet' / 'README.md').read_text(),
    )
    network = NETWORKS['omninet']
    weights = OmniNet(network.small).state_dict()
    path = tmp_path / 'epoch_300.pth'
    torch.save({'state_dict': {f'backbone.{key}': v for key, v in weights.items()}}, path)
    cfg = Config.fromfile(CONFIGS / 'omninet' / 'mask-rcnn_omninet-s_fpn_1x_coco.py')
    read_pretrained(cfg)
    cfg.model.backbone.arch = network.small
    type_option, key = options
    cfg.merge_from_dict(dict([type_option.split('='), (key, str(path))]))
    read_pretrained(cfg)
    model = MODELS.build(cfg.model.backbone)
    model.init_weights()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('path', rest_slow(OF_OTHER_BACKBONES, *TRAINED), ids=identify)
def test_train_and_test(path: Path, run_tool, monkeypatch, tmp_path: Path) -> None:
    assert_trains_and_tests(path, Config.fromfile(path), run_tool, monkeypatch, tmp_path)


@pytest.mark.parametrize('name', ['p2t', 'shunted'])
def test_published_classifier(name: str, run_tool, tmp_path: Path) -> None:
    """The tool converts a published checkpoint to the config's classifier.

    The test files of the other networks cover theirs.
    """
    network = NETWORKS[name]
    arch = next(iter(network.parameters))
    cfg = Config.fromfile(CONFIGS / name / f'{name}-{arch}_8xb128_in1k.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model).eval()
    head = {'head.weight': model.head.fc.weight.shape, 'head.bias': model.head.fc.bias.shape}
    published = network.synthetic_weights(network.network(arch))
    published |= {key: synthetic_value(key, tuple(shape)) for key, shape in head.items()}
    torch.save({'model': published}, tmp_path / 'published.pth')
    run_tool(
        'convert_checkpoint', tmp_path / 'published.pth', tmp_path / 'ours.pth', '--classifier'
    )
    model.load_state_dict(torch.load(tmp_path / 'ours.pth')['state_dict'])
    golden = network.golden[f'{arch}/1x3x65x97/logits']
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-6)):
        with torch.no_grad():
            logits = model.to(dtype)(synthetic_image(1, 3, 65, 97).to(dtype)).double().numpy()
        assert np.abs(logits - golden).max() < tolerance * golden.std()
