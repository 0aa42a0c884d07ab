"""The classifier of HAT-Net for MMPretrain. The only module here that needs MMPretrain."""

from mmpretrain.models.heads import LinearClsHead
from mmpretrain.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class DropoutLinearClsHead(LinearClsHead):
    """MMPretrain's linear classifier with dropout on its input, as HAT-Net is trained.

    Args:
        dropout_rate (float): Probability of dropping a channel in training. Defaults to 0.2.
        **kwargs (object): Those of MMPretrain's LinearClsHead.
    """

    def __init__(self, *args, dropout_rate: float = 0.2, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.dropout = nn.Dropout(dropout_rate)

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Pooled features of the stages to the last one's (N, in_channels), after dropout."""
        return self.dropout(super().pre_logits(feats))
