"""The synthetic data: reproducible, consistently annotated, read by the real dataset classes."""

import runpy
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from mmhatnet import synthetic_data as toy
from mmhatnet.errors import DataError

ROOT = Path(__file__).parents[1]

# In each COCO split, the second image has no objects and the third has a crowd.
COUNTS = {'coco': [8, 5], 'ade': [3, 2], 'imagenet': [2, 1]}
FEWER = {'coco': [3, 0], 'ade': [1, 2], 'imagenet': [0, 1]}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def made(folder: Path, seed: int, counts: dict) -> dict[str, bytes]:
    """Writes the data to a new folder and returns the images."""
    assert toy.make_toy_data(folder, seed, counts)
    return {name: data for name, data in contents(folder).items() if not name.endswith('.json')}


# Conditions on the mean red, green and blue of the pixels within a label.
COLORS = {
    'car': lambda r, g, b: r > 1.3 * g and r > 1.3 * b,
    'umbrella': lambda r, g, b: r > g > 1.3 * b,
    'sports ball': lambda r, g, b: g > 1.1 * r and g > 1.1 * b,
    'kite': lambda r, g, b: b > 1.2 * g > 1.2 * r,
    'building': lambda r, g, b: r > g > b,
    'sky': lambda r, g, b: b > g > r and r + g + b > 400,
    'tree': lambda r, g, b: g > r and g > b and r + g + b < 300,
    'road': lambda r, g, b: max(r, g, b) < min(r, g, b) + 25,
    'grass': lambda r, g, b: g > r > b,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('toy') / 'data' / 'toy'
    made(folder, 0, COUNTS)
    return folder


def test_seed_and_number_determine_an_image(folder: Path, tmp_path: Path) -> None:
    made(tmp_path / 'again', 0, COUNTS)
    assert contents(tmp_path / 'again') == contents(folder)
    fewer, other = made(tmp_path / 'fewer', 0, FEWER), made(tmp_path / 'other', 1, FEWER)
    assert len(fewer) == 3 + 2 * (1 + 2) + 3
    assert fewer.items() <= contents(folder).items()
    assert not set(other.values()) & set(contents(folder).values())


@pytest.fixture(scope='module', params=['train2017', 'val2017'])
def coco(request, folder: Path) -> COCO:
    coco = COCO(folder / f'coco/annotations/instances_{request.param}.json')
    coco.images = folder / 'coco' / request.param
    return coco


def test_coco_annotations_cover_what_is_visible(coco: COCO) -> None:
    (crowd,) = coco.loadAnns(coco.getAnnIds(iscrowd=True))
    assert crowd['area'] > 100
    assert [image_id for image_id in coco.imgs if not coco.getAnnIds(image_id)] == [
        min(coco.imgs) + 1
    ]
    touching = 0
    for image_id, record in coco.imgs.items():
        image = np.asarray(Image.open(coco.images / record['file_name']))
        assert image.shape == (record['height'], record['width'], 3)
        things = coco.loadAnns(coco.getAnnIds(image_id))
        for thing in things:
            mask, name = coco.annToMask(thing), coco.cats[thing['category_id']]['name']
            assert mask.sum() == thing['area'] > 0
            assert mask_utils.toBbox(coco.annToRLE(thing)).tolist() == thing['bbox']
            mean = image[mask > 0].mean(0)
            assert COLORS[name](*mean), (record, name, mean)
        for first, second in combinations(things, 2):
            boxes = np.array([first['bbox'], second['bbox']])
            touching += mask_utils.iou(boxes[:1], boxes[1:], [0])[0, 0] > 0
            # Outlines that touch may share the pixels along their common edge.
            shared = coco.annToMask(first) & coco.annToMask(second)
            assert shared.sum() <= 0.25 * boxes[:, 2:].sum()
    assert touching


def test_ade_labels_cover_what_they_name() -> None:
    seen = set()
    for index in range(8):
        image, labels = map(np.asarray, toy.draw_ade(np.random.default_rng(index), index))
        seen.update(np.unique(labels).tolist())
        for class_id, name in toy.ADE.items():
            if np.count_nonzero(labels == class_id) >= 300:
                mean = image[labels == class_id].mean(0)
                assert COLORS[name](*mean), (index, name, mean)
    assert seen == {0, *toy.ADE}


@pytest.fixture
def read(folder: Path, monkeypatch):
    """Builds the validation dataset of a config."""
    monkeypatch.chdir(folder.parents[1])

    def build(job: str):
        cfg = Config.fromfile(ROOT / 'configs' / 'toy' / f'{job}_hatnet_toy.py')
        init_default_scope(cfg.default_scope)
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        known = {name.split(',')[0] for name in type(dataset).METAINFO['classes']}
        assert set(dataset.metainfo['classes']) <= known, 'classes differ from the real data'
        return dataset

    return build


def test_mmdet_reads_it(read) -> None:
    samples = [sample['data_samples'] for sample in read('maskrcnn')]
    assert [len(sample.ignored_instances) for sample in samples] == [0, 0, 1, 0, 0]
    assert [len(sample.gt_instances) > 0 for sample in samples] == [True, False, True, True, True]


def test_mmseg_reads_it(read) -> None:
    dataset = read('semfpn')
    assert len(dataset) == COUNTS['ade'][1]
    assert dataset.metainfo['classes'] == tuple(toy.ADE.values())
    ids = np.array([*toy.ADE])
    for sample in (sample['data_samples'] for sample in dataset):
        stored, labels = (
            np.asarray(Image.open(sample.seg_map_path)),
            sample.gt_sem_seg.data[0].numpy(),
        )
        assert (stored == 0).mean() < 0.3 and len(np.unique(stored)) > 3
        np.testing.assert_array_equal(ids[labels[stored > 0]], stored[stored > 0])
        assert (labels[stored == 0] == 255).all()


def test_mmpretrain_reads_it(read) -> None:
    dataset = read('imagenet')
    assert len(dataset) == COUNTS['imagenet'][1] * len(toy.IMAGENET)
    for sample in (sample['data_samples'] for sample in dataset):
        assert Path(sample.img_path).parent.name == [*toy.IMAGENET][sample.gt_label.item()]


def test_other_settings_replace_the_data(tmp_path: Path, monkeypatch) -> None:
    def interrupt(*args):
        raise KeyboardInterrupt

    made(tmp_path / 'toy', 0, COUNTS)
    earlier_class = tmp_path / 'toy' / 'imagenet' / 'train' / 'n02165456'
    earlier_class.mkdir()
    (earlier_class / 'n02165456_train_0001.JPEG').write_bytes(b'of an earlier version')
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(toy, 'draw_ade', interrupt)
        toy.make_toy_data(tmp_path / 'toy', 1, FEWER)
    made(tmp_path / 'toy', 1, FEWER)
    made(tmp_path / 'new', 1, FEWER)
    assert contents(tmp_path / 'toy') == contents(tmp_path / 'new')
    assert not earlier_class.exists()  # MMPretrain would take it for a class.


@pytest.mark.parametrize('name', ['coco/mine.jpg', 'toy.json'])
def test_foreign_folder_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / 'toy' / name).parent.mkdir(parents=True)
    (tmp_path / 'toy' / name).write_text('mine')
    with pytest.raises(
        DataError, match=f"toy' holds {name}, which is not synthetic data; name another"
    ):
        toy.make_toy_data(tmp_path / 'toy', 0, FEWER)
    assert contents(tmp_path) == {f'toy/{name}': b'mine'}


