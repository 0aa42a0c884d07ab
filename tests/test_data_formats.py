"""mmhatnet/data_formats reads annotations of many formats, and writes them in COCO format."""

import base64
import hashlib
import io
import json
import math
import os
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import data_folders as write
import mmcv
import numpy as np
import pytest
from data_folders import CLASSES, HEIGHT, WIDTH, make_origin
from experiments import made_small
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as masks

from mmhatnet.errors import ConfigError, DataError
from mmhatnet.new_config import NewConfig, write_config

OURS, TOOLS = 'mmhatnet_coco', Path(__file__).parents[1] / 'tools'


def made(root: Path, job: str | None = None) -> NewConfig:
    return write_config(root, root.parent / f'{root.name}.py', job, 'tiny', None)


def hashes(root: Path) -> dict[Path, str]:
    """Returns the hashes and times of all files of a folder but those that are written."""
    return {
        path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in root.rglob('*')
        if path.is_file() and OURS not in path.parts
    }


def read(root: Path) -> dict[str, dict[str, list[dict]]]:
    """Returns what the config's datasets read: the objects by split and name of the image."""
    cfg, result = Config.fromfile(root.parent / f'{root.name}.py'), {}
    for split in ('train', 'val'):
        dataset = cfg[f'{split}_dataloader'].dataset
        content = json.loads(Path(dataset.data_root, dataset.ann_file).read_text())
        names = {c['id']: c['name'] for c in content['categories']}
        ids = [a['id'] for a in content['annotations']]
        assert all(type(i) is int and i > 0 for i in ids) and len({*ids}) == len(ids)
        images = {}
        for image in content['images']:
            path = Path(dataset.data_root, dataset.data_prefix.img, image['file_name'])
            assert path.is_file() and not os.path.isabs(image['file_name'])
            assert (image['width'], image['height']) == (WIDTH, HEIGHT)
            things = [a for a in content['annotations'] if a['image_id'] == image['id']]
            images[path.name] = [dict(a, name=names[a['category_id']]) for a in things]
        result[split] = images
    return result


def wanted(origin: dict) -> dict[str, dict[str, list[dict]]]:
    return {
        split: {
            image['file_name']: [
                dict(a, name=CLASSES[a['category_id'] - 1])
                for a in content['annotations']
                if a['image_id'] == image['id']
            ]
            for image in content['images']
        }
        for split, content in origin.items()
    }


def assert_equal(found: dict, origin: dict, outlines: bool = True, divided: bool = True) -> None:
    """Compares objects to the hundredth of a pixel."""
    origin = wanted(origin)
    if not divided:
        assert not {*found['train']} & {*found['val']} and found['val']
        found, origin = ({'': one['train'] | one['val']} for one in (found, origin))
    assert {s: {*images} for s, images in found.items()} == {s: {*i} for s, i in origin.items()}
    for split, images in origin.items():
        for name, things in images.items():
            assert len(found[split][name]) == len(things)
            for one, thing in zip(found[split][name], things):
                assert one['name'] == thing['name'] and one['iscrowd'] == thing['iscrowd']
                np.testing.assert_allclose(one['bbox'], thing['bbox'], atol=0.01)
                assert ('segmentation' in one) == outlines
                if outlines:
                    assert len(one['segmentation']) == len(thing['segmentation'])
                    for part, true in zip(one['segmentation'], thing['segmentation']):
                        np.testing.assert_allclose(part, true, atol=0.01)
                    assert one['area'] == pytest.approx(thing['area'], abs=0.5)


def yolo_lists(root: Path, origin: dict) -> None:
    """Writes lists of images, and data.yaml with folders of another computer."""
    write.yolo(root, origin, path='/content/datasets/x', train=['train.txt'], val='../val.txt')
    for split in ('train', 'val'):
        images = sorted((root / 'images' / split).iterdir())
        lines = [f'./{image.relative_to(root)}' for image in images]
        (root / f'{split}.txt').write_text('\n'.join(lines), encoding='utf-8')


def yolo_as_roboflow(root: Path, origin: dict) -> None:
    write.yolo(root, origin, train='../train/images', val='../valid/images', test='../test/images')
    for split, name in (('train', 'train'), ('val', 'valid')):
        for kind in ('images', 'labels'):
            (root / name).mkdir(exist_ok=True)
            (root / kind / split).rename(root / name / kind)


