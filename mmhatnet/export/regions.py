"""Pools the features of regions from several levels, as a graph that can be exported."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def pool_regions(extractor: nn.Module, features: Sequence[Tensor], rois: Tensor) -> Tensor:
    """Does what mmdetection's ``SingleRoIExtractor`` does.

    Args:
        extractor (nn.Module): The extractor.
        features (Sequence[Tensor]): Of each level, (N, C, H, W).
        rois (Tensor): Image index and corners in pixels (R, 5).

    Returns:
        Tensor: Features (R, C, height, width).
    """
    features = features[: extractor.num_inputs]
    if len(features) == 1:
        return _align(extractor.roi_layers[0], features[0], rois)
    levels = extractor.map_roi_levels(rois, len(features))
    members = levels[:, None] == torch.arange(len(features), device=rois.device)
    pooled = torch.cat(
        [
            _align(layer, feature, rois[mine.nonzero()[:, 0]])
            for layer, feature, mine in zip(extractor.roi_layers, features, members.unbind(dim=1))
        ]
    )
    # Where the concatenation has each region. Its length is known to be that of the regions.
    members = members.long()
    counts = members.sum(dim=0)
    places = counts.cumsum(dim=0) - counts + members.cumsum(dim=0) - 1
    return pooled[places.gather(1, levels[:, None])[:, 0]]


def _align(layer: nn.Module, feature: Tensor, rois: Tensor) -> Tensor:
    from torchvision.ops import roi_align

    return roi_align(
        feature,
        rois,
        layer.output_size,
        layer.spatial_scale,
        layer.sampling_ratio,
        layer.aligned,
    )
