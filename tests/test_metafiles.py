"""MIM's index agrees with the configs; READMEs and docs/benchmarks.md show the same figures."""

import functools
import re
import shutil
from pathlib import Path

import pytest
import yaml
from experiments import ALL_EXPERIMENTS, ENTRY_POINTS, identify
from mmengine.config import Config
from mmengine.config.utils import _get_cfg_metainfo
from modelindex.load_model_index import load

from mmhatnet.flops import DEFAULT_SHAPES, count_flops

ROOT = Path(__file__).parents[1]

RELEASE = 'https://github.com/yun-liu/HAT-Net/releases/download/v2.0'
PUBLISHED = {
    variant: {
        f'hatnet-{variant}_8xb128_in1k': {'Top 1 Accuracy': top1},
        f'mask-rcnn_hatnet-{variant[0]}_fpn_1x_coco': {'box AP': box, 'mask AP': mask},
        f'retinanet_hatnet-{variant[0]}_fpn_1x_coco': {'box AP': retina},
        f'hatnet-{variant[0]}_fpn_4xb4-80k_ade20k-512x512': {'mIoU': miou},
    }
    for variant, top1, box, mask, retina, miou in [
        ('tiny', 79.8, 43.1, 39.7, 42.5, 43.6),
        ('small', 82.6, 45.2, 41.6, 44.8, 46.6),
        ('medium', 84.0, 47.0, 42.7, 45.9, 49.3),
        ('large', 84.2, 47.4, 43.1, 46.3, 49.5),
    ]
}
PAPERS = dict(
    hatnet='2106.03180',
    p2t='2106.12011',
    shunted='2111.15193',
    stvit='2211.11167',
    glnet='2411.14429',
    omninet='2103.01075',
)
METAFILES = {
    network: yaml.safe_load((ROOT / 'configs' / network / 'metafile.yml').read_text())
    for network in PAPERS
}
MODELS = {model['Config']: model for model in METAFILES['hatnet']['Models']}
# Results of the other backbones' small variants, from their authors or as quoted by others.
PUBLISHED_OF_OTHERS = {
    'p2t-small_8xb128_in1k': [82.4],
    'mask-rcnn_p2t-s_fpn_1x_coco': [45.5, 41.4],
    'retinanet_p2t-s_fpn_1x_coco': [44.4],
    'p2t-s_fpn_4xb4-80k_ade20k-512x512': [46.7],
    'shunted-small_8xb128_in1k': [82.9],
    'shunted-s_fpn_4xb4-80k_ade20k-512x512': [48.2],
    'stvit-small_8xb128_in1k': [83.6],
    'mask-rcnn_stvit-s_fpn_1x_coco': [47.6, 43.1],
    'glnet-4g_16xb128_in1k': [83.7],
}
read = functools.cache(Config.fromfile)
# Configs on synthetic data have no published results.
EXPERIMENTS = [config for config in MODELS if '/toy/' not in config]


def metrics(model: dict) -> dict:
    return {
        name: value
        for result in model.get('Results', [])
        for name, value in result['Metrics'].items()
    }


def test_every_config_is_listed_once() -> None:
    files = {f'configs/{identify(path)}.py' for path in ALL_EXPERIMENTS}
    index = load(str(ROOT / 'model-index.yml'))
    assert sorted(model.config for model in index.models) == sorted(files)
    assert {model.name for model in index.models} == {Path(file).stem for file in files}
    aliases = [alias for model in MODELS.values() for alias in model.get('Alias', [])]
    assert sorted(aliases) == [path.stem for path in ENTRY_POINTS]


def test_mim_finds_nothing_wrong() -> None:
    index = load(str(ROOT / 'model-index.yml'))
    assert index.check(silent=True) == []
    # A model inherits these from its collection.
    papers = {model.name: model.full_model.paper['URL'] for model in index.models}
    for name, number in PAPERS.items():
        named = {paper for model, paper in papers.items() if name in model}
        assert named == {f'https://arxiv.org/abs/{number}'}
    assert all(re.search('|'.join(PAPERS), model) for model in papers)


