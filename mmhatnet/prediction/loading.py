"""Loads images and frames in batches of one size, in processes beside the prediction."""

import itertools
import warnings
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import mmcv
from PIL import ExifTags, Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mmhatnet.errors import ImageError
from mmhatnet.inference import ImageLoader, LoadedImage


class Failed(NamedTuple):
    """An image or a video that cannot be predicted, as a process that loads it says.

    Attributes:
        path (str): The image.
        reason (str): What follows after its name.
    """

    path: str
    reason: str

    @classmethod
    def because_of(cls, error: Exception, path: str) -> 'Failed':
        return cls(path, str(error).removeprefix(path).strip())


class ImageBatches(Dataset):
    """Loads the images of a batch, which is a list of paths.

    Args:
        load (ImageLoader): Loads an image.
    """

    def __init__(self, load: ImageLoader) -> None:
        self.load = load

    def __getitem__(self, paths: list[str]) -> list[LoadedImage | Failed]:
        return [self._attempt(path) for path in paths]

    def _attempt(self, path: str) -> LoadedImage | Failed:
        try:
            return self.load(path)
        except ImageError as error:
            return Failed.because_of(error, path)


class FrameBatches(IterableDataset):
    """Loads the frames of a video in order, each once.

    Args:
        load (ImageLoader): Loads an image.
        path (str): The video.
        batch_size (int): The number of frames in a batch.
    """

    def __init__(self, load: ImageLoader, path: str, batch_size: int) -> None:
        self.load, self.path, self.batch_size = load, path, batch_size

    def __iter__(self) -> Iterator[list[LoadedImage] | Failed]:
        try:
            frames = enumerate(mmcv.VideoReader(self.path))
            while batch := list(itertools.islice(frames, self.batch_size)):
                yield [self.load(frame_name(self.path, number), frame) for number, frame in batch]
        except ImageError as error:
            yield Failed.because_of(error, self.path)
        except OSError:  # it is no longer there
            yield Failed(self.path, 'cannot be read as a video')


def frame_name(video: str, number: int) -> str:
    """Returns the name of a frame, as an image in a folder of the video's name."""
    return f'{video}/{number:06d}'


def load_beside(batches: Dataset, paths: Iterable[list[str]] | None, workers: int) -> DataLoader:
    """Loads batches in other processes while this one works.

    Args:
        batches (Dataset): ImageBatches or FrameBatches.
        paths (Iterable[list[str]], optional): The paths of each batch.
        workers (int): The number of processes; 0 loads in this one.
    """
    return DataLoader(
        batches,
        batch_size=None,
        sampler=paths,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_set_up_worker,
    )


def _as_it_is(batch: object) -> object:
    return batch


def _set_up_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the workers are the threads


def batches_of(window: Sequence[str], batch_size: int, done: Container[str]) -> Iterator[list[str]]:
    """Groups images by size as their headers state it, so that few batches need to be split.

    The batches depend on the window alone, so they are the same however often a job is killed.

    Args:
        window (Sequence[str]): Consecutive images.
        batch_size (int): The maximum number of images in a batch.
        done (Container[str]): Images that are predicted already. A batch of them is left out.
    """
    groups = defaultdict(list)
    for path in window:
        groups[stated_size(path) if batch_size > 1 else None].append(path)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            if not all(path in done for path in batch):
                yield batch


def stated_size(path: str) -> tuple | None:
    """Returns the size and orientation that the header of an image states."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # very large images
            with Image.open(path) as image:
                return image.size, image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the reason is found when the image is loaded
        return None
