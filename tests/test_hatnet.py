"""What every variant of the backbone can do, and how it meets bad arguments."""

import copy

import pytest
import torch
from drawn import drawn_checkpoint, drawn_image
from mmengine.registry import MODELS
from torch import nn

from mmhatnet import HATNet
from mmhatnet.backbones import hatnet, memory
from mmhatnet.backbones.hatnet_literal import LiteralHATNet

# Small enough for seconds, with every kind of piece: windows that cut, both kinds of attention,
# two head counts, two kernel sizes.
SMALL = dict(embed_dims=(8, 16, 16, 24), head_dim=8, depths=(1, 2, 1, 1), kernel_sizes=(3, 5, 3, 3))


def small_model(**kwargs) -> HATNet:
    model = HATNet(SMALL, **kwargs)
    model.load_state_dict(drawn_checkpoint(SMALL, num_classes=0, in_channels=3), strict=False)
    return model


def literal_model() -> LiteralHATNet:
    model = LiteralHATNet(SMALL)
    model.load_state_dict(drawn_checkpoint(SMALL, num_classes=0))
    return model


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Largest deviation in units of the expected tensor's spread."""
    scale = expected.std() if expected.numel() > 1 else expected.abs().max()
    deviation = (actual - expected).abs().max() / scale.clamp(min=1e-6)
    assert deviation < tolerance, f'{deviation:.1e} of the spread'


@pytest.mark.parametrize('arch', HATNet.ARCHS)
def test_every_variant_trains_and_all_parameters_get_gradients(arch: str) -> None:
    model = HATNet(arch, drop_path_rate=0.0)
    model.init_weights()
    features = model(torch.rand(1, 3, 64, 64))
    assert [f.shape[1] for f in features] == list(model.out_channels)
    assert [64 // f.shape[2] for f in features] == list(model.out_strides)
    sum(f.square().mean() for f in features).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize(
    ('arch', 'millions'), [('tiny', 12.7), ('small', 25.7), ('medium', 42.9), ('large', 63.1)]
)
def test_parameters_are_as_published(arch: str, millions: float) -> None:
    parameters = sum(p.numel() for p in HATNet(arch).parameters())
    parameters += HATNet(arch).embed_dims[-1] * 1000 + 1000
    assert round(parameters / 1e6, 1) == millions


@pytest.mark.parametrize(
    'size',
    [(1, 1), (2, 3), (1, 40), (31, 33), (56, 56), (64, 57), (100, 130), (129, 127), (224, 224)],
)
def test_any_size_agrees_with_the_literal_formulation(size: tuple[int, int]) -> None:
    image = drawn_image(2, 3, *size)
    with torch.no_grad():
        features = small_model().eval()(image)
        expected = literal_model().double().eval()(image.double())
    for feature, reference, stride in zip(features, expected, (4, 8, 16, 32)):
        assert feature.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))
        assert_close(feature.double(), reference, 1e-4)


def test_windows_of_a_real_variant_agree_at_an_odd_size() -> None:
    image = drawn_image(1, 3, 75, 118)
    model, literal = HATNet('tiny').eval(), LiteralHATNet('tiny').double().eval()
    weights = drawn_checkpoint('tiny', num_classes=0)
    model.load_state_dict(weights)
    literal.load_state_dict(weights)
    with torch.no_grad():
        for feature, reference in zip(model(image), literal(image.double())):
            assert_close(feature.double(), reference, 1e-4)


