"""Data checks of a classifier: folders that do not fit the config."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmhatnet.data_checks import Report, check_data

NAMED = dict(metainfo=dict(classes=('cat', 'dog', 'owl')))


def write(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(path)


@pytest.fixture
def check(tmp_path: Path, monkeypatch) -> Callable[..., Report]:
    """Writes an image to each of three folders of each split, and checks them."""
    monkeypatch.chdir(tmp_path)

    def check(
        change: Callable[[], None] = lambda: None,
        model: dict | None = None,
        preprocessor: int = 3,
        topk: tuple[int, ...] = (1,),
        **dataset,
    ) -> Report:
        for split in ('train', 'val'):
            for folder in ('cat', 'dog', 'owl'):
                write(f'{split}/{folder}/0.jpg')
        change()
        head = dict(type='LinearClsHead', num_classes=3)
        cfg = dict(
            default_scope='mmpretrain',
            model=dict(head=head | (model or {}).pop('head', {})) | (model or {}),
            data_preprocessor=dict(num_classes=preprocessor),
            val_evaluator=[dict(type='Accuracy', topk=topk)],
        )
        for split in ('train', 'val'):
            settings = dict(
                type='CustomDataset',
                data_prefix=split,
                pipeline=[dict(type='LoadImageFromFile')],
            )
            cfg[f'{split}_dataloader'] = dict(dataset=settings | dataset)
        return check_data(Config(cfg), 'train', 'val')

    return check


def write_list(text: str) -> Callable[[], None]:
    return lambda: [Path(split, 'list.txt').write_text(text) for split in ('train', 'val')]


def imagenet() -> None:
    for split in ('train', 'val'):
        for name, folder in dict(cat='n01', dog='n02', owl='n03').items():
            Path(split, name).rename(Path(split, folder))


MIXUP = dict(train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]))
LISTED = 'cat/0.jpg 0\ndog/0.jpg 1\nowl/0.jpg 2\n'


@pytest.mark.parametrize(
    'arguments',
    [
        dict(),
        NAMED,
        dict(NAMED, change=imagenet),
        dict(preprocessor=1000),
        dict(model=dict(MIXUP)),
        dict(
            NAMED, change=write_list(LISTED), ann_file='list.txt', data_root='train', data_prefix=''
        ),
    ],
)
def test_sound_folders_pass(check, arguments):
    report = check(**arguments)
    assert (report.errors, report.notes) == ([], [])


WRONG = dict(
    checkpoints=(dict(change=lambda: Path('train/.ipynb_checkpoints').mkdir()), '.ipynb_checkp'),
    macosx=(dict(NAMED, change=lambda: Path('train/__MACOSX').mkdir()), '__MACOSX in train'),
    another=(dict(NAMED, change=lambda: write('train/ant/0.jpg')), 'not in metainfo.classes ant;'),
    own_classes=(dict(type='ImageNet'), "1000 classes in metainfo (which are ImageNet's own)"),
    val_lacks=(dict(change=lambda: shutil.rmtree('val/dog')), 'val differ from those of training'),
    named_val_lacks=(dict(NAMED, change=lambda: shutil.rmtree('val/dog')), 'without a folder dog,'),
    order=(dict(metainfo=dict(classes=('owl', 'cat', 'dog'))), 'owl is cat, cat is dog'),
    order_of_cases=(dict(metainfo=dict(classes=('Owl', 'Cat', 'Dog'))), 'Owl is cat'),
    text=(dict(metainfo=dict(classes='cat')), "is the text 'cat'"),
    small_head=(
        dict(model=dict(head=dict(num_classes=2))),
        'is 2, but the data have 3 classes',
    ),
    mixup=(dict(model=dict(MIXUP), preprocessor=1000), 'data_preprocessor.num_classes=1000, but'),
    loss=(
        dict(model=dict(head=dict(loss=dict(type='LabelSmoothLoss', num_classes=1000)))),
        'model.head.loss.num_classes=1000, but',
    ),
    best_of_five=(dict(topk=(1, 5)), 'topk=(1, 5) asks for more than the 3 classes'),
    no_folder=(dict(data_root='lost'), 'there is no lost/train;'),
    flat=(dict(data_prefix='train/cat'), 'there is no folder in train/cat'),
    suffixes=(dict(extensions=('.webp',)), 'files end with .jpg, and extensions=(.webp)'),
    damaged=(
        dict(change=lambda: Path('train/dog/0.jpg').write_text('<html>')),
        'train/dog/0.jpg is not an image',
    ),
    circle=(
        dict(change=lambda: Path('train/dog/all').symlink_to('..')),
        'train/dog/all is a link to',
    ),
    empty=(dict(change=lambda: Path('val/owl/0.jpg').write_text('')), 'val/owl/0.jpg'),
)
LISTS = dict(
    no_list=(None, 'there is no train/list.txt;'),
    named_label=('cat/0.jpg cat\n', "line 1 'cat/0.jpg cat'"),
    beyond=(LISTED + 'owl/0.jpg 3', "line 4 'owl/0.jpg 3'"),
    lost=(LISTED + 'owl/1.jpg 2', 'owl/1.jpg'),
)


@pytest.mark.parametrize('case', WRONG)
def test_wrong_folders_and_settings_are_refused(check, case):
    arguments, message = WRONG[case]
    errors = check(**arguments).errors
    assert any(message in error for error in errors), errors


@pytest.mark.parametrize('case', LISTS)
def test_wrong_lists_are_refused(check, case):
    text, message = LISTS[case]
    change = write_list(text) if text else lambda: None
    errors = check(
        **NAMED, change=change, ann_file='list.txt', data_root='train', data_prefix=''
    ).errors
    assert any(message in error for error in errors), errors


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(change=lambda: write('train/cat/1.gif')), '1 files in train are left out'),
        (dict(change=lambda: Path('train/cat/0.jpg').unlink()), 'without images in train: cat'),
        (dict(model=dict(head=dict(num_classes=5))), 'num_classes is 5, but the data have 3'),
        (dict(metainfo=dict(classes=('cat', 'puppy', 'owl'))), 'dog is puppy'),
        (dict(with_label=False), 'CustomDataset is not checked'),
    ],
)
def test_what_may_be_intended_is_not_refused(check, arguments, message):
    report = check(**arguments)
    assert report.errors == []
    assert any(message in note for note in report.notes), report.notes


def test_folders_that_link_elsewhere_pass(check):
    def change():
        write('elsewhere/1.jpg')
        Path('train/dog/more').symlink_to('../../elsewhere')
        Path('train/cat/same').symlink_to('../dog')

    report = check(**NAMED, change=change)
    assert (report.errors, report.notes) == ([], [])
    assert [row['train'] for row in report.counts['Images'].values()] == [3, 2, 1]


def test_images_are_counted(check):
    counts = check(**NAMED).counts
    names = ('cat', 'dog', 'owl')
    assert counts['Images'] == {name: dict(train=1, val=1) for name in names}
    assert counts['Data']['images of a class'] == dict(train='1', val='1')
    assert counts['Data']['largest image'] == dict(train='16 x 12', val='16 x 12')


def test_training_folders_that_number_the_classes_otherwise_are_refused(check):
    load = dict(type='LoadImageFromFile')
    both = [dict(type='CustomDataset', data_prefix=f, pipeline=[load]) for f in ('train', 'more')]
    joined = dict(type='ConcatDataset', datasets=both)

    def more(*names: str) -> None:
        shutil.rmtree('more', ignore_errors=True)
        for name in names:
            write(f'more/{name}/0.jpg')

    assert check(change=lambda: more('cat', 'dog', 'owl'), **joined).errors == []
    error = check(change=lambda: more('cat', 'owl'), **joined).errors[0]
    assert error.startswith('train_dataloader') and 'dog' in error
    assert 'the folders of more differ from those of training' in error
