"""Predicts images and videos, and goes on where an earlier job ended."""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mmcv
import torch
from mmengine.config import Config
from rich.progress import Progress

from mmhatnet.config_walk import datasets_of
from mmhatnet.data_checks.report import preview
from mmhatnet.errors import DataError, ImageError
from mmhatnet.inference import ImageLoader, LoadedImage, is_video, predict_loaded
from mmhatnet.prediction.coco import Annotated
from mmhatnet.prediction.loading import (
    Failed,
    FrameBatches,
    ImageBatches,
    batches_of,
    load_beside,
)
from mmhatnet.prediction.merging import ids_of, merge, report_failed
from mmhatnet.prediction.outputs import Outputs, output_names, visualized_video
from mmhatnet.prediction.processes import rank_and_number, result_of_first, wait_for_all
from mmhatnet.prediction.records import Records, Writer
from mmhatnet.shown import MOST_SHOWN

# Among the images of this many batches, those of one size are put together.
BATCHES_IN_WINDOW = 8
# Folders of images that are no input.
WRITTEN = ('drawn', 'labels', 'unfinished')


def write_predictions(
    inferencer: object,
    cfg: Config,
    paths: Sequence[str],
    out_dir: str | Path,
    batch_size: int = 1,
    score_thr: float = 0.3,
    ann_file: str | None = None,
    visualize: bool = True,
    workers: int = 2,
    overwrite: bool = False,
    max_drawn: int = MOST_SHOWN,
) -> int | None:
    """Predicts images and frames of videos, and writes the results.

    The results are recorded in ``out_dir/unfinished`` as they come. A call with the same settings
    goes on where an earlier one ended. The processes of ``torch.distributed`` share the images. The
    results depend on neither.

    Args:
        inferencer (object): The result of ``build_inferencer``.
        cfg (Config): The config of the job.
        paths (Sequence[str]): The result of ``find_images``.
        out_dir (str | Path): The folder for ``predictions.json`` and ``drawn/``; for detectors also
            ``images.json``, and for segmentors ``labels/``.
        batch_size (int): The number of images in a batch, all of one size. Defaults to 1.
        score_thr (float): The minimum score of boxes. Defaults to 0.3.
        ann_file (str, optional): COCO annotations of the images. The results use their ids.
        visualize (bool): Whether to write ``drawn/``. Defaults to True.
        workers (int): The number of processes that load images for this one. Defaults to 2.
        overwrite (bool): Whether to start anew where an earlier job did not finish. Defaults to
            False.
        max_drawn (int): The number of detections that a visualization shows at most, those with
            the highest scores. The results have all. Defaults to 30.

    Returns:
        int | None: The number of predicted images and frames, in the first process alone.

    Raises:
        DataError: If an earlier job with other settings did not finish, the annotations are of
            other images, a file cannot be written, or images cannot be predicted. The others are
            predicted first.
    """
    out_dir, (rank, number) = Path(out_dir), rank_and_number()
    # The folder of the results may be among the images.
    written = tuple(os.path.abspath(out_dir / name) + os.sep for name in WRITTEN)
    paths = [path for path in paths if not os.path.abspath(path).startswith(written)]

    def begin() -> tuple[list[str], set[str]]:
        if isinstance(ids := ids_of(cfg.default_scope, ann_file, inferencer.classes), Annotated):
            ids.require(path for path in paths if not is_video(path))
        records.begin(settings_of(inferencer, cfg, score_thr, visualize, max_drawn), overwrite)
        done = {*records.index().places}
        _require_named(done.difference(paths), records.folder)
        if done:
            print(f'Going on: {len(done)} of {len(paths)} images and videos are predicted already.')
        return list(paths), done

    with Records(out_dir / 'unfinished') as records:
        # The files in a folder may change while the processes start.
        paths, done = result_of_first(begin)
        names = dict(zip(paths, output_names(paths)))
        place = records.folder / str(rank)
        settings = score_thr, visualize, max_drawn
        outputs = Outputs(inferencer, cfg.default_scope, out_dir, place, *settings)
        with records.open(rank) as writer:
            share = Share(inferencer, outputs, writer, names, done, batch_size, workers)
            share.predict(pieces(paths, done, batch_size)[rank::number], visible=rank == 0)
        wait_for_all()
        if rank:
            return None
        index, ids = records.index(), ids_of(cfg.default_scope, ann_file, inferencer.classes)
        tally = merge(records, index, paths, ids, out_dir, max_drawn)
        notes = [index.notes.get(path) for path in paths]
        if ids is not None:
            notes.append(tally.nothing_found(f'{score_thr} (--score-thr)'))
            if visualize and (note := tally.too_many(max_drawn)):
                notes.append(f'{note} predictions.json has all. --max-drawn changes the limit.')
        for note in filter(None, notes):
            print(note)
        report_failed(records, index, paths, out_dir)
        records.remove()
        return tally.images


def _require_named(others: set[str], folder: Path) -> None:
    """Refuses to forget predictions of images that are no longer named."""
    if others:
        raise DataError(
            f'{folder} has predictions of {len(others)} other images, {preview(sorted(others))}: '
            'name them as well, name another --out-dir, or start anew with --overwrite.'
        )


def settings_of(
    inferencer: object, cfg: Config, score_thr: float, visualize: bool, max_drawn: int
) -> dict[str, object]:
    """Returns what decides about the results, by names for messages."""
    dataset = next(datasets_of(cfg, 'test'))
    of_config = [cfg.model, cfg.get('data_preprocessor'), dataset.pipeline, inferencer.classes]
    weights = hashlib.sha256()
    for name, tensor in inferencer.model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {
        'checkpoint': weights.hexdigest(),
        'config': hashlib.sha256(json.dumps(of_config, default=str).encode()).hexdigest(),
        '--score-thr': score_thr,
        '--no-drawn': not visualize,
        '--max-drawn': max_drawn,
    }


