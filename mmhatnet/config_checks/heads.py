"""Checks the settings of heads and of their tests that depend on each other."""

from collections.abc import Iterator, Sequence

from mmengine.config import Config
from mmengine.registry import MODELS

from mmhatnet.config_walk import class_of, dicts_of
from mmhatnet.errors import ConfigError


def require_fitting_heads(cfg: Config) -> None:
    """Checks class weights, the number of predictions, and sliding windows.

    Raises:
        ConfigError: If they do not fit.
    """
    _require_class_weights(cfg)
    for kept, setting, possible, reason in _limits(cfg):
        if isinstance(kept, int) and isinstance(possible, int) and kept > possible:
            raise ConfigError(
                f'{cfg.filename}: {setting}={kept}, but {reason} give {possible} predictions of '
                f'an image at most: set it to {possible} or less.'
            )
    if cfg.get('default_scope') == 'mmseg':
        _require_windows(cfg)


def _require_class_weights(cfg: Config) -> None:
    for path, head in dicts_of(cfg.model, 'model'):
        for key, what in (('loss_cls', 'and one more for the background, the last'), ('loss', '')):
            loss, number = head.get(key), head.get('num_classes')
            weights = loss.get('class_weight') if isinstance(loss, dict) else None
            if not isinstance(weights, Sequence) or isinstance(weights, str) or number is None:
                continue
            background = key == 'loss_cls' and not loss.get('use_sigmoid')
            wanted = number + background
            if len(weights) != wanted:
                raise ConfigError(
                    f'{cfg.filename}: {path}.{key}.class_weight has {len(weights)} numbers, but '
                    f'num_classes={number} needs {wanted}: one a class'
                    f'{", " + what if background else ""}.'
                )


def _limits(cfg: Config) -> Iterator[tuple[object, str, int | None, str]]:
    """Yields how many predictions a model keeps, the setting, how many there are, and why."""
    if cfg.get('default_scope') != 'mmdet':
        return
    from mmdet.models import DETRHead, MaskFormerFusionHead, SparseRoIHead

    model, test = cfg.model, cfg.model.get('test_cfg') or {}
    head, fusion = (model.get(key) or {} for key in ('bbox_head', 'panoptic_fusion_head'))
    roi_head, rcnn = model.get('roi_head') or {}, test.get('rcnn') or {}
    if _predicts_as(head, DETRHead, '_predict_by_feat_single'):
        queries, classes = model.get('num_queries'), head.get('num_classes')
        loss = head.get('loss_cls') or {}
        # Softmax keeps one class of each query.
        per_query = (
            classes if loss.get('use_sigmoid', loss.get('type') != 'CrossEntropyLoss') else 1
        )
        reason = f'{queries} queries of {classes} classes'
        if loss:
            yield (
                test.get('max_per_img'),
                'model.test_cfg.max_per_img',
                _product(queries, per_query),
                reason,
            )
    if _predicts_as(fusion, MaskFormerFusionHead, 'instance_postprocess'):
        queries = (model.get('panoptic_head') or {}).get('num_queries')
        classes = [fusion.get('num_things_classes'), fusion.get('num_stuff_classes')]
        number = None if None in classes else sum(classes)
        if test.get('instance_on', True):
            yield (
                test.get('max_per_image', 100),
                'model.test_cfg.max_per_image',
                _product(queries, number),
                f'{queries} queries of {number} classes',
            )
    if _predicts_as(roi_head, SparseRoIHead, 'predict_bbox'):
        boxes = (model.get('rpn_head') or {}).get('num_proposals')
        last = roi_head.get('bbox_head')
        last = last[-1] if isinstance(last, (list, tuple)) and last else last or {}
        yield (
            rcnn.get('max_per_img'),
            'model.test_cfg.rcnn.max_per_img',
            _product(boxes, last.get('num_classes')),
            f'{boxes} proposals of {last.get("num_classes")} classes',
        )


def _predicts_as(settings: object, base: type, method: str) -> bool:
    found = class_of(MODELS, settings) if isinstance(settings, dict) else None
    return found is not None and getattr(found, method, None) is getattr(base, method)


def _product(*numbers: object) -> int | None:
    first, second = numbers
    return first * second if isinstance(first, int) and isinstance(second, int) else None


def _require_windows(cfg: Config) -> None:
    """Refuses sliding windows that are no pairs of numbers, or leave gaps."""
    test = cfg.model.get('test_cfg') or {}
    if test.get('mode') != 'slide':
        return
    sizes = [test.get(name) for name in ('crop_size', 'stride')]
    for name, size in zip(('crop_size', 'stride'), sizes):
        pair = isinstance(size, Sequence) and len(size) == 2
        if not pair or not all(isinstance(number, int) and number > 0 for number in size):
            raise ConfigError(
                f"{cfg.filename}: model.test_cfg.mode='slide' needs two pairs, crop_size=(H, W) "
                f'and stride=(H, W), but {name} is {size!r}.'
            )
    if any(step > length for length, step in zip(*sizes)):
        raise ConfigError(
            f'{cfg.filename}: model.test_cfg.stride={tuple(sizes[1])} leaves gaps between windows '
            f'of crop_size={tuple(sizes[0])}: set a stride of that size or less.'
        )
