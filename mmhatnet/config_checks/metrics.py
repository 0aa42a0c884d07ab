"""Checks whether named metrics exist, and whether the evaluators can measure them."""

import contextlib
import inspect
import io
import logging
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from importlib.util import find_spec

import torch
from mmcv.transforms import LoadAnnotations
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import METRICS, MODELS, TRANSFORMS

from mmhatnet.config_checks.settings import PACKAGES, hooks_of
from mmhatnet.config_walk import build_unread, class_of, datasets_of, dicts_of, type_name
from mmhatnet.errors import ConfigError

# Settings of evaluators that read or write files.
OF_FILES = ('ann_file', 'outfile_prefix', 'output_dir', 'format_only')
SIZE = 8


def require_fitting_metrics(cfg: Config, *splits: str) -> None:
    """Checks that the metrics that a job needs can be measured, and that those it names exist.

    Args:
        cfg (Config): The config.
        splits (str): 'train', 'val' or 'test'.

    Raises:
        ConfigError: If not.
    """
    for split in splits:
        if split != 'train':
            _require_package(cfg, split)
            _require_masks(cfg, split)
            _require_label_maps(cfg, split)
    if 'val' in splits and cfg.get('val_evaluator') is not None:
        _require_names(cfg)


def _evaluators(cfg: Config, split: str) -> list[dict]:
    given = cfg.get(f'{split}_evaluator') or []
    several = given if isinstance(given, (list, tuple)) else [given]
    return [one for one in several if isinstance(one, dict)]


def _require_package(cfg: Config, split: str) -> None:
    """Refuses FasterCocoMetric without its package, which MMDetection misses after an epoch."""
    names = {type_name(part) for _, part in dicts_of(cfg.get(f'{split}_evaluator'))}
    if 'FasterCocoMetric' in names and find_spec('faster_coco_eval') is None:
        raise ConfigError(
            f'{cfg.filename}: FasterCocoMetric in {split}_evaluator needs a package that is not '
            "installed: pip install faster-coco-eval, or use type='CocoMetric', which is slower."
        )


def _require_masks(cfg: Config, split: str) -> None:
    """Refuses the metric of masks for a detector that predicts none."""
    for evaluator in _evaluators(cfg, split):
        metric = evaluator.get('metric') or ()
        if cfg.get('default_scope') != 'mmdet' or 'segm' not in metric or _predicts_masks(cfg):
            continue
        raise ConfigError(
            f"{cfg.filename}: {split}_evaluator.metric has 'segm', but no part of the model "
            "predicts masks: set metric='bbox', or give the model a mask head."
        )


def _predicts_masks(cfg: Config) -> bool:
    for _, part in dicts_of(cfg.model):
        found = class_of(MODELS, part)
        for base in found.__mro__ if found else ():
            package = base.__module__.partition('.')[0]
            if package in ('builtins', 'torch', 'abc', 'mmengine'):
                continue
            if package not in PACKAGES or _sets_masks(base.__module__):
                return True  # code of the user may do anything
    return False


def _sets_masks(module: str) -> bool:
    return 'results.masks' in inspect.getsource(sys.modules[module])


def _require_label_maps(cfg: Config, split: str) -> None:
    """Refuses a test of a segmentor on images without masks."""
    if cfg.get('default_scope') != 'mmseg':
        return
    from mmseg.evaluation import IoUMetric

    for evaluator in _evaluators(cfg, split):
        found = class_of(METRICS, evaluator)
        if not found or not issubclass(found, IoUMetric) or evaluator.get('format_only'):
            continue
        for dataset in datasets_of(cfg, split):
            classes = [
                class_of(TRANSFORMS, step)
                for _, step in dicts_of(dataset.get('pipeline') or [])
                if 'type' in step
            ]
            known = all(c and c.__module__.partition('.')[0] in PACKAGES for c in classes)
            if classes and known and not any(issubclass(c, LoadAnnotations) for c in classes):
                raise ConfigError(
                    f'{cfg.filename}: the pipeline of {split}_dataloader loads no masks, and '
                    f'{type_name(evaluator)} has nothing to compare with: add '
                    "dict(type='LoadAnnotations') before PackSegInputs; or, without masks, "
                    f'{split}_evaluator.format_only=True and --out FOLDER, or `mmhatnet predict`.'
                )


