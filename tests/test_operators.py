"""The operators for mmcv that need no compiler are exact, and found in any order of imports."""

import ast
import inspect
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from operators import (
    CASES,
    OURS,
    SEED,
    STORED,
    Draw,
    assert_same,
    normal,
    rois,
    use,
    with_gradients,
)
from torch import Tensor
from torch.autograd import gradcheck

from mmhatnet.openmmlab import operators
from mmhatnet.openmmlab.operators import SOURCE

ROOT = Path(__file__).parents[1]
MMCV = Path(mmcv.__file__).parent
TYPE = re.compile(r"""type=['"](\w+)['"]""")
REGISTERED = re.compile(r"""register_module\((?:name=)?['"](\w+)['"]""")
by_name = pytest.mark.parametrize('case', CASES, ids=lambda case: case.__name__)


@pytest.fixture(autouse=True)
def ours(request):
    """Makes every test call our operators, even if mmcv has compiled ones."""
    with use(OURS):
        yield


# ---------------------------------------------------------------------------------------------
# Agreement with the compiled operators


@by_name
def test_same_as_the_compiled_operators(case: Callable) -> None:
    """Their results are stored; tests/test_compiled_operators.py runs them again."""
    with np.load(STORED) as stored:
        names = [name for name in stored if name.startswith(f'{case.__name__}/')]
        expected = [torch.from_numpy(stored[f'{case.__name__}/{i}']) for i in range(len(names))]
    # Other processors round the sums over a region or a kernel differently.
    assert_same(case(Draw(SEED)), expected, max(CASES[case], 1e-6))


def called_operators() -> dict[str, list[ast.Call]]:
    """Returns all calls of `ext_module.NAME(...)` in mmcv, and the names that it loads."""
    calls: dict[str, list[ast.Call]] = {}
    for file in (MMCV / 'ops').glob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if ast.unparse(node.func.value) == 'ext_module':
                calls.setdefault(node.func.attr, []).append(node)
            elif node.func.attr == 'load_ext':
                for name in ast.literal_eval(node.args[1]):
                    calls.setdefault(name, [])
    return calls


CALLS = called_operators()
COVERED = [name for name in CALLS if name in vars(OURS)]


def test_number_of_operators_is_known() -> None:
    assert len(CALLS) in (112, 113)  # mmcv 2.1, 2.3
    assert len(COVERED) == 34


@pytest.mark.parametrize('name', COVERED)
def test_calls_of_mmcv_fit_the_signature(name: str) -> None:
    signature = inspect.signature(getattr(OURS, name))
    for call in CALLS[name]:
        if not any(isinstance(arg, ast.Starred) for arg in call.args):
            signature.bind(*call.args, **{word.arg: word.value for word in call.keywords})


def test_missing_operators_name_what_they_need() -> None:
    for name in set(CALLS) - set(COVERED):
        with pytest.raises(NotImplementedError) as error:
            getattr(OURS, name)(torch.zeros(1), wanted=2)
        message = str(error.value)
        assert repr(name) in message and '\n' not in message
        assert '--no-build-isolation' in message and f'mmcv=={mmcv.__version__}`' in message
    assert not hasattr(OURS, '__wrapped__') and not hasattr(OURS, '_private')


def names_in(file: Path) -> set[str]:
    """Returns the names that a module defines or registers."""
    text = file.read_text()
    return {*re.findall(r'^(?:class|def) (\w+)', text, re.M), *REGISTERED.findall(text)}


def test_configs_that_need_compiled_operators_are_listed() -> None:
    """Looks for names: types in the configs, and imports in the code of both frameworks."""
    uncovered = [
        file
        for file in (MMCV / 'ops').glob('*.py')
        if {*re.findall(r'ext_module\.(\w+)\(', file.read_text())} - {*COVERED}
    ]
    names = {name for file in uncovered for name in names_in(file)}
    # The other names of mmcv/ops/nms.py are for rotated boxes.
    names -= {'nms', 'soft_nms', 'nms_match', 'batched_nms', 'NMSop', 'SoftNMSop'}
    page = (ROOT / 'docs' / 'operators.md').read_text()
    for framework in ('mmdet', 'mmseg'):
        package = Path(import_module(framework).__file__).parent
        for file in package.rglob('*.py'):
            text, place = file.read_text(), file.relative_to(package)
            if '.mim' in place.parts:
                found = {*TYPE.findall(text)} & names
                assert not found or f'`{"/".join(place.parts[2:])}`' in page, (place, found)
            else:
                imports = ' '.join(
                    re.findall(r'from mmcv\.ops(?:\.\w+)? import ([\w ,]+|\([^)]+)', text)
                )
                found = {*re.findall(r'\w+', imports)} & names
                # The frameworks only check whether a model has a RoIPool.
                assert found <= {'RoIPool', 'line_nms'}, (place, found)


