"""Whole models have the losses, gradients and predictions that the reference backbone gives.

Every experiment of configs/ is built twice, with HATNet and with ReferenceHATNet, from the same
weights, and sees the same annotated batch from the same random state.
"""

import copy
import math
import random
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from experiments import CONFIGS, EXPERIMENTS, TOY, identify, made_small, rest_slow
from mmdet.structures.bbox import BaseBoxes
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.utils import import_modules_from_strings
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import mmhatnet.backbones.hatnet_reference  # noqa: F401  registers the other backbone
from mmhatnet import HATNet
from mmhatnet.backbones import memory
from mmhatnet.checkpoints.keys import to_native_keys

UPERNET = 'hatnet-s_upernet_8xb2-amp-160k_ade20k-512x512'
BEYOND = [
    CONFIGS / 'hatnet' / f'{name}.py'
    for name in (
        'cascade-mask-rcnn_hatnet-s_fpn_4conv1fc-giou_amp-ms-crop-3x_coco',
        'dino-4scale_hatnet-s_8xb2-12e_coco',
        'mask2former_hatnet-s_8xb2-lsj-50e_coco',
        UPERNET,
    )
]
# In units of the largest value of a tensor. For masks and labels, the fraction that may differ.
TOLERANCE = 1e-8
# For float32 gradients that two processes average.
FLOAT32_TOLERANCE = 1e-4

# These represent the others in a run without slow tests. The others differ by a few numbers, which
# the tests of configs and golden features cover, or by a head that another config has as well.
DETECTOR = TOY['maskrcnn_hatnet_toy']
ORDINARY = [
    CONFIGS / 'hatnet' / f'{name}.py'
    for name in (
        'retinanet_hatnet-s_fpn_1x_coco',
        'hatnet-s_fpn_4xb4-80k_ade20k-512x512',
        'hatnet-small_8xb128_in1k',
    )
]
ORDINARY += [DETECTOR, *(path for path in BEYOND if re.match('dino|mask2former', path.stem))]

pytestmark = pytest.mark.usefixtures('all_coco_classes')


@pytest.fixture(autouse=True)
def in_folder_of_data(toy_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy_data)


class Job:
    """The models of a config with either backbone, and batches of its data."""

    def __init__(self, path: Path, seed: int = 0, **data_preprocessor) -> None:
        set_seed(seed)
        self.seed = seed
        cfg = Config.fromfile(path)
        cfg = Config.fromstring(made_small(cfg, toy=path.parent.name == 'toy'), '.py')
        import_modules_from_strings(**cfg.custom_imports)
        self.scope, self.model = cfg.default_scope, cfg.model
        # MMPretrain's runner moves its preprocessor into the model.
        self.model.setdefault('data_preprocessor', dict(cfg.get('data_preprocessor', {})))
        self.model.data_preprocessor.update(data_preprocessor)
        self.model.backbone.drop_path_rate = 0.0
        with self.in_scope():
            self.train_batch, self.test_batch = (
                next(iter(Runner.build_dataloader(cfg[f'{split}_dataloader'], seed=seed)))
                for split in ('train', 'test')
            )

    def in_scope(self) -> AbstractContextManager:
        return DefaultScope.overwrite_default_scope(self.scope)

    def build(self, backbone: dict) -> nn.Module:
        settings = copy.deepcopy(self.model)
        settings['backbone'] = backbone
        with self.in_scope():
            return MODELS.build(settings)

    def build_pair(self, **options) -> tuple[nn.Module, nn.Module]:
        """Builds models with HATNet and with the reference implementation from the same weights."""
        settings = self.model.backbone
        out_indices = settings.get('out_indices', (0, 1, 2, 3))
        set_seed(self.seed)
        reference = self.build(
            dict(type='ReferenceHATNet', arch=settings.arch, out_indices=out_indices)
        )
        reference.init_weights()
        for name, parameter in reference.named_parameters():
            # Initial scores are nearly equal for all boxes, so rounding would decide their order.
            if name.endswith('_cls.weight'):
                parameter.data.mul_(10)
        ours = self.build(dict(settings, **options))
        ours.load_state_dict(reference.state_dict())
        return without_kinks(ours), without_kinks(reference)


