"""The networks beside HAT-Net: golden features, and what every backbone here promises.

To add a network, copy its golden features to ``tests/data`` and write an entry of ``PEERS`` in
``tests/peers.py``, from its page and not from the package. Nothing here is changed for it. What
this file cannot say of a network stands in a file of its own, ``tests/test_NETWORK.py``.
"""

import copy
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import drawn_image, published_shapes
from experiments import rest_slow
from peers import PEERS, Peer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmhatnet import HATNet
from mmhatnet.backbones.layers import DropPath
from mmhatnet.errors import CheckpointError

VARIANTS = [(name, arch) for name, peer in PEERS.items() for arch in peer.parameters]
SMALLEST = {name: next(iter(peer.parameters)) for name, peer in PEERS.items()}


@pytest.fixture(params=PEERS)
def peer(request) -> Peer:
    return PEERS[request.param]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Largest deviation in units of the expected tensor's spread."""
    scale = expected.std() if expected.numel() > 1 else expected.abs().max()
    deviation = (actual - expected).abs().max() / scale.clamp(min=1e-6)
    assert deviation < tolerance, f'{deviation:.1e} of the spread'


@pytest.mark.parametrize('variant', rest_slow(VARIANTS, *SMALLEST.items()), ids='-'.join)
@torch.no_grad()
def test_features_agree_with_golden_figures(variant: tuple[str, str]) -> None:
    name, arch = variant
    peer, golden = PEERS[name], PEERS[name].golden
    sizes = sorted({key.split('/')[1] for key in golden.files if key.startswith(f'{arch}/')})
    model = peer.network(arch).eval()
    model.load_state_dict(peer.drawn(model), strict=False)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-6)):
        model.to(dtype)
        deviations = {}
        for size in sizes:
            features = model(drawn_image(*map(int, size.split('x'))).to(dtype))
            for stage, feature in enumerate(features):
                key = f'{arch}/{size}/stage{stage}'
                assert feature.shape == tuple(golden[f'{key}/shape'])
                flat = feature.flatten().double().numpy()
                mean, std = golden[f'{key}/mean_std']
                differences = [
                    *(flat[:: max(1, flat.size // 512)][:512] - golden[f'{key}/samples']),
                    *(flat.mean() - mean, flat.std(ddof=1) - std),
                ]
                deviations[key] = np.abs(differences).max() / std
        worst = max(deviations, key=deviations.get)
        print(f'\n{name} {worst}: {deviations[worst]:.1e} standard deviations in {dtype}')
        assert deviations[worst] < tolerance


@pytest.mark.parametrize(('name', 'arch'), VARIANTS)
def test_parameters_are_as_published(name: str, arch: str) -> None:
    peer = PEERS[name]
    with torch.device('meta'):
        model = peer.network(arch)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters + peer.head_parameters(model.embed_dims[-1]) == peer.parameters[arch]


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (1, 40), (31, 33), (56, 64), (100, 130)])
@torch.no_grad()
def test_any_size(peer: Peer, size: tuple[int, int]) -> None:
    images = drawn_image(2, 3, *size)
    model = peer.build().eval()
    features = model(images)
    assert [tuple(f.shape[2:]) for f in features] == peer.sizes(*size)
    assert tuple(f.shape[1] for f in features) == model.out_channels
    for i, image in enumerate(images):
        for feature, alone in zip(features, model(image[None])):
            assert_close(feature[i : i + 1], alone, 1e-4)


@pytest.mark.parametrize('training', [True, False])
def test_gradients_reach_every_parameter(peer: Peer, training: bool) -> None:
    model = peer.build().train(training)
    sum((f * f.detach().cos()).mean() for f in model(drawn_image(2, 3, 96, 128))).backward()
    without = [
        name
        for name, p in model.named_parameters()
        if (p.grad is None or not p.grad.any()) and not re.search(peer.without_gradient, name)
    ]
    assert without == []


def learned(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """The features, and the gradients of all parameters and of the image."""
    torch.manual_seed(0)
    image = image.clone().requires_grad_()
    features = model(image)
    sum((f * f.detach().cos()).mean() for f in features).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return dict(enumerate(features)) | gradients | dict(image=image.grad)


def test_recomputing_gives_the_same(peer: Peer) -> None:
    image = drawn_image(2, 3, 61, 90)
    keeping, recomputing = (peer.build(drop_path_rate=0.5, with_cp=cp) for cp in (False, True))
    kept, recomputed = (learned(model, image) for model in (keeping, recomputing))
    for name, value in kept.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-4, atol=1e-6)
    statistics = dict(recomputing.named_buffers())
    for name, value in keeping.named_buffers():  # which count each batch once
        torch.testing.assert_close(statistics[name], value)


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}