def test_an_operator_of_a_later_mmcv_fails_when_called() -> None:
    with pytest.raises(NotImplementedError, match='of_mmcv_2_4'):
        OURS.of_mmcv_2_4()


# ---------------------------------------------------------------------------------------------
# Gradients, half precision, memory layouts, and operators that mmcv has not compiled for CPUs


@pytest.mark.parametrize('pool_mode', ['avg', 'max'])
@pytest.mark.parametrize('ratio', [0, 2])
def test_gradients_of_roi_align(pool_mode: str, ratio: int) -> None:
    features, regions = normal(Draw(0), 2, 2, 8, 9, dtype=torch.float64), rois(Draw(0), 3).double()
    layer = mmcv.ops.RoIAlign((2, 3), 0.1, ratio, pool_mode)
    assert gradcheck(lambda x: layer(x, regions), features.requires_grad_())


@pytest.mark.parametrize('modulated', [False, True])
def test_gradients_of_deformable_convolutions(modulated: bool) -> None:
    draw, double = Draw(0), torch.float64
    x, weight = normal(draw, 2, 2, 5, 6, dtype=double), normal(draw, 2, 2, 3, 3, dtype=double)
    # Away from the pixels, where the derivative jumps.
    offset = normal(draw, 2, 18, 5, 6, dtype=double) + 0.01
    tensors = [x, offset, weight]
    operator = mmcv.ops.deform_conv2d
    if modulated:
        operator = mmcv.ops.modulated_deform_conv2d
        tensors.insert(2, normal(draw, 2, 9, 5, 6, dtype=double).sigmoid())
        tensors.append(normal(draw, 2, dtype=double))
    inputs = tuple(tensor.requires_grad_() for tensor in tensors)
    assert gradcheck(lambda *t: operator(*t, 1, 1), inputs)


def test_deformable_convolution_differentiates_once(monkeypatch) -> None:
    """mmcv asks for the gradients in two calls, and torchvision computes all of them in one."""
    calls = []
    backward = OURS._deform_conv_backward
    monkeypatch.setattr(OURS, '_deform_conv_backward', lambda *a: calls.append(a) or backward(*a))
    x, offset, weight = (
        normal(Draw(0), 1, 2, 5, 5),
        normal(Draw(1), 1, 18, 5, 5),
        torch.ones(2, 2, 3, 3),
    )
    tensors = [tensor.requires_grad_() for tensor in (x, offset, weight)]
    output = mmcv.ops.deform_conv2d(*tensors, 1, 1)
    first, second = torch.ones_like(output), torch.full_like(output, 2)
    whole = torch.autograd.grad(output, tensors, first, retain_graph=True)
    assert len(calls) == 1
    # A stored gradient must not be used for another gradient of the output.
    output = mmcv.ops.deform_conv2d(x, offset, weight, 1, 1)
    torch.autograd.grad(output, x, first, retain_graph=True)
    (of_weight,) = torch.autograd.grad(output, weight, second)
    torch.testing.assert_close(of_weight, 2 * whole[2])


def reference_focal_loss(scores: list[float], target: int, gamma: float, alpha: float) -> float:
    """Sums one row of SigmoidFocalLoss as its CUDA kernel computes it."""
    total = 0.0
    for number, score in enumerate(scores):
        p = 1 / (1 + math.exp(-score))
        if number == target:
            total -= alpha * (1 - p) ** gamma * math.log(p)
        else:
            total -= (1 - alpha) * p**gamma * math.log(1 - p)
    return total


def test_sigmoid_focal_loss() -> None:
    scores, targets = normal(Draw(0), 6, 4, dtype=torch.float64), torch.tensor([0, 3, 4, 1, 4, 2])
    expected = sum(
        reference_focal_loss(row, t, 2, 0.25) for row, t in zip(scores.tolist(), targets)
    )
    loss = mmcv.ops.sigmoid_focal_loss(scores, targets, 2.0, 0.25, None, 'sum')
    torch.testing.assert_close(loss.item(), expected)
    mean = mmcv.ops.sigmoid_focal_loss(scores, targets, 2.0, 0.25, None, 'mean')
    torch.testing.assert_close(mean.item(), expected / 6)
    scores.requires_grad_()
    for gamma in (0.5, 2.0):
        settings = (targets, gamma, 0.25, None, 'sum')
        assert gradcheck(mmcv.ops.sigmoid_focal_loss, (scores, *settings))


