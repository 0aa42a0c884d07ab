"""Measures backbones side by side: time, memory and FLOPs of inference and of a training step.

All backbones take turns in one process for several rounds, so that a temporarily busy machine slows
all of them down. Each turn starts with a warm-up. Peak memory is that of one step in a fresh
process. The ceiling is the rate of a square matrix product, measured in every round. FLOPs are
those of convolutions and matrix products, two for each multiply-add. A training step counts as
three forward passes, whatever a backbone recomputes. Ratios refer to the first backbone.
"""

import argparse
import re

import torch

from mmhatnet import cli
from mmhatnet.benchmark import BACKBONES, run_benchmark

DEFAULT = ['literal_small', 'hatnet_small', 'hatnet_small_cp', 'swin_tiny', 'convnext_tiny']
SHAPES = [(1, 3, 896, 1344), (8, 3, 224, 224)]
MODES = ['forward', 'train']
DTYPES = ['float32', 'bfloat16', 'float16']


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        'backbones',
        nargs='*',
        default=DEFAULT,
        help=f'{", ".join(BACKBONES)}, or of --config',
    )
    add(
        '--config',
        type=cli.path,
        help='a config whose dict `backbones` holds more names and registry settings',
    )
    add('--shapes', nargs='+', type=parse_shape, default=SHAPES, help='inputs, as 8x3x224x224')
    add('--modes', nargs='+', choices=MODES, default=MODES)
    add(
        '--dtypes',
        nargs='+',
        choices=DTYPES,
        default=DTYPES[:1],
        help='16 bits by autocast',
    )
    add('--device', choices=['cpu', 'cuda'], default='cpu')
    add('--compile', action='store_true', help='measure torch.compile as well')
    add('--rounds', type=int, default=5, help='turns per backbone')
    add('--no-memory', action='store_true', help='do not measure peak memory')
    add('--profile', action='store_true', help='also list the slowest operators')
    add('--out', type=cli.local_path, default='work_dirs/benchmark', help='folder of results')
    args = parser.parse_args()
    args.known, args.imports = dict(BACKBONES), []
    if args.config:
        cfg = cli.read_config(args.config)
        args.imports = cli.imports_of(cfg)
        for name, settings in cfg.to_dict().get('backbones', {}).items():
            args.known[name] = (None, settings)
    if unknown := [name for name in args.backbones if name not in args.known]:
        parser.error(
            f'unknown backbones {unknown}: name some of {list(args.known)} or add --config'
        )
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: PyTorch finds no GPU here')
    if args.rounds < 1:
        parser.error(f'--rounds {args.rounds} must be at least 1')
    return args


def parse_shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*){3}', text):
        raise argparse.ArgumentTypeError(f'{text} is not a shape such as 8x3x224x224')
    return tuple(map(int, text.split('x')))


@cli.exit_on_error()
def main() -> None:
    args = parse_args()
    run_benchmark(
        {name: args.known[name] for name in args.backbones},
        [(shape, mode) for shape in args.shapes for mode in args.modes],
        args.out,
        imports=args.imports,
        device=args.device,
        memory=not args.no_memory,
        dtypes=args.dtypes,
        rounds=args.rounds,
        compiled=args.compile,
        profiled=args.profile,
    )
    print(f'Results and plots are in {args.out}')


if __name__ == '__main__':
    main()
