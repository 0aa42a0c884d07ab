"""What is written about an image: its results, its label map and its visualization."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import mmcv
import numpy as np

from mmhatnet.errors import DataError, ImageError
from mmhatnet.inference import LoadedImage
from mmhatnet.prediction.coco import detections
from mmhatnet.prediction.files import complete_or_absent
from mmhatnet.shown import best_of, highest_score


class Outputs:
    """Makes results and files of the predictions of a job.

    Args:
        inferencer (object): The result of ``build_inferencer``.
        scope (str): The config's ``default_scope``.
        out_dir (Path): The folder of the files.
        place (Path): A file beside which files are written before they are complete.
        score_thr (float): The minimum score of boxes.
        visualize (bool): Whether to write visualizations.
        max_drawn (int): The number of detections in a visualization at most.
    """

    def __init__(
        self,
        inferencer: object,
        scope: str,
        out_dir: Path,
        place: Path,
        score_thr: float,
        visualize: bool,
        max_drawn: int,
    ) -> None:
        self.classes, self.scope, self.score_thr = inferencer.classes, scope, score_thr
        self.max_drawn = max_drawn
        self.out_dir, self.place, self.visualizes = out_dir, place, visualize
        self.visualizer = inferencer.visualizer
        if scope == 'mmpretrain':
            from mmpretrain.visualization import UniversalVisualizer

            self.visualizer = UniversalVisualizer()
        # The visualizers hand their result to this method unless they write a file.
        self.visualizer.add_image = self._keep
        warnings.filterwarnings('ignore', 'Warning: The (bbox|polygon) is out of bounds')

    def record(self, image: LoadedImage, name: str, sample: object) -> dict[str, object]:
        """Returns the record of an image, with its results and the highest score of a detector.

        Args and errors are those of ``results``, which removes boxes below the minimum score.
        """
        highest = dict(highest=highest_score(sample)) if self.scope == 'mmdet' else {}
        results = self.results(image, name, sample)
        return dict(image=image.path, size=image.size, **highest, results=results)

    def results(self, image: LoadedImage, name: str, sample: object) -> list[dict]:
        """Returns the results of an image, and writes the label map of a segmentor.

        Args:
            image (LoadedImage): The image.
            name (str): The name of its files, without a suffix.
            sample (object): The prediction, on the CPU. Boxes below the minimum score are removed.
        """
        if self.scope == 'mmdet':
            sample.pred_instances = sample.pred_instances[
                sample.pred_instances.scores > self.score_thr
            ]
            return detections(sample)
        if self.scope == 'mmpretrain':
            label = int(sample.pred_score.argmax())
            found = dict(label=label, name=self.classes[label] if self.classes else None)
            return [dict(image=image.path, **found, score=float(sample.pred_score[label]))]
        labels = sample.pred_sem_seg.data[0].numpy()
        labels = labels.astype(np.uint8 if len(self.classes) <= 256 else np.uint16)
        path = self.out_dir / 'labels' / f'{name}.png'
        self._write(labels, path)
        pixels = {self.classes[i]: int((labels == i).sum()) for i in np.unique(labels)}
        return [dict(image=image.path, label_map=str(path), pixels=pixels)]

    def visualize(self, image: LoadedImage, sample: object) -> np.ndarray:
        """Returns the visualization of a prediction, (H, W, 3) in BGR."""
        pixels = mmcv.bgr2rgb(image.pixels)
        if self.scope == 'mmpretrain':
            self.visualizer.visualize_cls(pixels, sample, self.classes, draw_gt=False)
        else:
            options = dict(draw_gt=False)
            if self.scope == 'mmdet':
                self.visualizer.line_width = max(min(image.size) // 200, 1)
                options['pred_score_thr'] = self.score_thr
                sample = best_of(sample, self.max_drawn)
            # MMDetection varies the colors of masks at random, here alike for each image.
            state = np.random.get_state()
            np.random.seed(0)
            self.visualizer.add_datasample(image.path, pixels, sample, **options)
            np.random.set_state(state)
        return mmcv.rgb2bgr(self.shown)

    def write_visualization(self, image: LoadedImage, name: str, sample: object) -> None:
        """Writes the visualization of a prediction, if the job has them."""
        if self.visualizes:
            self._write(self.visualize(image, sample), self.drawn(name, '.jpg'))

    def drawn(self, name: str, suffix: str) -> Path:
        """Returns the path of a visualization."""
        return self.out_dir / 'drawn' / f'{name}{suffix}'

    def _keep(self, name: str, image: np.ndarray, step: int = 0) -> None:
        self.shown = image

    def _write(self, image: np.ndarray, path: Path) -> None:
        with complete_or_absent(path, self.place) as partial:
            mmcv.imwrite(image, str(partial))


@contextmanager
def visualized_video(path: Path, place: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes visualized frames as a video, which is complete or absent.

    Args:
        path (Path): The visualized video.
        place (Path): A file beside which it is written before it is complete.
        fps (float): Frames per second.

    Yields:
        Callable[[np.ndarray], None]: Appends a frame, (H, W, 3) in BGR.

    Raises:
        DataError: If the file cannot be written.
        ImageError: If OpenCV does not write such videos.
    """
    writer, number = cv2.VideoWriter(), 0

    def add(frame: np.ndarray) -> None:
        nonlocal number
        if number == 0:
            code, size = cv2.VideoWriter_fourcc(*'mp4v'), frame.shape[1::-1]
            if not writer.open(str(partial), code, fps, size):
                raise ImageError(
                    f'cannot be visualized: OpenCV does not write {path} with {fps} frames per '
                    f'second and {size[0]} x {size[1]} pixels; extract its images and name these, '
                    'or use --no-drawn'
                )
        writer.write(frame)
        number += 1

    with complete_or_absent(path, place) as partial:
        yield add
        writer.release()
        # OpenCV does not say when a disk is full.
        written = int(cv2.VideoCapture(str(partial)).get(cv2.CAP_PROP_FRAME_COUNT))
        if written != number:
            raise OSError(f'{written} of {number} frames were written')


def output_names(paths: Sequence[str]) -> list[str]:
    """Returns file names without suffixes, or relative paths where names repeat.

    Raises:
        DataError: If a name is too long for a file.
    """
    names = [Path(path).stem for path in paths]
    if len({*names}) < len(names):
        folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
        names = [os.path.relpath(path, os.path.commonpath(folders)) for path in paths]
    for path, name in zip(paths, names):
        if len(os.fsencode(os.path.basename(f'{name}.jpg'))) > 255:
            raise DataError(
                f'{path}: the file of its result, {os.path.basename(name)}.jpg, has a name of more '
                'than the 255 bytes that file systems allow; rename the image.'
            )
    return names