def test_softmax_focal_loss() -> None:
    scores, targets = normal(Draw(0), 5, 4, dtype=torch.float64), torch.tensor([0, 3, 2, 1, -1])
    p = scores.softmax(1)[range(4), targets[:4]]
    expected = -(0.25 * (1 - p) ** 2 * p.log()).sum()
    function = mmcv.ops.SoftmaxFocalLoss(2.0, 0.25, reduction='sum')
    torch.testing.assert_close(function(scores, targets), expected)
    assert gradcheck(lambda x: function(x, targets), scores.requires_grad_())


def test_focal_losses_with_class_weights_in_half_precision() -> None:
    scores, targets, weight = normal(Draw(0), 5, 4), torch.tensor([0, 3, 2, 1, 1]), torch.rand(4)
    for function in (mmcv.ops.sigmoid_focal_loss, mmcv.ops.softmax_focal_loss):
        plain = function(scores, targets, 2.0, 0.25, None, 'none')
        weighted = function(scores, targets, 2.0, 0.25, weight, 'none')
        by_class = weight[targets].view(-1, *[1] * (plain.dim() - 1))
        torch.testing.assert_close(weighted, plain * by_class)
        half = function(scores.bfloat16(), targets, 2.0, 0.25, None, 'none')
        torch.testing.assert_close(half.float(), plain, rtol=0.05, atol=0.02)


def test_a_target_beyond_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match='5 is no target: there are 4 classes'):
        mmcv.ops.sigmoid_focal_loss(torch.zeros(2, 4), torch.tensor([0, 5]))


def test_deformable_attention() -> None:
    """Compares the operator, which mmcv calls on GPUs only, with mmcv's own code for CPUs."""
    draw, double, shapes = Draw(0), torch.float64, torch.tensor([[3, 4], [2, 2]])
    value = normal(draw, 2, 16, 2, 3, dtype=double)
    locations = torch.from_numpy(draw.uniform(0.02, 0.97, (2, 5, 2, 2, 2, 2)))
    weights = normal(draw, 2, 5, 2, 2, 2, dtype=double)
    starts = torch.tensor([0, 12])

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        apply = MultiScaleDeformableAttnFunction.apply
        return apply(value, shapes, starts, locations, weights, 64)

    inputs = (value, locations, weights)
    expected = multi_scale_deformable_attn_pytorch(value, shapes.tolist(), locations, weights)
    torch.testing.assert_close(attend(*inputs), expected)
    assert gradcheck(attend, tuple(tensor.requires_grad_() for tensor in inputs))


def reference_carafe(x: np.ndarray, masks: np.ndarray, kernel: int, groups: int, scale: int):
    """Computes CARAFE pixel by pixel, as its CUDA kernel does."""
    images, channels, height, width = x.shape
    output = np.zeros((images, channels, height * scale, width * scale))
    for n, c, py, px in np.ndindex(*output.shape):
        group = c // (channels // groups)
        for iy, ix in np.ndindex(kernel, kernel):
            y, x_ = py // scale + iy - kernel // 2, px // scale + ix - kernel // 2
            if 0 <= y < height and 0 <= x_ < width:
                mask = masks[n, (group * kernel + iy) * kernel + ix, py, px]
                output[n, c, py, px] += x[n, c, y, x_] * mask
    return output


@pytest.mark.parametrize(('kernel', 'groups', 'scale'), [(3, 1, 2), (5, 2, 1), (3, 2, 3)])
def test_carafe(kernel: int, groups: int, scale: int) -> None:
    draw, double = Draw(0), torch.float64
    x = normal(draw, 2, 4, 3, 4, dtype=double)
    masks = normal(draw, 2, kernel * kernel * groups, 3 * scale, 4 * scale, dtype=double)
    expected = reference_carafe(x.numpy(), masks.numpy(), kernel, groups, scale)
    actual = mmcv.ops.carafe(x, masks, kernel, groups, scale)
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-12)
    naive = mmcv.ops.carafe_naive(x, masks, kernel, groups, scale)
    torch.testing.assert_close(naive, actual)
    inputs = (x.requires_grad_(), masks.requires_grad_())
    assert gradcheck(lambda *t: mmcv.ops.carafe(*t, kernel, groups, scale), inputs, fast_mode=True)


