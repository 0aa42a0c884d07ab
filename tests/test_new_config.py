"""tools/new_config.py recognizes layouts of data folders and writes matching configs."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmhatnet.errors import DataError
from mmhatnet.new_config import write_config
from mmhatnet.new_config.recipe import Device

TRIANGLE, SIDE = [[1, 1, 9, 1, 9, 9]], 40


def image(path: Path, labels: tuple[int, ...] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    if labels is not None:
        pixels = np.resize(np.uint8(labels), (SIDE, SIDE))
    Image.fromarray(pixels).save(path)


def annotate(file: Path, images: Path, start: str = '') -> None:
    """Writes an annotation file of ten images, with the project as a category, as Roboflow does."""
    names = [f'{number}.jpg' for number in range(10)]
    for name in names:
        image(images / name)
    thing = dict(category_id=2, bbox=[1, 1, 8, 8], iscrowd=0, area=32, segmentation=TRIANGLE)
    size = dict(width=SIDE, height=SIDE)
    parts = dict(
        images=[dict(id=i, file_name=start + name, **size) for i, name in enumerate(names)],
        annotations=[dict(thing, id=i + 1, image_id=i) for i in range(10)],
        categories=[
            dict(id=0, name='pets', supercategory='none'),
            dict(id=2, name='dog', supercategory='pets'),
            dict(id=1, name='cat', supercategory='pets'),
        ],
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(parts))


def written(run_tool, folder: Path, *options: object) -> Config:
    out = folder / 'written' / 'config.py'
    run_tool('new_config', '--data', folder, '--out', out, *options)
    return Config.fromfile(out)


@pytest.mark.parametrize(
    ('file', 'images', 'start', 'prefix'),
    [
        ('{}/_annotations.coco.json', '{}', '', 'val/'),  # Roboflow
        ('annotations/instances_{}.json', 'images/{}', '', 'images/val/'),  # CVAT
        ('annotations/instances_{}2017.json', '{}2017', '', 'val2017/'),  # COCO
        ('{}.json', 'images', 'images/', ''),
    ],
)
def test_annotations_and_images_are_found(
    file: str, images: str, start: str, prefix: str, run_tool, tmp_path: Path
) -> None:
    for split in ('train', 'val'):
        annotate(tmp_path / file.format(split), tmp_path / images.format(split), start)
    cfg = written(run_tool, tmp_path)
    dataset = cfg.val_dataloader.dataset
    assert dataset.metainfo.classes == ('dog', 'cat')
    assert cfg.model.roi_head.mask_head.num_classes == cfg.model.roi_head.bbox_head.num_classes == 2
    assert dataset.ann_file == file.format('val')
    assert dataset.data_prefix.img == prefix
    assert Path(cfg.val_evaluator.ann_file) == tmp_path / dataset.ann_file
    assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size == 2
    trained = cfg.train_dataloader.dataset
    assert trained.ann_file == file.format('train')
    assert trained.pipeline[2] == dataset.pipeline[1]


@pytest.mark.parametrize(
    ('images', 'masks', 'splits'),
    [
        ('images', 'annotations', ('training', 'validation')),
        ('img_dir', 'ann_dir', ('train', 'val')),
        ('images', 'labels', ('train', 'valid')),
    ],
)
@pytest.mark.parametrize(('names', 'reduce'), [('road grass', True), ('sky road grass', False)])
def test_masks(images, masks, splits, names, reduce, run_tool, tmp_path: Path) -> None:
    for split in splits:
        image(tmp_path / images / split / '7.png')
        image(tmp_path / masks / split / '7_mask.png', labels=(0, 1, 2, 255))
    cfg = written(run_tool, tmp_path, '--classes', *names.split())
    dataset = cfg.val_dataloader.dataset
    assert (dataset.img_suffix, dataset.seg_map_suffix) == ('.png', '_mask.png')
    assert dataset.data_prefix.seg_map_path == f'{masks}/{splits[1]}'
    loads = [t for t in dataset.pipeline if t.type == 'LoadAnnotations']
    assert {dataset.reduce_zero_label, *(t.reduce_zero_label for t in loads)} == {reduce}
    assert cfg.model.decode_head.num_classes == len(names.split())


def test_folders_of_classes(run_tool, tmp_path: Path) -> None:
    for split in ('train', 'valid'):
        for name in ('cat', 'big dog'):
            image(tmp_path / split / name / '1.jpg')
    cfg = written(run_tool, tmp_path, '--arch', 'small')
    assert cfg.val_dataloader.dataset.metainfo.classes == ('big dog', 'cat')
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 2
    assert cfg.val_dataloader.dataset.data_prefix == 'valid'


def test_recipe(run_tool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr('mmhatnet.new_config.writing.this_device', lambda: Device(cores=2))
    for split in ('train', 'val'):
        annotate(tmp_path / f'{split}.json', tmp_path / 'images', 'images/')
    cfg = written(run_tool, tmp_path)
    text = Path(cfg.filename).read_text()
    comments = ' '.join(line[2:] for line in text.splitlines() if line.startswith('# '))
    # 10 images of 40 pixels with objects of 8.
    epochs = cfg.train_cfg.max_epochs
    iterations = 5 * epochs
    assert f'10 images, 2 at a time: {epochs} epochs with {iterations:,} iterations.' in comments
    assert 'a tenth of the 10 objects are at most 8 pixels across' in comments
    assert 'In images of 128 these are 26 and 26, as small objects' in comments
    assert '2 CPU cores train as well as load images' in comments
    loader = cfg.train_dataloader
    assert (loader.batch_size, loader.num_workers) == (2, 1)
    assert loader.dataset.pipeline[2].scale == (128, 128)
    assert cfg.param_scheduler[0].end == round(iterations / 20)
    checkpoint = cfg.default_hooks.checkpoint
    assert checkpoint.interval == cfg.train_cfg.val_interval == math.ceil(epochs / 20)
    assert checkpoint.max_keep_ckpts == 1 and checkpoint.save_best == 'coco/segm_mAP'
    assert cfg.param_scheduler[1].type == 'CosineAnnealingLR'
    assert max(map(len, text.splitlines())) <= 100


def test_weights_in_checkpoints_are_taken(run_tool_captured, toy_data, tmp_path: Path) -> None:
    for split in ('train', 'val'):
        annotate(tmp_path / f'{split}.json', tmp_path / 'images', 'images/')
    options = '--data', tmp_path, '--out', tmp_path / 'config.py'
    shown = run_tool_captured('new_config', *options)
    assert 'downloads the published weights once' in shown.stdout
    assert 'no image is read' not in shown.stdout
    if not torch.cuda.is_available():
        assert 'many hours: --hours 2 fits' in ' '.join(shown.stdout.split())
    file = toy_data / 'checkpoints' / 'HAT-Net_Tiny.pth'
    file.parent.mkdir()
    file.touch()
    shown = run_tool_captured('new_config', '--data', tmp_path, '--out', tmp_path / 'other.py')
    shutil.rmtree(file.parent)
    assert 'starts from the published weights in checkpoints/HAT-Net_Tiny.pth' in shown.stdout
    cfg = Config.fromfile(tmp_path / 'other.py')
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=str(file))


def test_hours(run_tool, run_tool_captured, tmp_path: Path) -> None:
    for split in ('train', 'val'):
        annotate(tmp_path / f'{split}.json', tmp_path / 'images', 'images/')
    out = tmp_path / 'config.py'
    options = 'new_config', '--job', 'retinanet', '--data', tmp_path, '--out', out, '--hours'
    for wrong in ('0', '-1', 'nan', 'inf', 'two'):
        assert 'argument --hours: invalid' in run_tool_captured(*options, wrong).stderr
    shown = run_tool_captured(*options, '0.0005')
    assert 'An iteration was measured to take about ' in shown.stdout, shown.stderr
    assert 'mmengine' not in shown.stdout + shown.stderr and shown.stdout.count('\n') < 40
    assert re.search(r'Without --hours, the training would have [\d,]+ iterations', shown.stdout)
    cfg = Config.fromfile(out)
    assert cfg.train_cfg.type == 'IterBasedTrainLoop' and cfg.train_cfg.max_iters < 20
    again = run_tool_captured(*options, '0.0005')
    assert again.returncode == 1 and 'exists already' in again.stderr
    less = ['model.backbone.init_cfg=None', 'model.test_cfg.score_thr=0']
    less += ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
    run_tool('train', out, '--work-dir', tmp_path / 'work', '--cfg-options', *less)
    assert kept(tmp_path / 'work') == {'iter_2', 'best_coco_bbox_mAP_iter'}


METRICS = dict(
    maskrcnn='coco_segm_mAP', retinanet='coco_bbox_mAP', imagenet='accuracy_top1', semfpn='mIoU'
)


@pytest.mark.parametrize('job', METRICS)
def test_trainings_keep_the_best_and_the_last(job: str, run_tool, tmp_path: Path) -> None:
    for split in ('train', 'val'):
        annotate(tmp_path / 'coco' / f'{split}.json', tmp_path / 'coco' / 'images', 'images/')
        image(tmp_path / 'semfpn' / 'images' / split / '7.png')
        image(tmp_path / 'semfpn' / 'masks' / split / '7.png', labels=(0, 1, 2, 255))
        image(tmp_path / 'imagenet' / split / 'cat' / '1.jpg')
        image(tmp_path / 'imagenet' / split / 'dog' / '1.jpg')
    data = tmp_path / job if (tmp_path / job).is_dir() else tmp_path / 'coco'
    cfg, work_dir = written(run_tool, data, '--job', job), tmp_path / 'work'
    unit, ends = 'epoch', 'train_cfg.max_epochs={}'
    less = ['train_dataloader.dataset.indices=2']
    if job == 'semfpn':
        unit, ends, less = 'iter', 'train_cfg.max_iters={}', []
    command = ['train', cfg.filename, '--work-dir', work_dir, '--auto-scale-lr', '--cfg-options']
    command += [*less, 'model.backbone.init_cfg=None', 'train_cfg.val_interval=1']
    command.append('default_hooks.checkpoint.interval=1')
    if job == 'retinanet':  # Of no detections there would be no AP.
        command.append('model.test_cfg.score_thr=0')
    if job == 'maskrcnn':  # Those of random weights take minutes.
        command.append('model.train_cfg.rpn_proposal.max_per_img=20')
        command.append('model.train_cfg.rcnn.sampler.num=8')
        command.append('model.test_cfg.rpn.max_per_img=20')
    run_tool(*command, ends.format(2))
    assert kept(work_dir) == {f'{unit}_2', f'best_{METRICS[job]}_{unit}'}
    run_tool(*command, ends.format(3), '--resume', '--reapply-settings')
    assert kept(work_dir) == {f'{unit}_3', f'best_{METRICS[job]}_{unit}'}


def kept(folder: Path) -> set[str]:
    """Returns the names of checkpoints, without the time of the best one."""
    names = [path.stem for path in folder.glob('*.pth')]
    return {name.rpartition('_')[0] if name.startswith('best') else name for name in names}


def test_refusals(run_tool, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match='none of the layouts'):
        written(run_tool, tmp_path)
    image(tmp_path / 'train' / 'cat' / '1.jpg')
    with pytest.raises(SystemExit, match=r'no val split, only .*train: .* to val/CLASS'):
        written(run_tool, tmp_path)
    (tmp_path / 'written').mkdir()
    (tmp_path / 'written' / 'config.py').touch()
    image(tmp_path / 'val' / 'cat' / '1.jpg')
    with pytest.raises(SystemExit, match='has images of cat alone: add a folder of another'):
        written(run_tool, tmp_path)
    image(tmp_path / 'train' / 'dog' / '1.jpg')
    with pytest.raises(SystemExit, match='exists already, and would be another one'):
        written(run_tool, tmp_path)
    assert not (tmp_path / 'written' / 'config.py').read_text()
    for name in ('config', 'config.json'):
        with pytest.raises(SystemExit, match=r'the name of a config ends with \.py'):
            run_tool('new_config', '--data', tmp_path, '--out', tmp_path / name)
        assert not (tmp_path / name).exists()


def test_names_in_braces_stay(tmp_path: Path) -> None:
    names, root = ['{{ fileDirname }}', "{x} '%s'", '{{$HOME:x}}'], tmp_path / '{{_base_.model}}'
    for split in ('train', 'val'):
        for name in names:
            image(root / split / name / '1.jpg')
    write_config(root, tmp_path / 'config.py', None, 'tiny', None)
    cfg = Config.fromfile(tmp_path / 'config.py')
    assert sorted(cfg.classes) == sorted(names)
    assert cfg.train_dataloader.dataset.data_root == f'{root}/'


def change(file: Path, **values: object) -> None:
    content = json.loads(file.read_text())
    for thing in content['annotations']:
        thing.update(values)
    file.write_text(json.dumps(content))


def test_crowds_alone_are_nothing_to_train_with(tmp_path: Path) -> None:
    for split in ('train', 'val'):
        annotate(tmp_path / f'{split}.json', tmp_path / 'images', 'images/')
        change(tmp_path / f'{split}.json', iscrowd=1)
    with pytest.raises(DataError, match=r'no objects to train with.* All of them are marked'):
        write_config(tmp_path, tmp_path / 'config.py', None, 'tiny', None)


def test_objects_count_as_far_as_they_are_in_the_image(tmp_path: Path) -> None:
    for split in ('train', 'val'):
        annotate(tmp_path / f'{split}.json', tmp_path / 'images', 'images/')
        change(tmp_path / f'{split}.json', bbox=[-30, -30, 50, 50], segmentation=[], area=2500)
    made = write_config(tmp_path, tmp_path / 'config.py', 'retinanet', 'tiny', None)
    assert 'half at most 20.' in ' '.join(made.recipe)
