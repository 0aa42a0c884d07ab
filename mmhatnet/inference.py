"""Predicts with the inferencer of a model's framework."""

import copy
import glob
import inspect
import os
import warnings
from collections.abc import Sequence

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torchvision.datasets.folder import IMG_EXTENSIONS

from mmhatnet.checkpoints.folder import find_checkpoint
from mmhatnet.checkpoints.loading import load_weights, verify_checkpoint
from mmhatnet.checkpoints.safe_loader import Checkpoint
from mmhatnet.config_checks import (
    build_errors_as_messages,
    require_channels,
    require_known_settings,
)
from mmhatnet.config_walk import build_unread, datasets_of
from mmhatnet.data_checks.images import why_unreadable
from mmhatnet.data_checks.report import preview
from mmhatnet.errors import ConfigError, DataError
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
    with build_errors_as_messages(cfg), warnings.catch_warnings():
        # The weights are loaded below, where missing ones are refused.
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


class Frame(str):
    """A frame of a video, as a path in a folder that has the video's name.

    Attributes:
        file (str): The video.
        reader (mmcv.VideoReader): Reads the frames in order, each once.
    """

    def __new__(cls, file: str, number: int, reader: mmcv.VideoReader) -> 'Frame':
        frame = super().__new__(cls, os.path.join(file, f'{number:06d}'))
        frame.file, frame.reader = file, reader
        return frame


def predict(inferencer: object, images: Sequence[str | np.ndarray]) -> list:
    """Predicts images in one batch.

    Args:
        inferencer (object): The result of ``build_inferencer``.
        images (Sequence[str | np.ndarray]): Paths, or pixels (H, W, 3) in BGR.

    Returns:
        list: A data sample of the framework for each image.
    """
    result = inferencer(list(images), batch_size=len(images), return_datasamples=True)
    samples = result['predictions'] if isinstance(result, dict) else result
    return list(samples) if isinstance(samples, (list, tuple)) else [samples]


def find_images(names: Sequence[str], videos: bool = False) -> dict[str, tuple[int, int]]:
    """Finds images by name, and reads each to check it.

    Args:
        names (Sequence[str]): Files, folders and patterns such as 'photos/*.jpg'.
        videos (bool): Whether to accept videos as well. Defaults to False.

    Returns:
        dict[str, tuple[int, int]]: The (height, width) of each image, by its path. Each frame of a
        video has an entry of its own, a ``Frame``, in order.

    Raises:
        DataError: If a name matches no image, or an image cannot be read.
    """
    paths = []
    for name in names:
        if os.path.isdir(name):
            below = glob.glob(os.path.join(glob.escape(name), '**'), recursive=True)
            found = sorted(path for path in below if path.lower().endswith(IMG_EXTENSIONS + VIDEOS))
        else:
            found = [name] if os.path.isfile(name) else sorted(glob.glob(name, recursive=True))
            found = [path for path in found if os.path.isfile(path)]
        if not found:
            place = 'in the folder' if os.path.isdir(name) else 'at'
            raise DataError(f'There is no image {place} {name}: name files, folders or patterns.')
        paths += found
    sizes = {}
    for path in paths:
        is_video = path.lower().endswith(VIDEOS)
        if is_video and not videos:
            raise DataError(f'{path} is a video: name an image.')
        sizes.update(_frames(path) if is_video else {path: _size(path)})
    if unreadable := [path for path, size in sizes.items() if size is None]:
        reasons = preview(f'{path} {why_unreadable(path)}' for path in unreadable)
        raise DataError(
            f'{len(unreadable)} of {len(sizes)} images cannot be read, {reasons}: repair them or '
            'remove them.'
        )
    return sizes


def _frames(path: str) -> dict[Frame, tuple[int, int]]:
    """Returns the frames that can be decoded. A file may state another number of them."""
    shapes = [frame.shape for frame in mmcv.VideoReader(path)]
    if not shapes:
        raise DataError(f'{path} cannot be read as a video: repair it or remove it.')
    reader = mmcv.VideoReader(path)
    if len(shapes) < len(reader):
        print(f'{path} states {len(reader)} frames, of which {len(shapes)} can be read.')
    return {Frame(path, number, reader): shape[:2] for number, shape in enumerate(shapes)}


def _size(path: str) -> tuple[int, int] | None:
    try:
        image = mmcv.imread(path)
    except Exception:  # OpenCV raises an error for empty files
        return None
    return None if image is None else image.shape[:2]
