"""Prints how far exported detectors are from mmdetection's predictions, at five sizes of images.

By default it compares the modules of all detectors of configs/ with small random weights, and of
mmdetection's own with a small ResNet. ``--format onnx`` or ``pt2`` exports them before, which takes
minutes for each. ``--trained CONFIG CHECKPOINT`` compares a trained model, on images of DATA.
"""

import argparse
import tempfile
from collections.abc import Iterator
from functools import reduce
from operator import or_
from pathlib import Path

import cv2
import torch
from detecting import CONFIGS, SIZES, Difference, compared, detector, drawn_images, settings_of
from experiments import ALL_EXPERIMENTS, identify, made_small
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from test_export_detectors import exported
from torch import Tensor, nn

from mmhatnet.export import Detections, ExportError

DATA = Path('data/toy/coco/val2017')


def models(chosen: list[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yields the names and models of detectors with random weights."""
    for path in ALL_EXPERIMENTS:
        name = identify(path)
        cfg = Config.fromfile(path)
        if cfg.default_scope == 'mmdet' and (not chosen or name in chosen):
            text = made_small(cfg, toy=path.parent.name == 'toy')
            yield name, detector(Config.fromstring(text, '.py').model)
    for name, config in CONFIGS.items():
        if not chosen or name in chosen:
            yield f'{name} of mmdetection', detector(settings_of(config))


def trained(config: str, checkpoint: str) -> nn.Module:
    settings = Config.fromfile(config).model
    model = detector(settings)
    load_checkpoint(model, checkpoint, map_location='cpu')
    return model


def real_images() -> list[Tensor]:
    """Returns a batch for each size, of the images of DATA in RGB."""
    files = iter(sorted(DATA.glob('*.jpg')))
    batches = []
    for count, height, width in SIZES:
        images = [cv2.imread(str(next(files)))[..., ::-1] for _ in range(count)]
        resized = [cv2.resize(image, (width, height)) for image in images]
        batches.append(torch.stack([torch.from_numpy(image) for image in resized]))
    return [batch.permute(0, 3, 1, 2).float().contiguous() for batch in batches]


def row(name: str, model: nn.Module, batches: list[Tensor], file_format: str | None) -> str:
    try:
        run = module = Detections(model).eval()
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            if file_format:
                run = exported(module, Path(folder, f'detector.{file_format}'), file_format)
            results = compared(run, module.outputs, model, batches)
            found = reduce(or_, results, Difference())
    except ExportError as error:
        return f'| {name} | {error} |'
    pixels = str(found.pixels) if 'masks' in module.outputs else ''
    return (
        f'| {name} | {found.total} | {found.counts} | {found.labels} | {found.boxes:.1e} | '
        f'{found.scores:.1e} | {pixels} |'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', help='of detectors (default: all)')
    parser.add_argument('--format', choices=['onnx', 'pt2'])
    parser.add_argument('--trained', nargs=2, metavar=('CONFIG', 'CHECKPOINT'))
    args = parser.parse_args()
    print('| Detector | Boxes | Other counts | Other labels | Boxes, px | Scores | Mask pixels |')
    print('|---|---|---|---|---|---|---|')
    if args.trained:
        print(row(Path(args.trained[0]).stem, trained(*args.trained), real_images(), args.format))
        return
    batches = [drawn_images(*size) for size in SIZES]
    for name, model in models(args.names):
        print(row(name, model, batches, args.format), flush=True)


if __name__ == '__main__':
    main()
