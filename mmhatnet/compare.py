"""Writes docs/compare.md and its plots from recorded measurements and published figures."""

from importlib.util import find_spec
from pathlib import Path
from textwrap import fill

import yaml
from matplotlib.figure import Figure

from mmhatnet.errors import DataError

FORMULATIONS = {
    'literal_small': 'Published formulation',
    'HAT-Net small': '`HATNet`',
    'hatnet_small_cp': '`HATNet`, `with_cp=True`',
}
JOBS = ['Top 1 Accuracy', 'Mask R-CNN 1x', 'RetinaNet 1x', 'Semantic FPN 80k', 'UPerNet 160k']
TITLES = ['ImageNet-1K top-1', 'Mask R-CNN 1x box / mask AP', 'RetinaNet 1x box AP']
TITLES += ['Semantic FPN 80k mIoU', 'UPerNet 160k mIoU']
WORDS = dict(forward='forward', train='training step')
TEXT = """# Comparison

This page compares the small variant of each network with well-known backbones. `tools/compare.py`
writes it from [{json}]({json}) and [compare.yml](compare.yml).

## Published results

These results have not been reproduced here. mIoU is at a single scale. Parameters and GFLOPs are
counted here, for the backbone without a head at {size}. A FLOP is a multiply-add, and products
between activations count.

{published}

Sources:

{sources}

## Time and memory

Measured on {machine}. All backbones took turns in one process.
Seconds are the median of {rounds} rounds in {precision}. Memory is what one step takes in addition
to the model. In the order of the columns, a square matrix product reached {ceilings}
GFLOP/s. Where these rates differ much, the machine was busy, and columns cannot be compared.

{measured}

![Speed against published accuracy](compare_speed.png)
![Memory of a training step against published accuracy](compare_memory.png)

## HAT-Net and its published formulation

These figures are for the small variant, from the same run. The published formulation is
`ReferenceHATNet` in `mmhatnet/backbones/hatnet_reference.py`. It computes the same function, and
the tests compare `HATNet` with it. [Performance](performance.md) explains the differences.

{formulations}

## Training on synthetic data

The smallest variant of each network was trained in Mask R-CNN on synthetic data: 400 images, 3
epochs, random weights, seed {seed}. All use one recipe, which was made for HAT-Net. AP is in per
cent, on 50 other images.
{learned_on}
The results show that all networks learn. They do not show how the networks compare on real images.

{learned}

Five of the 50 images, with annotations and with the predictions of the networks that were trained
together (scores of 0.3 and more):

![Annotated and detected objects, a column for each network](compare_toy.jpg)
"""


def figures_of(entry: dict, root: Path) -> dict[str, float | str]:
    """Returns the published figures of a backbone by job."""
    figures = dict(entry.get('figures', {}))
    for path, names in entry.get('metafiles', {}).items():
        file = root / path
        if not file.exists():
            package, _, rest = path.partition('/')
            file = Path(find_spec(package).origin).parent / rest
        models = {model['Name']: model for model in yaml.safe_load(file.read_text())['Models']}
        for name in names:
            results = models[name]['Results']
            results = results if isinstance(results, list) else [results]
            metrics = {k: v for result in results for k, v in result['Metrics'].items()}
            if 'Top 1 Accuracy' in metrics:
                figures['Top 1 Accuracy'] = metrics['Top 1 Accuracy']
            elif 'mIoU' in metrics:
                job = 'UPerNet 160k' if 'upernet' in name else 'Semantic FPN 80k'
                figures[job] = metrics['mIoU']
            else:
                job = 'RetinaNet 1x' if 'retinanet' in name else 'Mask R-CNN 1x'
                figures[job] = ' / '.join(str(v) for k, v in metrics.items() if k.endswith(' AP'))
    return figures


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def item(text: str) -> str:
    return fill(f'- {text}', 120, subsequent_indent='  ', break_on_hyphens=False)


def formulations(rows: dict[tuple, dict[str, dict]], cases: list[tuple]) -> str:
    head = ['Case', '', 's (from, to)', 'speedup', 'of a matrix product', 'GB', 'ratio']
    lines = []
    for mode, shape in cases:
        reference = rows[mode, shape]['literal_small']
        for name, title in FORMULATIONS.items():
            row = rows[mode, shape][name]
            seconds, memory = row['seconds'], row.get('memory')
            cells = [f'{seconds:.3g} ({min(row["times"]):.3g}, {max(row["times"]):.3g})']
            cells.append(f'{reference["seconds"] / seconds:.2f}')
            cells.append(f'{row["flops"] / seconds / row["ceiling"]:.0%}')
            cells.append(f'{memory / 1e9:.2f}' if memory else '')
            # The reference implementation needs the most memory and may fail to fit.
            known = memory and reference.get('memory')
            cells.append(f'{memory / reference["memory"]:.2f}' if known else '')
            lines.append([f'{WORDS[mode]} {shape}', title, *cells])
    return table(head, lines)


def described(machine: dict[str, str]) -> str:
    return f'{machine["date"]} ({machine["device"]}, PyTorch {machine["torch"]})'


def trained_on(toy: dict) -> str:
    """Returns the sentences about the machines on which networks learned synthetic data."""
    lines = [f'The networks were trained on {described(toy["machine"])}.']
    for name, result in toy['results'].items():
        if 'machine' in result:
            lines.append(f'{name} was trained later, on {described(result["machine"])}.')
    return '\n'.join(lines)


