"""Writes modules to ONNX and PT2 files."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def write_onnx(
    module: nn.Module, traced: Tensor, names: list[str], metadata: dict[str, str], file: Path
) -> None:
    with _optimizing_in_linear_time():
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


def quantize(file: Path) -> None:
    """Makes the matrix products of an ONNX file 8-bit, with onnxruntime's quantizer."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(file)
    # The quantizer infers the shapes anew, and refuses different names of the same sizes.
    del model.graph.value_info[:]
    about = {entry.key: entry.value for entry in model.metadata_props}
    quantize_dynamic(
        *(model, file),
        weight_type=QuantType.QInt8,
        op_types_to_quantize=['MatMul', 'Gemm'],
        extra_options=dict(DefaultTensorType=onnx.TensorProto.FLOAT),
    )
    model = onnx.load(file)
    onnx.helper.set_model_props(model, about | dict(precision='"int8"'))
    onnx.save(model, file)


def write_pt2(
    module: nn.Module, traced: Tensor, names: list[str], metadata: dict[str, str], file: Path
) -> None:
    any_size = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(module, (traced,), dynamic_shapes=(any_size,))
    torch.export.save(program, file, extra_files=metadata)


@contextmanager
def _optimizing_in_linear_time() -> Iterator[None]:
    """Leaves out a rule of ONNX Script's optimizer that goes through all nodes for each node.

    It joins pairs of slices to a split. No network here has such pairs, and half of the time of an
    export would be spent on them.
    """
    from onnxscript import rewriter

    rules = getattr(rewriter, '_DEFAULT_REWRITE_RULES', ())
    shorter = tuple(rule for rule in rules if str(rule) != 'SlicesSplit')
    with patch.object(rewriter, '_DEFAULT_REWRITE_RULES', shorter) if rules else nullcontext():
        yield


@contextmanager
def upsampling_at_any_size() -> Iterator[None]:
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
