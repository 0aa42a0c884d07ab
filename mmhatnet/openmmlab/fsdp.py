"""Fully sharded data parallelism (FSDP) of a model with a HAT-Net backbone."""

from mmengine._strategy import FSDPStrategy
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmhatnet.backbones.hatnet import Block


@FUNCTIONS.register_module()
def wrap_hatnet_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """An ``auto_wrap_policy`` that wraps each block by itself and the rest of the model as one."""
    return recurse or isinstance(module, Block)


@STRATEGIES.register_module()
class ResumableFSDPStrategy(FSDPStrategy):
    """MMEngine's FSDPStrategy for jobs that can be resumed.

    MMEngine passes the optimizer's state in the argument order of PyTorch 2.0, which
    https://github.com/pytorch/pytorch/pull/96534 changed.

    Raises:
        ValueError: If no launcher started the process.
    """

    def _setup_env(self, *, launcher: str | None = None, **kwargs) -> None:
        if launcher == 'none':
            raise ValueError(
                'FSDP needs several processes: torchrun --nproc-per-node GPUS -m mmhatnet train '
                'CONFIG --launcher pytorch'
            )
        super()._setup_env(launcher=launcher, **kwargs)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Loads the optimizer's state from a checkpoint that FSDPStrategy wrote."""
        optimizer = self.optim_wrapper.optimizer
        sharded = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(sharded)
