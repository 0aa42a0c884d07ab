"""Non-maximum suppression of the boxes of a batch in one call, as a graph that can be exported."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Found(NamedTuple):
    """Boxes (D, 4), corners in pixels, with scores, labels and indices of their images (D,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    images: Tensor

    @property
    def rois(self) -> Tensor:
        """Image index and corners (D + 1, 5).

        The last is not a region. With it there is always one, without which several layers fail in
        exported files.
        """
        rois = torch.cat([self.images.to(self.boxes)[:, None], self.boxes], dim=1)
        return F.pad(rois, (0, 0, 0, 1))


def suppress(found: Found, batch: int, settings: dict) -> Found:
    """Does what mmcv's ``batched_nms`` does for each image, and keeps the best boxes of each.

    Args:
        found (Found): Candidates with scores from 0 to 1. Only boxes with the same label suppress
            each other.
        batch (int): The number of images.
        settings (dict): The ``test_cfg`` of a head, with ``nms`` and ``max_per_img``.

    Returns:
        Found: The boxes that are kept, by image and descending score.
    """
    from torchvision.ops import nms

    boxes, scores, labels, images = found
    apart = boxes
    if not settings['nms'].get('class_agnostic', False):
        # The same sums as in mmcv, whose rounding decides about pairs near the threshold.
        highest = boxes.new_full((batch,), torch.finfo(boxes.dtype).min)
        highest = highest.scatter_reduce(0, images, boxes.amax(dim=1), 'amax')
        apart = boxes + (labels * (highest[images] + 1))[:, None]
    # Labels lie on a diagonal, so images can be moved off it by a little, which costs no precision.
    # The first image is not moved, and a single image gives what mmcv gives.
    values = torch.cat([boxes.flatten(), boxes.new_zeros(1)])
    low, high = values.min(), values.max()
    down = images * (2 * (high - low + 1))
    apart = apart + down[:, None] * boxes.new_tensor([0, 1, 0, 1])
    # PyTorch assumes that at least two boxes are kept. These two always are, as the last.
    beyond = low - boxes.new_tensor([[2, 2, 1, 1], [4, 4, 3, 3]])
    # mmcv rounds the threshold like the boxes.
    threshold = float(np.float32(settings['nms']['iou_threshold']))
    scores_of_all = torch.cat([scores, scores.new_tensor([-1, -2])])
    kept = nms(torch.cat([apart, beyond]), scores_of_all, threshold)[:-2]
    own = images[kept] == torch.arange(batch, device=boxes.device)[:, None]
    own = own & (own.long().cumsum(dim=1) <= settings['max_per_img'])
    images, order = own.nonzero().unbind(dim=1)
    kept = kept[order]
    # Without a bound, that of products with the number of classes exceeds 64 bits in the exporter.
    torch._check(kept.shape[0] < 2**31)  # noqa: SLF001
    return Found(boxes[kept], scores[kept], labels[kept], images)
