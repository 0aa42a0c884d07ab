"""Trackers get what the files of a training hold."""

import json
import re
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from training_jobs import write_job

# What the files of a run say about a record, and no tracker gets.
ABOUT = ('epoch', 'iter', 'step')


def records(work: Path) -> list[dict]:
    (file,) = work.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


def written(work: Path) -> dict[str, list[float]]:
    """Returns the scalars of a training by their names, as its own files have them."""
    found: dict[str, list[float]] = {}
    for record in records(work):
        for name, value in record.items():
            if name not in ABOUT:
                found.setdefault(name, []).append(value)
    assert {'loss', 'lr'} <= found.keys() and len(found['loss']) > 2
    return found


def assert_same(found: dict[str, list[float]], work: Path) -> None:
    """Checks that a tracker has the scalars of a training."""
    for name, values in written(work).items():
        assert found[name] == pytest.approx(values, rel=1e-6), name


@pytest.mark.parametrize('job', ['maskrcnn', 'semfpn', 'imagenet'])
def test_tensorboard(job: str, run_tool, tmp_path: Path) -> None:
    accumulators = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    work, metric = tmp_path / 'work', dict(semfpn='mIoU', imagenet='accuracy/top1').get(job)
    config = write_job(job, tmp_path / 'config.py')
    run_tool('train', config, '--work-dir', work, '--tracker', 'tensorboard')
    assert (metric or 'coco/bbox_mAP') in written(work)
    (events,) = work.glob('*/vis_data/events.out.tfevents.*')
    accumulator = accumulators.EventAccumulator(str(events), dict(scalars=0)).Reload()
    scalars = {name: accumulator.Scalars(name) for name in accumulator.Tags()['scalars']}
    assert_same({name: [event.value for event in of] for name, of in scalars.items()}, work)
    assert [event.step for event in scalars['loss']] == [
        record['step'] for record in records(work) if 'loss' in record
    ]
    # Tests with the config of the work folder start no further run.
    assert 'tensorboard' not in (work / 'config.py').read_text().lower()


def test_mlflow(run_tool, tmp_path: Path, monkeypatch) -> None:
    mlflow = pytest.importorskip('mlflow')
    for name in ('MLFLOW_TRACKING_URI', 'MLFLOW_EXPERIMENT_NAME'):
        monkeypatch.delenv(name, raising=False)
    config, work = write_job('imagenet', tmp_path / 'config.py'), tmp_path / 'work'
    run_tool('train', config, '--work-dir', work, '--tracker', 'mlflow')
    client = mlflow.MlflowClient(f'sqlite:///{work / "mlflow.db"}')
    (run,) = client.search_runs([client.get_experiment_by_name('work').experiment_id])
    assert run.info.status == 'FINISHED'
    histories = {
        name: [metric.value for metric in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    assert_same(histories, work)
    assert run.data.params['model.backbone.type'] == 'HATNet'
    assert list((work / 'mlruns').rglob('config.py'))


def test_wandb_offline(run_tool, tmp_path: Path, monkeypatch, capfd) -> None:
    wandb = pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    config, work = write_job('imagenet', tmp_path / 'config.py'), tmp_path / 'work'
    run_tool('train', config, '--work-dir', work, '--tracker', 'wandb')
    (folder,) = work.glob('*/vis_data/wandb/offline-run-*')
    assert list(folder.glob('run-*.wandb'))
    # At its end, a run prints the last value of each scalar.
    summary = capfd.readouterr().err.partition('Run summary:')[2]
    last = dict(re.findall(r'wandb: +(\S+) (\S+)\n', summary))
    for name, values in written(work).items():
        assert float(last[name]) == pytest.approx(values[-1], rel=1e-2, abs=1e-5)
    assert wandb.run is None, 'the run has been finished'
    assert not list(folder.rglob('*.py')), 'no copy of all Python files'


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('tensorboard', 'Install it with: pip install tensorboard'),
        ('wandb', 'Install it with: pip install wandb'),
        ('tensorbord', 'there is no such tracker; MMEngine has aim, clearml, dvclive, mlflow, '),
    ],
)
def test_what_is_missing_is_said_first(
    name: str, message: str, run_tool_captured, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    config, work = write_job('imagenet', tmp_path / 'config.py'), tmp_path / 'work'
    result = run_tool_captured('train', config, '--work-dir', work, '--tracker', name)
    assert result.returncode == 1 and not work.exists()
    assert result.stderr.startswith(f'--tracker {name}: ') and message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_tracker_of_the_config_is_not_added_again(run_tool, tmp_path: Path) -> None:
    pytest.importorskip('tensorboard')
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    options = {'train_cfg.max_epochs': 1}
    config, work = write_job('imagenet', tmp_path / 'config.py', **options), tmp_path / 'work'
    cfg = Config.fromfile(config)
    config.write_text(
        f'{config.read_text()}\nvisualizer = {dict(cfg.visualizer, vis_backends=backends)!r}\n'
    )
    run_tool('train', config, '--work-dir', work, '--tracker', 'TensorBoard')
    assert len(list(work.glob('*/vis_data/events.out.tfevents.*'))) == 1
