"""tools/predict.py writes the same predictions as the model itself, and names bad input."""

import json
import pickle
import re
import shutil
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from experiments import as_text
from mmengine.config import Config
from mmengine.logging import MMLogger
from PIL import ExifTags, Image
from predicting import random_job, write_film

SMALL_SCORES = ['model.test_cfg.rcnn.score_thr=0', 'model.test_cfg.rcnn.max_per_img=5']


def written(out_dir: Path, name: str = 'predictions') -> list | dict:
    return json.loads((out_dir / f'{name}.json').read_text())


def visualized(out_dir: Path) -> list[str]:
    return sorted(str(p.relative_to(out_dir / 'drawn')) for p in out_dir.glob('drawn/**/*.jpg'))


def test_detections_are_those_of_the_model_and_load_as_coco(
    run_tool, toy_data: Path, tmp_path: Path, monkeypatch
) -> None:
    from mmdet.apis import inference_detector, init_detector
    from pycocotools.coco import COCO

    job, folder = random_job('maskrcnn', tmp_path), toy_data / 'data/toy/coco/val2017'
    args = [*job, folder, '--device', 'cpu', '--score-thr', 0, '--cfg-options', *SMALL_SCORES]
    with monkeypatch.context() as patch:
        said: list = []
        patch.setattr(MMLogger, 'callHandlers', lambda _, record: said.append(record.msg))
        run_tool('predict', *args[:3], '--out-dir', tmp_path / 'out', '--batch-size', 2, *args[3:])
    assert not [text for text in said if 'Failed to search registry' in text]

    overrides = dict(option.split('=') for option in SMALL_SCORES)
    model = init_detector(
        *map(str, job), device='cpu', cfg_options={k: int(v) for k, v in overrides.items()}
    )
    coco = COCO(str(tmp_path / 'out' / 'images.json'))
    results = coco.loadRes(str(tmp_path / 'out' / 'predictions.json'))
    assert [c['name'] for c in coco.cats.values()] == ['car', 'umbrella', 'sports ball', 'kite']
    assert len(coco.imgs) == 4
    for number, image in coco.imgs.items():
        expected = inference_detector(model, image['file_name']).pred_instances.numpy()
        found = results.imgToAnns[number]
        assert len(found) == len(expected) == 5
        np.testing.assert_allclose([f['score'] for f in found], expected.scores, rtol=1e-4)
        assert [f['category_id'] - 1 for f in found] == expected.labels.tolist()
        boxes = np.array([f['bbox'] for f in found])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, expected.bboxes, atol=1e-2)
        masks = np.array([results.annToMask(f) for f in found])
        assert (masks == expected.masks).mean() > 0.999
        height_and_width = mmcv.imread(image['file_name']).shape[:2]
        assert height_and_width == masks.shape[1:] == (image['height'], image['width'])
    assert visualized(tmp_path / 'out') == sorted(f'{p.stem}.jpg' for p in folder.iterdir())

    annotations = toy_data / 'data/toy/coco/annotations/instances_val2017.json'
    shuffled = json.loads(annotations.read_text())
    for image in shuffled['images']:
        image['id'] += 7
    for category in shuffled['categories']:
        category['id'] += 100
    (tmp_path / 'ids.json').write_text(json.dumps(shuffled))
    ids = ['--ann-file', tmp_path / 'ids.json', '--out-dir', tmp_path / 'ids', *args[3:]]
    run_tool('predict', *args[:3], *ids)
    by_name = {image['file_name']: image['id'] for image in shuffled['images']}
    names = {image['id']: Path(image['file_name']).name for image in coco.imgs.values()}
    categories = {c['name']: c['id'] for c in shuffled['categories']}
    expected, found = written(tmp_path / 'out'), written(tmp_path / 'ids')
    assert [f['image_id'] for f in found] == [by_name[names[e['image_id']]] for e in expected]
    assert {f['category_id'] for f in found} <= set(categories.values())


def test_score_threshold_applies_to_results(run_tool, toy_data, tmp_path: Path) -> None:
    job, folder = random_job('maskrcnn', tmp_path), toy_data / 'data/toy/coco/val2017'

    def scores(threshold: float) -> list[float]:
        args = ['--score-thr', threshold, '--out-dir', tmp_path, '--cfg-options', *SMALL_SCORES]
        run_tool('predict', *job, next(folder.iterdir()), *args)
        return [result['score'] for result in written(tmp_path)]

    every = scores(0)
    assert len(set(every)) == 5 and scores(every[2]) == every[:2] and scores(1) == []