def yolo_with_classes(root: Path, origin: dict) -> None:
    """Writes a list of classes instead of data.yaml, as Label Studio does."""
    write.yolo(root, origin)
    (root / 'data.yaml').unlink()
    (root / 'classes.txt').write_text('\n'.join(CLASSES))


WITH_OUTLINES = dict(
    yolo_with_classes=yolo_with_classes,
    coco=partial(write.coco, file='annotations/instances_{}2017.json', images='{}2017'),
    roboflow=write.roboflow,
    cvat=write.cvat,
    label_studio=write.label_studio,
    yolo=partial(write.yolo, path='.'),
    yolo_names=partial(write.yolo, names={i: name for i, name in enumerate(CLASSES)}),
    yolo_lists=yolo_lists,
    yolo_as_roboflow=yolo_as_roboflow,
    labelme=write.labelme,
    labelme_in_one_folder=partial(write.labelme, divided=False),
)
UNDIVIDED = ('cvat', 'label_studio', 'labelme_in_one_folder')


@pytest.mark.parametrize('form', WITH_OUTLINES)
def test_outlines_are_kept(form: str, tmp_path: Path) -> None:
    origin, root = make_origin(), tmp_path / 'my data'
    WITH_OUTLINES[form](root, origin)
    before = hashes(root)
    assert made(root).job == 'maskrcnn'
    assert hashes(root) == before
    found = read(root)
    assert_equal(found, origin, divided=form not in UNDIVIDED)
    # COCO as it should be is used as it is.
    assert (root / OURS).exists() == (form != 'coco')
    # A second run finds all of it up to date.
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path.is_file()}
    made(root)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()} == written


def voc_as_roboflow(root: Path, origin: dict) -> None:
    """Writes XML files beside the images of each split."""
    for split, name in (('train', 'train'), ('val', 'valid')):
        write.voc(root / name, {split: origin[split]}, listed=False)
        for folder in ('JPEGImages', 'Annotations'):
            for path in (root / name / folder).iterdir():
                path.rename(root / name / path.name)
            (root / name / folder).rmdir()


def voc_with_joined_list(root: Path, origin: dict) -> None:
    write.voc(root, origin)
    folder = root / 'ImageSets' / 'Main'
    (folder / 'train.txt').rename(folder / 'trainval.txt')
    (folder / 'kite_train.txt').write_text('plain -1')


def yolo_with_keypoints(root: Path, origin: dict) -> None:
    write.yolo(root, origin, outlines=False, kpt_shape=[1, 3])
    for file in root.glob('labels/*/*.txt'):
        file.write_text(file.read_text().replace('\n', ' 0.5 0.5 2\n'))


WITH_BOXES = dict(
    voc_with_joined_list=voc_with_joined_list,
    yolo_with_keypoints=yolo_with_keypoints,
    yolo=partial(write.yolo, outlines=False),
    voc=write.voc,
    voc_without_lists=partial(write.voc, listed=False),
    voc_as_roboflow=voc_as_roboflow,
)


@pytest.mark.parametrize('form', WITH_BOXES)
def test_boxes_are_kept(form: str, tmp_path: Path) -> None:
    origin, root = make_origin(whole='voc' in form), tmp_path / 'data'
    for content in origin.values():
        content['annotations'][0]['iscrowd'] = int('voc' in form)  # difficult, in VOC's words
    WITH_BOXES[form](root, origin)
    before = hashes(root)
    assert made(root).job == 'retinanet'
    assert hashes(root) == before
    assert_equal(read(root), origin, outlines=False, divided=form != 'voc_without_lists')
    with pytest.raises(DataError, match='the objects have boxes and no outlines, which --job'):
        made(root, job='maskrcnn')