def _require_names(cfg: Config) -> None:
    wanted = [(where, name) for where, name in _named(cfg) if name != 'auto' and 'loss' not in name]
    reported = metrics_of(cfg, 'val') if wanted else None
    for where, name in wanted if reported else ():
        if name in reported:
            continue
        prefixed = [one for one in reported if one.endswith(f'/{name}')]
        meant = prefixed or get_close_matches(name, reported, n=1, cutoff=0.5)
        hint = f'; perhaps {meant[0]!r} is meant' if meant else ''
        names = ', '.join(reported[:30]) + (', ...' if len(reported) > 30 else '')
        raise ConfigError(
            f'{cfg.filename}: {where}={name!r} is no metric of val_evaluator{hint}. It reports '
            f'{names}.'
        )


def _named(cfg: Config) -> Iterator[tuple[str, str]]:
    """Yields the settings that name metrics, and each name."""
    schedules = cfg.get('param_scheduler') or []
    several = schedules if isinstance(schedules, (list, tuple)) else [schedules]
    places = [*hooks_of(cfg), *((f'param_scheduler.{i}', one) for i, one in enumerate(several))]
    for where, part in places:
        for key in ('save_best', 'monitor'):
            names = part.get(key) if isinstance(part, dict) else None
            for name in names if isinstance(names, (list, tuple)) else [names]:
                if isinstance(name, str):
                    yield f'{where}.{key}', name


def metrics_of(cfg: Config, split: str) -> list[str] | None:
    """Returns the names of the metrics that the evaluators of a split report.

    The evaluators are asked: each evaluates a made-up prediction.

    Args:
        cfg (Config): The config.
        split (str): 'val' or 'test'.

    Returns:
        list[str] | None: The names, or None if an evaluator needs another prediction.
    """
    names: list[str] = []
    logger = MMLogger.get_current_instance()
    level = logger.level
    try:
        meta = dict(build_unread(next(datasets_of(cfg, split))).metainfo)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            logger.setLevel(logging.CRITICAL)
            for settings in _evaluators(cfg, split):
                kept = {key: value for key, value in settings.items() if key not in OF_FILES}
                metric = METRICS.build(kept)
                metric.dataset_meta = meta
                metric.process({}, [_prediction(len(meta['classes']))])
                prefix = f'{metric.prefix}/' if metric.prefix else ''
                names += [f'{prefix}{name}' for name in metric.compute_metrics(metric.results)]
    except Exception:  # an evaluator of another task or of the user
        return None
    finally:
        logger.setLevel(level)
    return names


def _prediction(classes: int) -> dict:
    """Returns a prediction of all three frameworks, and its ground truth."""
    box, label = torch.tensor([[0.0, 0.0, SIZE / 2, SIZE / 2]]), torch.tensor([0])
    masks = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    masks[:, : SIZE // 2, : SIZE // 2] = True
    score = torch.zeros(classes)
    score[0] = 1.0
    polygon = [[0, 0, SIZE / 2, 0, SIZE / 2, SIZE / 2, 0, SIZE / 2]]
    instance = dict(bbox=box[0].tolist(), bbox_label=0, ignore_flag=0, mask=polygon)
    label_map = dict(data=torch.zeros(1, SIZE, SIZE, dtype=torch.long))
    return dict(
        img_id=0,
        img_path='',
        ori_shape=(SIZE, SIZE),
        pred_instances=dict(bboxes=box, scores=torch.tensor([1.0]), labels=label, masks=masks),
        gt_instances=dict(bboxes=box, labels=label),
        ignored_instances=dict(bboxes=box[:0], labels=label[:0]),
        instances=[instance],
        pred_sem_seg=label_map,
        gt_sem_seg=label_map,
        pred_score=score,
        pred_label=label,
        gt_label=label,
        gt_score=score,
        num_classes=classes,
    )
