"""The toy recipes learn, with any seed, and what they reach is judged.

Training takes minutes: `make test-slow` runs it, with `SEEDS=5` for more than the config's seed.
"""

import json
import os
import subprocess
import sys
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


def judge(work_dir: Path, results: dict, job: str = 'maskrcnn') -> subprocess.CompletedProcess:
    folder = work_dir / '20260101_000000'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / '20260101_000000.json').write_text(json.dumps(results))
    command = [sys.executable, TOOLS / 'check_goals.py', TOY[f'{job}_hatnet_toy'], work_dir]
    return subprocess.run(command, capture_output=True, text=True)


def test_reached_goals_are_told(tmp_path: Path) -> None:
    told = judge(tmp_path, {'coco/bbox_mAP_50': 0.712, 'coco/segm_mAP_50': 0.6})
    assert told.returncode == 0
    assert '71.2 %  objects found and named, with a box' in told.stdout
    assert '60.0 %  objects found and named, with their outline' in told.stdout
    assert told.stdout.count('expected: 60 % or more') == 2


@pytest.mark.parametrize('value', [0.0, 0.5999, float('nan'), -1.0])
def test_missed_goals_end_with_a_sentence(tmp_path: Path, value: float) -> None:
    told = judge(tmp_path, {'coco/bbox_mAP_50': 0.9, 'coco/segm_mAP_50': value})
    assert told.returncode == 1
    assert f'coco/segm_mAP_50 is {100 * value:.1f} % instead of 60 % or more' in told.stderr
    assert 'bbox' not in told.stderr


def test_goals_of_other_metrics(tmp_path: Path) -> None:
    assert judge(tmp_path, {'mIoU': 59.0}, 'semfpn').returncode == 1
    assert judge(tmp_path, {'mIoU': 61.0}, 'semfpn').returncode == 0


def test_absent_results_and_goals_are_named(tmp_path: Path) -> None:
    command = [sys.executable, TOOLS / 'check_goals.py']
    toy = TOY['semfpn_hatnet_toy']
    told = subprocess.run([*command, toy, tmp_path], capture_output=True, text=True)
    assert told.returncode == 1 and 'There is no result' in told.stderr
    real = [CONFIGS / 'semfpn_hatnet.py', tmp_path]
    told = subprocess.run([*command, *real], capture_output=True, text=True)
    assert told.returncode == 1 and 'has no `goals`' in told.stderr
