"""Checks whether loops end, and whether loops, samplers, schedules and hooks count the same."""

import logging
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.optim.scheduler.param_scheduler import ReduceOnPlateauParamScheduler
from mmengine.registry import DATA_SAMPLERS, HOOKS, LOOPS, PARAM_SCHEDULERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader

from mmhatnet.config_checks.settings import hooks_of
from mmhatnet.config_walk import class_of, type_name
from mmhatnet.errors import ConfigError

# Settings of a data loader that PyTorch refuses without worker processes.
OF_WORKERS = ('persistent_workers', 'prefetch_factor', 'multiprocessing_context', 'timeout')


def drop_worker_settings(cfg: Config) -> None:
    """Removes the settings of workers from data loaders that have none.

    Args:
        cfg (Config): The config, which is changed.
    """
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        for one in loader if isinstance(loader, (list, tuple)) else [loader]:
            if isinstance(one, dict) and one.get('num_workers') == 0:
                for name in OF_WORKERS:
                    one.pop(name, None)


def require_fitting_loops(cfg: Config, *splits: str) -> None:
    """Checks that loops end, and that schedules and checkpoint hooks count as the training does.

    Args:
        cfg (Config): The config.
        splits (str): 'train', 'val' or 'test'.

    Raises:
        ConfigError: If not.
    """
    by_epoch = _counts_epochs(cfg.get('train_cfg') or {})
    for split in splits:
        loader = cfg.get(f'{split}_dataloader') or {}
        sampler = loader.get('sampler') if isinstance(loader, dict) else None
        endless = isinstance(sampler, dict) and _is_endless(class_of(DATA_SAMPLERS, sampler))
        if not endless or (split == 'train' and by_epoch is not True):
            continue
        what, ways = f'the loop of {split}', ''
        if split == 'train':
            what = 'an epoch of train_cfg'
            ways = '; or train by iterations with train_cfg.type=IterBasedTrainLoop and max_iters'
        shuffle = split == 'train'
        raise ConfigError(
            f'{cfg.filename}: {what} never ends, because {split}_dataloader.sampler is an '
            f"{type_name(sampler)}: set it to dict(type='DefaultSampler', shuffle={shuffle})"
            f'{", and by_epoch=True where hooks and schedules count epochs" if shuffle else ""}'
            f'{ways}.'
        )
    if 'train' in splits and by_epoch is False:
        _require_iterations(cfg)


def _require_iterations(cfg: Config) -> None:
    """Refuses what waits for the end of epochs in a training that counts iterations."""
    waiting = [
        f'param_scheduler: {type_name(schedule)}'
        for schedule in _schedules(cfg.get('param_scheduler'))
        if schedule.get('by_epoch', True) and not schedule.get('convert_to_iter_based')
        if not _follows_a_metric(schedule)
    ]
    waiting += [
        where
        for where, hook in hooks_of(cfg)
        if _is(class_of(HOOKS, hook), CheckpointHook)
        if hook.get('by_epoch', True) and hook.get('interval', -1) > 0
    ]
    if waiting:
        raise ConfigError(
            f'{cfg.filename}: train_cfg counts iterations and never ends an epoch, so that these '
            f'never act before the end: {", ".join(waiting)}. Set by_epoch=False in them and in '
            'log_processor, with begin, end, milestones and interval in iterations; or '
            "train_cfg=dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=N)."
        )


def _counts_epochs(loop: dict) -> bool | None:
    """Returns whether a training loop counts epochs or iterations, or None if that is unknown."""
    if 'type' not in loop:
        return loop.get('by_epoch')
    found = class_of(LOOPS, loop)
    if _is(found, EpochBasedTrainLoop):
        return True
    return False if _is(found, IterBasedTrainLoop) else None


def _is(found: type | None, base: type) -> bool:
    return found is not None and issubclass(found, base)


def _is_endless(sampler: type | None) -> bool:
    # All endless samplers of MMEngine and MMDetection have this method.
    return hasattr(sampler, '_infinite_indices')


def _follows_a_metric(schedule: dict) -> bool:
    return _is(class_of(PARAM_SCHEDULERS, schedule), ReduceOnPlateauParamScheduler)


def _schedules(settings: object) -> Iterator[dict]:
    """Yields the dicts of schedules, of one or more optimizers."""
    if isinstance(settings, dict) and 'type' in settings:
        yield settings
    elif isinstance(settings, (dict, list, tuple)):
        for part in settings.values() if isinstance(settings, dict) else settings:
            yield from _schedules(part)


def require_batches(loader: DataLoader) -> None:
    """Checks that a data loader has a batch.

    Args:
        loader (DataLoader): The data loader, as built.

    Raises:
        ConfigError: If it has none.
    """
    try:
        batches, images = len(loader), len(loader.dataset)  # type: ignore[arg-type]
    except TypeError:  # a dataset without a length
        return
    sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    if batches or _is_endless(type(sampler)):
        return
    if not images:
        reason = 'its dataset has no images: see what its settings filter out'
    else:
        size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None)
        processes = f' in each of {get_world_size()} processes' if get_world_size() > 1 else ''
        reason = (
            f'{images} images make no batch of {size}{processes}, and drop_last=True drops the '
            'rest: set a smaller batch_size, or drop_last=False'
        )
    raise ConfigError(f'A data loader has no batches: {reason}.')


def report_long_schedules(settings: object, epochs: int, iterations: int) -> None:
    """Prints a line for schedules that end after the training.

    Args:
        settings (object): The schedules in the config.
        epochs (int): The epochs of the training.
        iterations (int): Its iterations.
    """
    for schedule in _schedules(settings):
        by_epoch = schedule.get('by_epoch', True)
        last, unit = (epochs, 'epochs') if by_epoch else (iterations, 'iterations')
        end = schedule.get('end')
        if isinstance(end, int) and last and end > last and is_main_process():
            print_log(
                f'param_scheduler: {type_name(schedule)} ends after {end} {unit}, but the training '
                f'ends after {last}: its last values are never reached.',
                logger='current',
                level=logging.WARNING,
            )