def test_statistics_of_batch_normalisation(peer: Peer) -> None:
    images = drawn_image(2, 3, 64, 64)
    model = peer.build().train()
    if not batch_norms(model):
        assert 'norm_eval' not in peer.network.__init__.__annotations__, 'it would do nothing'
        return
    before = copy.deepcopy(model.state_dict())
    trained = model(images)
    for name, norm in batch_norms(model).items():
        assert norm.training and not torch.equal(norm.running_mean, before[f'{name}.running_mean'])
    fixed = peer.build(norm_eval=True).train()
    features = fixed(images)
    assert fixed.training and all(m.training for m in fixed.modules() if m.__class__ is DropPath)
    for name, value in fixed.state_dict().items():
        assert torch.equal(value, before[name]), name
    for feature, evaluated, other in zip(features, peer.build().eval()(images), trained):
        torch.testing.assert_close(feature, evaluated)
        assert not torch.allclose(feature, other, rtol=1e-2)


@pytest.mark.parametrize('frozen_stages', [0, 2, 4])
def test_frozen_stages_stay(peer: Peer, frozen_stages: int) -> None:
    model = peer.build(frozen_stages=frozen_stages, drop_path_rate=0.5, with_cp=True).train()
    frozen = [model.stem, *model.stages[:frozen_stages]]
    free = [*model.stages[frozen_stages:]]
    assert not any(module.training for part in frozen for module in part.modules())
    assert all(module.training for part in free for module in part.modules())
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    features = model(drawn_image(2, 3, 64, 96))
    if free:
        sum(f.square().mean() for f in features).backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        stage = int(name.split('.')[1]) + 1 if name.startswith('stages') else 0
        same = torch.equal(value, before[name])
        assert same == (stage <= frozen_stages) or re.search(peer.without_gradient, name), name


@pytest.mark.parametrize('wrap', ['model', 'state_dict', 'model_ema', None])
def test_published_checkpoint_loads(peer: Peer, wrap, tmp_path: Path, capfd) -> None:
    published = peer.drawn(peer.network(peer.small))
    content = {wrap: published, 'optimizer': {'state': {0: torch.ones(1)}}} if wrap else published
    path = str(tmp_path / 'published.pth')
    torch.save({**content, 'args': Namespace(lr=0.1, output_dir=tmp_path), 'epoch': 300}, path)
    model = peer.network(peer.small, init_cfg=dict(type='Pretrained', checkpoint=path))
    model.init_weights()
    weights = model.state_dict()
    tensors = len(weights)
    assert f'{tensors} of {tensors} tensors of the backbone are in' in capfd.readouterr().out
    for ours, name in peer.published(model).items():
        value = weights[ours]
        assert torch.equal(value, published[name].reshape(value.shape)), name


def test_backbone_of_a_detector_loads(peer: Peer) -> None:
    source, detector = peer.build(), nn.ModuleDict(dict(backbone=peer.network(peer.small)))
    for weights in (source.state_dict(), peer.drawn(source)):
        weights = {f'backbone.{key}': value for key, value in weights.items()}
        assert not detector.load_state_dict(weights, strict=False).missing_keys
        for name, value in source.state_dict().items():
            assert torch.equal(detector.state_dict()[f'backbone.{name}'], value)


