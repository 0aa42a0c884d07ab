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
from predicting import random_job

SMALL_SCORES = ['model.test_cfg.rcnn.score_thr=0', 'model.test_cfg.rcnn.max_per_img=5']


def written(out_dir: Path, name: str = 'predictions') -> list | dict:
    return json.loads((out_dir / f'{name}.json').read_text())


def visualized(out_dir: Path) -> list[str]:
    return sorted(str(p.relative_to(out_dir / 'drawn')) for p in out_dir.glob('drawn/**/*.jpg'))


def test_detections_are_those_of_the_model_and_load_as_coco(
    run_tool, toy_data: Path, tmp_path: Path
) -> None:
    from mmdet.apis import inference_detector, init_detector
    from pycocotools.coco import COCO

    job, folder = random_job('maskrcnn', tmp_path), toy_data / 'data/toy/coco/val2017'
    args = [*job, folder, '--device', 'cpu', '--score-thr', 0, '--cfg-options', *SMALL_SCORES]
    run_tool('predict', *args[:3], '--out-dir', tmp_path / 'out', '--batch-size', 2, *args[3:])

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
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*'MJPG'), 5, (160, 128))
    for path in sorted(source.iterdir())[:3]:
        writer.write(mmcv.imresize(mmcv.imread(str(path)), (160, 128)))
    writer.release()
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


NAMES = ('good', 'bad', 'empty', 'film.mp4')


@pytest.fixture(scope='module')
def classifier(tmp_path_factory) -> tuple[Path, Path]:
    return random_job('imagenet', tmp_path_factory.mktemp('classifier'))


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['nowhere.jpg'], r'There is no image at nowhere\.jpg'),
        (['good', 'nothing/*.jpg'], r'There is no image at nothing/\*\.jpg'),
        (['empty'], 'There is no image in the folder empty'),
        (
            ['good', 'bad'],
            r'2 of 3 images cannot be read, bad/a\.jpg is .*, bad/b\.png is .*: repair them',
        ),
        (['film.mp4'], r'film\.mp4 cannot be read as a video'),
        (['good', '--batch-size', '0'], '--batch-size 0 must be at least 1'),
        (['good', '--device', 'tpu9'], '--device tpu9 cannot be used'),
        (['good', '--out-dir', 'film.mp4'], r'--out-dir film\.mp4 cannot be written to'),
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
    for folder in ('good', 'bad', 'empty'):
        (tmp_path / folder).mkdir()
    shutil.copy(next(toy_data.glob('data/toy/imagenet/val/*/*')), tmp_path / 'good')
    (tmp_path / 'bad' / 'a.jpg').touch()
    (tmp_path / 'bad' / 'b.png').write_text('no image')
    (tmp_path / 'film.mp4').touch()
    # Tools run in the folder of the synthetic data.
    args = [str(tmp_path / a) if a in NAMES else a for a in args]
    result = run_tool_captured('predict', *classifier, *args)
    stderr = result.stderr.replace(f'{tmp_path}/', '')
    assert result.returncode and re.search(message, stderr), stderr
    assert not (toy_data / 'work_dirs' / 'predictions').exists()


def test_a_checkpoint_that_is_code_is_not_executed(
    classifier, run_tool_captured, tmp_path: Path
) -> None:
    class Touch:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / 'executed',)

    (tmp_path / 'code.pth').write_bytes(pickle.dumps({'state_dict': Touch()}))
    result = run_tool_captured('predict', classifier[0], tmp_path / 'code.pth', tmp_path)
    assert result.returncode and 'code.pth' in result.stderr
    assert not (tmp_path / 'executed').exists()
