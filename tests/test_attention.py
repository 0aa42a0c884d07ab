"""Attention maps show the weights that attention uses, at the requested position."""

import re
from pathlib import Path

import mmcv
import pytest
import torch
from mmengine.config import Config
from predicting import random_job
from synthetic import standard_normal
from torch import Tensor, nn

from mmhatnet import HATNet
from mmhatnet.attention_figure import attention_of_image, frame
from mmhatnet.attention_maps import AttentionMap, attention_maps, recorded_inputs
from mmhatnet.backbones.hatnet import HierarchicalAttention, PlainAttention, pointwise


def with_uneven_weights(module: nn.Module) -> nn.Module:
    """Sets weights that are large enough for attention to be far from even."""
    for name, weight in module.named_parameters():
        scale = weight.shape[1] ** 0.5 if weight.ndim == 2 else 1
        weight.data = standard_normal(name, tuple(weight.shape)).float() / scale
    return module.eval()


def average(found: AttentionMap, values: Tensor, head_dim: int) -> Tensor:
    """Averages values (h, w, C) with the weights of each head: (C,)."""
    top, left = found.top, found.left
    height, width = found.weights.shape[1:]
    attended = values if found.cell > 1 else values[top : top + height, left : left + width]
    assert attended.shape[:2] == (height, width)
    heads = attended.unflatten(-1, (-1, head_dim))
    return torch.einsum('nhw,hwnd->nd', found.weights, heads).flatten()


@torch.no_grad()
@pytest.mark.parametrize('size', [(8, 12), (7, 10), (3, 2)], ids=str)
def test_weights_reproduce_hierarchical_attention(size: tuple[int, int]) -> None:
    attn = with_uneven_weights(HierarchicalAttention(24, 8, window=4, pooling=2))
    x = standard_normal('x', (1, 24, *size)).float()
    values = attn.qkv(attn.norm(x)[0].permute(1, 2, 0)).chunk(3, dim=-1)[2]
    maps = [[attention_maps(attn, x, i, j) for j in range(size[1])] for i in range(size[0])]

    def output(scope: str, values: Tensor) -> Tensor:
        rows = [torch.stack([average(m[scope], values, 8) for m in row]) for row in maps]
        return torch.stack(rows).permute(2, 0, 1)[None]

    y = attn.global_norm(x + output('local', values))
    pooled = nn.functional.avg_pool2d(y, 2, ceil_mode=True)
    values = attn.pooled_kv(attn.pooled_norm(pooled)[0].permute(1, 2, 0)).chunk(2, dim=-1)[1]
    torch.testing.assert_close(pointwise(attn.proj, y + output('global', values)), attn(x))
    assert maps[0][0]['local'].weights.std() > 0.01, 'even weights would prove nothing'


@torch.no_grad()
def test_weights_reproduce_plain_attention() -> None:
    attn = with_uneven_weights(PlainAttention(24, 8))
    x = standard_normal('x', (1, 24, 5, 7)).float()
    values = attn.qkv(attn.norm(x)[0].permute(1, 2, 0)).chunk(3, dim=-1)[2]
    for row, column in (0, 0), (3, 6):
        maps = attention_maps(attn, x, row, column)
        assert list(maps) == ['global']
        out = attn.proj(average(maps['global'], values, 8))
        torch.testing.assert_close(out, attn(x)[0, :, row, column])


def test_recorded_inputs_are_those_of_the_forward_pass() -> None:
    arch = dict(embed_dims=(8, 16, 16, 16), head_dim=8, depths=(1, 2, 1, 1))
    model, image, outputs = HATNet(arch).eval(), torch.rand(1, 3, 70, 90), {}
    modules = [stage.blocks[-1].attn for stage in model.stages]
    for module in modules:
        module.register_forward_hook(lambda module, _, out: outputs.update({module: out}))
    with recorded_inputs(modules) as inputs:
        model(image)
    recorded = dict(inputs)
    model(torch.rand(1, 3, 64, 64))
    assert inputs == recorded, 'inputs are recorded after the context'
    shapes = [tuple(recorded[module].shape[1:]) for module in modules]
    assert shapes == [(8, 18, 23), (16, 9, 12), (16, 5, 6), (16, 3, 3)]
    model(image)
    for module in modules:
        torch.testing.assert_close(outputs[module], module.forward(recorded[module]))


@pytest.mark.parametrize('job', ['maskrcnn', 'semfpn', 'imagenet'])
def test_maps_lie_around_the_point(job: str, toy_data: Path, tmp_path: Path) -> None:
    """The model sees a resized image, and the maps still cover the original one."""
    config, checkpoint = random_job(job, tmp_path)
    image = mmcv.imread(str(next(toy_data.glob('data/toy/coco/val2017/*.jpg'))))
    path = tmp_path / 'large.png'
    mmcv.imwrite(mmcv.imresize(image, (300, 200)), str(path))
    cfg = Config.fromfile(config)
    stages = attention_of_image(cfg, str(checkpoint), str(path), (290, 30), device='cpu')
    assert [list(maps) for maps, _ in stages] == [['local', 'global']] * 3 + [['global']]
    for maps, pixels in stages:
        for scope, found in maps.items():
            torch.testing.assert_close(found.weights.sum((1, 2)), torch.ones(len(found.weights)))
            (left, top), (right, bottom) = frame(found, pixels)
            assert left <= 290 < right and top <= 30 < bottom
            if scope == 'global':
                assert left == top == 0 and right >= 299 and bottom >= 199


@pytest.mark.parametrize('options', [[], ['--heads', '--block', '0']])
def test_command(options: list[str], run_tool, toy_data: Path, tmp_path: Path) -> None:
    job = random_job('imagenet', tmp_path)
    image = next(toy_data.glob('data/toy/imagenet/val/*/*.*'))
    out = tmp_path / 'new' / 'attention.png'
    run_tool('visualize_attention', *job, image, '--point', 9, 5, '--out', out, *options)
    height, width = mmcv.imread(str(out)).shape[:2]
    assert width <= 2100 and height <= 2700, 'the figure does not fit on a page'


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--point', '5', '500'], r'--point 5 500 is outside of .*\.\w+, which is \d+ x \d+'),
        (
            ['--point', '5', '5', '--block', '1'],
            r'--block 1: the stages have \[1, 1, 1, 1\] blocks',
        ),
        (
            ['--point', '5', '5', '--out', 'a.txt'],
            r'--out a\.txt must end with one of \.pdf, \.png',
        ),
    ],
)
def test_bad_input_is_named(
    args: list, message: str, run_tool_captured, toy_data, tmp_path: Path
) -> None:
    job = random_job('imagenet', tmp_path)
    image = next(toy_data.glob('data/toy/imagenet/val/*/*.*'))
    result = run_tool_captured('visualize_attention', *job, image, *args)
    assert result.returncode and re.search(message, result.stderr)


def test_another_backbone_is_refused(run_tool_captured, toy_data: Path, tmp_path: Path) -> None:
    backbone = dict(type='LeNet5', num_classes=-1)
    config, checkpoint = random_job('imagenet', tmp_path, backbone=backbone, in_channels=120)
    assert Config.fromfile(config).model.backbone == backbone
    image = next(toy_data.glob('data/toy/imagenet/val/*/*.*'))
    result = run_tool_captured(
        'visualize_attention', config, checkpoint, image, '--point', '1', '1'
    )
    assert result.returncode and 'has no HATNet' in result.stderr
