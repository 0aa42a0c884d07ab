"""Data checks of a detector: sound data pass, and messages name what is wrong."""

import copy
from argparse import Namespace
from contextlib import nullcontext

import pytest
from coco_project import Project, content, image
from PIL import Image

from mmhatnet.cli import require_sound_job
from mmhatnet.data_checks import check_data, require_sound_data
from mmhatnet.errors import DataError


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_finds_nothing_in_sound_data_and_counts_them(project):
    report = project.check()
    assert not report.errors and not report.notes
    assert report.counts['Objects of each class'] == {
        'cat': dict(train=2, val=2), 'dog': dict(train=1, val=1)
    }  # fmt: skip
    assert report.counts['Data']['smallest image'] == dict(train='40 x 30', val='40 x 30')


def test_refuses_a_job_and_names_all_errors(project):
    project.cfg.model.roi_head.bbox_head.num_classes = 1
    (project.folder / 'val' / '2.jpg').unlink()
    project.check()
    with pytest.raises(DataError) as refused:
        require_sound_data(project.cfg, 'train', 'val')
    heads, missing, hint = str(refused.value).split('\n')
    assert 'model.roi_head.bbox_head.num_classes is 1' in heads and 'set it to 2' in heads
    assert '--no-check' in hint
    assert '1 of 3 images' in missing and str(project.folder / 'val' / '2.jpg') in missing


@pytest.mark.parametrize(
    ('launcher', 'rank', 'checks'), [('none', 1, True), ('pytorch', 0, True), ('pytorch', 1, False)]
)
def test_one_process_of_a_job_checks_its_data(launcher, rank, checks, project, monkeypatch):
    monkeypatch.setenv('RANK', str(rank))
    (project.folder / 'val' / '2.jpg').unlink()
    project.check()
    project.cfg.work_dir = str(project.folder / 'work')
    project.cfg.val_evaluator.metric = 'bbox'
    with pytest.raises(DataError, match='1 of 3 images') if checks else nullcontext():
        require_sound_job(project.cfg, Namespace(no_check=False, launcher=launcher), 'train', 'val')


def test_checks_wrapped_datasets_and_skips_unknown_ones(project):
    project.train.data_root = '/nowhere'
    several = dict(type='ConcatDataset', datasets=[project.train, dict(type='CrowdHumanDataset')])
    project.cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=several)
    report = project.check('train')
    assert '/nowhere/train.json' in report.errors[0]
    assert 'CrowdHumanDataset' in report.notes[0]
    project.cfg.train_dataloader.dataset = dict(type='CocoPanopticDataset', ann_file='/nowhere')
    assert 'CocoPanopticDataset' in project.note('train')


def test_refuses_datasets_whose_labels_mean_different_things(project):
    other = copy.deepcopy(project.train)
    joined = dict(type='ConcatDataset', datasets=[project.train, other])
    project.cfg.train_dataloader.dataset = joined
    assert not project.check('train').errors
    other.metainfo.classes = ('dog',)
    for head in project.cfg.model.roi_head.values():
        head.num_classes = 1
    project.cfg.train_dataloader.dataset.datasets[1] = other
    errors = project.check('train').errors
    (error,) = [error for error in errors if 'of its datasets' in error]
    assert 'train_dataloader: the classes of its datasets differ, (cat, dog) and (dog)' in error
    # Texts that come with each image name its labels.
    for dataset in project.cfg.train_dataloader.dataset.datasets:
        dataset.return_classes = True
    assert not any('of its datasets' in error for error in project.check('train').errors)


def test_refuses_datasets_without_common_metainfo(project):
    other = copy.deepcopy(project.train)
    other.metainfo.palette = [(0, 0, 0), (1, 1, 1)]
    joined = dict(type='ConcatDataset', datasets=[project.train, other])
    project.cfg.train_dataloader.dataset = joined
    assert "metainfo['palette'] of its datasets differs" in project.error('train')
    project.cfg.train_dataloader.dataset.ignore_keys = 'palette'
    assert not project.check('train').errors


def test_names_settings_that_point_to_no_files(project):
    project.train.ann_file = ['train.json', 'more.json']
    assert 'ann_file is a list' in project.error('train')
    project.train.ann_file = 'train.json'
    project.train.data_prefix = dict(img='images')
    assert f'there is no {project.folder / "images"}; correct data_prefix' in project.error('train')
    project.train.data_prefix = dict(img_path='train')
    assert 'data_prefix=dict(img=FOLDER)' in project.error('train')


@pytest.mark.parametrize('text', ['<html>', '[]', '{"images": []}', ''])
def test_names_a_file_that_is_not_in_coco_format(project, text):
    project.files['train'] = text
    assert 'train.json is not' in project.error('train')


