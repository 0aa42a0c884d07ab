"""Time, memory and FLOPs of inference and of a training step of backbones, side by side."""

import json
import multiprocessing
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from mmengine.registry import MODELS
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from torch import Tensor, nn
from torch.backends.cpu import get_cpu_capability
from torch.profiler import profile
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

import mmhatnet.backbones.hatnet_reference  # noqa: F401  registers the baseline
from mmhatnet.flops import CPU_ATTENTION
from mmhatnet.openmmlab.patches import apply_patches

Backbones = dict[str, tuple[float | None, dict]]
# The published top-1 accuracy on ImageNet-1K and the registry settings of each backbone.
CONVNEXT = dict(type='mmpretrain.ConvNeXt', out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
BACKBONES: Backbones = {
    'hatnet_small_cp': (82.6, dict(type='HATNet', arch='small', with_cp=True)),
    'swin_tiny': (81.3, dict(type='mmdet.SwinTransformer')),
    'convnext_tiny': (82.1, CONVNEXT),
}
for arch, top1 in dict(tiny=79.8, small=82.6, medium=84.0, large=84.2).items():
    BACKBONES[f'hatnet_{arch}'] = (top1, dict(type='HATNet', arch=arch))
    BACKBONES[f'literal_{arch}'] = (top1, dict(type='ReferenceHATNet', arch=arch))
NUMBERS = [
    'seconds',
    'from, to',
    'times faster',
    'images/s',
    'GFLOP/s',
    'of ceiling',
    'GB',
    'ratio',
]


def build(settings: dict, device: str) -> nn.Module:
    if scope := settings['type'].rpartition('.')[0]:
        apply_patches()
        import_module(f'{scope}.models')
    return MODELS.build(dict(settings)).to(device)


def step(model: nn.Module, image: Tensor, mode: str, dtype: str) -> None:
    """Runs inference, or a forward and a backward pass in training mode."""
    model.train(mode == 'train')
    model.zero_grad()
    autocast = torch.autocast(image.device.type, getattr(torch, dtype), dtype != 'float32')
    with torch.set_grad_enabled(mode == 'train'), autocast:
        features = model(image)
    if mode == 'train':
        sum(feature.float().square().mean() for feature in features).backward()


def seconds(function: partial) -> float:
    """Returns the time of a call after a warm-up; PyTorch's timer also waits for a GPU."""
    timer = Timer('run()', globals=dict(run=function), num_threads=torch.get_num_threads())
    return timer.blocked_autorange().median


def matrix_product(device: str, dtype: str) -> float:
    """Returns the FLOP/s of a square matrix product that takes at least 0.05 s."""
    size, taken = 128, 0.0
    while taken < 0.05 and size < 8192:
        size *= 2
        a, b = torch.randn(2, size, size, device=device, dtype=getattr(torch, dtype))
        product = partial(torch.mm, a, b)
        taken = Timer('run()', globals=dict(run=product)).timeit(1).mean
    return 2 * size**3 / seconds(product)


def peak_memory(settings: dict, imports: Sequence[str], device: str, *case: object) -> int:
    """Measures one step in a fresh process.

    Args:
        settings (dict): The backbone, for the registry.
        imports (Sequence[str]): The modules that it needs.
        device (str): 'cpu' or 'cuda'.
        *case (object): Shape, mode and dtype.

    Returns:
        int: Bytes in use above the model at the peak.
    """
    if device == 'cuda':  # its allocator records the peak of any process
        return memory_of_step((), settings, device, *case)
    # By default glibc keeps freed memory, which then counts as used.
    os.environ['MALLOC_MMAP_THRESHOLD_'] = '1000000'
    processes = multiprocessing.get_context('forkserver')
    processes.set_forkserver_preload(
        ['mmhatnet.openmmlab.setup', 'mmdet.models', 'mmpretrain.models']
    )
    with ProcessPoolExecutor(1, processes) as process:
        return process.submit(memory_of_step, imports, settings, device, *case).result()


def memory_of_step(imports: Sequence[str], settings: dict, device: str, shape: tuple, *how) -> int:
    for module in imports:
        import_module(module)
    model, image = build(settings, device), torch.randn(*shape, device=device)
    if device == 'cuda':
        step(model, image[..., :64, :64], *how)  # cuDNN and cuBLAS allocate workspaces once
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, image, *how)
        return torch.cuda.max_memory_allocated() - before

    def resident(field: str) -> int:
        return int(re.search(rf'{field}:\s*(\d+) kB', Path('/proc/self/status').read_text())[1])

    Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    before = resident('VmRSS')
    step(model, image, *how)
    return 1024 * (resident('VmHWM') - before)


