"""The report of a training or a test: right, whole, harmless and readable."""

import base64
import html
import json
import re
import subprocess
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from browser import CHROMIUM
from mmengine.evaluator import BaseMetric
from mmengine.structures import InstanceData, PixelData
from predicting import random_job
from pycocotools import mask as coco_masks

import mmhatnet.report.hook as hook_module
from mmhatnet.report import ReportHook, collecting, detection
from mmhatnet.report.classification import ClassificationCollector
from mmhatnet.report.collecting import Collector
from mmhatnet.report.curves import curves, read_scalars, runs_of
from mmhatnet.report.detection import DetectionCollector
from mmhatnet.report.page import render
from mmhatnet.report.parts import Section, Table
from mmhatnet.report.segmentation import SegmentationCollector

NO_WORKERS = [
    f'{split}_dataloader.{setting}'
    for split in ('train', 'val', 'test')
    for setting in ('num_workers=0', 'persistent_workers=False')
]
# Names as somebody might write them into a data set. The last has no object.
HOSTILE = (
    '<script>alert(1)</script>',
    '"><img src=x onerror=alert(1)>',
    '$x_{\x00\x1b]]>&amp; 猫\udc80',
    '{{ 7 * 7 }}',
)
IDS = (7, 3, 9, 5)  # of the classes, in the order of the annotation file
FILE = '<svg onload=alert(1)>{}.jpg'


def write_images(folder: Path, count: int) -> list[str]:
    paths = []
    for number in range(count):
        path = folder / FILE.format(number)
        path.write_bytes(cv2.imencode('.jpg', np.full((60, 80, 3), 90 + number, np.uint8))[1])
        paths.append(str(path))
    return paths


def measure(collector: Collector, samples: list) -> dict[str, float]:
    """Gives predictions to a metric and to a collector, as MMEngine's loops do."""
    for start in range(0, len(samples), 2):
        batch = samples[start : start + 2]
        collector.metric.process({}, [sample.to_dict() for sample in batch])
        collector.add_batch(batch)
    metrics = collector.metric.evaluate(len(samples))
    collector.merge([collector.state()])
    return metrics


def detections(folder: Path, predict: bool = True) -> tuple[BaseMetric, list]:
    """Makes a metric of four classes, and detections that are more or less right."""
    from mmdet.evaluation import CocoMetric
    from mmdet.structures import DetDataSample

    rng = np.random.default_rng(0)
    images, annotations, samples = [], [], []
    for number, path in enumerate(write_images(folder, 8)):
        images.append(dict(id=100 - number, file_name=Path(path).name, width=80, height=60))
        boxes, labels = [[1, 1, 6, 6]], [0]  # the first one is wrong, with a low score
        for _ in range(3):
            x, y, size = (int(value) for value in rng.integers((0, 0, 6), (40, 20, 40)))
            label = int(rng.integers(3))
            corners = [x, y, x + size, y, x + size, y + size, x, y + size]
            annotations.append(
                dict(
                    **dict(id=len(annotations) + 1, image_id=100 - number, category_id=IDS[label]),
                    **dict(bbox=[x, y, size, size], area=size**2, iscrowd=0),
                    segmentation=[corners],
                )
            )
            jitter = rng.normal(0, 1.5, 4)
            boxes.append(np.clip(np.add((x, y, x + size, y + size), jitter), 0, 59))
            labels.append(label if rng.random() < 0.8 else 3 - label)
        count = len(boxes) if predict else 0
        masks = torch.zeros(count, 60, 80, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, np.array(boxes, int)):
            mask[top:bottom, left:right] = True
        sample = DetDataSample(
            metainfo=dict(img_id=100 - number, img_path=path, ori_shape=(60, 80))
        )
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor(np.array(boxes)[:count], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels[:count], dtype=torch.long),
            scores=torch.tensor([0.1, *rng.uniform(0.3, 1, 3)][:count], dtype=torch.float32),
            masks=masks,
        )
        samples.append(sample)
    categories = [dict(id=id_, name=name) for id_, name in zip(IDS, HOSTILE)]
    file = folder / 'truth.json'
    content = dict(images=images, annotations=annotations, categories=categories)
    file.write_text(json.dumps(content))
    metric = CocoMetric(ann_file=str(file), metric=['bbox', 'segm'])
    metric.dataset_meta = dict(classes=HOSTILE)
    return metric, samples


