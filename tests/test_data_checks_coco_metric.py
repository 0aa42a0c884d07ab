"""Data checks of CocoMetric: figures that would not be true are refused, or explained."""

import copy
import json

import mmdet.evaluation
import pytest
import torch
from coco_project import Project, content, image
from mmdet.evaluation import CocoMetric

CLASSES = ('cat', 'dog')


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def crowded(*numbers):
    """Returns a file with so many boxes of each class in each image."""
    file = content()
    file['annotations'] = [
        dict(id=0, image_id=i, category_id=c, bbox=[n % 20, n // 20, 2, 2], area=4, iscrowd=0,
             segmentation=[[0, 0, 9, 0, 9, 9]])
        for i, of_image in enumerate(numbers, 1)
        for c, number in enumerate(of_image, 1)
        for n in range(number)
    ]  # fmt: skip
    for number, annotation in enumerate(file['annotations'], 1):
        annotation['id'] = number
    return file


def perfect(file, path, found=None, labels=(0, 1), **settings):
    """Returns what CocoMetric gives a model that is right about some objects of each image."""
    path.write_text(json.dumps(file))
    metric = CocoMetric(str(path), metric='bbox', **settings)
    metric.dataset_meta = dict(classes=CLASSES)
    ids = [category['id'] for category in file['categories']]
    for one in file['images']:
        own = [a for a in file['annotations'] if a['image_id'] == one['id']]
        own = [a for a in own if ids.index(a['category_id']) in labels][:found]
        boxes = torch.tensor([a['bbox'] for a in own]).float().reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found_labels = torch.tensor([ids.index(a['category_id']) for a in own])
        instances = dict(bboxes=boxes, scores=torch.ones(len(own)), labels=found_labels)
        size = (one['height'], one['width'])
        metric.process({}, [dict(img_id=one['id'], ori_shape=size, pred_instances=instances)])
    return metric.evaluate(len(file['images']))


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(proposal_nums=(1, 10, 300)), 'proposal_nums=(1, 10, 300): pycocotools needs three'),
        (dict(proposal_nums=(100,)), 'needs three numbers'),
        (dict(proposal_nums=100), 'needs three numbers'),
        (dict(metric='proposal', proposal_nums=(1, 10)), 'needs three numbers'),
        (dict(metric_items=['mAP', 'mAP_90']), "metric_items=['mAP', 'mAP_90'] has to be"),
        (dict(metric_items='mAP'), 'has to be a list of names among mAP, mAP_50'),
        (dict(iou_thrs=[0.5, 0.75]), 'val_evaluator.iou_thrs=[0.5, 0.75]: in a list'),
    ],
)
def test_refuses_settings_with_which_the_metric_fails_or_gives_no_figure(
    project, settings, message
):
    project.cfg.val_evaluator.update(settings)
    assert message in project.error('val')


@pytest.mark.parametrize(
    'settings',
    [
        dict(proposal_nums=(10, 100, 500)),
        dict(metric='proposal', proposal_nums=(1, 10, 300), metric_items=['mAP_50']),
        dict(metric='proposal_fast', proposal_nums=(7,), iou_thrs=[0.5]),
        dict(metric_items=['mAP_50', 'AR@100']),
        dict(metric='segm', classwise=True),
    ],
)
def test_accepts_other_settings(project, settings):
    project.cfg.val_evaluator.update(settings)
    report = project.check('val')
    assert not report.errors and not report.notes


def test_explains_names_of_figures(project):
    project.cfg.val_evaluator.update(metric=['proposal'], proposal_nums=(300, 1, 10))
    assert 'AR@1000 keep their names, and are those of 1, 10, 300' in project.note('val')
    project.cfg.val_evaluator = dict(
        type='CocoMetric', ann_file=project.cfg.val_evaluator.ann_file, metric=['bbox', 'segm']
    )
    project.cfg.val_evaluator.classwise = True
    assert 'have CLASS_precision of segm alone' in project.note('val')
    both = [dict(project.cfg.val_evaluator, metric=kind, prefix=kind) for kind in ('bbox', 'segm')]
    project.cfg.val_evaluator = both
    assert not project.check('val').notes and not project.check('val').errors
    both = [dict(metric, prefix='coco', metric='bbox') for metric in both]
    project.cfg.val_evaluator = both
    assert 'several give the same figures coco/bbox' in project.error('val')


