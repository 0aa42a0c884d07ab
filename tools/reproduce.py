"""Repeats an experiment with the published weights, and prints its results beside the paper's.

    python tools/reproduce.py hatnet-tiny_8xb128_in1k   # tests the published classifier
    python tools/reproduce.py maskrcnn_hatnet --gpus 8  # trains from the published backbone

The same command resumes an interrupted training. configs/hatnet/metafile.yml lists the experiments,
the paper's results and the published classifiers.
"""

import argparse
from pathlib import Path

from rich.console import Console

from mmhatnet import cli
from mmhatnet.checkpoints.safe_loader import Checkpoint
from mmhatnet.errors import ConfigError
from mmhatnet.reproduce import read_experiments, reproduce

ROOT = Path(__file__).resolve().parent.parent
METAFILE = ROOT / 'configs' / 'hatnet' / 'metafile.yml'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('experiment', help='a name or alias of configs/hatnet/metafile.yml')
    parser.add_argument(
        '--checkpoint', type=cli.path, help='the published weights, if they are already downloaded'
    )
    parser.add_argument(
        '--gpus', type=int, default=1, help='the number of processes, one for each GPU'
    )
    parser.add_argument('--work-dir', type=cli.path, help='folder of logs and checkpoints')
    cli.add_settings_option(parser)
    args = parser.parse_args()
    args.work_dir = args.work_dir or str(Path('work_dirs', 'reproduce', args.experiment))
    return args


@cli.exit_on_error()
def main() -> None:
    args = parse_args()
    experiments = read_experiments(METAFILE)
    aliases = {alias: model for model in experiments.values() for alias in model.get('Alias', [])}
    experiment = (experiments | aliases).get(args.experiment)
    if experiment is None:
        names = ', '.join(experiments)
        raise ConfigError(f'There is no experiment {args.experiment}, only {names}')
    args.config = str(ROOT / experiment['Config'])
    if args.checkpoint:
        Checkpoint(args.checkpoint)  # raises an error if the file cannot be used
    if 'Weights' in experiment:
        cli.require_datasets(cli.load_config(args), 'test')
    table = reproduce(experiment, ROOT, args.work_dir, args.checkpoint, args.gpus, args.cfg_options)
    Console().print(table)


if __name__ == '__main__':
    main()
