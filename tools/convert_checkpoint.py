"""Writes a published checkpoint of any of the networks with this package's key names.

The backbones load published checkpoints as they are, so conversion is optional. It writes a file of
nothing but weights, for the backbone or for the whole classifier of configs/**/*_in1k.py.
"""

import argparse
import re
from pathlib import Path

import torch

import mmhatnet  # noqa: F401  defines the networks
from mmhatnet import cli
from mmhatnet.backbones.base import Backbone
from mmhatnet.checkpoints.files import read_checkpoint
from mmhatnet.checkpoints.keys import lift_backbone
from mmhatnet.errors import CheckpointError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', type=cli.path, help='the published checkpoint')
    parser.add_argument('dst', type=cli.path, help='the file to write')
    parser.add_argument(
        '--classifier',
        action='store_true',
        help='write the whole classifier instead of the backbone alone',
    )
    return parser.parse_args()


def identify(weights: dict) -> tuple[Backbone, dict] | None:
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


@cli.exit_on_error()
def main() -> None:
    args = parse_args()
    content = dict(read_checkpoint(args.src))
    found = identify(content)
    if not found:
        networks = ', '.join(network.CHECKPOINT.network for network in Backbone.__subclasses__())
        raise CheckpointError(
            f'{args.src} does not hold all weights of any variant of {networks}: its first keys '
            f'are {[*content][:3]}'
        )
    backbone, lifted = found
    weights = backbone.state_dict()
    if args.classifier:
        head = {}
        for pattern, replacement in backbone.CHECKPOINT.head:
            head |= {
                re.sub(pattern, replacement, key): value
                for key, value in lifted.items()
                if re.match(pattern, key)
            }
        if not head:
            raise CheckpointError(
                f'{args.src} holds no classifier: convert it without --classifier.'
            )
        weights = {f'backbone.{key}': value for key, value in weights.items()} | head
    Path(args.dst).parent.mkdir(parents=True, exist_ok=True)
    torch.save({'state_dict': weights}, args.dst)
    print(f'{len(weights)} tensors written to {args.dst}')


if __name__ == '__main__':
    main()
