"""Finds the configs of configs/ and shrinks them for tests.

Only images and the numbers of blocks, proposals and queries shrink: they cost time and are not what
the tests of configs check. The golden features cover the depths of the variants.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS

import mmhatnet.openmmlab.setup  # noqa: F401  as the configs do

CONFIGS = Path(__file__).parents[1] / 'configs'
FILES = sorted(CONFIGS.rglob('*.py'))
# A file without bases is a fragment for other configs to inherit.
FRAGMENTS = [path for path in FILES if not re.search(r'^_base_ = ', path.read_text(), re.MULTILINE)]
# Short names for configs of configs/hatnet/.
ENTRY_POINTS = [path for path in FILES if path.parent == CONFIGS]
ALL_EXPERIMENTS = [path for path in FILES if path not in (*FRAGMENTS, *ENTRY_POINTS)]
# Experiments with HAT-Net, and with the other backbones.
EXPERIMENTS = [path for path in ALL_EXPERIMENTS if 'hatnet' in path.stem]
OF_OTHER_BACKBONES = [path for path in ALL_EXPERIMENTS if path not in EXPERIMENTS]
TOY = {path.stem: path for path in EXPERIMENTS if path.parent.name == 'toy'}
NAME = re.compile(
    r'(?:[a-z0-9-]+_)?(?P<network>hatnet|p2t|shunted|stvit|glnet|omninet)-(?P<arch>[a-z0-9-]+)_(?:\S+_)?'
    r'(?P<settings>[a-z0-9-]+)_(?P<data>coco|in1k|ade20k-512x512)'
)
LETTERS = dict(t='tiny', s='small', m='medium', b='base', l='large')
SCOPES = {'coco': 'mmdet', 'in1k': 'mmpretrain', 'ade20k-512x512': 'mmseg'}

# The synthetic images are about 160x128.
SHRINKING = dict(mmdet=8, mmseg=8, mmpretrain=4)
SIZES = ('scale', 'scales', 'crop_size', 'size', 'stride', 'max_size')
LIMITS = dict(
    **dict(num=32, max_per_img=32, num_queries=32, num_points=512, score_thr=0),
    **dict(fc_out_channels=64, conv_out_channels=32, feedforward_channels=64),
)
TOY_CLASSES = Config.fromfile(CONFIGS / 'toy' / 'imagenet_hatnet_toy.py').classes
# COCO's metric needs the categories of all classes that a model may predict.
ALL_CLASSES = 'all_classes_'
METRICS = dict(mmdet='coco/bbox_mAP', mmseg='mIoU', mmpretrain='accuracy/top1')


def identify(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(''))


def arch_in_name(path: Path) -> str:
    """Returns the variant in a file name, as the backbone's ``arch``."""
    arch = NAME.fullmatch(path.stem)['arch']
    return LETTERS.get(arch, arch.replace('-', '_'))


def assert_named_for_content(path: Path, cfg: Config) -> None:
    """Checks that a file name follows the framework's convention and describes the config."""
    name = NAME.fullmatch(path.stem)
    assert name and path.parent == CONFIGS / name['network']
    assert cfg.default_scope == SCOPES[name['data']]
    assert cfg.model.backbone.arch == arch_in_name(path)
    # MMPretrain spells the variants out.
    assert (name['arch'] in LETTERS.values()) <= (cfg.default_scope == 'mmpretrain')
    if cfg.default_scope == 'mmseg':
        assert cfg.model.data_preprocessor.size == (512, 512)
    settings = name['settings'].split('-')
    assert ('amp' in settings) == (cfg.optim_wrapper.get('type') == 'AmpOptimWrapper')
    assert ('fsdp' in settings) == ('strategy' in cfg)
    batch = re.fullmatch(r'(\d+)xb(\d+)', settings[0])
    # MMDetection's schedules in multiples of 12 epochs imply the batch.
    gpus, size = map(int, batch.groups() if batch else (8, 2))
    assert cfg.train_dataloader.batch_size == size
    assert cfg.auto_scale_lr.base_batch_size == gpus * size
    if name['data'] == 'in1k':
        assert len(settings) == 1 and cfg.train_cfg.max_epochs == 300
        return
    number, unit = re.fullmatch(r'(\d+)([xek])', settings[-1]).groups()
    count = int(number) * dict(x=12, e=1, k=1000)[unit]
    if unit != 'k' and 'max_iters' in cfg.train_cfg:  # 117266 images of COCO have objects
        count = round(count * 118_000 / cfg.auto_scale_lr.base_batch_size)
    assert cfg.train_cfg.get('max_epochs', cfg.train_cfg.get('max_iters')) == count


