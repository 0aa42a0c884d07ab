"""Fully sharded data parallelism (FSDP) of a model with a HAT-Net backbone."""

from mmengine._strategy import FSDPStrategy
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmhatnet.backbones.hatnet import Block


@FUNCTIONS.register_module()
def wrap_hatnet_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """An ``auto_wrap_policy``: each block is gathered by itself, the rest of the model at once."""
    return recurse or isinstance(module, Block)


@STRATEGIES.register_module()
class ResumableFSDPStrategy(FSDPStrategy):
    """MMEngine's FSDPStrategy, with which training can be resumed.

    MMEngine hands PyTorch the optimizer's state in the order of arguments that PyTorch 2.0 had.

    Raises:
        ValueError: If no launcher has started the process.
    """

    def _setup_env(self, *, launcher: str | None = None, **kwargs) -> None:
        if launcher == 'none':
            raise ValueError(
                'FSDP needs several processes: start them with tools/dist_train.sh CONFIG GPUS'
            )
        super()._setup_env(launcher=launcher, **kwargs)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Loads the optimizer's state of a checkpoint that FSDPStrategy has written."""
        optimizer = self.optim_wrapper.optimizer
        sharded = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(sharded)