def shapes_only(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros(()).expand(value.shape) for key, value in weights.items()}


def published_by(name: str, arch: str) -> dict[str, Tensor]:
    """The names and shapes of a published checkpoint."""
    peer = PEERS[name]
    with torch.device('meta'):
        model = peer.network(arch)
    weights = model.state_dict()
    return {
        published: torch.zeros(()).expand(peer.published_shape(published, weights[ours]))
        for ours, published in peer.published(model).items()
    }


@pytest.mark.parametrize(('name', 'arch'), VARIANTS)
def test_another_variant_is_refused(name: str, arch: str) -> None:
    network, smallest = PEERS[name].network, SMALLEST[name]
    with torch.device('meta'):
        model = network(smallest)
    other = published_by(name, arch)
    if {k: v.shape for k, v in other.items()} == {
        k: v.shape for k, v in published_by(name, smallest).items()
    }:
        return  # one backbone under two names
    called = network.CHECKPOINT.network
    with pytest.raises(
        CheckpointError, match=f"holds {called} '{arch}', but the .* is {called} '{smallest}': "
    ) as refusal:
        model.load_state_dict(other, strict=False)
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize('other', [*PEERS, 'hatnet'])
@pytest.mark.parametrize('native', [False, True])
def test_another_network_is_refused(peer: Peer, other: str, native: bool, tmp_path: Path) -> None:
    if other != 'hatnet' and PEERS[other] is peer:
        return
    path = str(tmp_path / 'other.pth')
    with torch.device('meta'):  # whose weights are shapes alone
        if other == 'hatnet':
            weights = HATNet('tiny').state_dict() if native else published_shapes('tiny')
        elif native:
            weights = PEERS[other].network(SMALLEST[other]).state_dict()
        else:
            weights = published_by(other, SMALLEST[other])
    torch.save({'model': shapes_only(weights)}, path)
    init_cfg = dict(type='Pretrained', checkpoint=path)
    model = peer.network(next(iter(peer.parameters)), init_cfg=init_cfg)
    with pytest.raises(CheckpointError, match=peer.network.CHECKPOINT.network) as refusal:
        model.init_weights()
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_features_are_contiguous(peer: Peer, memory_format: torch.memory_format) -> None:
    model = peer.build().to(memory_format=memory_format)
    for mode in (True, False):
        features = model.train(mode)(drawn_image(2, 3, 61, 90).to(memory_format=memory_format))
        assert all(feature.is_contiguous() for feature in features)


