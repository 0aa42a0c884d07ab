"""Tests that all backbones share, among them golden features.

To add a network, write an entry of ``NETWORKS`` in ``tests/networks.py``, from its page in
``docs/networks`` and not from the package. This file needs no change. Tests of one network alone
are in ``tests/test_NETWORK.py``.
"""

import copy
import itertools
import re
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments import rest_slow
from mmengine.registry import MODELS
from networks import NETWORKS, Network
from synthetic import synthetic_image
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm

from mmhatnet.backbones.layers import DropPath
from mmhatnet.errors import CheckpointError

VARIANTS = [(name, arch) for name, network in NETWORKS.items() for arch in network.parameters]
SMALLEST = {name: next(iter(network.parameters)) for name, network in NETWORKS.items()}
# Two networks share a class, and two variants of GLNet are one backbone under two names.
PAIRS = [
    (name, other)
    for name, other in itertools.permutations(NETWORKS, 2)
    if NETWORKS[name].network is not NETWORKS[other].network
]
OTHER_VARIANTS = [
    (name, arch)
    for name, arch in VARIANTS
    if NETWORKS[name].network.resolve_arch(arch)
    != NETWORKS[name].network.resolve_arch(SMALLEST[name])
]
WITH_BATCH_NORM = [
    name
    for name, network in NETWORKS.items()
    if 'norm_eval' in network.network.__init__.__annotations__
]


@pytest.fixture(params=NETWORKS)
def network(request) -> Network:
    return NETWORKS[request.param]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Checks the largest deviation, in units of the expected tensor's spread."""
    scale = expected.std() if expected.numel() > 1 else expected.abs().max()
    deviation = (actual - expected).abs().max() / scale.clamp(min=1e-6)
    assert deviation < tolerance, f'{deviation:.1e} of the spread'


