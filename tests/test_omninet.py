"""Tests of OmniNet and of the simple feature pyramid alone.

``test_backbones.py`` covers what all networks share.
"""

import copy

import numpy as np
import pytest
import torch
from experiments import rest_slow
from mmengine.registry import MODELS
from networks import NETWORKS, OmniNetwork
from reference import omninet
from synthetic import synthetic_image, synthetic_value
from torch import Tensor, nn

from mmhatnet import OmniNet, SimpleFeaturePyramid
from mmhatnet.errors import CheckpointError

NETWORK = NETWORKS['omninet']
GOLDEN = NETWORK.golden
SMALL = NETWORK.small
# The settings of docs/networks/omninet.md, as arguments.
SETTINGS = {
    'last': dict(pool='last'),
    'top': dict(pool='top'),
    'pool_after_attention': dict(pool_after_attention=True),
    'performer': dict(performer=True),
    'no_skip': dict(skip=False),
    'partition5': dict(partition=5),
    'class_token': dict(class_token=True),
}
NUM_OMNI_BLOCKS = dict(dict.fromkeys(SETTINGS, 3), no_skip=4, partition5=2)


def reference_weights(**settings) -> dict[str, Tensor]:
    """Returns the tensors of a reference implementation, under the published names."""
    with torch.device('meta'):
        shapes = omninet.OmniNet(**settings).state_dict()
    return {name: synthetic_value(name, tuple(meta.shape)) for name, meta in shapes.items()}


HEAD = ('kernel', 'bias')


def load(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    missing, unexpected = model.load_state_dict(dict(weights), strict=False)
    assert missing == [] and set(unexpected) <= {f'output_projection/{n}' for n in HEAD}
    return model.eval()


def deviation(feature: Tensor, key: str) -> float:
    """Returns the largest deviation from a stored feature, in its standard deviations."""
    assert feature.shape == tuple(GOLDEN[f'{key}/shape'])
    flat = feature.detach().flatten().double().numpy()
    mean, std = GOLDEN[f'{key}/mean_std']
    samples = GOLDEN[f'{key}/samples']
    found = flat[:: max(1, flat.size // 512)][:512] - samples
    return max(np.abs([*found, flat.mean() - mean, flat.std(ddof=1) - std])) / std


@pytest.mark.parametrize('setting', SETTINGS)
@torch.no_grad()
def test_settings_agree_with_golden_figures(setting: str) -> None:
    count = NUM_OMNI_BLOCKS[setting]
    weights = reference_weights(dim=192, **omninet.SETTINGS[setting])
    model = OmniNet('tiny', out_indices=range(count + 1), **SETTINGS[setting])
    load(model, weights)
    names = [f'partition{i}' for i in range(count)] + ['map']
    stored = {key.split('/')[2] for key in GOLDEN.files if key.startswith(f'tiny+{setting}/')}
    assert stored == {*names, 'logits'}
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-6)):
        model.to(dtype)
        for size in ('1x3x224x224', '1x3x65x97'):
            features = model(synthetic_image(*map(int, size.split('x'))).to(dtype))
            assert len(features) == len(names)
            for name, feature in zip(names, features):
                found = deviation(feature, f'tiny+{setting}/{size}/{name}')
                print(f'{setting} {size} {name} {dtype}: {found:.1e}')
                assert found < tolerance


@pytest.mark.parametrize(
    'variant', rest_slow(['tiny', 'small', 'base', *(f'tiny+{s}' for s in SETTINGS)], 'tiny')
)
@torch.no_grad()
def test_logits_agree_with_golden_figures(variant: str) -> None:
    arch, _, setting = variant.partition('+')
    weights = reference_weights(dim=omninet.SIZES[arch], **omninet.SETTINGS.get(setting, {}))
    settings = dict(SETTINGS.get(setting, {}))
    if setting == 'class_token':
        settings['out_type'] = 'class_token'
    model = load(OmniNet(arch, **settings), weights)
    classifier = MODELS.build(
        dict(type='mmpretrain.LinearClsHead', num_classes=1000, in_channels=model.out_channels[-1])
    )
    kernel, bias = (weights[f'output_projection/{name}'] for name in HEAD)
    classifier.load_state_dict({'fc.weight': kernel.T, 'fc.bias': bias})
    sizes = {key.split('/')[1] for key in GOLDEN.files if key.startswith(f'{variant}/')}
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-6)):
        for size in sizes:
            image = synthetic_image(*map(int, size.split('x'))).to(dtype)
            (feature,) = model.to(dtype)(image)
            pooled = feature if setting == 'class_token' else feature.mean(dim=(2, 3))
            logits = classifier.to(dtype)((pooled,)).double().numpy()
            golden = GOLDEN[f'{variant}/{size}/logits']
            found = np.abs(logits - golden).max() / golden.std()
            print(f'{variant} {size} logits {dtype}: {found:.1e}')
            assert found < tolerance


