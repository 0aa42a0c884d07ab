"""Small trainings on synthetic data, which are stopped, killed and resumed."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from experiments import TOY, as_text, made_small
from mmengine.config import Config

from mmhatnet.training.hooks import StopHook

SMALL = dict(embed_dims=(16, 16, 32, 32), head_dim=16, depths=(1, 1, 1, 1))
# Each has random augmentations, and all but drop path in the model as well: sampled proposals,
# dropout, or mixed images.
JOBS = {
    'maskrcnn': dict(max_epochs=3, val_interval=2),
    'semfpn': dict(max_iters=8, val_interval=4),
    'imagenet': dict(max_epochs=3, val_interval=1),
}


def write_job(job: str, path: Path, **settings) -> Path:
    """Writes the config of a small job.

    Args:
        job (str): A key of ``JOBS``.
        path (Path): Where it goes.
        **settings: Further settings, which replace those of the job or, of dicts, some of them.

    Returns:
        Path: The same.
    """
    cfg = Config.fromfile(TOY[f'{job}_hatnet_toy'])
    validation = {key: cfg[key] for key in ('val_dataloader', 'val_cfg', 'val_evaluator')}
    path.write_text(made_small(cfg, toy=True))
    cfg = Config.fromfile(path)
    for key, value in validation.items():
        cfg[key] = value
    cfg.val_dataloader.update(num_workers=0, persistent_workers=False, batch_size=1)
    cfg.val_dataloader.dataset.indices = 2
    cfg.train_dataloader.dataset.indices = 8
    cfg.merge_from_dict({'model.backbone.drop_path_rate': 0.2, 'train_cfg': JOBS[job]})
    cfg.model.backbone.arch = SMALL
    if 'neck' in cfg.model and 'in_channels' in cfg.model.neck:
        cfg.model.neck.in_channels = list(SMALL['embed_dims'])
    else:
        cfg.model.head.in_channels = SMALL['embed_dims'][-1]
    if job == 'imagenet':
        cfg.model.train_cfg = dict(augments=[dict(type='Mixup', alpha=0.8)])
        cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    if job == 'semfpn':
        cfg.model.decode_head.dropout_ratio = 0.3
    cfg.default_hooks.checkpoint.update(
        interval=2 if job == 'semfpn' else 1, save_optimizer=True, max_keep_ckpts=2
    )
    cfg.default_hooks.logger.interval = 1
    cfg.randomness = dict(seed=3)
    cfg.merge_from_dict(settings)
    path.write_text(as_text(cfg.to_dict()))
    return path


def final_state(folder: Path) -> dict:
    """Returns the last checkpoint of a finished training."""
    numbered = {
        int(found[1]): path
        for path in folder.glob('*.pth')
        if (found := re.fullmatch(r'(?:epoch|iter)_(\d+)', path.stem))
    }
    return torch.load(numbered[max(numbered)], weights_only=False)


def assert_equal_training(resumed: Path, whole: Path) -> None:
    """Checks that two trainings ended with the same bits: weights, optimizer and progress."""
    first, second = final_state(resumed), final_state(whole)
    for key in ('epoch', 'iter', 'seed'):
        assert first['meta'][key] == second['meta'][key]
    assert first.keys() == second.keys()
    for key in ('state_dict', 'ema_state_dict'):
        for name, tensor in second.get(key, {}).items():
            assert torch.equal(first[key][name], tensor), f'{key} {name}'
    assert str(first['optimizer']['param_groups']) == str(second['optimizer']['param_groups'])
    for key, state in second['optimizer']['state'].items():
        for name, value in state.items():
            assert torch.equal(
                torch.as_tensor(first['optimizer']['state'][key][name]), torch.as_tensor(value)
            )


@contextmanager
def signal_at(event: str, *numbers: int) -> Iterator[list[int]]:
    """Sends signals to this process when training gets to a place.

    Args:
        event (str): A method of hooks and how often it has been called then, such as
            'after_train_iter 3'.
        *numbers (int): The signals, one after another.

    Yields:
        list[int]: How often the method was called.
    """
    name, _, count = event.partition(' ')
    original, calls = getattr(StopHook, name), [0]

    def counted(hook: StopHook, *args, **kwargs) -> None:
        calls[0] += 1
        if calls[0] == int(count):
            for number in numbers:
                os.kill(os.getpid(), number)
        original(hook, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopHook, name, counted)
        yield calls
