"""Exports a model to a file, and checks the file."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from mmhatnet.errors import ExportError
from mmhatnet.export.pixels import FromPixels, synthetic_images
from mmhatnet.export.running import runners
from mmhatnet.export.writing import upsampling_at_any_size, write_onnx, write_pt2

NEEDED = dict(onnx=('onnx', 'onnxscript'), pt2=())
FORMATS = tuple(NEEDED)
TOLERANCE = 1e-4  # for the outputs of a file, in standard deviations
# Batch, height and width of the traced images, and of others to check the file with. The latter
# have odd sides, which no stride divides.
TRACED, TRIED = (2, 224, 288), (1, 161, 243)


def require_exporter(file_format: str) -> None:
    """Checks that the packages for a format are installed.

    Raises:
        ExportError: If not.
    """
    if missing := [name for name in NEEDED[file_format] if not find_spec(name)]:
        raise ExportError(
            f'--format {file_format} needs {" and ".join(missing)}: pip install '
            f'{" ".join(missing)}, or choose --format pt2, which needs nothing.'
        )


def export_model(
    model: nn.Module,
    path: str | Path,
    file_format: str,
    part: str = 'model',
    classes: list | None = None,
) -> float | None:
    """Exports a model for batches and images of any size, and checks the file.

    Args:
        model (nn.Module): A classifier, segmentor or detector of OpenMMLab, with its weights.
        path (str | Path): The file. It is not written if anything fails.
        file_format (str): 'onnx' or 'pt2'.
        part (str): 'model', 'neck' or 'backbone', as for ``FromPixels``.
        classes (list[str], optional): Names of the classes, for the metadata of the file.

    Returns:
        float | None: The largest deviation of the file's outputs from the model's, at a size that
        was not traced, in standard deviations of an output. None if no runtime for the file is
        installed.

    Raises:
        ExportError: If the part cannot be exported, the exporter fails or its result is wrong.
    """
    module = FromPixels(model, part).eval()
    path = Path(path)
    traced, tried = (synthetic_images(model, *shape) for shape in (TRACED, TRIED))
    with torch.no_grad():
        expected = module(tried)
    if part == 'model':
        names = ['logits']
    else:
        names = [f'feature_{index}' for index in range(len(expected))]
    metadata = dict(part=part, channel_order=module.channel_order, outputs=names, classes=classes)
    if part == 'model':
        # From this score on, a classifier of several labels names a class.
        metadata['threshold'] = getattr(getattr(model, 'head', None), 'thr', None)
    own = module.named_buffers(recurse=False)
    metadata.update((name, values.flatten().tolist()) for name, values in own)
    metadata = {key: json.dumps(value) for key, value in metadata.items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    write = write_onnx if file_format == 'onnx' else write_pt2
    with TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder, f'exported.{file_format}')
        try:
            with torch.no_grad(), upsampling_at_any_size():
                write(module, traced, names, metadata, file)
        except Exception as error:
            raise ExportError(
                f'PyTorch cannot export {type(model).__name__} ({part}) for all sizes: '
                f'{_first_line(error)}'
            ) from error
        run = next(runners(file), (None, None))[1]
        deviation = None
        if run is not None:
            try:
                outputs = run(tried)
            except Exception as error:
                raise ExportError(
                    f'The exported file does not take images {tuple(tried.shape)}, because PyTorch '
                    f'fixed it to other sizes: {_first_line(error)}. The file is not kept. Another '
                    '--format or --part may work.'
                ) from error
            deviation = max(map(_deviation, outputs, expected))
            if not deviation <= TOLERANCE:
                raise ExportError(
                    f'The exported file is wrong: for images {tuple(tried.shape)} its outputs '
                    f'deviate from PyTorch by {deviation:.1e} standard deviations, and rounding '
                    f'explains at most {TOLERANCE:.0e}. The file is not kept.'
                )
        os.replace(file, path)
    return deviation


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), repr(error))


def _deviation(actual: Tensor, expected: Tensor) -> float:
    spread = expected.std(correction=0)
    return ((actual.to(expected) - expected).abs().max() / spread).item()
