"""Predicts with the inferencer of a model's framework."""

import copy
import glob
import inspect
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.infer import BaseInferencer
from mmengine.registry import init_default_scope
from torchvision.datasets.folder import IMG_EXTENSIONS as IMAGES

from mmhatnet.checkpoints.folder import find_checkpoint
from mmhatnet.checkpoints.loading import load_weights, verify_checkpoint
from mmhatnet.checkpoints.safe_loader import Checkpoint
from mmhatnet.config_checks import (
    build_errors_as_messages,
    require_channels,
    require_known_settings,
)
from mmhatnet.config_walk import build_unread, datasets_of
from mmhatnet.data_checks.images import fault_of_shape, files_below, why_unreadable
from mmhatnet.errors import ConfigError, DataError, ImageError
from mmhatnet.openmmlab.messages import messages_from
from mmhatnet.openmmlab.patches import apply_patches

VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')


def require_predictable(cfg: Config) -> None:
    """Checks that a config has what predictions need.

    Raises:
        ConfigError: If something is missing, or settings do not fit together.
    """
    if cfg.get('default_scope') not in ('mmdet', 'mmseg', 'mmpretrain'):
        raise ConfigError(
            f'{cfg.filename}: default_scope is {cfg.get("default_scope")!r}; predictions need '
            "'mmdet', 'mmseg' or 'mmpretrain'."
        )
    datasets = list(datasets_of(cfg, 'test'))
    if not isinstance(cfg.get('model'), dict) or not datasets or not datasets[0].get('pipeline'):
        raise ConfigError(
            f'{cfg.filename}: a prediction needs model and test_dataloader.dataset.pipeline.'
        )
    require_known_settings(cfg)
    require_channels(cfg, 'test')


def build_inferencer(
    cfg: Config, checkpoint: str | Checkpoint, device: str | None = None
) -> object:
    """Builds the framework's own inferencer, with the weights of a checkpoint.

    Args:
        cfg (Config): The config of the job. It is not modified.
        checkpoint (str | Checkpoint): The checkpoint, or the work folder of a training. Nothing in
            it is executed. It provides the class names; if it has none, the test dataset does.
        device (str, optional): The device of the model. Defaults to a GPU if there is one.

    Returns:
        object: An mmdet.apis.DetInferencer, mmseg.apis.MMSegInferencer or
        mmpretrain.ImageClassificationInferencer, whose ``classes`` are the names.

    Raises:
        CheckpointError: If the checkpoint cannot be read or is of another model.
        ConfigError: If the config cannot be used for predictions.
    """
    apply_patches()
    cfg = copy.deepcopy(cfg)
    require_predictable(cfg)
    # The inferencers read the pipeline of the outermost dataset.
    cfg.test_dataloader.dataset = next(datasets_of(cfg, 'test'))
    if isinstance(checkpoint, str):
        checkpoint = Checkpoint(find_checkpoint(checkpoint) or checkpoint)
    init_default_scope(cfg.default_scope)
    # The weights are loaded below, where missing ones are refused.
    with (
        build_errors_as_messages(cfg),
        warnings.catch_warnings(),
        messages_from(logging.ERROR),
    ):
        warnings.simplefilter('ignore')
        if cfg.default_scope == 'mmdet':
            from mmdet.apis import DetInferencer

            cfg.visualizer = dict(type='DetLocalVisualizer', vis_backends=[])
            inferencer = DetInferencer(cfg, device=device, show_progress=False)
        elif cfg.default_scope == 'mmseg':
            from mmseg.apis import MMSegInferencer

            cfg.visualizer = dict(type='SegLocalVisualizer', vis_backends=[], alpha=0.5)
            # Only OneDL's package has this option.
            known = inspect.signature(MMSegInferencer).parameters
            quiet = dict(show_progress=False) if 'show_progress' in known else {}
            inferencer = MMSegInferencer(cfg, device=device, **quiet)
        else:
            from mmpretrain import ImageClassificationInferencer
            from mmpretrain.utils import progress

            progress.disable_progress_bar = True  # ours covers all batches
            inferencer = ImageClassificationInferencer(cfg, pretrained=False, device=device)
        meta = dict(build_unread(cfg.test_dataloader.dataset).metainfo)
    verify_checkpoint(checkpoint, inferencer.model)
    load_weights(inferencer.model, checkpoint)
    meta.update(checkpoint.meta.get('dataset_meta') or {})
    inferencer.classes = meta.get('classes')
    if cfg.default_scope != 'mmpretrain':
        if inferencer.classes is None:
            raise ConfigError(
                f'Neither {checkpoint} nor the test dataset of {cfg.filename} names the classes: '
                'set test_dataloader.dataset.metainfo=dict(classes=...).'
            )
        inferencer.visualizer.dataset_meta = dict(
            classes=inferencer.classes, palette=meta.get('palette') or 'random'
        )
    return inferencer


class LoadedImage(NamedTuple):
    """An image, and what the test pipeline makes of it.

    Attributes:
        path (str): The file, or the name of the frame of a video.
        pixels (np.ndarray): The decoded image, (H, W, 3) in BGR.
        data (dict): The input of the model.
    """

    path: str
    pixels: np.ndarray
    data: dict

    @property
    def size(self) -> tuple[int, int]:
        """The height and width."""
        return self.pixels.shape[:2]


