"""Hooks that make a training resume as if nothing had happened, and stop when it is told to."""

import os
import signal
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any, NoReturn

import torch
from mmengine.dist import (
    all_gather_object,
    all_reduce,
    barrier,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from torch.utils import _pytree

from mmhatnet.checkpoints.folder import LATEST
from mmhatnet.training.loops import EpochLoop, PlacedIterator
from mmhatnet.training.random_state import random_state, restore_random_state
from mmhatnet.training.resume_settings import (
    reapply_settings,
    require_same_settings,
    settings_of,
)
from mmhatnet.training.saving import save_resumable
from mmhatnet.training.schedules import drop_functions

STATE = 'mmhatnet'  # the entry of a checkpoint that holds what MMEngine does not save
SIGNALS = ('SIGTERM', 'SIGUSR1', 'SIGINT')
SAME_SIGNAL = 1.0  # the seconds within which further signals are taken for the first one


class ResumeHook(Hook):
    """Saves and restores what MMEngine does not: random numbers and the place in the data.

    Validation leaves the random numbers of training as they are, so that a training that resumes
    without it draws the same ones.

    Attributes:
        needed (int): The bytes of the tensors in the last checkpoint.
        validating (bool): Whether the next checkpoint is saved in the middle of a validation, which
            is then repeated when training resumes.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.needed = 0
        self.validating = False
        self._before_validation: dict[str, torch.Tensor] | None = None
        self._meta: dict[str, Any] = {}
        self._states: list[dict[str, torch.Tensor]] = []
        self._resumed: dict[str, Any] = {}

    def prepare(self, meta: dict[str, Any] | None, resumable: bool) -> None:
        """Prepares for the next checkpoint. All processes call it.

        Args:
            meta (dict[str, Any] | None): The epoch and the iteration. FlexibleRunner forgets them.
            resumable (bool): Whether training can resume from it.
        """
        self._meta = dict(meta or {})
        if resumable:
            # A training that resumes from here starts before the validation or after it.
            states: list[Any] = all_gather_object(self._before_validation or random_state())
            self._states = states

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Adds the state to a checkpoint from which training can resume."""
        # The local time that MMEngine stores is not the same everywhere, and not always monotonic.
        checkpoint['meta'].update(self._meta, saved=time.time())
        if self._states:
            done = getattr(runner.train_loop, 'done', 0)
            checkpoint[STATE] = dict(
                random=self._states,
                done=done,
                validating=self.validating,
                settings=settings_of(runner),
            )
            drop_functions(checkpoint)
            self._states = []
        leaves = _pytree.tree_leaves(checkpoint)
        self.needed = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compares the settings, and keeps the state of a checkpoint until training starts.

        Raises:
            CheckpointError: If the settings differ.
        """
        if not runner._resume:
            return
        compare = reapply_settings if runner.reapply_settings else require_same_settings
        checkpoint.update(compare(runner, checkpoint))
        state = checkpoint.get(STATE)
        self._resumed = dict(state) if isinstance(state, Mapping) else {}

    def before_train(self, runner: Runner) -> None:
        """Moves the loop to the place in the data where training resumes."""
        if not runner._resume or not runner.iter:
            return
        loop, order = runner.train_loop, runner.order
        iterator = getattr(loop, 'dataloader_iterator', None)
        if isinstance(loop, EpochLoop):
            done = self._resumed.get('done')
            if type(done) is not int:  # MMEngine's own checkpoints do not say it.
                done = runner.iter - runner.epoch * len(loop.dataloader)
            loop.done = max(done, 0)
        elif not isinstance(iterator, PlacedIterator):  # a loop of somebody else's
            if order:
                order.first = runner.iter
        # MMEngine's option not to return to the place in the data is for slow data loaders.
        elif getattr(loop, 'fast_forward_on_resume', False):
            order.first = runner.iter
        else:
            iterator.start_at(runner.iter)
        if self._resumed.get('validating') and runner.val_loop is not None:
            self._restore(runner)
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        """Restores the random state."""
        self._restore(runner)
        self._resumed = {}

    def before_val(self, runner: Runner) -> None:
        """Keeps the random state of training."""
        self._before_validation = random_state()

    def after_val(self, runner: Runner) -> None:
        """Restores the random state of training."""
        if self._before_validation is not None:
            restore_random_state(self._before_validation)
            self._before_validation = None

    def _restore(self, runner: Runner) -> None:
        states = self._resumed.get('random')
        if not isinstance(states, list):  # a checkpoint of MMEngine's own
            return
        if len(states) == get_world_size():
            restore_random_state(states[get_rank()])
        else:
            runner.logger.warning(
                f'The checkpoint holds random states of {len(states)} processes, and this training '
                f'has {get_world_size()}: the random numbers start afresh.'
            )


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

    SIGTERM, SIGUSR1 and Ctrl-C stop a job after the iteration. A second signal stops it at once,
    unless it follows immediately: launchers pass on a signal that the job has received as well.

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
        self._received_at = 0.0
        self._batches_left = 0
        self._path = ''
        self._handlers: dict[int, Any] = {}
        self._saved = time.monotonic()

    def before_train(self, runner: Runner) -> None:
        """Begins to listen to signals."""
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
            # A shell makes a job in the background ignore Ctrl-C.
            heeded = [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]
            self._handlers = {n: signal.signal(n, self._receive) for n in heeded}

    def after_train(self, runner: Runner) -> None:
        """Ends listening to signals."""
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Lets signals end the process as before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._handlers = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            if time.monotonic() - self._received_at >= SAME_SIGNAL:
                self.restore_handlers()
                os.kill(os.getpid(), number)
            return
        self._received, self._received_at = number, time.monotonic()
        name = signal.Signals(number).name
        os.write(2, f'{name}: saving after this iteration; a second one stops at once\n'.encode())

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Saves a checkpoint if it is time, and ends training after a signal."""
        wrapper = runner.optim_wrapper
        if getattr(wrapper, '_inner_count', 0) % getattr(wrapper, '_accumulative_counts', 1):
            return  # The gradients that are being accumulated are in no checkpoint.
        number, due = self._told(runner.iter + 1)
        if number or due:
            self._save(runner, dict(epoch=runner.epoch, iter=runner.iter + 1))
        if number:
            self._stop(number)

    def before_val_epoch(self, runner: Runner) -> None:
        """Counts the batches of the validation, which may differ between processes."""
        self._batches_left = len(runner.val_dataloader)
        if get_world_size() > 1:
            count = torch.tensor([self._batches_left])
            all_reduce(count, 'min')
            self._batches_left = int(count[0])

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Ends training after a signal. When it resumes, the validation is repeated."""
        self._batches_left -= 1
        # The metrics follow the last batch. MMPretrain's EMAHook then validates a second time.
        if self._batches_left > 0 and (number := self._told(batch_idx + 1)[0]):
            for hook in runner.hooks:
                if isinstance(hook, EMAHook) and getattr(hook, 'evaluate_on_ema', True):
                    hook._swap_ema_parameters()  # back to those of training
            runner.resume_hook.validating = True
            self._save(runner, dict(epoch=runner.epoch, iter=runner.iter))
            self._stop(number)

    def _told(self, batches: int) -> tuple[int, bool]:
        """Returns the signal that a process has received, or 0, and whether it is time to save."""
        minutes = (time.monotonic() - self._saved) / 60
        due = self.minutes is not None and minutes >= self.minutes and is_main_process()
        told = torch.tensor([self._received, int(due)])
        if get_world_size() > 1:
            if batches % self.every:
                return 0, False
            all_reduce(told, 'max')
        return int(told[0]), bool(told[1])

    def _save(self, runner: Runner, meta: dict[str, int]) -> None:
        self._path = save_resumable(runner, runner.work_dir, LATEST, meta=meta, by_epoch=False)
        barrier()  # A launcher ends all processes when the first one ends.
        self._saved = time.monotonic()

    def _stop(self, number: int) -> NoReturn:
        self.restore_handlers()
        raise Stopped(number, self._path)
