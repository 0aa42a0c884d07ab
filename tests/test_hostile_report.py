"""Nothing that goes wrong with a report fails a training or a test that has finished."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import METRICS
from predicting import random_job
from test_report import (
    HOSTILE,
    IDS,
    JOBS,
    assert_self_contained,
    classes,
    detections,
    label_maps,
    measure,
    table,
    train,
)

from mmhatnet.report import ReportHook
from mmhatnet.report.classification import ClassificationCollector
from mmhatnet.report.detection import DetectionCollector
from mmhatnet.report.page import render
from mmhatnet.report.segmentation import SegmentationCollector

__all__ = ['train']  # the fixture
MANY = 2500


class Loader(list):
    """Batches of a dataset."""

    def __init__(self, samples: list, **attributes) -> None:
        super().__init__(samples[i : i + 2] for i in range(0, len(samples), 2))
        self.dataset = type('Dataset', (list,), attributes)(samples)


def run_test(hook: ReportHook, evaluator: Evaluator, loader: Loader) -> dict[str, float]:
    """Gives predictions to an evaluator and to a hook, as MMEngine's loop does."""
    runner = SimpleNamespace(test_loop=SimpleNamespace(evaluator=evaluator, dataloader=loader))
    hook.before_test_epoch(runner)
    for index, batch in enumerate(loader):
        evaluator.process(batch)
        hook.after_test_iter(runner, index, outputs=batch)
    metrics = evaluator.evaluate(len(loader.dataset))
    hook.after_test_epoch(runner, metrics)
    if hook.collector:
        hook.collector.merge([hook.collector.state()])
    return metrics


@METRICS.register_module()
class OwnMetric(BaseMetric):
    """A metric as a user may write it, with values of any type."""

    default_prefix = 'own'

    def process(self, data_batch: object, data_samples: list) -> None:
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results: list) -> dict:
        return dict(broken=float('nan'), endless=float('inf'), number=torch.tensor(0.25))


def test_a_metric_of_the_user(train, tmp_path: Path, capsys) -> None:
    config, _ = random_job('imagenet', tmp_path)
    config.write_text(f"{config.read_text()}\nval_evaluator = dict(type='OwnMetric')\n")
    report = train('imagenet')
    assert f'report   {report}\n' in capsys.readouterr().out
    page = report.read_text().replace('\n', '')
    for name, shown in (('broken', '\N{EN DASH}'), ('endless', 'inf'), ('number', '0.250')):
        assert f'<td class="text">own/{name}</td><td>{shown}</td>' in page


def test_a_folder_in_place_of_the_file(train, tmp_path: Path, capsys) -> None:
    (tmp_path / 'work' / 'report.html').mkdir(parents=True)
    report = train('imagenet')
    lines = [line for line in capsys.readouterr().out.splitlines() if str(report) in line]
    (line,) = lines
    assert line.startswith(f'The training has finished, but {report} could not be written (Is')
    assert [path.name for path in report.parent.glob('.report*')] == []
    assert (report.parent / 'epoch_1.pth').exists()


def test_letters_that_the_output_cannot_show(monkeypatch, tmp_path: Path) -> None:
    folder, output = tmp_path / 'Zürich\n', io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(output, encoding='ascii'))
    ReportHook().after_train(SimpleNamespace(work_dir=folder))
    sys.stdout.flush()
    (line,) = output.getvalue().decode().splitlines()
    assert r'Z\xfcrich\n/report.html could not be written (AttributeError: ' in line


@pytest.mark.parametrize('job', JOBS)
def test_images_that_are_gone(job: str, tmp_path: Path) -> None:
    collector_type, make = JOBS[job]
    metric, samples = make(tmp_path)
    collector = collector_type(metric, len(samples))
    measure(collector, samples)
    for path in tmp_path.glob('*.jpg'):
        path.unlink()
    page = render('t', 'd', [collector.section()], '')
    assert page.count('The image can no longer be read.') >= 6
    assert_self_contained(page)


def test_metrics_of_several_datasets(tmp_path: Path) -> None:
    """Each dataset has a metric of its own, and images have the same ids in both."""
    from mmdet.evaluation import MultiDatasetsEvaluator

    metrics, samples = [], []
    for name in ('one', 'two'):
        (tmp_path / name).mkdir()
        metric, predicted = detections(tmp_path / name, predict=name == 'one')
        metrics.append(metric)
        samples += predicted
    evaluator = MultiDatasetsEvaluator(metrics, ('first', 'second'))
    meta, sizes = dict(classes=HOSTILE, cumulative_sizes=[8, 16]), [8, 16]
    evaluator.dataset_meta = [meta, meta]
    hook = ReportHook()
    measured = run_test(hook, evaluator, Loader(samples, cumulative_sizes=sizes))
    figures = dict(hook.collector.section().figures)
    assert 0.1 < measured['first/coco/bbox_mAP'] == float(figures['AP of boxes'])
    assert hook.note == 'All that follows is measured on the first dataset, first.'


def test_metrics_that_keep_other_results(tmp_path: Path) -> None:
    """The detections of a metric for videos are those of frames."""
    metric, samples = detections(tmp_path)
    metric.process({}, [samples[3].to_dict()])
    collector = DetectionCollector(metric, len(samples))
    with pytest.raises(ValueError, match='CocoMetric keeps another image here'):
        collector.add_batch(samples[:1])


def test_a_dataset_without_metainfo_and_a_stream(tmp_path: Path) -> None:
    metric, samples = classes(tmp_path)
    metric.dataset_meta = None
    collector = ClassificationCollector(metric, len(samples))
    measure(collector, samples)
    assert table(collector.section(), 'Classes').rows[0][0].startswith('class ')
    # A stream has no length, so nobody knows which images would be chosen.
    hook, loader = ReportHook(), Loader(samples)
    loader.dataset = iter(samples)
    evaluator = SimpleNamespace(metrics=[metric])
    hook.before_test_epoch(
        SimpleNamespace(test_loop=SimpleNamespace(evaluator=evaluator, dataloader=loader))
    )
    assert hook.collector is None and hook.failure.startswith('TypeError: ')


def many_labels(folder: Path) -> tuple:
    metric, samples = classes(folder)
    for sample in samples:
        sample.set_field(torch.rand(MANY).softmax(0), 'pred_score')
    return ClassificationCollector, metric, samples


def many_maps(folder: Path) -> tuple:
    metric, samples = label_maps(folder)
    for sample in samples:
        sample.pred_sem_seg.data = MANY - 1 - sample.pred_sem_seg.data
    return SegmentationCollector, metric, samples


def many_boxes(folder: Path) -> tuple:
    metric, samples = detections(folder)
    metric._coco_api.dataset['categories'] += [
        dict(id=id_, name=f'class {id_}') for id_ in range(100, 100 + MANY - len(IDS))
    ]
    metric._coco_api.createIndex()
    return DetectionCollector, metric, samples


@pytest.mark.parametrize('make', [many_labels, many_maps, many_boxes])
def test_many_classes(make, tmp_path: Path) -> None:
    """A matrix of them would grow with the square of their number."""
    collector_type, metric, samples = make(tmp_path)
    names = (*HOSTILE, *(f'class {id_}' for id_ in range(100, 100 + MANY - len(IDS))))
    metric.dataset_meta = dict(classes=names)
    collector = collector_type(metric, len(samples))
    measure(collector, samples)
    section = collector.section()
    assert len(table(section, 'Classes').rows) == MANY
    assert table(section, 'Most frequent mistakes').rows
    assert any('no confusion matrix, which would have 2,50' in note for note in section.notes)
    assert len(render('t', 'd', [section], '')) < 10e6
