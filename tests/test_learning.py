"""Recipes on synthetic data reach their goals, and the tool that checks goals can fail.

Training takes minutes, so only `make test-slow` runs it; `SEEDS=5` adds seeds to the config's.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from experiments import CONFIGS, TOY
from mmengine.config import Config

TOOLS = Path(__file__).parents[1] / 'tools'


@pytest.fixture(scope='session')
def whole_toy_data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('whole')
    command = [sys.executable, TOOLS / 'make_toy_data.py', 'data/toy']
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(int(os.environ.get('SEEDS') or 1)))
@pytest.mark.parametrize('job', TOY)
def test_toy_recipe_reaches_its_goals(
    job: str, seed: int, whole_toy_data: Path, tmp_path: Path, capfd
) -> None:
    def run(tool: str, *args: object) -> str:
        command = [sys.executable, TOOLS / f'{tool}.py', TOY[job], *args]
        process = subprocess.run(command, cwd=whole_toy_data, capture_output=True, text=True)
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
        return process.stdout

    train, test = tmp_path / 'train', tmp_path / 'test'
    run('train', '--work-dir', train, '--cfg-options', f'randomness.seed={seed}')
    run('test', (train / 'last_checkpoint').read_text(), '--work-dir', test)
    with capfd.disabled():
        print(f'\n{job}, seed {seed}')
        print(run('check_goals', test))


@pytest.mark.parametrize('job', TOY)
def test_toy_configs_have_a_seed_and_goals(job: str) -> None:
    cfg = Config.fromfile(TOY[job])
    assert cfg.randomness.seed == 0
    least = dict(
        maskrcnn_hatnet_toy={'coco/bbox_mAP_50': 0.6, 'coco/segm_mAP_50': 0.6},
        retinanet_hatnet_toy={'coco/bbox_mAP_50': 0.4},
        semfpn_hatnet_toy={'mIoU': 60},
        imagenet_hatnet_toy={'accuracy/top1': 90},
    )
    assert dict(cfg.goals) == least[job]


@pytest.fixture
def judge(run_tool_captured, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    def run(results: dict, job: str = 'maskrcnn') -> subprocess.CompletedProcess:
        folder = tmp_path / '20260101_000000'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / '20260101_000000.json').write_text(json.dumps(results))
        return run_tool_captured('check_goals', TOY[f'{job}_hatnet_toy'], tmp_path)

    return run


def test_reached_goals_are_printed(judge) -> None:
    shown = judge({'coco/bbox_mAP_50': 0.712, 'coco/segm_mAP_50': 0.6})
    assert shown.returncode == 0
    assert '71.2 %  objects found and named, with a box' in shown.stdout
    assert '60.0 %  objects found and named, with their outline' in shown.stdout
    assert shown.stdout.count('expected: 60 % or more') == 2


@pytest.mark.parametrize('value', [0.0, 0.5999, float('nan'), -1.0])
def test_missed_goals_end_with_an_error_message(judge, value: float) -> None:
    shown = judge({'coco/bbox_mAP_50': 0.9, 'coco/segm_mAP_50': value})
    assert shown.returncode == 1
    assert f'coco/segm_mAP_50 is {100 * value:.1f} % instead of 60 % or more' in shown.stderr
    assert 'bbox' not in shown.stderr


def test_goals_of_other_metrics(judge) -> None:
    assert judge({'mIoU': 59.0}, 'semfpn').returncode == 1
    assert judge({'mIoU': 61.0}, 'semfpn').returncode == 0


def test_absent_results_and_goals_are_named(run_tool_captured, tmp_path: Path) -> None:
    shown = run_tool_captured('check_goals', TOY['semfpn_hatnet_toy'], tmp_path)
    assert shown.returncode == 1 and 'There is no result' in shown.stderr
    shown = run_tool_captured('check_goals', CONFIGS / 'semfpn_hatnet.py', tmp_path)
    assert shown.returncode == 1 and 'has no `goals`' in shown.stderr


def test_figures_are_recorded_by_config_and_seed(run_tool_captured, tmp_path: Path) -> None:
    for seed, values in enumerate([(10, 61.04), (70.0,)]):
        scalars = tmp_path / str(seed) / '20260101_000000' / 'vis_data' / 'scalars.json'
        scalars.parent.mkdir(parents=True)
        scalars.write_text('\n'.join(json.dumps(dict(mIoU=value)) for value in values))
        config = tmp_path / str(seed) / 'semfpn_hatnet_toy.py'
        config.write_text(f'randomness = dict(seed={seed})')
        record = ['--record', tmp_path / 'results.json']
        assert (
            run_tool_captured(
                'check_goals', TOY['semfpn_hatnet_toy'], config.parent, *record
            ).returncode
            == 0
        )
    recorded = json.loads((tmp_path / 'results.json').read_text())
    assert recorded == dict(semfpn_hatnet_toy={'0': dict(mIoU=61.04), '1': dict(mIoU=70.0)})