def label_maps(folder: Path) -> tuple[BaseMetric, list]:
    from mmseg.evaluation import IoUMetric
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    samples = []
    for path in write_images(folder, 8):
        truth = torch.randint(3, (1, 60, 80), generator=generator)
        noise = torch.randint(4, (1, 60, 80), generator=generator)
        wrong = torch.rand(1, 60, 80, generator=generator) < 0.4
        sample = SegDataSample(metainfo=dict(img_path=path))
        sample.pred_sem_seg = PixelData(data=torch.where(wrong, noise, truth))
        truth[:, :7] = 255
        sample.gt_sem_seg = PixelData(data=truth)
        samples.append(sample)
    metric = IoUMetric()
    metric.dataset_meta = dict(classes=HOSTILE, palette=None)
    return metric, samples


def classes(folder: Path) -> tuple[BaseMetric, list]:
    from mmpretrain.evaluation import Accuracy
    from mmpretrain.structures import DataSample

    generator = torch.Generator().manual_seed(0)
    samples = []
    for number, path in enumerate(write_images(folder, 8)):
        scores = torch.rand(4, generator=generator).softmax(0)
        sample = DataSample(metainfo=dict(img_path=path)).set_gt_label(number % 3)
        samples.append(sample.set_pred_score(scores).set_pred_label(scores.argmax()))
    metric = Accuracy()
    metric.dataset_meta = dict(classes=HOSTILE)
    return metric, samples


JOBS = dict(
    detection=(DetectionCollector, detections),
    segmentation=(SegmentationCollector, label_maps),
    classification=(ClassificationCollector, classes),
)


class Measured(NamedTuple):
    metrics: dict[str, float]
    section: Section
    folder: Path


@pytest.fixture(scope='module')
def measured(tmp_path_factory) -> dict[str, Measured]:
    """Returns what the metric and the report have measured for each job."""
    found = {}
    for job, (collector_type, make) in JOBS.items():
        folder = tmp_path_factory.mktemp(job)
        metric, samples = make(folder)
        collector = collector_type(metric, len(samples))
        found[job] = Measured(measure(collector, samples), collector.section(), folder)
    return found


def table(section: Section, title: str) -> Table:
    (found,) = (table for table in section.tables if table.title == title)
    return found


