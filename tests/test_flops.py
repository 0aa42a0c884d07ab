"""Parameters and FLOPs are the known ones, whatever number of boxes NMS leaves."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmhatnet.flops import count_flops

ROOT = Path(__file__).parents[1]

# Parameters (M), and GFLOPs without and with the attention products. The paper's GFLOPs are 2.0,
# 4.3, 8.3 and 11.5: they omit these products and include the additions of biases.
KNOWN = {
    'hatnet-tiny_8xb128_in1k': (12.65, 1.970, 2.13),
    'hatnet-small_8xb128_in1k': (25.74, 4.293, 4.55),
    'hatnet-medium_8xb128_in1k': (42.93, 8.295, 8.78),
    'hatnet-large_8xb128_in1k': (63.11, 11.440, 12.07),
}


@pytest.mark.parametrize('name', KNOWN)
def test_counts_are_the_known_ones(name: str) -> None:
    cfg = Config.fromfile(ROOT / 'configs' / 'hatnet' / f'{name}.py')
    result = count_flops(cfg, (224, 224))
    parameters, layers, attention = result['model']
    figures = round(layers / 1e9, 3), round((layers + attention) / 1e9, 2)
    assert (round(parameters / 1e6, 2), *figures) == KNOWN[name]
    weights = 1000 * cfg.model.head.in_channels  # of the classifier, and 1000 biases
    assert result['backbone'] == (parameters - weights - 1000, layers - weights, attention)


@pytest.mark.parametrize(
    'limits',
    [
        [(500, 10), (551, 10), (602, 10)],
        pytest.param([(99, 300), (99, 340), (99, 380)], marks=pytest.mark.slow),
    ],
)
def test_counts_as_many_proposals_and_detections_as_are_kept(limits: list) -> None:
    """The counts are the maximum, although random weights give no scores above the threshold."""
    layers = []
    for seed, (proposals, detections) in enumerate(limits):
        cfg = Config.fromfile(ROOT / 'configs' / 'toy' / 'maskrcnn_hatnet_toy.py')
        cfg.model.test_cfg.rpn.max_per_img = proposals
        cfg.model.test_cfg.rcnn.update(max_per_img=detections, score_thr=0.9)
        torch.manual_seed(seed)
        layers.append(count_flops(cfg, (64, 96))['model'][1])
    assert layers[2] - layers[1] == layers[1] - layers[0] > 0


def test_command(run_tool, capsys) -> None:
    run_tool('get_flops', ROOT / 'configs' / 'imagenet_hatnet.py', '--shape', '64', '32')
    table = capsys.readouterr().out
    assert '64x32' in table
    backbone, model = (line for line in table.splitlines() if ' M ' in line)
    assert '25.23 M' in backbone and '25.74 M' in model


def test_impossible_shape_and_missing_config(run_tool, capsys) -> None:
    with pytest.raises(SystemExit):
        run_tool('get_flops', ROOT / 'configs' / 'imagenet_hatnet.py', '--shape', '64', '0')
    assert 'argument --shape: 0 must be at least 1' in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r'There is no config nothing\.py'):
        run_tool('get_flops', 'nothing.py')
