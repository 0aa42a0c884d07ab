"""Transformers that detect with queries and deformable attention, as graphs that can be exported.

mmdetection keeps the sizes of the levels in a tensor, whose values a graph does not know. Here they
are a list of sizes, and the methods that read values from the tensor are replaced while the
transformer runs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmhatnet.export.suppression import Found

Sizes = list[Sequence[int]]


def detect_with_queries(model: nn.Module, features: Sequence[Tensor], size: Sequence[int]) -> Found:
    """Does what ``predict`` of Deformable DETR and DINO does.

    Args:
        model (nn.Module): The detector.
        features (Sequence[Tensor]): Of each level, (N, C, height, width).
        size (Sequence[int]): Height and width of the images.

    Returns:
        Found: The boxes of all images, by image and descending score.
    """
    from mmdet.structures.bbox import bbox_cxcywh_to_xyxy

    head = model.bbox_head
    with _sizes_in_lists(model):
        logits, boxes = (outputs[-1] for outputs in head(**model.forward_transformer(features)))
    count = head.test_cfg.get('max_per_img', model.num_queries)
    if head.loss_cls.use_sigmoid:
        scores, best = logits.sigmoid().flatten(1).topk(count)
        labels, best = best % head.num_classes, best // head.num_classes
    else:
        scores, labels = logits.softmax(dim=-1)[..., :-1].max(dim=-1)
        scores, best = scores.topk(count)
        labels = labels.gather(1, best)
    boxes = bbox_cxcywh_to_xyxy(boxes.gather(1, best[..., None].expand(-1, -1, 4)))
    x, y = (
        (boxes[..., first::2] * side).clamp(min=0, max=side)
        for first, side in enumerate(size[::-1])
    )
    boxes = torch.stack([x, y], dim=-1).flatten(2)
    images = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(-1, count)
    return Found(*(values.flatten(0, 1) for values in (boxes, scores, labels, images)))


@contextmanager
def _sizes_in_lists(model: nn.Module) -> Iterator[None]:
    """Replaces the methods of a detector that read the sizes of the levels from a tensor."""
    from mmcv.ops import MultiScaleDeformableAttention
    from mmdet.models import DINO

    replaced: list[tuple[nn.Module, str, Callable]] = [
        (model, 'pre_transformer', _inputs),
        (model, 'gen_encoder_output_proposals', _proposals),
        (model.encoder, 'get_encoder_reference_points', _reference_points),
    ]
    if isinstance(model, DINO):
        replaced.append((model, 'forward_decoder', _decode))
    for module in model.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            replaced.append((module, 'forward', _attend))
    for module, name, function in replaced:
        vars(module)[name] = partial(function, module)
    try:
        yield
    finally:
        for module, name, _ in replaced:
            del vars(module)[name]


def _inputs(model: nn.Module, features: Sequence[Tensor], _: Any) -> tuple[dict, dict]:
    """Does what ``pre_transformer`` does for images without padding."""
    positions = [
        model.positional_encoding(None, input=feature) + embedding[:, None, None]
        for feature, embedding in zip(features, model.level_embed)
    ]
    shared = dict(
        spatial_shapes=[feature.shape[2:] for feature in features],
        level_start_index=None,
        valid_ratios=features[0].new_ones(features[0].shape[0], len(features), 2),
    )
    of_encoder = dict(feat=_flatten(features), feat_mask=None, feat_pos=_flatten(positions))
    return {**of_encoder, **shared}, dict(memory_mask=None, **shared)


def _flatten(features: Sequence[Tensor]) -> Tensor:
    """Features (N, C, height, width) to (N, positions of all levels, C)."""
    return torch.cat([feature.flatten(2).transpose(1, 2) for feature in features], dim=1)


def _centers(sizes: Sizes, device: torch.device) -> list[Tensor]:
    """Returns the centers of the positions of each level (1, positions, 2), from 0 to 1."""
    levels = []
    for size in sizes:
        y, x = ((torch.arange(side, device=device) + 0.5) / side for side in size)
        x, y = x.repeat(size[0]), y[:, None].expand(-1, size[1]).flatten()
        levels.append(torch.stack([x, y], dim=-1)[None])
    return levels


def _reference_points(encoder: nn.Module, sizes: Sizes, ratios: Tensor, device: Any) -> Tensor:
    """Does what ``get_encoder_reference_points`` does: (N, positions, levels, 2)."""
    return torch.cat(_centers(sizes, device), dim=1)[:, :, None] * ratios[:, None]


def _proposals(model: nn.Module, memory: Tensor, _: None, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Does what ``gen_encoder_output_proposals`` does for images without padding."""
    boxes = torch.cat(
        [
            torch.cat([centers, torch.full_like(centers, 0.05 * 2.0**level)], dim=-1)
            for level, centers in enumerate(_centers(sizes, memory.device))
        ],
        dim=1,
    )
    outside = ~((boxes > 0.01) & (boxes < 0.99)).all(dim=-1, keepdim=True)
    logits = torch.log(boxes / (1 - boxes)).masked_fill(outside, float('inf'))
    memory = model.memory_trans_fc(memory.masked_fill(outside, 0))
    return model.memory_trans_norm(memory), logits