def test_label_maps_are_those_of_the_model(run_tool, toy_data: Path, tmp_path: Path) -> None:
    from mmseg.apis import inference_model, init_model

    job = random_job('semfpn', tmp_path)
    folder = toy_data / 'data/toy/ade/ADEChallengeData2016/images/training'
    pattern, out_dir = folder / '*.jpg', tmp_path / 'out'
    run_tool('predict', *job, pattern, '--out-dir', out_dir, '--batch-size', 4, '--device', 'cpu')
    model, results = init_model(*map(str, job), device='cpu'), written(out_dir)
    assert [result['image'] for result in results] == sorted(map(str, folder.glob('*.jpg')))
    assert len({mmcv.imread(result['image']).shape for result in results}) > 1
    for result in results:
        labels = mmcv.imread(result['label_map'], 'unchanged')
        expected = inference_model(model, result['image']).pred_sem_seg.data[0].numpy()
        assert labels.shape == expected.shape and (labels == expected).mean() > 0.999
        classes = ('building', 'sky', 'tree', 'road', 'grass', 'car')
        counts = {name: int((labels == i).sum()) for i, name in enumerate(classes)}
        assert result['pixels'] == {name: count for name, count in counts.items() if count}
    assert len(visualized(out_dir)) == len(results)


def test_classes_are_those_of_the_model(run_tool, toy_data: Path, tmp_path: Path) -> None:
    from mmpretrain import ImageClassificationInferencer

    job, folder = random_job('imagenet', tmp_path), toy_data / 'data/toy/imagenet/val'
    paths = sorted(str(path) for path in folder.glob('*/*'))[::3]
    run_tool('predict', *job, *paths, '--out-dir', tmp_path / 'out', '--batch-size', 2)
    direct = ImageClassificationInferencer(*map(str, job), device='cpu')
    classes = ('beach wagon', 'soccer ball', 'umbrella')
    for path, result in zip(paths, written(tmp_path / 'out'), strict=True):
        (expected,) = direct(path)
        assert (result['image'], result['label']) == (path, expected['pred_label'])
        assert result['name'] == classes[result['label']]
        assert result['score'] == pytest.approx(expected['pred_score'], rel=1e-4)
    assert visualized(tmp_path / 'out') == sorted(f'{Path(path).stem}.jpg' for path in paths)


def test_names_of_the_checkpoint_come_first(run_tool, toy_data, tmp_path: Path) -> None:
    config, checkpoint = random_job('imagenet', tmp_path)
    weights = torch.load(checkpoint)
    names = ('one', 'two', 'three')
    weights['meta'] = dict(dataset_meta=dict(classes=names))
    torch.save(weights, checkpoint)
    image = next(toy_data.glob('data/toy/imagenet/val/*/*'))
    run_tool('predict', config, checkpoint, image, '--out-dir', tmp_path / 'out')
    (result,) = written(tmp_path / 'out')
    assert result['name'] == names[result['label']]


def test_images_of_the_same_name_are_kept_apart(run_tool, toy_data, tmp_path: Path) -> None:
    job = random_job('imagenet', tmp_path)
    image = mmcv.imread(str(next(toy_data.glob('data/toy/imagenet/val/*/*'))))
    for name in ('a/x.jpg', 'a/x.png', 'b/x.jpg'):
        mmcv.imwrite(image, str(tmp_path / 'images' / name))
    run_tool('predict', *job, tmp_path / 'images', '--out-dir', tmp_path / 'out')
    assert visualized(tmp_path / 'out') == ['a/x.jpg.jpg', 'a/x.png.jpg', 'b/x.jpg.jpg']