def test_the_report_counts_what_there_is_and_what_is_left_out(tmp_path: Path) -> None:
    root, origin = tmp_path / 'data', make_origin()
    write.yolo(root, origin)
    with (root / 'labels/train/plain.txt').open('a') as lines:
        lines.write('\n0 0.5 0.5 0 0.2\n1 0.5 0.5 0.3 0\n\n0 0 0 0.1 0.1 0.2 0.2\n')
    (root / 'labels/train/gone.txt').write_text('0 0.5 0.5 0.5 0.5')
    report = made(root).report
    assert (
        root / OURS / 'report.txt'
    ).read_text() == f'Written by mmhatnet new-config.\n{report}\n'
    rows = dict(re.findall(r'^(\S.*?) {2,}(\d+ +\d+)$', report, re.M))
    numbers = {name: [*map(int, row.split())] for name, row in rows.items()}
    kites = [sum(t['category_id'] == 2 for t in c['annotations']) for c in origin.values()]
    assert numbers['images'] == [6, 2] and numbers['without objects'] == [1, 0]
    assert numbers['objects: kite'] == kites and numbers['objects: unused'] == [0, 0]
    assert re.search(
        r'Objects without an area are left out: 3, such as .*plain.txt, line 5', report
    )
    assert 'Label files without an image are left out: 1, such as labels/train/gone.txt.' in report
    assert 'Images without a label file count as background: 1.' in report
    assert_equal(read(root), origin)


def test_boxes_among_outlines(tmp_path: Path) -> None:
    """The few become outlines. Where most have none, the config trains a detector of boxes."""
    root, box = tmp_path / 'data', '\n0 0.5 0.5 0.25 0.5'
    write.yolo(root, make_origin())
    file = root / 'labels/train/plain.txt'
    file.write_text(file.read_text() + box)
    new = made(root)
    assert new.job == 'maskrcnn' and '1 of 22 objects have no outline, and their box' in new.report
    corners = read(root)['train']['plain.jpg'][-1]['segmentation'][0]
    assert corners == [60, 32, 100, 32, 100, 96, 60, 96]
    file.write_text(file.read_text() + 30 * box)
    (tmp_path / 'data.py').unlink()
    new = made(root)
    assert new.job == 'retinanet' and '31 of 52 objects have no outline, so that' in new.report
    (tmp_path / 'data.py').unlink()
    assert made(root, job='maskrcnn').job == 'maskrcnn'


def test_splits_are_the_same_and_have_all_classes(tmp_path: Path) -> None:
    root = tmp_path / 'data'
    for index in range(30):
        write.save_image(root / f'{index}.png')
        points, label = [[10, 10], [90, 10], [90, 90]], 'rare' if index % 6 == 0 else 'common'
        shape = dict(label=label, points=points, shape_type='polygon')
        write.write_json(root / f'{index}.json', dict(imagePath=f'{index}.png', shapes=[shape]))
    assert 'There is no val split: 6 of 30 images' in made(root).report
    first = read(root)
    names = {
        split: [a['name'] for i in images.values() for a in i] for split, images in first.items()
    }
    assert names['val'].count('rare') == 1 and names['val'].count('common') == 5
    (root / OURS / 'train.json').unlink()
    made(root)
    assert read(root) == first