@pytest.mark.parametrize('ids, right', [((1, 2), True), ((2, 1), False)])
def test_refuses_figures_of_classes_under_names_of_others(project, ids, right):
    file = project.files['val']
    for annotation in file['annotations']:
        annotation['category_id'] = ids[annotation['category_id'] - 1]
    for category in file['categories']:
        category['id'] = ids[category['id'] - 1]
    assert not project.check('val').errors
    # This is why: only cats are found.
    figures = perfect(file, project.folder / 'val.json', labels=(0,), classwise=True)
    assert (figures['coco/cat_precision'] > figures['coco/dog_precision']) == right
    project.cfg.val_evaluator.update(classwise=True, metric='segm')
    if right:
        assert not project.check('val').errors
    else:
        assert 'get the figures of others, as categories are not in' in project.error('val')


@pytest.mark.parametrize(
    'field, value, message',
    [
        ('id', '0', "an annotation with id '0', but pycocotools"),
        ('area', -4, 'have an area such as -4, and pycocotools leaves out'),
        ('area', 1e11, 'have an area such as 1e+11'),
        ('ignore', 1, 'are marked "ignore", of which pycocotools takes no notice'),
    ],
)
def test_names_objects_that_pycocotools_takes_otherwise(project, field, value, message):
    project.files['val']['annotations'][0][field] = value
    report = project.check('val')
    assert any(message in text for text in [*report.errors, *report.notes])
    assert bool(report.errors) == (field != 'ignore')


def test_names_ids_that_numpy_changes(project):
    file = project.files['val']
    for new, entry in zip((2**53, 2**53 + 1, 0.5), file['images']):
        for annotation in file['annotations']:
            if annotation['image_id'] == entry['id']:
                annotation['image_id'] = new
        entry['id'] = new
    assert 'changes ids of "images"' in project.error('val')


def test_says_that_images_are_not_tested(project):
    project.val.update(test_mode=False)
    project.val.filter_cfg.min_size = 35
    image(project.folder / 'val' / '1.jpg', 80, 60)
    project.files['val']['images'][0].update(width=80, height=60)
    assert 'without test_mode=True leaves out 2 of 3 images' in project.note('val')


@pytest.mark.parametrize(
    'numbers, limit, most',
    [
        ([(400, 0), (0, 0), (0, 0)], 400, 100),
        ([(150, 30), (80, 0), (0, 3)], 400, 100),
        ([(70, 70), (9, 0), (0, 9)], 100, 400),
        ([(90, 9), (90, 9), (90, 9)], 50, 400),
    ],
)
def test_says_how_far_ap_is_limited(project, numbers, limit, most, tmp_path):
    project.files['val'] = file = crowded(*numbers)
    project.cfg.model.test_cfg = dict(rcnn=dict(max_per_img=limit), rpn=dict(max_per_img=20))
    note = project.note('val')
    assert ('max_per_img' in note) == (limit < 400)
    said = float(note.split('can exceed ' if limit < 400 else 'cannot exceed ')[1][:5])
    assert f'more than {min(limit, most)} objects' in note
    order = sorted(file['annotations'], key=lambda a: -a['category_id'])  # rare ones first
    file['annotations'] = order
    figures = perfect(file, tmp_path / 'crowded.json', limit)
    got = figures['coco/bbox_mAP']
    assert said - 0.012 < got <= said + 0.0006


def test_says_nothing_where_ap_is_not_limited(project):
    project.files['val'] = crowded((100, 100), (100, 0), (0, 1))
    project.cfg.model.test_cfg = dict(rcnn=dict(max_per_img=200), rpn=dict(max_per_img=20))
    report = project.check('val')
    assert not report.errors and not report.notes
    project.cfg.model.test_cfg.rcnn.max_per_img = -1
    assert not project.check('val').notes
    for annotation in project.files['val']['annotations']:
        annotation['iscrowd'] = 1
    assert 'no objects of the classes to compare with' in ' '.join(project.check('val').notes)


needs_faster_metric = pytest.mark.skipif(
    not hasattr(mmdet.evaluation, 'FasterCocoMetric'), reason='MMDetection 3.3 has none'
)