class ImageLoader:
    """Loads images as an inferencer does, and decodes each once. It works in any process.

    Args:
        inferencer (object): The result of ``build_inferencer``.
    """

    def __init__(self, inferencer: object) -> None:
        self.steps = [*inferencer.pipeline.transforms]
        if not isinstance(inferencer, BaseInferencer):  # MMPretrain's reads without its pipeline
            self.steps.insert(0, _read_for_classifier)
        cfg = getattr(inferencer, 'cfg', None) or inferencer.config  # MMPretrain's
        self.settings = cfg.test_dataloader.dataset.pipeline

    def __call__(self, path: str, pixels: np.ndarray | None = None) -> LoadedImage:
        """Loads an image.

        Args:
            path (str): The path of the image.
            pixels (np.ndarray, optional): The image (H, W, 3) in BGR, if it has been decoded.

        Returns:
            LoadedImage: The image.

        Raises:
            ImageError: If it cannot be read, or the test pipeline fails.
        """
        data, decoded = path if pixels is None else pixels, None
        try:
            for step in self.steps:
                data = step(data)
                if decoded is None:
                    decoded = data['img']
                    if fault := fault_of_shape(self.settings, *decoded.shape[:2]):
                        raise ImageError(f'{path} is too narrow: {fault}')
        except ImageError:
            raise
        except Exception as error:  # each image library has errors of its own
            if decoded is None and pixels is None:
                raise ImageError(f'{path} {why_unreadable(path, error)}') from error
            reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
            raise ImageError(f'{path} cannot pass the test pipeline ({reason})') from error
        if decoded.shape[2:] != (3,):  # gray, or with an alpha channel
            decoded = read_image(path) if pixels is None else pixels
        return LoadedImage(path, decoded.astype(np.uint8, copy=False), data)


def _read_for_classifier(image: str | np.ndarray) -> dict:
    """Does what ImageClassificationInferencer does before its pipeline."""
    pixels = mmcv.imread(image)
    return dict(img=pixels, img_shape=pixels.shape[:2], ori_shape=pixels.shape[:2])


def read_image(path: str) -> np.ndarray:
    """Reads an image.

    Returns:
        np.ndarray: (H, W, 3) in BGR.

    Raises:
        ImageError: If it cannot be read.
    """
    try:
        image = mmcv.imread(path)
    except Exception:  # OpenCV raises an error for empty files
        image = None
    if image is None:
        raise ImageError(f'{path} {why_unreadable(path)}: repair it or remove it.')
    return image


def predict_loaded(inferencer: object, images: Sequence[LoadedImage]) -> list:
    """Predicts images of one size in one batch.

    Args:
        inferencer (object): The result of ``build_inferencer``.
        images (Sequence[LoadedImage]): The images.

    Returns:
        list: A data sample of the framework for each image.
    """
    collate = getattr(inferencer, 'collate_fn', default_collate)
    return list(inferencer.forward(collate([image.data for image in images])))


def predict(inferencer: object, images: Sequence[str | np.ndarray]) -> list:
    """Predicts images in one batch.

    Args:
        inferencer (object): The result of ``build_inferencer``.
        images (Sequence[str | np.ndarray]): Paths, or pixels (H, W, 3) in BGR.

    Returns:
        list: A data sample of the framework for each image.

    Raises:
        ImageError: If an image cannot be read, or the test pipeline fails.
    """
    load = ImageLoader(inferencer)
    loaded = [
        load(image) if isinstance(image, str) else load(f'image {number}', image)
        for number, image in enumerate(images)
    ]
    return predict_loaded(inferencer, loaded)


def find_images(names: Sequence[str], videos: bool = False) -> list[str]:
    """Finds images by name, without reading them.

    Args:
        names (Sequence[str]): Files, folders and patterns such as 'photos/*.jpg'.
        videos (bool): Whether to accept videos as well. Defaults to False.

    Returns:
        list[str]: The path of each image, once.

    Raises:
        DataError: If a name matches no image.
    """
    paths = []
    for name in map(os.path.expanduser, names):
        if os.path.isdir(name):
            found = [path for path in _below(name) if path.lower().endswith(IMAGES + VIDEOS)]
        elif os.path.isfile(name):
            found = [name]
        else:
            found = sorted(filter(os.path.isfile, _matching(name)))
        if not found:
            place = 'in the folder' if os.path.isdir(name) else 'at'
            raise DataError(f'There is no image {place} {name}: name files, folders or patterns.')
        paths += found
    if not videos and (found := [path for path in paths if is_video(path)]):
        raise DataError(f'{found[0]} is a video: name an image.')
    return list(dict.fromkeys(paths))


def is_video(path: str) -> bool:
    return path.lower().endswith(VIDEOS)


def _below(folder: str) -> list[str]:
    """Returns the files below a folder that are not hidden."""
    top = os.path.join(folder, '')
    return [
        path
        for path in files_below(top)
        if not any(part.startswith('.') for part in path.removeprefix(top).split(os.sep))
    ]


def _matching(pattern: str) -> list[str]:
    """Returns the files of a pattern. Unlike with ``glob``, links to folders around end."""
    if '**' not in PurePath(pattern).parts:
        return glob.glob(pattern)
    top, _, tail = pattern.partition('**')
    return [
        path.removeprefix('' if top else './')
        for folder in glob.glob(top or './')
        for path in _below(folder)
        if PurePath(path).match(tail.strip('/') or '*')
    ]