def _decode(
    model: nn.Module, query: Tensor, memory: Tensor, dn_mask: None, **inputs: Any
) -> dict[str, Any]:
    """Does what ``forward_decoder`` of DINO does, whose ``len`` would fix the batch."""
    states, references = model.decoder(
        query=query,
        value=memory,
        key_padding_mask=inputs.pop('memory_mask'),
        self_attn_mask=dn_mask,
        reg_branches=model.bbox_head.reg_branches,
        **inputs,
    )
    return dict(hidden_states=states, references=references)


def _attend(attention: Any, query: Tensor, **inputs: Any) -> Tensor:
    """Does what ``forward`` of multi-scale deformable attention does.

    Args:
        attention (MultiScaleDeformableAttention): The layer.
        query (Tensor): (N, L, C).
        inputs (dict): ``value`` (N, positions of all levels, C); ``query_pos`` (N, L, C), which is
            added to the query; ``reference_points``, points or boxes (N, L, levels, 2 or 4) from 0
            to 1; ``spatial_shapes``, the height and width of each level.

    Returns:
        Tensor: (N, L, C).
    """
    value, identity, sizes = inputs['value'], query, inputs['spatial_shapes']
    query = query + inputs['query_pos']
    heads, levels, points = attention.num_heads, attention.num_levels, attention.num_points
    value = attention.value_proj(value).unflatten(-1, (heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)
    # (N * heads, L, levels, points, 2) and (N * heads, 1, L, levels * points).
    offsets = attention.sampling_offsets(query).unflatten(-1, (heads, levels, points, 2))
    offsets = offsets.transpose(1, 2).flatten(0, 1)
    weights = attention.attention_weights(query).unflatten(-1, (heads, -1)).softmax(dim=-1)
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]
    reference = inputs['reference_points'][:, None].expand(-1, heads, -1, -1, -1).flatten(0, 1)
    parts = value.split([height * width for height, width in sizes], dim=2)
    samples = []
    for level, (part, (height, width)) in enumerate(zip(parts, sizes)):
        around, moved = reference[:, :, level, None], offsets[:, :, level]
        if around.shape[-1] == 2:
            moved = torch.stack([moved[..., 0] / width, moved[..., 1] / height], dim=-1)
        else:
            moved = moved / points * around[..., 2:] * 0.5
        grid = 2 * (around[..., :2] + moved) - 1
        image = part.unflatten(-1, (height, width))
        samples.append(F.grid_sample(image, grid, align_corners=False))
    # (N * heads, channels of a head, L).
    out = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(dim=-1)
    out = out.unflatten(0, (-1, heads)).flatten(1, 2).transpose(1, 2)
    return attention.output_proj(out) + identity
