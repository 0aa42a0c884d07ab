"""The runner of tools/train.py: MMEngine's, which survives kills and resumes exactly."""

from pathlib import Path
from typing import Any

from mmengine.dist import barrier, get_rank, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, FlexibleRunner
from mmengine.runner.base_loop import BaseLoop

from mmhatnet.config_walk import class_of
from mmhatnet.training.data_order import isolate_workers
from mmhatnet.training.hooks import ResumeHook, StopHook
from mmhatnet.training.loops import EpochLoop, place_loop
from mmhatnet.training.saving import WholeCheckpointHook, unfinished_path, written_whole


class ReliableTraining:
    """What a runner needs beyond MMEngine's. Mixed into the runner class of a config.

    Attributes:
        save_every (float | None): The minutes between checkpoints; None for none.
        resumed_seed (int | None): The seed of the training to be resumed. The order of the data
            follows from it.
    """

    save_every: float | None = None
    resumed_seed: int | None = None

    def set_randomness(self: Any, seed: int | None = None, **settings: Any) -> None:
        """Seeds the random numbers, without a seed in the config as before the interruption."""
        super().set_randomness(self.resumed_seed if seed is None else seed, **settings)

    def register_hook(self: Any, hook: Hook | dict[str, Any], priority: Any = None) -> None:
        """Registers a hook, in place of MMEngine's CheckpointHook one that writes whole files."""
        if isinstance(hook, dict) and class_of(HOOKS, hook) is CheckpointHook:
            hook = {**hook, 'type': WholeCheckpointHook}
        super().register_hook(hook, priority)

    def register_hooks(self: Any, *args: Any, **kwargs: Any) -> None:
        """Registers the hooks of the config and those of this package."""
        super().register_hooks(*args, **kwargs)
        self.resume_hook = ResumeHook()
        self.stop_hook = StopHook(self.save_every)
        self.register_hook(self.resume_hook)
        self.register_hook(self.stop_hook)

    def build_train_loop(self: Any, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Builds a training loop that can start inside an epoch."""
        if isinstance(loop, dict):
            by_epoch = 'type' not in loop and loop.get('by_epoch')
            if by_epoch or class_of(LOOPS, loop) is EpochBasedTrainLoop:
                loop = {key: loop[key] for key in loop if key not in ('by_epoch', 'type')}
                loop['type'] = EpochLoop
            built: BaseLoop = super().build_train_loop(loop)
            place_loop(built, self.seed, get_rank())
            return built
        return loop

    def build_val_loop(self: Any, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Builds a validation loop, whose workers leave signals to this process."""
        built: BaseLoop = super().build_val_loop(loop)
        isolate_workers(built.dataloader)
        return built

    def save_checkpoint(self: Any, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Saves a checkpoint, which is whole or absent.

        Raises:
            CheckpointError: If it cannot be written. Earlier checkpoints stay.
        """
        if '://' in str(out_dir):
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        if kwargs.get('save_optimizer', True):
            self.resume_hook.collect()
        path = Path(out_dir, filename)
        if is_main_process():
            with written_whole(path, lambda: self.resume_hook.needed) as unfinished:
                super().save_checkpoint(out_dir, unfinished.name, *args, **kwargs)
                self._wait()
        else:
            super().save_checkpoint(out_dir, unfinished_path(path).name, *args, **kwargs)
            self._wait()

    def _wait(self: Any) -> None:
        """Waits for the processes that write parts of a checkpoint, as FlexibleRunner's may."""
        if isinstance(self, FlexibleRunner):
            barrier()

    def train(self: Any) -> Any:
        """Trains the model.

        Raises:
            Stopped: If a signal has stopped it.
        """
        try:
            return super().train()
        finally:
            self.stop_hook.restore_handlers()
