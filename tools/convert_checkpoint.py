"""Writes a published HAT-Net checkpoint with this package's key names.

There is no need for it: the backbone reads published checkpoints as they are. It is for those who
want a file of weights alone, or one for the whole classifier of configs/imagenet_hatnet.py.
"""

import argparse
from pathlib import Path

import torch

from mmhatnet.backbones.checkpoint import lift_backbone, to_native_keys
from mmhatnet.checkpoint_files import ends_with_a_sentence, read_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='the published checkpoint')
    parser.add_argument('dst', help='the file to write')
    parser.add_argument(
        '--classifier',
        action='store_true',
        help='write the whole classifier instead of the backbone alone',
    )
    return parser.parse_args()


@ends_with_a_sentence()
def main() -> None:
    args = parse_args()
    weights = dict(read_checkpoint(args.src))
    lift_backbone(weights)
    to_native_keys(weights)
    backbone = {k: v for k, v in weights.items() if k.startswith(('stem.', 'stages.'))}
    head = {k: v for k, v in weights.items() if k.startswith('classifier.1.')}
    if not backbone:
        raise SystemExit(
            f'{args.src} holds no HAT-Net weights: its first keys are {[*weights][:3]}'
        )
    if args.classifier:
        if not head:
            raise SystemExit(f'{args.src} holds no classifier: convert it without --classifier.')
        backbone = {f'backbone.{key}': value for key, value in backbone.items()}
        backbone |= {k.replace('classifier.1.', 'head.fc.'): v for k, v in head.items()}
    Path(args.dst).parent.mkdir(parents=True, exist_ok=True)
    torch.save({'state_dict': backbone}, args.dst)
    print(f'{len(backbone)} tensors written to {args.dst}')


if __name__ == '__main__':
    main()