def test_masked_convolution() -> None:
    x, layer = normal(Draw(0), 1, 3, 6, 7), mmcv.ops.MaskedConv2d(3, 4, (3, 5), padding=(1, 2))
    mask = torch.from_numpy(Draw(1).uniform(size=(1, 6, 7)) > 0.5).float()
    with torch.no_grad():
        expected = F.conv2d(x, layer.weight, layer.bias, padding=(1, 2)) * mask
        torch.testing.assert_close(layer(x, mask), expected)


@pytest.fixture
def process_group():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_batch_normalization_over_processes(process_group) -> None:
    """With one process it equals PyTorch's; mmcv itself reduces the sums of several processes."""
    x = normal(Draw(0), 3, 4, 5, 6).requires_grad_()
    own, pytorch = mmcv.ops.SyncBatchNorm(4), torch.nn.BatchNorm2d(4)
    with torch.no_grad():
        for layer in (own, pytorch):
            layer.weight.copy_(torch.arange(4.0) + 1)
            layer.bias.copy_(torch.arange(4.0))
    grads = {}
    for layer in (own, pytorch):
        output = layer(x)
        output.backward(normal(Draw(1), *x.shape))
        grads[layer] = [output, x.grad, layer.weight.grad, layer.bias.grad]
        grads[layer] += [layer.running_mean, layer.running_var]
        x.grad = None
    torch.testing.assert_close(grads[own], grads[pytorch])


def test_deformable_roi_pooling() -> None:
    draw, double = Draw(0), torch.float64
    features, regions = normal(draw, 2, 2, 8, 9, dtype=double), rois(draw, 3).double()
    plain = mmcv.ops.roi_align(features, regions, (2, 3), 0.1)
    settings = ((2, 3), 0.1, 0, 0.1)
    offsets = torch.zeros(3, 2, 2, 3, dtype=double)
    for offset in (None, offsets):
        pooled = mmcv.ops.deform_roi_pool(features, regions, offset, *settings)
        torch.testing.assert_close(pooled, plain)
    # Offsets of one region width must give the features of regions that are moved by it.
    offsets[:, 0] = 10
    moved, width = regions.clone(), regions[:, 3] - regions[:, 1]
    moved[:, 1] += width
    moved[:, 3] += width
    actual = mmcv.ops.deform_roi_pool(features, regions, offsets, *settings)
    torch.testing.assert_close(actual, mmcv.ops.roi_align(features, moved, (2, 3), 0.1))
    offsets = normal(draw, 3, 2, 2, 3, dtype=double) * 0.5
    inputs = (features.requires_grad_(), regions, offsets.requires_grad_(), *settings)
    assert gradcheck(mmcv.ops.deform_roi_pool, inputs)


def test_half_precision_is_computed_in_float32() -> None:
    features, regions = normal(Draw(0), 2, 3, 13, 17), rois(Draw(0))
    for dtype in (torch.bfloat16, torch.float16):
        x = features.to(dtype)
        pooled = mmcv.ops.roi_align(x.requires_grad_(), regions.to(dtype), 3, 0.1)
        expected = mmcv.ops.roi_align(x.float(), regions.to(dtype).float(), 3, 0.1)
        assert pooled.dtype == dtype
        torch.testing.assert_close(pooled, expected.to(dtype))
        pooled.sum().backward()
        assert x.grad.dtype == dtype and x.grad.abs().sum() > 0


def test_channels_last_features() -> None:
    features, regions = normal(Draw(0), 2, 3, 13, 17), rois(Draw(0))
    last = features.to(memory_format=torch.channels_last)
    for mode in ('avg', 'max'):
        layer = mmcv.ops.RoIAlign(3, 0.1, 0, mode)
        assert torch.equal(layer(last, regions), layer(features, regions))


def test_nothing_to_do() -> None:
    assert mmcv.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)[1].dtype == torch.long
    assert mmcv.ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))[0].shape == (0, 5)
    features = torch.rand(1, 2, 4, 4, requires_grad=True)
    for mode in ('avg', 'max'):
        pooled = mmcv.ops.RoIAlign(3, pool_mode=mode)(features, torch.zeros(0, 5))
        assert pooled.shape == (0, 2, 3, 3)
        pooled.sum().backward()
        empty = mmcv.ops.RoIAlign(3, pool_mode=mode)(features, torch.tensor([[0, 1.0, 1, 1, 3]]))
        assert not empty.any()


