"""Repeats an experiment with the published weights, and prints the paper's result beside its own.

    python tools/reproduce.py hatnet-tiny_8xb128_in1k   # tests the published classifier
    python tools/reproduce.py maskrcnn_hatnet --gpus 8  # trains from the published backbone

An interrupted training goes on when the same command is given again. The experiments, the paper's
results and the published classifiers are those in configs/hatnet/metafile.yml.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from mmhatnet import cli
from mmhatnet.checkpoints.files import fetch_weights
from mmhatnet.checkpoints.loading import find_checkpoint
from mmhatnet.checkpoints.safe_loader import Checkpoint

ROOT = Path(__file__).resolve().parent.parent
METAFILE = ROOT / 'configs' / 'hatnet' / 'metafile.yml'
# What the frameworks call the results of the metafile, and the factors that make them per cent.
METRICS = {
    'Top 1 Accuracy': ('accuracy/top1', 1),
    'box AP': ('coco/bbox_mAP', 100),
    'mask AP': ('coco/segm_mAP', 100),
    'mIoU': ('mIoU', 1),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('experiment', help='a name or alias of configs/hatnet/metafile.yml')
    parser.add_argument('--checkpoint', help='the published weights, if they are already here')
    parser.add_argument('--gpus', type=int, default=1, help='processes to start, one for each GPU')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    cli.add_settings_option(parser)
    args = parser.parse_args()
    args.work_dir = args.work_dir or str(Path('work_dirs', 'reproduce', args.experiment))
    return args


def run(tool: str, *words: object, processes: int = 1, options: dict | None = None) -> None:
    """Runs another tool, in several processes if asked to, and ends with it if it fails."""
    command = [sys.executable, str(ROOT / 'tools' / f'{tool}.py'), *map(str, words)]
    if options:
        command += ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
    if processes > 1:
        launcher = f'-m torch.distributed.run --standalone --nproc-per-node={processes}'
        command = [command[0], *launcher.split(), *command[1:], '--launcher', 'pytorch']
    print(shlex.join(command), flush=True)
    if status := subprocess.call(command):
        raise SystemExit(f'This failed with status {status}: {shlex.join(command)}')


@cli.exit_on_error()
def main() -> None:
    args = parse_args()
    experiments = {model['Name']: model for model in yaml.safe_load(METAFILE.read_text())['Models']}
    aliases = {alias: model for model in experiments.values() for alias in model.get('Alias', [])}
    experiment = (experiments | aliases).get(args.experiment)
    if experiment is None:
        raise SystemExit(f'There is no experiment {args.experiment}, only {", ".join(experiments)}')
    args.config = str(ROOT / experiment['Config'])
    if args.checkpoint:
        Checkpoint(args.checkpoint)  # which refuses an unusable file

    options = args.cfg_options or {}
    if 'Weights' in experiment:
        cli.require_datasets(cli.load_config(args), 'test')
        published = args.checkpoint or fetch_weights(experiment['Weights'], '--checkpoint FILE')
        checkpoint = Path(args.work_dir, 'published.pth')
        run('convert_checkpoint', '--classifier', published, checkpoint)
    else:
        weights = {'model.backbone.init_cfg.checkpoint': args.checkpoint} if args.checkpoint else {}
        # The learning rates of the configs are for the batch sizes of their numbers of GPUs.
        words = [args.config, '--work-dir', args.work_dir, '--auto-scale-lr', '--resume']
        run('train', *words, processes=args.gpus, options=weights | options)
        checkpoint = find_checkpoint(args.work_dir)
    test_dir = Path(args.work_dir, 'test')
    words = [args.config, checkpoint, '--work-dir', test_dir]
    run('test', *words, processes=args.gpus, options=options)

    results = max(test_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    measured = json.loads(results.read_text())
    paper = {}
    for result in experiment.get('Results', []):
        paper.update(result['Metrics'])
    table = Table('metric', 'paper', 'measured')
    for name, (key, factor) in METRICS.items():
        if key in measured:
            expected = str(paper.get(name, 'not in the paper'))
            table.add_row(name, expected, f'{measured[key] * factor:.1f}')
    if not table.rows:
        raise SystemExit(f'The test has no result: its log is in {results.parent}.')
    Console().print(table)


if __name__ == '__main__':
    main()
