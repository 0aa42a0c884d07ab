"""tools/new_config.py recognizes layouts of data folders and writes matching configs."""

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

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
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-4 * 2 / 16)
    assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size == 2


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


def test_refusals(run_tool, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match='none of the layouts'):
        written(run_tool, tmp_path)
    image(tmp_path / 'train' / 'cat' / '1.jpg')
    with pytest.raises(SystemExit, match=r'no val split, only .*train: .* to val/CLASS'):
        written(run_tool, tmp_path)
    (tmp_path / 'written').mkdir()
    (tmp_path / 'written' / 'config.py').touch()
    image(tmp_path / 'val' / 'cat' / '1.jpg')
    with pytest.raises(SystemExit, match='exists already, and would be another one'):
        written(run_tool, tmp_path)
    assert not (tmp_path / 'written' / 'config.py').read_text()
