"""Checks whether pipelines fit the annotations that they load, and the batches that they fill."""

import inspect

import numpy as np
from mmcv.transforms import LoadAnnotations
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from PIL import Image

from mmhatnet.config_checks.settings import PACKAGES
from mmhatnet.config_walk import build_unread, class_of, datasets_of, dicts_of
from mmhatnet.errors import ConfigError


def require_masks_kept(cfg: Config, *splits: str) -> None:
    """Checks that no transform of a detector's pipeline moves boxes without their masks.

    Args:
        cfg (Config): The config.
        splits (str): 'train', 'val' or 'test'.

    Raises:
        ConfigError: If one does.
    """
    if cfg.get('default_scope') != 'mmdet':
        return
    for split in splits:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        found = [(step, class_of(TRANSFORMS, step)) for _, step in dicts_of(dataset)]
        loaded = any(
            cls and issubclass(cls, LoadAnnotations) and step.get('with_mask')
            for step, cls in found
        )
        for _, cls in found if loaded else ():
            if cls and not _moves_masks(cls):
                cached = class_of(TRANSFORMS, dict(type=f'Cached{cls.__name__}'))
                other = f'Cached{cls.__name__} or CopyPaste' if cached else 'CopyPaste'
                raise ConfigError(
                    f'{cfg.filename}: the {split} pipeline loads masks, and {cls.__name__} moves '
                    f'boxes but not masks: use {other}; or, for a detector of boxes alone, set '
                    'with_mask=False in LoadAnnotations.'
                )


def _moves_masks(transform: type) -> bool:
    """Returns whether a transform handles the masks of the boxes and labels that it changes."""
    bases = [base for base in transform.__mro__ if base.__module__.partition('.')[0] in PACKAGES]
    if bases[:1] != [transform]:  # the user's own
        return True
    source = ''.join(map(inspect.getsource, bases))
    return 'gt_masks' in source or not ('gt_bboxes' in source and 'gt_bboxes_labels' in source)


def require_equal_shapes(cfg: Config, *splits: str) -> None:
    """Checks that the images of a segmentor's batches have one shape, in validation and in tests.

    MMSegmentation pads the batches of a training alone. The headers of the images are read.

    Args:
        cfg (Config): The config.
        splits (str): 'train', 'val' or 'test'.

    Raises:
        ConfigError: If shapes differ.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader') or {}
        size = loader.get('batch_size', 1)
        if split == 'train' or size == 1 or cfg.get('default_scope') != 'mmseg':
            continue
        try:
            shapes = _two_shapes(cfg, split)
        except Exception:  # a pipeline or dataset of the user, or images that the data check names
            continue
        if shapes:
            (first, one), (second, other) = shapes.items()
            raise ConfigError(
                f'{cfg.filename}: {split}_dataloader.batch_size={size}, but images have the shapes '
                f'{first} ({one}) and {second} ({other}) after the pipeline, and a segmentor '
                f'{"validates" if split == "val" else "tests"} batches of one shape only: set '
                'batch_size=1.'
            )


def _two_shapes(cfg: Config, split: str) -> dict[tuple[int, int], str] | None:
    """Returns two shapes (H, W) that images have after a pipeline and a file of each, if any."""
    found: dict[tuple[int, int], str] = {}
    seen = set()
    for settings in datasets_of(cfg, split):
        steps = [
            TRANSFORMS.build(step)
            for step in settings.pipeline
            if not str(step['type']).split('.')[-1].startswith(('Load', 'Pack'))
        ]
        for entry in build_unread(settings).load_data_list():
            with Image.open(entry['img_path']) as image:
                width, height = image.size
            if (height, width) in seen:
                continue
            seen.add((height, width))
            shape = (height, width)
            result = dict(img=np.zeros((*shape, 3), np.uint8), img_shape=shape, ori_shape=shape)
            result['seg_fields'] = []
            for step in steps:
                result = step(result)
            found.setdefault(tuple(result['img'].shape[:2]), entry['img_path'])
            if len(found) == 2:
                return found
    return None
