"""The generated data: reproducible, consistently annotated, read by the real dataset classes."""

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS as MMDET_DATASETS
from mmdet.utils import register_all_modules as register_mmdet
from mmpretrain.datasets import ImageNet
from mmpretrain.registry import DATASETS as MMPRETRAIN_DATASETS
from mmpretrain.utils import register_all_modules as register_mmpretrain
from mmseg.datasets import ADE20KDataset
from mmseg.registry import DATASETS as MMSEG_DATASETS
from mmseg.utils import register_all_modules as register_mmseg
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

TOOLS = Path(__file__).parents[1] / 'tools'
sys.path.insert(0, str(TOOLS))
import make_toy_data as toy  # noqa: E402

# Of each COCO split, the second picture shows nothing and the third shows a crowd.
COUNTS = {'coco': [8, 5], 'ade': [3, 2], 'imagenet': [2, 1]}
FEWER = {'coco': [3, 0], 'ade': [1, 2], 'imagenet': [0, 1]}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('toy') / 'data'
    assert toy.make_toy_data(folder, 0, COUNTS)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def pictures(folder: Path) -> dict[str, bytes]:
    return {k: v for k, v in contents(folder).items() if k.endswith(('.jpg', '.JPEG', '.png'))}


def test_layout(folder: Path) -> None:
    files = contents(folder)
    assert len(pictures(folder)) == 8 + 5 + 2 * (3 + 2) + 6 * (2 + 1)
    wnids = list(toy.IMAGENET_CLASSES)
    assert {
        'coco/annotations/instances_train2017.json',
        'coco/annotations/instances_val2017.json',
        'coco/train2017/000000000001.jpg',
        'ade/ADEChallengeData2016/images/training/ADE_train_00000003.jpg',
        'ade/ADEChallengeData2016/annotations/validation/ADE_val_00000002.png',
        f'imagenet/train/{wnids[0]}/{wnids[0]}_train_0002.JPEG',
        f'imagenet/val/{wnids[-1]}/{wnids[-1]}_val_0001.JPEG',
    } < set(files)


def test_same_seed_same_bytes(folder: Path, tmp_path: Path) -> None:
    toy.make_toy_data(tmp_path / 'again', 0, COUNTS)
    assert contents(tmp_path / 'again') == contents(folder)


def test_pictures_do_not_depend_on_other_pictures(folder: Path, tmp_path: Path) -> None:
    toy.make_toy_data(tmp_path / 'fewer', 0, FEWER)
    fewer = pictures(tmp_path / 'fewer')
    assert len(fewer) == 3 + 2 * (1 + 2) + 6
    assert fewer.items() <= pictures(folder).items()


def test_other_seed_other_pictures(folder: Path, tmp_path: Path) -> None:
    toy.make_toy_data(tmp_path / 'other', 1, FEWER)
    assert not set(pictures(tmp_path / 'other').values()) & set(pictures(folder).values())


def test_no_picture_twice(folder: Path) -> None:
    jpegs = [data for name, data in pictures(folder).items() if not name.endswith('.png')]
    assert len(set(jpegs)) == len(jpegs)


# ---------------------------------------------------------------------------------------------
# COCO


@pytest.fixture(scope='module', params=['train2017', 'val2017'])
def coco(request, folder: Path) -> COCO:
    coco = COCO(folder / f'coco/annotations/instances_{request.param}.json')
    coco.images = folder / 'coco' / request.param
    return coco


def test_coco_ids_and_sizes(coco: COCO) -> None:
    for group in ('images', 'annotations'):
        ids = [entry['id'] for entry in coco.dataset[group]]
        assert len(set(ids)) == len(ids)
    assert {entry['id']: entry['name'] for entry in coco.dataset['categories']} == toy.COCO_CLASSES
    assert np.diff(coco.getCatIds()).max() > 1, 'category ids are as sparse as the real ones'
    for entry in coco.dataset['images']:
        with Image.open(coco.images / entry['file_name']) as image:
            assert image.size == (entry['width'], entry['height'])


def test_coco_splits_share_no_image_id(folder: Path) -> None:
    train, val = (
        json.loads((folder / f'coco/annotations/instances_{split}.json').read_text())['images']
        for split in ('train2017', 'val2017')
    )
    assert not {entry['id'] for entry in train} & {entry['id'] for entry in val}


