"""Classifiers that MMPretrain lacks. The only module here that needs MMPretrain."""

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


@MODELS.register_module()
class NormLinearClsHead(LinearClsHead):
    """GLNet's classifier: batch normalisation of the map, mean over positions, linear layer.

    It takes the backbone's features without a neck.

    Args:
        dense (bool): Whether half of the maximum over positions, class by class, of a second linear
            layer is added, as for models that were trained with token labelling. The authors train
            the second layer with labels of each position; with labels of images it learns as a
            part of the sum. Defaults to False.
        kwargs: Those of MMPretrain's LinearClsHead.
    """

    def __init__(self, *args, dense: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.norm = nn.BatchNorm2d(self.in_channels)
        self.dense_fc = nn.Linear(self.in_channels, self.num_classes) if dense else None

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Features of the stages to the last one's, normalised, (N, in_channels, H, W)."""
        return self.norm(feats[-1])

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Features of the stages to scores (N, num_classes)."""
        x = self.pre_logits(feats)
        scores = self.fc(x.mean(dim=(2, 3)))
        if self.dense_fc is not None:
            scores = scores + 0.5 * self.dense_fc(x.flatten(2).mT).amax(dim=1)
        return scores
