"""examples/track_video.py gives each object of a video one number."""

import importlib.util
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('trackers', reason='pip install trackers')
EXAMPLE = Path(__file__).parents[1] / 'examples' / 'track_video.py'
FRAMES, SIZE, FPS = 60, (320, 240), 25
CATEGORIES = [dict(id=3, name='car'), dict(id=38, name='kite')]


def boxes_at(frame: int) -> dict[str, tuple[int, list[float]]]:
    """Returns the category and the box of each moving object, as x, y, width and height."""
    share = frame / FRAMES
    return {
        'right': (3, [10 + 250 * share, 30, 40, 25]),
        'left': (3, [270 - 250 * share, 90, 40, 25]),
        'down': (38, [150, 10 + 190 * share, 24, 24]),
    }


@pytest.fixture
def predicted(tmp_path: Path) -> tuple[Path, Path]:
    """Writes a video of moving objects, and predictions as `mmhatnet predict` writes them."""
    film, folder = tmp_path / 'film.mp4', tmp_path / 'predictions'
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*'mp4v'), FPS, SIZE)
    rng, images, results = np.random.default_rng(0), [], []
    for frame in range(FRAMES):
        pixels = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
        name = f'{film}/{frame:06d}'
        images.append(dict(id=frame + 1, file_name=name, width=SIZE[0], height=SIZE[1]))
        for number, (key, (category, box)) in enumerate(boxes_at(frame).items()):
            x, y, width, height = map(round, box)
            cv2.rectangle(pixels, (x, y), (x + width, y + height), (40, 80 * number, 220), -1)
            if key == 'down' and 20 <= frame < 26:  # it is hidden for a while
                continue
            score = 0.2 if key == 'left' and frame % 10 == 5 else rng.uniform(0.7, 1)
            noisy = (np.array(box) + rng.normal(0, 0.7, 4)).tolist()
            results.append(
                dict(image_id=frame + 1, category_id=category, bbox=noisy, score=float(score))
            )
        if frame % 7 == 3:  # of a low score, and nothing
            box = [*rng.uniform(0, 200, 2).tolist(), 30, 30]
            results.append(dict(image_id=frame + 1, category_id=3, bbox=box, score=0.15))
        writer.write(pixels)
    writer.release()
    folder.mkdir()
    (folder / 'images.json').write_text(json.dumps(dict(images=images, categories=CATEGORIES)))
    (folder / 'predictions.json').write_text(json.dumps(results))
    return film, folder


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location('track_video', EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_object_keeps_its_number(example, predicted) -> None:
    film, folder = predicted
    detections, classes = example.detections_of(folder, film.name)
    assert len(detections) == FRAMES and classes == {3: 'car', 38: 'kite'}
    numbers: dict[str, list[int]] = {}
    for frame, followed in enumerate(example.track(detections, FPS, 0.5)):
        for box, number, category in zip(followed.xyxy, followed.tracker_id, followed.class_id):
            near = {
                key: np.abs(box[:2] - true[:2]).max() for key, (_, true) in boxes_at(frame).items()
            }
            key = min(near, key=near.get)
            assert near[key] < 5 and boxes_at(frame)[key][0] == category
            numbers.setdefault(key, []).append(int(number))
    assert {key: len(set(of)) for key, of in numbers.items()} == dict(right=1, left=1, down=1)
    assert len({of[0] for of in numbers.values()}) == 3
    # Objects have numbers from the second frame on.
    assert {key: len(of) for key, of in numbers.items()} == dict(
        right=FRAMES - 1, left=FRAMES - 1, down=FRAMES - 7
    )


def test_the_video_shows_the_numbers(example, predicted, tmp_path, monkeypatch, capsys) -> None:
    film, folder = predicted
    out = tmp_path / 'tracked.mp4'
    monkeypatch.setattr(sys, 'argv', ['track_video.py', str(film), str(folder), str(out)])
    example.main()
    assert capsys.readouterr().out.split() == ['0', 'car', '1', 'car', '2', 'kite']
    before, after = cv2.VideoCapture(str(film)), cv2.VideoCapture(str(out))
    assert after.get(cv2.CAP_PROP_FRAME_COUNT) == FRAMES
    assert after.get(cv2.CAP_PROP_FPS) == pytest.approx(FPS)
    for _ in range(30):
        difference = cv2.absdiff(before.read()[1], after.read()[1])
    assert (difference.max(axis=2) > 60).sum() > 200, 'boxes and labels'


def test_another_video_is_named(example, predicted) -> None:
    with pytest.raises(SystemExit, match=r'has no predictions of other\.mp4'):
        example.detections_of(predicted[1], 'other.mp4')