def test_coco_objects(coco: COCO) -> None:
    objects = coco.loadAnns(coco.getAnnIds(iscrowd=False))
    assert len(objects) > 5
    for thing in objects:
        image = coco.imgs[thing['image_id']]
        x, y, width, height = thing['bbox']
        assert width > 0 and height > 0
        assert x >= 0 and y >= 0
        assert x + width <= image['width'] and y + height <= image['height']
        rle = coco.annToRLE(thing)
        perimeter = 2 * (width + height)
        assert mask_utils.area(rle) == pytest.approx(thing['area'], abs=0.35 * perimeter)
        np.testing.assert_allclose(mask_utils.toBbox(rle), thing['bbox'], atol=2)


def test_coco_picture_without_objects(coco: COCO) -> None:
    empty = [image_id for image_id in coco.imgs if not coco.getAnnIds(image_id)]
    assert len(empty) == 1


def test_coco_crowd(coco: COCO) -> None:
    (crowd,) = coco.loadAnns(coco.getAnnIds(iscrowd=True))
    image = coco.imgs[crowd['image_id']]
    assert crowd['segmentation']['size'] == [image['height'], image['width']]
    mask = coco.annToMask(crowd)
    assert mask.sum() == crowd['area'] > 100
    rows, columns = np.nonzero(mask)
    left, top = columns.min(), rows.min()
    assert crowd['bbox'] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]


def test_coco_masks_are_visible_parts(coco: COCO) -> None:
    overlapping = 0
    for image_id in coco.imgs:
        things = coco.loadAnns(coco.getAnnIds(image_id))
        for first, second in combinations(things, 2):
            boxes = np.array([first['bbox'], second['bbox']])
            overlapping += mask_utils.iou(boxes[:1], boxes[1:], [0])[0, 0] > 0
            shared = coco.annToMask(first) & coco.annToMask(second)
            # Two outlines that touch may both claim the pixels under their common edge.
            edge = sum(thing['bbox'][2] + thing['bbox'][3] for thing in (first, second))
            assert shared.sum() <= 0.25 * edge
    assert overlapping


# What every class's mean colour must satisfy within its mask, given in red, green and blue.
COCO_COLOURS = {
    'bus': lambda r, g, b: r > b + 30 and g > b + 30,
    'stop sign': lambda r, g, b: r > g + 40 and r > b + 40,
    'umbrella': lambda r, g, b: r > g + 20 and b > g + 20,
    'sports ball': lambda r, g, b: g > r + 20 and g > b + 10,
    'kite': lambda r, g, b: b > r + 40,
}


def test_coco_annotations_lie_on_their_objects(coco: COCO) -> None:
    for thing in coco.dataset['annotations']:
        file_name = coco.imgs[thing['image_id']]['file_name']
        pixels = np.asarray(Image.open(coco.images / file_name))[coco.annToMask(thing) > 0]
        name = toy.COCO_CLASSES[thing['category_id']]
        assert COCO_COLOURS[name](*pixels.mean(0)), (file_name, name, pixels.mean(0))


def test_polygons_follow_pixel_edges() -> None:
    size = toy.SUPERSAMPLING
    visible = np.zeros((10 * size, 20 * size), bool)
    visible[2 * size : 6 * size, 3 * size : 18 * size] = True
    visible[:, 8 * size : 11 * size] = False  # something in front cuts the object in two
    boxes = sorted((*polygon.min(0), *polygon.max(0)) for polygon in toy.polygons_of(visible))
    assert boxes == [(3, 2, 8, 6), (11, 2, 18, 6)]
    assert sorted(map(toy.area_of, toy.polygons_of(visible))) == [20, 28]


# ---------------------------------------------------------------------------------------------
# ADE20K

ADE_COLOURS = {
    'building': lambda r, g, b: r > b + 20 and r > g + 10,
    'sky': lambda r, g, b: b > r + 20 and r + g + b > 450,
    'tree': lambda r, g, b: g > r + 10 and g > b + 10 and r + g + b < 200,
    'road': lambda r, g, b: abs(r - b) < 15 and abs(g - r) < 10,
    'grass': lambda r, g, b: g > r + 10 and g > b + 60,
    'mountain': lambda r, g, b: b > r + 5 and abs(g - r) < 20,
    'car': lambda r, g, b: r > b + 60 and r > g + 30,
    'water': lambda r, g, b: b > r + 45 and g > r + 30,
}