def test_shapes_of_labelme(tmp_path: Path) -> None:
    root = tmp_path / 'data'
    pixels = io.BytesIO()
    Image.fromarray(np.pad(np.ones((3, 4), np.uint8), 1)).save(pixels, 'PNG')
    shapes = [
        dict(label='disk', shape_type='circle', points=[[60, 50], [60, 90]]),
        dict(label='frame', shape_type='rectangle', points=[[50, 40], [20.5, 10.25]]),
        dict(label='pair', points=[[10, 10], [20, 10], [20, 20]], group_id=3),
        dict(label='pair', points=[['90', 90.5], [99, 90], [99, 99]], group_id=3),
        dict(
            label='stain',
            shape_type='mask',
            points=[[7, 8], [12, 12]],
            mask=base64.b64encode(pixels.getvalue()).decode(),
        ),
        dict(label='edge', shape_type='line', points=[[0, 0], [9, 9]]),
        dict(label='dot', shape_type='point', points=[[0, 0]]),
    ]
    for name in ('a', 'b'):
        write.save_image(root / f'{name}.JPG')
        write.write_json(root / f'{name}.json', dict(imagePath=f'..\\x\\{name}.JPG', shapes=shapes))
    new = made(root)
    assert new.job == 'maskrcnn'
    disk, frame, pair, stain = sorted(read(root)['val'].popitem()[1], key=lambda a: a['name'])
    outline = np.reshape(disk['segmentation'][0], (-1, 2)) - (60, 50)
    between = (outline + np.roll(outline, 1, axis=0)) / 2
    for points in (outline, between):
        np.testing.assert_allclose(np.linalg.norm(points, axis=1), 40, atol=0.01)
    assert frame['bbox'] == [20.5, 10.25, 29.5, 29.75]
    assert pair['segmentation'] == [[10, 10, 20, 10, 20, 20], [90, 90.5, 99, 90, 99, 99]]
    assert stain['bbox'] == [8, 9, 4, 3] and masks.decode(stain['segmentation']).sum() == 12
    assert 'Shapes of type line, which have no area, are left out: 2, such as' in new.report


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'tif'])
@pytest.mark.parametrize('orientation', [5, 6, 7, 8])
def test_annotations_of_stored_images_are_turned(
    orientation: int, suffix: str, tmp_path: Path
) -> None:
    """Some tools show images without their EXIF orientation."""
    root, points = tmp_path / 'data', [[30, 20], [70, 20], [70, 40]]
    stored = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stored[20:40, 30:70] = 255
    exif = Image.Exif()
    exif[0x112] = orientation
    for name in ('a', 'b'):
        root.mkdir(exist_ok=True)
        Image.fromarray(stored).save(root / f'{name}.{suffix}', exif=exif, quality=100)
        content = dict(imagePath=f'{name}.{suffix}', shapes=[shape(label='box', points=points)])
        write.write_json(root / f'{name}.json', dict(content, imageWidth=WIDTH, imageHeight=HEIGHT))
    report = made(root).report
    # As loaders show it, some of which turn only some formats.
    shown = mmcv.imread(str(root / f'a.{suffix}'))[..., 0] > 128
    assert ('were made without the EXIF orientation' in report) == (shown.shape != stored.shape[:2])
    (top, left), (bottom, right) = (f(np.nonzero(shown), axis=1) for f in (np.min, np.max))
    content = json.loads((root / OURS / 'val.json').read_text())
    assert (content['images'][0]['height'], content['images'][0]['width']) == shown.shape
    box = [left, top, right + 1 - left, bottom + 1 - top]
    assert content['annotations'][0]['bbox'] == box


def test_boxes_of_voc_may_be_edges(tmp_path: Path) -> None:
    """Many tools count from 0, which shows at the border of an image."""
    root = tmp_path / 'data'
    write.voc(root, make_origin(whole=True))
    file = root / 'Annotations' / 'one.xml'
    file.write_text(re.sub('<xmin>.*?</xmin>', '<xmin>0</xmin>', file.read_text(), count=1))
    text = file.read_text()
    new = made(root)
    assert 'Boxes begin at 0, so they are read as edges' in new.report
    _, ymin, xmax, ymax = (
        int(re.search(f'<{e}>(.*?)<', text)[1]) for e in ('xmin', 'ymin', 'xmax', 'ymax')
    )
    assert read(root)['val']['one.jpg'][0]['bbox'] == [0, ymin, xmax, ymax - ymin]


def change_coco(change: Callable[[dict], object]) -> Callable[[Path, dict], None]:
    """Returns a writer of COCO files whose content is changed."""

    def write_changed(root: Path, origin: dict) -> None:
        write.coco(root, origin, '{}.json', '{}')
        for file in root.glob('*.json'):
            content = json.loads(file.read_text())
            change(content)
            file.write_text(json.dumps(content))

    return write_changed


def each_of(part: str, **values: object) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        for entry in content[part]:
            for key, value in values.items():
                given = value(entry[key]) if callable(value) else value
                entry.pop(key) if given is None else entry.update({key: given})

    return change


def to_text(value: object) -> object:
    return [*map(to_text, value)] if isinstance(value, list) else str(value)


def strange_ids(content: dict) -> None:
    for part, keys in (
        ('images', ['id']),
        ('categories', ['id']),
        ('annotations', ['id', 'image_id', 'category_id']),
    ):
        each_of(part, **dict.fromkeys(keys, lambda i: f'x{i}'))(content)


def same_name(content: dict) -> None:
    for category in content['categories']:
        category['supercategory'] = 'kite'
    content['categories'].insert(0, dict(id=0, name='kite', supercategory='none'))


