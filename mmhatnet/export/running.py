"""Runs exported files, and times them."""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Compare, Timer

from mmhatnet.export.pixels import FromPixels, synthetic_images


def runners(file: str | Path) -> Iterator[tuple[str, Callable[[Tensor], list[Tensor]]]]:
    """Yields the name of each installed runtime, and its function from images to outputs."""
    if Path(file).suffix == '.pt2':
        yield 'PyTorch', torch.export.load(file).module()
        return
    if find_spec('onnxruntime'):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options, ['CPUExecutionProvider'])
        yield 'onnxruntime', lambda x: _tensors(session.run(None, {'images': x.cpu().numpy()}))
    if find_spec('openvino'):
        import openvino

        # OpenVINO defaults to a lower precision on some CPUs.
        settings = dict(
            INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=torch.get_num_threads()
        )
        compiled = openvino.Core().compile_model(file, 'CPU', settings)
        yield 'OpenVINO', lambda x: _tensors(compiled(x.cpu().numpy()).values())


def compare_speed(
    model: nn.Module, file: str | Path, part: str, sizes: Sequence[tuple[int, int]]
) -> Compare:
    """Times a model and its exported file with each of the ``runners``.

    Args:
        model (nn.Module): The model.
        file (str | Path): The file.
        part (str): The part that is in the file.
        sizes (Sequence[tuple[int, int]]): (height, width) of single images.

    Returns:
        torch.utils.benchmark.Compare: Prints as a table of medians.
    """
    functions = {'PyTorch, eager': FromPixels(model, part).eval(), **dict(runners(file))}
    with torch.no_grad():
        return Compare(
            [
                Timer(
                    stmt='run(image)',
                    setup='run(image)',
                    globals=dict(run=run, image=synthetic_images(model, 1, height, width)),
                    label='One image, median time',
                    sub_label=f'{height}x{width}',
                    description=name,
                    num_threads=torch.get_num_threads(),
                ).blocked_autorange(min_run_time=3)
                for height, width in sizes
                for name, run in functions.items()
            ]
        )


def _tensors(arrays: list[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]
