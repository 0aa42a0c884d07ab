"""Every experiment in configs/ is found, builds, trains, and is tested from its checkpoint.

The model is the config's own, at its full size. Only what costs time and says nothing about the
config is made smaller: pictures, and the numbers of proposals and queries.
"""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch.nn import GroupNorm

from mmhatnet.archs import ARCHS

CONFIGS = Path(__file__).parents[1] / 'configs'
FILES = sorted(CONFIGS.rglob('*.py'))
# A file that inherits nothing is a part of others.
PARTS = [path for path in FILES if not re.search(r'^_base_ = ', path.read_text(), re.MULTILINE)]
EXPERIMENTS = [path for path in FILES if path not in PARTS]

JOBS = ('maskrcnn', 'retinanet', 'semfpn', 'imagenet')
NAME = re.compile(
    r'[a-z0-9]+_hatnet(?:_(?P<arch>tiny|medium|large))?(?:_(?P<schedule>\d+[xek]))?(?:_fsdp)?'
)
CHECKPOINT = 'https://github.com/yun-liu/HAT-Net/releases/download/v2.0/HAT-Net_{}.pth'
# In millions, with the classifier of ImageNet-1K.
PUBLISHED_PARAMETERS = dict(tiny=12.7, small=25.7, medium=42.9, large=63.1)
# Those of P2T, by the same authors.
DROP_PATH_RATES = dict(tiny=0.1, small=0.1, medium=0.3, large=0.3)
METAFILE = {
    model['Config']: model
    for model in yaml.safe_load((CONFIGS / 'metafile.yml').read_text())['Models']
}
METRICS = dict(mmdet='coco/bbox_mAP', mmseg='mIoU', mmpretrain='accuracy/top1')

# The toy pictures are about 160x128.
SHRINKING = dict(mmdet=8, mmseg=8, mmpretrain=4)
SIZES = ('scale', 'scales', 'crop_size', 'size', 'stride', 'max_size')
LIMITS = dict(num=32, max_per_img=32, num_queries=32, num_points=512, score_thr=0)
TOY_CLASSES = Config.fromfile(CONFIGS / 'toy' / 'imagenet_hatnet.py').classes
# COCO's metric needs the categories of whatever a model of 80 classes may predict.
ALL_CLASSES = 'all_classes_'


def identify(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(''))


@pytest.fixture(scope='module', params=EXPERIMENTS, ids=identify)
def path(request) -> Path:
    return request.param


@pytest.fixture(scope='module')
def cfg(path: Path) -> Config:
    return Config.fromfile(path)


@pytest.fixture(scope='module', autouse=True)
def all_coco_classes(toy_data: Path) -> None:
    """Annotations of the toy pictures that list the categories which these do not show as well."""
    from mmdet.datasets import CocoDataset

    for file in toy_data.glob('data/toy/coco/annotations/instances_*.json'):
        content = json.loads(file.read_text())
        shown = {category['name'] for category in content['categories']}
        content['categories'] += [
            dict(id=1000 + number, name=name)
            for number, name in enumerate(CocoDataset.METAINFO['classes'])
            if name not in shown
        ]
        file.with_name(file.name.replace('instances_', ALL_CLASSES)).write_text(json.dumps(content))


@pytest.fixture
def model(cfg: Config):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield MODELS.build(copy.deepcopy(cfg.model))  # some models change it


def test_the_sixteen_experiments_of_the_paper_are_there() -> None:
    names = {path.name for path in EXPERIMENTS}
    variants = ('', '_tiny', '_medium', '_large')
    assert {f'{job}_hatnet{variant}.py' for job in JOBS for variant in variants} <= names


@pytest.mark.parametrize('part', PARTS, ids=identify)
def test_parts_are_no_experiments(part: Path) -> None:
    assert 'model' not in Config.fromfile(part), 'an experiment inherits a default_runtime.py'


def test_name_says_what_it_is(path: Path, cfg: Config) -> None:
    name = NAME.fullmatch(path.stem)
    assert name, 'METHOD_hatnet[_VARIANT][_SCHEDULE][_fsdp].py'
    if path.parent == CONFIGS:
        assert cfg.model.backbone.arch == (name['arch'] or 'small')
    if path.parent == CONFIGS and not name['schedule']:
        assert cfg.model.backbone.drop_path_rate == DROP_PATH_RATES[cfg.model.backbone.arch]


def test_tools_of_the_frameworks_can_run_it(cfg: Config) -> None:
    assert 'mmhatnet' in cfg.custom_imports.imports
    assert not cfg.custom_imports.allow_failed_imports
    assert cfg.auto_scale_lr.enable is False
    assert cfg.auto_scale_lr.base_batch_size % 8 == 0


def test_backbone_is_the_variant(path: Path, cfg: Config, model) -> None:
    arch = cfg.model.backbone.arch
    parameters = sum(parameter.numel() for parameter in model.backbone.parameters())
    classifier = 1000 * (ARCHS[arch]['embed_dims'][-1] + 1)
    assert round((parameters + classifier) / 1e6, 1) == PUBLISHED_PARAMETERS[arch]

    listed = METAFILE[f'configs/{identify(path)}.py']['Metadata']
    assert sum(parameter.numel() for parameter in model.parameters()) == listed['Parameters']

    init_cfg = cfg.model.backbone.get('init_cfg')
    if cfg.default_scope == 'mmpretrain' or path.parent.name == 'toy':
        assert init_cfg is None
    else:
        assert init_cfg == dict(type='Pretrained', checkpoint=CHECKPOINT.format(arch.capitalize()))


