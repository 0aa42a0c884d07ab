"""Files below folders, and reading a sample of them."""

import time
from pathlib import Path
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
from PIL import Image

from mmhatnet.data_checks import Report
from mmhatnet.data_checks.images import files_below, link_to_itself, read_sample, shown_as


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ('data/b/2.jpg', 'data/a/1.jpg', 'data/0.jpg', 'other/deep/3.jpg'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


OWN = ['data/0.jpg', 'data/a/1.jpg', 'data/b/2.jpg']


@pytest.mark.parametrize(
    'links, found',
    [
        ({}, OWN),
        ({'data/a/again': '..'}, OWN),
        ({'data/a/b': '../b', 'data/b/a': '../a'}, OWN),
        ({'data/_first': 'b'}, OWN),
        ({'data/more': '../other/deep'}, [*OWN, 'data/more/3.jpg']),
        ({'data/all': '..'}, ['data/0.jpg', *('data/all/other/deep/3.jpg',), *OWN[1:]]),
        ({'data/lost.jpg': 'nowhere'}, [*OWN, 'data/lost.jpg']),
    ],
)
def test_reads_each_folder_once(folder, links, found):
    for link, target in links.items():
        Path(link).symlink_to(target)
    assert sorted(files_below('data')) == list(files_below('data')) == sorted(found)
    assert [f'./{path}' for path in sorted(found)] == list(files_below('./data'))


@pytest.mark.parametrize(
    'links, found',
    [
        ({}, None),
        ({'data/again': 'a', 'data/b/a': '../a', 'data/more': '../other'}, None),
        ({'data/a/again': '..'}, 'data/a/again'),
        ({'data/a/here': '.'}, 'data/a/here'),
        ({'data/a/b': '../b', 'data/b/a': '../a'}, 'data/a/b/a'),
        ({'data/all': '..'}, 'data/all'),
    ],
)
def test_finds_a_link_to_a_folder_around_it(folder, links, found):
    for link, target in links.items():
        Path(link).symlink_to(target)
    # The order of folders on the disk decides which one of two is found first.
    assert link_to_itself('data') in (found, found and 'data/b/a/b')
    assert link_to_itself('data/') == link_to_itself('data')


def test_a_deep_tree_of_links_ends_soon(tmp_path):
    for depth in range(40):
        (tmp_path / f'{depth}').mkdir()
        (tmp_path / f'{depth}' / 'x.jpg').touch()
        for name in 'ab' if depth else '':
            (tmp_path / f'{depth}' / name).symlink_to(f'../{depth - 1}')
    assert len(list(files_below(str(tmp_path)))) == 40
    assert link_to_itself(str(tmp_path)) is None


def test_large_images_are_read_one_after_another(tmp_path, monkeypatch):
    monkeypatch.setattr('mmhatnet.data_checks.images.LARGE', 100)
    monkeypatch.setattr('os.cpu_count', lambda: 8)
    paths = [str(tmp_path / f'{number}.png') for number in range(8)]
    for path in paths:
        Image.new('L', (20, 20)).save(path)
    now, most = [], []

    def read(path: str) -> int:
        now.append(path)
        most.append(len(now))
        time.sleep(0.01)
        now.remove(path)
        return 1

    job = SimpleNamespace(every=True, split='train', report=Report())
    assert len(read_sample(job, paths, 'images', read)) == 8 and max(most) == 1
    monkeypatch.setattr('mmhatnet.data_checks.images.LARGE', 1000)
    read_sample(job, paths, 'images', read)
    assert max(most) > 1


@pytest.mark.parametrize('form', ['JPEG', 'MPO', 'PNG', 'WEBP', 'TIFF', 'BMP'])
@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('flag', ['color', 'color_ignore_orientation', 'unchanged'])
def test_knows_how_images_are_loaded(form, backend, flag, tmp_path):
    pixels = Image.new('RGB', (32, 16))
    pixels.paste((255, 255, 255), (0, 0, 16, 8))
    both = dict(save_all=True, append_images=[pixels]) if form == 'MPO' else {}
    for orientation in range(1, 9):
        path, exif = tmp_path / f'{orientation}', Image.Exif()
        exif[0x0112] = orientation
        pixels.save(path, form, exif=exif, **both)
        loaded = mmcv.imfrombytes(path.read_bytes(), flag, backend=backend)[..., 0] > 128
        with Image.open(path) as image:
            size, turned = shown_as(image, flag, backend)
        assert size == loaded.shape[::-1]
        stored = np.zeros((16, 32), bool)
        stored[:8, :16] = True
        assert (turned == 1) is np.array_equal(loaded, stored) or orientation == 1
        assert turned in (1, orientation)
