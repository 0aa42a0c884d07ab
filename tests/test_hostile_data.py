"""Hostile data end in one error message: no traceback, no crash, no memory that runs out."""

import json
import os
import resource
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmcv.transforms import Resize
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as pycocotools_mask
from test_data_checks_detection import Project

from mmhatnet.data_checks.coco_masks import fault_of_mask
from mmhatnet.data_checks.images import fault_of_shape, why_unreadable
from mmhatnet.errors import DataError, ImageError
from mmhatnet.inference import ImageLoader
from mmhatnet.prediction.merging import ids_of
from mmhatnet.prediction.outputs import output_names

NAN, INF, HUGE = float('nan'), float('inf'), 10**400
GIB = 2**30
RING = [5, 5, 25, 5, 25, 20, 5, 20]
# 100,000 points inside of the image, whose outline is 300 million pixels long.
ZIGZAG = [[value for i in range(100_000) for value in (3000 * (i % 2), 5)]]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Refuses more than 2 GiB beside what the process has already."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * os.sysconf('SC_PAGE_SIZE')
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * GIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def rle(*counts: int) -> dict:
    return dict(size=[30, 40], counts=list(counts))


def text_rle(text: str, size: tuple = (30, 40)) -> dict:
    return dict(size=list(size), counts=text)


WHOLE = pycocotools_mask.encode(np.ones((30, 40), np.uint8, order='F'))['counts'].decode()
FAR = 'not finite or far outside of its image'
SIZE = 'size, [height, width], or counts are not those of its image'
RUNS = 'counts are no runs of pixels'
MASKS = dict(
    nan=([[NAN, *RING[1:]]], f'{FAR}, as NaN'),
    nan_second=([RING, [5, 5, 25, NAN, 25, 20]], f'{FAR}, as NaN'),
    infinity=([[INF, *RING[1:]]], f'{FAR}, as Infinity'),
    both_infinities=([[INF, -INF, *RING[2:]]], f'{FAR}, as Infinity'),
    far=([[1e8, *RING[1:]]], f'{FAR}, as 100000000.0'),
    far_left=([[-1e8, *RING[1:]]], f'{FAR}, as -100000000.0'),
    somewhat_far=([[441, *RING[1:]]], f'{FAR}, as 441'),
    huge=([[HUGE, *RING[1:]]], f'{FAR}, as 1000'),
    huge_and_float=([[HUGE, 0.5, *RING[2:]]], f'{FAR}, as 1000'),
    huge_float=([[1e308, 1e308, *RING[2:]]], f'{FAR}, as 1e+308'),
    text=([['5', *RING[1:]]], 'a polygon that is not a list of numbers, as ["5"'),
    null=([[None, *RING[1:]]], 'a polygon that is not a list of numbers'),
    points=([[[5, 5], [25, 5], [25, 20]]], 'a polygon that is not a list of numbers'),
    dicts=([dict(x=5, y=5)], 'neither a list of polygons nor RLE'),
    number=(5, 'neither a list of polygons nor RLE, as 5'),
    letters=('abc', 'neither a list of polygons nor RLE'),
    odd=([RING[:7]], 'no polygon of three points'),
    two_points=([RING[:4]], 'no polygon of three points'),
    empty=([[]], 'no polygon of three points'),
    box_first=([RING[:4], RING], 'a first polygon of fewer than three points, as [5, 5, 25, 5]'),
    empty_first=([[], RING], 'a first polygon of fewer than three points'),
    short=(rle(0, 12), f'{SIZE}, as size [30, 40] and 12 pixels for 40 x 30'),
    long=(rle(0, 12_000), SIZE),
    beyond_32_bits=(rle(0, 2**32 + 1200), SIZE),
    negative=(rle(1205, -5), RUNS),
    nan_run=(rle(NAN, 1200), RUNS),
    half_run=(rle(0.5, 1199.5), RUNS),
    huge_run=(rle(HUGE), RUNS),
    text_run=(rle('1200'), RUNS),
    nested_runs=(rle([1200], 5), RUNS),
    no_runs=(rle(), SIZE),
    other_size=(dict(size=[40, 30], counts=[1200]), SIZE),
    enormous_size=(dict(size=[10**9, 10**9], counts=[10**18]), SIZE),
    infinite_size=(dict(size=[INF, 40], counts=[1200]), SIZE),
    three_sizes=(dict(size=[30, 40, 1], counts=[1200]), SIZE),
    text_size=(dict(size='30x40', counts=[1200]), 'neither a list of polygons nor RLE'),
    open_text=(text_rle(WHOLE + 'P'), RUNS),
    twice=(text_rle(WHOLE + WHOLE), 'mask whose'),
    other_letters=(text_rle('~~\x7f'), RUNS),
    unicode=(text_rle('é€\ud800'), RUNS),
    nul=(text_rle('P\0P'), RUNS),
    long_number=(text_rle('o' * 100 + '0'), RUNS),
    enormous_text=(text_rle(WHOLE, (10**5, 10**5)), SIZE),
    no_text=(text_rle(''), RUNS),
)  # fmt: skip