def test_hidden_layer_in_chunks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run_hidden = hatnet.MLP.run_hidden

    def counted(self, x: torch.Tensor, in_place: bool = False) -> torch.Tensor:
        calls.append(tuple(x.shape))
        return run_hidden(self, x, in_place)

    monkeypatch.setattr(hatnet.MLP, 'run_hidden', counted)
    image = drawn_image(3, 3, 61, 90)
    model = small_model().eval()
    at_once = model(image)  # the hidden layers are small here
    assert len(calls) == 5
    # One image of the first stage at a time, or two; or eight rows of one, and one beside them.
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
    # By default where the hidden layer is large and nothing observes it.
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
def test_gradients_agree_with_the_literal_formulation(
    size: tuple[int, int], chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, 'CHUNK_BYTES', chunk_bytes)
    image = drawn_image(2, 3, *size)
    actual = gradients(small_model(), image)
    reference = gradients(literal_model().double(), image.double())
    converted = HATNet(SMALL).double()
    unused = [name for name in reference if '.proj_norm.' in name]
    weights = {name: g for name, g in reference.items() if name not in [*unused, 'image']}
    converted.load_state_dict(weights)
    expected = dict(converted.state_dict(), image=reference['image'])
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        # A bias before a normalisation over all its channels has a gradient near zero.
        error = (gradient.double() - expected[name]).abs().max()
        scale = max(expected[name].abs().max(), 1e-3)
        assert error / scale < 1e-3, (name, error / scale)


def test_recomputing_gives_the_same_gradients() -> None:
    image = drawn_image(1, 3, 61, 90)
    kwargs = dict(drop_rate=0.1, drop_path_rate=0.2)
    torch.manual_seed(0)
    kept = gradients(small_model(**kwargs), image)
    torch.manual_seed(0)
    recomputed = gradients(small_model(with_cp=True, **kwargs), image)
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('frozen_stages', [0, 2, 4])
def test_frozen_stages_stay(frozen_stages: int) -> None:
    model = small_model(frozen_stages=frozen_stages, drop_path_rate=0.5, with_cp=True).train()
    frozen = [model.stem, *model.stages[:frozen_stages]]
    free = [*model.stages[frozen_stages:]]
    assert not any(module.training for part in frozen for module in part.modules())
    assert all(module.training for part in free for module in part.modules())
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    features = model(torch.rand(2, 3, 64, 64))
    if free:
        sum(f.square().mean() for f in features).backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        stage = int(name.split('.')[1]) + 1 if name.startswith('stages') else 0
        assert torch.equal(value, before[name]) == (stage <= frozen_stages), name


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_only_normalisations_learn(memory_format: torch.memory_format) -> None:
    """PyTorch's group normalisation would end the process where its input needs no gradient."""
    image = drawn_image(2, 3, 61, 90)
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


def test_out_indices_choose_features_and_build_no_more() -> None:
    image = drawn_image(1, 3, 64, 64)
    features = small_model().eval()(image)
    chosen = small_model(out_indices=(2, 0)).eval()
    assert chosen.out_channels == (16, 8) and chosen.out_strides == (16, 4)
    assert len(chosen.stages) == 3
    for feature, index in zip(chosen(image), (2, 0)):
        torch.testing.assert_close(feature, features[index])


def test_drop_path_drops_whole_images() -> None:
    torch.manual_seed(0)
    model = HATNet(SMALL, drop_path_rate=0.5)
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])
    drop_path = model.stages[-1].blocks[-1].drop_path
    out = drop_path(torch.ones(1000, 2, 2, 3))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(out.amin(dim=(1, 2, 3)), out.amax(dim=(1, 2, 3)))
    assert 0.4 < (out[:, 0, 0, 0] == 0).float().mean() < 0.6
    assert torch.equal(drop_path.eval()(out), out)


def test_dropout_is_off_in_evaluation() -> None:
    image = drawn_image(1, 3, 64, 64)
    model = small_model(drop_rate=0.5)
    assert not torch.equal(model.train()(image)[-1], model(image)[-1])
    torch.testing.assert_close(model.eval()(image)[-1], small_model().eval()(image)[-1])


@pytest.mark.parametrize('in_channels', [1, 4])
def test_in_channels(in_channels: int) -> None:
    features = HATNet(SMALL, in_channels=in_channels)(torch.rand(1, in_channels, 32, 32))
    assert features[0].shape == (1, 8, 8, 8)


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = HATNet('tiny')
    model.init_weights()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all()
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            assert module.bias is None or (module.bias == 0).all()
    weight = model.stages[3].blocks[0].mlp.expand.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('training', [False, True])
