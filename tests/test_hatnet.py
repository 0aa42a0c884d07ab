"""Tests of HAT-Net alone: windows, chunks of the hidden layer, frozen layers before norms."""

import pytest
import torch
from networks import NETWORKS
from synthetic import synthetic_checkpoint, synthetic_image
from torch import nn

from mmhatnet import HATNet
from mmhatnet.backbones import hatnet, memory
from mmhatnet.backbones.hatnet_reference import ReferenceHATNet

SMALL, small_model = NETWORKS['hatnet'].small, NETWORKS['hatnet'].build


def reference_model() -> ReferenceHATNet:
    model = ReferenceHATNet(SMALL)
    model.load_state_dict(synthetic_checkpoint(SMALL, num_classes=0))
    return model


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Checks the largest deviation, in units of the expected tensor's spread."""
    scale = expected.std() if expected.numel() > 1 else expected.abs().max()
    deviation = (actual - expected).abs().max() / scale.clamp(min=1e-6)
    assert deviation < tolerance, f'{deviation:.1e} of the spread'


@pytest.mark.parametrize(
    'size',
    [(1, 1), (2, 3), (1, 40), (31, 33), (56, 56), (64, 57), (100, 130), (129, 127), (224, 224)],
)
def test_any_size_agrees_with_the_reference_implementation(size: tuple[int, int]) -> None:
    image = synthetic_image(2, 3, *size)
    with torch.no_grad():
        features = small_model().eval()(image)
        expected = reference_model().double().eval()(image.double())
    for feature, reference, stride in zip(features, expected, (4, 8, 16, 32)):
        assert feature.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))
        assert_close(feature.double(), reference, 1e-4)


def test_windows_of_a_real_variant_agree_at_an_odd_size() -> None:
    image = synthetic_image(1, 3, 75, 118)
    model, reference_model = HATNet('tiny').eval(), ReferenceHATNet('tiny').double().eval()
    weights = synthetic_checkpoint('tiny', num_classes=0)
    model.load_state_dict(weights)
    reference_model.load_state_dict(weights)
    with torch.no_grad():
        for feature, reference in zip(model(image), reference_model(image.double())):
            assert_close(feature.double(), reference, 1e-4)


def test_hidden_layer_in_chunks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run_hidden = hatnet.MLP.run_hidden

    def counted(self, x: torch.Tensor, in_place: bool = False) -> torch.Tensor:
        calls.append(tuple(x.shape))
        return run_hidden(self, x, in_place)

    monkeypatch.setattr(hatnet.MLP, 'run_hidden', counted)
    image = synthetic_image(3, 3, 61, 90)
    model = small_model().eval()
    at_once = model(image)  # the hidden layers are small here
    assert len(calls) == 5
    # Chunks of one image in the first stage, of two images, and of eight rows and a margin of one.
    one = 16 * 23 * 64 * 4
    for chunk_bytes, shape in (
        (one, (1, 8, 16, 23)),
        (2 * one, (2, 8, 16, 23)),
        (1, (1, 8, 9, 23)),
    ):
        calls.clear()
        monkeypatch.setattr(memory, 'CHUNK_BYTES', chunk_bytes)
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                in_chunks = model(image)
            assert calls[0] == shape and len(calls) > 5
            for feature, reference in zip(in_chunks, at_once):
                assert_close(feature, reference, 1e-5)


