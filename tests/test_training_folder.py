"""A work folder holds whole checkpoints, belongs to one training, and names no others to delete."""

import errno
import os
import re
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend
from processes import FORKSERVER
from training_jobs import signal_at, write_job

from mmhatnet.training.work_folder import WorkFolder

BEST = 'best_accuracy_top1_epoch_{}.pth'.format


@pytest.fixture(scope='module')
def of_two_epochs(tmp_path_factory) -> dict[str, Path]:
    return {'folder': tmp_path_factory.mktemp('trained')}


@pytest.fixture
def job(of_two_epochs) -> Path:
    settings = dict(
        train_cfg=dict(max_epochs=2, val_interval=1),
        param_scheduler=None,  # so that a longer training has the same settings
        default_hooks=dict(checkpoint=dict(max_keep_ckpts=2, save_best='accuracy/top1')),
    )
    return write_job('imagenet', of_two_epochs['folder'] / 'job.py', **settings)


@pytest.fixture
def work(of_two_epochs, job, run_tool, tmp_path) -> Path:
    """Returns a copy of the work folder of a training of two epochs. The copies are newer."""
    if 'work' not in of_two_epochs:
        trained = of_two_epochs['folder'] / 'work'
        # The second epoch is the best.
        options = ['--cfg-options', 'default_hooks.checkpoint.rule=greater']
        run_tool('train', job, '--work-dir', trained, *options)
        of_two_epochs['work'] = trained
    copy = tmp_path / 'copy'
    copy.mkdir()
    for number, name in enumerate(['epoch_2.pth', 'epoch_1.pth', 'last_checkpoint']):
        shutil.copyfile(of_two_epochs['work'] / name, copy / name)
        os.utime(copy / name, (2e9 + number, 2e9 + number))
    return copy


@pytest.fixture
def resume(run_tool_captured, job) -> Callable:
    def run(work: Path, *options: str, source: object = None):
        resumed = ['--resume', *([source] if source else [])]
        return run_tool_captured('train', job, '--work-dir', work, *resumed, *options)

    return run


def resumed_from(work: Path) -> str:
    """Returns the checkpoint from which the last training in a folder resumed; '' for none."""
    log = sorted(work.glob('*/*.log'))[-1].read_text()
    return Path(log.partition('Load checkpoint from ')[2].partition('\n')[0]).name


@pytest.mark.parametrize('text', [None, '', '\x00\x7f\udcff', 'old/epoch_1.pth', '.', '/', 'x.pth'])
def test_the_newest_checkpoint_is_found_whatever_last_checkpoint_says(text, work, resume) -> None:
    """Its file may also be newer than the one of the newest checkpoint."""
    (work / 'last_checkpoint').unlink()
    if text is not None:
        (work / 'last_checkpoint').write_bytes(text.encode(errors='surrogateescape'))
    ended = resume(work)
    assert ended.returncode == 0, ended.stderr
    assert resumed_from(work) == 'epoch_2.pth'


@pytest.mark.parametrize('size', [0, 100, 100_000])
def test_a_checkpoint_that_was_cut_off_is_left_out(size, work, resume) -> None:
    newest = work / 'epoch_2.pth'
    with newest.open('r+b') as file:
        file.truncate(size)
    refused = resume(work, source=newest)
    assert refused.returncode == 1 and str(newest) in refused.stderr
    ended = resume(work)
    assert ended.returncode == 0, ended.stderr
    assert f'Left out: {newest}' in ended.stdout
    assert resumed_from(work) == 'epoch_1.pth'
    assert torch.load(newest, weights_only=False)['meta']['epoch'] == 2