@pytest.mark.parametrize('network', PAPERS)
def test_readme_has_the_figures_of_the_metafile(network: str) -> None:
    folder = ROOT / 'configs' / network
    text = (folder / 'README.md').read_text()
    for link in re.findall(r'\]\((?!http)([^)#]+)\)', text):
        assert (folder / link).is_file()
    rows = [line[2:-2].split(' | ') for line in text.splitlines() if line.startswith('| [`')]
    listed = {re.match(r'\[`(.+)`\]\(\1\.py\)', row[0])[1]: row for row in rows}
    models = {model['Name']: model for model in METAFILES[network]['Models']}
    toys = {name for name in models if name.endswith('_toy')}
    assert set(listed) == set(models) - toys and all(f'[`{name}`]' in text for name in toys)
    for name, row in listed.items():
        assert f'{models[name]["Metadata"]["Parameters"] / 1e6:.1f}' in row
        figures = [str(figure) for figure in metrics(models[name]).values()]
        cells = row[4 if network == 'hatnet' else 3 :]  # after the parameters and FLOPs
        assert [cell for cell in cells if re.fullmatch(r'[\d.]+', cell)] == figures


@pytest.mark.parametrize('config', MODELS)
def test_mmengine_resolves_it(config: str, tmp_path: Path) -> None:
    for name in ('model-index.yml', *(f'configs/{network}/metafile.yml' for network in PAPERS)):
        (tmp_path / '.mim' / name).parent.mkdir(parents=True, exist_ok=True)
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
    for name, figures in PUBLISHED[variant].items():
        model = MODELS[f'configs/hatnet/{name}.py']
        assert metrics(model) == figures
        weights = f'{RELEASE}/HAT-Net_{variant.capitalize()}.pth'
        assert model.get('Weights') == (weights if name.endswith('in1k') else None)


def test_nothing_else_has_results_or_weights() -> None:
    """Experiments that nobody has run have neither results nor weights."""
    names = {name for name, model in MODELS.items() if 'Results' in model or 'Weights' in model}
    assert len(names) == sum(map(len, PUBLISHED.values()))


def test_results_of_other_backbones_are_the_published_ones() -> None:
    listed = [model for name in PAPERS if name != 'hatnet' for model in METAFILES[name]['Models']]
    small = {
        model['Name']: [*metrics(model).values()]
        for model in listed
        if 'Results' in model and re.search('-(s|small|4g)_', model['Name'])
    }
    assert small == PUBLISHED_OF_OTHERS
    # These weights have no direct download links.
    assert not any('Weights' in model for model in listed)


@pytest.mark.parametrize(
    'config', ['hatnet-tiny_8xb128_in1k', 'hatnet-t_fpn_4xb4-80k_ade20k-512x512']
)
def test_complexity_is_what_the_tool_counts(config: str) -> None:
    """Only for two quick ones; test_configs.py compares the parameters of all."""
    cfg = Config.fromfile(ROOT / 'configs' / 'hatnet' / f'{config}.py')
    shape = DEFAULT_SHAPES[cfg.default_scope]
    parameters, layers, attention = count_flops(cfg, shape)['model']
    metadata = MODELS[f'configs/hatnet/{config}.py']['Metadata']
    assert metadata['Parameters'] == parameters
    assert metadata['FLOPs'] == layers + attention


@pytest.mark.parametrize('config', EXPERIMENTS)
def test_benchmarks_have_a_row(config: str) -> None:
    model = MODELS[config]
    lines = (ROOT / 'docs' / 'benchmarks.md').read_text().splitlines()
    (row,) = [line for line in lines if line.startswith(f'| `{model["Name"]}` |') and 'GPU' in line]
    digits = 2 if 'in1k' in config else 1
    no_figure = 'as above' if 'fsdp' in config else 'not in the paper'
    assert f'| {model["Metadata"]["Parameters"] / 1e6:.1f} (' in row
    assert f'| {model["Metadata"]["FLOPs"] / 1e9:.{digits}f} (' in row
    paper = ' / '.join(map(str, metrics(model).values()))
    assert f'| `{model["Name"]}` | {paper or no_figure} |' in row
