"""Parameters and FLOPs agree with the paper's, and with what another counter sees."""

import sys
from pathlib import Path

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from torch import nn

from mmhatnet import HATNet

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
import get_flops  # noqa: E402

# Parameters (M), and GFLOPs without and with the attention products. The former are the paper's
# and contain the additions of biases; the latter were computed for it and do not.
PUBLISHED = dict(
    tiny=(12.7, 2.0, 2.13),
    small=(25.7, 4.3, 4.55),
    medium=(42.9, 8.3, 8.78),
    large=(63.1, 11.5, 12.07),
)


def load(name: str, **options) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
    return cfg


@pytest.mark.parametrize('arch', PUBLISHED)
def test_agrees_with_the_paper(arch: str) -> None:
    in_channels = dict(tiny=384, large=640).get(arch, 512)
    cfg = load('imagenet_hatnet', model__backbone__arch=arch, model__head__in_channels=in_channels)
    result = get_flops.count(cfg, (224, 224))
    whole, backbone = result['model'], result['backbone']
    figures = (
        round(whole.parameters / 1e6, 1),
        round((whole.layers + bias_additions(arch)) / 1e9, 1),
        round((whole.layers + whole.attention) / 1e9, 2),
    )
    assert figures == PUBLISHED[arch]
    assert whole.parameters - backbone.parameters == 1000 * in_channels + 1000
    assert whole.layers - backbone.layers == 1000 * in_channels
    assert whole.attention == backbone.attention


def bias_additions(arch: str) -> int:
    """The published figures count these, without which the large variant would have 11.4 G."""
    outputs = []
    model = HATNet(arch).eval()
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            layer.register_forward_hook(lambda _, inputs, output: outputs.append(output.numel()))
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    return sum(outputs)


@pytest.mark.parametrize('name', ['retinanet', 'semfpn'])
def test_agrees_with_the_counter_of_mmengine(name: str) -> None:
    """That one sees no attention products, so they must be all that is added to it."""
    cfg = load(f'toy/{name}_hatnet')
    result = get_flops.count(cfg, (72, 120))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = get_flops.build_model(cfg)

        def forward(self, x: torch.Tensor):
            features = self.model.extract_feat(x)
            head = self.model.bbox_head if name == 'retinanet' else self.model.decode_head
            return head(features)

    # 72 x 120 is padded to the size that is really computed; MMSegmentation pads in training only.
    size = (96, 128) if name == 'retinanet' else (72, 120)
    with torch.no_grad():
        analyzer = FlopAnalyzer(Network().eval(), torch.zeros(1, 3, *size))
        operators = analyzer.unsupported_ops_warnings(False).by_operator()
    seen = sum(n for operator, n in operators.items() if operator in ('conv', 'linear', 'matmul'))
    assert result['model'].layers == seen
    assert result['backbone'].layers < seen
    assert 0 < result['backbone'].attention == result['model'].attention


def test_counts_as_many_proposals_and_detections_as_are_kept() -> None:
    def count(proposals: int, detections: int, seed: int):
        torch.manual_seed(seed)
        limits = dict(rpn=dict(max_per_img=proposals), rcnn=dict(max_per_img=detections))
        return get_flops.count(load('toy/maskrcnn_hatnet', model__test_cfg=limits), (64, 96))[
            'model'
        ]

    fewest = count(200, 20, seed=0)
    assert count(200, 20, seed=1) == fewest
    heads = get_flops.build_model(load('toy/maskrcnn_hatnet')).roi_head
    linear = [layer for layer in heads.bbox_head.modules() if isinstance(layer, nn.Linear)]
    per_proposal = sum(layer.weight.numel() for layer in linear)
    assert count(300, 20, seed=2).layers - fewest.layers == 100 * per_proposal
    mask = heads.mask_head
    convs = [conv.conv for conv in mask.convs] + [mask.upsample]
    per_detection = 14 * 14 * sum(conv.weight.numel() for conv in convs)
    per_detection += 28 * 28 * mask.conv_logits.weight.numel()
    assert count(200, 30, seed=3).layers - fewest.layers == 10 * per_detection


def test_command(run_tool, capsys) -> None:
    run_tool('get_flops', ROOT / 'configs' / 'imagenet_hatnet.py', '--shape', '64')
    table = capsys.readouterr().out
    assert '64x64' in table
    backbone, model = (line for line in table.splitlines() if 'M' in line and '│' in line)
    assert '25.23 M' in backbone and '25.74 M' in model


def test_impossible_shape_and_missing_config(run_tool, capsys) -> None:
    config = ROOT / 'configs' / 'imagenet_hatnet.py'
    with pytest.raises(SystemExit):
        run_tool('get_flops', config, '--shape', '64', '64', '3')
    assert 'must be one or two positive numbers' in capsys.readouterr().err
    with pytest.raises(SystemExit, match='There is no config nothing.py'):
        run_tool('get_flops', 'nothing.py')
