"""Signals stop a training after the iteration, and the command that resumes it is printed."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import Script
from training_jobs import assert_equal_training, signal_at, write_job

from mmhatnet.training.hooks import StopHook

SIGNALLED = Path(__file__).with_name('signalled_training.py')


@pytest.fixture
def job(tmp_path: Path) -> Path:
    settings = dict(train_cfg=dict(max_epochs=2, val_interval=2))
    return write_job('imagenet', tmp_path / 'job.py', **settings)


@pytest.fixture(autouse=True)
def heed_interrupts() -> Iterator[None]:
    """Makes the tests heed Ctrl-C, which a job in the background of a shell ignores."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGUSR1', 'SIGINT'])
def test_each_signal_has_its_exit_status(name, job, run_tool_captured, tmp_path) -> None:
    number = getattr(signal, name)
    with signal_at('after_train_iter 1', number):
        ended = run_tool_captured('train', job, '--work-dir', tmp_path / 'work')
    assert ended.returncode == 128 + number
    assert f'{name} stopped the training, and {tmp_path}/work/latest.pth holds' in ended.stdout
    assert torch.load(tmp_path / 'work' / 'latest.pth', weights_only=False)['meta']['iter'] == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_launcher_that_passes_the_signal_on_does_not_stop_it_at_once(
    job, run_tool_captured, tmp_path
) -> None:
    with signal_at('after_train_iter 1', signal.SIGTERM, signal.SIGTERM):
        assert run_tool_captured('train', job, '--work-dir', tmp_path / 'work').returncode == 143
    assert (tmp_path / 'work' / 'latest.pth').is_file()


def test_a_second_signal_stops_at_once(job, run_tool, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr('mmhatnet.training.hooks.SAME_SIGNAL', 0.0)
    twice = signal_at('after_train_iter 1', signal.SIGINT, signal.SIGINT)
    with twice, pytest.raises(SystemExit, match='130'):
        run_tool('train', job, '--work-dir', tmp_path / 'work')
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_an_ignored_signal_stays_ignored(job, run_tool_captured, tmp_path) -> None:
    """A shell makes the jobs in its background ignore Ctrl-C."""
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signal_at('after_train_iter 1', signal.SIGINT):
            ended = run_tool_captured('train', job, '--work-dir', tmp_path / 'work')
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert ended.returncode == 0


def test_a_scheduler_that_signals_all_processes(job, toy_data, tmp_path) -> None:
    """Workers, which get the signal as well, still load what the main process waits for."""
    work = tmp_path / 'work'
    options = ['train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True']
    # Until gradients are applied, training goes on.
    options.append('optim_wrapper.accumulative_counts=3')
    words = [job, '--work-dir', work, '--cfg-options', *options]
    stopped = Script(SIGNALLED, 'group', 2, *words, log=tmp_path / 'log', cwd=toy_data)
    stopped.process.join()
    assert stopped.process.exitcode == 143, stopped.log.read_text()[-3000:]
    assert torch.load(work / 'latest.pth', weights_only=False)['meta']['iter'] == 3


def test_checkpoints_at_intervals_of_time(job, run_tool, run_tool_captured, tmp_path) -> None:
    work = tmp_path / 'work'
    options = ['--cfg-options', 'default_hooks.checkpoint.interval=-1']
    options += ['default_hooks.checkpoint.save_last=False']
    run_tool('train', job, '--work-dir', work, '--save-every', '60', *options)
    assert not list(work.glob('*.pth'))
    run_tool('train', job, '--work-dir', work, '--save-every', '1e-9', *options)
    content = torch.load(work / 'latest.pth', weights_only=False)
    assert content['meta']['iter'] == 8 and content['optimizer']
    for text in ('0', '-1', 'nan', 'soon'):
        ended = run_tool_captured('train', job, f'--save-every={text}')
        assert ended.returncode == 2 and 'argument --save-every: invalid minutes' in ended.stderr


def test_processes_stop_together(job, toy_data, tmp_path) -> None:
    """One of two gets the signal, and both stop after the same iteration."""
    from test_distributed import free_port

    job.write_text(f'{job.read_text()}\nenv_cfg = dict(dist_cfg=dict(backend="gloo"))\n')

    def train(work: Path, place: str, *options: object) -> list[Script]:
        variables = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
        scripts = []
        for rank in range(2):
            own = place if rank == 1 else 'never'
            words = [job, '--work-dir', work, '--launcher', 'pytorch', *options]
            ranks = dict(variables, RANK=str(rank), LOCAL_RANK=str(rank))
            log = tmp_path / f'{work.name}{place}{len(options)}{rank}'
            scripts.append(Script(SIGNALLED, own, 1, *words, log=log, cwd=toy_data, **ranks))
        for script in scripts:
            script.process.join()
        return scripts

    longer = ['--cfg-options', 'train_dataloader.dataset.indices=24']
    stopped = train(tmp_path / 'work', 'process', *longer)
    assert [script.process.exitcode for script in stopped] == [143, 143], stopped[0].log.read_text()
    outputs = [script.log.read_text() for script in stopped]
    assert 'with: the same command and --resume' in outputs[0]
    assert 'stopped the training' not in outputs[1]
    content = torch.load(tmp_path / 'work' / 'latest.pth', weights_only=False)
    assert content['meta']['iter'] == StopHook().every
    assert len(content['mmhatnet']['random']) == 2
    for script in train(tmp_path / 'work', 'never', '--resume', *longer):
        assert script.process.exitcode == 0, script.log.read_text()[-3000:]
    for script in train(tmp_path / 'whole', 'never', *longer):
        assert script.process.exitcode == 0
    assert_equal_training(tmp_path / 'work', tmp_path / 'whole')
