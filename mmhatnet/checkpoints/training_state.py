"""What training cannot resume from, before MMEngine takes it over."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from torch import Tensor

from mmhatnet.checkpoints.contents import short


def wrong_parts(content: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong with a training state, as far as types tell.

    Args:
        content (Mapping[str, Any]): The allowed content of a checkpoint.
    """
    meta, hub = content['meta'], content['message_hub']
    for key in ('epoch', 'iter', 'seed'):
        value = meta.get(key, 0)
        if not (type(value) is int and 0 <= value < 2**32) and not (
            value is None and key == 'seed'
        ):
            yield f'meta.{key} is {short(value)} instead of a number'
    if not isinstance(hub, Mapping):
        yield f'message_hub is {short(hub)} instead of a dict'
    else:
        yield from (
            f'message_hub has no {key}'
            for key in ('log_scalars', 'runtime_info', 'resumed_keys')
            if key not in hub
        )
        yield from _wrong_info(hub.get('runtime_info', {}))
    if 'optimizer' in content:
        yield from _wrong_optimizer(content['optimizer'], 'optimizer')
    if 'param_schedulers' in content:
        yield from _wrong_schedulers(content['param_schedulers'], 'param_schedulers')
    averages = content.get('ema_state_dict', {})
    lacking = [
        key
        for key in averages
        if key.startswith('module.') and key[7:] not in content.get('state_dict', {})
    ]
    if lacking:
        yield f'ema_state_dict averages {lacking[0][7:]}, which state_dict lacks'


def _wrong_info(info: Mapping[str, Any]) -> Iterator[str]:
    for key, value in info.items():
        if key.startswith('best_score'):
            sound, expected = isinstance(value, (int, float, np.number, Tensor)), 'a number'
        elif key.startswith('best_ckpt') or key == 'last_ckpt':
            sound, expected = isinstance(value, str | None), 'a path'
        elif key == 'keep_ckpt_ids':
            sound = isinstance(value, list) and all(type(number) is int for number in value)
            expected = 'a list of numbers'
        else:
            continue
        if not sound:
            yield f'message_hub.runtime_info.{key} is {short(value)} instead of {expected}'


def _wrong_optimizer(state: object, place: str) -> Iterator[str]:
    if not isinstance(state, Mapping):
        yield f'{place} is {short(state)} instead of a dict'
    elif 'param_groups' in state or not state:
        yield from _wrong_groups(state.get('param_groups', []), f'{place}.param_groups')
        yield from _wrong_values(state.get('state', {}), f'{place}.state')
    else:  # of an OptimWrapperDict
        for key, value in state.items():
            if isinstance(value, Mapping) and 'param_groups' in value:
                yield from _wrong_optimizer(value, f'{place}.{key}')
            elif key != 'base_param_settings':
                yield f'{place}.{key} has no param_groups'


def _wrong_groups(groups: object, place: str) -> Iterator[str]:
    if not isinstance(groups, list) or not all(
        isinstance(group, Mapping)
        and isinstance(group.get('params'), list)
        and isinstance(group.get('lr', 0.0), (int, float, Tensor))
        for group in groups
    ):
        yield f'{place} is no list of groups with params and a learning rate'


def _wrong_values(values: object, place: str) -> Iterator[str]:
    if not isinstance(values, Mapping):
        yield f'{place} is {short(values)} instead of a dict'
        return
    for key, value in values.items():
        if not isinstance(value, Mapping):
            yield f'{place}.{key} is {short(value)} instead of a dict'
            continue
        for name, tensor in value.items():
            # The next step would spread NaN to the weights. A second moment may be infinite after
            # an overflow, which stops one weight and harms no other.
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.isnan().any():
                yield f'{place}.{key}.{name} holds NaN'


def _wrong_schedulers(schedulers: object, place: str) -> Iterator[str]:
    """Schedulers take all entries as attributes."""
    if isinstance(schedulers, Mapping):
        for key, value in schedulers.items():
            yield from _wrong_schedulers(value, f'{place}.{key}')
    elif not isinstance(schedulers, list):
        yield f'{place} is {short(schedulers)} instead of a list'
    else:
        for index, state in enumerate(schedulers):
            if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
                yield f'{place}.{index} is {short(state)} instead of a dict'
                continue
            for key, value in state.items():
                if key == 'optimizer' or hasattr(_ParamScheduler, key):
                    yield f'{place}.{index} replaces {key} of the scheduler'
                elif key in ('last_step', '_global_step') and type(value) is not int:
                    yield f'{place}.{index}.{key} is {short(value)} instead of a number'
