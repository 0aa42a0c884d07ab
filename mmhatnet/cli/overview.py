"""Describes a job before its first step, in a line for each part of it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.dist import get_world_size
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.scheduler.param_scheduler import LinearParamScheduler
from mmengine.runner import EpochBasedTrainLoop, FlexibleRunner, Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmhatnet.backbones.base import Backbone
from mmhatnet.checkpoints.safe_loader import Checkpoint
from mmhatnet.config_walk import datasets_of
from mmhatnet.data_checks import Report

PACKAGE = dict(mmdet='MMDetection', mmseg='MMSegmentation', mmpretrain='MMPretrain')


def describe_job(
    runner: Runner, cfg: Config, report: Report | None, weights: str, *splits: str
) -> Iterator[tuple[str, str]]:
    """Yields the lines of an overview, each with a label.

    Args:
        runner (Runner): The runner, which is about to begin.
        cfg (Config): The config, with the settings of this run.
        report (Report | None): What the data check found; None without one.
        weights (str): Where the weights are from; '' if the model says it.
        splits (str): 'train', 'val' or 'test'.
    """
    training = 'train' in splits
    doing = 'training' if training else 'test'
    package = PACKAGE.get(cfg.get('default_scope'), cfg.get('default_scope'))
    parts: dict[str, Callable[[], str]] = dict(
        job=lambda: f'{doing} of {relative(cfg.filename)} ({package})',
        data=lambda: _data(runner, cfg, report, splits),
        model=lambda: _model(runner, cfg, training),
        weights=lambda: weights or _weights(runner),
        device=lambda: _device(runner),
        recipe=lambda: _recipe(runner) if training else '',
        folder=lambda: relative(cfg.work_dir),
    )
    for label, describe in parts.items():
        try:
            text = describe()
        except Exception as error:  # a description must not end a job
            text = f'not known ({type(error).__name__}: {error})'
        if text:
            yield label, text


def _data(runner: Runner, cfg: Config, report: Report | None, splits: tuple[str, ...]) -> str:
    lines, classes = [], None
    for split in splits:
        loader = getattr(runner, f'{split}_dataloader')
        if loader is None or isinstance(loader, dict):
            continue
        counts = report.counts.get('Data', {}) if report else {}
        found = {row: cells[split] for row, cells in counts.items() if split in cells}
        images = len(loader.dataset)
        if not isinstance(loader.dataset, BaseDataset):  # a wrapper, which may repeat them
            images = found.get('images used', found.get('images', images))
        words = counted(images, 'image')
        if 'objects' in found:
            words += f', {counted(found["objects"], "object")}'
        settings = next(datasets_of(cfg, split), {})
        place = found.get('annotation file', found.get('folder', settings.get('data_root')))
        lines.append(f'{split + ":":6} {words}' + (f', in {_short(place)}' if place else ''))
        classes = getattr(loader.dataset, 'metainfo', {}).get('classes') or classes
    if classes:
        named = ', '.join(map(str, classes[:6])) + ', ...' * (len(classes) > 6)
        lines.append(f'{counted(len(classes), "class", "classes")}: {named}')
    return '\n'.join(lines)


def _short(place: object) -> str:
    first, *others = str(place).split('\n')
    return f'{first} and {len(others)} more' if others else first


def _model(runner: Runner, cfg: Config, training: bool) -> str:
    model = _unwrapped(runner)
    text = type(model).__name__
    if backbone := getattr(model, 'backbone', None):
        arch = (cfg.model.get('backbone') or {}).get('arch')
        text += f' with {type(backbone).__name__}' + (f' {arch}' if isinstance(arch, str) else '')
    if _is_sharded(runner):
        return text
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)
    text += f', {total / 1e6:,.1f} million parameters'
    if training and trained < total:
        text += f', of which {trained / 1e6:,.1f} million are trained'
    return text


def _weights(runner: Runner) -> str:
    """Says which parts of a model started from files."""
    found, sharded = [], _is_sharded(runner)
    for name, module in _unwrapped(runner).named_modules():
        given = getattr(module, 'init_cfg', None)
        for init in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(init, dict) and str(init.get('type')).startswith('Pretrained'):
                place = init.get('checkpoint')
                if isinstance(module, Backbone) and not sharded:
                    what = module.require_loaded().partition(' are in ')[0]
                    found.append(f'{what} are those of {place}')
                else:  # MMEngine warns of those that do not fit
                    found.append(f'{name} starts from those of {place} that fit')
    return f'{"; ".join(found)}; the rest is random' if found else 'random: no checkpoint is named'


def _device(runner: Runner) -> str:
    parameter = next(_unwrapped(runner).parameters())
    device = parameter.device
    text = torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type.upper()
    wrapper, dtype = runner.optim_wrapper, str(parameter.dtype).removeprefix('torch.')
    text += ', mixed precision' if isinstance(wrapper, AmpOptimWrapper) else f', {dtype}'
    return f'{text}, {counted(get_world_size(), "process", "processes")}'


def _recipe(runner: Runner) -> str:
    loop, wrapper = runner.train_loop, runner.optim_wrapper
    if isinstance(loop, EpochBasedTrainLoop):
        iterations = counted(len(loop.dataloader), 'iteration')
        text = f'{counted(loop.max_epochs, "epoch")} of {iterations}'
    else:
        text = counted(loop.max_iters, 'iteration')
    size = getattr(loop.dataloader, 'batch_size', None) or loop.dataloader.batch_sampler.batch_size
    size *= get_world_size() * getattr(wrapper, '_accumulative_counts', 1)
    text += f', batch size {size:,}, {type(wrapper.optimizer).__name__}'
    rates = [group.get('initial_lr', group['lr']) for group in wrapper.optimizer.param_groups]
    text += f', learning rate {max(rates):.3g}'
    schedulers = runner.param_schedulers
    for scheduler in schedulers if isinstance(schedulers, list) else ():
        warms_up = isinstance(scheduler, LinearParamScheduler) and scheduler.begin == 0
        if warms_up and scheduler.start_factor < 1:
            unit = 'epoch' if scheduler.by_epoch else 'iteration'
            text += f' after {counted(scheduler.total_iters + 1, unit)} of warm-up'
    return text


def _is_sharded(runner: Runner) -> bool:
    """Returns whether processes may hold parts of the weights, and count them only together."""
    return isinstance(runner, FlexibleRunner) or any(
        isinstance(module, FullyShardedDataParallel) for module in runner.model.modules()
    )


def _unwrapped(runner: Runner) -> nn.Module:
    model = runner.model
    return model.module if is_model_wrapper(model) else model


def describe_resume(checkpoint: Checkpoint, runner: Runner) -> str:
    """Says where a training resumes."""
    return f'{checkpoint}, after {counted(runner.iter, "iteration")}'


def counted(number: int, unit: str, units: str = '') -> str:
    """Returns a number with its unit."""
    return f'{number:,} {unit if number == 1 else units or unit + "s"}'


def relative(path: str | Path) -> str:
    """Returns a path as seen from the current folder if it is in there."""
    inside = os.path.relpath(path)
    return str(path) if inside.startswith(os.pardir) else inside