@needs_faster_metric
def test_the_faster_metric_gives_the_same_figures(tmp_path, monkeypatch):
    """It counts more than 100 detections unless it is told not to."""
    pytest.importorskip('faster_coco_eval')
    few, many = content(), crowded((150, 30), (80, 0), (0, 3))
    plain = [perfect(few, tmp_path / 'a.json', 1), perfect(many, tmp_path / 'b.json')]
    monkeypatch.setitem(globals(), 'CocoMetric', mmdet.evaluation.FasterCocoMetric)
    assert perfect(few, tmp_path / 'a.json', 1) == plain[0]
    faster = perfect(many, tmp_path / 'b.json')
    assert faster.pop('coco/bbox_mAP') == 1 > plain[1]['coco/bbox_mAP']
    assert all(plain[1][name] == value for name, value in faster.items())
    limited = perfect(many, tmp_path / 'b.json', proposal_nums=(1, 10, 100))
    assert limited['coco/bbox_mAP'] == plain[1]['coco/bbox_mAP']


@needs_faster_metric
def test_says_where_the_faster_metric_gives_another_map(project):
    project.cfg.val_evaluator.type = 'FasterCocoMetric'
    project.cfg.model.test_cfg = dict(rcnn=dict(max_per_img=100), rpn=dict(max_per_img=1000))
    assert not project.check('val').notes
    project.cfg.model.test_cfg.rcnn.max_per_img = 300
    note = project.note('val')
    assert 'mAP from 1,000 detections' in note and 'proposal_nums=(1, 10, 100)' in note
    project.cfg.val_evaluator.proposal_nums = (1, 10, 100)
    assert not project.check('val').notes


class TestSeveralDatasets:
    @pytest.fixture
    def project(self, project):
        """Validates on two datasets, of which the second has images of its own."""
        (project.folder / 'more').mkdir()
        project.files['more'] = content()
        for entry in project.files['more']['images']:
            entry['file_name'] = f'more_{entry["file_name"]}'
            image(project.folder / 'more' / entry['file_name'])
        more = dict(project.val, ann_file='more.json', data_prefix=dict(img='more'))
        both = dict(type='ConcatDataset', datasets=[project.val, more])
        project.cfg.val_dataloader.dataset = both
        project.cfg.val_evaluator.ann_file = str(project.folder / 'val.json')
        return project

    @staticmethod
    def renumber(file, by=10):
        for entry in file['images']:
            entry['id'] += by
        for annotation in file['annotations']:
            annotation['image_id'] += by
            annotation['id'] += by

    def test_refuses_images_with_the_same_ids(self, project):
        errors = project.check('val').errors
        assert any('3 of its images (ids 1, 2, 3) have the ids of images of' in e for e in errors)

    def test_refuses_an_evaluator_of_one_of_them(self, project):
        self.renumber(project.files['more'])
        error = project.error('val')
        assert 'val.json has 3 images, of which 0 are among the 3' in error
        assert 'MultiDatasetsEvaluator' in error

    def test_accepts_a_file_of_all_of_them(self, project):
        self.renumber(project.files['more'])
        merged = copy.deepcopy(project.files['val'])
        for name in ('images', 'annotations'):
            merged[name] += copy.deepcopy(project.files['more'][name])
        for entry in merged['images']:
            entry['file_name'] = f'folder/{entry["file_name"]}'
        project.files['merged'] = merged
        project.cfg.val_evaluator.ann_file = str(project.folder / 'merged.json')
        report = project.check('val')
        assert not report.errors and not report.notes
        merged['annotations'][-1]['bbox'] = [1, 1, 3, 3]
        assert 'merged.json has other annotations than' in project.error('val')

    def test_accepts_an_evaluator_of_each(self, project):
        first = project.cfg.val_evaluator
        second = dict(first, ann_file=str(project.folder / 'more.json'))
        project.cfg.val_evaluator = dict(
            type='MultiDatasetsEvaluator', metrics=[first, second], dataset_prefixes=['a', 'b']
        )
        report = project.check('val')
        assert not report.errors and not report.notes
        project.cfg.val_evaluator.metrics.reverse()
        errors = project.check('val').errors
        assert len(errors) == 2 and 'val_evaluator.metrics[0].ann_file' in errors[0]

    def test_notes_images_of_the_evaluator_that_are_not_tested(self, project):
        self.renumber(project.files['more'])
        merged = copy.deepcopy(project.files['val'])
        for name in ('images', 'annotations'):
            merged[name] += copy.deepcopy(project.files['more'][name])
        merged['images'].append(dict(merged['images'][0], id=99, file_name='other.jpg'))
        project.files['merged'] = merged
        project.cfg.val_evaluator.ann_file = str(project.folder / 'merged.json')
        assert '1 of 7 images are in none of the datasets' in project.note('val')
