"""The runner of `mmhatnet train`: MMEngine's, which survives kills and resumes exactly."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.dist import barrier, get_rank, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, FlexibleRunner
from mmengine.runner.base_loop import BaseLoop

from mmhatnet.config_walk import class_of
from mmhatnet.training.data_order import OrderedBatches, isolate_workers, order_batches
from mmhatnet.training.hooks import ResumeHook, StopHook, Stopped
from mmhatnet.training.loops import EpochLoop, place_loop
from mmhatnet.training.saving import WholeCheckpointHook, unfinished_path, written_whole

if TYPE_CHECKING:
    from mmengine.runner import Runner as Base
else:
    Base = object


class ReliableTraining(Base):
    """What a runner needs beyond MMEngine's. Mixed into the runner class of a config.

    Attributes:
        save_every (float | None): The minutes between checkpoints; None for none.
        reapply_settings (bool): Whether the settings of the config replace those of a checkpoint.
        order (OrderedBatches | None): The order of the training data; None if it is not known.
    """

    save_every: float | None = None
    reapply_settings = False
    order: OrderedBatches | None = None
    _train_dataloader: Any

    def register_hook(self, hook: Hook | dict[str, Any], priority: Any = None) -> None:
        """Registers a hook, in place of a CheckpointHook one that keeps whole files."""
        found = class_of(HOOKS, hook) if isinstance(hook, dict) else None
        if found and issubclass(found, CheckpointHook):
            hook = {**hook, 'type': type(found.__name__, (WholeCheckpointHook, found), {})}
        super().register_hook(hook, priority)

    def register_hooks(self, *args: Any, **kwargs: Any) -> None:
        """Registers the hooks of the config and those of this package."""
        super().register_hooks(*args, **kwargs)
        self.stop_hook = StopHook(self.save_every)
        self.resume_hook = ResumeHook()
        self.register_hook(self.stop_hook)
        self.register_hook(self.resume_hook)

    def build_train_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Builds a training loop that can start inside an epoch."""
        if not isinstance(loop, dict):
            return loop
        by_epoch = 'type' not in loop and loop.get('by_epoch')
        if by_epoch or class_of(LOOPS, loop) is EpochBasedTrainLoop:
            loop = {key: loop[key] for key in loop if key not in ('by_epoch', 'type')}
            loop['type'] = EpochLoop
        # The original MMEngine starts to read data when it builds a loop.
        self._train_dataloader = self.build_dataloader(
            self._train_dataloader,
            seed=self.seed,
            diff_rank_seed=self._randomness_cfg.get('diff_rank_seed', False),
        )
        self.order = order_batches(self._train_dataloader, self.seed, get_rank())
        built: BaseLoop = super().build_train_loop(loop)
        if self.order:
            place_loop(built, self.order)
        return built

    def scale_lr(self, *args: Any, **kwargs: Any) -> None:
        """Scales the learning rate by the batch size, also where a batch sampler has it."""
        loader = self._train_dataloader
        try:
            if getattr(loader, 'batch_size', 0) is None:  # as for MMDetection's batch samplers
                self._train_dataloader = dict(batch_size=loader.batch_sampler.batch_size)
            super().scale_lr(*args, **kwargs)
        finally:
            self._train_dataloader = loader

    def build_val_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Builds a validation loop, whose workers leave signals to this process."""
        built: BaseLoop = super().build_val_loop(loop)
        isolate_workers(built.dataloader)
        return built

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Saves a checkpoint, which is whole or absent.

        Raises:
            CheckpointError: If it cannot be written. Earlier checkpoints stay.
        """
        self.resume_hook.prepare(kwargs.get('meta'), kwargs.get('save_optimizer', True))
        if '://' in str(out_dir):
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        path = Path(out_dir, filename)
        # The first process alone renames what all have written.
        whole = written_whole(path, lambda: self.resume_hook.needed)
        with whole if is_main_process() else nullcontext(unfinished_path(path)) as unfinished:
            super().save_checkpoint(out_dir, unfinished.name, *args, **kwargs)
            if isinstance(self, FlexibleRunner):  # whose processes may write parts of it
                barrier()

    def train(self) -> Any:
        """Trains the model.

        Raises:
            Stopped: If a signal has stopped it.
        """
        try:
            return super().train()
        except Stopped:
            self.visualizer.close()  # writes what it holds
            raise
        finally:
            self.stop_hook.restore_handlers()