def test_a_resume_does_not_need_the_weights_of_the_start(work, job, run_tool) -> None:
    other = job.with_name('pretrained.py')
    start = "dict(_delete_=True, type='Pretrained', checkpoint='gone.pth')"
    other.write_text(f"_base_ = '{job.name}'\nmodel = dict(backbone=dict(init_cfg={start}))\n")
    with pytest.raises(SystemExit, match='no checkpoint gone.pth'):
        run_tool('train', other, '--work-dir', work)
    run_tool('train', other, '--work-dir', work, '--resume', *longer(3))
    assert (work / 'epoch_3.pth').is_file()
    assert "'gone.pth'" in (work / other.name).read_text(), 'the dumped config keeps them'


def test_a_whole_start_does_not_need_the_weights_of_its_backbone(
    work, job, run_tool_captured, tmp_path
) -> None:
    other = job.with_name('pretrained.py')
    start = "dict(_delete_=True, type='Pretrained', checkpoint='gone.pth')"
    other.write_text(f"_base_ = '{job.name}'\nmodel = dict(backbone=dict(init_cfg={start}))\n")
    args = ('train', other, '--work-dir', tmp_path / 'new', '--cfg-options')
    ended = run_tool_captured(*args, f'load_from={work}/epoch_1.pth')
    assert ended.returncode == 0, ended.stderr
    assert 'holds all weights of model.backbone: gone.pth is not read' in ended.stdout
    assert "'gone.pth'" in (tmp_path / 'new' / other.name).read_text(), 'the dumped config keeps it'
    # Without one weight of the backbone, gone.pth is needed.
    part = torch.load(work / 'epoch_1.pth', weights_only=False)['state_dict']
    del part[next(key for key in part if key.startswith('backbone.'))]
    torch.save(part, tmp_path / 'part.pth')
    refused = run_tool_captured(*args, f'load_from={tmp_path}/part.pth')
    assert refused.returncode == 1 and 'no checkpoint gone.pth' in refused.stderr


def test_a_start_that_fits_nothing_leaves_no_folder(work, job, run_tool_captured, tmp_path) -> None:
    weights = torch.load(work / 'epoch_1.pth', weights_only=False)['state_dict']
    prefix = 'backbone.'
    backbone = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    torch.save(backbone, tmp_path / 'backbone.pth')
    refused = run_tool_captured(
        *('train', job, '--work-dir', tmp_path / 'new'),
        *('--cfg-options', f'load_from={tmp_path}/backbone.pth'),
    )
    assert refused.returncode == 1 and 'holds none of the' in refused.stderr
    assert not (tmp_path / 'new').exists()


def test_a_refused_resume_changes_nothing(work, job, resume) -> None:
    dumped = work / job.name
    dumped.write_text('earlier = True')
    before = {path: path.read_bytes() for path in work.iterdir()}
    rate = 'optim_wrapper.optimizer.lr=0.5'
    refused = resume(work, '--cfg-options', 'train_cfg.max_epochs=3', rate)
    assert refused.returncode == 1
    assert 'lr (in all ' in refused.stderr and '--reapply-settings' in refused.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_without_a_readable_checkpoint_training_starts(work, resume) -> None:
    for path in work.glob('*.pth'):
        path.write_bytes(b'')
    ended = resume(work)
    assert ended.returncode == 0 and ended.stdout.count('Left out: ') == 2
    assert f'There is nothing to resume in {work}' in ended.stdout
    assert torch.load(work / 'epoch_2.pth', weights_only=False)['meta']['epoch'] == 2


def test_checkpoints_elsewhere(job, run_tool, resume, tmp_path) -> None:
    """CheckpointHook may write to another folder, which last_checkpoint names."""
    work, options = tmp_path / 'work', ['--cfg-options']
    options.append(f'default_hooks.checkpoint.out_dir={tmp_path}/elsewhere')
    run_tool('train', job, '--work-dir', work, *options)
    saved = tmp_path / 'elsewhere' / 'work'
    assert not list(work.glob('*.pth')) and len(list(saved.glob('*.pth'))) == 3
    (saved / 'epoch_2.pth').write_bytes(b'')
    ended = resume(work, *options)
    assert ended.returncode == 0, ended.stderr
    assert resumed_from(work) == 'epoch_1.pth'


