"""The benchmark counts, measures, writes and draws what it says, and refuses what it cannot do."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

# Multiply-adds of the small variant at 224x224 in configs/metafile.yml, less those of its head.
SMALL_FLOPS = 2 * (4548314112 - 512 * 1000)


@pytest.fixture
def run_benchmark(run_tool, tmp_path) -> Callable[..., dict]:
    def run(*args: str) -> dict:
        run_tool('benchmark', *args, '--rounds', 2, '--out', tmp_path)
        return json.loads((tmp_path / 'benchmark.json').read_text())

    return run


def test_all_backbones_take_part_and_results_are_drawn(run_benchmark, tmp_path, capsys) -> None:
    names = ['hatnet_tiny', 'convnext_tiny']
    shapes, dtypes = ['1x3x32x32', '1x3x48x40'], ['float32', 'bfloat16']
    results = run_benchmark(*names, '--shapes', *shapes, '--dtypes', *dtypes, '--no-memory')[
        'results'
    ]
    assert [(r['shape'], r['mode'], r['backbone'], r['dtype']) for r in results] == [
        ([int(side) for side in shape.split('x')], mode, name, dtype)
        for shape in shapes
        for mode in ('forward', 'train')
        for name in names
        for dtype in dtypes
    ]
    for row in results:
        assert 0 < row['fastest'] <= row['seconds'] <= row['slowest']
        assert ('deviation' in row) == (row['dtype'] == 'bfloat16')
        assert 0 <= row.get('deviation', 0) < 0.05
    drawn = {path.name for path in tmp_path.glob('*.png')}
    assert drawn == {
        f'{name}.png'
        for mode in ('forward', 'train')
        for name in [f'pixels_{mode}', *(f'accuracy_{mode}_{shape}' for shape in shapes)]
    }
    printed = capsys.readouterr().out
    assert 'forward, 1x3x48x40; ratios to hatnet_tiny' in printed
    assert 'The ceiling, a matrix product, in GFLOP/s' in printed


def test_literal_formulation_has_the_same_flops_and_memory_is_measured(run_benchmark) -> None:
    results = run_benchmark(
        *('literal_small', 'hatnet_small', '--shapes', '1x3x224x224', '--modes', 'forward')
    )['results']
    assert [row['flops'] for row in results] == [SMALL_FLOPS, SMALL_FLOPS]
    # The literal formulation has a hidden layer of 56 x 56 x 512 numbers, at its input and output.
    assert results[0]['memory'] > 2 * 56 * 56 * 512 * 4


def test_config_adds_backbones(run_benchmark, tmp_path) -> None:
    config = tmp_path / 'more.py'
    config.write_text("backbones = dict(mine=dict(type='HATNet', arch='tiny', out_indices=(0,)))")
    options = ['--shapes', '1x3x32x32', '--modes', 'forward', '--no-memory']
    results = run_benchmark('hatnet_tiny', 'mine', '--config', str(config), *options)['results']
    assert 0 < results[1]['flops'] < results[0]['flops']


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['hatnet_huge'], "backbones ['hatnet_huge'] are none of ['hatnet_tiny'"),
        (['--shapes', '3x224x224'], '3x224x224 is not a shape such as 8x3x224x224'),
        (['--shapes', '0x3x32x32'], '0x3x32x32 is not a shape'),
        (['hatnet_tiny', '--baseline', 'swin_tiny'], '--baseline swin_tiny is not measured'),
        (['--device', 'cuda'], 'PyTorch finds no GPU here'),
        (['--config', 'nowhere.py'], 'there is no config nowhere.py'),
    ],
)
def test_impossible_options_are_named(args, message, run_tool, monkeypatch, capsys) -> None:
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(SystemExit):
        run_tool('benchmark', *args)
    assert message in capsys.readouterr().err