def rest_slow(params: Iterable, *ordinary) -> list:
    """Marks the parameters of a test as slow, except the ordinary ones."""
    return [p if p in ordinary else pytest.param(p, marks=pytest.mark.slow) for p in params]


def without_amp(optim_wrapper: dict) -> dict:
    """Returns the same optimizer without mixed precision, which needs a GPU."""
    of_amp = ('type', 'loss_scale', 'dtype')
    return {key: value for key, value in optim_wrapper.items() if key not in of_amp}


def made_small(cfg: Config, toy: bool = False) -> str:
    """Returns the text of a config for two iterations and a test on small synthetic images."""
    cfg = cfg.to_dict()
    scope, model = cfg['default_scope'], cfg['model']
    factor = 1 if toy else SHRINKING[scope]
    backbone = model['backbone']
    backbone['init_cfg'] = None
    network = MODELS.get(backbone['type'])
    arch = network.resolve_arch(backbone['arch'])
    # Of a network without stages, this is one partition.
    backbone['arch'] = arch | (dict(depth=4) if 'depth' in arch else dict(depths=(1, 1, 1, 1)))
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

    # These are for several processes or GPUs, which test_distributed.py covers.
    for name in ('runner_type', 'strategy'):
        cfg.pop(name, None)

    text = as_text(cfg)
    if toy:
        return text
    return text.replace("'data/", "'data/toy/").replace('instances_', ALL_CLASSES)


def as_text(cfg: dict) -> str:
    return '\n'.join(f'{key} = {value!r}' for key, value in cfg.items())


def limited(node):
    """Returns a model's settings with fewer proposals, samples and queries."""
    if isinstance(node, dict):
        return {
            key: min(value, LIMITS[key]) if key in LIMITS else limited(value)
            for key, value in node.items()
        }
    return type(node)(map(limited, node)) if isinstance(node, (list, tuple)) else node


def shrunk(node, factor: int, key: str = ''):
    """Returns settings with the sizes of images divided by a factor."""
    if isinstance(node, dict):
        return {key: shrunk(value, factor, key) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(shrunk(value, factor, key) for value in node)
    return node // factor if key in SIZES and isinstance(node, int) else node


def assert_trains_and_tests(
    path: Path, cfg: Config, run_tool: Callable, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Trains a shrunk config for two iterations and tests the checkpoint."""
    missing_gradients = []

    def step(self, **kwargs):
        parameters = [p for group in self.optimizer.param_groups for p in group['params']]
        missing_gradients.append([tuple(p.shape) for p in parameters if p.grad is None])
        original_step(self, **kwargs)

    original_step = OptimWrapper.step
    monkeypatch.setattr(OptimWrapper, 'step', step)
    small = folder / path.name
    small.write_text(made_small(cfg, toy=path.stem.endswith('_toy')))

    run_tool('train', small, '--work-dir', folder / 'train')
    (scalars,) = folder.glob('train/*/vis_data/scalars.json')
    losses = [json.loads(line)['loss'] for line in scalars.read_text().splitlines()]
    assert len(losses) == 2 and all(0 < loss < float('inf') for loss in losses)
    # Distributed training fails where a parameter gets no gradient.
    assert missing_gradients == [[], []]

    checkpoint = Path((folder / 'train' / 'last_checkpoint').read_text())
    run_tool('test', small, checkpoint, '--work-dir', folder / 'test')
    checkpoint.unlink()
    (log,) = folder.glob('test/*/*.log')
    assert 'Load checkpoint from' in log.read_text()
    assert 'do not match' not in log.read_text()
    (results,) = folder.glob('test/*/*.json')
    assert METRICS[cfg.default_scope] in json.loads(results.read_text())
