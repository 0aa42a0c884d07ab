"""Properties of the networks and their layers, which hypothesis tests with random cases.

The ordinary run has 100 cases, ``make test-faults`` 2,000. Both always have the same cases. A
failure prints the smallest case that fails, as the call of a test with a ``Case``.
"""

import copy
import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS
from reference import glnet, omninet, p2t, shunted, stvit
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmhatnet.backbones.base import Backbone
from mmhatnet.backbones.hatnet_reference import ReferenceHATNet
from mmhatnet.backbones.layers import Conv2d, DropPath, LayerNorm2d, conv, multi_head_attention

pytest.importorskip('hypothesis', reason='hypothesis makes the cases')
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

CASES = int(os.environ.get('PROPERTY_CASES', '100'))
# The type of weights and images, whether autocast computes in bfloat16, and the largest deviation
# between two ways to the same result, in units of its norm.
PRECISIONS = {
    'float64': (torch.float64, False, 1e-9),
    'float32': (torch.float32, False, 2e-4),
    'bfloat16': (torch.bfloat16, False, 0.06),
    'autocast': (torch.float32, True, 0.06),
}


def cases(share: float, **strategies: st.SearchStrategy) -> Callable:
    """Runs a test with this share of the cases, and prints each that fails.

    hypothesis prints no case that fails in several ways, as with memory that is not initialized.
    """

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def run(**case) -> None:
            try:
                test(**case)
            except UnsatisfiedAssumption:
                raise
            except Exception:
                print(f'{test.__name__} fails with {case}')
                raise

        return settings(
            max_examples=round(CASES * share),
            database=None,
            deadline=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(given(**strategies)(run))

    return decorate


@dataclass(frozen=True)
class Case:
    """A network, how it is built and what it gets.

    Attributes:
        size: Height and width.
        precision: A key of ``PRECISIONS``.
        image_learns: Whether the image gets a gradient.
    """

    network: str
    batch: int
    in_channels: int
    size: tuple[int, int]
    out_indices: tuple[int, ...]
    frozen_stages: int
    with_cp: bool
    precision: str
    channels_last: bool
    training: bool
    norm_eval: bool
    image_learns: bool
    seed: int

    def build(self, **changes) -> Backbone:
        """Builds the network with random weights, which depend on the seed alone."""
        network = NETWORKS[self.network]
        kwargs = dict(
            in_channels=self.in_channels,
            out_indices=self.out_indices,
            frozen_stages=self.frozen_stages,
            with_cp=self.with_cp,
            **network.noise,
        )
        if 'norm_eval' in network.network.__init__.__annotations__:
            kwargs['norm_eval'] = self.norm_eval
        torch.manual_seed(self.seed)
        model = network.network(network.small, **(kwargs | changes))
        for name, value in model.state_dict().items():
            if name.endswith('running_var'):
                value.uniform_(0.5, 2)
            elif value.is_floating_point() and value.ndim == 1:
                value.add_(0.1 * torch.randn(value.shape))
        return model.to(PRECISIONS[self.precision][0]).train(self.training)

    def image(self) -> Tensor:
        """Returns the images (N, C, H, W)."""
        generator = torch.Generator().manual_seed(self.seed)
        image = torch.randn(self.batch, self.in_channels, *self.size, generator=generator)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return image.to(PRECISIONS[self.precision][0]).contiguous(memory_format=layout)

    @property
    def tolerance(self) -> float:
        return PRECISIONS[self.precision][2]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the features by the pages of the networks."""
        network = NETWORKS[self.network]
        sizes, channels = network.sizes(*self.size), network.channels
        return [(self.batch, channels[i], *sizes[i]) for i in self.out_indices]

    def run(self, model: Backbone, image: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(self.seed)  # of stochastic depth and dropout
        with torch.autocast('cpu', torch.bfloat16, enabled=PRECISIONS[self.precision][1]):
            return model(image)


sides = st.one_of(st.integers(1, 9), st.integers(1, 72), st.sampled_from([31, 32, 33, 97, 128]))
each_case = st.builds(
    Case,
    network=st.sampled_from(sorted(NETWORKS)),
    batch=st.integers(1, 3),
    in_channels=st.integers(1, 4),
    size=st.tuples(sides, sides),
    out_indices=st.permutations(range(4)).flatmap(
        lambda order: st.integers(1, 4).map(lambda count: tuple(order[:count]))
    ),
    frozen_stages=st.integers(-1, 4),
    with_cp=st.booleans(),
    precision=st.sampled_from(list(PRECISIONS)),
    channels_last=st.booleans(),
    training=st.booleans(),
    norm_eval=st.booleans(),
    image_learns=st.booleans(),
    seed=st.integers(0, 2**16),
)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert actual.shape == expected.shape, what
    assert actual.isfinite().all(), what
    distance = (actual.double() - expected.double()).norm()
    assert distance <= tolerance * expected.double().norm() + 1e-30, (
        f'{what}: {distance / expected.double().norm():.1e} of the norm'
    )


def takes(model: nn.Module, case: Case) -> bool:
    """Whether PyTorch can normalize: batch statistics need two values of a channel."""
    _, _, height, width = case.shapes[case.out_indices.index(max(case.out_indices))]
    learning = any(isinstance(m, _BatchNorm) and m.training for m in model.modules())
    return not learning or case.batch * height * width > 1


@cases(0.35, case=each_case)
def test_features(case: Case) -> None:
    """Shapes, one image or many, memory formats and checkpoints, in evaluation mode."""
    model, image, tolerance = case.build().eval(), case.image(), case.tolerance
    before = image.clone()
    with torch.no_grad():
        features = case.run(model, image)
        assert torch.equal(image, before)
        assert [tuple(f.shape) for f in features] == case.shapes
        assert model.out_channels == tuple(f.shape[1] for f in features)
        for feature in features:
            assert feature.isfinite().all() and feature.is_contiguous()

        other = case.build()
        for parameter in other.parameters():
            parameter.zero_()
        missing = other.load_state_dict(copy.deepcopy(model.state_dict()))
        assert not missing.missing_keys and not missing.unexpected_keys
        for feature, again in zip(features, case.run(other.eval(), image)):
            assert torch.equal(feature, again)

        alone = [case.run(model, one) for one in image.split(1)]
        for i, feature in enumerate(features):
            joined = torch.cat([one[i] for one in alone])
            assert_near(joined, feature, tolerance, 'one image at a time')

        model.to(memory_format=torch.channels_last)
        for layout in (torch.contiguous_format, torch.channels_last):
            for one, two in zip(case.run(model, image.contiguous(memory_format=layout)), features):
                assert_near(one, two, tolerance, str(layout))


DEPTHS = (1, 2, 1, 1)
P2T_DIMS = (48, 96, 240, 384)
# Settings of our network, where they are not those of ``small``, and the reference implementation.
REFERENCES = {
    'hatnet': ({}, lambda: ReferenceHATNet(NETWORKS['hatnet'].small)),
    'p2t': (dict(embed_dims=P2T_DIMS, num_heads=p2t.HEADS), lambda: p2t.P2T(P2T_DIMS, DEPTHS)),
    'shunted': (
        dict(embed_dims=shunted.DIMS, head_dim=shunted.HEAD_DIM),
        lambda: shunted.ShuntedTransformer(DEPTHS, stem_convs=1),
    ),
    'stvit': ({}, lambda: stvit.STViT((8, 16, 16, 24), (1, 2, 2, 3), DEPTHS, layer_scale=True)),
    'glnet': (
        {},
        lambda: glnet.GLNet(
            (32, 32, 64, 64), (1, 1, 2, 1), glnet.LARGE['mixers'], layer_scale=True
        ),
    ),
    'glnet_stl': (
        {},
        lambda: glnet.GLNet(
            (32, 32, 64, 64), (1, 1, 1, 1), glnet.SMALL['mixers'], False, learned_slots=True
        ),
    ),
    'omninet': ({}, lambda: omninet.OmniNet(16, head_dim=8, depth=13)),
}


@functools.cache
def pair(name: str) -> tuple[Backbone, nn.Module]:
    """Builds a network and its reference implementation with the same weights."""
    network, (settings, build) = NETWORKS[name], REFERENCES[name]
    ours = network.network(dict(network.small, **settings), **network.arguments)
    reference = build()
    weights = network.synthetic_weights(ours)
    ours.load_state_dict(weights, strict=False)
    shapes = {key: value.shape for key, value in reference.state_dict().items()}
    # A linear layer may be a convolution in the published code.
    weights = {k: v.view(shapes[k]) for k, v in weights.items() if k in shapes and k != 'head.bias'}
    missing, _ = reference.load_state_dict(weights, strict=False)
    assert all(
        re.match(r'(head|norm|proj|tklb_aux_head)\.|output_projection/', key) for key in missing
    ), missing
    return ours.double().eval(), reference.double().eval()


@cases(
    0.2,
    name=st.sampled_from(sorted(NETWORKS)),
    batch=st.integers(1, 2),
    size=st.tuples(sides, sides),
    seed=st.integers(0, 2**16),
)
@torch.no_grad()
def test_reference(name: str, batch: int, size: tuple[int, int], seed: int) -> None:
    """The features are those of the reference implementation."""
    ours, reference = pair(name)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64)
    expected = reference(image)
    features = ours(image)
    for stage, feature in enumerate(expected[0] if len(expected) == 2 else expected):
        assert_near(features[stage], feature, 1e-8, f'stage {stage}')


def learn(case: Case, model: Backbone, image: Tensor) -> dict[str, Tensor]:
    """Returns the features, and the gradients that a backward pass computes."""
    image = image.clone().requires_grad_(case.image_learns)
    features = case.run(model, image)
    if any(f.requires_grad for f in features):
        sum((f.double() * f.detach().double().cos()).mean() for f in features).backward()
    found = {f'feature {i}': feature.detach() for i, feature in enumerate(features)}
    found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | ({'image': image.grad} if image.grad is not None else {})


@cases(0.3, case=each_case)
def test_training(case: Case) -> None:
    """Gradients, recomputation, and what is frozen."""
    model = case.build()
    assume(takes(model, case))
    before = copy.deepcopy(model.state_dict())
    found = learn(case, model, case.image())
    frozen = {
        name
        for name in before
        if (int(name.split('.')[1]) + 1 if name.startswith('stages') else 0) <= case.frozen_stages
    }
    parameters = dict(model.named_parameters())
    assert {name for name, p in parameters.items() if not p.requires_grad} == frozen & {*parameters}
    assert {*parameters} - frozen == {*found} & {*parameters}
    assert ('image' in found) == case.image_learns
    for name, value in found.items():
        assert value.isfinite().all(), name

    twin = case.build(with_cp=not case.with_cp)
    recomputed = learn(case, twin, case.image())
    assert recomputed.keys() == found.keys()
    for name, value in found.items():
        assert_near(recomputed[name], value, case.tolerance, name)
    for name, value in model.named_buffers():  # which count each batch once
        assert torch.equal(dict(twin.named_buffers())[name], value), name

    torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1).step()
    for name, value in model.state_dict().items():
        if name in frozen or (not case.training and name not in parameters):
            assert torch.equal(value, before[name]), name
        elif name in found:
            assert not torch.equal(value, before[name]), name


@dataclass(frozen=True)
class Layer:
    """A convolution with a stride, and its input."""

    kernel: int
    stride: int
    padded: bool
    in_channels: int
    out_channels: int
    size: tuple[int, int]
    batch: int
    precision: str
    channels_last: bool


each_layer = st.builds(
    Layer,
    kernel=st.integers(1, 8),
    stride=st.integers(1, 8),
    padded=st.booleans(),
    in_channels=st.one_of(st.integers(1, 40), st.sampled_from([48, 64, 96])),
    out_channels=st.sampled_from([1, 8, 16, 48]),
    size=st.tuples(st.integers(1, 18), st.integers(1, 18)),
    batch=st.integers(1, 2),
    precision=st.sampled_from(['float64', 'float32', 'bfloat16']),
    channels_last=st.booleans(),
)


@cases(0.1, case=each_layer)
def test_convolutions(case: Layer) -> None:
    """``Conv2d`` and its gradients are those of PyTorch in float64."""
    padding = case.kernel // 2 if case.padded else 0
    assume(min(case.size) + 2 * padding >= case.kernel)
    dtype, _, tolerance = PRECISIONS[case.precision]
    torch.manual_seed(0)
    layer = Conv2d(case.in_channels, case.out_channels, case.kernel, case.stride, padding)
    image = torch.randn(case.batch, case.in_channels, *case.size).to(dtype)
    layer.to(dtype)
    exact = [t.detach().double().clone().requires_grad_() for t in (image, *layer.parameters())]
    expected = F.conv2d(*exact, stride=case.stride, padding=padding)
    direction = torch.randn_like(expected).to(dtype)
    expected.backward(direction.double())
    if case.channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    image.requires_grad_()
    out = layer(image)
    out.backward(direction)
    assert out.dtype == dtype
    actual = (out, image.grad, *(p.grad for p in layer.parameters()))
    for ours, right in zip(actual, (expected, *(t.grad for t in exact))):
        assert_near(ours, right, tolerance, f'{tuple(ours.shape)}')


@cases(
    0.05,
    batch=st.integers(1, 3),
    channels=st.sampled_from([8, 24]),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    rate=st.sampled_from([0, 0.3, 0.9]),
    queries=st.integers(1, 30),
    seed=st.integers(0, 100),
)
def test_layers(batch, channels, size, rate, queries, seed) -> None:
    """Norms and attention are their formulas, drop path keeps or drops whole images."""
    torch.manual_seed(seed)
    x = torch.randn(batch, channels, *size, dtype=torch.float64)
    for stride in (1, 2):
        out = conv(channels, 4, 3, stride=stride).double()(x)
        assert out.shape[2:] == tuple(-(-side // stride) for side in size)
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    torch.testing.assert_close(
        LayerNorm2d(channels, eps=1e-6).double()(x), (x - mean) / (variance + 1e-6).sqrt()
    )
    dropped = DropPath(rate).train()(x)
    for image, out in zip(x, dropped):
        kept = image / (1 - rate)
        assert torch.equal(out, torch.zeros_like(out)) or torch.allclose(out, kept)
    assert torch.equal(DropPath(rate).eval()(x), x)

    q = torch.randn(batch, queries, channels, dtype=torch.float64)
    k, v = x.flatten(2).mT, torch.randn(batch, size[0] * size[1], channels, dtype=torch.float64)
    out = multi_head_attention(q, k, v, 8)
    heads = zip(*(t.split(8, dim=-1) for t in (q, k, v)))
    expected = torch.cat([(a @ b.mT / 8**0.5).softmax(-1) @ c for a, b, c in heads], dim=-1)
    torch.testing.assert_close(out, expected)
