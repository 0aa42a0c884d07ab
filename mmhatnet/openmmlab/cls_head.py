"""The classifiers of the networks for MMPretrain, which only this module needs."""

from mmhatnet.openmmlab.versions import require_supported

require_supported('mmpretrain')  # MMPretrain's own error about transformers 5 does not name it

import torch.nn.functional as F
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class DropoutLinearClsHead(LinearClsHead):
    """MMPretrain's linear classifier with dropout on its input, as HAT-Net is trained.

    Args:
        dropout_rate (float): Probability of dropping a channel in training. Defaults to 0.2.
        **kwargs (object): Arguments of MMPretrain's LinearClsHead.
    """

    def __init__(self, *args, dropout_rate: float = 0.2, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.dropout = nn.Dropout(dropout_rate)

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Pooled features of the stages to (N, in_channels) of the last one, after dropout."""
        return self.dropout(super().pre_logits(feats))


@MODELS.register_module()
class NormLinearClsHead(LinearClsHead):
    """GLNet's classifier: batch normalization, mean over positions, linear layer.

    It takes the backbone's features without a neck.

    Args:
        dense (bool): Whether to add half of the maximum over positions of a second linear layer, as
            models trained with token labeling have it. The authors train that layer with a label
            for each position; with labels of images it learns as a term of the sum. Defaults to
            False.
        **kwargs (object): Arguments of MMPretrain's LinearClsHead.
    """

    def __init__(self, *args, dense: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.norm = nn.BatchNorm2d(self.in_channels)
        self.dense_fc = nn.Linear(self.in_channels, self.num_classes) if dense else None

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Features of the stages to (N, in_channels, H, W) of the last one, normalized."""
        return self.norm(feats[-1])

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Features of the stages to scores (N, num_classes)."""
        x = self.pre_logits(feats)
        scores = self.fc(x.mean(dim=(2, 3)))
        if self.dense_fc is not None:
            scores = scores + 0.5 * self.dense_fc(x.flatten(2).mT).amax(dim=1)
        return scores


@MODELS.register_module()
class ConvLinearClsHead(LinearClsHead):
    """STViT's classifier: 1x1 convolution, batch norm, SiLU, global average pooling, linear layer.

    It takes the backbone's features without a neck.

    Args:
        num_classes (int): Number of classes.
        in_channels (int): Channels of the last stage.
        hidden_channels (int): Channels of the convolution. Defaults to 1024.
        **kwargs (object): Arguments of MMPretrain's LinearClsHead.
    """

    def __init__(
        self, num_classes: int, in_channels: int, hidden_channels: int = 1024, **kwargs
    ) -> None:
        super().__init__(num_classes, hidden_channels, **kwargs)
        self.proj = nn.Conv2d(in_channels, hidden_channels, 1)
        self.norm = nn.BatchNorm2d(hidden_channels)

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Features of the stages to (N, hidden_channels)."""
        return F.silu(self.norm(self.proj(feats[-1]))).mean(dim=(2, 3))
