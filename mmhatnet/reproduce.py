"""Repeats experiments of the paper with the published weights, and compares the results."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.table import Table

from mmhatnet.checkpoints.files import fetch_weights
from mmhatnet.checkpoints.folder import find_checkpoint
from mmhatnet.errors import MMHATNetError

# The frameworks' names for the metrics of the metafile, and the factors that give per cent.
METRICS = {
    'Top 1 Accuracy': ('accuracy/top1', 1),
    'box AP': ('coco/bbox_mAP', 100),
    'mask AP': ('coco/segm_mAP', 100),
    'mIoU': ('mIoU', 1),
}


def read_experiments(metafile: Path) -> dict[str, dict]:
    """Reads the entries of a metafile by their names."""
    return {model['Name']: model for model in yaml.safe_load(metafile.read_text())['Models']}


def reproduce(
    experiment: dict,
    config: str,
    work_dir: str,
    checkpoint: str | None = None,
    gpus: int = 1,
    options: Sequence[str] = (),
) -> Table:
    """Tests the published classifier of an experiment, or trains from the published backbone.

    Args:
        experiment (dict): An entry of the metafile.
        config (str): The path of its config.
        work_dir (str): The folder of logs and checkpoints. A training in it is resumed.
        checkpoint (str, optional): The published weights. Defaults to None: they are downloaded.
        gpus (int): The number of processes. Defaults to 1.
        options (Sequence[str]): Settings for ``--cfg-options`` of the commands.

    Returns:
        rich.table.Table: The paper's results and the measured ones.

    Raises:
        CheckpointError: If weights cannot be downloaded.
        MMHATNetError: If a command fails, or the test has no result.
    """
    if 'Weights' in experiment:
        published = checkpoint or fetch_weights(experiment['Weights'], '--checkpoint FILE')
        checkpoint = Path(work_dir, 'published.pth')
        _run('convert-checkpoint', '--classifier', published, checkpoint)
    else:
        weights = [f'model.backbone.init_cfg.checkpoint={checkpoint}'] if checkpoint else []
        # The learning rate of a config assumes the batch size of the recipe's number of GPUs.
        words = [config, '--work-dir', work_dir, '--auto-scale-lr', '--resume']
        _run('train', *words, processes=gpus, options=[*weights, *options])
        checkpoint = find_checkpoint(work_dir)
    test_dir = Path(work_dir, 'test')
    words = [config, checkpoint, '--work-dir', test_dir]
    _run('test', *words, processes=gpus, options=options)
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
        raise MMHATNetError(f'The test has no result: its log is in {results.parent}.')
    return table


def _run(name: str, *words: object, processes: int = 1, options: Sequence[str] = ()) -> None:
    """Runs a command in one or several processes."""
    command = ['-m', 'mmhatnet', name, *map(str, words)]
    if options:
        command += ['--cfg-options', *options]
    if processes > 1:
        launcher = f'-m torch.distributed.run --standalone --nproc-per-node={processes}'
        command = [*launcher.split(), *command, '--launcher', 'pytorch']
    command = [sys.executable, *command]
    print(shlex.join(command), flush=True)
    if status := subprocess.call(command):
        raise MMHATNetError(f'The command failed with status {status}: {shlex.join(command)}')