@pytest.mark.parametrize('arch', rest_slow(['tiny', 'small', 'base'], 'tiny'))
@torch.no_grad()
def test_pyramid_agrees_with_golden_figures(arch: str) -> None:
    model = load(OmniNet(arch), reference_weights(dim=omninet.SIZES[arch]))
    neck = SimpleFeaturePyramid(model.out_channels[-1], num_outs=5)
    shapes = neck.state_dict()
    neck.load_state_dict({n: synthetic_value(n, tuple(t.shape)) for n, t in shapes.items()})
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-6)):
        levels = neck.to(dtype)(model.to(dtype)(synthetic_image(1, 3, 65, 97).to(dtype)))
        for level, feature in enumerate(levels[:4], 2):
            found = deviation(feature, f'{arch}/1x3x65x97/pyramid{level}')
            print(f'{arch} pyramid{level} {dtype}: {found:.1e}')
            assert found < tolerance
        assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])


@pytest.mark.parametrize('setting', ['max', *SETTINGS])
def test_gradients_are_those_of_the_reference(setting: str) -> None:
    """In float64, of all weights under their published names, and of the image."""
    settings = omninet.SETTINGS.get(setting, {})
    weights = reference_weights(dim=16, head_dim=8, **settings)
    reference = omninet.OmniNet(16, head_dim=8, **settings).double()
    reference.load_state_dict(weights)
    ours = OmniNet(dict(SMALL, depth=12), out_indices=None, **SETTINGS.get(setting, {})).double()
    load(ours, weights).train()
    image = synthetic_image(2, 3, 70, 90).double()
    found = []
    for model in (reference, ours):
        x = image.clone().requires_grad_()
        features = model(x)
        feature = features[0][-1] if model is reference else features[0]
        (feature * feature.detach().cos()).mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters()} | dict(image=x.grad))
    expected, actual = found
    renamed = {name: value for name, value in expected.items() if value is not None}
    ours.load_state_dict(renamed, strict=False)  # gives the gradients our names
    scale = torch.cat([value.flatten() for value in renamed.values()]).std()
    for name, parameter in ours.named_parameters():
        gradient = actual[name]
        assert gradient is not None, name
        assert (gradient - parameter).abs().max() < 1e-9 * scale, name
    assert (actual['image'] - expected['image']).abs().max() < 1e-9 * expected['image'].std()


