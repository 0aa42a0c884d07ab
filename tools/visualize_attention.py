"""Draws what a position of a picture attends to in each stage of HAT-Net.

Local attention is over the window that holds the position, shown with what is around it, and
global attention over the pooled positions of the whole picture. Colours tell how many times the
mean a weight is. The picture goes through the test pipeline of the config, but is not cropped.
"""

import argparse
from pathlib import Path

import matplotlib
import mmcv
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmhatnet import cli
from mmhatnet.attention_maps import AttentionMap, attention_maps, recorded_inputs
from mmhatnet.backbones.hatnet import HATNet
from mmhatnet.checkpoint_files import ends_with_a_sentence
from mmhatnet.inference import (
    build_inferencer,
    find_pictures,
    inference_parser,
    load_job,
    predict,
)

FORMATS = ('.pdf', '.png', '.svg')
WIDTH = 7.0  # inches, that of a text of two columns


def parse_args() -> argparse.Namespace:
    parser = inference_parser(__doc__)
    parser.add_argument('image', help='the picture')
    parser.add_argument(
        '--point',
        nargs=2,
        type=int,
        required=True,
        metavar=('X', 'Y'),
        help='the position, in pixels from the top-left corner of the picture',
    )
    parser.add_argument('--out', default='attention.png', help='.png, .pdf or .svg file')
    parser.add_argument('--block', type=int, default=-1, help='of each stage (default: the last)')
    parser.add_argument('--heads', action='store_true', help='show each head, and not their mean')
    args = parser.parse_args()
    if Path(args.out).suffix not in FORMATS:
        parser.error(f'--out {args.out} must end with one of {", ".join(FORMATS)}')
    return args


def compute(args: argparse.Namespace, size: tuple[int, int]) -> list[tuple[dict, np.ndarray]]:
    """For each stage its maps, and the pixels (x, y) of the picture that one position covers."""
    cfg = load_job(args)
    pipeline = cfg.test_dataloader.dataset.pipeline
    cfg.test_dataloader.dataset.pipeline = [t for t in pipeline if 'Crop' not in str(t['type'])]
    if cfg.default_scope == 'mmseg':
        cfg.model.test_cfg = dict(mode='whole')
    inferencer = build_inferencer(cfg, args.checkpoint, args.device)
    backbone = next((m for m in inferencer.model.modules() if isinstance(m, HATNet)), None)
    if backbone is None:
        raise SystemExit(f'{args.config} has no HATNet, whose attention this is for.')
    depths = [len(stage.blocks) for stage in backbone.stages]
    if not -min(depths) <= args.block < min(depths):
        raise SystemExit(
            f'--block {args.block}: the stages have {depths} blocks; name one that all have, from '
            f'0 to {min(depths) - 1}, or from the end with -1 to -{min(depths)}.'
        )
    modules = [stage.blocks[args.block].attn for stage in backbone.stages]
    with recorded_inputs(modules) as inputs:
        (sample,) = predict(inferencer, [args.image])
    scale = np.array(sample.get('scale_factor', (1.0, 1.0)))
    stages = []
    for index, module in enumerate(modules):
        pixels = 4 * 2**index / scale
        column, row = (np.array(args.point) / pixels).astype(int).tolist()
        maps = attention_maps(module, inputs[module], row, column)
        maps = {kind: found._replace(weights=found.weights.cpu()) for kind, found in maps.items()}
        stages.append((maps, pixels))
    return stages


def frame(found: AttentionMap, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The (left, top) and (right, bottom) of a map in pixels of the picture."""
    start = np.array([found.left, found.top])
    return start * pixels, (start + np.array(found.weights.shape[:0:-1]) * found.cell) * pixels


def surroundings(start: np.ndarray, end: np.ndarray, size: np.ndarray) -> tuple:
    """A part of the picture, of its shape, around a window three times as large."""
    half = 1.5 * max((end - start) / size) * size
    middle = (start + end) / 2
    first = np.clip(middle - half, 0, np.maximum(size - 2 * half, 0))
    return first, np.minimum(first + 2 * half, size)


def draw(
    ax: Axes, picture: np.ndarray, found: AttentionMap, pixels: np.ndarray, head: int | None
) -> None:
    """Draws one map over the picture, that of a head or the mean of all."""
    weights = found.weights.mean(0) if head is None else found.weights[head]
    (left, top), (right, bottom) = frame(found, pixels)
    drawn = ax.imshow(
        weights * weights.numel(),
        extent=(left, right, bottom, top),
        cmap='inferno',
        alpha=0.6,
        vmin=0,
        zorder=2,
    )
    bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.04, pad=0.02)
    bar.ax.tick_params(labelsize=5, length=2, pad=1)
    bar.outline.set_linewidth(0.3)


def draw_figure(
    stages: list[tuple[dict, np.ndarray]], picture: np.ndarray, point: list[int], heads: bool
) -> Figure:
    """Rows are stages and columns local and global; or each of these a row, and columns heads."""
    size = np.array(picture.shape[1::-1])
    rows = [(i, kind) for i, (maps, _) in enumerate(stages) for kind in ('local', 'global')]
    columns = 2
    if heads:
        rows = [(i, kind) for i, kind in rows if kind in stages[i][0]]
        columns = max(len(found.weights) for maps, _ in stages for found in maps.values())
    lines = len(rows) if heads else len(stages)
    height = WIDTH / columns * 0.9 * size[1] / size[0] + 0.15
    figure = Figure((WIDTH, lines * height), layout='constrained')
    axes = figure.subplots(lines, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis('off')
    for number, (index, kind) in enumerate(rows):
        maps, pixels = stages[index]
        count = len(maps['global'].weights) if heads else 1
        for head in range(count):
            ax = axes[number, head] if heads else axes[divmod(number, 2)]
            title = f'stage {index + 1}, {kind}' + f', head {head + 1}' * heads
            if kind in maps:
                ax.imshow(picture, cmap='gray', vmin=-80, vmax=255)
                draw(ax, picture, maps[kind], pixels, head if heads else None)
            else:
                ax.imshow(picture, cmap='gray', vmin=-80, vmax=255)
                title = 'the position'
            start, end = np.zeros(2), size
            if 'local' in maps:
                window = frame(maps['local'], pixels)
                ax.add_patch(Rectangle(window[0], *(window[1] - window[0]), fill=False, ec='w'))
            if kind == 'local' and kind in maps:
                start, end = surroundings(*window, size)
            ax.set(xlim=(start[0], end[0]), ylim=(end[1], start[1]))
            ax.plot(*(np.array(point) + 0.5), 'c+', zorder=3)
            ax.set_title(title, fontsize=7, pad=2)
    return figure


@ends_with_a_sentence()
def main() -> None:
    args = parse_args()
    cli.require_writable('--out', Path(args.out).parent)
    ((path, (height, width)), *others) = find_pictures([args.image]).items()
    x, y = args.point
    if others or not (0 <= x < width and 0 <= y < height):
        raise SystemExit(f'--point {x} {y} is outside of {path}, which is {width} x {height}.')
    args.image = path
    stages = compute(args, (height, width))
    picture = mmcv.imread(path, 'grayscale')
    matplotlib.rcParams.update({'font.family': 'serif', 'pdf.fonttype': 42})
    figure = draw_figure(stages, picture, args.point, args.heads)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=300)
    print(f'The attention at {x} {y} of {path} is drawn in {args.out}')


if __name__ == '__main__':
    main()