@pytest.mark.parametrize('job', ['maskrcnn', 'semfpn', 'imagenet'])
def test_frames_of_a_video_are_predicted_as_images_are(
    job: str, run_tool, toy_data: Path, tmp_path: Path
) -> None:
    source = toy_data / 'data/toy/coco/val2017'
    film, frames = tmp_path / 'film.avi', tmp_path / 'frames'
    write_film(film, sorted(source.iterdir())[:3])
    mmcv.VideoReader(str(film)).cvt2frames(str(frames), filename_tmpl='{:06d}.png')

    args = [*random_job(job, tmp_path), '--device', 'cpu', '--batch-size', 2, '--score-thr', 0]
    options = ['--cfg-options', *SMALL_SCORES] if job == 'maskrcnn' else []
    for name, path in dict(of_film=film, of_frames=frames).items():
        run_tool('predict', *args[:2], path, '--out-dir', tmp_path / name, *args[2:], *options)
    found, expected = (
        json.dumps(written(tmp_path / name)).replace('.png"', '"')
        for name in ('of_film', 'of_frames')
    )
    for there, here in ((str(frames), str(film)), ('of_frames/labels', 'of_film/labels/film')):
        expected = expected.replace(there, here)
    assert found == expected and len(written(tmp_path / 'of_film')) >= 3
    labels = [mmcv.imread(str(p), 'unchanged') for p in sorted(tmp_path.glob('*/labels/**/*.png'))]
    assert len(labels) == (6 if job == 'semfpn' else 0)
    assert all((a == b).all() for a, b in zip(labels[:3], labels[3:]))

    visualized_film = mmcv.VideoReader(str(tmp_path / 'of_film' / 'drawn' / 'film.mp4'))
    assert (visualized_film.fps, len(visualized_film)) == (5, 3)
    for number, frame in enumerate(visualized_film):
        expected = mmcv.imread(str(tmp_path / 'of_frames' / 'drawn' / f'{number:06d}.jpg'))
        assert frame.shape == expected.shape and abs(frame.astype(float) - expected).mean() < 8
    assert visualized(tmp_path / 'of_film') == []


NAMES = ('good', 'empty', 'file')


@pytest.fixture(scope='module')
def classifier(tmp_path_factory) -> tuple[Path, Path]:
    return random_job('imagenet', tmp_path_factory.mktemp('classifier'))


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['nowhere.jpg'], r'There is no image at nowhere\.jpg'),
        (['good', 'nothing/*.jpg'], r'There is no image at nothing/\*\.jpg'),
        (['empty'], 'There is no image in the folder empty'),
        (['good', '--batch-size', '0'], '--batch-size: 0 must be at least 1'),
        (['good', '--device', 'tpu9'], '--device tpu9 cannot be used'),
        (['good', '--num-workers', '-1'], '--num-workers: -1 must be at least 0'),
        (['good', '--max-drawn', '0'], '--max-drawn: 0 must be at least 1'),
        (['good', '--ann-file', 'file'], '--ann-file: only the results of detectors have ids'),
        (['good', '--out-dir', 'file'], '--out-dir file cannot be written to'),
        (
            ['good', '--cfg-options', 'model.backbone.arch.depths=2,1,1,1'],
            'stage 0 has 1 blocks instead of 2',
        ),
        (['good', '--cfg-options', 'default_scope=mmpose'], "default_scope is 'mmpose'"),
    ],
)
def test_bad_input_is_named_before_the_work_starts(
    args: list[str], message: str, classifier, run_tool_captured, toy_data: Path, tmp_path: Path
) -> None:
    for folder in ('good', 'empty'):
        (tmp_path / folder).mkdir()
    shutil.copy(next(toy_data.glob('data/toy/imagenet/val/*/*')), tmp_path / 'good')
    (tmp_path / 'file').touch()
    # Tools run in the folder of the synthetic data.
    args = [str(tmp_path / a) if a in NAMES else a for a in args]
    result = run_tool_captured('predict', *classifier, *args)
    stderr = result.stderr.replace(f'{tmp_path}/', '')
    assert result.returncode and re.search(message, stderr), stderr
    assert not (toy_data / 'work_dirs' / 'predictions').exists()


def test_a_checkpoint_that_is_code_is_not_executed(
    classifier, run_tool_captured, toy_data: Path, tmp_path: Path
) -> None:
    class Touch:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / 'executed',)

    (tmp_path / 'code.pth').write_bytes(pickle.dumps({'state_dict': Touch()}))
    result = run_tool_captured('predict', classifier[0], tmp_path / 'code.pth', toy_data)
    assert result.returncode and 'code.pth' in result.stderr
    assert not (tmp_path / 'executed').exists()


