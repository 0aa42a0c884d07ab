"""Measures time, memory and FLOPs of backbones, side by side.

Both inference and a training step are measured. All backbones take turns in one process for several
rounds, so that a temporarily busy machine slows all of them down. Each turn starts with a warm-up.
Peak memory is that of one step in a fresh process. The ceiling is the rate of a square matrix
product, measured in every round. FLOPs are those of convolutions and matrix products, two for each
multiply-add. A training step counts as three forward passes, whatever a backbone recomputes. Ratios
refer to the first backbone.
"""

import argparse
import re

from mmhatnet_cli.options import at_least, local_path, path

DEFAULT = ['literal_small', 'hatnet_small', 'hatnet_small_cp', 'swin_tiny', 'convnext_tiny']
SHAPES = [(1, 3, 896, 1344), (8, 3, 224, 224)]
MODES = ['forward', 'train']
DTYPES = ['float32', 'bfloat16', 'float16']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        'backbones',
        nargs='*',
        default=DEFAULT,
        help='hatnet_ and literal_ (the reference implementation) with tiny, small, medium or '
        'large, hatnet_small_cp, swin_tiny, convnext_tiny, or those of --config',
    )
    add(
        '--config',
        type=path,
        help='a config whose dict `backbones` holds more names and registry settings (default: '
        'none)',
    )
    add(
        '--shapes',
        nargs='+',
        type=shape,
        default=SHAPES,
        help='inputs, as 8x3x224x224 '
        f'(default: {" ".join("x".join(map(str, sizes)) for sizes in SHAPES)})',
    )
    add('--modes', nargs='+', choices=MODES, default=MODES, help='what is measured')
    add('--dtypes', nargs='+', choices=DTYPES, default=DTYPES[:1], help='16 bits by autocast')
    add('--device', choices=['cpu', 'cuda'], default='cpu', help='where it is measured')
    add('--compile', action='store_true', help='measure torch.compile as well')
    add('--rounds', type=at_least(1), default=5, help='turns per backbone')
    add(
        '--no-memory',
        action='store_true',
        help='do not measure peak memory (default: it is measured)',
    )
    add('--profile', action='store_true', help='also list the slowest operators')
    add('--out', type=local_path, default='work_dirs/benchmark', help='folder of results')


def shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*){3}', text):
        raise argparse.ArgumentTypeError(f'{text} is not a shape such as 8x3x224x224')
    return tuple(map(int, text.split('x')))


def run(args: argparse.Namespace) -> None:
    import torch

    from mmhatnet import cli
    from mmhatnet.benchmark import BACKBONES, run_benchmark

    known, imports = dict(BACKBONES), []
    if args.config:
        cfg = cli.read_config(args.config)
        imports = cli.imports_of(cfg)
        for name, settings in cfg.to_dict().get('backbones', {}).items():
            known[name] = (None, settings)
    if unknown := [name for name in args.backbones if name not in known]:
        raise argparse.ArgumentError(
            None, f'unknown backbones {unknown}: name some of {list(known)} or add --config'
        )
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise argparse.ArgumentError(None, '--device cuda: PyTorch finds no GPU here')
    run_benchmark(
        {name: known[name] for name in args.backbones},
        [(shape, mode) for shape in args.shapes for mode in args.modes],
        args.out,
        imports=imports,
        device=args.device,
        memory=not args.no_memory,
        dtypes=args.dtypes,
        rounds=args.rounds,
        compiled=args.compile,
        profiled=args.profile,
    )
    print(f'Results and plots are in {args.out}')
