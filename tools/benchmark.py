"""Measures backbones side by side: time, memory and FLOPs of inference and of a training step.

All backbones take turns in one process, for several rounds, so that a machine that is busy for a
while is so for all of them; each turn warms up first. Peak memory is that of one step in a fresh
process. The ceiling is the rate of a square matrix product, measured in every round. FLOPs here are
operations, two for a multiply-add, of convolutions and matrix products; a training step counts as
three forward passes, whatever a backbone computes again. Ratios refer to the first backbone.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median

import torch
from get_flops import CPU_ATTENTION
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import MODELS
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from torch import Tensor, nn
from torch.backends.cpu import get_cpu_capability
from torch.profiler import profile
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

import mmhatnet.backbones.hatnet_literal  # noqa: F401  registers the baseline
from mmhatnet.openmmlab.patches import apply_patches

# Top-1 accuracy on ImageNet-1K that the backbone's paper gives, and settings for the registry.
CONVNEXT = dict(type='mmpretrain.ConvNeXt', out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
BACKBONES = {
    'hatnet_small_cp': (82.6, dict(type='HATNet', arch='small', with_cp=True)),
    'swin_tiny': (81.3, dict(type='mmdet.SwinTransformer')),
    'convnext_tiny': (82.1, CONVNEXT),
}
for arch, top1 in dict(tiny=79.8, small=82.6, medium=84.0, large=84.2).items():
    BACKBONES[f'hatnet_{arch}'] = (top1, dict(type='HATNet', arch=arch))
    BACKBONES[f'literal_{arch}'] = (top1, dict(type='LiteralHATNet', arch=arch))
DEFAULT = ['literal_small', 'hatnet_small', 'hatnet_small_cp', 'swin_tiny', 'convnext_tiny']
SHAPES = [(1, 3, 896, 1344), (8, 3, 224, 224)]
MODES = ['forward', 'train']
DTYPES = ['float32', 'bfloat16', 'float16']
NUMBERS = 'seconds|from, to|times faster|images/s|GFLOP/s|of ceiling|GB|ratio'.split('|')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('backbones', nargs='*', default=DEFAULT, help=f'{", ".join(BACKBONES)}, or of --config')
    add('--config', help='one with a dict `backbones` of more names and settings for the registry')
    add('--shapes', nargs='+', type=parse_shape, default=SHAPES, help='inputs, as 8x3x224x224')
    add('--modes', nargs='+', choices=MODES, default=MODES)
    add('--dtypes', nargs='+', choices=DTYPES, default=DTYPES[:1], help='but float32 by autocast')
    add('--device', choices=['cpu', 'cuda'], default='cpu')
    add('--compile', action='store_true', help='measure torch.compile as well')
    add('--rounds', type=int, default=5, help='turns of each')
    add('--no-memory', action='store_true', help='leave peak memory out')
    add('--profile', action='store_true', help='also list the slowest operators')
    add('--out', type=Path, default='work_dirs/benchmark', help='folder of results')
    args = parser.parse_args()
    if args.config:
        if not Path(args.config).is_file():
            parser.error(f'there is no config {args.config}')
        for name, settings in Config.fromfile(args.config).to_dict()['backbones'].items():
            BACKBONES[name] = (None, settings)
    if unknown := [name for name in args.backbones if name not in BACKBONES]:
        parser.error(f'backbones {unknown} are none of {list(BACKBONES)}; --config adds others')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: PyTorch finds no GPU here')
    if args.rounds < 1:
        parser.error(f'--rounds {args.rounds} must be at least 1')
    return args


def parse_shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*){3}', text):
        raise argparse.ArgumentTypeError(f'{text} is not a shape such as 8x3x224x224')
    return tuple(map(int, text.split('x')))


def build(settings: dict, device: str) -> nn.Module:
    if scope := settings['type'].rpartition('.')[0]:
        apply_patches()
        import_module(f'{scope}.models')
    return MODELS.build(dict(settings)).to(device)


def step(model: nn.Module, image: Tensor, mode: str, dtype: str) -> None:
    """Inference, or a forward and a backward pass in training mode."""
    model.train(mode == 'train')
    model.zero_grad()
    autocast = torch.autocast(image.device.type, getattr(torch, dtype), dtype != 'float32')
    with torch.set_grad_enabled(mode == 'train'), autocast:
        features = model(image)
    if mode == 'train':
        sum(feature.float().square().mean() for feature in features).backward()


def seconds(function: partial) -> float:
    """The time of a call, after one to warm up; PyTorch's timer also waits for a GPU."""
    timer = Timer('run()', globals=dict(run=function), num_threads=torch.get_num_threads())
    return timer.blocked_autorange().median


def matrix_product(device: str, dtype: str) -> float:
    """FLOP/s of a square product, a large one unless the CPU has no instructions for the dtype."""
    size, taken = 128, 0.0
    while taken < 0.05 and size < 8192:
        size *= 2
        a, b = torch.randn(2, size, size, device=device, dtype=getattr(torch, dtype))
        product = partial(torch.mm, a, b)
        taken = Timer('run()', globals=dict(run=product)).timeit(1).mean
    return 2 * size**3 / seconds(product)