@pytest.mark.parametrize('recompute_mlp', [None, True, False])
def test_recomputing_keeps_no_hidden_layer(
    recompute_mlp: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    def largest_kept() -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            mlp(x)
        return max(t.numel() for t in kept)

    mlp = hatnet.MLP(16, ratio=8, kernel_size=3, recompute=recompute_mlp)
    x = torch.rand(1, 16, 40, 40, requires_grad=True)  # larger than any weight
    # By default if the hidden layer is large and nothing observes it.
    recomputed = {None: (False, True, False), True: (True,) * 3, False: (False,) * 3}
    cases = ((16 * 10**6, False), (10**5, False), (10**5, True))
    for (chunk_bytes, observed), expected in zip(cases, recomputed[recompute_mlp]):
        monkeypatch.setattr(memory, 'CHUNK_BYTES', chunk_bytes)
        if observed:
            mlp.expand.register_forward_hook(lambda *args: None)
        assert largest_kept() == x.numel() * (1 if expected else 8)


def test_residual_takes_the_more_precise_dtype() -> None:
    x = torch.rand(2, 3)
    for dtype in (torch.float32, torch.bfloat16):
        branch = torch.rand(2, 3).to(dtype)
        expected = branch.float() + x
        total = memory.add(branch, x, in_place=True)
        assert total.dtype == torch.float32
        assert torch.equal(total, expected)
        assert (total is branch) == (dtype == torch.float32)


def gradients(model: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    image = image.clone().requires_grad_()
    sum((f * f.detach().cos()).mean() for f in model(image)).backward()
    return dict({name: p.grad for name, p in model.named_parameters()}, image=image.grad)


@pytest.mark.parametrize('chunk_bytes', [memory.CHUNK_BYTES, 1])
@pytest.mark.parametrize('size', [(64, 96), (61, 90)])
def test_gradients_agree_with_the_reference_implementation(
    size: tuple[int, int], chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, 'CHUNK_BYTES', chunk_bytes)
    image = synthetic_image(2, 3, *size)
    actual = gradients(small_model(), image)
    reference = gradients(reference_model().double(), image.double())
    converted = HATNet(SMALL).double()
    unused = [name for name in reference if '.proj_norm.' in name]
    weights = {name: g for name, g in reference.items() if name not in [*unused, 'image']}
    converted.load_state_dict(weights)
    expected = dict(converted.state_dict(), image=reference['image'])
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        # The gradient of a bias before a normalization over its channels is near zero.
        error = (gradient.double() - expected[name]).abs().max()
        scale = max(expected[name].abs().max(), 1e-3)
        assert error / scale < 1e-3, (name, error / scale)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_only_normalizations_learn(memory_format: torch.memory_format) -> None:
    """PyTorch's group normalization may crash if its input needs no gradient."""
    image = synthetic_image(2, 3, 61, 90)
    expected = gradients(small_model(), image)
    model = small_model().requires_grad_(False)
    learning = {
        f'{name}.{parameter}'
        for name, module in model.named_modules()
        if isinstance(module, nn.GroupNorm)
        for parameter, _ in module.requires_grad_(True).named_parameters()
    }
    features = model(image.contiguous(memory_format=memory_format))
    sum((f * f.detach().cos()).mean() for f in features).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in learning)
        if name in learning:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)


def test_dropout_is_off_in_evaluation() -> None:
    image = synthetic_image(1, 3, 64, 64)
    model = small_model(drop_rate=0.5)
    assert not torch.equal(model.train()(image)[-1], model(image)[-1])
    torch.testing.assert_close(model.eval()(image)[-1], small_model().eval()(image)[-1])


def test_channels_last_input_gives_the_same() -> None:
    image = synthetic_image(2, 3, 61, 90)
    model = small_model().eval()
    for feature, reference in zip(
        model(image.contiguous(memory_format=torch.channels_last)), model(image)
    ):
        torch.testing.assert_close(feature, reference)


@pytest.mark.parametrize('size', [(64, 96), (61, 90)])
def test_export_gives_the_same(size: tuple[int, int]) -> None:
    image = synthetic_image(1, 3, *size)
    model = small_model().eval()
    exported = torch.export.export(model, (image,)).module()
    for feature, reference in zip(exported(image), model(image)):
        torch.testing.assert_close(feature, reference)


# Inductor takes long to compile all stages, and one of them is enough.
@pytest.mark.parametrize(
    ('backend', 'out_indices'),
    [
        ('eager', (0, 1, 2, 3)),
        pytest.param('aot_eager', (0, 1, 2, 3), marks=pytest.mark.slow),
        pytest.param('inductor', (0,), marks=pytest.mark.slow),
    ],
)
def test_compile_has_no_graph_break(backend: str, out_indices: tuple[int, ...]) -> None:
    image = synthetic_image(1, 3, 61, 90)
    model = small_model(out_indices=out_indices)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for feature, reference in zip(compiled(image), model(image)):
        torch.testing.assert_close(feature, reference, rtol=1e-4, atol=1e-4)


def test_window_without_pooling_is_named() -> None:
    with pytest.raises(ValueError, match=r'stages \[3\]: windows and poolings must both be None'):
        HATNet(dict(SMALL, poolings=(8, 4, 2, 2)))