@pytest.mark.parametrize(
    ('change', 'note'),
    [
        (strange_ids, r'ids of annotations are numbered anew.* and not x1'),
        (each_of('annotations', id=7), 'ids of annotations are numbered anew'),
        (each_of('annotations', image_id=str), '"image_id" are of another type'),
        (each_of('annotations', area=None, iscrowd=None), 'areas are filled in'),
        (each_of('annotations', bbox=to_text), 'boxes have numbers as text'),
        (each_of('annotations', segmentation=to_text), 'numbers as text'),
        (each_of('annotations', bbox=None), 'boxes are made of outlines'),
        (each_of('annotations', segmentation=lambda s: s[0]), 'are no list of polygons'),
        (each_of('images', width=None, height=0), 'images have no width or height'),
        (each_of('images', file_name=lambda n: f'C:\\my\\{n}'), 'images are elsewhere'),
        (each_of('images', file_name=lambda n: f'/data/upload/{n}'), 'images are elsewhere'),
        (same_name, 'categories have the name of another one'),
    ],
)  # fmt: skip
def test_coco_is_repaired(change: Callable, note: str, tmp_path: Path) -> None:
    origin, root = make_origin(), tmp_path / 'data'
    change_coco(change)(root, origin)
    before = hashes(root)
    assert re.search(f'train.json: .*{note}.*: [0-9,]+[.]', made(root).report)
    assert hashes(root) == before
    assert_equal(read(root), origin)


def test_masks_and_crowds_of_coco_stay(tmp_path: Path) -> None:
    """RLE has holes, and polygons have several parts."""
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order='F')
    pixels[20:60, 30:90], pixels[30:40, 40:60] = 1, 0
    rle = masks.encode(pixels)
    rle['counts'] = rle['counts'].decode()
    origin, root = make_origin(), tmp_path / 'data'
    first, second = origin['train']['annotations'][:2]
    first.update(segmentation=rle, bbox=[30, 20, 60, 40], area=2200, iscrowd=1)
    second['segmentation'].append([1, 1, 5.5, 1, 5.5, 5.25])
    second.update(write.box_and_area(second['segmentation']))
    write.roboflow(root, origin)
    assert made(root).job == 'maskrcnn'
    one, two, *_ = read(root)['train']['plain.jpg']
    assert (one['segmentation'], one['iscrowd'], one['area']) == (rle, 1, 2200)
    assert two['segmentation'][1] == [1, 1, 5.5, 1, 5.5, 5.25]


def test_images_of_training_and_validation_are_noted(tmp_path: Path) -> None:
    write.yolo(tmp_path / 'data', make_origin(), val='images/train')
    report = made(tmp_path / 'data').report
    assert re.search(r'Images are there more than once: 6, such as .* in train and val', report)


def test_test_images_validate_where_nothing_else_does(tmp_path: Path) -> None:
    root, origin = tmp_path / 'data', make_origin()
    write.coco(root, {'train': origin['train'], 'test': origin['val']}, '{}.json', '{}')
    assert 'There is no val split, and test takes its place.' in made(root).report
    assert {*read(root)['val']} == {*write.NAMES['val']} and not (root / OURS).exists()


BOMB = """<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><filename>&b;</filename></annotation>"""

YAML_BOMB = (
    'a0: &a0 [x]\n'
    + ''.join(f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]\n' for i in range(1, 20))
    + 'train: images/train\nnames: *a19'
)


def yolo(name: str, text: str | bytes) -> Callable[[Path], None]:
    return partial(changed, form=write.yolo, name=name, text=text)


def label(text: str | bytes) -> Callable[[Path], None]:
    return yolo('labels/train/plain.txt', text)


def data_yaml(text: str | bytes) -> Callable[[Path], None]:
    return yolo('data.yaml', text)


def voc(text: str | bytes) -> Callable[[Path], None]:
    return partial(changed, form=write.voc, name='Annotations/one.xml', text=text)


def voc_object(text: str) -> Callable[[Path], None]:
    return voc(f'<annotation><filename>one.jpg</filename><object>{text}</object></annotation>')


def labelme(text: str = '', **content: object) -> Callable[[Path], None]:
    text = text or json.dumps(dict(imagePath='one.jpg', **content))
    return partial(changed, form=write.labelme, name='val/one.json', text=text)


