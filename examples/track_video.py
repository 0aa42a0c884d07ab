"""Follows detected objects through a video: each gets a number that stays the same.

    mmhatnet predict CONFIG CHECKPOINT film.mp4 --score-thr 0.1 --out-dir predictions
    python examples/track_video.py film.mp4 predictions tracked.mp4

It needs `pip install trackers`, whose ByteTrack was once a part of supervision, and nothing of
OpenMMLab.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import supervision as sv
from trackers import ByteTrackTracker


def detections_of(folder: Path, video: str) -> tuple[list[sv.Detections], dict[int, str]]:
    """Reads what `mmhatnet predict` has written about a video.

    Returns:
        tuple: The detections of each frame, and the names of the classes by their ids.
    """
    described = json.loads((folder / 'images.json').read_text())
    results = defaultdict(list)
    for result in json.loads((folder / 'predictions.json').read_text()):
        results[result['image_id']].append(result)
    # Frames are images in a folder of the name of the video.
    frames = [i for i in described['images'] if Path(i['file_name']).parent.name == video]
    if not frames:
        raise SystemExit(
            f'{folder} has no predictions of {video}: name a video that was predicted.'
        )
    found = []
    for frame in sorted(frames, key=lambda frame: frame['file_name']):
        of_frame = results[frame['id']]
        boxes = np.array([result['bbox'] for result in of_frame], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # from width and height to the other corner
        found.append(
            sv.Detections(
                xyxy=boxes,
                confidence=np.array([result['score'] for result in of_frame], float),
                class_id=np.array([result['category_id'] for result in of_frame], int),
            )
        )
    return found, {category['id']: category['name'] for category in described['categories']}


def track(detections: list[sv.Detections], fps: float, score: float) -> Iterator[sv.Detections]:
    """Yields the followed objects of each frame.

    Args:
        detections (list[sv.Detections]): The detections of each frame.
        fps (float): The frames per second.
        score (float): Objects are followed from a detection of this score on. Through detections of
            lower scores they are followed as well.
    """
    tracker = ByteTrackTracker(
        frame_rate=fps, track_activation_threshold=score, high_conf_det_threshold=score
    )
    for of_frame in detections:
        followed = tracker.update(of_frame)
        yield followed[followed.tracker_id >= 0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('video', type=Path, help='the video')
    parser.add_argument('predictions', type=Path, help='the folder of its predictions')
    parser.add_argument('out', type=Path, help='the video with boxes and numbers to write')
    parser.add_argument('--score', type=float, default=0.5, help='follow objects from it on')
    args = parser.parse_args()

    detections, classes = detections_of(args.predictions, args.video.name)
    video, objects = sv.VideoInfo.from_video_path(str(args.video)), {}
    by_number = sv.ColorLookup.TRACK
    boxes, paths = (
        sv.BoxAnnotator(color_lookup=by_number),
        sv.TraceAnnotator(color_lookup=by_number),
    )
    labels = sv.LabelAnnotator(color_lookup=by_number)
    with sv.VideoSink(str(args.out), video) as sink:
        followed = track(detections, video.fps, args.score)
        for frame, of_frame in zip(sv.get_video_frames_generator(str(args.video)), followed):
            names = [classes[number] for number in of_frame.class_id]
            objects.update(zip(of_frame.tracker_id.tolist(), names))
            texts = [f'{number} {name}' for number, name in zip(of_frame.tracker_id, names)]
            for annotate in (paths.annotate, boxes.annotate):
                frame = annotate(frame, of_frame)
            sink.write_frame(labels.annotate(frame, of_frame, texts))
    for number, name in sorted(objects.items()):
        print(number, name)


if __name__ == '__main__':
    main()
