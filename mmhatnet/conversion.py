"""Writes published checkpoints with the key names of this package."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmhatnet.backbones.base import Backbone
from mmhatnet.checkpoints.files import read_checkpoint
from mmhatnet.checkpoints.keys import lift_backbone
from mmhatnet.errors import CheckpointError


def convert_checkpoint(source: str, target: str, classifier: bool = False) -> int:
    """Writes the weights of a published checkpoint of any of the networks.

    Args:
        source (str): The published checkpoint.
        target (str): The file to write.
        classifier (bool): Whether the whole classifier is written. Defaults to False, which writes
            the backbone alone.

    Returns:
        int: The number of tensors that are written.

    Raises:
        CheckpointError: If the checkpoint cannot be read, is of no network, or has no classifier.
    """
    content = dict(read_checkpoint(source))
    found = _identify(content)
    if not found:
        networks = ', '.join(network.CHECKPOINT.network for network in Backbone.__subclasses__())
        raise CheckpointError(
            f'{source} does not hold all weights of any variant of {networks}: its first keys '
            f'are {[*content][:3]}'
        )
    backbone, lifted = found
    weights = backbone.state_dict()
    if classifier:
        head = {}
        for pattern, replacement in backbone.CHECKPOINT.head:
            head |= {
                re.sub(pattern, replacement, key): value
                for key, value in lifted.items()
                if re.match(pattern, key)
            }
        if not head:
            raise CheckpointError(f'{source} holds no classifier: convert it without --classifier.')
        weights = {f'backbone.{key}': value for key, value in weights.items()} | head
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    torch.save({'state_dict': weights}, target)
    return len(weights)


def _identify(weights: Mapping[str, Tensor]) -> tuple[Backbone, dict[str, Tensor]] | None:
    """Finds the variant whose weights a checkpoint holds.

    Returns:
        tuple[Backbone, dict] | None: The backbone with these weights, and all tensors of the
        checkpoint with the backbone's at the top level.
    """
    for network in Backbone.__subclasses__():
        lifted = dict(weights)
        lift_backbone(lifted, network.CHECKPOINT)
        for arch in network.ARCHS:
            with torch.device('meta'):
                backbone = network(arch)
            try:
                if not backbone.load_state_dict(lifted, strict=False, assign=True).missing_keys:
                    return backbone, lifted
            except CheckpointError:  # of another variant
                continue
    return None