def without_kinks(model: nn.Module) -> nn.Module:
    """Replaces ReLU, whose gradient jumps at zero, where rounding decides the sign of a value."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return model


def set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def learned(job: Job, model: nn.Module) -> dict[str, Tensor]:
    """Returns the losses of the training batch, and all gradients by native names.

    The model may be wrapped.
    """
    set_seed(job.seed)
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    data = bare.data_preprocessor(copy.deepcopy(job.train_batch), training=True)
    data = to_dtype(data, next(bare.parameters()).dtype)
    with job.in_scope():
        losses = model.train()(**data, mode='loss')
    total, _ = bare.parse_losses(losses)
    total.backward()
    gradients = {name: p.grad for name, p in bare.named_parameters() if '.proj_norm.' not in name}
    assert all(gradient is not None for gradient in gradients.values())
    to_native_keys(gradients, HATNet.CHECKPOINT, {}, 'backbone.')
    # A linear layer may be a 1x1 convolution in the reference implementation.
    gradients = {f'gradient of {name}': g.squeeze() for name, g in gradients.items()}
    return tensors_of(losses) | gradients


@torch.no_grad()
def predicted(job: Job, model: nn.Module) -> dict[str, Tensor]:
    """Returns all tensors of the predictions for the test batch."""
    set_seed(job.seed)
    data = model.eval().data_preprocessor(copy.deepcopy(job.test_batch))
    data = to_dtype(data, next(model.parameters()).dtype)
    with job.in_scope():
        predictions = tensors_of(model(**data, mode='predict'))
    assert any(name.split('.')[1].startswith(('pred', 'seg_logits')) for name in predictions)
    return predictions


def to_dtype(node: object, dtype: torch.dtype) -> object:
    """Converts all floating-point tensors inside a batch."""
    if isinstance(node, Tensor):
        return node.to(dtype) if node.is_floating_point() else node
    if isinstance(node, BaseBoxes):
        return type(node)(node.tensor.to(dtype), clone=False)
    if isinstance(node, BaseDataElement):
        for key, value in list(node.items()):
            setattr(node, key, to_dtype(value, dtype))
        return node
    if isinstance(node, (list, tuple)):
        return type(node)(to_dtype(value, dtype) for value in node)
    if isinstance(node, dict):
        return {key: to_dtype(value, dtype) for key, value in node.items()}
    return node


def tensors_of(node: object, name: str = '') -> dict[str, Tensor]:
    """Returns all tensors inside a result, by their paths."""
    if isinstance(node, np.ndarray):
        node = torch.from_numpy(node)
    if isinstance(node, Tensor):
        return {name: node.detach()}
    if isinstance(node, BaseBoxes):
        return {name: node.tensor}
    if isinstance(node, BaseDataElement):
        node = dict(node.items())
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return {}
    children = (tensors_of(value, f'{name}.{key}'.strip('.')) for key, value in node.items())
    return {name: tensor for child in children for name, tensor in child.items()}


def deviations(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert actual.keys() == expected.keys()
    gradients = [g.abs().max() for name, g in expected.items() if name.startswith('gradient of')]
    found = {}
    for name, tensor in expected.items():
        other = actual[name].cpu()
        if other.shape != tensor.shape:
            found[name] = math.inf
        elif not tensor.is_floating_point():
            found[name] = (other != tensor).float().mean().item() if tensor.numel() else 0
        elif tensor.numel():
            # The gradient of a bias before a normalization consists of rounding errors alone.
            floor = 1e-4 * max(gradients) if name.startswith('gradient of') else 1e-6
            scale = tensor.abs().max().clamp(min=floor)
            found[name] = ((other - tensor).abs().max() / scale).nan_to_num(nan=math.inf).item()
    return found


def promoting(function: Callable) -> Callable:
    """Makes a function convert all floating-point tensors to float64 if one of them is."""

    def promoted(*args, **kwargs) -> Tensor:
        double = any(isinstance(arg, Tensor) and arg.dtype == torch.float64 for arg in args)
        return function(*(to_dtype(args, torch.float64) if double else args), **kwargs)

    return promoted


@contextmanager
def float64() -> Iterator[None]:
    """Computes in float64, where frameworks use the default dtype, and beside float32 tensors.

    In float32, rounding decides between boxes with nearly the same score, and everything after
    that differs.
    """
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, 'einsum', promoting(torch.einsum))
            patch.setattr(nn.functional, 'grid_sample', promoting(nn.functional.grid_sample))
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def assert_same(
    path: Path,
    change: Callable[[nn.Module], object] = lambda model: None,
    preprocessing: dict | None = None,
    **options,
) -> None:
    """Compares a model with HATNet, built with options and changed, with the reference."""
    job = Job(path, **(preprocessing or {}))
    with float64():
        ours, reference = (model.double() for model in job.build_pair(**options))
        change(ours)
        found = deviations(learned(job, ours), learned(job, reference))
        found |= deviations(predicted(job, ours), predicted(job, reference))
    worst = max(found, key=found.get)
    print(f'\n{identify(path)}: largest deviation {found[worst]:.1e}, of {worst}')
    assert found[worst] < TOLERANCE, f'{worst} deviates by {found[worst]:.1e} of its largest value'


@pytest.mark.parametrize('path', rest_slow(EXPERIMENTS, *ORDINARY), ids=identify)
def test_every_experiment(path: Path) -> None:
    assert_same(path)


@pytest.mark.parametrize('path', rest_slow(TOY.values(), DETECTOR), ids=identify)
def test_sizes_that_windows_divide(path: Path) -> None:
    segmentor = dict(size=(224, 224), test_cfg=dict(size=(224, 224)))
    divide = segmentor if 'semfpn' in path.stem else dict(pad_size_divisor=224)
    seen = []

    def watch(model: nn.Module) -> None:
        model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))

    assert_same(path, watch, divide)
    assert {shape[2:] for shape in seen} == {(224, 224)}


@pytest.mark.parametrize('path', rest_slow(TOY.values(), DETECTOR), ids=identify)
@pytest.mark.parametrize('option', ['with_cp', 'recompute_mlp'])
def test_recomputing(path: Path, option: str) -> None:
    assert_same(path, **{option: True})


@pytest.mark.parametrize('path', rest_slow(TOY.values(), DETECTOR), ids=identify)
def test_hidden_layers_in_chunks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, 'CHUNK_BYTES', 10_000)
    assert_same(path)


@pytest.mark.parametrize('path', rest_slow(TOY.values(), DETECTOR), ids=identify)
def test_with_hooks_on_every_module(path: Path) -> None:
    def watch(model: nn.Module) -> None:
        for module in model.backbone.modules():
            module.register_forward_hook(lambda module, args, out: None)
            module.register_full_backward_hook(lambda module, grad_in, grad_out: None)

    assert_same(path, watch)


@pytest.mark.parametrize('path', rest_slow([*TOY.values(), *BEYOND], DETECTOR), ids=identify)
def test_whole_model_in_channels_last(path: Path) -> None:
    """The neck returns channels-last features, which mmcv's RoIAlign alone would read wrongly."""
    assert_same(path, lambda model: model.to(memory_format=torch.channels_last))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('path', TOY.values(), ids=identify)
