"""Measures how long an iteration of a training takes."""

import itertools
import logging
import time
from collections.abc import Callable

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from mmhatnet.openmmlab.messages import messages_from

ITERATIONS = 4


def seconds_per_iteration(
    cfg: Config, clock: Callable[[], float] = time.perf_counter, iterations: int = ITERATIONS
) -> float:
    """Trains a few iterations from random weights, and returns the seconds that the median takes.

    Args:
        cfg (Config): The config of the training.
        clock (Callable): Returns the time in seconds. Defaults to ``time.perf_counter``.
        iterations (int): How many are measured, after one that is not. Defaults to 4.
    """
    # The model and the loader change their settings.
    cfg, device = Config(cfg.to_dict()), get_device()
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.model.backbone.init_cfg = None  # which would be downloaded
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with (
        DefaultScope.overwrite_default_scope(cfg.get('default_scope')),
        messages_from(logging.WARNING),
    ):
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        model = model.to(device).train()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        taken = []
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        for batch in itertools.islice(batches, iterations + 1):
            start = clock()
            model.train_step(batch, wrapper)
            if device == 'cuda':
                torch.cuda.synchronize()
            taken.append(clock() - start)
    return sorted(taken[1:])[iterations // 2]