def draw(
    points: dict[str, tuple[float, float]], others: dict[str, float], label: str, path: Path
) -> None:
    """Draws points, and a line for each backbone whose accuracy is not published."""
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    by_accuracy = sorted(points.items(), key=lambda item: -item[1][1])
    for index, (name, point) in enumerate(by_accuracy):
        axes.scatter(*point, color='tab:red' if name.startswith('HAT-Net') else 'tab:blue')
        offset, side = ((5, -11), 'left') if index % 2 else ((-5, 5), 'right')
        axes.annotate(name, point, offset, textcoords='offset points', ha=side, fontsize=9)
    for name, value in others.items():
        axes.axvline(value, color='tab:gray', linestyle=':')
        place = (value, 0.02)
        axes.annotate(name, place, (3, 0), axes.get_xaxis_transform(), 'offset points', fontsize=9)
    axes.set(xlabel=label, ylabel='published ImageNet-1K top-1, %')
    axes.margins(x=0.2, y=0.1)
    figure.savefig(path, dpi=120)


def write_comparison(
    backbones: dict[str, dict], measured: dict, toy: dict, root: Path, out: Path, record: str
) -> None:
    """Writes ``compare.md``, ``compare_speed.png`` and ``compare_memory.png``.

    Args:
        backbones (dict[str, dict]): The content of ``docs/compare.yml``.
        measured (dict): Their record from ``tools/benchmark.py``.
        toy (dict): The content of ``docs/compare_toy.json``, results on synthetic data.
        root (Path): The checkout. Its metafiles hold published figures.
        out (Path): The folder of the output.
        record (str): The name of the file with the measurements, for a link on the page.

    Raises:
        DataError: If the record lacks measurements of a backbone.
    """
    rows = {}
    for row in measured['results']:
        rows.setdefault((row['mode'], 'x'.join(map(str, row['shape']))), {})[row['backbone']] = row
    wanted = [*backbones, *FORMULATIONS]
    missing = dict.fromkeys(n for n in wanted if not all(n in of_case for of_case in rows.values()))
    if missing:
        raise DataError(
            f'{record} lacks measurements of {", ".join(missing)}: measure all backbones again '
            'with --measure.'
        )
    cases = sorted(rows, key=lambda case: (case[1].split('x')[0] == '1', case[0]))
    first = rows[cases[0]]
    figures = {name: figures_of(entry, root) for name, entry in backbones.items()}
    published, times = [], []
    for name in backbones:
        row = first[name]
        # A training step is recorded as three forward passes, a multiply-add as two operations.
        flops = row['flops'] / (3 if row['mode'] == 'train' else 1) / 2 / row['shape'][0]
        counted = [f'{row["parameters"] / 1e6:.1f}', f'{flops / 1e9:.2f}']
        published.append([name, *counted, *(figures[name].get(job, '') for job in JOBS)])
        cells = []
        for case in cases:
            seconds, memory = rows[case][name]['seconds'], rows[case][name].get('memory')
            cells.append(f'{seconds:.3g} / {memory / 1e9:.2f}' if memory else f'{seconds:.3g}')
        times.append([name, *cells])
    head = ['Backbone', *(f'{WORDS[mode]} {shape}, s / GB' for mode, shape in cases)]
    any_row = next(iter(first.values()))
    metrics = [f'coco/{name}_mAP{level}' for name in ('bbox', 'segm') for level in ('_50', '')]
    learned = [
        [name, f'`{result["config"]}`', *(f'{100 * result[metric]:.1f}' for metric in metrics)]
        for name, result in toy['results'].items()
    ]
    text = TEXT.format(
        json=record,
        seed=toy['seed'],
        learned_on=trained_on(toy),
        learned=table(['Backbone', 'Config', 'box AP50', 'AP', 'mask AP50', 'AP'], learned),
        published=table(['Backbone', 'Parameters, M', 'GFLOPs', *TITLES], published),
        sources='\n'.join(item(f'{name}: {entry["source"]}.') for name, entry in backbones.items()),
        machine=described(measured['machine']),
        rounds=len(any_row['times']),
        size='x'.join(map(str, any_row['shape'][2:])),
        ceilings=', '.join(f'{next(iter(rows[c].values()))["ceiling"] / 1e9:.0f}' for c in cases),
        precision=any_row['dtype'],
        measured=table(head, times),
        formulations=formulations(rows, cases),
    )
    (out / 'compare.md').write_text(text)
    top1 = {name: of.get('Top 1 Accuracy') for name, of in figures.items()}
    speed = {name: first[name]['shape'][0] / first[name]['seconds'] for name in backbones}
    plots = {'compare_speed': (f'images/s, {WORDS[cases[0][0]]} {cases[0][1]}', speed)}
    case = next((c for c in reversed(cases) if all('memory' in r for r in rows[c].values())), None)
    if case and all(rows[case][name]['memory'] for name in backbones):
        memory = {name: rows[case][name]['memory'] / 1e9 for name in backbones}
        plots['compare_memory'] = (f'GB, {WORDS[case[0]]} {case[1]}', memory)
    for name, (label, values) in plots.items():
        points = {n: (value, top1[n]) for n, value in values.items() if top1[n]}
        others = {n: value for n, value in values.items() if not top1[n]}
        draw(points, others, label, out / f'{name}.png')