def test_a_new_training_does_not_resume_an_earlier_one(work, job, run_tool, resume) -> None:
    """It was killed before its first checkpoint."""
    folder = WorkFolder(work)
    folder.lock()
    folder.start_anew()
    folder.unlock()
    ended = resume(work)
    assert (
        f'epoch_2.pth is of an earlier one: to continue that, use --resume {work}' in ended.stdout
    )
    assert f'There is nothing to resume in {work}' in ended.stdout
    assert resumed_from(work) == ''
    resume(work)
    assert resumed_from(work) == 'epoch_2.pth'


def test_a_training_that_does_not_begin_changes_nothing_for_resume(
    work, job, run_tool, resume, capsys, monkeypatch
) -> None:
    """Who started it without --resume by mistake stops it, and does what the note says."""

    def stop(*args) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match='130'):
        patch.setattr(Runner, 'build_model', stop)
        run_tool('train', job, '--work-dir', work)
    assert f'--resume {work}/epoch_2.pth continues it' in capsys.readouterr().out
    resume(work)
    assert resumed_from(work) == 'epoch_2.pth'


def hold(folder: Path, ready: Any, never: Any) -> None:
    lock = WorkFolder(folder)
    lock.lock()
    ready.set()
    never.wait()


def test_two_trainings_in_one_folder(work, resume) -> None:
    """A process that was killed leaves no obstacle."""
    ready, never = FORKSERVER.Event(), FORKSERVER.Event()
    other = FORKSERVER.Process(target=hold, args=(work, ready, never), daemon=True)
    other.start()
    ready.wait()
    before = {path: path.stat().st_mtime_ns for path in work.iterdir()}
    refused = resume(work)
    assert refused.returncode == 1
    expected = f'Another training uses {work}: process {other.pid} on {socket.gethostname()}'
    assert expected in refused.stderr and '--work-dir' in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in work.iterdir()} == before
    other.kill()
    other.join()
    assert resume(work).returncode == 0


def longer(epochs: int, *options: str) -> list[str]:
    return ['--cfg-options', f'train_cfg.max_epochs={epochs}', *options]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_full(work, resume) -> None:
    whole = {path.name: path.read_bytes() for path in work.glob('*.pth')}
    with largest_file(200_000):
        ended = resume(work, *longer(3))
    assert ended.returncode == 1
    message = ended.stderr.strip().splitlines()[-1]
    assert message.startswith(f'{work}/epoch_3.pth cannot be written (File too large): it needs')
    assert re.search(r'needs about [1-9]\.\d MiB, and .* are free', message)
    assert '--resume' in message
    assert {path.name: path.read_bytes() for path in work.glob('*.pth')} == whole
    assert not list(work.glob('.*partial'))
    assert resume(work, *longer(3)).returncode == 0
    assert (work / 'epoch_3.pth').is_file()


@pytest.mark.parametrize(
    'name', ['epoch_3.pth', 'last_checkpoint', 'scalars.json', 'fsync', 'lock', 'config.py']
)
def test_a_disk_that_fills_up(name, work, resume, monkeypatch) -> None:
    """Half of a file is written, or a log."""

    def fill(*args) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    put, write = LocalBackend.put, Path.write_text
    if name == 'scalars.json':
        monkeypatch.setattr(LocalVisBackend, '_dump', fill)
    elif name == 'lock':
        monkeypatch.setattr(WorkFolder, '_write', lambda *_, **entries: fill())
    elif name == 'config.py':
        monkeypatch.setattr(Config, 'dump', fill)
    elif name == 'fsync':  # on network disks
        monkeypatch.setattr(os, 'fsync', fill)
        name = 'epoch_3.pth'
    elif name == 'last_checkpoint':
        monkeypatch.setattr(Path, 'write_text', lambda path, text: write(path, text[:5]) and fill())
    else:
        monkeypatch.setattr(
            LocalBackend, 'put', lambda s, data, path: put(s, data[:9], path) or fill()
        )
    ended = resume(work, *longer(3))
    assert ended.returncode == 1
    named = work / name if name.endswith(('.pth', 'checkpoint')) else work
    assert f'{named} cannot be written (No space left on device)' in ended.stderr
    assert not list(work.glob('.*partial'))
    monkeypatch.undo()
    assert (work / 'last_checkpoint').read_text().endswith('epoch_2.pth')