@pytest.mark.parametrize(
    'names, classes, message',
    [
        (('cat', 'dog'), 'cat', "classes=('cat',)"),
        (('cat', 'dog'), ('kite', 'owl'), "set metainfo=dict(classes=('cat', 'dog',))"),
        (('cat', 'dog'), ('cat', 'dgo'), "did you mean 'dog'"),
        (('cat', 'dog'), ('dog', 'cat'), "swapped: set metainfo=dict(classes=('cat', 'dog',))"),
        (('cat', 'cat', 'dog'), ('cat', 'dog'), 'the same name (cat) twice'),
        (('cat', 'dog'), ('cat', 'dog', 'dog'), 'the same name (dog) twice'),
    ],
)  # fmt: skip
def test_compares_classes_with_categories(project, names, classes, message):
    project.files['train'] = content(names)
    project.train.metainfo = dict(classes=classes)
    assert message in project.error('train')


def test_names_the_default_classes_where_there_is_no_metainfo(project):
    project.files['train'] = content(('kiwi', 'fig'))
    del project.train.metainfo
    assert 'of CocoDataset, which hold where no' in project.error('train')


def test_allows_unused_categories_and_missing_last_classes(project):
    project.train.metainfo = project.val.metainfo = dict(classes=('cat',))
    for head in project.cfg.model.roi_head.values():
        head.num_classes = 1
    assert 'leaves out 1 of 2 categories (dog), with 1 objects' in project.note('train')
    project.files['train'] = content(('cat',))
    project.train.metainfo = dict(classes=('cat', 'dog'))
    for head in project.cfg.model.roi_head.values():
        head.num_classes = 2
    report = project.check('train')
    assert not report.errors and 'nothing to train with for dog' in ' '.join(report.notes)


def test_compares_the_classes_of_the_splits(project):
    project.val.metainfo = dict(classes=('dog',))
    assert 'not those of train_dataloader (cat, dog)' in project.check('val').errors[0]


def test_checks_every_head(project):
    cascade = [dict(num_classes=number) for number in (2, 1, 80)]
    masked = dict(num_things_classes=80, num_stuff_classes=0, loss_cls=dict(class_weight=[1, 1]))
    agnostic = dict(num_classes=1, class_agnostic=True)
    project.cfg.model = dict(
        roi_head=dict(bbox_head=cascade, mask_head=agnostic), panoptic_head=masked
    )
    report = project.check('train')
    assert 'model.roi_head.bbox_head[1].num_classes is 1' in report.errors[0]
    assert 'class_weight has 2 numbers' in report.errors[1] and len(report.errors) == 2
    assert 'model.roi_head.bbox_head[2].num_classes is 80' in report.notes[0]
    assert 'model.panoptic_head.num_things_classes is 80' in report.notes[1]


@pytest.mark.parametrize(
    'entries, field, value, message',
    [
        ('annotations', 'area', ..., '1 of 3 annotations (ids 2) lack "area"'),
        ('annotations', 'bbox', ..., 'lack "bbox"'),
        (
            'annotations',
            'bbox',
            [1, 2, 3],
            '"bbox" of 1 annotations is not four finite numbers, as [1, 2',
        ),
        ('annotations', 'bbox', ['1', '2', '3', '4'], 'is not four finite numbers'),
        ('annotations', 'area', None, '"area" of 1 annotations is not a finite number, as null'),
        ('annotations', 'id', 1, 'ids of "annotations" occur more than once (1)'),
        ('annotations', 'image_id', '2', '"image_id" of annotations is "2", while'),
        ('annotations', 'category_id', '1', '"category_id" of annotations is "1", while'),
        ('annotations', 'category_id', [1], 'of 1 annotations is not a number or a text, as [1]'),
        ('images', 'width', ..., 'lack "width"'),
        ('images', 'height', '30', '"height" of 1 images is not a finite number'),
        ('images', 'file_name', 7, '"file_name" of 1 images is not a text, as 7'),
        ('images', 'id', 1, 'ids of "images" occur more than once (1)'),
        ('images', 'width', -1, 'the width of 1 of 3 images (ids 2) is -1'),
        ('categories', 'id', 1, 'ids of "categories" occur more than once (1)'),
    ],
)
def test_names_the_field_that_is_wrong(project, entries, field, value, message):
    entry = project.files['train'][entries][1]
    del entry[field]
    if value is not ...:
        entry[field] = value
    assert message in project.error('train')


def test_accepts_ids_that_are_all_strings(project):
    for entry in [e for entries in project.files['train'].values() for e in entries]:
        entry.update({key: str(value) for key, value in entry.items() if key.endswith('id')})
    report = project.check('train')
    assert not report.errors and not report.notes


