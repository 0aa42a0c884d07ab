"""The part of a report on the settings of the job and the versions of the packages."""

import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from mmengine.dist import get_world_size
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.runner.base_loop import BaseLoop

import mmhatnet
from mmhatnet.config_walk import datasets_of
from mmhatnet.report.parts import Section, Table

PACKAGES = {
    'PyTorch': ['torch'],
    'MMEngine': ['onedl-mmengine', 'mmengine'],
    'MMCV': ['onedl-mmcv', 'mmcv', 'mmcv-lite'],
    'MMDetection': ['onedl-mmdetection', 'mmdet'],
    'MMSegmentation': ['onedl-mmsegmentation', 'mmsegmentation'],
    'MMPretrain': ['onedl-mmpretrain', 'mmpretrain'],
    'NumPy': ['numpy'],
}
SCOPES = dict(mmdet='MMDetection', mmseg='MMSegmentation', mmpretrain='MMPretrain')


def settings(runner: Runner, loops: dict[str, BaseLoop | None], checkpoint: str | None) -> Section:
    """Describes a job.

    Args:
        runner (Runner): The runner of the job.
        loops (dict[str, BaseLoop | None]): The loops that ran, by their split.
        checkpoint (str | None): The checkpoint that was tested, or None for a training.

    Returns:
        Section: Its settings, and the versions of the packages.
    """
    cfg, rows = runner.cfg, []
    for split, loop in loops.items():
        if loop is not None:
            places = ', '.join(
                str(dataset.get('ann_file') or dataset.get('data_root') or dataset.get('type'))
                if not dataset.get('data_root')
                else str(Path(dataset.data_root, dataset.get('ann_file') or ''))
                for dataset in datasets_of(cfg, split)
            )
            rows.append([f'data, {split}', f'{places} ({length_of(loop)})'])
    model = getattr(runner.model, 'module', runner.model)
    backbone = getattr(model, 'backbone', None)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    arch = (cfg.model.get('backbone') or {}).get('arch')
    named = f' with {type(backbone).__name__}' if backbone is not None else ''
    named += f' {arch}' if isinstance(arch, str) else ''
    rows.append(['model', f'{type(model).__name__}{named}, {parameters:.1f} M parameters'])
    if checkpoint is None:
        rows += _recipe(runner)
    else:
        rows.append(['checkpoint', checkpoint])
    device = next((p.device for p in model.parameters()), torch.device('cpu'))
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.machine()
    rows += [
        ['seed', str(runner.seed)],
        ['device', f'{device.type} ({name}), {_processes()}'],
        ['command', _command()],
        ['folder of the logs', str(Path(runner.log_dir).resolve())],
    ]
    versions = [['mmhatnet', mmhatnet.__version__], ['Python', platform.python_version()]]
    scope = SCOPES.get(cfg.get('default_scope'))
    for title, distributions in PACKAGES.items():
        if title in SCOPES.values() and title != scope:
            continue
        versions += [[title, found] for name in distributions if (found := _version(name))][:1]
    return Section(
        'Settings and versions',
        tables=[Table('Settings', [], rows, texts=2), Table('Versions', [], versions, texts=2)],
    )


def length_of(loop: BaseLoop) -> str:
    """Says how many images a loop reads. Datasets that stream them have no length."""
    try:
        return f'{len(loop.dataloader.dataset):,} images'
    except TypeError:
        return 'images whose number is not known'


def _recipe(runner: Runner) -> list[list[str]]:
    cfg, loop = runner.cfg, runner.train_loop
    weights = runner._load_from or ((cfg.model.get('backbone') or {}).get('init_cfg') or {}).get(
        'checkpoint'
    )
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    length = f'{loop.max_epochs} epochs' if by_epoch else f'{loop.max_iters} iterations'
    wrapper = runner.optim_wrapper
    optimizer = getattr(wrapper, 'optimizer', None)
    batch = getattr(loop.dataloader, 'batch_size', None) or cfg.train_dataloader.get('batch_size')
    rows = [
        ['weights at the start', str(weights or 'random')],
        ['length', f'{length}; {loop.iter:,} iterations are done'],
        ['batch size', f'{batch}, {_processes()}'],
    ]
    if optimizer is not None:
        group = optimizer.param_groups[0]
        options = dict(cfg.optim_wrapper.get('optimizer') or {})
        given = ', '.join(
            f'{key} {value}' for key, value in options.items() if key not in ('type', '_scope_')
        )
        precision = ' in mixed precision' if 'Amp' in type(wrapper).__name__ else ''
        rows.append(
            ['optimizer', f'{type(optimizer).__name__}{precision}, {given or group.get("lr")}']
        )
    schedulers = cfg.get('param_scheduler') or []
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    names = ', '.join(str(s.get('type')) for s in schedulers if isinstance(s, dict))
    return [*rows, ['schedule', names or 'constant']]


def _processes() -> str:
    count = get_world_size()
    return 'one process' if count == 1 else f'in each of {count} processes'


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _command() -> str:
    script, *words = sys.argv
    return shlex.join([*(['python'] if script.endswith('.py') else []), script, *words])