def test_on_a_gpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares with the reference on a CPU, without TF32 and without dropout, whose random numbers
    differ."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    for name in ('dropout', 'dropout2d'):
        monkeypatch.setattr(nn.functional, name, lambda x, *args, **kwargs: x)
    assert_same(path, lambda model: model.cuda())


@pytest.mark.parametrize(
    'name', rest_slow(['semfpn_hatnet_toy', 'imagenet_hatnet_toy'], 'imagenet_hatnet_toy')
)
def test_bfloat16_is_within_its_rounding(name: str) -> None:
    """Compares the errors of bfloat16 with those of the reference, both against float32."""
    job = Job(TOY[name])
    ours, reference = job.build_pair()
    exact = learned(job, reference)
    errors = {}
    for model in (ours, reference):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            rounded = learned(job, model)
        names = [name for name in exact if name.startswith('gradient of backbone.')]
        errors[model] = torch.stack(
            [(rounded[name] - exact[name]).norm() / exact[name].norm() for name in names]
        ).median()
        torch.testing.assert_close(
            sum(rounded[name].float().sum() for name in rounded if 'loss' in name),
            sum(exact[name].sum() for name in exact if 'loss' in name),
            rtol=0.02,
            atol=0,
        )
    print(f'\n{name}: median error of a gradient {errors[ours]:.3f}, {errors[reference]:.3f}')
    assert errors[ours] < 1.5 * errors[reference] < 0.3


def test_two_processes(tmp_path: Path) -> None:
    mp.start_processes(compare_in_processes, (tmp_path,), nprocs=2, start_method='forkserver')
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert first['own losses'] != second['own losses']
    for found in (first, second):
        worst = max(found['deviations'], key=found['deviations'].get)
        assert found['deviations'][worst] < FLOAT32_TOLERANCE, (worst, found['deviations'][worst])


def compare_in_processes(rank: int, folder: Path) -> None:
    """Each process has two images and losses of its own; gradients are averaged."""
    torch.set_num_threads(1)
    rendezvous = f'file://{folder}/rendezvous'
    dist.init_process_group('gloo', init_method=rendezvous, rank=rank, world_size=2)
    job = Job(TOY['maskrcnn_hatnet_toy'], seed=1)
    ours, reference = job.build_pair()
    for name, parameter in reference.named_parameters():
        parameter.requires_grad_('.proj_norm.' not in name)  # DDP would wait for them
    actual, expected = (learned(job, DistributedDataParallel(model)) for model in (ours, reference))
    own = [value.sum().item() for name, value in expected.items() if 'loss' in name]
    found = {'own losses': own, 'deviations': deviations(actual, expected)}
    torch.save(found, folder / f'{rank}.pth')
    dist.destroy_process_group()
