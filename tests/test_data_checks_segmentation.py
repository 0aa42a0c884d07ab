"""Data checks of a segmentor: images and masks that do not fit the config."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmhatnet.data_checks import Report, check_data

HALVES = np.repeat([[1], [2]], 8, axis=0).repeat(16, axis=1)


@pytest.fixture
def check(tmp_path: Path, monkeypatch) -> Callable[..., Report]:
    """Writes two images with the same mask for each split, and checks them."""
    monkeypatch.chdir(tmp_path)

    def check(
        mask: np.ndarray | Image.Image = HALVES,
        val_mask: np.ndarray | None = None,
        change: Callable[[], None] = lambda: None,
        head: dict | None = None,
        load: dict | None = None,
        steps: list | None = None,
        val: dict | None = None,
        **dataset,
    ) -> Report:
        for split, masks in (('train', mask), ('val', mask if val_mask is None else val_mask)):
            for name in 'ab':
                write(f'img/{split}/{name}.jpg', np.zeros((16, 16, 3)))
                write(f'ann/{split}/{name}.png', masks)
        change()
        cfg = dict(
            default_scope='mmseg',
            model=dict(decode_head=dict(type='FCNHead', num_classes=2) | (head or {})),
            val_evaluator=dict(type='IoUMetric'),
        )
        pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations') | (load or {})]
        for split in ('train', 'val'):
            settings = dict(
                type='BaseSegDataset',
                metainfo=dict(classes=('cat', 'dog')),
                reduce_zero_label=True,
                data_prefix=dict(img_path=f'img/{split}', seg_map_path=f'ann/{split}'),
                pipeline=pipeline + (steps or []),
            )
            cfg[f'{split}_dataloader'] = dict(
                dataset=settings | dataset | (val or {} if split == 'val' else {})
            )
        return check_data(Config(cfg), 'train', 'val')

    return check


def write(path: str, pixels: np.ndarray | Image.Image) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(pixels, np.ndarray):
        pixels = Image.fromarray(pixels.astype(np.uint16 if pixels.max() > 255 else np.uint8))
    pixels.save(path)


def palette() -> Image.Image:
    image = Image.fromarray(HALVES.astype(np.uint8), 'P')
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    return image


SOUND = dict(
    numbers=dict(),
    unlabeled=dict(mask=HALVES - 1 + np.eye(16, dtype=int)),
    palette=dict(mask=palette()),
    ignored=dict(mask=np.where(np.eye(16), 255, HALVES)),
    from_zero=dict(mask=HALVES - 1, reduce_zero_label=False),
    sixteen_bit=dict(mask=np.where(np.eye(16), 65535, HALVES)),
    sigmoid=dict(
        mask=HALVES - 1,
        reduce_zero_label=False,
        head=dict(out_channels=1, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)),
    ),
    part_of_ade=dict(
        mask=HALVES + 2,
        type='ADE20KDataset',
        metainfo=dict(classes=('floor', 'sky')),
        head=dict(num_classes=2),
    ),
)


@pytest.mark.parametrize('case', SOUND)
def test_sound_masks_pass(check, case):
    report = check(**SOUND[case])
    assert (report.errors, [n for n in report.notes if 'no mask has' not in n]) == ([], [])


MANY = dict(
    metainfo=dict(classes=[f'class {i}' for i in range(300)]),
    head=dict(num_classes=300),
    reduce_zero_label=False,
)
BACKGROUND = dict(metainfo=dict(classes=('background', 'dog')))
WRONG = dict(
    colors=(dict(mask=np.dstack([HALVES * 9, HALVES, HALVES])), '(16, 16, 3)'),
    equal_channels=(dict(mask=np.dstack([HALVES] * 3)), 'channels are equal'),
    beyond=(dict(mask=HALVES * 3), 'the value 3, 6 in masks (ann/train/a.png)'),
    beyond_in_val=(dict(val_mask=HALVES * 3), 'the value 3, 6 in masks (ann/val/a.png)'),
    from_one=(dict(reduce_zero_label=False), 'set reduce_zero_label=True if 0 is no class'),
    wraps=(dict(mask=HALVES + 256), 'the value 257, 258'),
    bytes_only=(dict(mask=HALVES + 256, **MANY), 'read as 1, because MMSegmentation'),
    other_ignored=(dict(mask=HALVES * 100, head=dict(ignore_index=100)), 'ignored as 100 is'),
    zero_dropped=(dict(mask=HALVES - 1, **BACKGROUND), 'reduce_zero_label=True drops 0'),
    shifted=(
        dict(
            mask=np.arange(256).reshape(16, 16) % 3,
            metainfo=dict(classes=('bg', 'cat', 'dog')),
            head=dict(num_classes=3),
        ),
        "drops 0, which seems to be the first class, 'bg'",
    ),
    zero_or_255=(
        dict(mask=(HALVES - 1) * 255, reduce_zero_label=False, **BACKGROUND),
        "only 'background' has pixels (values found: 0, 255",
    ),
    nothing_left=(dict(mask=(HALVES - 1) * 255), 'no class has pixels'),
    two_settings=(dict(load=dict(reduce_zero_label=False)), 'False in LoadAnnotations'),
    size=(dict(mask=HALVES[:, :12]), 'ann/train/a.png 12x16, img/train/a.jpg 16x16'),
    half_in_val=(dict(val_mask=HALVES[4:12, :8]), 'ann/val/a.png 8x8'),
    one_class=(
        dict(metainfo=dict(classes=('cat',)), head=dict(num_classes=1)),
        'model.decode_head.num_classes=1: with one class',
    ),
    one_channel=(dict(head=dict(out_channels=1)), 'use_sigmoid=True'),
    small_head=(
        dict(metainfo=dict(classes=('a', 'b', 'c'))),
        'num_classes is 2, but the data have 3',
    ),
    weights=(
        dict(head=dict(loss_decode=dict(type='CrossEntropyLoss', class_weight=[1.0] * 150))),
        'model.decode_head.loss_decode.class_weight has 150 numbers',
    ),
    prefix=(dict(data_prefix=dict(img='img/train')), 'there is no data_prefix.img_path'),
    text=(dict(metainfo=dict(classes='cat')), "is the text 'cat'"),
    suffix=(dict(img_suffix='.png'), "with .jpg; set img_suffix='.jpg'"),
    no_folder=(dict(data_root='lost'), 'there is no lost/img/train;'),
    circle=(
        dict(change=lambda: Path('img/train/all').symlink_to('../..')),
        'img/train/all is a link to',
    ),
    no_list=(dict(ann_file='lost.txt'), 'there is no lost.txt;'),
    other_mask=(dict(seg_map_suffix='_mask.png'), "a.png is there: set seg_map_suffix='.png'"),
)


@pytest.mark.parametrize('case', WRONG)
def test_wrong_masks_and_settings_are_refused(check, case):
    arguments, message = WRONG[case]
    errors = check(**arguments).errors
    assert any(message in error for error in errors), errors


def test_missing_empty_and_damaged_files_are_named(check):
    def damage():
        Path('ann/train/a.png').unlink()
        Path('img/train/b.jpg').write_bytes(b'')
        Path('img/val/a.jpg').write_bytes(Path('img/val/a.jpg').read_bytes()[:200])
        Path('ann/val/b.png').write_text('version https://git-lfs.github.com/spec/v1')

    errors = '\n'.join(check(change=damage).errors)
    for name in ('ann/train/a.png', 'img/train/b.jpg', 'img/val/a.jpg', 'ann/val/b.png is a p'):
        assert name in errors


@pytest.mark.parametrize(
    'classes, message',
    [(('wall', 'cat'), 'names cat, which ADE20KDataset does not'), ('cat', "is the text 'cat'")],
)
def test_classes_that_a_dataset_does_not_know_are_refused(check, classes, message):
    errors = check(type='ADE20KDataset', metainfo=dict(classes=classes)).errors
    assert len(errors) == 2 and all(message in error for error in errors)


def test_a_list_of_images_is_followed(check):
    def change():
        Path('list.txt').write_text('b\nc.jpg\n')
        Path('ann/train/a.png').unlink()

    errors = check(change=change, ann_file='list.txt').errors
    assert all('img/' in error and 'c.jpg.jpg' in error for error in errors)
    assert len(errors) == 2


@pytest.mark.parametrize('other', [dict(reduce_zero_label=False), dict(classes=('dog', 'cat'))])
def test_labels_that_differ_from_training_are_refused(check, other):
    other = dict(metainfo=other) if 'classes' in other else other
    errors = check(val=other).errors
    assert any('in train_dataloader' in error for error in errors), errors


def test_images_that_the_pipeline_may_skip_are_not_refused(check):
    load = dict(type='LoadImageFromFile', ignore_empty=True, imdecode_backend='pillow')
    skip = [load, dict(type='LoadAnnotations')]
    assert check(change=lambda: Path('img/val/a.jpg').write_text('?'), pipeline=skip).errors == []


def test_a_large_sample_does_not_hide_a_rare_class(check, monkeypatch):
    monkeypatch.setattr('mmhatnet.data_checks.images.SAMPLE', 1)
    rare = dict(mask=np.ones((16, 16)), val_mask=HALVES)
    assert check(**rare, change=lambda: write('ann/train/b.png', HALVES)).errors == []
    assert "only 'cat' has pixels" in check(**rare).errors[0]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(change=lambda: write('img/train/c.png', HALVES)), '1 files in img/train are left'),
        (
            dict(change=lambda: write('ann/train/c.png', HALVES)),
            '1 files in ann/train are left out',
        ),
        (dict(**MANY), 'can have the classes class 255, class 256, '),
        (dict(head=dict(num_classes=150)), 'num_classes is 150, but the data have 2'),
        (
            dict(metainfo=dict(classes=('a', 'b', 'c')), head=dict(num_classes=3)),
            'no mask has pixels of c',
        ),
        (dict(head=dict(type='MyHead', num_classes=1)), 'model.decode_head.num_classes=1'),
        (dict(mask=HALVES * 3, steps=[dict(type='MyLabels')]), 'the value 3, 6 in masks'),
        (
            dict(mask=HALVES[::2, ::2], val_mask=HALVES, steps=[dict(type='Resize', scale=8)]),
            '2 of 2 masks read have another size',
        ),
        (dict(backend_args=dict(backend='petrel')), 'BaseSegDataset is not checked'),
    ],
)
def test_what_may_be_intended_is_not_refused(check, arguments, message):
    report = check(**arguments)
    assert report.errors == []
    assert any(message in note for note in report.notes), report.notes


@pytest.mark.parametrize('value, name', [(0, 'ignored'), (7, 'value 7')])
def test_classes_are_counted(check, value, name):
    shares = check(mask=np.where(np.eye(16), value, HALVES)).counts['Pixels of the masks read']
    shown = {name: split['train'] for name, split in shares.items()}
    assert shown == {'cat': '46.9 %', 'dog': '46.9 %', name: '6.2 %'}


def images(*names: str) -> Callable[[], None]:
    return lambda: [write(f'img/train/{name}', np.zeros((16, 16, 3))) for name in names]


def test_a_suffix_that_leaves_out_most_images_is_refused(check):
    (error,) = check(change=images('c.png', 'd.JPG', 'e.jpeg')).errors
    assert "img_suffix='.jpg' leaves out 3 images in img/train (" in error and 'keeps 2' in error


@pytest.mark.parametrize(
    'names', [('a_1.png', 'a_2.png', 'b_1.png'), ('a.png', 'b.png', 'a.tif', 'c.png'), ('c.png',)]
)
def test_images_beside_those_that_are_used_are_not_refused(check, names):
    report = check(change=images(*names))
    assert report.errors == []
    assert any('files in img/train are left out' in note for note in report.notes)
