"""Hooks that make a training resume as if nothing had happened, and stop when it is told to."""

import os
import signal
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any, NoReturn

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils import _pytree

from mmhatnet.checkpoints.folder import LATEST
from mmhatnet.errors import CheckpointError
from mmhatnet.training.loops import EpochLoop, PlacedIterator
from mmhatnet.training.random_state import random_state, restore_random_state
from mmhatnet.training.saving import save_resumable

STATE = 'mmhatnet'  # the entry of a checkpoint that holds what MMEngine does not save
SIGNALS = ('SIGTERM', 'SIGUSR1', 'SIGINT')


class ResumeHook(Hook):
    """Saves and restores what MMEngine does not: random numbers and the place in the data.

    Validation leaves the random numbers of training as they are, so that a training that resumes
    without it draws the same ones.

    Attributes:
        needed (int): The bytes of the tensors in the last checkpoint.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.needed = 0
        self._before_validation: dict[str, torch.Tensor] | None = None
        self._resumed: Mapping[str, Any] = {}
        self._states: list[dict[str, torch.Tensor]] = []

    def collect(self) -> None:
        """Collects the random states of all processes for the next checkpoint."""
        # A training that resumes from here does not validate first.
        states: list[Any] = all_gather_object(self._before_validation or random_state())
        self._states = states

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Adds the state to a checkpoint from which training can resume."""
        leaves = _pytree.tree_leaves(checkpoint)
        self.needed = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        if self._states:
            done = getattr(runner.train_loop, 'done', 0)
            checkpoint[STATE] = dict(random=self._states, done=done)
            self._states = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keeps the state of a checkpoint until training starts."""
        state = checkpoint.get(STATE)
        self._resumed = state if isinstance(state, Mapping) else {}

    def before_train(self, runner: Runner) -> None:
        """Moves the loop to the place in the data where training resumes."""
        if not runner._resume or not runner.iter:  # noqa: SLF001
            return
        loop = runner.train_loop
        done = self._resumed.get('done')
        if isinstance(loop, EpochLoop):
            loop.done = done if type(done) is int else _done_in_epoch(runner)
        # MMEngine's option not to return to the place in the data is for slow data loaders.
        elif not getattr(loop, 'fast_forward_on_resume', False):
            iterator = getattr(loop, 'dataloader_iterator', None)
            if isinstance(iterator, PlacedIterator):
                iterator.start_at(runner.iter)

    def before_train_epoch(self, runner: Runner) -> None:
        """Restores the random state."""
        states = self._resumed.get('random')
        self._resumed = {}
        if not runner._resume or states is None:  # noqa: SLF001
            return
        if not isinstance(states, list) or len(states) != get_world_size():
            runner.logger.warning(
                f'The checkpoint holds random states of {len(states)} processes, and this training '
                f'has {get_world_size()}: the random numbers start afresh.'
            )
            return
        restore_random_state(states[get_rank()])

    def before_val(self, runner: Runner) -> None:
        """Keeps the random state of training."""
        self._before_validation = random_state()

    def after_val(self, runner: Runner) -> None:
        """Restores the random state of training."""
        if self._before_validation is not None:
            restore_random_state(self._before_validation)
            self._before_validation = None


def _done_in_epoch(runner: Runner) -> int:
    """Returns how many batches of the epoch a checkpoint of MMEngine's own has seen."""
    info = runner.message_hub.runtime_info
    epochs, iterations = info.get('max_epochs'), info.get('max_iters')
    if not epochs or not iterations:
        return 0
    done: int = runner.iter - runner.epoch * (iterations // epochs)
    length = len(runner.train_dataloader)
    if done > 0 and iterations // epochs != length:
        raise CheckpointError(
            f'The checkpoint lies inside an epoch of {iterations // epochs} iterations, and an '
            f'epoch has {length} now: resume with the same data, batch size and number of '
            'processes, or from a checkpoint at the end of an epoch.'
        )
    return max(done, 0)


class Stopped(Exception):
    """Training ended early, with a checkpoint from which it can go on.

    Attributes:
        signal (int): The signal that stopped it.
        checkpoint (str): The checkpoint.
    """

    def __init__(self, number: int, checkpoint: str) -> None:
        super().__init__(number, checkpoint)
        self.signal, self.checkpoint = number, checkpoint


class StopHook(Hook):
    """Saves ``latest.pth`` when a signal stops the job, and at intervals of time.

    SIGTERM, SIGUSR1 and Ctrl-C stop a job after the iteration. A second signal stops it at once.

    Args:
        minutes (float, optional): The time between checkpoints. Defaults to None, for none.
        every (int): After how many iterations the processes of a distributed job ask each other
            about signals. Defaults to 10.
    """

    priority = 'LOWEST'

    def __init__(self, minutes: float | None = None, every: int = 10) -> None:
        self.minutes = minutes
        self.every = every
        self._received = 0
        self._path = ''
        self._handlers: dict[int, Any] = {}
        self._saved = time.monotonic()

    def before_train(self, runner: Runner) -> None:
        """Begins to listen to signals."""
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
            self._handlers = {n: signal.signal(n, self._receive) for n in numbers}

    def after_train(self, runner: Runner) -> None:
        """Ends listening to signals."""
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Lets signals end the process as before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            self.restore_handlers()
            os.kill(os.getpid(), number)
            return
        self._received = number
        name = signal.Signals(number).name
        os.write(2, f'{name}: saving after this iteration; a second one stops at once\n'.encode())

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Saves a checkpoint if it is time, and ends training after a signal."""
        world = get_world_size()
        if world > 1 and (runner.iter + 1) % self.every:
            return
        wrapper = runner.optim_wrapper
        if getattr(wrapper, '_inner_count', 0) % getattr(wrapper, '_accumulative_counts', 1):
            return  # The gradients that are being accumulated are in no checkpoint.
        minutes = (time.monotonic() - self._saved) / 60
        due = self.minutes is not None and minutes >= self.minutes and is_main_process()
        told = torch.tensor([self._received, int(due)])
        if world > 1:
            all_reduce(told, 'max')
        number, due = int(told[0]), bool(told[1])
        if number or due:
            self._save(runner, dict(epoch=runner.epoch, iter=runner.iter + 1))
        if number:
            self._stop(number)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Ends training after a signal. Validation is not repeated when training resumes."""
        if not self._handlers or (get_world_size() > 1 and (batch_idx + 1) % self.every):
            return
        told = torch.tensor([self._received])
        if get_world_size() > 1:
            all_reduce(told, 'max')
        if number := int(told[0]):
            self._save(runner, dict(epoch=runner.epoch, iter=runner.iter))
            self._stop(number)

    def _save(self, runner: Runner, meta: dict[str, int]) -> None:
        self._path = save_resumable(runner, runner.work_dir, LATEST, meta=meta, by_epoch=False)
        self._saved = time.monotonic()

    def _stop(self, number: int) -> NoReturn:
        self.restore_handlers()
        raise Stopped(number, self._path)
