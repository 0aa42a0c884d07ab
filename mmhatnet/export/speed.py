"""Times exported files beside PyTorch."""

from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Compare, Timer

from mmhatnet.export.agreement import drawn_image
from mmhatnet.export.detectors import Detections
from mmhatnet.export.pixels import FromPixels, synthetic_images
from mmhatnet.export.running import read_metadata, runners
from mmhatnet.inference import predict


def compare_speed(
    inferencer: object, file: str | Path, part: str, sizes: Sequence[tuple[int, int]]
) -> Compare:
    """Times a model and its exported file with each of the ``runners``.

    Args:
        inferencer (object): The inferencer of the model.
        file (str | Path): The file.
        part (str): The part that is in the file.
        sizes (Sequence[tuple[int, int]]): (height, width) of single images.

    Returns:
        torch.utils.benchmark.Compare: Prints as a table of medians.
    """
    model, about = inferencer.model, read_metadata(file)

    def predict_images(images: Tensor) -> list:
        order = -1 if about['channel_order'] == 'RGB' else 1
        pixels = images[0].permute(1, 2, 0).byte().numpy()[..., ::order]
        return predict(inferencer, [np.ascontiguousarray(pixels)])

    detects = part == 'model' and not FromPixels.gives_logits(model)
    if 'resize' in about:
        eager = predict_images
    else:
        eager = (Detections(model) if detects else FromPixels(model, part)).eval()
    functions = {'PyTorch, eager': eager, **dict(runners(file))}
    with torch.no_grad():
        return Compare(
            [
                Timer(
                    stmt='run(image)',
                    setup='run(image)',
                    globals=dict(run=run, image=image),
                    label='One image, median time',
                    sub_label=f'{height}x{width}',
                    description=name,
                    num_threads=torch.get_num_threads(),
                ).blocked_autorange(min_run_time=3)
                for height, width in sizes
                for image in [
                    _scene(height, width) if detects else synthetic_images(model, 1, height, width)
                ]
                for name, run in functions.items()
            ]
        )


def _scene(height: int, width: int) -> Tensor:
    """Returns an image (1, 3, height, width) with objects, which cost a detector time."""
    pixels = mmcv.imresize(drawn_image(0), (width, height))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
