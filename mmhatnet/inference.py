"""Predictions of a model by the inferencer of its framework, for the tools that show them."""

import argparse
import glob
import inspect
import os
import warnings
from collections.abc import Sequence

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from torchvision.datasets.folder import IMG_EXTENSIONS

from mmhatnet import cli
from mmhatnet.checkpoints.loading import find_checkpoint, load_weights, verify_checkpoint
from mmhatnet.checkpoints.safe_loader import Checkpoint
from mmhatnet.openmmlab.patches import apply_patches
from mmhatnet.preflight import build_unread, datasets_of
from mmhatnet.preflight.configs import (
    require_channels,
    require_known_settings,
    wrong_settings_in_a_sentence,
)
from mmhatnet.preflight.pictures import trouble_of
from mmhatnet.preflight.report import some

VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')


def inference_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that tools for single pictures share, before those for the pictures."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='the config of the job')
    parser.add_argument('checkpoint', help='the checkpoint, or the work folder of a training')
    parser.add_argument('--device', help='such as cpu or cuda:1 (default: a GPU if there is one)')
    cli.add_settings_option(parser)
    return parser


def load_job(args: argparse.Namespace) -> Config:
    """Reads the config, and checks it, the checkpoint and the device that the arguments name.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
        SystemExit: If something else is wrong.
    """
    cfg = cli.load_config(args)
    if cfg.get('default_scope') not in ('mmdet', 'mmseg', 'mmpretrain'):
        raise SystemExit(
            f'{args.config}: default_scope is {cfg.get("default_scope")!r}, and predictions are '
            "for 'mmdet', 'mmseg' and 'mmpretrain'."
        )
    datasets = list(datasets_of(cfg, 'test'))
    if not isinstance(cfg.get('model'), dict) or not datasets or not datasets[0].get('pipeline'):
        raise SystemExit(
            f'{args.config}: a prediction needs model and test_dataloader.dataset.pipeline.'
        )
    # The inferencers look for the pipeline in the outermost dataset.
    cfg.test_dataloader.dataset = datasets[0]
    args.checkpoint = Checkpoint(find_checkpoint(args.checkpoint) or args.checkpoint)
    require_known_settings(cfg)
    require_channels(cfg, 'test')
    args.device = args.device or get_device()
    try:
        torch.empty(0, device=args.device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0].partition(': ')[0].rstrip('.')
        raise SystemExit(
            f'--device {args.device} cannot be used ({reason}): leave it out, or name cpu.'
        ) from error
    return cfg


def build_inferencer(cfg: Config, checkpoint: str | Checkpoint, device: str) -> object:
    """Builds the framework's own inferencer, with the weights of a checkpoint.

    Args:
        cfg (Config): The config, as ``load_job`` gives it.
        checkpoint (str | Checkpoint): The checkpoint, of which nothing is executed. The names of
            classes come from it, or if it has none, from the test dataset.
        device (str): Where the model goes.

    Returns:
        object: An mmdet.apis.DetInferencer, mmseg.apis.MMSegInferencer or
        mmpretrain.ImageClassificationInferencer, whose ``classes`` are the names.

    Raises:
        CheckpointError: If the checkpoint is of another model.
        SystemExit: If a class of the config does not know a setting.
    """
    if isinstance(checkpoint, str):
        checkpoint = Checkpoint(checkpoint)
    apply_patches()
    init_default_scope(cfg.default_scope)
    with wrong_settings_in_a_sentence(cfg), warnings.catch_warnings():
        # The weights come below, where nothing stays random unnoticed.
        warnings.simplefilter('ignore')
        if cfg.default_scope == 'mmdet':
            from mmdet.apis import DetInferencer

            cfg.visualizer = dict(type='DetLocalVisualizer', vis_backends=[])
            inferencer = DetInferencer(cfg, device=device, show_progress=False)
        elif cfg.default_scope == 'mmseg':
            from mmseg.apis import MMSegInferencer

            cfg.visualizer = dict(type='SegLocalVisualizer', vis_backends=[], alpha=0.5)
            # The original one has no such option.
            known = inspect.signature(MMSegInferencer).parameters
            quiet = dict(show_progress=False) if 'show_progress' in known else {}
            inferencer = MMSegInferencer(cfg, device=device, **quiet)
        else:
            from mmpretrain import ImageClassificationInferencer
            from mmpretrain.utils import progress

            progress.disable_progress_bar = True  # the tools show one of all batches
            inferencer = ImageClassificationInferencer(cfg, pretrained=False, device=device)
        meta = dict(build_unread(cfg.test_dataloader.dataset).metainfo)
    verify_checkpoint(checkpoint, inferencer.model)
    load_weights(inferencer.model, checkpoint)
    meta.update(checkpoint.meta.get('dataset_meta') or {})
    inferencer.classes = meta.get('classes')
    if cfg.default_scope != 'mmpretrain':
        if inferencer.classes is None:
            raise SystemExit(
                f'{checkpoint} has no names of classes, and neither has the test dataset of '
                f'{cfg.filename}: set test_dataloader.dataset.metainfo=dict(classes=...).'
            )
        inferencer.visualizer.dataset_meta = dict(
            classes=inferencer.classes, palette=meta.get('palette') or 'random'
        )
    return inferencer