@pytest.mark.parametrize('setting', SETTINGS)
def test_settings_recompute_export_and_run_in_16_bits(setting: str) -> None:
    image = synthetic_image(2, 3, 61, 90)
    results = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = OmniNet(SMALL, with_cp=with_cp, drop_rate=0.1, **SETTINGS[setting])
        torch.manual_seed(0)
        (feature,) = model(image)
        feature.square().mean().backward()
        results.append([feature, *(p.grad for p in model.parameters())])
    for kept, recomputed in zip(*results):
        torch.testing.assert_close(recomputed, kept, rtol=1e-4, atol=1e-6)
    (expected,) = model.eval()(image)
    with torch.autocast('cpu', torch.bfloat16):
        (feature,) = model(image)
    assert feature.is_contiguous()
    assert (feature - expected).norm() < 0.05 * expected.norm()
    (half,) = copy.deepcopy(model).bfloat16()(image.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize('partition', [1, 14, 99])
def test_no_partition_is_a_plain_transformer(partition: int) -> None:
    model = OmniNet(dict(SMALL, depth=12), partition=partition)
    assert model.depths == (12,) and len(model.stages) == 1
    assert all(type(block).__name__ == 'Block' for block in model.stages[0].blocks)


@pytest.mark.parametrize(
    ('partition', 'skip', 'layers'),
    [
        (4, True, ['0 1 2 o2', '4 5 6 o6', '8 9 10 o10', '']),
        (4, False, ['0 1 2 o2', '3 4 5 o5', '6 7 8 o8', '9 10 11 o11', '']),
        (5, True, ['0 1 2 3 o3', '5 6 7 8 o8', '10 11']),
        (2, True, [*(f'{layer} o{layer}' for layer in range(0, 12, 2)), '']),
        (13, True, [' '.join(map(str, range(12))) + ' o11', '']),
    ],
)
def test_layers_have_their_published_numbers(partition: int, skip: bool, layers: list[str]) -> None:
    with torch.device('meta'):
        model = OmniNet(SMALL | dict(depth=12), partition=partition, skip=skip)
        reference = omninet.OmniNet(16, head_dim=8, partition=partition, skip=skip)
    order = [f'{"o" * (kind == "omni")}{layer}' for kind, layer in reference.order]
    assert order == ' '.join(layers).split()
    assert model.depths == tuple(len(stage.split()) for stage in layers)
    weights = reference_weights(dim=16, head_dim=8, partition=partition, skip=skip)
    model = load(OmniNet(SMALL | dict(depth=12), partition=partition, skip=skip), weights)
    for stage, names in zip(model.stages, layers):
        for block, name in zip(stage.blocks, names.split()):
            published = f'Transformer/{"omni_" * (name[0] == "o")}encoder_block_{name.strip("o")}'
            assert torch.equal(block.norm2.bias, weights[f'{published}/LayerNorm_1/bias'])


def test_initialization_of_tokens() -> None:
    torch.manual_seed(0)
    stem = OmniNet('tiny', class_token=True).stem
    assert not stem.class_token.any()
    assert stem.position.shape == (1, 197, 192)
    assert stem.position.std().item() == pytest.approx(0.02, rel=0.02)
    weight = stem.patch.weight
    assert weight.abs().max() < 2 * weight.std() / 0.87  # truncated
    bias = torch.cat([m.bias for n, m in OmniNet('tiny').named_modules() if n.endswith('expand')])
    assert bias.std().item() == pytest.approx(1e-6, rel=0.05)


def test_other_settings_are_refused_as_another_variant() -> None:
    weights = NETWORK.synthetic_weights(OmniNet(SMALL, **NETWORK.arguments))
    for setting in ('top', 'no_skip', 'partition5', 'class_token'):
        with pytest.raises(CheckpointError, match='holds no named variant of OmniNet, but the'):
            OmniNet(SMALL, **SETTINGS[setting]).load_state_dict(dict(weights), strict=False)
    for setting in ('last', 'pool_after_attention', 'performer'):  # the same tensors
        load(OmniNet(SMALL, **SETTINGS[setting]), {k: v for k, v in weights.items() if '/' in k})


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(partition=0), 'partition=0 must be a positive whole number'),
        (dict(partition=2.5), 'partition=2.5 must be a positive whole number'),
        (dict(pool='mean'), r"pool='mean' must be one of \('max', 'last', 'top'\)"),
        (
            dict(pool='last', pool_after_attention=True),
            "pool_after_attention=True needs pool='max'",
        ),
        (dict(out_type='token'), "out_type='token' must be 'map' or 'class_token'"),
        (dict(out_type='class_token'), "out_type='class_token' needs class_token=True"),
        (dict(drop_rate=1), 'drop_rate=1 must be at least 0 and less than 1'),
        (dict(arch=dict(SMALL, depth=0)), 'depth=0 must be a positive whole number'),
        (dict(arch=dict(SMALL, mlp_ratio=0.5)), 'mlp_ratio=0.5 must be a positive whole number'),
        (dict(arch=dict(SMALL, depth=12), out_indices=(4,)), 'must name stages of 0 to 3'),
    ],
)
def test_impossible_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OmniNet(**{'arch': SMALL, **settings})