def test_weight_decay_of_normalisation(cfg: Config, model) -> None:
    """A rule of paramwise_cfg that was written for other names would reach only some of them."""
    optim_wrapper = build_optim_wrapper(model, without_amp(cfg.optim_wrapper))
    decays = {
        id(parameter): group['weight_decay']
        for group in optim_wrapper.param_groups
        for parameter in group['params']
    }
    norms = [module for module in model.backbone.modules() if isinstance(module, GroupNorm)]
    decays = {decays[id(parameter)] for norm in norms for parameter in norm.parameters()}
    weight_decay = cfg.optim_wrapper.optimizer.weight_decay
    # As everywhere in the field: normalisation is exempt from a strong decay, not from a weak one.
    exempt = weight_decay == 0.05 and 'paramwise_cfg' in cfg.optim_wrapper
    assert decays == {0.0 if exempt else weight_decay}


def test_train_and_test(path: Path, cfg: Config, run_tool, monkeypatch, tmp_path: Path) -> None:
    missing_gradients = []

    def step(self, **kwargs):
        parameters = [p for group in self.optimizer.param_groups for p in group['params']]
        missing_gradients.append([tuple(p.shape) for p in parameters if p.grad is None])
        original_step(self, **kwargs)

    original_step = OptimWrapper.step
    monkeypatch.setattr(OptimWrapper, 'step', step)
    # Formatting the dumped config takes longer than training.
    monkeypatch.setattr(Config, 'pretty_text', property(lambda cfg: as_text(cfg.to_dict())))
    small = tmp_path / path.name
    small.write_text(made_small(cfg, toy=path.parent.name == 'toy'))

    run_tool('train', small, '--work-dir', tmp_path / 'train')
    (scalars,) = tmp_path.glob('train/*/vis_data/scalars.json')
    losses = [json.loads(line)['loss'] for line in scalars.read_text().splitlines()]
    assert len(losses) == 2 and all(0 < loss < float('inf') for loss in losses)
    # Distributed training fails where a parameter gets no gradient.
    assert missing_gradients == [[], []]

    checkpoint = Path((tmp_path / 'train' / 'last_checkpoint').read_text())
    run_tool('test', small, checkpoint, '--work-dir', tmp_path / 'test')
    checkpoint.unlink()
    (log,) = tmp_path.glob('test/*/*.log')
    assert 'Load checkpoint from' in log.read_text()
    assert 'do not match' not in log.read_text()
    (results,) = tmp_path.glob('test/*/*.json')
    assert METRICS[cfg.default_scope] in json.loads(results.read_text())


def without_amp(optim_wrapper: dict) -> dict:
    """The same optimizer without mixed precision, which needs a GPU."""
    of_amp = ('type', 'loss_scale', 'dtype')
    return {key: value for key, value in optim_wrapper.items() if key not in of_amp}


def made_small(cfg: Config, toy: bool) -> str:
    """The text of a config that trains for two iterations, and tests, on small toy pictures."""
    cfg = cfg.to_dict()
    scope, model = cfg['default_scope'], cfg['model']
    factor = 1 if toy else SHRINKING[scope]
    model['backbone']['init_cfg'] = None
    cfg['model'] = limited(model)
    for name in ('data_preprocessor', 'test_cfg'):
        if model.get(name):
            cfg['model'][name] = shrunk(cfg['model'][name], factor)

    for split, count in dict(train=4, test=1).items():
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
        loader['batch_size'] = min(loader['batch_size'], 2)
        dataset = loader['dataset']
        dataset['indices'] = count
        dataset['pipeline'] = shrunk(dataset['pipeline'], factor)
        if scope == 'mmpretrain':
            dataset['metainfo'] = dict(classes=TOY_CLASSES)
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None)

    loop = cfg['train_cfg']
    loop['max_iters' if 'max_iters' in loop else 'max_epochs'] = 2 if 'max_iters' in loop else 1
    loop.pop('dynamic_intervals', None)
    hooks = cfg['default_hooks']
    hooks['logger']['interval'] = 1
    hooks['checkpoint'].update(interval=loop.get('max_iters', 1), save_optimizer=False)
    hooks['checkpoint'].pop('save_best', None)
    cfg['optim_wrapper'] = without_amp(cfg['optim_wrapper'])

    # Several processes and GPUs share the work of these configs, which test_distributed.py tests.
    for name in ('runner_type', 'strategy'):
        cfg.pop(name, None)

    text = as_text(cfg)
    if toy:
        return text
    return text.replace("'data/", "'data/toy/").replace('instances_', ALL_CLASSES)


def as_text(cfg: dict) -> str:
    return '\n'.join(f'{key} = {value!r}' for key, value in cfg.items())


def limited(node):
    """A copy of a model's settings in which there are fewer proposals, samples and queries."""
    if isinstance(node, dict):
        return {
            key: min(value, LIMITS[key]) if key in LIMITS else limited(value)
            for key, value in node.items()
        }
    return type(node)(map(limited, node)) if isinstance(node, (list, tuple)) else node


def shrunk(node, factor: int, key: str = ''):
    """A copy of settings in which the sizes of pictures are divided."""
    if isinstance(node, dict):
        return {key: shrunk(value, factor, key) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(shrunk(value, factor, key) for value in node)
    return node // factor if key in SIZES and isinstance(node, int) else node
