"""Repeats an experiment, and prints its results beside the paper's.

    mmhatnet reproduce hatnet-tiny_8xb128_in1k   # tests the published classifier
    mmhatnet reproduce maskrcnn_hatnet --gpus 8  # trains from the published backbone

The same command resumes an interrupted training. The experiments, the paper's results and the
published classifiers are those of configs/hatnet/metafile.yml.
"""

import argparse

from mmhatnet_cli.options import add_settings_option, at_least, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('experiment', help='its name or alias; a wrong one lists all names')
    parser.add_argument(
        '--checkpoint',
        type=path,
        help='the published weights, if they are already there (default: they are downloaded)',
    )
    parser.add_argument(
        '--gpus', type=at_least(1), default=1, help='the number of processes, one for each GPU'
    )
    parser.add_argument(
        '--work-dir',
        type=path,
        help='folder of logs and checkpoints (default: work_dirs/reproduce/ and the experiment)',
    )
    add_settings_option(parser)


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from rich.console import Console

    from mmhatnet import cli, config_path
    from mmhatnet.checkpoints.safe_loader import Checkpoint
    from mmhatnet.errors import ConfigError
    from mmhatnet.reproduce import read_experiments, reproduce

    metafile = Path(config_path('hatnet/metafile.yml'))
    experiments = read_experiments(metafile)
    aliases = {alias: model for model in experiments.values() for alias in model.get('Alias', [])}
    experiment = (experiments | aliases).get(args.experiment)
    if experiment is None:
        names = ', '.join(experiments)
        raise ConfigError(f'There is no experiment {args.experiment}, only {names}')
    root = metafile.parents[2]  # the folder of configs/
    args.config = str(root / experiment['Config'])
    args.work_dir = args.work_dir or str(Path('work_dirs', 'reproduce', args.experiment))
    if args.checkpoint:
        Checkpoint(args.checkpoint)  # raises an error if the file cannot be used
    if 'Weights' in experiment:
        cli.require_datasets(cli.load_config(args), 'test')
    options = args.cfg_options or ()
    table = reproduce(experiment, args.config, args.work_dir, args.checkpoint, args.gpus, options)
    Console().print(table)