def test_a_copied_work_folder_deletes_nothing_of_the_original(job, run_tool, resume, tmp_path):
    original, copy = tmp_path / 'original', tmp_path / 'copy'
    run_tool('train', job, '--work-dir', original)
    shutil.copytree(original, copy)
    before = sorted(original.rglob('*'))
    best = better(copy)
    assert resume(copy, *longer(4)).returncode == 0
    assert sorted(original.rglob('*')) == before
    # In the copy, the new best one replaces the old one, and the newest two remain.
    assert not best.exists() and len(list(copy.glob('best_*.pth'))) == 1
    assert sorted(path.name for path in copy.glob('epoch_*')) == ['epoch_3.pth', 'epoch_4.pth']


def better(work: Path, **info: object) -> Path:
    """Makes the next validation better than the best one, whose checkpoint is returned."""
    for path in work.glob('epoch_*.pth'):
        content = torch.load(path, weights_only=False)
        content['message_hub']['runtime_info'].update(best_score=-1.0, **info)
        torch.save(content, path)
    return next(work.glob('best_*.pth'), work)


FOREIGN = ['{outside}/epoch_1.pth', '../outside/epoch_1.pth', '{outside}', '..', '', 5, None, ['a']]


@pytest.mark.parametrize('named', FOREIGN)
def test_nothing_that_a_checkpoint_names_is_deleted(named, work, resume, tmp_path) -> None:
    outside = tmp_path / 'outside'
    outside.mkdir()
    for name in ('epoch_1.pth', BEST(1), 'epoch_-1.pth'):
        (outside / name).write_text('kept')
    own = work / BEST('x')
    own.write_text('kept')
    path = named.format(outside=outside) if isinstance(named, str) else named
    ids = [-1, 10**30, True, 1.0, '1', '../outside/epoch_1', None] if path else path
    better(work, best_ckpt=path, keep_ckpt_ids=ids)
    ended = resume(work, *longer(3))
    # What MMEngine cannot have written is refused.
    assert ended.returncode == 0 or 'holds no training state of MMEngine' in ended.stderr
    assert len(list(outside.iterdir())) == 3 and own.exists()
    assert (work / 'epoch_1.pth').exists() and (work / 'epoch_2.pth').exists()


def test_a_checkpoint_from_another_folder_says_nothing_of_this_one(work, resume, tmp_path) -> None:
    """Files here have the names of those that it kept there."""
    here = tmp_path / 'here'
    here.mkdir()
    for name in ('epoch_1.pth', BEST(1), BEST(2)):
        (here / name).write_text('kept')
    better(work)
    assert resume(here, *longer(4), source=work / 'epoch_2.pth').returncode == 0
    for name in ('epoch_1.pth', BEST(1), BEST(2)):
        assert (here / name).read_text() == 'kept'


def test_fewer_checkpoints_are_kept_than_before(work, resume) -> None:
    """Those that are too many go after the next one is saved."""
    options = longer(3, 'default_hooks.checkpoint.max_keep_ckpts=1')
    with signal_at('after_train_iter 1', 15):
        assert resume(work, *options).returncode == 143
    assert {'epoch_1.pth', 'epoch_2.pth'} < {path.name for path in work.glob('*.pth')}
    assert resume(work, *options).returncode == 0
    assert [path.name for path in work.glob('epoch_*.pth')] == ['epoch_3.pth']
