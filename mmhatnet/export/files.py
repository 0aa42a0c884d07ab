"""Exports a model to a file, and checks the file."""

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmhatnet.checkpoints.safe_loader import Checkpoint
from mmhatnet.config_walk import datasets_of
from mmhatnet.errors import ExportError
from mmhatnet.export.agreement import DETECTIONS, QUANTIZED, Agreement, Examples
from mmhatnet.export.detected import FileDetector
from mmhatnet.export.detectors import Detections
from mmhatnet.export.pixels import FromPixels, TakesPixels, synthetic_images
from mmhatnet.export.resizing import add_resizing, find_resizing
from mmhatnet.export.running import not_taken, runners
from mmhatnet.export.writing import quantize, upsampling_at_any_size, write_onnx, write_pt2

NEEDED = dict(onnx=('onnx', 'onnxscript'), pt2=())
FORMATS = tuple(NEEDED)
# For the outputs of a file, in standard deviations. Where PyTorch itself rounds more, as in some
# trained models, the limit is this many times the deviation of float32 from float64.
TOLERANCE, ROUNDINGS = 1e-4, 10
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


def source_of(cfg: Config, checkpoint: Checkpoint) -> dict:
    """Returns where a model is from: its config, its checkpoint and versions of packages."""
    packages = ('mmhatnet', cfg.default_scope, 'torch')
    source = dict(
        config=Path(cfg.filename).name,
        checkpoint=checkpoint.place,
        versions={name: import_module(name).__version__ for name in packages},
    )
    if os.path.isfile(checkpoint.place):
        source['checkpoint'] = Path(checkpoint.place).name
        source['sha256'] = hashlib.sha256(Path(checkpoint.place).read_bytes()).hexdigest()
    return source


def export_model(
    model: nn.Module,
    path: str | Path,
    part: str = 'model',
    classes: Sequence[str] | None = None,
    source: dict | None = None,
) -> float | None:
    """Exports a model for batches and images of any size, and checks the file.

    Args:
        model (nn.Module): A classifier or segmentor, or with ``part`` any model of OpenMMLab, with
            its weights.
        path (str | Path): The file, .onnx or .pt2. It is not written if anything fails.
        part (str): 'model', 'neck' or 'backbone', as for ``FromPixels``.
        classes (Sequence[str], optional): Names of the classes, for the metadata of the file.
        source (dict, optional): Where the model is from, for the metadata.

    Returns:
        float | None: The largest deviation of the file's outputs from the model's, at a size that
        was not traced, in standard deviations of an output. None if no runtime for the file is
        installed.

    Raises:
        ExportError: If the part cannot be exported, the exporter fails or its result is wrong.
    """
    module = FromPixels(model, part).eval()
    tried = synthetic_images(model, *TRIED)
    with torch.no_grad():
        expected = module(tried)
    if part == 'model':
        names = ['logits']
    else:
        names = [f'feature_{index}' for index in range(len(expected))]
    about = dict(part=part, classes=classes, source=source, outputs=names)
    if part == 'model':
        # From this score on, a classifier of several labels names a class.
        about['threshold'] = getattr(getattr(model, 'head', None), 'thr', None)
    with _new_file(Path(path)) as file:
        _write(module, synthetic_images(model, *TRACED), about, file)
        run = next(runners(file), (None, None))[1]
        if run is None:
            return None
        try:
            outputs = run(tried)
        except Exception as error:
            raise not_taken(tried, error) from error
        deviation = max(map(_deviation, outputs, expected))
        allowed = TOLERANCE
        if not deviation <= allowed:
            with torch.no_grad():
                exact = copy.deepcopy(module).double()(tried.double())
            allowed = max(allowed, ROUNDINGS * max(map(_deviation, expected, exact)))
        if not deviation <= allowed:
            raise ExportError(
                f'The exported file is wrong: for images {tuple(tried.shape)} its outputs '
                f'deviate from PyTorch by {deviation:.1e} standard deviations, and rounding '
                f'explains at most {allowed:.0e}. The file is not kept.'
            )
    return deviation


