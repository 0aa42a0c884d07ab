"""Exports models to files that run without this package: ONNX and PyTorch's exported programs."""

from mmhatnet.errors import ExportError
from mmhatnet.export.detectors import Detections
from mmhatnet.export.files import FORMATS, export_model, require_exporter
from mmhatnet.export.pixels import PARTS, FromPixels
from mmhatnet.export.running import compare_speed, runners

__all__ = [
    'FORMATS',
    'PARTS',
    'Detections',
    'ExportError',
    'FromPixels',
    'compare_speed',
    'export_model',
    'require_exporter',
    'runners',
]