def test_each_image_is_decoded_once_and_frames_are_not_encoded(
    run_tool, toy_data: Path, tmp_path: Path, monkeypatch
) -> None:
    calls = []

    def counted(name: str):
        function = getattr(cv2, name)
        return lambda *args: calls.append(name) or function(*args)

    for name in ('imdecode', 'imencode'):
        monkeypatch.setattr(cv2, name, counted(name))
    folder, film = toy_data / 'data/toy/coco/val2017', tmp_path / 'film.avi'
    write_film(film, sorted(folder.iterdir())[:2])
    calls.clear()
    job = [*random_job('imagenet', tmp_path), '--out-dir', tmp_path / 'out', '--num-workers', 0]
    run_tool('predict', *job[:2], folder, film, *job[2:], '--batch-size', 3)
    assert len(written(tmp_path / 'out')) == 6
    assert [calls.count(name) for name in ('imdecode', 'imencode')] == [4, 4]
    assert (tmp_path / 'out' / 'drawn' / 'film.mp4').is_file()


def test_no_drawn_leaves_visualizations_out(run_tool, toy_data: Path, tmp_path: Path) -> None:
    job, film = random_job('semfpn', tmp_path), tmp_path / 'film.avi'
    write_film(film, sorted((toy_data / 'data/toy/coco/val2017').iterdir())[:2])
    run_tool('predict', *job, film, '--no-drawn', '--out-dir', tmp_path / 'out')
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'labels', 'predictions.json'}


