"""What README says of learning is what was recorded by `tools/check_goals.py --record`."""

import json

import pytest
from experiments import CONFIGS, TOY
from mmengine.config import Config

ROOT = CONFIGS.parent
RESULTS = json.loads((ROOT / 'docs' / 'results.json').read_text())
TITLES = dict(
    maskrcnn='Mask R-CNN', retinanet='RetinaNet', semfpn='Semantic FPN', imagenet='Classification'
)


@pytest.mark.parametrize('job', TOY)
def test_readme_gives_what_was_reached(job: str) -> None:
    by_seed = [figures for _, figures in sorted(RESULTS[job].items())]
    assert len(by_seed) >= 2 and list(RESULTS[job]) == [str(seed) for seed in range(len(by_seed))]
    title = TITLES[job.partition('_')[0]]
    lines = (ROOT / 'README.md').read_text().splitlines()
    (row,) = (line for line in lines if line.startswith(f'| {title} | ') and 'seeds' in line)
    for metric, goal in Config.fromfile(TOY[job]).goals.items():
        factor = 100 if metric.startswith('coco') else 1
        assert min(figures[metric] for figures in by_seed) >= goal
        figures = ', '.join(f'{factor * figures[metric]:.1f}' for figures in by_seed)
        assert f'{figures} %' in row