class Elements(HTMLParser):
    """Lists the elements of a page with their attributes, as a browser finds them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))


def images_of(page: str) -> list[bytes]:
    sources = [attrs['src'] for tag, attrs in Elements(page).found if tag == 'img']
    return [base64.b64decode(source.partition(';base64,')[2]) for source in sources]


def assert_harmless(elements: Iterable[tuple[str, dict]]) -> None:
    """Checks that elements load nothing, and run nothing."""
    for tag, attrs in elements:
        assert tag not in ('script', 'iframe', 'object', 'foreignObject'), tag
        for name, value in attrs.items():
            assert not name.startswith('on'), (tag, name)
            if name in ('src', 'href', 'action'):
                assert value.startswith(('data:', '#')), (tag, value)


def assert_self_contained(page: str) -> None:
    assert_harmless(Elements(page).found)
    assert 'url(' not in re.sub(r'base64,[^"]*', '', page) and '@import' not in page
    for image in images_of(page):
        if not image.startswith(b'\xff\xd8'):
            elements = ElementTree.fromstring(image).iter()
            local = [
                (e.tag.rpartition('}')[2], {k.rpartition('}')[2]: v for k, v in e.attrib.items()})
                for e in elements
            ]
            assert_harmless(local)


@pytest.mark.parametrize('job', JOBS)
def test_figures_are_those_of_the_metric(job: str, measured: dict[str, Measured]) -> None:
    metrics, section, folder = measured[job]
    figures = dict(section.figures)
    if job == 'detection':
        truth = json.loads((folder / 'truth.json').read_text())
        for kind, name in dict(bbox='boxes', segm='masks').items():
            assert 0.1 < metrics[f'coco/{kind}_mAP'] < 0.9
            assert float(figures[f'AP of {name}']) == metrics[f'coco/{kind}_mAP']
            assert float(figures[f'AP of {name} at IoU 0.5']) == metrics[f'coco/{kind}_mAP_50']
            column = table(section, 'Classes').columns.index(f'{name}: AP')
            values = [row[column] for row in table(section, 'Classes').rows]
            assert round(float(np.nanmean(values)), 3) == metrics[f'coco/{kind}_mAP']
            assert np.isnan(values[-1]), 'the class without objects has no AP'
            assert table(section, 'Classes').rows[-1][0] == HOSTILE[3]
        objects = {row[0]: row[1] for row in table(section, 'Classes').rows}
        assert objects == {
            name: sum(a['category_id'] == id_ for a in truth['annotations'])
            for id_, name in zip(IDS, HOSTILE)
        }
        assert objects[HOSTILE[3]] == 0 < objects[HOSTILE[0]] != objects[HOSTILE[1]]
    elif job == 'segmentation':
        names = dict(mIoU='mIoU', mAcc='mean accuracy', aAcc='accuracy of all pixels')
        for key, name in names.items():
            assert float(figures[name]) == pytest.approx(metrics[key], abs=0.006)
        assert 20 < metrics['mIoU'] < 80
    else:
        assert figures['accuracy'] == f'{metrics["accuracy/top1"] / 100:.1%}'
        assert 0 < metrics['accuracy/top1'] < 100
    assert {gallery.title for gallery in section.galleries} >= {'Typical images'}
    for gallery in section.galleries:
        assert 0 < len(gallery.examples) <= collecting.EXAMPLES
        assert all(example.views for example in gallery.examples)


@pytest.mark.parametrize('job', JOBS)
def test_names_are_texts(job: str, measured: dict[str, Measured]) -> None:
    config = 'title = "</pre><script>alert(2)</script>"'
    page = render('<script>alert(3)</script>', 'today', [measured[job].section], config)
    page.encode()
    assert_self_contained(page)
    assert html.escape(HOSTILE[0]) in page and '&lt;svg onload=alert(1)&gt;' in page
    assert '{{ 7 * 7 }}' in page and '49' not in re.sub(r'base64,[^"]*', '', page)
    assert '\x00' not in page and '\x1b' not in page
    assert len(images_of(page)) > 5


def test_no_detection(tmp_path: Path) -> None:
    metric, samples = detections(tmp_path, predict=False)
    collector = DetectionCollector(metric, len(samples))
    measure(collector, samples)
    section = collector.section()
    assert dict(section.figures)['AP of boxes'] == '0.000'
    assert any('No detection is right' in note for note in section.notes)
    missed = table(section, 'Most frequent mistakes').rows
    assert sum(row[2] for row in missed) == 24
    assert {row[1] for row in missed} == {detection.NOTHING}
    assert_self_contained(render('t', 'd', [section], ''))


def test_each_detection_and_each_object_is_counted_once(tmp_path: Path, monkeypatch) -> None:
    metric, samples = detections(tmp_path)
    collector = DetectionCollector(metric, len(samples))
    measure(collector, samples)
    matrices = []
    add = detection.add_confusions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            *(detection, 'add_confusions'),
            lambda section, found, *args: (
                matrices.append(found.matrix(5)) or add(section, found, *args)
            ),
        )
        section = collector.section()
    (matrix,) = matrices
    threshold = float(dict(section.figures)['best score threshold'])
    confident = sum(int((s.pred_instances.scores >= threshold).sum()) for s in samples)
    assert matrix[:-1].sum() == 24 and matrix[:, :-1].sum() == confident
    assert 0 < np.trace(matrix) < confident
    # The notes of the images count the same at the same threshold.
    monkeypatch.setattr(collecting, 'EXAMPLES', 8)
    every = DetectionCollector(metric, len(samples))
    every.merge([collector.state()])
    counts = []
    for example in every.section().galleries[1].examples:
        assert f'{example.name}' in {sample.img_path for sample in samples}
        counts.append([int(number) for number in re.findall(r'\d+', example.note)])
    found, objects, right, confident_ones = np.sum(counts, 0)
    assert (objects, confident_ones) == (24, confident)
    assert found == right >= np.trace(matrix)
    scores = [2 * right / (number + total) for _, number, right, total in counts]
    (worst, *_) = section.galleries[0].examples
    numbers = [int(number) for number in re.findall(r'\d+', worst.note)]
    assert 2 * numbers[2] / (numbers[1] + numbers[3]) == min(scores)


def test_boxes_are_those_of_their_image(tmp_path: Path, monkeypatch) -> None:
    """Boxes and masks that are drawn belong together."""
    metric, samples = detections(tmp_path)
    collector = DetectionCollector(metric, len(samples))
    measure(collector, samples)
    drawn = []
    masked = detection._Drawer._masked

    def record(self, image, shown):
        for annotation, _ in shown:
            if 'score' in annotation:
                rows, columns = np.nonzero(coco_masks.decode(annotation['segmentation']))
                x, y, width, height = annotation['bbox']
                drawn.append(abs(columns.min() - x) + abs(rows.min() - y))
                assert columns.max() <= x + width + 1 and rows.max() <= y + height + 1
        return masked(self, image, shown)

    monkeypatch.setattr(detection._Drawer, '_masked', record)
    collector.section()
    assert len(drawn) > 10 and max(drawn) < 3


@pytest.mark.parametrize('job', JOBS)
def test_processes_give_what_one_gives(job: str, tmp_path: Path, monkeypatch) -> None:
    """Two processes see the images in turn. The last batch is filled up with the first image."""
    collector_type, make = JOBS[job]
    metric, samples = make(tmp_path)
    samples = samples[:7]
    alone = collector_type(metric, 7)
    measure(alone, samples)
    states = []
    monkeypatch.setattr(collecting, 'get_world_size', lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(collecting, 'get_rank', lambda rank=rank: rank)
        part = collector_type(metric, 7)
        for sample in [*samples, samples[0]][rank::2]:
            metric.process({}, [sample.to_dict()])
            part.add_batch([sample])
        metric.results.clear()
        states.append(part.state())
    part.merge(states)
    pages = [render('t', 'd', [collector.section()], '') for collector in (part, alone)]
    assert pages[0] == pages[1]


def test_large_sets_are_sampled(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(detection, 'MOST_IMAGES', 5)
    metric, samples = detections(tmp_path)
    collector = DetectionCollector(metric, len(samples))
    measure(collector, samples)
    section = collector.section()
    assert len(collector.results) == 5
    assert any('on 5 of 8 images' in note for note in section.notes)
    assert len(section.galleries[1].examples) == 5


def test_images_that_were_not_predicted_are_missed(tmp_path: Path) -> None:
    metric, samples = detections(tmp_path)
    collector = DetectionCollector(metric, 3)
    metrics = measure(collector, samples[:3])
    section = collector.section()
    assert float(dict(section.figures)['AP of boxes']) == metrics['coco/bbox_mAP']
    assert any('has 8 images, of which 3 were predicted' in note for note in section.notes)
    assert len(section.galleries[1].examples) == 3


def write_run(folder: Path, name: str, lines: list[dict], resumed: bool = False) -> None:
    path = folder / name / 'vis_data'
    path.mkdir(parents=True)
    path.joinpath('config.py').write_text(f'seed = 0\nresume = {resumed}\n')
    text = '\n'.join(json.dumps(line) for line in lines)
    path.joinpath('scalars.json').write_text(text + '\n{"lr": 0.1, "lo')


def test_curves_join_the_runs_of_one_training(tmp_path: Path) -> None:
    def steps(first: int, last: int, loss: float) -> list[dict]:
        return [dict(lr=0.1, loss=loss, step=step) for step in range(first, last)]

    write_run(tmp_path, '20250101_000000', steps(1, 50, 9))  # an earlier training
    write_run(tmp_path, '20250102_000000', [*steps(1, 6, 1), dict(mIoU=10, step=5)])
    write_run(tmp_path, '20250103_000000', [dict(mIoU=77, step=0)])  # a test
    write_run(tmp_path, '20250104_000000', [*steps(4, 9, 2), dict(mIoU=20, step=8)], resumed=True)
    write_run(tmp_path, '20250105_000000', steps(1, 3, 8))  # a later one
    runs = runs_of(tmp_path, '20250104_000000')
    assert [run.name[:8] for run in runs] == ['20250102', '20250104']
    training, validation = read_scalars(runs)
    assert [record['step'] for record in training] == list(range(1, 9))
    assert [record['loss'] for record in training] == [1, 1, 1, 2, 2, 2, 2, 2]
    assert [(record['step'], record['mIoU']) for record in validation] == [(5, 10), (8, 20)]


def test_losses_of_several_sizes_have_numbers_at_their_axis(tmp_path: Path) -> None:
    small = dict(lr=0.1, loss=1.0, loss_mask=0.9, loss_rpn=0.001)
    losses = [dict(small, step=step) for step in (1, 2, 3)]
    write_run(tmp_path, '20250101_000000', losses)
    section = curves(tmp_path, '20250101_000000', by_epoch=True)
    svg = next(chart.svg for chart in section.charts if chart.title == 'Losses').decode()
    assert 'mathdefault' not in svg and '>0.001<' in svg


SHORT = dict(
    maskrcnn=['train_dataloader.batch_size=2', 'train_dataloader.dataset.indices=2'],
    semfpn=['train_dataloader.batch_size=2'],
    imagenet=['train_dataloader.batch_size=4', 'train_dataloader.dataset.indices=4'],
)
LENGTH = dict(maskrcnn='max_epochs', semfpn='max_iters', imagenet='max_epochs')
SECTION = dict(maskrcnn='Objects', semfpn='Classes', imagenet='Classes')


@pytest.fixture
def train(run_tool, tmp_path: Path) -> Callable[..., Path]:
    """Trains a small model for one or two iterations, and returns the report."""

    def run(job: str, *args, length: int = 1, **settings) -> Path:
        config = tmp_path / f'{job}.py'
        if not config.exists():
            random_job(job, tmp_path)
        options = [*NO_WORKERS, *SHORT[job], f'train_cfg.{LENGTH[job]}={length}']
        options += ['train_cfg.val_interval=1', 'default_hooks.logger.interval=1']
        if job == 'semfpn':
            options += ['default_hooks.checkpoint.interval=1']
        options += [f'{key}={value}' for key, value in settings.items()]
        work_dir = tmp_path / 'work'
        run_tool('train', config, '--work-dir', work_dir, *args, '--cfg-options', *options)
        return work_dir / 'report.html'

    return run


@pytest.mark.parametrize('job', SHORT)
def test_a_training_and_a_test_leave_reports(
    job: str, train, run_tool, tmp_path: Path, capsys
) -> None:
    report = train(job)
    assert f'report   {report}\n' in capsys.readouterr().out
    page = report.read_text()
    assert_self_contained(page)
    for text in (f'<title>Training: {job}</title>', SECTION[job], 'Losses', 'HATNet', 'PyTorch'):
        assert text in page
    assert report.stat().st_size < 3e6 and not list(report.parent.glob('.report*'))

    options = ['--work-dir', tmp_path / 'test', '--cfg-options', *NO_WORKERS]
    run_tool('test', tmp_path / f'{job}.py', tmp_path / f'{job}.pth', *options)
    (folder,) = tmp_path.glob('test/*')
    assert f'report   {folder / "report.html"}\n' in capsys.readouterr().out
    page = (folder / 'report.html').read_text()
    assert_self_contained(page)
    assert f'<title>Test: {job}</title>' in page and 'Losses' not in page
    metrics = json.loads(next(folder.glob('*.json')).read_text())
    cells = dict(
        re.findall(r'<td class="text">([^<]*)</td><td>([^<]*)</td>', page.replace('\n', ''))
    )
    for name, value in metrics.items():
        if name not in ('data_time', 'time'):
            assert cells[name] == (f'{value:.3f}' if value != -1 else '\N{EN DASH}')


def test_a_resumed_training_has_one_report(train) -> None:
    train('imagenet')
    page = train('imagenet', '--resume', length=2).read_text()
    assert 'The training was resumed: the curves join 2 runs' in page
    assert 'after epoch 2' in page


def test_no_report(train) -> None:
    assert not train('imagenet', '--no-report').exists()


def test_a_training_without_validation_has_a_report(train) -> None:
    nothing = dict.fromkeys(('val_dataloader', 'val_evaluator', 'val_cfg'))
    page = train('imagenet', **nothing).read_text()
    assert 'This run had no validation' in page and 'Losses' in page


def test_a_report_that_fails_does_not_fail_the_training(train, monkeypatch, capsys) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('mmhatnet.report.writing.render', fail)
    report = train('imagenet')
    message = (
        f'The training has finished, but {report} could not be written (OSError: [Errno 28] No '
        'space left on device).\n'
    )
    assert message in capsys.readouterr().out
    assert (report.parent / 'epoch_1.pth').exists() and not report.exists()


@pytest.mark.parametrize(
    ('step', 'what'),
    [
        ('add', 'The predictions could not be kept'),
        ('section', 'This part could not be made'),
    ],
)
def test_predictions_of_no_use_do_not_fail_the_training(
    step: str, what: str, train, monkeypatch
) -> None:
    def fail(*args: object) -> None:
        raise KeyError('gt_label')

    monkeypatch.setattr(ClassificationCollector, step, fail)
    page = train('imagenet').read_text()
    assert f'{what} (KeyError: &#39;gt_label&#39;)' in page
    assert 'accuracy/top1' in page and 'Losses' in page


def test_only_the_first_prediction_of_a_validation_counts(tmp_path: Path) -> None:
    """MMPretrain's EMAHook predicts with the other parameters in the same validation."""
    metric, samples = classes(tmp_path)
    loop = SimpleNamespace(
        evaluator=SimpleNamespace(metrics=[metric]),
        dataloader=[None] * 4,
    )
    loop.dataloader = type('Loader', (list,), dict(dataset=samples))(loop.dataloader)
    runner, hook = SimpleNamespace(val_loop=loop), ReportHook()
    hook.before_val_epoch(runner)
    for _ in range(2):
        for batch in range(4):
            hook.after_val_iter(runner, batch, outputs=samples[2 * batch : 2 * batch + 2])
    assert hook.collector.confusions.total == 8 and not hook.failure


