"""Each image of a test has a file of its own, also where folders hold images of one name."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmseg.evaluation import IoUMetric
from PIL import Image
from predicting import random_job

from mmhatnet.errors import ConfigError
from mmhatnet.openmmlab.output_files import separate_output_files

TOWNS = ('aachen', 'bonn')


def copied(source: Path, folder: Path, names=('aachen/0001', 'bonn/0001')) -> None:
    """Copies the first files of a folder to other names."""
    for path, name in zip(sorted(p for p in source.rglob('*') if p.is_file()), names):
        target = folder / f'{name}{path.suffix}'
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def files_in(folder: Path) -> list[str]:
    found = (path for path in folder.rglob('*') if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in found)


def run_test(job: str, toy_data: Path, run_tool_captured, tmp_path: Path, text: str, *args):
    config, checkpoint = random_job(job, tmp_path)
    own = tmp_path / 'own.py'
    own.write_text(f'_base_ = {str(config)!r}\n{text}')
    return run_tool_captured(
        *('test', own, checkpoint, '--work-dir', tmp_path / 'work', *args),
        *('--cfg-options', 'test_dataloader.num_workers=0'),
    )


@pytest.mark.parametrize('names', [('aachen/0001', 'bonn/0001'), ('aachen/0001', 'bonn/0002')])
def test_label_maps(names, toy_data, run_tool_captured, tmp_path: Path) -> None:
    ade = toy_data / 'data/toy/ade/ADEChallengeData2016'
    copied(ade / 'images/validation', tmp_path / 'images', names)
    copied(ade / 'annotations/validation', tmp_path / 'masks', names)
    text = (
        f'test_dataloader = dict(dataset=dict(data_root={str(tmp_path)!r}, data_prefix='
        "dict(img_path='images', seg_map_path='masks')))\n"
    )
    out = tmp_path / 'labels'
    done = run_test('semfpn', toy_data, run_tool_captured, tmp_path, text, '--out', out)
    assert not done.returncode, done.stderr
    # Names that differ stay as MMSegmentation has them.
    same = len({Path(name).name for name in names}) == 1
    assert files_in(out) == [f'{name if same else Path(name).name}.png' for name in names]
    for name, path in zip(names, sorted(out.rglob('*.png'))):
        width, height = Image.open(tmp_path / 'images' / f'{name}.jpg').size
        assert np.asarray(Image.open(path)).shape == (height, width)


def test_label_maps_of_names_that_differ_in_their_suffix(
    toy_data, run_tool_captured, tmp_path: Path
) -> None:
    images = tmp_path / 'images'
    copied(toy_data / 'data/toy/coco/val2017', images, ('a', 'b'))
    Image.open(images / 'b.jpg').save(images / 'a.png')
    (tmp_path / 'list.txt').write_text('a.jpg\na.png\n')
    text = (
        '_base_.test_pipeline.pop(2)\ntest_evaluator = dict(format_only=True)\n'
        "test_dataloader = dict(dataset=dict(_delete_=True, type='BaseSegDataset', "
        "img_suffix='', reduce_zero_label=True, "
        f"ann_file='list.txt', data_root={str(tmp_path)!r}, data_prefix=dict(img_path='images'), "
        'metainfo=_base_.test_dataloader.dataset.metainfo, pipeline=_base_.test_pipeline))\n'
    )
    out = tmp_path / 'labels'
    done = run_test('semfpn', toy_data, run_tool_captured, tmp_path, text, '--out', out)
    assert done.returncode == 1 and 'images/a.jpg and ' in done.stderr, done.stderr
    assert 'images/a.png would be one file' in done.stderr and not files_in(out)


def test_drawn_boxes(toy_data, run_tool_captured, tmp_path: Path) -> None:
    coco = toy_data / 'data/toy/coco'
    copied(coco / 'val2017', tmp_path)
    content = json.loads((coco / 'annotations/instances_val2017.json').read_text())
    content['images'] = sorted(content['images'], key=lambda image: image['file_name'])[:2]
    ids = [image['id'] for image in content['images']]
    for image, town in zip(content['images'], TOWNS):
        image['file_name'] = f'{town}/0001.jpg'
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] in ids]
    (tmp_path / 'photos.json').write_text(json.dumps(content))
    text = (
        f'test_dataloader = dict(batch_size=2, dataset=dict(data_root={str(tmp_path)!r}, '
        "ann_file='photos.json', data_prefix=dict(img='')))\n"
        f'test_evaluator = dict(ann_file={str(tmp_path / "photos.json")!r})\n'
    )
    shown = tmp_path / 'shown'
    done = run_test('retinanet', toy_data, run_tool_captured, tmp_path, text, '--show-dir', shown)
    assert not done.returncode, done.stderr
    assert files_in(shown) == ['aachen/0001.jpg', 'bonn/0001.jpg']


def test_drawn_classes(toy_data, run_tool_captured, tmp_path: Path) -> None:
    folders = sorted((toy_data / 'data/toy/imagenet/val').iterdir())
    for folder in folders:
        copied(folder, tmp_path / 'val' / folder.name, ('0001', '0002'))
    text = f'test_dataloader = dict(dataset=dict(data_root={str(tmp_path)!r}, split="val"))\n'
    shown = tmp_path / 'shown'
    done = run_test('imagenet', toy_data, run_tool_captured, tmp_path, text, '--show-dir', shown)
    assert not done.returncode, done.stderr
    numbers = ('0001.JPEG', '0002.JPEG')
    assert files_in(shown) == [f'{f.name}/{name}_0.png' for f in folders for name in numbers]


def test_label_maps_with_more_classes_than_bytes(tmp_path: Path) -> None:
    metric = IoUMetric(output_dir=str(tmp_path), format_only=True)
    loop = SimpleNamespace(evaluator=SimpleNamespace(metrics=[metric]))
    runner = SimpleNamespace(test_loop=loop, hooks=[])
    metric.dataset_meta = dict(classes=range(256), reduce_zero_label=True)  # 0 is no class there
    with pytest.raises(ConfigError, match='8 bits, .* 255 classes and not for 256.*predict'):
        separate_output_files(runner)
    loop.dataloader = SimpleNamespace(dataset=[])
    metric.dataset_meta = dict(classes=range(256), reduce_zero_label=False)
    separate_output_files(runner)