def test_names_objects_that_are_left_out(project):
    project.files['train']['annotations'][0]['bbox'] = [50, 5, 9, 9]
    assert '1 of 3 objects (annotation ids 1) are left out, as' in project.note('train')
    project.files['train'] = content()
    project.files['train']['annotations'][0]['image_id'] = 9
    report = project.check('train')
    assert '1 of 3 annotations are left out, as "images" has no id 9' in report.notes[0]
    project.files['train'] = content()
    project.files['train']['annotations'][0]['bbox'] = [5, 5, 39, 29]
    assert '1 of 3 objects (annotation ids 1) reach out of their image' in project.note('train')


def test_explains_why_no_image_is_left_for_training(project):
    for annotation in project.files['train']['annotations']:
        annotation['bbox'] = [0.1, 0.1, 0.5, 0.5]
    assert 'in fractions of the image' in project.error('train')
    project.files['train'] = content()
    project.files['train']['annotations'] = []
    assert 'none of 3 images is left' in project.error('train')
    project.files['train'] = content()
    project.train.filter_cfg.min_size = 32
    assert "'min_size': 32" in project.error('train')
    project.files['train']['images'] = []
    assert 'has no images' in project.error('train')


@pytest.mark.parametrize(
    'mask, message',
    [
        (..., 'no mask'),
        ([], 'no mask'),
        ([5, 5, 25, 5, 25, 20], 'neither a list of polygons nor RLE'),
        (dict(size=[40, 30], counts=[0, 1200]), 'size, [height, width], or counts'),
        (dict(size=[30, 40], counts=[0, 12]), 'size, [height, width], or counts'),
        (dict(size=[30, 40]), 'neither a list of polygons nor RLE'),
    ],
)
def test_names_objects_without_a_mask_where_the_model_needs_it(project, mask, message):
    annotation = project.files['train']['annotations'][1]
    annotation.pop('segmentation')
    if mask is not ...:
        annotation['segmentation'] = mask
    error = project.error('train')
    assert message in error and '1 of 3 objects (annotation ids 2)' in error
    project.train.pipeline[1].with_mask = False
    assert not project.check('train').errors


def test_accepts_rle_and_refuses_polygons_of_two_points_only_for_the_metric(project):
    project.files['train']['annotations'][0]['segmentation'] = dict(size=[30, 40], counts=[0, 1200])
    project.files['train']['annotations'][1]['segmentation'] = [[1, 1, 5, 5]]
    assert 'no polygon of three points' in project.note('train')
    project.files['val']['annotations'][1]['segmentation'] = [[1, 1, 5, 5]]
    assert 'which the metric segm of val_evaluator needs' in project.error('val')


def test_names_images_that_cannot_be_loaded(project):
    path = project.folder / 'train' / '1.jpg'
    Image.effect_noise((200, 200), 50).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    (project.folder / 'train' / '2.jpg').write_text('<html>')
    error = project.error('train')
    for text in ('1.jpg is damaged', '2.jpg is not an image', '2 of 3'):
        assert text in error
    image(path)
    (project.folder / 'train' / '2.jpg').write_bytes(b'')
    assert '1 of 3 images are missing or empty' in project.error('train')


def test_ignores_images_that_are_not_used(project):
    (project.folder / 'train' / '2.jpg').unlink()
    project.train.indices = [0, 2]
    report = project.check('train')
    assert not report.errors and report.counts['Data']['images used'] == dict(train=2)
    project.train.indices = None
    del project.files['train']['annotations'][1]
    assert not project.check('train').errors


def test_guesses_where_images_are(project):
    for entry in project.files['train']['images']:
        entry['file_name'] = 'train/' + entry['file_name']
    assert 'set data_prefix=dict(img="")' in project.error('train')
    for entry in project.files['train']['images']:
        entry['file_name'] = entry['file_name'].replace('train/', 'C:\\export\\')
    assert 'write file_name without folders' in project.error('train')


def test_compares_sizes_with_images_as_they_are_loaded(project):
    for number, (width, height, orientation) in enumerate(((30, 40, 6), (40, 30, 3), (40, 30, 1))):
        path = project.folder / 'train' / f'{number + 1}.jpg'
        image(path, width, height, orientation)
    assert 'mirrored by their EXIF orientation' in project.note('train')
    image(project.folder / 'train' / '1.jpg', 40, 30, 6)
    error = project.check('train').errors[0]
    assert '30 x 40 instead of 40 x 30, as its EXIF orientation' in error
    project.train.pipeline[0].color_type = 'color_ignore_orientation'
    report = project.check('train')
    assert not report.errors and not report.notes
    image(project.folder / 'train' / '1.jpg', 80, 60)
    assert '80 x 60 instead of 40 x 30: use the images that were' in project.error('train')
    image(project.folder / 'train' / '1.jpg', 30, 40)
    assert 'width and height are swapped' in project.error('train')
    image(project.folder / 'train' / '1.jpg', 41, 30)
    assert '41 x 30' in project.note('train')


