"""The tables of docs/networks agree with the backbones and with the reference implementations."""

import re
from pathlib import Path

import pytest
import torch
from data.make_features import NETWORKS

from mmhatnet import P2T, GLNet, HATNet, OmniNet, ShuntedTransformer, STViT

PAGES = Path(__file__).parents[1] / 'docs' / 'networks'
BACKBONES = dict(
    **dict(hatnet=HATNet, p2t=P2T, shunted=ShuntedTransformer),
    **dict(stvit=STViT, glnet=GLNet, omninet=OmniNet),
)


def read_table(network: str) -> dict[str, dict[str, str]]:
    """Returns the first table of a page: the rows of each variant, by their labels.

    Variants may share a column, and then share its cells.
    """
    text = (PAGES / f'{network}.md').read_text()
    table = text[text.index('\n| ') :].strip().partition('\n\n')[0]
    header, _, *rows = ([c.strip() for c in line.split('|')[1:-1]] for line in table.splitlines())
    return {
        variant: {label: cells[column] for label, *cells in rows}
        for column, variants in enumerate(header[1:])
        for variant in re.findall(r'`(\w+)`', variants)
    }


@pytest.mark.parametrize('network', BACKBONES)
def test_sizes_are_those_of_the_backbone(network: str) -> None:
    backbone, table = BACKBONES[network], read_table(network)
    assert set(table) == set(backbone.ARCHS) == set(NETWORKS[network].variants)
    for variant, rows in table.items():
        settings = backbone.resolve_arch(variant)
        if network == 'omninet':
            channels = settings['embed_dims']
            assert rows['Channels, heads'] == f'{channels}, {channels // settings["head_dim"]}'
            continue
        expected = {'Blocks per stage': settings['depths']}
        if network != 'shunted':  # its variants have the same channels
            expected['Channels of the stages'] = settings['embed_dims']
        for label, sizes in expected.items():
            assert rows[label] == ', '.join(map(str, sizes)), (variant, label)


@pytest.mark.parametrize('network', [name for name in BACKBONES if name != 'hatnet'])
def test_parameters_are_those_of_the_reference(network: str) -> None:
    for variant, rows in read_table(network).items():
        with torch.device('meta'):
            model = NETWORKS[network].build(variant)
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert f'{parameters:,}' in rows['Parameters with 1000 classes'], variant
