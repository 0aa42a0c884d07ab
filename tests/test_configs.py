"""Each HAT-Net config builds, trains, and tests from its checkpoint, and its name is right."""

import copy
import re
from pathlib import Path

import mmdet
import pytest
import yaml
from experiments import (
    CONFIGS,
    ENTRY_POINTS,
    EXPERIMENTS,
    FRAGMENTS,
    arch_in_name,
    assert_named_for_content,
    assert_trains_and_tests,
    identify,
    rest_slow,
    without_amp,
)
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch.nn import GroupNorm

from mmhatnet import HATNet, config_path
from mmhatnet.config_checks import require_channels, require_complete, require_known_settings
from mmhatnet.openmmlab.config_inheritance import EARLIER_NAMES

# The paper's experiments, by entry point.
OF_PAPER = dict(
    maskrcnn_hatnet=r'mask-rcnn_hatnet-[tsml]_fpn_(fsdp-)?1x_coco',
    retinanet_hatnet=r'retinanet_hatnet-[tsml]_fpn_1x_coco',
    semfpn_hatnet=r'hatnet-[tsml]_fpn_4xb4-80k_ade20k-512x512',
    imagenet_hatnet=r'hatnet-(tiny|small|medium|large)_8xb128_in1k',
)
CHECKPOINT = 'https://github.com/yun-liu/HAT-Net/releases/download/v2.0/HAT-Net_{}.pth'
# In millions, with the classifier of ImageNet-1K.
PUBLISHED_PARAMETERS = dict(tiny=12.7, small=25.7, medium=42.9, large=63.1)
# P2T, by the same authors, has these.
DROP_PATH_RATES = dict(tiny=0.1, small=0.1, medium=0.3, large=0.3)
METAFILE = {
    model['Config']: model
    for model in yaml.safe_load((CONFIGS / 'hatnet' / 'metafile.yml').read_text())['Models']
}
# The others are variants of these, or tests/test_tools.py trains similar ones.
SMALL = [path for path in EXPERIMENTS if 'hatnet-s' in path.stem and '-3x_' not in path.stem]
pytestmark = pytest.mark.usefixtures('all_coco_classes')


@pytest.fixture(scope='module', params=EXPERIMENTS, ids=identify)
def path(request) -> Path:
    return request.param


@pytest.fixture(scope='module')
def cfg(path: Path) -> Config:
    return Config.fromfile(path)


@pytest.fixture
def model(cfg: Config):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield MODELS.build(copy.deepcopy(cfg.model))  # some models change it


def test_the_sixteen_experiments_of_the_paper_exist() -> None:
    for pattern in OF_PAPER.values():
        found = [path for path in EXPERIMENTS if re.fullmatch(pattern, path.stem)]
        assert {arch_in_name(path) for path in found} == set(DROP_PATH_RATES)


@pytest.mark.parametrize('fragment', FRAGMENTS, ids=identify)
def test_fragments_are_no_experiments(fragment: Path) -> None:
    assert 'model' not in Config.fromfile(fragment), 'an experiment inherits a default_runtime.py'


def test_entry_points_are_the_small_variants_of_the_paper() -> None:
    assert {path.stem for path in ENTRY_POINTS} == set(OF_PAPER)
    for entry_point in ENTRY_POINTS:
        (target,) = (
            path
            for path in EXPERIMENTS
            if re.fullmatch(OF_PAPER[entry_point.stem], path.stem) and arch_in_name(path) == 'small'
        )
        assert Config.fromfile(entry_point).to_dict() == Config.fromfile(target).to_dict()
        assert METAFILE[f'configs/{identify(target)}.py']['Alias'] == [entry_point.stem]


def test_name_describes_the_config(path: Path, cfg: Config) -> None:
    toy = path.parent.name == 'toy'
    assert path.stem.endswith('_toy') == toy, 'mim finds a config by its name'
    if not toy:
        assert_named_for_content(path, cfg)
    if any(re.fullmatch(pattern, path.stem) for pattern in OF_PAPER.values()):
        assert cfg.model.backbone.drop_path_rate == DROP_PATH_RATES[cfg.model.backbone.arch]


def test_the_frameworks_own_tools_can_run_it(cfg: Config) -> None:
    assert 'mmhatnet.openmmlab.setup' in cfg.custom_imports.imports
    assert not cfg.custom_imports.allow_failed_imports
    assert cfg.auto_scale_lr.enable is False
    assert cfg.auto_scale_lr.base_batch_size % 8 == 0


def test_config_checks_pass(cfg: Config) -> None:
    require_complete(cfg, 'train', 'val', 'test')
    require_known_settings(cfg)
    require_channels(cfg, 'train', 'val', 'test')


def test_backbone_is_the_variant(path: Path, cfg: Config, model) -> None:
    arch = cfg.model.backbone.arch
    parameters = sum(parameter.numel() for parameter in model.backbone.parameters())
    classifier = 1000 * (HATNet.ARCHS[arch]['embed_dims'][-1] + 1)
    assert round((parameters + classifier) / 1e6, 1) == PUBLISHED_PARAMETERS[arch]

    listed = METAFILE[f'configs/{identify(path)}.py']['Metadata']
    count = sum(parameter.numel() for parameter in model.parameters())
    if path.stem.startswith('dino') and mmdet.__version__ == '3.3.0':
        count += 131_072  # OneDL's DINO has these in addition
    assert count == listed['Parameters']

    init_cfg = cfg.model.backbone.get('init_cfg')
    if cfg.default_scope == 'mmpretrain' or path.parent.name == 'toy':
        assert init_cfg is None
    else:
        assert init_cfg == dict(type='Pretrained', checkpoint=CHECKPOINT.format(arch.capitalize()))


def test_weight_decay_of_normalization(cfg: Config, model) -> None:
    """A paramwise_cfg rule for the names of another backbone would miss layers."""
    optim_wrapper = build_optim_wrapper(model, without_amp(cfg.optim_wrapper))
    decays = {
        id(parameter): group['weight_decay']
        for group in optim_wrapper.param_groups
        for parameter in group['params']
    }
    norms = [module for module in model.backbone.modules() if isinstance(module, GroupNorm)]
    decays = {decays[id(parameter)] for norm in norms for parameter in norm.parameters()}
    weight_decay = cfg.optim_wrapper.optimizer.weight_decay
    # As usual, normalization layers are exempt from strong weight decay, not from weak.
    exempt = weight_decay == 0.05 and 'paramwise_cfg' in cfg.optim_wrapper
    assert decays == {0.0 if exempt else weight_decay}


@pytest.mark.parametrize('path', rest_slow(EXPERIMENTS, *SMALL), ids=identify, indirect=True)
def test_train_and_test(path: Path, cfg: Config, run_tool, monkeypatch, tmp_path: Path) -> None:
    assert_trains_and_tests(path, cfg, run_tool, monkeypatch, tmp_path)


@pytest.mark.parametrize('name', EARLIER_NAMES)
def test_earlier_names_that_projects_inherit(name: str) -> None:
    assert config_path(name) == config_path(EARLIER_NAMES[name])
    assert Config.fromfile(f'{config_path(name)}').model.type