def shape(**values: object) -> dict:
    return dict(dict(label='a', points=[[1, 1], [9, 1], [9, 9]]), **values)


def changed(root: Path, form: Callable, name: str, text: str | bytes | None) -> None:
    """Writes a folder, and replaces or removes one file."""
    form(root, make_origin(whole=True))
    (root / name).unlink(missing_ok=True)
    if text is not None:
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def without(name: str, form: Callable) -> Callable[[Path], None]:
    return partial(changed, form=form, name=name, text=None)


def coco(part: str, **values: object) -> Callable[[Path], None]:
    return lambda root: change_coco(each_of(part, **values))(root, make_origin())


def coco_text(text: str) -> Callable[[Path], None]:
    return lambda root: (root.mkdir(), (root / 'a.json').write_text(text))


def without_labels(root: Path) -> None:
    write.save_image(root / 'images/train/a.jpg')
    (root / 'data.yaml').write_text('train: images/train\nnames: [a]')


def without_splits(root: Path) -> None:
    write.coco(root, make_origin(), '{}.json', '{}')
    for name, other in (('train', 'a'), ('val', 'b')):
        (root / f'{name}.json').rename(root / f'{other}.json')


def coco_twice(root: Path) -> None:
    write.coco(root, make_origin(), '{}.json', '{}')
    (root / 'train_2.json').write_text((root / 'train.json').read_text())