@pytest.mark.parametrize('suffix', ['mpo', 'png', 'webp', 'tif'])
def test_asks_the_loader_whether_it_turns_images_of_a_format(project, suffix):
    """OpenCV turns all but WebP, and TIFF in any case. Pillow turns all of them."""
    for number, entry in enumerate(project.files['train']['images'], 1):
        entry['file_name'] = f'{number}.{suffix}'
        orientation = 3 if number == 2 else 1
        image(project.folder / 'train' / f'{number}.{suffix}', 40, 30, orientation)
    report = project.check('train')
    assert not report.errors
    assert (suffix == 'webp') is not any('mirrored by their EXIF' in n for n in report.notes)
    image(project.folder / 'train' / f'1.{suffix}', 40, 30, 6)
    for backend in ('pillow', 'cv2'):
        project.train.pipeline[0].imdecode_backend = backend
        errors = project.check('train').errors
        if suffix == 'webp' and backend == 'cv2':
            assert not errors
            continue
        remedy = 'store the image without it' if suffix == 'tif' else 'set color_type='
        assert f'annotations were made without: {remedy}' in errors[0]


def test_reads_a_sample_of_many_images_and_all_when_asked(project, monkeypatch):
    monkeypatch.setattr('mmhatnet.data_checks.images.SAMPLE', 2)
    assert project.check('train').counts['Data']['of these decoded'] == dict(train=2)
    report = check_data(project.cfg, 'train', every=True)
    assert report.counts['Data']['of these decoded'] == dict(train=3)


def test_skips_remote_files(project):
    project.train.ann_file = 's3://bucket/train.json'
    assert 'not checked' in project.note('train')
    project.train.ann_file = 'train.json'
    project.train.pipeline[0].backend_args = dict(backend='petrel')
    assert 'images are not checked' in project.note('train')


def test_compares_the_file_of_an_evaluator(project):
    project.cfg.val_evaluator = [project.cfg.val_evaluator, dict(type='DumpDetResults')]
    evaluator = project.cfg.val_evaluator[0]
    evaluator.ann_file = '/nowhere.json'
    error = project.error('val')
    assert "val_evaluator[0].ann_file: there is no annotation file '/nowhere.json'" in error
    assert f'set it to {project.folder / "val.json"}' in error
    # It has the same image ids and names, for another folder.
    evaluator.ann_file = str(project.folder / 'train.json')
    assert 'train.json holds the training data' in project.error('val')
    project.files['other'] = copy.deepcopy(project.files['val'])
    evaluator.ann_file = str(project.folder / 'other.json')
    report = project.check('val')
    assert not report.errors and not report.notes
    project.files['other']['annotations'][0]['bbox'][0] = 8
    assert 'with other annotations than' in project.note('val')
    project.files['other']['categories'].reverse()
    assert 'other ids or another order' in project.error('val')
    project.files['other']['images'].pop()
    assert 'has 2 images, of which 2 are among the 3' in project.error('val')


def test_names_an_evaluator_without_annotations(project):
    del project.cfg.val_evaluator['ann_file']
    assert 'val_evaluator has no ann_file' in project.error('val')
    project.val.pipeline[-1].meta_keys = ('img_id', 'instances')
    assert not project.check('val').errors


@pytest.mark.parametrize(
    'field, value, message',
    [
        ('id', 0, 'an annotation with id 0, but pycocotools'),
        ('id', 'one', "an annotation with id 'one', but pycocotools"),
        ('iscrowd', ..., '1 of 3 annotations (ids 1) lack "iscrowd"'),
    ],
)
def test_names_what_only_the_metric_needs(project, field, value, message):
    for split in ('train', 'val'):
        annotation = project.files[split]['annotations'][0]
        del annotation[field]
        if value is not ...:
            annotation[field] = value
    assert not project.check('train').errors
    assert message in project.error('val')
    project.cfg.val_evaluator.update(format_only=True, outfile_prefix='out')
    assert not project.check('val').errors


def test_explains_why_ap_will_be_low(project):
    project.val.indices = 1
    assert 'counts as missed' in project.note('val')
    project.val.indices = None
    project.files['val']['annotations'] = []
    assert 'AP will be -1' in project.note('val')
