"""A training that was stopped goes on as if nothing had happened."""

import shlex
import signal
from pathlib import Path

import pytest
from training_jobs import JOBS, assert_equal_training, signal_at, write_job

WITH_WORKERS = ['train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True']


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> dict[str, Path]:
    return {'folder': tmp_path_factory.mktemp('finished')}


@pytest.fixture
def whole(finished: dict[str, Path], run_tool):
    """Returns a job that was trained without interruption: its config and its work folder."""

    def train(job: str) -> tuple[Path, Path]:
        config, work = finished['folder'] / f'{job}.py', finished['folder'] / job
        if job not in finished:
            run_tool('train', write_job(job, config), '--work-dir', work)
            finished[job] = work
        return config, work

    return train


@pytest.mark.parametrize('job', JOBS)
def test_a_resumed_training_equals_one_that_ran_through(
    job, whole, run_tool_captured, tmp_path
) -> None:
    """It is stopped inside an epoch, and goes on with another number of workers."""
    config, expected = whole(job)
    work = tmp_path / 'work'
    with signal_at('after_train_iter 3', signal.SIGTERM):
        stopped = run_tool_captured('train', config, '--work-dir', work)
    assert stopped.returncode == 143, stopped.stderr[-2000:]
    assert (work / 'latest.pth').is_file()
    command = shlex.split(stopped.stdout.partition('It continues with: ')[2])
    assert command[2:] == [str(config), '--work-dir', str(work), '--resume']
    resumed = run_tool_captured('train', *command[2:], '--cfg-options', *WITH_WORKERS)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert 'iter: 3' in next(iter(sorted(work.glob('*/*.log'), reverse=True))).read_text()
    assert_equal_training(work, expected)


@pytest.mark.parametrize('event', ['after_val_iter 1', 'after_val_iter 3'])
def test_a_signal_in_a_validation(event: str, whole, run_tool_captured, tmp_path) -> None:
    """EMAHook has put other weights into the model. The validation is repeated."""
    config, expected = whole('imagenet')
    work = tmp_path / 'work'
    with signal_at(event, signal.SIGTERM) as calls:
        assert run_tool_captured('train', config, '--work-dir', work).returncode == 143
    assert calls == [int(event[-1])]
    with signal_at('after_val_iter 0') as calls:
        resumed = run_tool_captured('train', config, '--work-dir', work, '--resume')
    assert resumed.returncode == 0
    assert calls == [2 * (4 - int(event[-1]) // 2 - 1)]
    assert_equal_training(work, expected)
