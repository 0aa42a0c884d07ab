"""Processes that share the images, on one machine or several."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from mmengine.dist import utils

from mmhatnet.errors import MMHATNetError

Result = TypeVar('Result')
# One process may have far more work left than another.
PATIENCE = timedelta(days=30)


@contextmanager
def joined_processes(launcher: str) -> Iterator[str | None]:
    """Connects this process with the others that were started with it, until the context ends.

    They share a list of images and a folder, but no tensors. So they need no GPU to communicate.
    Meanwhile visualizers work in all processes, and not in the first alone as MMEngine has it.

    Args:
        launcher (str): 'none', 'pytorch' for torchrun, or 'slurm' for srun.

    Yields:
        str | None: The GPU of this process, or None if there is a single process or no GPU.
    """
    if launcher == 'none':
        yield None
        return
    if launcher == 'slurm':
        _set_variables_of_slurm()
    dist.init_process_group('gloo')
    is_first, utils.is_main_process = utils.is_main_process, lambda group=None: True
    try:
        gpus, gpu = torch.cuda.device_count(), None
        if gpus:
            gpu = f'cuda:{int(os.environ["LOCAL_RANK"]) % gpus}'
            torch.cuda.set_device(gpu)
        yield gpu
    finally:
        utils.is_main_process = is_first
        dist.destroy_process_group()


def _set_variables_of_slurm() -> None:
    """Translates what Slurm tells a process for PyTorch. MMEngine's own function needs GPUs."""
    env = os.environ
    if 'MASTER_ADDR' not in env:
        command = ['scontrol', 'show', 'hostnames', env['SLURM_STEP_NODELIST']]
        hosts = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        env['MASTER_ADDR'] = hosts.split()[0]
    env.setdefault('MASTER_PORT', '29500')
    env.update(
        RANK=env['SLURM_PROCID'], WORLD_SIZE=env['SLURM_NTASKS'], LOCAL_RANK=env['SLURM_LOCALID']
    )


def default_workers() -> int:
    """Returns how many processes load images for each that predicts: up to four, one per CPU."""
    cpus = len(os.sched_getaffinity(0)) // int(os.environ.get('LOCAL_WORLD_SIZE', '1'))
    return min(max(cpus, 1), 4)


def rank_and_number() -> tuple[int, int]:
    """Returns the number of this process, from 0, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def result_of_first(function: Callable[[], Result]) -> Result:
    """Calls a function in the first process alone, and returns its result in all.

    Raises:
        MMHATNetError: In all processes, if the function raises it.
    """
    result = [None]
    if rank_and_number()[0] == 0:
        try:
            result = [function()]
        except MMHATNetError as error:
            result = [error]
    if dist.is_initialized():
        dist.broadcast_object_list(result)
    if isinstance(result[0], MMHATNetError):
        raise result[0]
    return result[0]


def wait_for_all() -> None:
    """Waits until all processes have come here."""
    if dist.is_initialized():
        dist.monitored_barrier(timeout=PATIENCE)