def pieces(paths: Sequence[str], done: set[str], batch_size: int) -> list[list[str]]:
    """Cuts images and videos into pieces for processes, and leaves out those that are done.

    Returns:
        list[list[str]]: Consecutive images, and single videos after them.
    """
    images = [path for path in paths if not is_video(path)]
    size = batch_size * BATCHES_IN_WINDOW if batch_size > 1 else 1
    windows = [images[start : start + size] for start in range(0, len(images), size)]
    videos = [[path] for path in paths if is_video(path)]
    return [piece for piece in windows + videos if not done.issuperset(piece)]


@dataclass
class Share:
    """Predicts the share of one process, and records it.

    Attributes:
        inferencer (object): The result of ``build_inferencer``.
        outputs (Outputs): Makes results and files of predictions.
        writer (Writer): Records them.
        names (dict[str, str]): The names of the files of each image, without suffixes.
        done (set[str]): Images and videos that are predicted already.
        batch_size (int): The number of images in a batch.
        workers (int): The number of processes that load images.
    """

    inferencer: object
    outputs: Outputs
    writer: Writer
    names: dict[str, str]
    done: set[str]
    batch_size: int
    workers: int

    def __post_init__(self) -> None:
        self.load = ImageLoader(self.inferencer)

    def predict(self, pieces: Sequence[list[str]], visible: bool) -> None:
        """Predicts images and videos.

        Args:
            pieces (Sequence[list[str]]): Some of ``pieces()``.
            visible (bool): Whether to show the progress.
        """
        windows = [piece for piece in pieces if not is_video(piece[0])]
        total = sum(path not in self.done for window in windows for path in window)
        with Progress(disable=not visible) as progress:
            bar = progress.add_task('Inference', total=total)
            for number in self._images(windows):
                progress.advance(bar, number)
            for (path,) in pieces[len(windows) :]:
                fps, stated = facts_of(path)
                total += stated
                progress.update(bar, total=total)
                try:
                    for number in self._frames(path, fps, stated):
                        progress.advance(bar, number)
                except ImageError as error:
                    self.writer.add(image=path, failed=str(error))

    def _images(self, windows: Sequence[list[str]]) -> Iterator[int]:
        """Predicts images, and yields how many after each batch."""
        batches = (
            batch for window in windows for batch in batches_of(window, self.batch_size, self.done)
        )
        workers = self.workers if len(windows) > 1 else 0
        for batch in load_beside(ImageBatches(self.load), batches, workers):
            loaded = [image for image in batch if not isinstance(image, Failed)]
            failed = [image for image in batch if isinstance(image, Failed)]
            for group in by_size(loaded):
                try:
                    predicted = zip(group, self._predict(group))
                except ImageError as error:
                    failed += [Failed(image.path, str(error)) for image in group]
                    continue
                for image, sample in predicted:
                    if image.path not in self.done:
                        self._record(image, sample)
            for image in failed:
                if image.path not in self.done:
                    self.writer.add(image=image.path, failed=image.reason)
            yield sum(image.path not in self.done for image in batch)

    def _record(self, image: LoadedImage, sample: object) -> None:
        name = self.names[image.path]
        record = self.outputs.record(image, name, sample)
        self.outputs.write_visualization(image, name, sample)
        self.writer.add(**record)

    def _frames(self, path: str, fps: float, stated: int) -> Iterator[int]:
        """Predicts the frames of a video, and yields how many after each batch.

        Raises:
            ImageError: If that is not possible.
        """
        number, name = 0, self.names[path]
        with self._film(path, fps) as show:
            batches = FrameBatches(self.load, path, self.batch_size)
            for batch in load_beside(batches, None, min(self.workers, 1)):
                if isinstance(batch, Failed):
                    raise ImageError(batch.reason)
                for group in by_size(batch):
                    for image, sample in zip(group, self._predict(group)):
                        of_frame = f'{name}{image.path.removeprefix(path)}'
                        record = self.outputs.record(image, of_frame, sample)
                        show(image, sample)
                        self.writer.add(video=path, frame=number, **record)
                        number += 1
                yield len(batch)
            if number == 0:
                raise ImageError('cannot be read as a video')
        self.writer.add(video=path, frames=number, stated=stated)

    @contextlib.contextmanager
    def _film(self, path: str, fps: float) -> Iterator[Callable[[LoadedImage, object], None]]:
        """Yields a function that appends a frame to the visualized video."""
        if not self.outputs.visualizes:
            yield lambda image, sample: None
            return
        target = self.outputs.drawn(self.names[path], '.mp4')
        with visualized_video(target, self.outputs.place, fps) as add:
            yield lambda image, sample: add(self.outputs.visualize(image, sample))

    def _predict(self, images: list[LoadedImage]) -> list:
        """Returns the predictions of images of one size, on the CPU.

        Raises:
            ImageError: If the GPU has too little memory.
        """
        try:
            return [sample.cpu() for sample in predict_loaded(self.inferencer, images)]
        except torch.cuda.OutOfMemoryError as error:
            raise ImageError(
                f'needs more memory than the GPU has, in a batch of {len(images)}'
            ) from error


def by_size(images: Sequence[LoadedImage]) -> Iterator[list[LoadedImage]]:
    """Groups consecutive images of one size.

    Padding would change how a batch of several sizes is normalized.
    """
    return (list(group) for _, group in itertools.groupby(images, lambda image: image.size))


def facts_of(video: str) -> tuple[float, int]:
    """Returns the frames per second and the number of frames that a video states."""
    if not Path(video).is_file():
        return 0.0, 0
    reader = mmcv.VideoReader(video)
    return reader.fps, max(len(reader), 0)