@pytest.mark.parametrize('variant', rest_slow(VARIANTS, *SMALLEST.items()), ids='-'.join)
@torch.no_grad()
def test_features_agree_with_golden_figures(variant: tuple[str, str]) -> None:
    called, arch = variant
    network, golden = NETWORKS[called], NETWORKS[called].golden
    sizes = sorted({key.split('/')[1] for key in golden.files if key.startswith(f'{arch}/')})
    count = max(len(golden[key]) for key in golden.files if key.endswith('/samples'))
    model = network.network(arch, **network.arguments).eval()
    model.load_state_dict(network.synthetic_weights(model), strict=False)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-6)):
        model.to(dtype)
        deviations = {}
        for size in sizes:
            features = model(synthetic_image(*map(int, size.split('x'))).to(dtype))
            assert len(features) == len(network.feature_names)
            for name, feature in zip(network.feature_names, features):
                key = f'{arch}/{size}/{name}'
                assert feature.shape == tuple(golden[f'{key}/shape'])
                flat = feature.flatten().double().numpy()
                mean, std = golden[f'{key}/mean_std']
                samples = golden[f'{key}/samples']
                differences = [
                    *(flat[:: max(1, flat.size // count)][:count] - samples),
                    *(flat.mean() - mean, flat.std(ddof=1) - std),
                ]
                deviations[key] = np.abs(differences).max() / std
        worst = max(deviations, key=deviations.get)
        print(f'\n{called} {worst}: {deviations[worst]:.1e} standard deviations in {dtype}')
        assert deviations[worst] < tolerance


@pytest.mark.parametrize(('name', 'arch'), VARIANTS)
def test_parameters_are_as_published(name: str, arch: str) -> None:
    network = NETWORKS[name]
    with torch.device('meta'):
        model = network.network(arch)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters + network.head_parameters(model.embed_dims[-1]) == network.parameters[arch]


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (1, 40), (31, 33), (56, 64), (100, 130)])
@torch.no_grad()
def test_any_size(network: Network, size: tuple[int, int]) -> None:
    images = synthetic_image(2, 3, *size)
    model = network.build().eval()
    features = model(images)
    assert [tuple(f.shape[2:]) for f in features] == network.sizes(*size)
    assert tuple(f.shape[1] for f in features) == model.out_channels
    for i, image in enumerate(images):
        for feature, alone in zip(features, model(image[None])):
            assert_close(feature[i : i + 1], alone, 1e-4)


@pytest.mark.parametrize('training', [True, False])
def test_gradients_reach_every_parameter(network: Network, training: bool) -> None:
    model = network.build().train(training)
    sum((f * f.detach().cos()).mean() for f in model(synthetic_image(2, 3, 96, 128))).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def learned(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Returns the features, and the gradients of all parameters and of the image."""
    torch.manual_seed(0)
    image = image.clone().requires_grad_()
    features = model(image)
    sum((f * f.detach().cos()).mean() for f in features).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return dict(enumerate(features)) | gradients | dict(image=image.grad)


def test_recomputing_gives_the_same(network: Network) -> None:
    image = synthetic_image(2, 3, 61, 90)
    keeping, recomputing = (network.build(**network.noise, with_cp=cp) for cp in (False, True))
    kept, recomputed = (learned(model, image) for model in (keeping, recomputing))
    for name, value in kept.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-4, atol=1e-6)
    statistics = dict(recomputing.named_buffers())
    for name, value in keeping.named_buffers():  # which count each batch once
        torch.testing.assert_close(statistics[name], value)


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}


def test_norm_eval_is_an_argument_where_there_is_batch_norm(network: Network) -> None:
    with torch.device('meta'):
        model = network.network(network.small)
    documented = 'norm_eval' in network.network.__init__.__annotations__
    assert documented == bool(batch_norms(model))


@pytest.mark.parametrize('name', WITH_BATCH_NORM)
def test_statistics_of_batch_normalization(name: str) -> None:
    images, network = synthetic_image(2, 3, 64, 64), NETWORKS[name]
    model = network.build().train()
    before = copy.deepcopy(model.state_dict())
    trained = model(images)
    for key, norm in batch_norms(model).items():
        assert norm.training and not torch.equal(norm.running_mean, before[f'{key}.running_mean'])
    fixed = network.build(norm_eval=True).train()
    features = fixed(images)
    assert fixed.training and all(m.training for m in fixed.modules() if m.__class__ is DropPath)
    for key, value in fixed.state_dict().items():
        assert torch.equal(value, before[key]), key
    for feature, evaluated, other in zip(features, network.build().eval()(images), trained):
        torch.testing.assert_close(feature, evaluated)
        assert not torch.allclose(feature, other, rtol=1e-2)


@pytest.mark.parametrize('frozen_stages', [0, 2, 4])
def test_frozen_stages_stay(network: Network, frozen_stages: int) -> None:
    model = network.build(frozen_stages=frozen_stages, drop_path_rate=0.5, with_cp=True).train()
    frozen = [model.stem, *model.stages[:frozen_stages]]
    free = [*model.stages[frozen_stages:]]
    assert not any(module.training for part in frozen for module in part.modules())
    assert all(module.training for part in free for module in part.modules())
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    features = model(synthetic_image(2, 3, 64, 96))
    if free:
        sum(f.square().mean() for f in features).backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        stage = int(name.split('.')[1]) + 1 if name.startswith('stages') else 0
        assert torch.equal(value, before[name]) == (stage <= frozen_stages), name


@pytest.mark.parametrize('wrap', ['model', 'state_dict', 'model_ema', None])
def test_published_checkpoint_loads(network: Network, wrap, tmp_path: Path, capfd) -> None:
    published = network.synthetic_weights(network.network(network.small))
    content = {wrap: published, 'optimizer': {'state': {0: torch.ones(1)}}} if wrap else published
    path = str(tmp_path / 'published.pth')
    torch.save({**content, 'args': Namespace(lr=0.1, output_dir=tmp_path), 'epoch': 300}, path)
    model = network.network(network.small, init_cfg=dict(type='Pretrained', checkpoint=path))
    model.init_weights()
    weights = model.state_dict()
    tensors = len(weights)
    assert f'{tensors} of {tensors} tensors of the backbone are in' in capfd.readouterr().out
    for ours, name in network.published(model).items():
        value = weights[ours]
        assert torch.equal(value, network.in_our_layout(published[name], value.shape)), name


def test_backbone_of_a_detector_loads(network: Network) -> None:
    source, detector = network.build(), nn.ModuleDict(dict(backbone=network.network(network.small)))
    for weights in (source.state_dict(), network.synthetic_weights(source)):
        weights = {f'backbone.{key}': value for key, value in weights.items()}
        assert not detector.load_state_dict(weights, strict=False).missing_keys
        for name, value in source.state_dict().items():
            assert torch.equal(detector.state_dict()[f'backbone.{name}'], value)


def shapes_only(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros(value.shape, dtype=torch.half) for key, value in weights.items()}


def published_by(name: str, arch: str) -> dict[str, Tensor]:
    """Returns the names and shapes of a published checkpoint."""
    network = NETWORKS[name]
    with torch.device('meta'):
        model = network.network(arch)
    weights = model.state_dict()
    return {
        published: torch.zeros(()).expand(network.published_shape(published, weights[ours]))
        for ours, published in network.published(model).items()
    }


@pytest.mark.parametrize(('name', 'arch'), OTHER_VARIANTS)
def test_another_variant_is_refused(name: str, arch: str) -> None:
    network, smallest = NETWORKS[name].network, SMALLEST[name]
    with torch.device('meta'):
        model = network(smallest)
    called = network.CHECKPOINT.network
    with pytest.raises(
        CheckpointError, match=f"holds {called} '{arch}', but the .* is {called} '{smallest}': "
    ) as refusal:
        model.load_state_dict(published_by(name, arch), strict=False)
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize(('name', 'other'), PAIRS)
@pytest.mark.parametrize('native', [False, True])
def test_another_network_is_refused(name: str, other: str, native: bool, tmp_path: Path) -> None:
    path = str(tmp_path / 'other.pth')
    if native:
        with torch.device('meta'):
            weights = NETWORKS[other].network(SMALLEST[other]).state_dict()
    else:
        weights = published_by(other, SMALLEST[other])
    torch.save({'model': shapes_only(weights)}, path)
    init_cfg = dict(type='Pretrained', checkpoint=path)
    model = NETWORKS[name].network(NETWORKS[name].small, init_cfg=init_cfg)
    with pytest.raises(CheckpointError, match=NETWORKS[name].network.CHECKPOINT.network) as refusal:
        model.init_weights()
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_features_are_contiguous(network: Network, memory_format: torch.memory_format) -> None:
    model = network.build().to(memory_format=memory_format)
    for mode in (True, False):
        features = model.train(mode)(synthetic_image(2, 3, 61, 90).to(memory_format=memory_format))
        assert all(feature.is_contiguous() for feature in features)


def test_every_layer_is_called_and_its_output_stays(network: Network) -> None:
    """Hooks see every layer: weights are used by calls alone, and no output is overwritten."""
    model, outputs, called = network.build().eval(), [], set()

    def record(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        called.add(module)
        for tensor in output if isinstance(output, tuple) else (output,):
            outputs.append((tensor, tensor.clone()))

    layers = {m for m in model.modules() if [*m.parameters(recurse=False)]}
    for module in model.modules():
        module.register_forward_hook(record)
    with torch.no_grad():
        model(synthetic_image(1, 3, 61, 90))
    unseen = [name for name, m in model.named_modules() if m in layers - called]
    assert unseen == []
    assert all(torch.equal(tensor, copied) for tensor, copied in outputs)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('training', [False, True])
def test_autocast_is_near(network: Network, dtype: torch.dtype, training: bool) -> None:
    image = synthetic_image(2, 3, 61, 90)
    model = network.build().train(training)
    expected = model(image)
    with torch.autocast('cpu', dtype):
        features = model(image)
    for feature, reference in zip(features, expected):
        assert feature.isfinite().all()
        assert (feature - reference).norm() < 0.05 * reference.norm()
    sum(f.float().square().mean() for f in features).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@torch.no_grad()
def test_export_takes_other_sizes(network: Network) -> None:
    """Sizes must be large enough: PyTorch fixes a pooled map with a side of one position."""
    model = network.build().eval()
    size = {axis: torch.export.Dim.DYNAMIC for axis in (2, 3)}
    exported = torch.export.export(
        model, (synthetic_image(1, 3, 256, 320),), dynamic_shapes=(size,)
    )
    for height, width in ((256, 320), (224, 224), (230, 333)):
        image = synthetic_image(1, 3, height, width)
        for feature, reference in zip(exported.module()(image), model(image)):
            torch.testing.assert_close(feature, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compile_has_no_graph_break(network: Network) -> None:
    image = synthetic_image(2, 3, 61, 90)
    model = network.build()
    compiled = torch.compile(copy.deepcopy(model), backend='aot_eager', fullgraph=True)
    expected = learned(model, image)
    for name, value in learned(compiled, image).items():
        reference = expected[str(name).removeprefix('_orig_mod.') if name not in expected else name]
        torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-5)


def test_out_indices_choose_features_and_build_no_more(network: Network) -> None:
    image = synthetic_image(1, 3, 64, 96)
    features = network.build().eval()(image)
    chosen = network.build(out_indices=(2, 0)).eval()
    dims, strides = network.channels, network.strides
    assert chosen.out_channels == (dims[2], dims[0])
    assert chosen.out_strides == (strides[2], strides[0])
    assert len(chosen.stages) == 3
    for feature, index in zip(chosen(image), (2, 0)):
        torch.testing.assert_close(feature, features[index])


def test_in_channels(network: Network) -> None:
    features = network.network(network.small, in_channels=4)(torch.rand(2, 4, 64, 64))
    assert features[0].shape[1:] == (network.channels[0], *network.sizes(64, 64)[0])
    with pytest.raises(ValueError, match=r'takes images \(N, 4, H, W\), not \(2, 3, 64, 64\)'):
        network.network(network.small, in_channels=4)(torch.rand(2, 3, 64, 64))


def test_drop_path_grows_linearly(network: Network) -> None:
    model = network.build(drop_path_rate=0.4)
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = network.rates or [i / (len(blocks) - 1) for i in range(len(blocks))]
    assert len(rates) == len(blocks)
    for block, expected in zip(blocks, rates):
        (rate,) = {m.rate for m in block.modules() if isinstance(m, DropPath)}
        assert rate == pytest.approx(0.4 * expected)


def test_initialization(network: Network) -> None:
    torch.manual_seed(0)
    model = network.network(next(iter(network.parameters)))
    model.init_weights()
    for name, module in model.named_modules():
        if isinstance(module, (nn.LayerNorm, _BatchNorm)):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            expected = network.initial_std(name, module)
            # Of n values the standard deviation is known to 1 / sqrt(2 n).
            tolerance = max(0.02, 4 / (2 * module.weight.numel()) ** 0.5)
            assert module.weight.std().item() == pytest.approx(expected, rel=tolerance), name


def test_every_layer_has_a_learning_rate(network: Network) -> None:
    model = network.build()
    depths = [len(stage.blocks) for stage in model.stages]
    layers = {name: model.get_layer_depth(name) for name, _ in model.named_parameters()}
    total = sum(depths) + 2
    assert {*layers.values()} == {(layer, total) for layer in range(total - 1)}
    for name, (layer, _) in layers.items():
        if block := re.match(r'stages\.(\d)\.blocks\.(\d)\.', name):
            assert layer == sum(depths[: int(block[1])]) + int(block[2]) + 1


def test_every_framework_builds_it(network: Network) -> None:
    from mmdet.registry import MODELS as DETECTION
    from mmpretrain.registry import MODELS as PRETRAIN
    from mmseg.registry import MODELS as SEGMENTATION

    settings = dict(type=network.network.__name__, arch=network.small)
    for registry in (MODELS, DETECTION, SEGMENTATION, PRETRAIN):
        assert type(registry.build(settings)) is network.network


def test_impossible_arguments_are_named(network: Network) -> None:
    called, archs = network.network.CHECKPOINT.network, re.escape(str([*network.network.ARCHS]))
    small = network.small
    needed = 'embed_dims' if 'depth' in small else 'depths'
    fewer = {key: value for key, value in small.items() if key != needed}
    one_number = "unknown settings .'depths'" if 'depth' in small else "'depths': 3"
    heads, message = network.wrong_heads
    cases = [
        (dict(arch='huge'), f"arch='huge' is not a {called} variant: .*{archs}"),
        (dict(arch=dict(small, width=3)), r"unknown settings \['width'\]"),
        (dict(arch=fewer), rf"missing settings \['{needed}'\]"),
        (dict(arch=dict(small, depths=(1, 1, 1))), one_number),
        (dict(arch=dict(small, **heads)), message),
        (dict(arch=small, out_indices=(0, 4)), r'out_indices=\(0, 4\) must name stages of 0 to 3'),
        (dict(arch=small, out_indices=()), 'out_indices'),
        (dict(arch=small, out_indices=2), 'out_indices=2'),
        (dict(arch=small, frozen_stages=5), 'frozen_stages=5 must be from -1 to 4'),
        (dict(arch=small, drop_path_rate=1.5), 'drop_path_rate=1.5'),
    ]
    for kwargs, expected in cases:
        with pytest.raises(ValueError, match=expected):
            network.network(**kwargs)


def test_drop_path_drops_whole_images() -> None:
    torch.manual_seed(0)
    drop_path = DropPath(0.5)
    out = drop_path(torch.ones(1000, 2, 2, 3))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(out.amin(dim=(1, 2, 3)), out.amax(dim=(1, 2, 3)))
    assert 0.4 < (out[:, 0, 0, 0] == 0).float().mean() < 0.6
    assert torch.equal(drop_path.eval()(out), out)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_gpu_never_waits_for_python(name: str, monkeypatch) -> None:
    """A training step reads no value back, which raises an error for tensors without values."""
    net = NETWORKS[name]
    model = net.build(**net.noise).train()
    state = model.state_dict()

    def walk(*args: object) -> None:
        raise AssertionError('a walk through modules')

    # Without a GPU these tensors have no backward pass, and autocast has no type for them.
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())
    with FakeTensorMode() as mode:
        state = {
            key: torch.empty_like(mode.from_tensor(value), device='cuda')
            for key, value in state.items()
        }
        images = torch.rand(2, 3, 75, 100, device='cuda')
        for feature in torch.func.functional_call(model, state, images):
            assert feature.device.type == 'cuda'
    model.to('meta')
    monkeypatch.setattr(nn.Module, 'named_modules', walk)
    features = model(torch.rand(2, 3, 75, 100, device='meta'))
    sum(feature.sum() for feature in features).backward()