class Frame(str):
    """A frame of a video: the path that it would have in a folder of the video's name.

    Attributes:
        file (str): The video.
        reader (mmcv.VideoReader): What reads the frames, in their order and each once.
    """

    def __new__(cls, file: str, number: int, reader: mmcv.VideoReader) -> 'Frame':
        frame = super().__new__(cls, os.path.join(file, f'{number:06d}'))
        frame.file, frame.reader = file, reader
        return frame


def predict(inferencer: object, pictures: Sequence[str | np.ndarray]) -> list:
    """Predicts pictures in one batch: a data sample of the framework for each of them.

    Args:
        inferencer (object): What ``build_inferencer`` gives.
        pictures (Sequence[str | np.ndarray]): Their paths, or their pixels (H, W, 3) in BGR.
    """
    result = inferencer(list(pictures), batch_size=len(pictures), return_datasamples=True)
    samples = result['predictions'] if isinstance(result, dict) else result
    return list(samples) if isinstance(samples, (list, tuple)) else [samples]


def find_pictures(names: Sequence[str], videos: bool = False) -> dict[str, tuple[int, int]]:
    """Finds and reads the pictures that a user names.

    Args:
        names (Sequence[str]): Files, folders and patterns such as 'photos/*.jpg'.
        videos (bool): Whether videos are read as well. Defaults to False.

    Returns:
        dict[str, tuple[int, int]]: Their paths, and the (height, width) of each; of a video a
        ``Frame`` for each of its frames, in their order.

    Raises:
        SystemExit: If there is none under one of the names, or one of them cannot be read.
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
            kind = 'in the folder' if os.path.isdir(name) else 'at'
            raise SystemExit(f'There is no picture {kind} {name}: name files, folders or patterns.')
        paths += found
    sizes = {}
    for path in paths:
        is_video = path.lower().endswith(VIDEOS)
        if is_video and not videos:
            raise SystemExit(f'{path} is a video: name a picture.')
        sizes.update(_frames(path) if is_video else {path: _size(path)})
    if unreadable := [path for path, size in sizes.items() if size is None]:
        raise SystemExit(
            f'{len(unreadable)} of {len(sizes)} pictures cannot be read, '
            f'{some(f"{path} {trouble_of(path)}" for path in unreadable)}: mend them or leave them '
            'out.'
        )
    return sizes


def _frames(path: str) -> dict[Frame, tuple[int, int]]:
    """The frames that can be decoded: how many the file says that it has may be an estimate."""
    shapes = [frame.shape for frame in mmcv.VideoReader(path)]
    if not shapes:
        raise SystemExit(f'{path} cannot be read as a video: mend it or leave it out.')
    reader = mmcv.VideoReader(path)
    if len(shapes) < len(reader):
        print(f'{path} says that it has {len(reader)} frames: {len(shapes)} can be read.')
    return {Frame(path, number, reader): shape[:2] for number, shape in enumerate(shapes)}


def _size(path: str) -> tuple[int, int] | None:
    try:
        picture = mmcv.imread(path)
    except Exception:  # OpenCV's of an empty file
        return None
    return None if picture is None else picture.shape[:2]
