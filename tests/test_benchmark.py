"""The benchmark counts, measures, records and plots, and names impossible options."""

import json
from collections.abc import Callable

import pytest

# Multiply-adds of the small variant at 224x224 in configs/hatnet/metafile.yml, without its head.
SMALL_FLOPS = 2 * (4548314112 - 512 * 1000)


@pytest.fixture
def run_benchmark(run_tool, tmp_path) -> Callable[..., list[dict]]:
    def run(*args: str) -> list[dict]:
        run_tool('benchmark', *args, '--rounds', 2, '--out', tmp_path)
        return json.loads((tmp_path / 'benchmark.json').read_text())['results']

    return run


@pytest.mark.parametrize(
    'dtypes', [['float32'], pytest.param(['float32', 'bfloat16'], marks=pytest.mark.slow)]
)
def test_all_backbones_are_measured_and_plotted(
    dtypes: list[str], run_benchmark, tmp_path, capsys
) -> None:
    names = ['hatnet_tiny', 'convnext_tiny']
    options = ['--shapes', '1x3x32x32', '--dtypes', *dtypes, '--no-memory']
    results = run_benchmark(*names, *options)
    assert [(row['mode'], row['backbone'], row['dtype']) for row in results] == [
        (mode, name, dtype) for mode in ('forward', 'train') for name in names for dtype in dtypes
    ]
    for row in results:
        assert len(row['times']) == 2 and min(row['times']) <= row['seconds'] <= max(row['times'])
        assert row['seconds'] > 0 and row['ceiling'] > 0
    of_forward, of_train = results[: len(results) // 2], results[len(results) // 2 :]
    assert of_train[0]['flops'] == 3 * of_forward[0]['flops']
    plots = {path.name for path in tmp_path.glob('*.png')}
    assert plots == {f'accuracy_{mode}_1x3x32x32.png' for mode in ('forward', 'train')}
    for table, rows in zip(capsys.readouterr().out.split('_1x3x32x32')[1:], (of_forward, of_train)):
        for row in rows:
            assert f' {row["seconds"]:.3g} ' in table


@pytest.mark.slow
def test_reference_implementation_has_the_same_flops_and_takes_more_memory(
    run_benchmark, tmp_path, capsys
) -> None:
    config = tmp_path / 'more.py'
    config.write_text("backbones = dict(mine=dict(type='HATNet', arch='small'))")
    options = ['--shapes', '1x3x224x224', '--modes', 'forward', '--profile']
    reference, mine = run_benchmark('literal_small', 'mine', '--config', config, *options)
    assert reference['flops'] == mine['flops'] == SMALL_FLOPS
    # Its hidden layer of 56 x 56 x 512 numbers exists twice: before and after an activation.
    assert reference['memory'] > 2 * 56 * 56 * 512 * 4
    assert 0 < mine['memory'] < reference['memory']
    assert 'aten::mkldnn_convolution' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['hatnet_huge'], "unknown backbones ['hatnet_huge']: name some of ['hatnet_"),
        (['--shapes', '3x224x224'], '3x224x224 is not a shape such as 8x3x224x224'),
        (['--shapes', '0x3x32x32'], '0x3x32x32 is not a shape'),
        (['--device', 'cuda'], 'PyTorch finds no GPU here'),
        (['--rounds', '0'], 'argument --rounds: 0 must be at least 1'),
    ],
)
def test_impossible_options_are_named(args, message, run_tool, monkeypatch, capsys) -> None:
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(SystemExit):
        run_tool('benchmark', *args)
    assert message in capsys.readouterr().err


def test_a_config_keeps_the_imports_that_it_inherits(run_tool, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name in ('part_of_base', 'part_of_own'):
        (tmp_path / f'{name}.py').write_text('')
    (tmp_path / 'base.py').write_text("custom_imports = dict(imports='part_of_base')")
    text = "_base_ = 'base.py'\ncustom_imports = dict(imports='part_of_own')\n"
    (tmp_path / 'own.py').write_text(f"{text}backbones = dict(a=dict(type='HATNet'))")
    given = {}
    monkeypatch.setattr('mmhatnet.benchmark.run_benchmark', lambda *_, **how: given.update(how))
    run_tool('benchmark', 'a', '--config', tmp_path / 'own.py')
    assert given['imports'] == ['part_of_base', 'part_of_own']
    with pytest.raises(SystemExit, match='There is no config nowhere.py'):
        run_tool('benchmark', '--config', 'nowhere.py')