def test_ade_labels_lie_on_what_they_name() -> None:
    seen = set()
    for index in range(16):
        image, labels = map(np.asarray, toy.draw_ade(toy.stream(0, 'ade/training', index)))
        seen.update(np.unique(labels).tolist())
        for class_id, name in toy.ADE_CLASSES.items():
            if np.count_nonzero(labels == class_id) >= 300:
                mean = image[labels == class_id].mean(0)
                assert ADE_COLOURS[name](*mean), (index, name, mean)
    assert seen == {toy.UNLABELLED, *toy.ADE_CLASSES}


# ---------------------------------------------------------------------------------------------
# The dataset classes of the three frameworks


@pytest.mark.parametrize('split, count', [('train', 8), ('val', 5)])
def test_mmdet_reads_it(folder: Path, split: str, count: int) -> None:
    register_mmdet(init_default_scope=False)
    assert set(toy.COCO_CLASSES.values()) <= set(CocoDataset.METAINFO['classes'])
    dataset = MMDET_DATASETS.build(
        {
            'type': 'CocoDataset',
            'data_root': str(folder / 'coco'),
            'ann_file': f'annotations/instances_{split}2017.json',
            'data_prefix': {'img': f'{split}2017'},
            'metainfo': {'classes': tuple(toy.COCO_CLASSES.values())},
            'test_mode': True,
            'pipeline': [
                {'type': 'mmdet.LoadImageFromFile'},
                {'type': 'mmdet.LoadAnnotations', 'with_bbox': True, 'with_mask': True},
            ],
        }
    )
    assert len(dataset) == count
    samples = [dataset[i] for i in range(count)]
    assert [len(sample['gt_bboxes']) for sample in samples][1] == 0
    assert samples[2]['gt_ignore_flags'].tolist().count(True) == 1
    for sample in samples:
        masks = sample['gt_masks'].to_ndarray()
        assert masks.shape == (len(sample['gt_bboxes']), *sample['img'].shape[:2])
        assert masks.any((1, 2)).all()
    labels = np.concatenate([sample['gt_bboxes_labels'] for sample in samples])
    assert labels.min() >= 0 and labels.max() < len(toy.COCO_CLASSES)


@pytest.mark.parametrize('split, count', [('training', 3), ('validation', 2)])
def test_mmseg_reads_it(folder: Path, split: str, count: int) -> None:
    register_mmseg(init_default_scope=False)
    every_name = ADE20KDataset.METAINFO['classes']
    assert {every_name[class_id - 1] for class_id in toy.ADE_CLASSES} == set(
        toy.ADE_CLASSES.values()
    )
    dataset = MMSEG_DATASETS.build(
        {
            'type': 'ADE20KDataset',
            'data_root': str(folder / 'ade' / 'ADEChallengeData2016'),
            'data_prefix': {'img_path': f'images/{split}', 'seg_map_path': f'annotations/{split}'},
            'metainfo': {'classes': list(toy.ADE_CLASSES.values())},
            'pipeline': [
                {'type': 'mmseg.LoadImageFromFile'},
                {'type': 'mmseg.LoadAnnotations'},
            ],
        }
    )
    assert len(dataset) == count
    class_ids = np.array(list(toy.ADE_CLASSES))
    for sample in (dataset[i] for i in range(count)):
        with Image.open(sample['seg_map_path']) as stored:
            ids = np.asarray(stored)
        read = sample['gt_seg_map']
        assert read.shape == sample['img'].shape[:2] == ids.shape
        assert set(np.unique(ids)) <= {0, *toy.ADE_CLASSES}
        assert (ids == 0).mean() < 0.3
        assert len(np.unique(ids)) > 3
        np.testing.assert_array_equal(class_ids[read[ids > 0]], ids[ids > 0])
        assert (read[ids == 0] == 255).all()