def test_every_layer_is_called_and_its_output_stays(peer: Peer) -> None:
    """Hooks see everything: no weights are used behind a layer's back, nothing is overwritten."""
    model, outputs, called = peer.build().eval(), [], set()

    def record(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        called.add(module)
        for tensor in output if isinstance(output, tuple) else (output,):
            outputs.append((tensor, tensor.clone()))

    layers = {m for m in model.modules() if [*m.parameters(recurse=False)]}
    for module in model.modules():
        module.register_forward_hook(record)
    with torch.no_grad():
        model(drawn_image(1, 3, 61, 90))
    unseen = [name for name, m in model.named_modules() if m in layers - called]
    assert unseen == []
    assert all(torch.equal(tensor, copied) for tensor, copied in outputs)


@pytest.mark.parametrize('training', [False, True])
def test_autocast_is_near(peer: Peer, training: bool) -> None:
    image = drawn_image(2, 3, 61, 90)
    model = peer.build().train(training)
    expected = model(image)
    with torch.autocast('cpu', torch.bfloat16):
        features = model(image)
    for feature, reference in zip(features, expected):
        assert (feature - reference).norm() < 0.05 * reference.norm()
    sum(f.float().square().mean() for f in features).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@torch.no_grad()
def test_export_takes_other_sizes(peer: Peer) -> None:
    """Above those at which a side of a pooled map is a single position, which PyTorch fixes."""
    model = peer.build().eval()
    size = {axis: torch.export.Dim.DYNAMIC for axis in (2, 3)}
    exported = torch.export.export(model, (drawn_image(1, 3, 256, 320),), dynamic_shapes=(size,))
    for height, width in ((256, 320), (224, 224), (230, 333)):
        image = drawn_image(1, 3, height, width)
        for feature, reference in zip(exported.module()(image), model(image)):
            torch.testing.assert_close(feature, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compile_has_no_graph_break(peer: Peer) -> None:
    image = drawn_image(2, 3, 61, 90)
    model = peer.build()
    compiled = torch.compile(copy.deepcopy(model), backend='aot_eager', fullgraph=True)
    expected = learned(model, image)
    for name, value in learned(compiled, image).items():
        reference = expected[str(name).removeprefix('_orig_mod.') if name not in expected else name]
        torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-5)


def test_out_indices_choose_features_and_build_no_more(peer: Peer) -> None:
    image = drawn_image(1, 3, 64, 96)
    features = peer.build().eval()(image)
    chosen = peer.build(out_indices=(2, 0)).eval()
    dims = peer.network(peer.small).embed_dims
    assert chosen.out_channels == (dims[2], dims[0]) and chosen.out_strides == (16, 4)
    assert len(chosen.stages) == 3
    for feature, index in zip(chosen(image), (2, 0)):
        torch.testing.assert_close(feature, features[index])


def test_in_channels(peer: Peer) -> None:
    features = peer.network(peer.small, in_channels=4)(torch.rand(2, 4, 64, 64))
    assert features[0].shape[1:] == (peer.network(peer.small).embed_dims[0], 16, 16)
    with pytest.raises(ValueError, match=r'takes images \(N, 4, H, W\), not \(2, 3, 64, 64\)'):
        peer.network(peer.small, in_channels=4)(torch.rand(2, 3, 64, 64))


def test_drop_path_grows_linearly(peer: Peer) -> None:
    model = peer.build(drop_path_rate=0.4)
    blocks = [block for stage in model.stages for block in stage.blocks]
    for i, block in enumerate(blocks):
        (rate,) = {m.rate for m in block.modules() if isinstance(m, DropPath)}
        assert rate == pytest.approx(0.4 * i / (len(blocks) - 1))


def test_initialisation(peer: Peer) -> None:
    torch.manual_seed(0)
    model = peer.network(next(iter(peer.parameters)))
    model.init_weights()
    for name, module in model.named_modules():
        if isinstance(module, (nn.LayerNorm, _BatchNorm)):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            expected = peer.initial_std(name, module)
            # Of n values the standard deviation is known to 1 / sqrt(2 n).
            tolerance = max(0.02, 4 / (2 * module.weight.numel()) ** 0.5)
            assert module.weight.std().item() == pytest.approx(expected, rel=tolerance), name


def test_every_layer_has_a_learning_rate(peer: Peer) -> None:
    model = peer.build()
    depths = [len(stage.blocks) for stage in model.stages]
    layers = {name: model.get_layer_depth(name) for name, _ in model.named_parameters()}
    total = sum(depths) + 2
    assert {*layers.values()} == {(layer, total) for layer in range(total - 1)}
    for name, (layer, _) in layers.items():
        if block := re.match(r'stages\.(\d)\.blocks\.(\d)\.', name):
            assert layer == sum(depths[: int(block[1])]) + int(block[2]) + 1


def test_unknown_variant_is_named(peer: Peer) -> None:
    called, archs = peer.network.CHECKPOINT.network, re.escape(str([*peer.network.ARCHS]))
    with pytest.raises(ValueError, match=f"arch='huge' is not a {called} variant: .*{archs}"):
        peer.network('huge')
    with pytest.raises(ValueError, match=r"unknown settings \['depth'\]"):
        peer.network(dict(peer.small, depth=3))
