"""MIM's index lists every config as it is, and docs/benchmarks.md has the same figures."""

import functools
import re
import shutil
from pathlib import Path

import pytest
import yaml
from experiments import WITH_BASES, identify
from mmengine.config import Config
from mmengine.config.utils import _get_cfg_metainfo
from modelindex.load_model_index import load

from mmhatnet.flops import DEFAULT_SHAPES, count_flops

ROOT = Path(__file__).parents[1]

RELEASE = 'https://github.com/yun-liu/HAT-Net/releases/download/v2.0'
PUBLISHED = {
    variant: {
        'imagenet': {'Top 1 Accuracy': top1},
        'maskrcnn': {'box AP': box, 'mask AP': mask},
        'retinanet': {'box AP': retina},
        'semfpn': {'mIoU': miou},
    }
    for variant, top1, box, mask, retina, miou in [
        ('tiny', 79.8, 43.1, 39.7, 42.5, 43.6),
        ('small', 82.6, 45.2, 41.6, 44.8, 46.6),
        ('medium', 84.0, 47.0, 42.7, 45.9, 49.3),
        ('large', 84.2, 47.4, 43.1, 46.3, 49.5),
    ]
}
MODELS = {
    model['Config']: model
    for model in yaml.safe_load((ROOT / 'configs' / 'metafile.yml').read_text())['Models']
}
PAPERS = dict(
    hatnet='2106.03180',
    p2t='2106.12011',
    shunted='2111.15193',
    stvit='2211.11167',
    glnet='2411.14429',
)
# What the authors, or those who quote them, report of the other networks' first variants.
PUBLISHED_OF_PEERS = {
    'imagenet_p2t': [82.4],
    'maskrcnn_p2t': [45.5, 41.4],
    'retinanet_p2t': [44.4],
    'semfpn_p2t': [46.7],
    'imagenet_shunted': [82.9],
    'semfpn_shunted': [48.2],
    'imagenet_stvit': [83.6],
    'maskrcnn_stvit': [47.6, 43.1],
    'imagenet_glnet': [83.7],
}
read = functools.cache(Config.fromfile)
# The toy configs have no results to compare with anything.
EXPERIMENTS = [config for config in MODELS if '/toy/' not in config]


def metrics(model: dict) -> dict:
    return {
        name: value
        for result in model.get('Results', [])
        for name, value in result['Metrics'].items()
    }


def test_every_config_is_listed_once() -> None:
    files = {f'configs/{identify(path)}.py' for path in WITH_BASES}
    index = load(str(ROOT / 'model-index.yml'))
    assert sorted(model.config for model in index.models) == sorted(files)
    assert len({model.name for model in index.models}) == len(files)


def test_mim_finds_nothing_wrong() -> None:
    index = load(str(ROOT / 'model-index.yml'))
    assert index.check(silent=True) == []
    # What a model inherits from its collection.
    papers = {model.name: model.full_model.paper['URL'] for model in index.models}
    for name, number in PAPERS.items():
        named = {paper for model, paper in papers.items() if f'_{name}' in model}
        assert named == {f'https://arxiv.org/abs/{number}'}
    assert all(re.search('_(' + '|'.join(PAPERS) + ')', model) for model in papers)


@pytest.mark.parametrize('config', MODELS)
def test_mmengine_resolves_it(config: str, tmp_path: Path) -> None:
    (tmp_path / '.mim' / 'configs').mkdir(parents=True)
    (tmp_path / '.mim' / 'configs' / 'peers').mkdir()
    for name in ('model-index.yml', 'configs/metafile.yml', 'configs/peers/metafile.yml'):
        shutil.copy(ROOT / name, tmp_path / '.mim' / name)
    found = _get_cfg_metainfo(str(tmp_path), config.removeprefix('configs/'))
    assert found == MODELS[config]


@pytest.mark.parametrize('config', MODELS)
def test_schedule_is_that_of_the_config(config: str) -> None:
    cfg = read(ROOT / config)
    metadata = MODELS[config]['Metadata']
    assert metadata.get('Epochs') == cfg.train_cfg.get('max_epochs')
    assert metadata.get('Iterations') == cfg.train_cfg.get('max_iters')
    if config in EXPERIMENTS:
        assert metadata['Batch Size'] == cfg.auto_scale_lr.base_batch_size


@pytest.mark.parametrize('variant', ['tiny', 'small', 'medium', 'large'])
def test_results_and_weights_are_the_published_ones(variant: str) -> None:
    for job, figures in PUBLISHED[variant].items():
        suffix = '' if variant == 'small' else f'_{variant}'
        model = MODELS[f'configs/{job}_hatnet{suffix}.py']
        assert metrics(model) == figures
        weights = f'{RELEASE}/HAT-Net_{variant.capitalize()}.pth'
        assert model.get('Weights') == (weights if job == 'imagenet' else None)


def test_nothing_else_has_results_or_weights() -> None:
    """What nobody has run has no figure, and no weights that anybody could download."""
    names = {name for name, model in MODELS.items() if 'Results' in model or 'Weights' in model}
    assert len(names) == sum(map(len, PUBLISHED.values()))


def test_results_of_peers_are_the_published_ones() -> None:
    listed = yaml.safe_load((ROOT / 'configs' / 'peers' / 'metafile.yml').read_text())['Models']
    first = {
        model['Name']: [*metrics(model).values()]
        for model in listed
        if 'Results' in model and model['Name'].count('_') == 1
    }
    assert first == PUBLISHED_OF_PEERS
    assert not any('Weights' in model for model in listed), 'none can be downloaded by address'


@pytest.mark.parametrize('config', ['imagenet_hatnet_tiny', 'semfpn_hatnet_tiny'])
def test_complexity_is_what_the_tool_counts(config: str) -> None:
    """For two that are quick; test_configs.py compares the parameters of all."""
    cfg = Config.fromfile(ROOT / 'configs' / f'{config}.py')
    shape = DEFAULT_SHAPES[cfg.default_scope]
    parameters, layers, attention = count_flops(cfg, shape)['model']
    metadata = MODELS[f'configs/{config}.py']['Metadata']
    assert metadata['Parameters'] == parameters
    assert metadata['FLOPs'] == layers + attention


@pytest.mark.parametrize('config', EXPERIMENTS)
def test_benchmarks_have_a_row(config: str) -> None:
    model = MODELS[config]
    lines = (ROOT / 'docs' / 'benchmarks.md').read_text().splitlines()
    (row,) = [line for line in lines if line.startswith(f'| `{model["Name"]}` |') and 'GPU' in line]
    digits = 2 if 'imagenet' in config else 1
    no_figure = 'as above' if 'fsdp' in config else 'not in the paper'
    assert f'| {model["Metadata"]["Parameters"] / 1e6:.1f} (' in row
    assert f'| {model["Metadata"]["FLOPs"] / 1e9:.{digits}f} (' in row
    paper = ' / '.join(map(str, metrics(model).values()))
    assert f'| `{model["Name"]}` | {paper or no_figure} |' in row