def peak_memory(args: argparse.Namespace, row: dict) -> int | None:
    """Bytes in use above the model at the peak of one step in a fresh process."""
    # glibc would keep freed memory for itself, from which nobody could tell what is in use.
    os.environ['MALLOC_MMAP_THRESHOLD_'] = '1000000'
    settings = BACKBONES[row['backbone']][1]
    case = settings, args.device, row['shape'], row['mode'], row['dtype']
    try:
        if args.device == 'cuda':  # PyTorch's allocator knows what is in use, in any process
            return memory_of_step(None, *case)
        processes = multiprocessing.get_context('forkserver')
        processes.set_forkserver_preload(
            ['mmhatnet.openmmlab.setup', 'mmdet.models', 'mmpretrain.models']
        )
        with ProcessPoolExecutor(1, processes) as process:
            return process.submit(memory_of_step, args.config, *case).result()
    except Exception as error:  # the system ends a process that takes too much
        print(f'The memory of {row["backbone"]} could not be measured: {error!r}', file=sys.stderr)


def memory_of_step(config: str | None, settings: dict, device: str, shape: tuple, *how) -> int:
    if config:
        Config.fromfile(config)  # for its custom_imports
    model, image = build(settings, device), torch.randn(*shape, device=device)
    if device == 'cuda':
        step(model, image[..., :64, :64], *how)  # cuDNN and cuBLAS take memory once
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, image, *how)
        return torch.cuda.max_memory_allocated() - before

    def resident(field: str) -> int:
        return int(re.search(rf'{field}:\s*(\d+) kB', Path('/proc/self/status').read_text())[1])

    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
    before = resident('VmRSS')
    step(model, image, *how)
    return 1024 * (resident('VmHWM') - before)


def measure(args: argparse.Namespace, shape: tuple[int, ...], mode: str) -> list[dict]:
    """Measures all backbones in turns; returns a row for each with each dtype."""
    image = torch.randn(*shape, device=args.device)
    turns = []
    for name in args.backbones:
        accuracy, settings = BACKBONES[name]
        model = build(settings, args.device)
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            step(model, image, 'forward', 'float32')
        flops = counter.get_total_flops() * (3 if mode == 'train' else 1)
        row = dict(backbone=name, mode=mode, shape=shape, flops=flops, accuracy=accuracy)
        row['parameters'] = sum(parameter.numel() for parameter in model.parameters())
        for dtype in args.dtypes:
            turns.append((dict(row, dtype=dtype), partial(step, model, image, mode, dtype)))
            if args.compile:
                compiled = partial(step, torch.compile(model), image, mode, dtype)
                turns.append((dict(row, dtype=dtype, backbone=f'{name}, compiled'), compiled))

    ceilings = {dtype: [] for dtype in args.dtypes}
    for _ in track(range(args.rounds), f'{mode}, {shape}', transient=True):
        for dtype in args.dtypes:
            ceilings[dtype].append(matrix_product(args.device, dtype))
        for row, run in turns:
            row.setdefault('times', []).append(seconds(run))
    for row, run in turns:
        row.update(seconds=median(row['times']), ceiling=median(ceilings[row['dtype']]))
        if args.profile:
            with profile() as profiler:
                run()
            print(row['backbone'], row['dtype'], mode)
            print(profiler.key_averages().table(f'self_{args.device}_time_total', 12))
    return [row for row, _ in turns]


def show(rows: list[dict], case: str) -> None:
    first = rows[0]
    # New columns for each table, because columns keep the cells of their tables.
    columns = [Column(name, justify='right') for name in NUMBERS]
    table = Table('backbone', 'dtype', *columns, title=case)
    for row in rows:
        time, rate, memory = row['seconds'], row['flops'] / row['seconds'], row.get('memory')
        table.add_row(
            row['backbone'],
            row['dtype'],
            f'{time:.3g}',
            f'{min(row["times"]):.3g}, {max(row["times"]):.3g}',
            f'{first["seconds"] / time:.2f}',
            f'{row["shape"][0] / time:.3g}',
            f'{rate / 1e9:.0f}',
            f'{rate / row["ceiling"]:.0%} of {row["ceiling"] / 1e9:.0f}',
            f'{memory / 1e9:.2f}' if memory else '',
            f'{memory / first["memory"]:.2f}' if memory and first.get('memory') else '',
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def draw_accuracy(rows: list[dict], case: str, path: Path) -> None:
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    for index, row in enumerate(row for row in rows if row['accuracy']):
        point = row['shape'][0] / row['seconds'], row['accuracy']
        axes.scatter(*point, color='tab:red' if 'hatnet' in row['backbone'] else 'tab:blue')
        label, offset = f'{row["backbone"]}, {row["dtype"]}', (4, -10 if index % 2 else 4)
        axes.annotate(label, point, offset, textcoords='offset points', fontsize=8)
    axes.set(xlabel=f'images/s, {case}', ylabel='published top-1, %')
    axes.margins(x=0.2, y=0.1)
    figure.savefig(path, dpi=120)


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cpu = re.search(r'model name\s*: (.*)|$', Path('/proc/cpuinfo').read_text())[1]
    cpu = f'{cpu}, {get_cpu_capability()}, {torch.get_num_threads()} threads'
    device = cpu if args.device == 'cpu' else torch.cuda.get_device_name()
    machine = dict(date=date.today().isoformat(), device=device, torch=torch.__version__)
    print(*machine.values(), sep=', ')
    results = []
    for shape, mode in [(shape, mode) for shape in args.shapes for mode in args.modes]:
        rows = measure(args, shape, mode)
        for row in rows:
            if not args.no_memory and 'compiled' not in row['backbone']:
                row['memory'] = peak_memory(args, row)
        case = f'{mode}_{"x".join(map(str, shape))}'
        show(rows, case)
        draw_accuracy(rows, case, args.out / f'accuracy_{case}.png')
        # After each table, so that what was measured survives an interruption.
        results += rows
        text = json.dumps(dict(machine=machine, results=results), indent=1)
        (args.out / 'benchmark.json').write_text(text + '\n')
    print(f'Results and plots are in {args.out}')


if __name__ == '__main__':
    main()