@pytest.mark.parametrize('name', ['notes.txt', 'coco/val2017/mine.jpg', 'imagenet/mine/1.JPEG'])
def test_own_files_among_the_data_are_kept(tmp_path: Path, name: str) -> None:
    made(tmp_path / 'toy', 0, FEWER)
    (tmp_path / 'toy' / name).parent.mkdir(exist_ok=True)
    (tmp_path / 'toy' / name).write_text('mine')
    before = contents(tmp_path)
    with pytest.raises(DataError, match=f'holds {name}, which is not synthetic data; name another'):
        toy.make_toy_data(tmp_path / 'toy', 1, FEWER)
    assert contents(tmp_path) == before


@pytest.mark.parametrize('damage', [Path.unlink, lambda path: path.write_bytes(b'cut')])
def test_damaged_data_is_replaced(tmp_path: Path, damage) -> None:
    made(tmp_path / 'toy', 0, FEWER)
    before = contents(tmp_path)
    damage(tmp_path / 'toy/coco/train2017/000000000002.jpg')
    made(tmp_path / 'toy', 0, FEWER)
    assert contents(tmp_path) == before


@pytest.fixture
def command(tmp_path: Path, monkeypatch) -> Callable[[str], None]:
    """Runs tools/make_toy_data.py in a new folder."""

    def run(words: str) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['make_toy_data.py', *words.split()])
        runpy.run_path(str(ROOT / 'tools' / 'make_toy_data.py'), run_name='__main__')

    return run


def test_second_command_writes_nothing(command, tmp_path: Path, capsys) -> None:
    command('--seed 3 --coco 1 0 --ade 0 1 --imagenet 0 0')
    made(tmp_path / 'called', 3, {'coco': [1, 0], 'ade': [0, 1], 'imagenet': [0, 0]})
    assert contents(tmp_path / 'data/toy') == contents(tmp_path / 'called')
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    command('called --seed 3 --coco 1 0 --ade 0 1 --imagenet 0 0')
    assert capsys.readouterr().out.endswith("The synthetic data was already in 'called'.\n")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before


@pytest.mark.parametrize('option', ['--seed -1', '--ade 1 -1'])
def test_negative_numbers_are_refused(command, tmp_path: Path, capsys, option: str) -> None:
    with pytest.raises(SystemExit):
        command(f'toy {option}')
    assert ': -1 must be at least 0' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
