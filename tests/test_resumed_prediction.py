"""tools/predict.py loses nothing: after kills, in several processes, and with unreadable images."""

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from predicting import KILLED, files_of, random_job, write_film
from processes import Script
from test_distributed import free_port

import mmhatnet.prediction.job
from mmhatnet.prediction.loading import batches_of
from mmhatnet.prediction.records import Records, Writer

PREDICT = Path(__file__).parents[1] / 'tools' / 'predict.py'
JOBS = ('maskrcnn', 'semfpn', 'imagenet')


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Locks a file in another process."""
    code = (
        'import sys; from mmhatnet.locks import lock_file; '
        'file = open(sys.argv[1], "w"); print(lock_file(file.fileno()), flush=True); input()'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'True\n'
    try:
        yield
    finally:
        process.communicate('\n')


@pytest.fixture(scope='module')
def jobs(tmp_path_factory) -> dict[str, list]:
    """Returns the arguments for each task."""
    folder = tmp_path_factory.mktemp('jobs')
    jobs = {job: [*random_job(job, folder), '--device', 'cpu'] for job in JOBS}
    settings = 'score_thr=0', 'max_per_img=3'
    few = [f'model.test_cfg.rcnn.{setting}' for setting in settings]
    jobs['maskrcnn'] += ['--score-thr', 0, '--cfg-options', *few]
    return jobs


@pytest.fixture
def images(toy_data: Path, tmp_path: Path) -> Path:
    """Returns a folder with seven images of several sizes and a video of four frames."""
    folder = tmp_path / 'images'
    for source, number in dict(val2017=4, train2017=3).items():
        (folder / source).mkdir(parents=True)
        for path in sorted((toy_data / 'data/toy/coco' / source).iterdir())[:number]:
            shutil.copy(path, folder / source)
    write_film(folder / 'film.avi', sorted((folder / 'val2017').iterdir()))
    return folder


def arguments(job: list, images: Path, out_dir: Path, *options: object) -> list:
    """Returns the arguments of the tool. Settings for --cfg-options are at the end."""
    config, checkpoint, *others = job
    return [config, checkpoint, images, '--out-dir', out_dir, *options, *others]


@pytest.mark.parametrize(
    ('job', 'kills'),
    # In a batch, in a video, and before the first record.
    [('maskrcnn', (3, 6)), ('semfpn', (8,)), ('imagenet', (0,))],
)
def test_killed_equals_never_killed(
    job: str, kills: tuple, jobs, images: Path, run_tool_captured, tmp_path: Path
) -> None:
    script, out, whole = tmp_path / 'killed.py', tmp_path / 'out', tmp_path / 'whole'
    script.write_text(KILLED)
    args = arguments(jobs[job], images, out, '--batch-size', 2)
    for number in kills:
        variables = dict(KILLED_AFTER=str(number), TOOL=str(PREDICT))
        run = Script(script, *args, log=tmp_path / 'log.txt', cwd=tmp_path, **variables)
        run.process.join()
        assert run.process.exitcode == -9
        assert not (out / 'predictions.json').exists() and not [*out.glob('drawn/*.mp4')]
        last = (out / 'unfinished' / '0.jsonl').read_text().splitlines()[-1]
        assert last == '{"image": "half of a li'
    result = run_tool_captured('predict', *args)
    done = min(sum(kills), 7)
    assert ('Going on' in result.stdout) == bool(done)
    assert not done or f'Going on: {done} of 8 images and videos are predicted' in result.stdout
    run_tool_captured('predict', *arguments(jobs[job], images, whole, '--batch-size', 2))
    assert files_of(out) == files_of(whole) and len(list(out.rglob('drawn/**/*.*'))) == 8


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm'])
def test_two_processes_equal_one_and_go_on_where_it_stopped(
    launcher: str, jobs, images: Path, run_tool, tmp_path: Path, monkeypatch
) -> None:
    args = arguments(jobs['maskrcnn'], images, tmp_path / 'out')
    with monkeypatch.context() as here:
        here.setattr(Writer, 'add', add_or_stop(Writer.add, 2))
        with pytest.raises(SystemExit, match='130'):
            run_tool('predict', *args)
    names = dict(
        pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
        slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    )
    address = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    runs = []
    for rank in '0', '1':
        log, variables = tmp_path / f'{rank}.txt', dict(zip(names[launcher], (rank, '2', rank)))
        words = [PREDICT, *args[:3], '--launcher', launcher, *args[3:]]
        runs.append(Script(*words, log=log, cwd=tmp_path, **address, **variables))
    first, second = (run.wait() for run in runs)
    assert 'Going on: 2 of 8 ' in first and '11 images: ' in first and 'images: ' not in second
    run_tool('predict', *arguments(jobs['maskrcnn'], images, tmp_path / 'one'))
    assert files_of(tmp_path / 'out') == files_of(tmp_path / 'one')


def add_or_stop(add: Callable, number: int) -> Callable:
    """Returns a function that records so many images and then stops the tool as Ctrl-C does."""
    left = iter(range(number))

    def add_or_interrupt(writer: Writer, **record: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        add(writer, **record)

    return add_or_interrupt


@pytest.mark.parametrize('job', JOBS)
def test_unreadable_images_are_listed_and_the_others_are_predicted(
    job: str, jobs, images: Path, run_tool_captured, tmp_path: Path
) -> None:
    def run(out_dir: str) -> tuple[int, str]:
        args = arguments(jobs[job], images, tmp_path / out_dir, '--batch-size', 2)
        result = run_tool_captured('predict', *args)
        return result.returncode, result.stdout + result.stderr.replace(f'{tmp_path}/', '')

    run('expected')
    sound = (images / 'val2017' / '000000500002.jpg').read_bytes()
    bad = {'empty.jpg': b'', 'val2017/000000500002.jpg': b'no image', 'no_film.mp4': b'no video'}
    for name, content in bad.items():
        (images / name).write_bytes(content)
    status, shown = run('out')
    assert status == 1
    expected = r'3 of 10 images cannot be predicted, images/empty.jpg is empty, images/no_film.mp4 '
    assert re.search(rf'{expected}cannot be read as a video, images/val2.*2\.jpg is not', shown)
    failed = json.loads((tmp_path / 'out' / 'failed.json').read_text())
    assert {one['image'].removeprefix(f'{images}/') for one in failed} == {*bad}
    assert len(list((tmp_path / 'out').rglob('drawn/**/*.*'))) == 7
    predicted = (tmp_path / 'out' / 'predictions.json').read_text()
    assert '000000500001' in predicted or job == 'maskrcnn'
    assert '000000500002' not in predicted

    # What was predicted is not predicted again once the images are repaired.
    (images / 'val2017' / '000000500002.jpg').write_bytes(sound)
    for name in ('empty.jpg', 'no_film.mp4'):
        (images / name).unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('out/drawn/**/*.*')}
    status, shown = run('out')
    assert status == 0 and 'Going on: 7 of 8 images and videos are predicted already' in shown
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert files_of(tmp_path / 'out') == files_of(tmp_path / 'expected')


def test_images_beyond_the_memory_of_the_gpu_are_listed(
    jobs, images: Path, run_tool_captured, tmp_path: Path, monkeypatch
) -> None:
    def predict_small(inferencer: object, loaded: list) -> list:
        if any('000000500003' in image.path for image in loaded):
            raise torch.cuda.OutOfMemoryError('CUDA out of memory.')
        return predict_loaded(inferencer, loaded)

    predict_loaded = mmhatnet.prediction.job.predict_loaded
    args = arguments(jobs['imagenet'], images, tmp_path / 'out', '--no-drawn')
    with monkeypatch.context() as here:
        here.setattr(mmhatnet.prediction.job, 'predict_loaded', predict_small)
        result = run_tool_captured('predict', *args)
    assert '500003.jpg needs more memory than the GPU has, in a batch of 1 ' in result.stderr
    assert result.returncode == 1 and run_tool_captured('predict', *args).returncode == 0
    assert len(json.loads((tmp_path / 'out' / 'predictions.json').read_text())) == 11


def test_damaged_records_and_numbers_that_are_not_finite(tmp_path: Path) -> None:
    settings = dict(checkpoint='a')
    with Records(tmp_path / 'unfinished') as records:
        records.begin(settings, overwrite=False)
        with records.open(0) as writer:
            for number in range(3):
                writer.add(image=str(number), size=(1, 2), results=[number])
            writer.add(image='3', size=(1, 2), results=[float('nan')])
            for number in range(2):
                writer.add(video='film', frame=number, image=f'film/{number}', results=[])
            writer.add(video='film', frames=2, stated=3)
        file = tmp_path / 'unfinished' / '0.jsonl'
        file.write_bytes(file.read_bytes().replace(b'{"image": "1"', b'\0' * 13) + b'{"ima')
    with Records(tmp_path / 'unfinished') as records:
        records.begin(settings, overwrite=False)
        index = records.index()
    assert index.failed == {'3': 'has predictions that are not finite'}
    assert [*index.places] == ['0', '2', 'film']
    read = [record['image'] for record in index.read(['film', '2', '1', '0'])]
    assert read == ['film/0', 'film/1', '2', '0']
    assert 'states 3 frames, of which 2' in index.notes['film']
    # Records without settings are those of a job that was killed while it deleted them.
    (tmp_path / 'unfinished' / 'settings.json').unlink()
    with Records(tmp_path / 'unfinished') as records:
        records.begin(dict(checkpoint='b'), overwrite=False)
        assert not records.index().places


def test_batches_do_not_depend_on_what_is_done(images: Path) -> None:
    paths = [str(path) for path in sorted(images.rglob('*.jpg'))]
    batches = list(batches_of(paths, 2, ()))
    assert sorted(path for batch in batches for path in batch) == paths
    for done in {paths[0]}, {*batches[0]}, {*paths[2:5]}, {*paths}:
        left = [batch for batch in batches if not done.issuperset(batch)]
        assert list(batches_of(paths, 2, done)) == left


def test_results_among_the_images_are_not_predicted(
    jobs, images: Path, run_tool, tmp_path: Path
) -> None:
    for _ in range(2):
        run_tool('predict', *arguments(jobs['semfpn'], images, images))
        assert len(json.loads((images / 'predictions.json').read_text())) == 11


def test_an_unfinished_prediction_is_not_mixed_with_another(
    jobs, images: Path, run_tool_captured, tmp_path: Path
) -> None:
    out, other = tmp_path / 'out', tmp_path / 'other.pth'
    config, checkpoint, *options = jobs['imagenet']
    weights = torch.load(checkpoint)
    weights['state_dict']['head.fc.bias'] += 1
    torch.save(weights, other)
    (images / 'empty.jpg').touch()

    def run(checkpoint: Path, images: Path, *more: object) -> str:
        args = arguments([config, checkpoint, *options], images, out, *more)
        return run_tool_captured('predict', *args).stderr

    assert 'empty.jpg is empty' in run(checkpoint, images)
    before = files_of(out)
    hint = 'finish it with the same settings, name another --out-dir, or start anew'
    assert re.search(f'that did not finish, with another checkpoint: {hint}', run(other, images))
    assert f'with another --no-drawn: {hint}' in run(checkpoint, images, '--no-drawn')
    assert 'has predictions of 4 other images, ' in run(checkpoint, images / 'val2017')
    with locked(out / 'unfinished' / 'lock'):
        assert 'Another process writes to ' in run(checkpoint, images)
    assert files_of(out) == before

    assert 'Going on' not in run(other, images / 'val2017', '--overwrite')
    assert len(json.loads((out / 'predictions.json').read_text())) == 4
    assert not (out / 'unfinished').exists() and not (out / 'failed.json').exists()


@pytest.mark.parametrize(
    ('size', 'file'),
    [
        (100, 'unfinished/settings.json'),
        (1000, r'drawn/\d+\.jpg'),
        (1000, r'unfinished/0\.jsonl'),
        (12000, r'drawn/film\.mp4'),
    ],
)
def test_a_full_disk_is_named_and_nothing_is_lost(
    size: int, file: str, jobs, images: Path, run_tool_captured, tmp_path: Path, monkeypatch
) -> None:
    """The system refuses to write more to a file, as it does on a full disk."""
    begin, limits = Records.begin, resource.getrlimit(resource.RLIMIT_FSIZE)

    def begin_with_limit(*args: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        begin(*args)

    out, options = tmp_path / 'out', ['--num-workers', 0] + ['--no-drawn'] * ('0' in file)
    args = arguments(jobs['imagenet'], images, out, *options)
    with monkeypatch.context() as here:
        here.setattr(Records, 'begin', begin_with_limit)
        try:
            result = run_tool_captured('predict', *args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.returncode == 1
    assert re.search(rf'^{out}/{file} cannot be written \(.+\): free space', result.stderr)
    assert run_tool_captured('predict', *args).returncode == 0
    args = arguments(jobs['imagenet'], images, tmp_path / 'expected', *options)
    assert run_tool_captured('predict', *args).returncode == 0
    assert files_of(out) == files_of(tmp_path / 'expected')