@pytest.mark.parametrize('pool_mode', ['avg', 'max'])
@pytest.mark.parametrize('region', [[30.0, 5, 5, 30], [30.0, 30, 5, 5], [5.0, 30, 30, 5]])
def test_regions_of_negative_size_are_empty(region: list[float], pool_mode: str) -> None:
    features = torch.rand(1, 2, 40, 40, requires_grad=True)
    for ratio in (0, 2):
        layer = mmcv.ops.RoIAlign(3, 1.0, ratio, pool_mode)
        pooled = layer(features, torch.tensor([[0, *region]]))
        pooled.sum().backward()
        assert pooled.isfinite().all() and features.grad.isfinite().all()


@pytest.mark.parametrize('pool_mode', ['avg', 'max'])
def test_regions_that_are_not_finite_are_refused(pool_mode: str) -> None:
    """Otherwise a kernel would read arbitrary memory."""
    for value in (float('nan'), float('inf'), -float('inf')):
        regions = torch.tensor([[0, 1.0, 1, value, 9]])
        with pytest.raises(ValueError, match='not finite'):
            mmcv.ops.RoIAlign(3, 1.0, 2, pool_mode)(torch.rand(1, 2, 40, 40), regions)


def test_soft_nms_refuses_whole_numbers() -> None:
    with pytest.raises(TypeError, match='floating-point numbers, not of torch.int64'):
        mmcv.ops.soft_nms(torch.tensor([[0, 0, 10, 10]]), torch.tensor([0.9]))


def test_a_file_that_cannot_be_imported_is_named(site: Path) -> None:
    (site / 'mmcv' / '_ext.py').write_text('nms = None')
    assert 'is not from mmhatnet: move it away first' in install(site)


@by_name
def test_deterministic_algorithms(case: Callable) -> None:
    """Every operator is deterministic on a CPU."""
    torch.use_deterministic_algorithms(True)
    try:
        results = [case(Draw(SEED)) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(*results, tolerance=0)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_deterministic_gradient_of_roi_align(ratio: int, aligned: bool, monkeypatch) -> None:
    """On a GPU torchvision's kernel would raise an error. Our substitute also runs on a CPU."""
    features, regions = normal(Draw(0), 2, 2, 8, 9), rois(Draw(0))
    regions[0, 3:] = regions[0, 1:3]  # an empty region
    layer = mmcv.ops.RoIAlign((3, 2), 0.1, ratio, aligned=aligned)
    expected = with_gradients(Draw(1), layer, features.clone(), regions)
    monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: True)
    monkeypatch.setattr(OURS, '_on_gpu', lambda tensor: True)
    monkeypatch.setattr(OURS, 'REGIONS', 3)
    actual = with_gradients(Draw(1), layer, features.clone(), regions)
    assert not torch.equal(actual[1], torch.zeros_like(actual[1]))
    torch.testing.assert_close(actual, expected)


# ---------------------------------------------------------------------------------------------
# Installation


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Makes a folder for the front of the path, with an mmcv without operators."""
    shutil.copytree(MMCV, tmp_path / 'mmcv', ignore=shutil.ignore_patterns('_ext*', '__pycache__'))
    return tmp_path


def python(site: Path, *args: str) -> str:
    """Runs Python in the environment of a test and returns its output."""
    command = [sys.executable, *args]
    variables = {**os.environ, 'PYTHONPATH': str(site)}
    process = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=site)
    return process.stdout + process.stderr


def install(site: Path, *options: str) -> str:
    return python(site, '-m', 'mmhatnet.install_ops', *options)


USE = 'from mmcv.ops import nms; print(nms(torch.eye(4), torch.ones(4), 0.5)[1].shape)'
CROP = """
import numpy as np
from mmdet.structures.mask import BitmapMasks
masks = BitmapMasks(np.ones((1, 8, 8), np.uint8), 8, 8)
print('area', masks.crop_and_resize(np.array([[0, 0, 4.0, 4.0]]), (2, 2), np.array([0])).areas)
"""


def test_found_whatever_is_imported_first(site: Path) -> None:
    """OneDL's MMDetection replaces operators that it does not find for the rest of the process."""
    assert 'area [4]' not in python(site, '-c', CROP)
    assert install(site) == f'Installed operators that need no compiler: {site}/mmcv/_ext.py.\n'
    assert 'area [4]' in python(site, '-c', CROP)
    # Repeated and concurrent installations change nothing.
    with ThreadPoolExecutor() as pool:
        messages = list(pool.map(install, [site] * 2))
    assert messages == [f'mmcv has these operators already: {site}/mmcv/_ext.py.\n'] * 2


