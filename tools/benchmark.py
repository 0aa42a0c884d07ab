"""Measures backbones side by side: time, memory and FLOPs of inference and of a training step.

All backbones take turns in one process, for several rounds, so that a machine that is busy for a
while is so for all of them; their peak memory is that of one step in a fresh process each. The
ceiling is the rate of a large square matrix product, measured between the rounds. FLOPs here are
operations, two for a multiply-add, of convolutions and matrix products; a training step counts as
three forward passes, whatever a backbone computes again. Weights are random.

Examples:
    python tools/benchmark.py
    python tools/benchmark.py hatnet_small swin_tiny --shapes 8x3x224x224 --modes forward
    python tools/benchmark.py --device cuda --dtypes bfloat16 --shapes 2x3x896x1344 --compile
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from functools import partial
from pathlib import Path

import matplotlib
import torch
from get_flops import CPU_ATTENTION
from mmengine.config import Config
from mmengine.registry import MODELS
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import mmhatnet.backbones.hatnet_literal  # noqa: F401  registers the baseline

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402

# Settings for the registry, and the top-1 accuracy on ImageNet-1K that the backbone's paper gives.
BACKBONES = {
    'hatnet_tiny': (dict(type='HATNet', arch='tiny'), 79.8),
    'hatnet_small': (dict(type='HATNet', arch='small'), 82.6),
    'hatnet_small_cp': (dict(type='HATNet', arch='small', with_cp=True), 82.6),
    'hatnet_medium': (dict(type='HATNet', arch='medium'), 84.0),
    'hatnet_large': (dict(type='HATNet', arch='large'), 84.2),
    'literal_tiny': (dict(type='LiteralHATNet', arch='tiny'), 79.8),
    'literal_small': (dict(type='LiteralHATNet', arch='small'), 82.6),
    'literal_medium': (dict(type='LiteralHATNet', arch='medium'), 84.0),
    'literal_large': (dict(type='LiteralHATNet', arch='large'), 84.2),
    'swin_tiny': (dict(type='mmdet.SwinTransformer'), 81.3),
    'pvtv2_b2': (
        dict(type='mmdet.PyramidVisionTransformerV2', embed_dims=64, num_layers=[3, 4, 6, 3]),
        82.0,
    ),
    'convnext_tiny': (
        dict(
            type='mmpretrain.ConvNeXt',
            arch='tiny',
            out_indices=(0, 1, 2, 3),
            gap_before_final_norm=False,
        ),
        82.1,
    ),
    'twins_svt_small': (
        dict(type='mmpretrain.SVT', arch='small', out_indices=(0, 1, 2, 3)),
        81.7,
    ),
    'resnet50': (dict(type='mmdet.ResNet', depth=50), 76.1),
}
DEFAULT = ['literal_small', 'hatnet_small', 'hatnet_small_cp', 'swin_tiny', 'convnext_tiny']
LARGEST_PRODUCT = dict(cpu=2048, cuda=8192)
MODES = ('forward', 'train')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'backbones',
        nargs='*',
        default=DEFAULT,
        help=f'any of {", ".join(BACKBONES)}, or of --config; default: {" ".join(DEFAULT)}',
    )
    parser.add_argument(
        '--config',
        help='a config whose `backbones` is a dict of more backbones, names and settings for the '
        'registry; custom_imports work in it',
    )
    parser.add_argument(
        '--shapes',
        nargs='+',
        type=parse_shape,
        default=[(1, 3, 896, 1344), (8, 3, 224, 224)],
        metavar='NxCxHxW',
        help='sizes of the input; default: 1x3x896x1344 8x3x224x224',
    )
    parser.add_argument('--modes', nargs='+', choices=MODES, default=list(MODES))
    parser.add_argument(
        '--dtypes',
        nargs='+',
        choices=['float32', 'bfloat16', 'float16'],
        default=['float32'],
        help='of arithmetic; all but float32 by autocast',
    )
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--compile', action='store_true', help='measure torch.compile as well')
    parser.add_argument('--rounds', type=int, default=5, help='measurements of each; default: 5')
    parser.add_argument('--threads', type=int, help="of a CPU; default: PyTorch's")
    parser.add_argument(
        '--baseline',
        help='what ratios refer to, with the first of --dtypes; default: the first backbone',
    )
    parser.add_argument('--no-memory', action='store_true', help='leave peak memory out')
    parser.add_argument('--profile', action='store_true', help='also list the slowest operators')
    parser.add_argument('--out', type=Path, default='work_dirs/benchmark', help='folder of results')
    parser.add_argument('--memory-of', help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.config:
        if not Path(args.config).is_file():
            parser.error(f'there is no config {args.config}')
        for name, settings in Config.fromfile(args.config).backbones.items():
            BACKBONES[name] = (settings, None)
    args.baseline = args.baseline or args.backbones[0]
    named = dict.fromkeys([*args.backbones, args.baseline])
    unknown = [name for name in named if name not in BACKBONES]
    if unknown:
        parser.error(f'backbones {unknown} are none of {list(BACKBONES)}; --config adds others')
    if args.baseline not in args.backbones:
        parser.error(f'--baseline {args.baseline} is not measured: name it among the backbones')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: PyTorch finds no GPU here')
    if args.rounds < 1:
        parser.error(f'--rounds {args.rounds} must be at least 1')
    return args


def parse_shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(part) if part.isdecimal() else 0 for part in text.split('x'))
    if len(shape) != 4 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a shape such as 8x3x224x224')
    return shape


def shape_name(shape: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape))


def build(name: str, device: str) -> nn.Module:
    """Builds a backbone by its name in BACKBONES."""
    settings = dict(BACKBONES[name][0])
    if settings['type'].startswith('mmdet.'):
        import mmdet.models  # noqa: F401
    if settings['type'].startswith('mmpretrain.'):
        import mmpretrain.models  # noqa: F401
    return MODELS.build(settings).to(device)


def step(model: nn.Module, image: Tensor, mode: str, dtype: str) -> tuple[Tensor, ...]:
    """Inference, or a forward and a backward pass in training mode; returns the features."""
    model.train(mode == 'train')
    device = image.device.type
    autocast = (
        nullcontext() if dtype == 'float32' else torch.autocast(device, getattr(torch, dtype))
    )
    model.zero_grad()
    with torch.set_grad_enabled(mode == 'train'), autocast:
        features = model(image)
    if mode == 'train':
        sum(feature.float().square().mean() for feature in features).backward()
    if device == 'cuda':
        torch.cuda.synchronize()
    return features


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matrix_product(device: str, dtype: str) -> float:
    """FLOP/s of the largest square product that takes less than about a second.

    What a CPU has no instructions for takes it a thousand times as long as the rest.
    """
    size = 128
    while True:
        size *= 2
        a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in 'ab')

        def multiply(a: Tensor = a, b: Tensor = b) -> None:
            a @ b
            if device == 'cuda':
                torch.cuda.synchronize()

        multiply()
        taken = seconds(multiply)
        if size == LARGEST_PRODUCT[device] or 8 * taken > 1:
            return 2 * size**3 / taken


def peak_memory(args: argparse.Namespace, name: str, *case) -> int | None:
    """Bytes in use above the model at the peak of one step, measured in a fresh process."""
    request = json.dumps([name, *case])
    command = [sys.executable, __file__, *args.backbones, '--baseline', args.baseline]
    command += ['--device', args.device, '--memory-of', request]
    command += ['--config', args.config] if args.config else []
    command += ['--threads', str(args.threads)] if args.threads else []
    # glibc would keep freed memory for itself, from which nobody could tell what is in use.
    environment = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '1000000'}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or [f'exit {result.returncode}'])[-1]
        print(f'The memory of {request} could not be measured: {reason}', file=sys.stderr)
        return None
    return int(result.stdout.split()[-1])


def measure_peak_memory(device: str, name: str, shape: list, mode: str, dtype: str) -> int:
    model, image = build(name, device), torch.randn(*shape, device=device)
    if device == 'cuda':
        step(model, torch.randn(1, shape[1], 64, 64, device=device), mode, dtype)  # cuDNN, cuBLAS
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, image, mode, dtype)
        return torch.cuda.max_memory_allocated() - before

    def resident(field: str) -> int:
        status = Path('/proc/self/status').read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
    before = resident('VmRSS')
    step(model, image, mode, dtype)
    return resident('VmHWM') - before


def measure(args: argparse.Namespace, shape: tuple[int, ...], mode: str) -> list[dict]:
    """Measures all backbones in turns; returns a row for each with each dtype."""
    title = f'{mode}, {shape_name(shape)}'
    image = torch.randn(*shape, device=args.device)
    rows, steps = [], []
    for name in track(args.backbones, f'{title}: warming up', transient=True):
        model = build(name, args.device)
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            reference = step(model, image, 'forward', 'float32')
        flops = counter.get_total_flops() * (3 if mode == 'train' else 1)
        for dtype in args.dtypes:
            row = dict(backbone=name, dtype=dtype, shape=shape, mode=mode, flops=flops)
            row['accuracy'] = BACKBONES[name][1]
            if dtype != 'float32':
                features = step(model, image, 'forward', dtype)
                row['deviation'] = max(
                    ((feature - exact).norm() / exact.norm()).item()
                    for feature, exact in zip(features, reference)
                )
            rows.append(row)
            steps.append(partial(step, model, image, mode, dtype))
            if args.compile:
                rows.append(dict(row, backbone=f'{name}, compiled'))
                steps.append(partial(step, torch.compile(model), image, mode, dtype))
        del reference

    for run in steps if mode == 'train' or args.compile else ():
        run()
    times = [[] for _ in rows]
    ceilings = {dtype: [] for dtype in args.dtypes}
    for _ in track(range(args.rounds), f'{title}: rounds', transient=True):
        for dtype in args.dtypes:
            ceilings[dtype].append(matrix_product(args.device, dtype))
        for run, taken in zip(steps, times):
            taken.append(seconds(run))

    for row, run, taken in zip(rows, steps, times):
        row['seconds'] = statistics.median(taken)
        row['fastest'], row['slowest'] = min(taken), max(taken)
        row['ceiling'] = statistics.median(ceilings[row['dtype']])
        if args.profile:
            show_operators(row, run)
    del steps, model, run  # the processes that follow need the memory
    for row in track(rows, f'{title}: memory', transient=True):
        if not args.no_memory and 'compiled' not in row['backbone']:
            row['memory'] = peak_memory(args, row['backbone'], shape, mode, row['dtype'])
    return rows


def show_operators(row: dict, function: Callable[[], object]) -> None:
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with profile(activities=activities) as profiler:
        function()
    key = 'self_cuda_time_total' if torch.cuda.is_available() else 'self_cpu_time_total'
    print(f'{row["backbone"]}, {row["dtype"]}, {row["mode"]}')
    print(profiler.key_averages().table(sort_by=key, row_limit=12, max_name_column_width=50))


def show(rows: list[dict], args: argparse.Namespace, console: Console) -> None:
    """Prints the rows of one shape and mode as a table."""
    base = next(
        row for row in rows if row['backbone'] == args.baseline and row['dtype'] == args.dtypes[0]
    )
    shape, mode = shape_name(rows[0]['shape']), rows[0]['mode']
    table = Table(title=f'{mode}, {shape}; ratios to {args.baseline}', title_justify='left')
    table.add_column('backbone')
    for column in (
        'dtype',
        'seconds',
        'from, to',
        'times faster',
        'images/s',
        'GFLOP/s',
        'of ceiling',
        'memory',
        'ratio',
        'deviation',
    ):
        table.add_column(column, justify='right')
    for row in rows:
        rate, memory = row['flops'] / row['seconds'], row.get('memory')
        table.add_row(
            row['backbone'],
            row['dtype'],
            f'{row["seconds"]:.3g}',
            f'{row["fastest"]:.3g}, {row["slowest"]:.3g}',
            f'{base["seconds"] / row["seconds"]:.2f}',
            f'{row["shape"][0] / row["seconds"]:.3g}',
            f'{rate / 1e9:.0f}',
            f'{rate / row["ceiling"]:.0%}',
            f'{memory / 1e9:.2f} GB' if memory else '',
            f'{memory / base["memory"]:.2f}' if memory and base.get('memory') else '',
            f'{row["deviation"]:.2%}' if 'deviation' in row else '',
        )
    console.print(table)


def draw(results: list[dict], folder: Path) -> list[Path]:
    """Draws speed against accuracy, and time and memory against pixels, where there are any."""
    paths = []
    for mode in MODES:
        rows = [row for row in results if row['mode'] == mode]
        for shape in sorted({row['shape'] for row in rows}):
            points = [row for row in rows if row['shape'] == shape and row['accuracy']]
            if len({row['accuracy'] for row in points}) > 1:
                paths.append(draw_accuracy(points, folder))
        sizes = {row['shape'][2] * row['shape'][3] for row in rows if row['shape'][0] == 1}
        if len(sizes) > 1:
            paths.append(draw_pixels([row for row in rows if row['shape'][0] == 1], folder))
    return paths


def label(row: dict) -> str:
    return row['backbone'] if row['dtype'] == 'float32' else f'{row["backbone"]}, {row["dtype"]}'


def draw_accuracy(rows: list[dict], folder: Path) -> Path:
    shape, mode = shape_name(rows[0]['shape']), rows[0]['mode']
    figure, axes = plt.subplots(figsize=(8, 5), layout='constrained')
    for index, row in enumerate(rows):
        speed = row['shape'][0] / row['seconds']
        ours = row['backbone'].startswith('hatnet')
        axes.scatter(speed, row['accuracy'], color='tab:red' if ours else 'tab:blue')
        axes.annotate(
            label(row),
            (speed, row['accuracy']),
            (4, -10 if index % 2 else 4),
            textcoords='offset points',
            fontsize=8,
        )
    axes.set(xlabel=f'images/s, {mode}, {shape}', ylabel='published top-1, %')
    axes.margins(x=0.2, y=0.1)
    axes.grid(which='both', alpha=0.3)
    path = folder / f'accuracy_{mode}_{shape}.png'
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def draw_pixels(rows: list[dict], folder: Path) -> Path:
    quantities = dict(seconds='seconds', memory='peak memory above the model, bytes')
    if not any(row.get('memory') for row in rows):
        del quantities['memory']
    figure, plots = plt.subplots(
        1, len(quantities), figsize=(6 * len(quantities), 4.5), layout='constrained', squeeze=False
    )
    for axes, (quantity, caption) in zip(plots[0], quantities.items()):
        for name in dict.fromkeys(label(row) for row in rows):
            points = [row for row in rows if label(row) == name and row.get(quantity)]
            points.sort(key=lambda row: row['shape'][2] * row['shape'][3])
            pixels = [row['shape'][2] * row['shape'][3] / 1e6 for row in points]
            axes.plot(pixels, [row[quantity] for row in points], marker='o', label=name)
        axes.set(xscale='log', yscale='log', xlabel='million pixels', ylabel=caption)
        axes.grid(which='both', alpha=0.3)
    plots[0, 0].legend(fontsize=8)
    figure.suptitle(f'{rows[0]["mode"]}, one image')
    path = folder / f'pixels_{rows[0]["mode"]}.png'
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def describe_machine(args: argparse.Namespace) -> dict:
    cpu = platform.processor() or platform.machine()
    if Path('/proc/cpuinfo').exists():
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
        cpu = f'{names[0]}, {torch.get_num_threads()} threads' if names else cpu
    return dict(
        date=date.today().isoformat(),
        device=cpu if args.device == 'cpu' else torch.cuda.get_device_name(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        torch=torch.__version__,
        rounds=args.rounds,
    )


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.memory_of:
        print(measure_peak_memory(args.device, *json.loads(args.memory_of)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 140)
    machine = describe_machine(args)
    console.print(', '.join(f'{key} {value}' for key, value in machine.items()))
    results = []
    for shape in args.shapes:
        for mode in args.modes:
            rows = measure(args, shape, mode)
            show(rows, args, console)
            results += rows
            # After each table, so that what was measured survives an interruption.
            text = json.dumps(dict(machine=machine, results=results), indent=1)
            (args.out / 'benchmark.json').write_text(text + '\n')
    ceilings = {row['dtype']: row['ceiling'] / 1e9 for row in results}
    ceiling = ', '.join(f'{value:.0f} in {dtype}' for dtype, value in ceilings.items())
    console.print(f'The ceiling, a matrix product, in GFLOP/s: {ceiling}')
    for path in [args.out / 'benchmark.json', *draw(results, args.out)]:
        console.print(f'Written: {path}')


if __name__ == '__main__':
    main()