@pytest.mark.parametrize('case', MASKS)
def test_masks_are_refused_with_annotation_and_value(project, case):
    mask, message = MASKS[case]
    project.files['val']['annotations'][1]['segmentation'] = mask
    error = project.error('val')
    assert message in error and 'val.json' in error and '(annotation ids 2)' in error
    assert len(error) < 600


@pytest.mark.parametrize('case', ['nan', 'far', 'huge', 'short', 'open_text', 'enormous_text'])
def test_masks_are_refused_for_training_as_well(project, case):
    mask, message = MASKS[case]
    project.files['train']['annotations'][1]['segmentation'] = mask
    assert message in project.error('train') and 'the model cannot decode' in project.error('train')
    # Nothing reads the masks of a detector of boxes.
    project.train.pipeline[1].with_mask = False
    assert not project.check('train').errors


def test_masks_with_an_endless_outline_are_refused():
    fault, value = fault_of_mask(ZIGZAG, 3000, 3000)
    assert 'too long to decode' in fault and value == '300,000,000 pixels'


def test_masks_that_take_much_memory_are_noted(project):
    project.files['train']['images'][1].update(width=30_000, height=20_000)
    same = project.files['train']['annotations'] * 10
    project.files['train']['annotations'] = [{**a, 'id': i} for i, a in enumerate(same, 1)]
    project.train.indices = [0]  # the image itself has another size
    notes = project.check('train').notes
    assert any('10 objects of 2.jpg, 30000 x 20000 pixels, take 6 GiB' in n for n in notes), notes


def test_masks_of_the_file_of_the_evaluator_are_checked(project):
    project.files['other'] = json.loads(json.dumps(project.files['val']))
    project.files['other']['annotations'][1]['segmentation'] = [[NAN, *RING[1:]]]
    project.cfg.val_evaluator.ann_file = str(project.folder / 'other.json')
    error = project.error('val')
    assert 'other.json' in error and FAR in error and '(annotation ids 2)' in error


@pytest.mark.parametrize(
    'mask',
    [
        [[-30, 5, 60, 5, 60, 40, -30, 40]],
        [RING, RING[:4]],
        rle(0, 1200),
        rle(600.0, 600.0),
        text_rle(WHOLE),
    ],
)
def test_masks_slightly_outside_and_all_kinds_of_rle_pass(project, mask):
    project.files['train']['annotations'][1]['segmentation'] = mask
    project.files['val']['annotations'][1]['segmentation'] = mask
    report = project.check()
    assert not report.errors and not report.notes


def test_compressed_masks_are_decompressed_as_pycocotools_does():
    random = np.random.default_rng(0)
    for _ in range(50):
        height, width = map(int, random.integers(1, 90, 2))
        pixels = random.random((height, width)) < random.random() ** 4
        mask = pycocotools_mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
        counts = mask['counts'].decode()
        assert fault_of_mask(dict(size=[height, width], counts=counts), height, width) is None
        assert fault_of_mask(dict(size=[height, width], counts=counts[:-1]), height, width)


FIELDS = [
    ('annotations', 'bbox', [NAN, 5, 20, 15], 'four finite numbers, as [NaN, 5, 20, 15] of id 2'),
    ('annotations', 'bbox', [5, 5, INF, 15], 'four finite numbers, as [5, 5, Infinity, 15] of id'),
    ('annotations', 'bbox', [HUGE, 5, 20, 15], 'is not four finite numbers, as [1000'),
    ('annotations', 'bbox', [True, 5, 20, 15], 'is not four finite numbers'),
    ('annotations', 'bbox', dict(x=5), 'is not four finite numbers'),
    ('annotations', 'bbox', [1e8, 5, 20, 15], 'box far outside of their image, as [100000000.0'),
    ('annotations', 'bbox', [5, 5, 20, 1e300], '(annotation ids 2) have a box far outside'),
    ('annotations', 'area', NAN, 'is not a finite number, as NaN of id 2'),
    ('annotations', 'area', -INF, 'is not a finite number, as -Infinity of id 2'),
    ('annotations', 'area', [300], 'is not a finite number, as [300] of id 2'),
    ('annotations', 'id', NAN, 'a text, as NaN of id NaN'),
    ('annotations', 'id', 1, 'ids of "annotations" occur more than once (1)'),
    ('annotations', 'id', 1.0, 'ids of "annotations" occur more than once (1)'),
    ('categories', 'id', 'two', 'ids of "categories" are of several types, as 1 and "two"'),
    ('images', 'id', None, 'ids of "images" are of several types, as 3 and null'),
    ('annotations', 'id', HUGE, 'is not a number or a text, as 1000'),
    ('annotations', 'image_id', {}, '"image_id" of 1 annotations is not a number or a text'),
    ('annotations', 'category_id', INF, 'is not a number or a text, as Infinity'),
    ('images', 'id', [1], '"id" of 1 images is not a number or a text'),
    ('images', 'file_name', None, '"file_name" of 1 images is not a text, as null'),
    ('images', 'file_name', 'a\0b\ud800.jpg', 'a\\x00b\\ud800.jpg'),
    ('images', 'file_name', 'x' * 100_000, '1 of 3 images are missing or empty'),
    ('images', 'file_name', '/dev/zero', '1 of 3 images are missing or empty'),
    ('images', 'width', NAN, '"width" of 1 images is not a finite number, as NaN of id 2'),
    ('images', 'width', HUGE, '"width" of 1 images is not a finite number, as 1000'),
    ('images', 'height', 1e9, '40 x 1000000000.0, is more than OpenCV reads'),
    ('images', 'height', 2**20 + 1, '40 x 1048577, is more than OpenCV reads'),
    ('images', 'height', True, '"height" of 1 images is not a finite number, as true'),
    ('categories', 'id', NAN, '"id" of 1 categories is not a number or a text'),
    ('categories', 'name', ['dog'], '"name" of 1 categories is not a text, as ["dog"]'),
]  # fmt: skip


