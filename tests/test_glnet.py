"""Tests of GLNet alone. ``test_backbones.py`` covers what all networks share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import NETWORKS
from synthetic import synthetic_image, synthetic_value

from mmhatnet import GLNet
from mmhatnet.openmmlab.cls_head import NormLinearClsHead

GOLDEN = NETWORKS['glnet'].golden


@pytest.mark.parametrize(
    'arch',
    ['4g_tklb', *(pytest.param(a, marks=pytest.mark.slow) for a in ('4g', '9g_tklb', 'stl'))],
)
def test_logits_agree_with_golden_figures(arch: str, run_tool, tmp_path: Path) -> None:
    """The classifier comes from a published checkpoint, which the tool converts."""
    network, tklb = NETWORKS['glnet_stl' if 'stl' in arch else 'glnet'], 'tklb' in arch
    backbone = GLNet(arch, out_indices=(3,))
    channels = backbone.out_channels[0]
    shapes = {f'norm.{part}': (channels,) for part in ('weight', 'bias')}
    shapes |= {f'norm.running_{part}': (channels,) for part in ('mean', 'var')}
    for head in ('head', *['tklb_aux_head'] * tklb):
        shapes |= {f'{head}.weight': (1000, channels), f'{head}.bias': (1000,)}
    head = {name: synthetic_value(name, shape) for name, shape in shapes.items()}
    torch.save({'model': network.synthetic_weights(GLNet(arch)) | head}, tmp_path / 'published.pth')
    run_tool(
        'convert_checkpoint', tmp_path / 'published.pth', tmp_path / 'ours.pth', '--classifier'
    )
    weights = torch.load(tmp_path / 'ours.pth')['state_dict']
    classifier = torch.nn.ModuleDict(
        dict(backbone=backbone, head=NormLinearClsHead(1000, channels, dense=tklb))
    ).eval()
    missing, unexpected = classifier.load_state_dict(weights, strict=False)
    assert set(missing) <= {'head.norm.num_batches_tracked'} and unexpected == []
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-6)):
        with torch.no_grad():
            features = backbone.to(dtype)(synthetic_image(1, 3, 65, 97).to(dtype))
            logits = classifier['head'].to(dtype)(features).double().numpy()
        golden = GOLDEN[f'{arch}/1x3x65x97/logits']
        assert np.abs(logits - golden).max() < tolerance * golden.std()


def test_token_labeled_variants_are_the_plain_ones() -> None:
    for name in ('4g', '9g'):
        assert GLNet.resolve_arch(f'{name}_tklb') == GLNet.resolve_arch(name)


def test_both_layers_of_a_dense_head_learn() -> None:
    head = NormLinearClsHead(3, 32, dense=True)
    scores = head((torch.rand(2, 32, 3, 4),))
    torch.nn.functional.cross_entropy(scores, torch.tensor([0, 2])).backward()
    assert all(p.grad.any() for p in head.parameters())


def test_learned_slots_start_with_a_spread() -> None:
    torch.manual_seed(0)
    slots = GLNet('stl_paramslot').stages[0].blocks[0].attn.slots
    assert slots.shape == (1, 64, 96) and slots.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (dict(num_slots=60), 'num_slots=60 must be a square number'),
        (
            dict(mixers=('slots', 'slots', 'mixed', 'map')),
            "must be 'slots', 'map' or 'alternating'",
        ),
        (dict(head_dim=48), 'embed_dims=64 cannot be divided by head_dim=48'),
    ],
)
def test_impossible_settings_are_named(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GLNet(dict(GLNet.ARCHS['4g'], **setting))