def export_detector(  # noqa: PLR0913
    inferencer: object,
    path: str | Path,
    images: Sequence[str] = (),
    source: dict | None = None,
    *,
    resize: bool = True,
    int8: bool = False,
) -> Agreement | None:
    """Exports a detector with all steps from decoded images to detections, and checks the file.

    Args:
        inferencer (object): The result of ``build_inferencer``.
        path (str | Path): The file, .onnx or .pt2. It is not written if anything fails.
        images (Sequence[str]): Images to check the file with. If there are none, those of the test
            data are used, or synthetic ones where they cannot be read.
        source (dict, optional): Where the model is from, for the metadata of the file.
        resize (bool): Whether an ONNX file resizes the images as the test pipeline does. PT2 files
            never do.
        int8 (bool): Whether the matrix products of an ONNX file are in 8 bits.

    Returns:
        Agreement | None: How the detections agree with those of the model. None if no runtime for
        the file is installed.

    Raises:
        ExportError: If the detector cannot be exported, the exporter fails or its result is wrong.
        ImageError: If an image cannot be read.
    """
    if int8 and not find_spec('onnxruntime'):
        raise ExportError('--precision int8 needs onnxruntime: pip install onnxruntime.')
    model = inferencer.model
    module = Detections(model).eval()
    resizing = None
    if resize and Path(path).suffix == '.onnx':
        resizing = find_resizing(inferencer.pipeline.transforms)
    head = model.roi_head if hasattr(model, 'roi_head') else model.bbox_head
    settings = head.test_cfg
    nms = settings.get('nms')
    about = dict(
        part='model',
        classes=inferencer.classes,
        source=source,
        outputs=module.outputs,
        pad_size_divisor=model.data_preprocessor.pad_size_divisor,
        score_thr=settings.get('score_thr', 0),
        nms=nms and dict(nms),
        max_per_img=settings.get('max_per_img', -1),
        mask_thr_binary=settings.get('mask_thr_binary'),
    )
    device = next(model.parameters()).device
    dataset = next(datasets_of(inferencer.cfg, 'test'))
    examples = Examples(inferencer, dataset, images)
    with _new_file(Path(path)) as file:
        _write(module, synthetic_images(model, *TRACED), about, file)
        if resizing:
            add_resizing(file, resizing)
        if int8:
            quantize(file)
        run = next(runners(file), (None, None))[1]
        if run is None:
            return None
        tolerance = QUANTIZED if int8 else DETECTIONS
        return examples.compare(FileDetector(file, device, run), about, tolerance)


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Yields a path for a file that becomes this one when the context ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder, f'exported{path.suffix}')
        yield file
        os.replace(file, path)


def _write(module: TakesPixels, traced: Tensor, about: dict, file: Path) -> None:
    """Writes a module with what users of the file must know."""
    about = about | dict(channel_order=module.channel_order)
    own = module.named_buffers(recurse=False)
    about.update((name, values.flatten().tolist()) for name, values in own)
    metadata = {key: json.dumps(value) for key, value in about.items() if value is not None}
    write = write_onnx if file.suffix == '.onnx' else write_pt2
    try:
        with torch.no_grad(), upsampling_at_any_size(), warnings.catch_warnings():
            # PyTorch and torchvision use functions of PyTorch that will be renamed.
            warnings.simplefilter('ignore', FutureWarning)
            write(module, traced, about['outputs'], metadata, file)
    except Exception as error:
        raise ExportError(
            f'PyTorch cannot export {type(module.model).__name__} ({about["part"]}) for all sizes: '
            f'{_first_line(error)}'
        ) from error


def _first_line(error: BaseException) -> str:
    # The exporter to ONNX wraps what went wrong in reports of several pages.
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), repr(error))


def _deviation(actual: Tensor, expected: Tensor) -> float:
    spread = expected.std(correction=0)
    return ((actual.to(expected) - expected).abs().max() / spread).item()