ONE_FOLDER = partial(write.coco, file='{}.json', images='images')
HOSTILE = [
    (data_yaml('names: [a, b'), r'data.yaml, line 1: it is not YAML \(.*\): correct it'),
    (data_yaml('names: !!python/object/apply:os.system [id]'), 'data.yaml has no "train"'),
    (data_yaml('names: ' + '[' * 999), 'data.yaml is nested too deep'),
    (data_yaml('train: images/train\nnames: {0: a, 2: b}'), 'are 0, 2: number them from 0 to 1'),
    (data_yaml('train: images/train\nnames: [a, a]'), "has 'a' twice"),
    (data_yaml('train: images/train\nnames: [[a], b]'), r"""names" is \[\['a'\], 'b'\]: list"""),
    (data_yaml(YAML_BOMB), '"names" is .*: list the classes'),
    (data_yaml('train: images/train\nnames: a'), '"names" is a: list the classes'),
    (data_yaml('train: pictures\nnames: [a]'), '"train" names pictures, which is neither'),
    (data_yaml('train: {a: b}\nnames: [a]'), 'name folders or lists of images'),
    (data_yaml('names: [a]'), 'data.yaml has no "train": name the folder'),
    (data_yaml('train: data.yaml\nnames: [a]'), 'data.yaml, line 1: there is no image train: data'),
    (data_yaml(b'names: [\xff]'), 'is no text in UTF-8'),
    (without_labels, 'None of 1 images, such as .*a.jpg, has labels: put them in a folder labels'),
    (label('0 .5 .5 .1 .1\n3 .5 .5 .1 .1'), 'plain.txt, line 2: the class is 3, and "names" has 0'),
    (label('-1 .5 .5 .1 .1'), 'line 1: the class is -1'),
    (label('0.5 .5 .5 .1 .1'), 'line 1: the class is 0.5'),
    (label('0 80 64 20 20'), 'line 1: it has 80, but coordinates are fractions'),
    (label('kite .5 .5 .1 .1'), 'line 1: kite .5 .5 .1 .1 are not all finite'),
    (label('0 nan .5 .1 .1'), 'line 1: 0 nan .5 .1 .1 are not all finite'),
    (label('0 .5 .5 .1 .1 .9'), 'line 1: it has 5 numbers after the class'),
    (label('0 .5 .5'), 'line 1: it has 2 numbers after the class'),
    (label(b'\x80\x81'), 'plain.txt is no text in UTF-8'),
    (yolo('images/train/plain.jpg', 'no'), 'plain.jpg: it is not an image: replace it'),
    (yolo('images/train/plain.jpg', ''), 'plain.jpg: it is empty: replace it'),
    (voc(BOMB), 'one.xml, line 2: it has a DOCTYPE'),
    (voc(BOMB.encode('utf-16')), 'one.xml, line 2: it has a DOCTYPE'),
    (voc('<annotation>\n<object>'), 'one.xml, line 2: it is not XML'),
    (voc('<?xml version="1.0" encoding="x"?><annotation/>'), 'one.xml'),
    (voc_object('<name>a</name><bndbox><xmin>1e999</xmin></bndbox>'),
     r'one.xml, object 1: its <bndbox> is not four finite numbers \(xmin 1e999, ymin missing'),
    (voc_object(''), 'one.xml, object 1: it has no <name>'),
    (without('JPEGImages/one.jpg', write.voc), 'one.xml: there is no image one.jpg'),
    (labelme('{"shapes": ['), r'one.json is not JSON \(.*line 1'),
    (labelme('{"shapes": ' + '[' * 200_000), 'one.json is nested too deep'),
    (labelme(shapes=[shape(label=5)]), 'one.json, shape 1: its label is 5: give it'),
    (labelme(shapes=[shape(points=[[1]])]), r'points \[\[1\]\] are no polygon: draw it again'),
    (labelme(shapes=[shape(points=None)]), 'points null are no polygon: draw it again'),
    (labelme(shapes=[shape(points=[[1, 1e999]] * 3)]), 'are no polygon: draw it again'),
    (labelme(shapes=[shape(shape_type='mask', mask='x')]), 'and its mask are no mask: draw it'),
    (labelme(shapes=3), 'one.json: "shapes" is no list of dicts'),
    (labelme(shapes=[shape()], imageWidth=320, imageHeight=256),
     'made for 320 x 256 pixels, and .*one.jpg has 160 x 128: use the image'),
    (without('val/one.jpg', write.labelme), 'one.json: there is no image one.jpg'),
    (coco_text('{"images": [], "annotations": [], "categories": [}'), 'a.json is not JSON'),
    (coco_text('{"images": [], "categories": [], "annotations": ' + '[' * 200_000), 'nested too'),
    (coco_text('{"images": 3, "annotations": [], "categories": []}'), '"images" is no list of'),
    (coco_text('{"images": [], "annotations": [], "categories": []}'), 'has no train split'),
    (without('images/one.jpg', ONE_FOLDER), 'val.json, image with the id 1: there is no one.jpg'),
    (coco_twice, r'train.json and .*train_2.json are both of the split train: join them, or'),
    (without_splits, 'a.json and .*b.json name no split: rename them to train.json'),
    (coco('images', file_name=3), 'its "file_name" is 3: name the file'),
    (coco('images', file_name='x' * 5000), r'there is no x+\.\.\. in'),
    (coco('images', file_name='a\0b'), 'there is no a'),
    (coco('images', id=3), 'plain.jpg has the same id: number the images anew'),
    (coco('categories', id=3), "categories 'big car' and 'kite' have the same id 3"),
    (coco('categories', name=None), 'the name of a category is null: name it'),
    (coco('annotations', bbox=[1e7, 0, 5, 5]), 'Objects outside of their image are left out: 21'),
    (coco('annotations', bbox=[-1e7, 0, 2e7, 5]), 'reach far out of their image are left out: 21'),
    (coco('annotations', bbox=[float('nan')] * 4), 'box or outline is not of finite numbers'),
    (coco('annotations', bbox='x', segmentation={}), 'box or outline is not of finite numbers'),
    (coco('annotations', category_id=[{}]), 'without an image or a category in the file'),
]  # fmt: skip


@pytest.mark.parametrize(('prepare', 'message'), HOSTILE)
def test_what_is_wrong_gets_one_message(prepare: Callable, message: str, tmp_path: Path) -> None:
    root = tmp_path / 'data'
    prepare(root)
    before = hashes(tmp_path)
    with pytest.raises(DataError) as error:
        made(root)
    assert re.search(message, str(error.value), re.S), error.value
    assert len(str(error.value)) < 3000
    assert hashes(tmp_path) == before and not (root / OURS).exists()


def test_many_faults_are_a_few_lines(tmp_path: Path) -> None:
    label('7 .5 .5 .1 .1\n' * 1000)(tmp_path / 'data')
    with pytest.raises(DataError) as error:
        made(tmp_path / 'data')
    *lines, last = str(error.value).splitlines()
    assert len(lines) == 5 and last == '995 more faults like these follow.'


