"""The comparison shows the published figures and the recorded measurements."""

import json
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_tables_hold_the_record_and_the_published_figures(run_tool, tmp_path: Path) -> None:
    names = [*yaml.safe_load((ROOT / 'docs' / 'compare.yml').read_text())]
    names += ['hatnet_small_cp', 'literal_small']
    results = [
        dict(
            *[dict(backbone=name, mode=mode, shape=[8, 3, 224, 224], dtype='float32')],
            parameters=(20 + i) * 10**6,
            flops=16 * (4 + i) * 10**9 * factor,
            times=[factor * (i + 1)],
            seconds=factor * (i + 1),
            memory=factor * (i + 1) * 10**8,
            ceiling=170e9,
        )
        for mode, factor in (('forward', 1), ('train', 3))
        for i, name in enumerate(names)
    ]
    machine = dict(date='2000-01-01', device='a machine', torch='2')
    (tmp_path / 'compare.json').write_text(json.dumps(dict(machine=machine, results=results)))
    run_tool('compare', '--docs', tmp_path)
    lines = (tmp_path / 'compare.md').read_text().splitlines()
    assert '| HAT-Net small | 20.0 | 4.00 | 82.6 | 45.2 / 41.6 | 44.8 | 46.6 |  |' in lines
    assert '| STViT small | 23.0 | 7.00 | 83.6 | 47.6 / 43.1 |  |  | 48.6 |' in lines
    assert '| P2T small | 2 / 0.20 | 6 / 0.60 |' in lines
    assert any(line.startswith('OmniNet tiny was trained later, on 2026-11-30 (') for line in lines)
    assert '| OmniNet small | 25.0 | 9.00 |  |  |  |  |  |' in lines
    # Ratios of the reference implementation, the twelfth backbone, to the first and the eleventh.
    for case, factor in (('forward', 1), ('training step', 3)):
        of_case = f'| {case} 8x3x224x224 |'
        for title, i, ratio, share in (
            ('Published formulation', 11, '1.00', '1.00'),
            ('`HATNet`', 0, '12.00', '0.08'),
            ('`HATNet`, `with_cp=True`', 10, '1.09', '0.92'),
        ):
            line = next(line for line in lines if line.startswith(f'{of_case} {title} |'))
            seconds, faster, _, memory, memory_ratio = line.split(' | ')[2:]
            assert seconds == f'{factor * (i + 1)} ({factor * (i + 1)}, {factor * (i + 1)})'
            assert (faster, memory) == (ratio, f'{factor * (i + 1) / 10:.2f}')
            assert memory_ratio == f'{share} |'
    for plot in ('compare_speed.png', 'compare_memory.png'):
        assert (tmp_path / plot).read_bytes().startswith(b'\x89PNG')


def test_a_backbone_that_was_not_measured_is_named(run_tool_captured, tmp_path: Path) -> None:
    row = dict(backbone='HAT-Net small', mode='forward', shape=[8, 3, 224, 224])
    (tmp_path / 'compare.json').write_text(json.dumps(dict(machine={}, results=[row])))
    result = run_tool_captured('compare', '--docs', tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith('compare.json lacks measurements of P2T small, Shunted small,')
    assert result.stderr.endswith('measure all backbones again with --measure.')
