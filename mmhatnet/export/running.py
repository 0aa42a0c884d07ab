"""Runs exported files, and reads what they say about themselves."""

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmhatnet.errors import ExportError


def runners(file: str | Path) -> Iterator[tuple[str, Callable[[Tensor], list[Tensor]]]]:
    """Yields the name of each installed runtime, and its function from images to outputs."""
    if Path(file).suffix == '.pt2':
        with suppress(ImportError):
            import torchvision  # noqa: F401  has operators of detectors
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


def read_metadata(file: str | Path) -> dict:
    """Reads what an exported file says about itself."""
    if Path(file).suffix == '.pt2':
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if '/extra/' in name]
            return {name.rpartition('/')[2]: json.loads(archive.read(name)) for name in names}
    import onnx

    model = onnx.load(file, load_external_data=False)
    return {entry.key: json.loads(entry.value) for entry in model.metadata_props}


def not_taken(images: Tensor, error: Exception) -> ExportError:
    """Returns the error for a file that fails for images of a size."""
    reason = next(iter(str(error).strip().splitlines()), repr(error))
    return ExportError(
        f'The exported file does not take images {tuple(images.shape)}, because PyTorch fixed it '
        f'to other sizes: {reason}. The file is not kept. Another --format or --part may work.'
    )


def _tensors(arrays: list[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]
