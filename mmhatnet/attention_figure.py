"""Figures of what a position of an image attends to in each stage of HAT-Net."""

import copy
import math
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.config import Config
from torch import Tensor

from mmhatnet.attention_maps import AttentionMap, attention_maps, recorded_inputs
from mmhatnet.backbones.hatnet import HATNet
from mmhatnet.config_walk import datasets_of
from mmhatnet.errors import ConfigError
from mmhatnet.inference import build_inferencer, predict, require_predictable

PAGE, TITLE = (7.0, 9.0), 0.15  # inches
LEAST, MOST = 2, 16  # limits for the end of the color scale, in multiples of the mean


class StageMaps(NamedTuple):
    """The attention of one stage.

    Attributes:
        maps (dict[str, AttentionMap]): 'local' and 'global', or 'global' alone.
        pixels (np.ndarray): The pixels (x, y) of the image that one position covers.
    """

    maps: dict[str, AttentionMap]
    pixels: np.ndarray


def attention_of_image(
    cfg: Config,
    checkpoint: str,
    image: str,
    point: tuple[int, int],
    block: int = -1,
    device: str | None = None,
) -> list[StageMaps]:
    """Computes what a position of an image attends to in each stage.

    Args:
        cfg (Config): The config of the job. Crops in its test pipeline are skipped.
        checkpoint (str): The checkpoint, or the work folder of a training.
        image (str): The path of the image.
        point (tuple[int, int]): The position (x, y), in pixels.
        block (int): The block of each stage. Defaults to -1, the last.
        device (str, optional): The device of the model. Defaults to a GPU if there is one.

    Returns:
        list[StageMaps]: One for each stage.

    Raises:
        CheckpointError: If the checkpoint cannot be read or is of another model.
        ConfigError: If the config has no HATNet or cannot be used for predictions, or a stage has
            no such block.
    """
    require_predictable(cfg)
    cfg = copy.deepcopy(cfg)
    dataset = next(datasets_of(cfg, 'test'))
    dataset.pipeline = [step for step in dataset.pipeline if 'Crop' not in str(step['type'])]
    if cfg.default_scope == 'mmseg':
        cfg.model.test_cfg = dict(mode='whole')
    inferencer = build_inferencer(cfg, checkpoint, device)
    backbone = next((m for m in inferencer.model.modules() if isinstance(m, HATNet)), None)
    if backbone is None:
        raise ConfigError(f'{cfg.filename} has no HATNet: no other attention can be visualized.')
    depths = [len(stage.blocks) for stage in backbone.stages]
    if not -min(depths) <= block < min(depths):
        raise ConfigError(
            f'--block {block}: the stages have {depths} blocks; name one that all have, from '
            f'0 to {min(depths) - 1}, or from the end with -1 to -{min(depths)}.'
        )
    modules = [stage.blocks[block].attn for stage in backbone.stages]
    with recorded_inputs(modules) as inputs:
        (sample,) = predict(inferencer, [image])
    scale = np.array(sample.get('scale_factor', (1.0, 1.0)))
    stages = []
    for index, module in enumerate(modules):
        pixels = 4 * 2**index / scale
        column, row = (np.array(point) / pixels).astype(int).tolist()
        maps = attention_maps(module, inputs[module], row, column)
        maps = {name: found._replace(weights=found.weights.cpu()) for name, found in maps.items()}
        stages.append(StageMaps(maps, pixels))
    return stages


def frame(found: AttentionMap, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the top-left and bottom-right corner (x, y) of a map, in pixels of the image."""
    start = np.array([found.left, found.top])
    return start * pixels, (start + np.array(found.weights.shape[:0:-1]) * found.cell) * pixels


def draw_weights(ax: Axes, weights: Tensor, start: np.ndarray, end: np.ndarray) -> None:
    """Draws weights (h, w) in a frame: the mean is white, multiples of it are colored."""
    multiples = (weights * weights.numel()).clamp(1 / MOST, MOST)
    most = max(LEAST, multiples.log().abs().max().exp().item())
    extent = start[0], end[0], end[1], start[1]
    colors = dict(cmap='RdBu_r', norm=LogNorm(1 / most, most), alpha=0.65)
    heatmap = ax.imshow(multiples.numpy(), extent=extent, **colors)
    bar = ax.figure.colorbar(heatmap, cax=ax.inset_axes([1.02, 0, 0.03, 1]))
    bar.set_ticks([1 / most, 1, most], labels=[f'1/{most:.2g}', '1', f'{most:.2g}'])
    bar.ax.tick_params(which='both', labelsize=5, length=0, pad=1)
    bar.ax.minorticks_off()
    bar.outline.set_linewidth(0.3)


def draw_figure(
    stages: list[StageMaps], image: np.ndarray, point: tuple[int, int], heads: bool
) -> Figure:
    """Draws the attention of all stages over the image.

    Args:
        stages (list[StageMaps]): The result of ``attention_of_image``.
        image (np.ndarray): The gray image, (H, W).
        point (tuple[int, int]): The position (x, y), in pixels.
        heads (bool): Whether to draw each head instead of their mean.

    Returns:
        Figure: A row for each stage with local and global attention, or as many heads as fit.
    """
    size = np.array(image.shape[1::-1])
    panels = [
        (index, scope, head)
        for index, (maps, _) in enumerate(stages)
        for scope in (maps if heads else ('local', 'global'))
        for head in (range(len(maps[scope].weights)) if heads else (None,))
    ]
    columns = 6 if heads else 2
    lines = math.ceil(len(panels) / columns)
    shape = 0.9 * size[1] / size[0]
    width = min(PAGE[0] / columns, (PAGE[1] / lines - TITLE) / shape)
    figure = Figure((columns * width, lines * (width * shape + TITLE)), layout='constrained')
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis('off')
    for ax, (index, scope, head) in zip(axes, panels):
        maps, pixels = stages[index]
        found = maps.get(scope)
        ax.imshow(image, cmap='gray', vmin=-80, vmax=255)  # black becomes gray
        first, last = np.zeros(2), size
        if found:
            weights = found.weights.mean(0) if head is None else found.weights[head]
            draw_weights(ax, weights, *frame(found, pixels))
        if 'local' in maps:
            start, end = frame(maps['local'], pixels)
            ax.add_patch(Rectangle(start, *(end - start), fill=False, linewidth=0.7))
            if found and scope == 'local':  # three times the window, in the image's aspect ratio
                side = min(3 * max((end - start) / size), 1) * size
                first = np.clip((start + end - side) / 2, 0, size - side)
                last = first + side
        ax.set(xlim=(first[0], last[0]), ylim=(last[1], first[1]))
        ax.plot(*(np.array(point) + 0.5), '+', color='lime', markersize=5)
        title = f'stage {index + 1}, {scope}' if found else 'the position'
        title += '' if head is None else f', head {head + 1}'
        ax.set_title(title, fontsize=5 if heads else 7, pad=2)
    return figure