@pytest.mark.parametrize('entries, field, value, message', FIELDS)
def test_fields_are_refused_with_id_and_value(project, entries, field, value, message):
    project.files['train'][entries][1][field] = value
    error = project.error('train')
    assert message in error and 'train.json' in error and len(error) < 9000
    error.encode()


@pytest.mark.parametrize('box', [[-30, -20, 100, 80], [-400, 5, 430, 15]])
def test_boxes_of_objects_that_reach_out_of_their_image_pass(project, box):
    project.files['train']['annotations'][1]['bbox'] = box
    assert 'reach out of their image' in project.note('train')


@pytest.mark.parametrize(
    'iscrowd', [HUGE, NAN, -1, '0', None], ids=['huge', 'nan', 'negative', 'text', 'null']
)
def test_crowds_are_marked_by_one(project, iscrowd):
    project.files['val']['annotations'][1]['iscrowd'] = iscrowd
    assert '(ids 2) lack "iscrowd"' in project.error('val')


FILES = dict(
    deep='[' * 200_000,
    deep_in_a_field='{"info": ' + '{"a":' * 200_000 + '1' + '}' * 200_001,
    digits='{"images": [' + '9' * 5000 + ']}',
    cut='{"images": [{"id": 1',
    binary='\0\1\2',
    null='null',
    nulls='{"images": null, "annotations": null, "categories": null}',
    numbers='{"images": [1], "annotations": [2], "categories": [3]}',
)


@pytest.mark.parametrize('case', FILES)
def test_files_that_are_no_annotations_are_refused(project, case):
    project.files['train'] = FILES[case]
    error = project.error('train')
    assert 'train.json is not' in error or 'train.json is nested too deep' in error
    assert len(error) < 1000


@pytest.mark.parametrize('case', [*FILES, 'text'])
def test_predictions_refuse_files_that_are_no_annotations(tmp_path, case):
    path = tmp_path / 'ann.json'
    path.write_text(dict(FILES, text='"images"')[case])
    with pytest.raises(DataError) as refused:
        ids_of('mmdet', str(path), ['cat'])
    assert 'ann.json cannot be read as COCO' in str(refused.value)


def test_a_file_that_is_no_text_is_refused(project):
    project.check('val')
    (project.folder / 'train.json').write_bytes(b'\xff\xfe\x80')
    project.files = {}
    assert 'train.json is not JSON' in project.error('train')


def png(path: Path, width: int, height: int) -> Path:
    """Writes a black PNG, row by row."""

    def chunk(name: bytes, content: bytes) -> bytes:
        length, check = (struct.pack('>I', n) for n in (len(content), zlib.crc32(name + content)))
        return length + name + content + check

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0))
    packer, row = zlib.compressobj(1), bytes(1 + width)
    # Decoders look at the size before the pixels.
    rows = b''.join(packer.compress(row) for _ in range(min(height, 100))) + packer.flush()
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', rows) + chunk(b'IEND', b''))
    return path