def test_files_of_others_are_never_replaced(tmp_path: Path) -> None:
    root = tmp_path / 'data'
    write.yolo(root, make_origin())
    for name in ('train.json', 'report.txt'):
        write.write_json(root / OURS / name, dict(mine=1))
        with pytest.raises(DataError, match=f'{name} would be replaced, and was changed or is of'):
            made(root)
        assert json.loads((root / OURS / name).read_text()) == dict(mine=1)
        assert [path.name for path in (root / OURS).iterdir()] == [name]
        (root / OURS / name).unlink()
    made(root)
    # What was written is replaced when the annotations change, but not where it was changed.
    file = root / OURS / 'train.json'
    (root / 'labels/train/plain.txt').write_text('0 .5 .5 .1 .1 .2 .1')
    with pytest.raises(ConfigError, match='exists already, and would be another one'):
        made(root)  # other objects have another recipe
    config = tmp_path / 'data.py'
    config.unlink()
    made(root)
    written = json.loads(file.read_text())
    assert len(read(root)['train']['plain.jpg']) == 1
    written['images'][0]['license'] = 1
    file.write_text(json.dumps(written))
    (root / 'labels/train/plain.txt').unlink()
    text = config.read_text() + '# mine\n'
    config.unlink()
    with pytest.raises(DataError, match='train.json would be replaced, and was changed'):
        made(root)
    assert json.loads(file.read_text()) == written
    # So is a config that was edited.
    config.write_text(text)
    file.unlink()
    with pytest.raises(ConfigError, match='data.py exists already, and would be another one'):
        made(root)
    assert config.read_text() == text and not file.exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    root = tmp_path / 'data'
    write.yolo(root, make_origin())
    (root / OURS).write_text('a file')
    with pytest.raises(DataError, match='cannot be written .*: free space, or make .* writable'):
        made(root)
    assert (root / OURS).read_text() == 'a file' and not (tmp_path / 'data.py').exists()


def test_from_outlines_of_yolo_to_predictions(run_tool, run_tool_captured, tmp_path: Path) -> None:
    """The data are checked, and the commands that follow can be run as they are printed."""
    root, config = tmp_path / 'my data', tmp_path / 'config.py'
    write.yolo(root, make_origin())
    shown = run_tool_captured('new_config', '--data', root, '--out', config)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert 'Nothing is wrong.' in shown.stdout and 'objects: kite' in shown.stdout
    train, predict = (line.strip() for line in shown.stdout.splitlines()[-2:])
    images = root / 'images' / 'val'
    assert shlex.split(train)[1:] == [str(TOOLS / 'train.py'), str(config)]
    predicted = [str(config), 'work_dirs/config', str(images)]
    assert shlex.split(predict)[1:] == [str(TOOLS / 'predict.py'), *predicted]

    cfg = Config.fromfile(config)
    small, work = tmp_path / 'small.py', tmp_path / 'work'
    small.write_text(made_small(cfg))
    run_tool('train', small, '--work-dir', work)
    (scalars,) = work.glob('*/vis_data/scalars.json')
    losses = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert len(losses) == 4  # so few images are trained one by one
    assert all(math.isfinite(one['loss_mask']) and one['loss_mask'] > 0 for one in losses)
    out = tmp_path / 'out'
    run_tool('predict', small, work, images, '--out-dir', out, '--no-drawn', '--num-workers', 0)
    assert len(json.loads((out / 'images.json').read_text())['images']) == 2


def test_wrong_data_end_with_the_command_that_checks_them(
    run_tool_captured, tmp_path: Path
) -> None:
    origin, config = make_origin(), tmp_path / 'config.py'
    origin['train']['images'][0]['width'] = 200
    write.coco(tmp_path / 'data', origin, '{}.json', '{}')
    shown = run_tool_captured('new_config', '--data', tmp_path / 'data', '--out', config)
    assert shown.returncode == 1 and 'plain.jpg, which is 160 x 128 instead of' in shown.stdout
    message, _, check = shown.stderr.partition(': ')
    assert message == 'Correct the data. This checks them again'
    assert shlex.split(check)[1:] == [str(TOOLS / 'check_data.py'), str(config)]
    assert 'Next:' not in shown.stdout and config.exists()
