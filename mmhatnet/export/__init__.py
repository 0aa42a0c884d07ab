"""Exports models to files that run without this package: ONNX and PyTorch's exported programs."""

from mmhatnet.errors import ExportError
from mmhatnet.export.detected import FileDetector, evaluate
from mmhatnet.export.detectors import Detections
from mmhatnet.export.files import (
    FORMATS,
    export_detector,
    export_model,
    require_exporter,
    source_of,
)
from mmhatnet.export.pixels import PARTS, FromPixels
from mmhatnet.export.running import runners
from mmhatnet.export.speed import compare_speed

__all__ = [
    'FORMATS',
    'PARTS',
    'Detections',
    'ExportError',
    'FileDetector',
    'FromPixels',
    'compare_speed',
    'evaluate',
    'export_detector',
    'export_model',
    'require_exporter',
    'runners',
    'source_of',
]
