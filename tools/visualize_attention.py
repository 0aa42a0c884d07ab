"""Draws what a position of a picture attends to in each stage of HAT-Net.

Local attention is over the window that holds the position, which is framed and shown enlarged, and
global attention over the pooled positions of the whole picture. Colours are multiples of the mean
weight. The picture goes through the test pipeline of the config, but is not cropped.
"""

import argparse
import math
from pathlib import Path

import matplotlib
import mmcv
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mmhatnet import cli
from mmhatnet.attention_maps import AttentionMap, attention_maps, recorded_inputs
from mmhatnet.backbones.hatnet import HATNet
from mmhatnet.inference import build_inferencer, find_pictures, inference_parser, load_job, predict

FORMATS = ('.pdf', '.png', '.svg')
PAGE, TITLE = (7.0, 9.0), 0.15  # inches
LEAST, MOST = 2, 16  # ends of the colour scale, as multiples of the mean


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


def compute(args: argparse.Namespace) -> list[tuple[dict, np.ndarray]]:
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


def draw_weights(ax: Axes, weights: Tensor, start: np.ndarray, end: np.ndarray) -> None:
    """Draws weights (h, w) in a frame, the mean of them white and its multiples in colours."""
    multiples = (weights * weights.numel()).clamp(1 / MOST, MOST)
    most = max(LEAST, multiples.log().abs().max().exp().item())
    extent = start[0], end[0], end[1], start[1]
    colours = dict(cmap='RdBu_r', norm=LogNorm(1 / most, most), alpha=0.65)
    drawn = ax.imshow(multiples.numpy(), extent=extent, **colours)
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes([1.02, 0, 0.03, 1]))
    bar.set_ticks([1 / most, 1, most], labels=[f'1/{most:.2g}', '1', f'{most:.2g}'])
    bar.ax.tick_params(which='both', labelsize=5, length=0, pad=1)
    bar.ax.minorticks_off()
    bar.outline.set_linewidth(0.3)


def draw_figure(
    stages: list[tuple[dict, np.ndarray]], picture: np.ndarray, point: list[int], heads: bool
) -> Figure:
    """Rows are stages and columns local and global; of single heads as many as fit into a row."""
    size = np.array(picture.shape[1::-1])
    panels = [
        (index, kind, head)
        for index, (maps, _) in enumerate(stages)
        for kind in (maps if heads else ('local', 'global'))
        for head in (range(len(maps[kind].weights)) if heads else (None,))
    ]
    columns = 6 if heads else 2
    lines = math.ceil(len(panels) / columns)
    shape = 0.9 * size[1] / size[0]
    width = min(PAGE[0] / columns, (PAGE[1] / lines - TITLE) / shape)
    figure = Figure((columns * width, lines * (width * shape + TITLE)), layout='constrained')
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis('off')
    for ax, (index, kind, head) in zip(axes, panels):
        maps, pixels = stages[index]
        found = maps.get(kind)
        ax.imshow(picture, cmap='gray', vmin=-80, vmax=255)  # the darkest is grey
        first, last = np.zeros(2), size
        if found:
            weights = found.weights.mean(0) if head is None else found.weights[head]
            draw_weights(ax, weights, *frame(found, pixels))
        if 'local' in maps:
            start, end = frame(maps['local'], pixels)
            ax.add_patch(Rectangle(start, *(end - start), fill=False, linewidth=0.7))
            if found and kind == 'local':  # three times the window, of the picture's shape
                part = min(3 * max((end - start) / size), 1) * size
                first = np.clip((start + end - part) / 2, 0, size - part)
                last = first + part
        ax.set(xlim=(first[0], last[0]), ylim=(last[1], first[1]))
        ax.plot(*(np.array(point) + 0.5), '+', color='lime', markersize=5)
        title = f'stage {index + 1}, {kind}' if found else 'the position'
        title += '' if head is None else f', head {head + 1}'
        ax.set_title(title, fontsize=5 if heads else 7, pad=2)
    return figure


@cli.exit_on_error()
def main() -> None:
    args = parse_args()
    cli.require_writable('--out', Path(args.out).parent)
    ((path, (height, width)), *others) = find_pictures([args.image]).items()
    x, y = args.point
    if others or not (0 <= x < width and 0 <= y < height):
        raise SystemExit(f'--point {x} {y} is outside of {path}, which is {width} x {height}.')
    args.image = path
    stages = compute(args)
    picture = mmcv.imread(path, 'grayscale')
    matplotlib.rcParams.update({'font.family': 'serif', 'pdf.fonttype': 42})
    figure = draw_figure(stages, picture, args.point, args.heads)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=300)
    print(f'The attention at {x} {y} of {path} is drawn in {args.out}')


if __name__ == '__main__':
    main()