def test_found_in_a_process_that_applies_the_patches(site: Path) -> None:
    """Nothing is installed, so only this process finds them."""
    code = f'import torch, mmhatnet.openmmlab.setup; {USE}'
    assert 'torch.Size' in python(site, '-c', code)
    assert not (site / 'mmcv' / '_ext.py').exists()


def test_torchvision_that_does_not_fit(site: Path) -> None:
    """The error is shown. As an ImportError, OneDL's MMDetection would hide it."""
    install(site)
    (site / 'torchvision').mkdir()
    fault = "raise RuntimeError('operator torchvision::nms does not exist')"
    (site / 'torchvision' / '__init__.py').write_text(fault)
    output = python(site, '-c', CROP)
    assert 'need torchvision, in the version that was published with torch' in output
    assert 'nms does not exist' in output.splitlines()[-1]
    code = 'import mmhatnet.openmmlab.setup; print("still there")'
    assert 'still there' in python(site, '-c', code)


def test_compiled_operators_that_cannot_be_imported(site: Path) -> None:
    """An update of PyTorch may leave such a file behind."""
    compiled = site / 'mmcv' / f'_ext{EXTENSION_SUFFIXES[0]}'
    compiled.write_bytes(b'of another PyTorch')
    message = install(site)
    assert message.startswith('mmcv has compiled operators that cannot be imported')
    assert str(compiled) in message and '`pip install --force-reinstall' in message
    assert message.count('\n') == 1 and not (site / 'mmcv' / '_ext.py').exists()


@pytest.fixture
def folder(site: Path, monkeypatch) -> Path:
    monkeypatch.setattr(operators, '_mmcv_folder', lambda: site / 'mmcv')
    return site / 'mmcv'


def test_compiled_operators_are_left_alone(folder: Path, monkeypatch) -> None:
    compiled = folder / f'_ext{EXTENSION_SUFFIXES[0]}'
    compiled.write_bytes(b'of this PyTorch')
    monkeypatch.setattr(operators, 'import_module', lambda name: None)
    assert f'are used: {compiled}. Nothing was installed.' in operators.install()
    assert compiled.read_bytes() == b'of this PyTorch' and not (folder / '_ext.py').exists()


def test_earlier_operators_are_renewed(folder: Path) -> None:
    (folder / '_ext.py').write_bytes(SOURCE.read_bytes() + b'# an earlier version')
    with pytest.warns(UserWarning, match=r'_ext\.py differs .*: run `python -m mmhatnet\.inst'):
        operators.provide()
    assert operators.install().startswith('Installed')
    assert (folder / '_ext.py').read_bytes() == SOURCE.read_bytes()
    assert list(folder.glob('*.tmp')) == []
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        operators.provide()


def test_a_file_of_somebody_else_is_not_touched(folder: Path) -> None:
    (folder / '_ext.py').write_text('nms = None')
    for function in (operators.install, operators.remove):
        with pytest.raises(operators.OperatorsError, match='is not from mmhatnet'):
            function()
    assert (folder / '_ext.py').read_text() == 'nms = None'


def test_a_folder_that_cannot_be_written(folder: Path, monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(operators.tempfile, 'mkstemp', refuse)
    with pytest.raises(operators.OperatorsError, match=r'_ext\.py cannot be written: Permission'):
        operators.install()


def test_removal(folder: Path) -> None:
    others = sorted(folder.rglob('*'))
    operators.install()
    assert operators.remove() == f'Removed {folder / "_ext.py"}.'
    assert sorted(folder.rglob('*')) == others
    assert operators.remove() == 'mmcv has no operators that mmhatnet has installed.'


def test_removal_after_mmcv(folder: Path) -> None:
    """pip keeps the folder because of our file, and Python takes it for a package."""
    operators.install()
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != '_ext.py':
            path.unlink()
    with pytest.raises(operators.OperatorsError, match='mmcv is not installed: `pip install'):
        operators.install()
    assert operators.remove() == f'Removed {folder}/_ext.py.'
    assert not folder.exists()