def test_batches_hold_images_of_one_size(run_tool, toy_data: Path, tmp_path: Path) -> None:
    """Some images are rotated after they are read, and Pillow does not know the headers of all."""
    image = mmcv.imread(str(next(toy_data.glob('data/toy/coco/val2017/*.jpg'))))
    folder = tmp_path / 'images'
    folder.mkdir()
    rotated = Image.Exif()
    rotated[ExifTags.Base.Orientation] = 6
    for number in range(6):
        pixels = Image.fromarray(mmcv.imresize(image, (160, 96))[..., ::-1] // (number + 1))
        pixels.save(folder / f'{number}.jpg', exif=rotated if number % 2 else Image.Exif())
    for number, size in enumerate([(64, 96), (64, 128)]):
        pixels = mmcv.imresize(image, size).astype(np.float32) / 255
        cv2.imwrite(str(folder / f'{number}.hdr'), pixels)
    job = random_job('maskrcnn', tmp_path)
    options = ['--score-thr', 0, '--cfg-options', *SMALL_SCORES]
    sizes = []
    for batch_size in 1, 4:
        out = tmp_path / str(batch_size)
        batch = ['--out-dir', out, '--batch-size', batch_size]
        run_tool('predict', *job, folder / '*.*', *batch, *options)
        sizes.append([(one['height'], one['width']) for one in written(out, 'images')['images']])
    expected = [(96, 64), (96, 160), (128, 64), (160, 96), *[(96, 160), (160, 96)] * 2]
    assert sizes == [expected] * 2
    for one, other in zip(written(tmp_path / '1'), written(tmp_path / '4'), strict=True):
        assert one['image_id'] == other['image_id']
        assert one['score'] == pytest.approx(other['score'], rel=1e-4)
        assert one['bbox'] == pytest.approx(other['bbox'], abs=1e-2)


def test_a_video_that_states_other_frames_is_said(
    run_tool_captured, toy_data: Path, tmp_path: Path
) -> None:
    job, film = random_job('imagenet', tmp_path), tmp_path / 'film.avi'
    write_film(film, 4 * sorted((toy_data / 'data/toy/coco/val2017').iterdir()))
    film.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    stated = len(mmcv.VideoReader(str(film)))
    result = run_tool_captured('predict', *job, film, '--out-dir', tmp_path / 'out')
    found = len(written(tmp_path / 'out'))
    assert result.returncode == 0 and 1 < found < 16 and found != stated
    assert f'film.avi states {stated} frames, of which {found} can be read.' in result.stdout


def test_label_maps_of_many_classes_have_16_bits(run_tool, toy_data: Path, tmp_path: Path) -> None:
    config, checkpoint = random_job('semfpn', tmp_path)
    cfg = Config.fromfile(config)
    cfg.model.decode_head.num_classes = 300
    cfg.test_dataloader.dataset.type = 'BaseSegDataset'
    cfg.test_dataloader.dataset.metainfo = dict(
        classes=[f'class {i}' for i in range(300)], palette=[[i % 256, 0, 0] for i in range(300)]
    )
    config.write_text(as_text(cfg.to_dict()))
    weights = torch.load(checkpoint)
    head = 'decode_head.conv_seg'
    channels = weights['state_dict'][f'{head}.weight'].shape[1]
    weights['state_dict'][f'{head}.weight'] = torch.zeros(300, channels, 1, 1)
    weights['state_dict'][f'{head}.bias'] = (torch.arange(300) == 260).float()
    torch.save(weights, checkpoint)
    image = next(toy_data.glob('data/toy/coco/val2017/*.jpg'))
    run_tool('predict', config, checkpoint, image, '--out-dir', tmp_path / 'out')
    (result,) = written(tmp_path / 'out')
    labels = mmcv.imread(result['label_map'], 'unchanged')
    assert labels.dtype == np.uint16 and (labels == 260).all()
    assert result['pixels'] == {'class 260': labels.size}


@pytest.fixture
def towns(toy_data: Path, tmp_path: Path) -> tuple[Path, dict]:
    """Returns a folder of images whose names repeat, and their annotations."""
    content = json.loads(
        (toy_data / 'data/toy/coco/annotations/instances_val2017.json').read_text()
    )
    for image, town in zip(content['images'], ('aachen', 'bonn')):
        source = toy_data / 'data/toy/coco/val2017' / image['file_name']
        (tmp_path / 'photos' / town).mkdir(parents=True)
        shutil.copy(source, tmp_path / 'photos' / town / '0001.jpg')
        image['file_name'] = f'{town}/0001.jpg'
    content['images'] = content['images'][:2]
    return tmp_path / 'photos', content


def test_annotations_are_found_by_the_ends_of_paths(run_tool, towns, tmp_path: Path) -> None:
    (folder, content), job = towns, random_job('maskrcnn', tmp_path)
    (tmp_path / 'ids.json').write_text(json.dumps(content))
    options = ['--score-thr', 0, '--out-dir', tmp_path / 'out', '--cfg-options', *SMALL_SCORES]
    run_tool('predict', *job, folder, '--ann-file', tmp_path / 'ids.json', *options)
    ids = [image['id'] for image in content['images']]
    assert [result['image_id'] for result in written(tmp_path / 'out')] == [
        *[ids[0]] * 5,
        *[ids[1]] * 5,
    ]
    assert written(tmp_path / 'out', 'images')['images'] == content['images']


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['x/0001.jpg', 'y/0001.jpg'], r'has several images that .*/aachen/0001.jpg may be'),
        (['0001.jpg'], r'has one image, 0001.jpg, for .*/aachen/0001.jpg and .*/bonn/0001.jpg'),
        (['aachen/0001.jpg', '2.jpg'], r'has one image, aachen/0001.jpg, for '),
        (['2.jpg'], r'has no image .*/aachen/0001.jpg \(2 are missing\)'),
    ],
)
def test_annotations_that_do_not_name_each_image_are_refused(
    names: list[str], message: str, run_tool_captured, towns, tmp_path: Path
) -> None:
    (folder, content), job = towns, random_job('maskrcnn', tmp_path)
    content['images'] = [dict(id=number, file_name=name) for number, name in enumerate(names)]
    (tmp_path / 'ids.json').write_text(json.dumps(content))
    options = ['--ann-file', tmp_path / 'ids.json', '--out-dir', tmp_path / 'out']
    result = run_tool_captured('predict', *job, folder, *options)
    assert result.returncode and re.search(message, result.stderr)
    assert not (tmp_path / 'out').exists()


def test_home_folder_and_folders_that_link_to_themselves(
    classifier, run_tool, toy_data: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    folder = tmp_path / 'photos'
    (folder / 'a').mkdir(parents=True)
    shutil.copy(next(toy_data.glob('data/toy/imagenet/val/*/*')), folder / 'a' / '1.jpg')
    shutil.copy(folder / 'a' / '1.jpg', folder / '._1.jpg')  # as macOS leaves them
    (folder / 'a' / 'again').symlink_to(folder)
    (folder / 'b').symlink_to(folder / 'a')
    for name in ('~/photos', '~/photos/**/*.jpg'):
        run_tool('predict', *classifier, name, '--out-dir=~/out', '--no-drawn')
        (result,) = written(tmp_path / 'out')
        assert result['image'] == str(folder / 'a' / '1.jpg')