@pytest.mark.parametrize(
    'width, height, error, message',
    [
        (36_000, 30_000, None, 'has 1,080,000,000 pixels, more than the 1,073,741,824 that OpenCV'),
        (36_000, 30_000, None, 'set the environment variable OPENCV_IO_MAX_IMAGE_PIXELS to more'),
        (2_000_000, 1, None, 'has a side of 2,000,000 pixels, more than the 1,048,576 that OpenCV'),
        (30_000, 30_000, Image.DecompressionBombError(), 'more than the 178,956,970 that Pillow'),
        (30_000, 30_000, MemoryError(), 'for which the memory is too small'),
        (30_000, 30_000, None, 'has 900,000,000 pixels, and is damaged, cut off or too large'),
        (3000, 1, None, 'is PNG of 3,000 x 1 pixels, which its loader cannot read'),
    ],
)
def test_large_images_are_told_from_damaged_ones(tmp_path, width, height, error, message):
    assert message in why_unreadable(str(png(tmp_path / 'a.png', width, height)), error)


def test_the_limit_of_opencv_can_be_raised(tmp_path, monkeypatch):
    path = str(png(tmp_path / 'a.png', 36_000, 30_000))
    monkeypatch.setenv('OPENCV_IO_MAX_IMAGE_PIXELS', '2000MB')
    assert 'more than' not in why_unreadable(path)
    monkeypatch.setenv('OPENCV_IO_MAX_IMAGE_PIXELS', '1000')
    assert 'more than the 1,000 that OpenCV' in why_unreadable(path)


def test_files_that_are_no_files_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / 'pipe.png')
    (tmp_path / 'zero.png').symlink_to('/dev/zero')
    (tmp_path / 'lost.png').symlink_to('nowhere')
    for name in ('pipe', 'zero', 'lost'):
        assert why_unreadable(str(tmp_path / f'{name}.png')) == 'is not a file, or a link to none'


def test_large_images_are_refused_by_the_check(project):
    png(project.folder / 'train' / '2.jpg', 36_000, 30_000)
    error = project.check('train').errors[0]
    assert '1 of 3 images that were read cannot be' in error and '2.jpg has 1,080,000,000' in error


RESIZE = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
EDGE = dict(type='ResizeEdge', scale=256)
RANDOM = dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True)
CHOICE = dict(type='RandomChoiceResize', scales=[(480, 1333), (800, 1333)], keep_ratio=True)


@pytest.mark.parametrize(
    'step, width, height, becomes',
    [
        (RESIZE, 3000, 1, '1,333 x 0'),
        (RESIZE, 1, 3000, '0 x 1,333'),
        (RESIZE, 3000, 2, None),
        (RESIZE, 640, 480, None),
        (RANDOM, 3000, 1, '1,024 x 0'),
        (RANDOM, 2000, 1, None),
        (CHOICE, 3000, 1, '1,333 x 0'),
        (dict(type='RandomChoice', transforms=[[RESIZE], [CHOICE]]), 3000, 1, '1,333 x 0'),
        (dict(EDGE, edge='long'), 3000, 1, '256 x 0'),
        (EDGE, 3000, 1, None),
        (EDGE, 65_500, 1, '16,768,000 x 256'),
        (dict(type='Resize', scale=(1333, 800)), 3000, 1, None),
        (dict(type='Pad', pad_to_square=True), 3000, 1, None),
    ],
)
def test_images_too_narrow_to_resize_are_found(step, width, height, becomes):
    fault = fault_of_shape([dict(type='LoadImageFromFile'), step], height, width)
    assert (becomes is None) == (fault is None)
    assert becomes is None or f'resizes {width:,} x {height:,} pixels to {becomes}' in fault


def test_narrow_images_are_refused_by_the_check(project):
    Image.new('RGB', (3000, 1)).save(project.folder / 'val' / '2.jpg')
    project.files['val']['images'][1].update(width=3000, height=1)
    assert not [error for error in project.check('val').errors if 'narrow' in error]
    project.val.pipeline.insert(1, dict(type='Resize', scale=(1333, 800), keep_ratio=True))
    assert '2.jpg, which Resize resizes 3,000 x 1 pixels to 1,333 x 0' in project.error('val')


def test_narrow_images_are_named_in_predictions(tmp_path):
    Image.new('RGB', (3000, 1)).save(path := str(tmp_path / 'a.png'))
    pipeline = [dict(type='InferencerLoader'), RESIZE]
    inferencer = SimpleNamespace(
        pipeline=SimpleNamespace(transforms=[Resize(scale=(1333, 800), keep_ratio=True)]),
        cfg=Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline)))),
    )
    with pytest.raises(ImageError) as refused:
        ImageLoader(inferencer)(path)
    message = 'is too narrow: Resize resizes 3,000 x 1 pixels to 1,333 x 0'
    assert str(refused.value) == f'{path} {message}'


def test_results_with_names_of_more_than_255_bytes_are_refused():
    name = 'n' * 250
    assert output_names([f'a/{name}.png']) == [name]
    for paths in ([f'a/{name}.png', f'b/{name}.png'], ['a/' + 'é' * 126 + '.png']):
        with pytest.raises(DataError, match='the file of its result'):
            output_names(paths)
