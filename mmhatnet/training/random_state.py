"""The state of the random number generators that training uses."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isnan
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device

from mmhatnet.errors import CheckpointError


def random_state() -> dict[str, torch.Tensor]:
    """Returns the state of the generators of Python, NumPy and PyTorch, and of the device's.

    Returns:
        dict[str, torch.Tensor]: Integers, which a weights-only reader accepts.
    """
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    _, keys, position, has_gauss, cached = numpy_state
    state = dict(
        python=torch.tensor([version, *words]),
        numpy=torch.tensor([*keys.tolist(), position, has_gauss]),
        torch=torch.get_rng_state(),
        # The second of two normal numbers, which the next call returns.
        gauss=torch.tensor([float('nan') if gauss is None else gauss, cached]).double(),
    )
    if (device := get_device()) != 'cpu':
        state['device'] = torch.get_device_module(device).get_rng_state().cpu()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Restores what ``random_state`` has returned.

    Raises:
        CheckpointError: If it holds something else.
    """
    try:
        version, *words = state['python'].tolist()
        *keys, position, has_gauss = state['numpy'].tolist()
        gauss, cached = state['gauss'].tolist()
        random.setstate((version, tuple(words), None if isnan(gauss) else gauss))
        np.random.set_state(('MT19937', np.array(keys, np.uint32), position, has_gauss, cached))
        torch.set_rng_state(state['torch'].cpu())
        if 'device' in state and (device := get_device()) != 'cpu':
            torch.get_device_module(device).set_rng_state(state['device'].cpu())
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f'The random state in the checkpoint cannot be restored ({error}): resume from another '
            'checkpoint, or start from its weights with --cfg-options load_from=FILE.'
        ) from error


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seeds the generators of Python, NumPy and PyTorch inside, and restores them afterwards.

    Args:
        *numbers (int): Non-negative numbers that name the place, such as seed and iteration.
    """
    earlier = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(earlier[0])
        np.random.set_state(earlier[1])
        torch.set_rng_state(earlier[2])