@pytest.mark.parametrize('size', [(1, 1), (1, 3), (5, 7), (14, 14)])
def test_pyramid_takes_any_grid(size: tuple[int, int]) -> None:
    neck = SimpleFeaturePyramid(8, out_channels=16, num_outs=6)
    feature = torch.randn(2, 8, *size, requires_grad=True)
    levels = neck((feature.contiguous(memory_format=torch.channels_last),))
    sizes = [tuple(int(np.ceil(side * 16 / 2**i)) for side in size) for i in range(2, 8)]
    assert [tuple(level.shape) for level in levels] == [(2, 16, *side) for side in sizes]
    assert all(level.is_contiguous() for level in levels)
    sum(level.square().mean() for level in levels).backward()
    assert all(p.grad is not None for p in neck.parameters()) and feature.grad.isfinite().all()


def test_pyramid_builds_the_levels_that_it_returns() -> None:
    neck = SimpleFeaturePyramid(8, start_level=1, num_outs=2)
    assert {name.split('.')[0] for name in neck.state_dict()} == {'simfp_3', 'simfp_4'}
    assert [level.shape[2] for level in neck((torch.randn(1, 8, 4, 4),))] == [8, 4]


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(in_channels=[8]), r'in_channels=\[8\] must be a multiple of 4'),
        (dict(in_channels=6), 'in_channels=6 must be a multiple of 4'),
        (dict(start_level=4), 'start_level=4 must be from 0 to 3'),
        (dict(num_outs=0), 'num_outs=0 must be a positive whole number'),
    ],
)
def test_impossible_settings_of_the_pyramid_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimpleFeaturePyramid(**{'in_channels': 8, **settings})


def test_pyramid_names_features_that_do_not_fit() -> None:
    neck = SimpleFeaturePyramid(8)
    image = torch.randn(1, 8, 4, 4)
    for features, shapes in (
        ((image, image), r'\[\(1, 8, 4, 4\), \(1, 8, 4, 4\)\]'),
        ((image[:, :4],), r'\[\(1, 4, 4, 4\)\]'),
        ((image[..., 0, 0],), r'\[\(1, 8\)\]'),
    ):
        with pytest.raises(ValueError, match=rf'one feature \(N, 8, h, w\), not {shapes}: set the'):
            neck(features)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_every_framework_builds_the_pyramid(scope: str) -> None:
    registry = pytest.importorskip(f'{scope}.registry').MODELS
    neck = registry.build(dict(type='SimpleFeaturePyramid', in_channels=8))
    assert type(neck) is SimpleFeaturePyramid


@pytest.mark.parametrize('image_size', [224, 160])
def test_pyramid_serves_another_plain_transformer(image_size: int) -> None:
    pytest.importorskip('mmpretrain.models')
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    vit = MODELS.build(
        dict(
            type='mmpretrain.VisionTransformer', arch=arch, out_type='featmap', img_size=image_size
        )
    )
    levels = SimpleFeaturePyramid(16)(vit(torch.rand(1, 3, image_size, image_size)))
    assert [level.shape[2] for level in levels] == [image_size // s for s in (4, 8, 16, 32)]


def test_network_of_the_tests_has_the_layouts_of_the_reference() -> None:
    assert isinstance(NETWORK, OmniNetwork)
    for settings, size in (
        ({'dim': 192}, 'tiny'),
        ({'dim': 16, 'head_dim': 8, 'depth': 13}, SMALL),
    ):
        with torch.device('meta'):
            model = OmniNet(size, **NETWORK.arguments)
            shapes = omninet.OmniNet(**settings).state_dict()
        tensors = model.state_dict()
        ours = {
            name: NETWORK.published_shape(name, tensors[key])
            for key, name in NETWORK.published(model).items()
        }
        assert ours == {
            name: tuple(value.shape) for name, value in shapes.items() if 'output' not in name
        }
