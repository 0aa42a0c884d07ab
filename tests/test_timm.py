"""HAT-Net has timm's interface and computes the same as the published code."""

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from processes import Script
from synthetic import synthetic_checkpoint, synthetic_image
from torch import Tensor, nn

from mmhatnet.backbones.hatnet_reference import ReferenceHATNet

timm = pytest.importorskip('timm')
pytest.importorskip('mmhatnet.timm_models')

ROOT = Path(__file__).parents[1]
ARCHS = ('tiny', 'small', 'medium', 'large')
SMALL = dict(embed_dims=(8, 16, 16, 24), head_dim=8, depths=(1, 2, 1, 1), kernel_sizes=(3, 5, 3, 3))
IMAGE = synthetic_image(2, 3, 64, 90)


def create(**kwargs) -> nn.Module:
    return timm.create_model('hatnet_small', **{'arch': SMALL, 'num_classes': 10, **kwargs})


@pytest.fixture(scope='module')
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a checkpoint of a small network for ten classes, in the published format."""
    path = tmp_path_factory.mktemp('published') / 'HAT-Net_Synthetic.pth'
    torch.save(synthetic_checkpoint(SMALL, num_classes=10), path)
    return path


def pretrained(published: Path, **kwargs) -> nn.Module:
    overlay = dict(file=str(published), num_classes=10)
    return create(pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


@pytest.fixture(scope='module')
def expected() -> tuple[tuple[Tensor, ...], Tensor]:
    """Returns the features and logits of the reference implementation."""
    reference = ReferenceHATNet(SMALL, num_classes=10).eval()
    reference.load_state_dict(synthetic_checkpoint(SMALL, num_classes=10))
    with torch.no_grad():
        return reference(IMAGE)


def assert_close(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_published_weights_give_the_published_results(published: Path, expected: tuple) -> None:
    features, logits = expected
    model = pretrained(published)
    assert_close(model(IMAGE), logits)
    last = model.forward_features(IMAGE)
    assert_close(last, features[-1])
    assert_close(model.forward_head(last), logits)
    assert_close(model.forward_head(last, pre_logits=True), features[-1].mean((2, 3)))
    final, intermediates = model.forward_intermediates(IMAGE)
    assert_close(final, features[-1])
    assert_close(intermediates, list(features))
    assert_close(
        model.forward_intermediates(IMAGE, indices=[2, -4], intermediates_only=True),
        [features[2], features[0]],
    )
    final, _ = model.forward_intermediates(IMAGE, indices=(1,), stop_early=True)
    assert_close(final, features[1])


@pytest.mark.parametrize('feature_cls', [None, 'hook'])
@pytest.mark.parametrize('out_indices', [None, (1, 2), 1])
def test_features_only(published: Path, expected: tuple, out_indices, feature_cls) -> None:
    options = dict(features_only=True, out_indices=out_indices, feature_cls=feature_cls)
    model = pretrained(published, **options)
    wanted = {None: (0, 1, 2, 3), 1: (3,)}.get(out_indices, out_indices)
    features = [expected[0][index] for index in wanted]
    assert_close(model(IMAGE), features)
    assert model.feature_info.channels() == [feature.shape[1] for feature in features]
    assert model.feature_info.reduction() == [4 * 2**index for index in wanted]


def test_other_channels_and_classes(published: Path, expected: tuple) -> None:
    model = pretrained(published, in_chans=1, num_classes=5)
    gray = IMAGE[:, :1]
    of_color = pretrained(published).forward_features(gray.expand(-1, 3, -1, -1))
    assert_close(model.forward_features(gray), of_color)
    assert model(gray).shape == (2, 5)
    with pytest.raises(ValueError, match=r'HATNet takes images \(N, 1, H, W\)'):
        model(IMAGE)


def test_another_variant_is_refused(published: Path) -> None:
    with pytest.raises(ValueError, match=r'but the backbone is HAT-Net .tiny.'):
        pretrained(published, arch='tiny')


class Executes:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize('source', ['file', 'url'])
def test_a_checkpoint_is_not_executed(source: str, tmp_path: Path) -> None:
    marker, path = tmp_path / 'executed', tmp_path / 'HAT-Net_Evil.pth'
    torch.save(dict(synthetic_checkpoint(SMALL, num_classes=10), extra=Executes(marker)), path)
    overlay = dict(url=path.as_uri()) | ({'file': str(path)} if source == 'file' else {})
    with pytest.raises((RuntimeError, pickle.UnpicklingError), match='(?i)weights.only'):
        create(pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=tmp_path / 'cache')
    assert not marker.exists()


def test_weights_come_from_an_address(published: Path, expected: tuple, tmp_path: Path) -> None:
    overlay = dict(url=published.as_uri(), num_classes=10)
    model = create(pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=tmp_path)
    assert_close(model.eval()(IMAGE), expected[1])


def test_configurations_are_the_published_ones() -> None:
    names = [f'hatnet_{arch}' for arch in ARCHS]
    assert set(timm.list_models('hatnet_*')) == set(names)
    assert set(timm.list_pretrained('hatnet_*')) == {f'{name}.in1k' for name in names}
    ours = Config.fromfile(ROOT / 'configs' / '_base_' / 'hatnet.py').hatnet
    for arch, name in zip(ARCHS, names):
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.url == ours[arch].init_cfg.checkpoint
        assert (cfg.first_conv, cfg.classifier) == ('backbone.stem.conv1', 'head.fc')
    model = timm.create_model('hatnet_tiny', device='meta')
    assert {'backbone.stem.conv1.weight', 'head.fc.weight'} <= model.state_dict().keys()
    assert sum(p.numel() for p in model.parameters()) == 12_650_152
    assert all(p.is_meta for p in model.parameters())
    feature = model.forward_features(torch.rand(1, 3, 224, 224, device='meta'))
    assert feature.shape == (1, model.num_features, *cfg.pool_size) == (1, 384, 7, 7)
    assert model.forward_head(feature).shape == (1, 1000)
    # As in the pipeline of configs/imagenet_hatnet.py: resize to 256 pixels, crop to 224.
    assert timm.data.resolve_model_data_config(model) == dict(
        input_size=(3, 224, 224),
        interpolation='bicubic',
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        crop_pct=0.875,
        crop_mode='center',
    )


def test_classifier_is_replaced_and_removed() -> None:
    model = create(global_pool='max', drop_rate=0.3).to(torch.float64).train()
    image = IMAGE.double()
    pooled = model.eval().forward_features(image).amax((2, 3))
    model.train().reset_classifier(4)
    assert model.get_classifier().weight.shape == (4, 24)
    assert model.get_classifier().weight.dtype == torch.float64
    assert model(image).shape == (2, 4) and model.num_classes == 4
    assert (model.forward_head(model.forward_features(image), pre_logits=True) == 0).any()
    model.eval()
    torch.testing.assert_close(model(image), model.get_classifier()(pooled))
    model.reset_classifier(0)
    torch.testing.assert_close(model(image), pooled)
    model.reset_classifier(7, 'catavgmax')
    assert model.head_hidden_size == 48 and model(image).shape == (2, 7)
    model.reset_classifier(0, '')
    assert model(image).shape == (2, 24, 2, 3)
    assert create(num_classes=0, global_pool='')(IMAGE).shape == (2, 24, 2, 3)
    model.reset_classifier(4)
    with pytest.raises(ValueError, match=r"num_classes=4: call reset_classifier\(4, 'avg'\)"):
        model(image)


def test_rates_reach_their_layers() -> None:
    model = create(drop_rate=0.1, proj_drop_rate=0.2, drop_path_rate=0.4)
    blocks = [block for stage in model.backbone.stages for block in stage.blocks]
    assert model.head.drop.p == 0.1 and {block.drop.p for block in blocks} == {0.2}
    assert [block.drop_path.rate for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    with pytest.raises(TypeError, match='unknown'):
        create(unknown=1)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(IMAGE).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_gradient_checkpointing_saves_memory_and_gives_the_same(published: Path) -> None:
    def kept() -> tuple[dict[str, Tensor], int]:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            result = gradients(model)
        return result, sum(sizes)

    model = pretrained(published).train()
    expected, everything = kept()
    model.set_grad_checkpointing()
    actual, less = kept()
    torch.testing.assert_close(actual, expected)
    assert less < everything
    model.set_grad_checkpointing(False)
    assert kept()[1] == everything


def test_layers_decay_from_the_head_to_the_stem() -> None:
    from timm.optim import create_optimizer_v2

    model = create()
    optimizer = create_optimizer_v2(model, 'adamw', lr=1.0, weight_decay=0.05, layer_decay=0.5)
    groups = {
        id(p): (group['lr_scale'], group['weight_decay'])
        for group in optimizer.param_groups
        for p in group['params']
    }
    for name, scale in {
        'head.fc': 1.0,
        'backbone.stages.3.blocks.0.mlp.expand': 0.5,
        'backbone.stages.3.downsample.conv': 0.5**2,
        'backbone.stages.2.blocks.0.attn.norm': 0.5**2,
        'backbone.stages.1.blocks.0.mlp.depthwise': 0.5**4,
        'backbone.stem.conv1': 0.5**6,
    }.items():
        weight = model.get_submodule(name).weight
        assert groups[id(weight)] == (scale, 0.0 if weight.ndim == 1 else 0.05), name
    coarse = model.group_matcher(coarse=True)
    names = ['stem.conv1.weight', 'stages.0.blocks.0.mlp.expand.weight', 'stages.3.downsample.conv']
    assert [coarse(f'backbone.{name}') for name in names] == [-1, 0, 3]
    assert coarse('head.fc.bias') == 4


def test_pruning_leaves_no_unused_parameter(published: Path, expected: tuple) -> None:
    model = pretrained(published)
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert_close(model.forward_features(IMAGE), expected[0][1])
    assert model.num_features == model.head_hidden_size == 16
    model.reset_classifier(3, 'avg')
    assert all(gradient.any() for gradient in gradients(model.train()).values())
    whole = pretrained(published)
    whole.prune_intermediate_layers([3], prune_head=False)
    assert_close(whole(IMAGE), expected[1])


def test_scripts_of_timm_know_the_models(tmp_path: Path) -> None:
    """The command in docs/elsewhere.md works, and mmhatnet alone does not import timm."""
    text = (ROOT / 'docs' / 'elsewhere.md').read_text()
    (command,) = re.findall(r'^python -c "(.*)" validate\.py', text, re.M)
    (tmp_path / 'script.py').write_text(
        'import sys, timm\n'
        'assert __name__ == "__main__" and sys.argv == ["script.py", "--option"]\n'
        'print(timm.list_models("hatnet_large"))\n'
    )
    (tmp_path / 'run.py').write_text(
        'import sys\n'
        'before = {"timm": sys.modules.pop("timm")} if "timm" in sys.modules else {}\n'
        'sys.modules["timm"] = None  # makes importing it fail\n'
        'import mmhatnet\n'
        'del sys.modules["timm"]\n'
        'sys.modules.update(before)\n'
        f'{command}\n'
    )
    arguments = (tmp_path / 'run.py', 'script.py', '--option')
    assert Script(*arguments, log=tmp_path / 'log', cwd=tmp_path).wait() == "['hatnet_large']\n"