def measure(
    backbones: Backbones,
    shape: tuple[int, ...],
    mode: str,
    dtypes: Sequence[str] = ('float32',),
    device: str = 'cpu',
    rounds: int = 5,
    compiled: bool = False,
    profiled: bool = False,
) -> list[dict]:
    """Measures backbones in turns.

    Args:
        backbones (dict): The published accuracy and the registry settings of each, by name.
        shape (tuple[int, ...]): The input, (N, C, H, W).
        mode (str): 'forward' or 'train'.
        dtypes (Sequence[str]): 'float32', or 'bfloat16' and 'float16' through autocast.
        device (str): 'cpu' or 'cuda'.
        rounds (int): The number of turns per backbone.
        compiled (bool): Whether to measure ``torch.compile`` as well.
        profiled (bool): Whether to print the slowest operators.

    Returns:
        list[dict]: A row per backbone and dtype with seconds, FLOPs and so on.
    """
    image = torch.randn(*shape, device=device)
    turns = []
    for name, (accuracy, settings) in backbones.items():
        model = build(settings, device)
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            step(model, image, 'forward', 'float32')
        flops = counter.get_total_flops() * (3 if mode == 'train' else 1)
        row = dict(backbone=name, mode=mode, shape=shape, flops=flops, accuracy=accuracy)
        row['parameters'] = sum(parameter.numel() for parameter in model.parameters())
        for dtype in dtypes:
            turns.append((dict(row, dtype=dtype), partial(step, model, image, mode, dtype)))
            if compiled:
                run = partial(step, torch.compile(model), image, mode, dtype)
                turns.append((dict(row, dtype=dtype, backbone=f'{name}, compiled'), run))

    ceilings = {dtype: [] for dtype in dtypes}
    for _ in track(range(rounds), f'{mode}, {shape}', transient=True):
        for dtype in dtypes:
            ceilings[dtype].append(matrix_product(device, dtype))
        for row, run in turns:
            row.setdefault('times', []).append(seconds(run))
    for row, run in turns:
        row.update(seconds=median(row['times']), ceiling=median(ceilings[row['dtype']]))
        if profiled:
            with profile() as profiler:
                run()
            print(row['backbone'], row['dtype'], mode)
            print(profiler.key_averages().table(f'self_{device}_time_total', 12))
    return [row for row, _ in turns]


def show(rows: list[dict], case: str) -> None:
    first = rows[0]
    # Rich stores cells in the columns, so each table needs new ones.
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


def describe_machine(device: str) -> dict[str, str]:
    """Returns the date, the processor and the version of PyTorch."""
    cpu = re.search(r'model name\s*: (.*)|$', Path('/proc/cpuinfo').read_text())[1]
    cpu = f'{cpu}, {get_cpu_capability()}, {torch.get_num_threads()} threads'
    device = cpu if device == 'cpu' else torch.cuda.get_device_name()
    return dict(date=date.today().isoformat(), device=device, torch=torch.__version__)


def run_benchmark(
    backbones: Backbones,
    cases: Sequence[tuple[tuple[int, ...], str]],
    out: Path,
    *,
    imports: Sequence[str] = (),
    device: str = 'cpu',
    memory: bool = True,
    **how: object,
) -> None:
    """Measures backbones in all cases; prints tables, writes ``benchmark.json`` and plots.

    Args:
        backbones (dict): The published accuracy and the registry settings of each, by name.
        cases (Sequence[tuple]): Shapes (N, C, H, W), each with 'forward' or 'train'.
        out (Path): The folder of results.
        imports (Sequence[str]): The modules that the backbones need.
        device (str): 'cpu' or 'cuda'.
        memory (bool): Whether to measure peak memory.
        **how (object): dtypes, rounds, compiled and profiled, as for ``measure``.
    """
    out.mkdir(parents=True, exist_ok=True)
    machine, results = describe_machine(device), []
    print(*machine.values(), sep=', ')
    for shape, mode in cases:
        rows = measure(backbones, shape, mode, device=device, **how)
        for row in rows:
            if memory and 'compiled' not in row['backbone']:
                settings = backbones[row['backbone']][1]
                try:
                    row['memory'] = peak_memory(
                        *(settings, imports, device, shape, mode, row['dtype'])
                    )
                except Exception as error:  # the system kills a process that needs too much
                    name = row['backbone']
                    print(f'The memory of {name} cannot be measured: {error!r}', file=sys.stderr)
                    row['memory'] = None
        case = f'{mode}_{"x".join(map(str, shape))}'
        show(rows, case)
        draw_accuracy(rows, case, out / f'accuracy_{case}.png')
        # Written after each table, so that an interruption loses little.
        results += rows
        text = json.dumps(dict(machine=machine, results=results), indent=1)
        (out / 'benchmark.json').write_text(text + '\n')
