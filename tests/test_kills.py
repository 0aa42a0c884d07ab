"""Trainings are killed again and again, and end as if they had run through."""

import json
import os
import random
import re
from pathlib import Path

import pytest
from processes import Script
from training_jobs import assert_equal_training, write_job

KILLED = Path(__file__).with_name('killed_training.py')
PLACES = [
    'training starts',
    'an iteration ends',
    'half a checkpoint is written',
    'a checkpoint is written, not renamed',
    'a checkpoint is renamed, last_checkpoint is not written',
    'last_checkpoint is written, not renamed',
    'last_checkpoint is renamed, nothing is deleted',
    'an older checkpoint is about to be deleted',
    'an older checkpoint is deleted',
    'validation',
]
CHECKPOINTS = {
    # inside epochs, and one at a time
    'maskrcnn': dict(by_epoch=False, interval=3, max_keep_ckpts=1),
    'semfpn': dict(interval=2, max_keep_ckpts=2),
    'imagenet': dict(interval=1, max_keep_ckpts=1, save_best='accuracy/top1'),
}
LENGTH = {
    'maskrcnn': dict(max_epochs=14, val_interval=1),
    'semfpn': dict(max_iters=48, val_interval=4),
    'imagenet': dict(max_epochs=18, val_interval=1),
}


def train_killed(job: str, kills: list[tuple[str, int]], folder: Path, cwd: Path) -> list[dict]:
    """Trains a job that is killed at each of the moments, and compares it with one that is not.

    Args:
        job (str): The job.
        kills (list[tuple[str, int]]): Places, and how often they are reached.
        folder (Path): Where the results go.
        cwd (Path): The folder of the data.

    Returns:
        list[dict]: For each start of the training what the folder held before, what it resumed
        from, and how it ended.
    """
    settings = dict(train_cfg=LENGTH[job], default_hooks=dict(checkpoint=CHECKPOINTS[job]))
    config = write_job(job, folder / f'{job}.py', **settings)
    work, whole = folder / 'killed', folder / 'whole'
    never = Script(KILLED, 'never', 1, config, '--work-dir', whole, log=folder / 'log', cwd=cwd)
    starts = []
    for number, (place, count) in enumerate([*kills, ('never', 1)]):
        held = {p.name: p.stat().st_size for p in work.iterdir() if p.is_file()} if number else {}
        words = [config, '--work-dir', work, '--verbose', *(['--resume'] if number else [])]
        script = Script(KILLED, place, count, *words, log=folder / f'log_{number}', cwd=cwd)
        script.process.join()
        log = script.log.read_text()
        resumed = re.search(r'resumed epoch: \d+, iter: \d+', log)
        starts.append(
            dict(
                before=held,
                left_out=re.findall('^Left out: (.*)', log, re.MULTILINE),
                file=(re.findall(r'Load checkpoint from .*/(\S+)', log) or [None])[0],
                resumed=resumed and resumed[0],
                ended='finished' if script.process.exitcode == 0 else f'killed: {place} ({count})',
            )
        )
        expected = 0 if place == 'never' else -9
        assert script.process.exitcode == expected, f'{place} {count}: {starts}\n{log[-3000:]}'
    never.wait()
    assert_equal_training(work, whole)
    assert not list(work.glob('.*.partial'))
    # What a killed process could not delete is deleted later.
    kept = [path for path in work.glob('*.pth') if not path.name.startswith('best_')]
    assert len(kept) == CHECKPOINTS[job]['max_keep_ckpts']
    return starts


def test_killed_while_the_first_checkpoints_are_written(toy_data: Path, tmp_path: Path) -> None:
    starts = train_killed(
        'imagenet',
        [
            ('half a checkpoint is written', 1),
            ('a checkpoint is renamed, last_checkpoint is not written', 1),
            ('half a checkpoint is written', 1),
            ('an older checkpoint is about to be deleted', 1),
        ],
        tmp_path,
        toy_data,
    )
    assert [start['file'] for start in starts] == [None, None, *['epoch_1.pth'] * 2, 'epoch_2.pth']


@pytest.mark.faults
@pytest.mark.parametrize('job', CHECKPOINTS)
def test_killed_at_ten_moments(job: str, toy_data: Path, tmp_path: Path) -> None:
    """KILL_LOG names a file to which the kills are added as JSON."""
    chance = random.Random(job)
    kills = [
        (place, 1 if place == 'training starts' else chance.randint(1, 2))
        for place in chance.sample(PLACES, len(PLACES))
    ]
    starts = train_killed(job, kills, tmp_path, toy_data)
    if path := os.environ.get('KILL_LOG'):
        with Path(path).open('a') as file:
            file.write(json.dumps({job: starts}) + '\n')