def test_collectors_exist() -> None:
    """The names of metrics are those of the frameworks."""
    import mmdet.evaluation
    import mmpretrain.evaluation
    import mmseg.evaluation

    packages = (mmdet.evaluation, mmseg.evaluation, mmpretrain.evaluation)
    for name in hook_module.COLLECTORS:
        assert any(hasattr(package, name) for package in packages), name


# A window is at least 500 pixels wide, but a frame may be as narrow as a phone.
FRAME = """<!DOCTYPE html><body>
<iframe src="copy.html" style="width: 390px; height: 844px; border: 0"></iframe>
<script>
window.addEventListener('message', event => document.body.setAttribute('data-found', event.data));
</script>"""
CHECK = """<script>
window.addEventListener('load', () => {
  const images = [...document.images];
  parent.postMessage(JSON.stringify({
    title: document.title,
    images: images.length,
    broken: images.filter(image => !image.complete || !image.naturalWidth).length,
    width: window.innerWidth,
    content: document.documentElement.scrollWidth,
  }), '*');
});
</script></head>"""
HEADLESS = (
    *('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'),
    *('--disable-background-networking', '--disable-component-update', '--disable-sync'),
    *('--enable-logging=stderr', '--virtual-time-budget=5000', '--dump-dom'),
)


def browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Returns the document after loading a page, and the lines of the console."""
    command = [CHROMIUM, *HEADLESS, f'--user-data-dir={profile}', page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout, [line for line in result.stderr.splitlines() if ':CONSOLE' in line]


@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_browser_shows_all_of_it(measured: dict[str, Measured], tmp_path: Path) -> None:
    sections = [found.section for found in measured.values()]
    command = 'python tools/train.py ' + 'x' * 300
    table = Table('Settings', [], [['command', command]], texts=2)
    sections.append(Section('Settings', tables=[table]))
    page, copy, frame = (tmp_path / f'{name}.html' for name in ('report', 'copy', 'frame'))
    text = render('The <title>', 'today', sections, 'x = ' + '1' * 1000)
    page.write_text(text)
    policy = "style-src 'unsafe-inline'"
    assert policy in text and '</head>' in text
    changed = text.replace(policy, f"{policy}; script-src 'unsafe-inline'")
    copy.write_text(changed.replace('</head>', CHECK, 1))

    frame.write_text(FRAME)

    document, console = browse(page, tmp_path / 'profile')
    assert 'Typical images' in document and console == []
    document, console = browse(frame, tmp_path / 'profile')
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', document).group(1)))
    assert console == []
    assert found['title'] == 'The <title>'
    assert found['images'] == len(images_of(text)) > 30 and found['broken'] == 0
    assert found['content'] <= found['width'] == 390
