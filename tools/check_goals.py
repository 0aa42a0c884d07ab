"""Compares the result of training or a test with the goals of its config, and fails below them.

--record also saves the figures by config and seed, as in docs/results.json.
"""

import argparse
import json
from pathlib import Path

from mmengine.config import Config

from mmhatnet.errors import ConfigError, DataError, MMHATNetError
from mmhatnet_cli import exit_on_error
from mmhatnet_cli.options import local_path, path

# The meaning of each metric, and the factor that makes it a percentage.
METRICS = {
    'coco/bbox_mAP_50': ('objects found and named, with a box around them (box AP50)', 100),
    'coco/segm_mAP_50': ('objects found and named, with their outline (mask AP50)', 100),
    'mIoU': ('area named right, mean of all classes (mIoU)', 1),
    'accuracy/top1': ('images named right (top-1 accuracy)', 1),
}


@exit_on_error()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', type=path, help='a config with `goals`: minimum values of metrics'
    )
    parser.add_argument('work_dir', type=local_path, help='the work folder of a training or a test')
    parser.add_argument('--record', type=local_path, help='a JSON file to save the figures in')
    args = parser.parse_args()

    goals = Config.fromfile(args.config).get('goals')
    if not goals:
        raise ConfigError(
            f'{args.config} has no `goals`, a dict of metrics and their minimum values.'
        )
    results = sorted(args.work_dir.glob('*/[0-9]*.json'))  # of a test, or else of training
    results = results or sorted(args.work_dir.glob('*/vis_data/scalars.json'))
    if not results:
        raise DataError(f'There is no result of a test in {args.work_dir}.')
    reached = {}
    for line in results[-1].read_text().splitlines():
        reached.update(json.loads(line))

    print('On images that were not used in training:')
    missed = []
    for metric, goal in goals.items():
        words, factor = METRICS[metric]
        value, goal = factor * reached[metric], factor * goal
        print(f'  {value:5.1f} %  {words}; expected: {goal:.0f} % or more')
        if not value >= goal:  # also true of NaN
            missed.append(f'{metric} is {value:.1f} % instead of {goal:.0f} % or more')
    if args.record:
        record = json.loads(args.record.read_text()) if args.record.exists() else {}
        name = Path(args.config).stem
        seed = Config.fromfile(args.work_dir / f'{name}.py').randomness.seed
        record.setdefault(name, {})[str(seed)] = {metric: reached[metric] for metric in goals}
        args.record.write_text(json.dumps(record, indent=1, sort_keys=True) + '\n')
    if missed:
        raise MMHATNetError(
            f'The model misses its goals: {"; ".join(missed)}. Training with this config usually '
            f'reaches them, so something is broken. All figures are in {results[-1]}.'
        )


if __name__ == '__main__':
    main()
