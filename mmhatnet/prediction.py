"""Predictions as files: COCO results, label maps or classes, and visualizations."""

import itertools
import json
import os
import warnings
from pathlib import Path

import cv2
import mmcv
import numpy as np
from rich.progress import track

from mmhatnet.errors import DataError
from mmhatnet.inference import Frame, predict


def write_predictions(
    inferencer: object,
    scope: str,
    sizes: dict[str, tuple[int, int]],
    out_dir: str | Path,
    batch_size: int = 1,
    score_thr: float = 0.3,
    ann_file: str | None = None,
) -> None:
    """Predicts images and frames of videos, and writes the results.

    Args:
        inferencer (object): The result of ``build_inferencer``.
        scope (str): The config's ``default_scope``.
        sizes (dict[str, tuple[int, int]]): The result of ``find_images``.
        out_dir (str | Path): The folder for ``predictions.json`` and ``drawn/``; for detectors also
            ``images.json``, and for segmentors ``labels/``.
        batch_size (int): The number of images in a batch, all of one size. Defaults to 1.
        score_thr (float): The minimum score of boxes. Defaults to 0.3.
        ann_file (str, optional): COCO annotations of the images. The results use their ids.

    Raises:
        DataError: If the annotations are of other images, or a video cannot be written.
    """
    classes, out_dir = inferencer.classes, Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    file_of = {path: getattr(path, 'file', path) for path in sizes}  # a frame's file is its video
    files = list(dict.fromkeys(file_of.values()))
    names = dict(zip(files, output_names(files)))
    if scope == 'mmdet':
        coco = coco_ids(ann_file, sizes, classes)
        records = dict(zip(sizes, coco['images']))
    elif scope == 'mmpretrain':
        from mmpretrain.visualization import UniversalVisualizer

        inferencer.visualizer = UniversalVisualizer()
    # A batch holds images of one size, because padding would change their normalization.
    by_size = itertools.groupby(sorted(sizes, key=sizes.get), sizes.get)
    groups = [list(paths) for _, paths in by_size]
    batches = [
        group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)
    ]
    predictions, videos = {}, {}
    warnings.filterwarnings('ignore', 'Warning: The (bbox|polygon) is out of bounds')
    for batch in track(batches, 'Inference'):
        images = [next(path.reader) if isinstance(path, Frame) else path for path in batch]
        for path, image, sample in zip(batch, images, predict(inferencer, images)):
            sample = sample.cpu()
            name = names[file_of[path]]
            shown = dict(draw_gt=False, out_file=str(out_dir / 'drawn' / f'{name}.jpg'))
            image = mmcv.bgr2rgb(mmcv.imread(image))
            if scope == 'mmpretrain':
                label = int(sample.pred_score.argmax())
                found = dict(label=label, name=classes[label] if classes else None)
                found['score'] = float(sample.pred_score[label])
                predictions[path] = [dict(image=path, **found)]
                inferencer.visualizer.visualize_cls(image, sample, classes, **shown)
            elif scope == 'mmdet':
                confident = sample.pred_instances.scores > score_thr
                sample.pred_instances = sample.pred_instances[confident]
                predictions[path] = detections(sample, records[path], coco['categories'])
                shown['pred_score_thr'] = score_thr
                inferencer.visualizer.line_width = max(min(sizes[path]) // 200, 1)
                inferencer.visualizer.add_datasample(path, image, sample, **shown)
            else:
                labels = sample.pred_sem_seg.data[0].numpy().astype(np.uint8)
                label_map = str(
                    out_dir / 'labels' / f'{name}{path.removeprefix(file_of[path])}.png'
                )
                mmcv.imwrite(labels, str(label_map))
                pixels = {classes[i]: int((labels == i).sum()) for i in np.unique(labels)}
                predictions[path] = [dict(image=path, label_map=str(label_map), pixels=pixels)]
                inferencer.visualizer.add_datasample(path, image, sample, **shown)
            if isinstance(path, Frame):
                append_frame(videos, path, shown['out_file'])
    for video in videos.values():
        video.release()
    results = [result for path in sizes for result in predictions[path]]
    (out_dir / 'predictions.json').write_text(json.dumps(results))
    if scope == 'mmdet':
        (out_dir / 'images.json').write_text(json.dumps(coco))


def output_names(paths: list[str]) -> list[str]:
    """Returns file names without suffixes, or relative paths where names repeat."""
    names = [Path(path).stem for path in paths]
    if len({*names}) == len(names):
        return names
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    return [os.path.relpath(path, os.path.commonpath(folders)) for path in paths]


def coco_ids(ann_file: str | None, sizes: dict, classes: list[str]) -> dict:
    """Returns images and categories in COCO format, in the order of ``sizes`` and ``classes``."""
    if ann_file is None:
        images = [
            dict(id=number, file_name=path, height=height, width=width)
            for number, (path, (height, width)) in enumerate(sizes.items(), 1)
        ]
        categories = [dict(id=number, name=name) for number, name in enumerate(classes, 1)]
        return dict(images=images, categories=categories, annotations=[])
    try:
        content = json.loads(Path(ann_file).read_text())
        images = {os.path.basename(image['file_name']): image for image in content['images']}
        categories = {category['name']: category for category in content['categories']}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'--ann-file {ann_file} cannot be read as COCO: {error!r}.') from error
    for entry, known, names in (
        ('image', images, [os.path.basename(path) for path in sizes]),
        ('category', categories, classes),
    ):
        if unknown := [name for name in names if name not in known]:
            raise DataError(
                f'--ann-file {ann_file} has no {entry} {unknown[0]} ({len(unknown)} are missing): '
                'name the annotations of these images, or omit the option.'
            )
    content['images'] = [images[os.path.basename(path)] for path in sizes]
    content['categories'] = [categories[name] for name in classes]
    return content


def detections(sample, image: dict, categories: list[dict]) -> list[dict]:
    """Returns the results of one image in COCO format."""
    from mmdet.structures.mask import encode_mask_results

    found = sample.pred_instances.numpy()
    results = [
        dict(image_id=image['id'], category_id=categories[label]['id'], score=score)
        for label, score in zip(found.labels.tolist(), found.scores.tolist())
    ]
    for result, (left, top, right, bottom) in zip(results, found.bboxes.tolist()):
        result['bbox'] = [left, top, right - left, bottom - top]
    for result, mask in zip(results, encode_mask_results(found.get('masks', ()))):
        result['segmentation'] = dict(size=mask['size'], counts=mask['counts'].decode())
    return results


def append_frame(videos: dict, frame: Frame, visualized: str) -> None:
    """Appends a visualized frame to the visualized video, and deletes its file."""
    image, path = cv2.imread(visualized), f'{visualized.removesuffix(".jpg")}.mp4'
    if frame.reader not in videos:
        code, size = cv2.VideoWriter_fourcc(*'mp4v'), image.shape[1::-1]
        videos[frame.reader] = cv2.VideoWriter(path, code, frame.reader.fps, size)
        if not videos[frame.reader].isOpened():
            raise DataError(
                f'OpenCV cannot write {path} with {frame.reader.fps} frames per second and '
                f'{size[0]} x {size[1]} pixels: extract the images of {frame.file} and name them.'
            )
    videos[frame.reader].write(image)
    os.remove(visualized)