@pytest.mark.parametrize('split, count', [('train', 2), ('val', 1)])
def test_mmpretrain_reads_it(folder: Path, split: str, count: int) -> None:
    register_mmpretrain(init_default_scope=False)
    every_name = {name.split(',')[0] for name in ImageNet.METAINFO['classes']}
    assert set(toy.IMAGENET_CLASSES.values()) <= every_name
    dataset = MMPRETRAIN_DATASETS.build(
        {
            'type': 'ImageNet',
            'data_root': str(folder / 'imagenet'),
            'split': split,
            'metainfo': {'classes': tuple(toy.IMAGENET_CLASSES.values())},
            'pipeline': [{'type': 'mmpretrain.LoadImageFromFile'}],
        }
    )
    assert len(dataset) == count * len(toy.IMAGENET_CLASSES)
    for sample in (dataset[i] for i in range(len(dataset))):
        wnid = Path(sample['img_path']).parent.name
        assert dataset.CLASSES[sample['gt_label']] == toy.IMAGENET_CLASSES[wnid]
        assert all(64 <= side <= 96 for side in sample['img'].shape[:2])


# ---------------------------------------------------------------------------------------------
# Running it again

ONE = {'coco': [1, 0], 'ade': [0, 1], 'imagenet': [0, 0]}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    toy.make_toy_data(tmp_path / 'toy', 0, ONE)
    return tmp_path / 'toy'


def test_second_run_writes_nothing(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob('*')}
    assert not toy.make_toy_data(small, 0, ONE)
    assert {path: path.stat().st_mtime_ns for path in small.rglob('*')} == before
    assert list(small.parent.iterdir()) == [small]


@pytest.mark.parametrize('damage', ['removed', 'cut short'])
def test_damaged_data_is_made_again(small: Path, damage: str) -> None:
    whole = contents(small)
    picture = small / 'coco/train2017/000000000001.jpg'
    if damage == 'removed':
        picture.unlink()
    else:
        picture.write_bytes(picture.read_bytes()[:100])
    assert toy.make_toy_data(small, 0, ONE)
    assert contents(small) == whole


def test_other_settings_replace_the_data(small: Path, tmp_path: Path) -> None:
    assert toy.make_toy_data(small, 1, ONE)
    toy.make_toy_data(tmp_path / 'fresh', 1, ONE)
    assert contents(small) == contents(tmp_path / 'fresh')


def test_interrupted_run_is_cleared_away(small: Path, monkeypatch) -> None:
    whole = contents(small)

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(toy, 'draw_ade', interrupt)
        toy.make_toy_data(small, 1, ONE)
    assert contents(small) == whole, 'the old data stays until the new one is complete'
    assert toy.make_toy_data(small, 1, ONE)
    assert list(small.parent.iterdir()) == [small]


@pytest.mark.parametrize('place', ['toy', 'toy.partial'])
def test_foreign_folder_is_left_alone(tmp_path: Path, place: str) -> None:
    precious = tmp_path / place / 'coco' / 'precious.jpg'
    precious.parent.mkdir(parents=True)
    precious.write_text('mine')
    with pytest.raises(SystemExit, match=f"{place}' was not made by .* new folder"):
        toy.make_toy_data(tmp_path / 'toy', 0, ONE)
    assert contents(tmp_path) == {f'{place}/coco/precious.jpg': b'mine'}


def test_foreign_file_among_the_data_is_left_alone(small: Path) -> None:
    (small / 'coco' / 'precious.jpg').write_text('mine')
    before = contents(small)
    assert not toy.make_toy_data(small, 0, ONE), 'nothing to do, so nothing to refuse'
    with pytest.raises(SystemExit, match="also holds 'coco/precious.jpg'"):
        toy.make_toy_data(small, 1, ONE)
    assert contents(small) == before


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOLS / 'make_toy_data.py'), 'toy', '--seed', '3']
    command += ['--coco', '1', '0', '--ade', '0', '1', '--imagenet', '0', '0']
    for expected in ("The toy data is in 'toy'.", "The toy data was already in 'toy'."):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == expected
    toy.make_toy_data(tmp_path / 'called', 3, ONE)
    assert contents(tmp_path / 'toy') == contents(tmp_path / 'called')


def test_command_line_refuses_negative_numbers(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        toy.main([str(tmp_path / 'toy'), '--seed', '-1'])
    assert '--seed: -1 is negative; give 0 or more' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
