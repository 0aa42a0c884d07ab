"""Exports models to files that run without this package: ONNX and PyTorch's exported programs."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.benchmark import Compare, Timer

from mmhatnet.errors import ExportError

NEEDED = dict(onnx=('onnx', 'onnxscript'), pt2=())
FORMATS = tuple(NEEDED)
PARTS = ('model', 'neck', 'backbone')
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


class FromPixels(nn.Module):
    """A part of a model as a module that takes pixels from 0 to 255 and returns tensors.

    Args:
        model (nn.Module): A classifier, segmentor or detector of OpenMMLab.
        part (str): 'model' for logits, 'neck' for the features behind backbone and neck,
            'backbone' for those of the backbone.

    Raises:
        ExportError: If the whole model is neither a classifier nor a segmentor.
    """

    def __init__(self, model: nn.Module, part: str) -> None:
        super().__init__()
        if part == 'model' and not self.gives_logits(model):
            raise ExportError(
                f'{type(model).__name__} is neither a classifier nor a segmentor: PyTorch cannot '
                'export the steps that compute boxes, such as NMS. Export the network below them '
                'with --part neck or --part backbone.'
            )
        self.part = part
        self.model = model.backbone if part == 'backbone' else model
        preprocessor = model.data_preprocessor
        self.normalized = bool(getattr(preprocessor, '_enable_normalize', False))
        if self.normalized:
            for name in ('mean', 'std'):
                values = getattr(preprocessor, name).detach().clone().float()
                self.register_buffer(name, values.view(-1, 1, 1))
        # OpenCV reads BGR, which the preprocessor may convert.
        converted = getattr(preprocessor, '_channel_conversion', False)
        converted = converted or getattr(preprocessor, 'to_rgb', False)
        self.channel_order = 'RGB' if converted else 'BGR'
        # MMSegmentation compares the sigmoid of a single output for two classes with a threshold.
        share = getattr(getattr(model, 'decode_head', None), 'threshold', None)
        self.threshold = None if share is None else _logit(share)

    @staticmethod
    def gives_logits(model: nn.Module) -> bool:
        return hasattr(model, 'encode_decode') or (
            hasattr(model, 'head') and not hasattr(model, 'bbox_head')
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps images (N, C, H, W) to a tuple of outputs."""
        x = (images - self.mean) / self.std if self.normalized else images
        if self.part == 'backbone':
            outputs = self.model(x)
        elif self.part == 'neck':
            outputs = self.model.extract_feat(x)
        elif hasattr(self.model, 'encode_decode'):
            # Logits at the size of the images, before MMSegmentation takes the argmax.
            outputs = self.model.encode_decode(x, [dict(img_shape=x.shape[2:])])
            if self.threshold is not None and outputs.shape[1] == 1:
                # The larger one is the class, as where there is an output for each of both.
                outputs = torch.cat([torch.zeros_like(outputs), outputs - self.threshold], dim=1)
        else:
            outputs = self.model(x)
        return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


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
    traced, tried = (_image(model, *shape) for shape in (TRACED, TRIED))
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
    write = _write_onnx if file_format == 'onnx' else _write_pt2
    with TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder, f'exported.{file_format}')
        try:
            with torch.no_grad(), _upsampling_at_any_size():
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


@contextmanager
def _upsampling_at_any_size() -> Iterator[None]:
    """Replaces MMSegmentation's Upsample, whose ``int`` fixes sizes to the traced ones."""
    if 'mmseg' not in sys.modules:
        yield
        return
    from mmseg.models.utils import Upsample

    forward = Upsample.forward

    def upsample(self: nn.Module, x: Tensor) -> Tensor:
        if self.size or not float(self.scale_factor).is_integer():
            return forward(self, x)
        size = [side * int(self.scale_factor) for side in x.shape[2:]]
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)

    Upsample.forward = upsample
    try:
        yield
    finally:
        Upsample.forward = forward


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
                    globals=dict(run=run, image=_image(model, 1, height, width)),
                    label='One image, median time',
                    sub_label=f'{height}x{width}',
                    description=name,
                    num_threads=torch.get_num_threads(),
                ).blocked_autorange(min_run_time=3)
                for height, width in sizes
                for name, run in functions.items()
            ]
        )


def _logit(share: float) -> float:
    share = min(max(share, 1e-30), 1 - 1e-15)  # Those of 0 and 1 are infinite.
    return math.log(share / (1 - share))


def _image(model: nn.Module, batch: int, height: int, width: int) -> Tensor:
    weight = next(p for p in model.backbone.parameters() if p.ndim == 4)
    channels = getattr(model.backbone, 'in_channels', weight.shape[1])
    generator = torch.Generator().manual_seed(0)
    image = 255 * torch.rand(batch, channels, height, width, generator=generator)
    return image.to(weight.device)


def _write_onnx(
    module: nn.Module, traced: Tensor, names: list[str], metadata: dict[str, str], file: Path
) -> None:
    program = torch.onnx.export(
        module,
        (traced,),
        dynamo=True,
        verbose=False,
        input_names=['images'],
        output_names=names,
        dynamic_shapes=({0: 'batch', 2: 'height', 3: 'width'},),
    )
    program.model.metadata_props.update(metadata)
    program.save(file)


def _write_pt2(
    module: nn.Module, traced: Tensor, names: list[str], metadata: dict[str, str], file: Path
) -> None:
    any_size = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(module, (traced,), dynamic_shapes=(any_size,))
    torch.export.save(program, file, extra_files=metadata)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), repr(error))


def _tensors(arrays: list[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def _deviation(actual: Tensor, expected: Tensor) -> float:
    spread = expected.std(correction=0)
    return ((actual.to(expected) - expected).abs().max() / spread).item()