def test_autocast_is_finite_and_near(dtype: torch.dtype, training: bool) -> None:
    image = drawn_image(1, 3, 61, 90)
    model = small_model().train(training)
    with torch.autocast('cpu', dtype):
        features = model(image)
    loss = sum(f.float().square().mean() for f in features)
    for feature, reference in zip(features, model(image)):
        assert feature.isfinite().all()
        assert (feature - reference).norm() < 0.05 * reference.norm()
    if training:
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_channels_last_input_gives_the_same() -> None:
    image = drawn_image(2, 3, 61, 90)
    model = small_model().eval()
    for feature, reference in zip(
        model(image.contiguous(memory_format=torch.channels_last)), model(image)
    ):
        torch.testing.assert_close(feature, reference)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('frozen_stages', [-1, 1])
def test_features_and_their_gradients_are_contiguous(
    memory_format: torch.memory_format, frozen_stages: int
) -> None:
    """Also of a model that was converted to channels-last: not every operator minds strides."""
    model = small_model(frozen_stages=frozen_stages).to(memory_format=memory_format)
    for mode in (True, False):
        features = model.train(mode)(drawn_image(2, 3, 61, 90).to(memory_format=memory_format))
        assert all(feature.is_contiguous() for feature in features)


@pytest.mark.parametrize('size', [(64, 96), (61, 90)])
def test_export_gives_the_same(size: tuple[int, int]) -> None:
    image = drawn_image(1, 3, *size)
    model = small_model().eval()
    exported = torch.export.export(model, (image,)).module()
    for feature, reference in zip(exported(image), model(image)):
        torch.testing.assert_close(feature, reference)


# Inductor takes long to compile all stages, which would show nothing new.
@pytest.mark.parametrize(
    ('backend', 'out_indices'),
    [
        ('eager', (0, 1, 2, 3)),
        pytest.param('aot_eager', (0, 1, 2, 3), marks=pytest.mark.slow),
        pytest.param('inductor', (0,), marks=pytest.mark.slow),
    ],
)
def test_compile_has_no_graph_break(backend: str, out_indices: tuple[int, ...]) -> None:
    image = drawn_image(1, 3, 61, 90)
    model = small_model(out_indices=out_indices)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for feature, reference in zip(compiled(image), model(image)):
        torch.testing.assert_close(feature, reference, rtol=1e-4, atol=1e-4)


def test_built_by_every_framework() -> None:
    from mmdet.registry import MODELS as DETECTION
    from mmpretrain.registry import MODELS as PRETRAIN
    from mmseg.registry import MODELS as SEGMENTATION

    for registry in (MODELS, DETECTION, SEGMENTATION, PRETRAIN):
        assert isinstance(registry.build(dict(type='HATNet', arch='tiny')), HATNet)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='huge'), r"arch='huge' .*\['tiny', 'small', 'medium', 'large'\]"),
        (dict(arch=dict(SMALL, depth=3)), r"unknown settings \['depth'\]"),
        (dict(arch=dict(head_dim=8, depths=(1,))), r"missing settings \['embed_dims'\]"),
        (dict(arch=dict(SMALL, depths=(1, 1, 1))), "'depths': 3"),
        (dict(arch=dict(SMALL, head_dim=16)), 'embed_dims=8 cannot be divided by head_dim=16'),
        (dict(arch=dict(SMALL, poolings=(8, 4, 2, 2))), r'stages \[3\]'),
        (dict(out_indices=(0, 4)), r'out_indices=\(0, 4\) must name stages of 0 to 3'),
        (dict(out_indices=()), 'out_indices'),
        (dict(out_indices=2), 'out_indices=2'),
        (dict(frozen_stages=5), 'frozen_stages=5 must be from -1 to 4'),
        (dict(drop_path_rate=1.5), 'drop_path_rate=1.5'),
    ],
)
def test_impossible_arguments_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HATNet(**kwargs)


def test_impossible_input_is_named() -> None:
    with pytest.raises(ValueError, match=r'\(N, 3, H, W\).*\(2, 1, 32, 32\)'):
        HATNet(SMALL)(torch.rand(2, 1, 32, 32))
