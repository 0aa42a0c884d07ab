"""The networks beside HAT-Net as their pages state them, independent of the package's tables.

A network is one entry of ``PEERS``; ``test_peers.py`` does the same with all of them.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from drawn import draw
from torch import Tensor, nn

from mmhatnet import P2T, GLNet
from mmhatnet.backbones.base import Backbone

DATA = Path(__file__).parent / 'data'


def ceil_sizes(height: int, width: int) -> list[tuple[int, int]]:
    return [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]


def torch_default(module: nn.Module) -> float:
    """Of the weights of a convolution or linear layer as PyTorch initialises them."""
    return 1 / math.sqrt(3 * module.weight[0].numel())


@dataclass(frozen=True)
class Peer:
    """What is true of one network.

    Attributes:
        network: Its class.
        features: The golden features in ``tests/data``.
        parameters: Exact number of each variant, with the 1000-class head. The first variant is
            the smallest one: all golden sizes are computed of it alone unless slow tests are.
        head_parameters: Those of the head alone, by the channels of the last stage.
        small: Settings of an instance that takes seconds, with every kind of piece.
        names: Regular expressions and replacements, in turn, from our names to the published ones.
        convolutions: Published names of 1x1 convolutions, which may be linear layers here.
        initial_std: Of a layer's weights after ``init_weights``, by its name and the layer.
        rule: The value of a published tensor, by its name and shape, where it is not drawn as
            those of HAT-Net are; else None.
        constants: Further published tensors that are no weights, by the backbone.
        sizes: Sizes of the four features for an input's height and width.
        without_gradient: Names of ours whose gradient may be 0.
    """

    network: type[Backbone]
    features: str
    parameters: dict[str, int]
    head_parameters: Callable[[int], int]
    small: dict
    names: list[tuple[str, str]]
    convolutions: str
    initial_std: Callable[[str, nn.Module], float]
    rule: Callable[[str, tuple], Tensor | None] = lambda name, shape: None
    constants: Callable[[Backbone], dict[str, Tensor]] = lambda model: {}
    sizes: Callable[[int, int], list[tuple[int, int]]] = ceil_sizes
    without_gradient: str = r'(?!)'

    @property
    def golden(self) -> dict[str, np.ndarray]:
        return np.load(DATA / self.features)

    def build(self, **kwargs) -> Backbone:
        """The small instance with drawn weights."""
        model = self.network(self.small, **kwargs)
        model.load_state_dict(self.drawn(model), strict=False)
        return model

    def published(self, model: nn.Module) -> dict[str, str]:
        """The published name of each of the backbone's tensors."""
        names = {}
        for ours in model.state_dict():
            names[ours] = ours
            for pattern, replacement in self.names:
                names[ours] = re.sub(pattern, replacement, names[ours])
        return names

    def drawn(self, model: Backbone) -> dict[str, Tensor]:
        """A published checkpoint for a backbone, its weights drawn from their published names."""
        weights = model.state_dict()
        checkpoint = {}
        for ours, name in self.published(model).items():
            shape = tuple(weights[ours].shape)
            if re.search(self.convolutions, name) and len(shape) == 2:
                shape += (1, 1)
            checkpoint[name] = self.value(name, shape)
        return checkpoint | self.constants(model) | {'head.bias': torch.zeros(7)}

    def value(self, name: str, shape: tuple) -> Tensor:
        """As for the golden features of all networks, by the first rule that fits."""
        special = self.rule(name, shape)
        if special is not None:
            return special
        if name.endswith('num_batches_tracked'):
            return torch.tensor(0)
        values = draw(name, shape)
        if name.endswith('running_var'):
            values = 1 + 0.1 * values.abs()
        elif name.endswith(('bias', 'running_mean')):
            values = 0.1 * values
        elif values.ndim == 1:
            values = 1 + 0.1 * values
        else:
            values = values / math.sqrt(math.prod(shape[1:]))
        return values.float()


def glnet_rule(name: str, shape: tuple) -> Tensor | None:
    if name.endswith('slot_scale'):  # at its initial value the grouping would hardly show
        return (8 + draw(name, shape)).float()
    if name.endswith('init_slots'):
        return draw(name, shape).float()
    if name.endswith('gamma'):
        return (1 + 0.1 * draw(name, shape)).float()
    if re.search(r'\.(pos_conv|feature_conv\.1|mlp\.[123])\.weight$', name):
        return (0.3 * draw(name, shape) / math.sqrt(math.prod(shape[1:]))).float()
    return None


def glnet_std(name: str, layer: nn.Module) -> float:
    if name.endswith('.qkv'):
        return math.sqrt(2 / sum(layer.weight.shape))
    return 0.02 if name.endswith('.proj') else torch_default(layer)


GLNET = dict(
    network=GLNet,
    features='glnet_features.npz',
    head_parameters=lambda channels: 1002 * channels + 1000,
    convolutions=r'\.(feature_conv\.[02]|mlp\.[03])\.weight$',
    rule=glnet_rule,
)
GLNET_NAMES = [
    (r'^stem\.', 'downsample_layers.0.'),
    (r'^stages\.(\d)\.downsample\.', r'downsample_layers.\1.'),
    (r'\.position\.', '.pos_conv.'),
    (r'\.attn\.temperature$', '.slot_scale'),
    (r'\.attn\.slots$', '.init_slots'),
    (r'\.attn\.conv_in\.', '.feature_conv.0.'),
    (r'\.attn\.depthwise\.', '.feature_conv.1.'),
    (r'\.attn\.conv_out\.', '.feature_conv.2.'),
    (r'\.attn\.among_slots\.', '.relation_mha.'),
    (r'\.attn\.', '.mha_op.'),
    (r'\.qkv\.', '.in_proj_'),
    (r'\.proj\.', '.out_proj.'),
    (r'\.mlp\.expand\.', '.mlp.0.'),
    (r'\.mlp\.depthwise\.', '.mlp.1.'),
    (r'\.mlp\.project\.', '.mlp.3.'),
    (r'\.scale([12])\.', r'.ls\1.'),
]

PEERS = {
    'p2t': Peer(
        network=P2T,
        features='p2t_features.npz',
        parameters=dict(tiny=11_590_840, small=24_079_848, base=36_066_408, large=54_477_096),
        head_parameters=lambda channels: 1000 * channels + 1000,
        small=dict(embed_dims=(8, 16, 16, 24), num_heads=(1, 2, 2, 3), depths=(1, 2, 1, 1)),
        names=[
            (r'^stem\.', 'patch_embed1.'),
            *((rf'^stages\.{t - 1}\.downsample\.', f'patch_embed{t}.') for t in (2, 3, 4)),
            *((rf'^stages\.{t - 1}\.blocks\.', f'block{t}.') for t in (1, 2, 3, 4)),
            *((rf'^stages\.{t - 1}\.positions\.', f'd_convs{t}.') for t in (1, 2, 3, 4)),
            (r'^(patch_embed\d)\.conv\.', r'\1.proj.'),
            (r'\.attn\.(q|kv)\.', r'.attn.\1.0.'),
            (r'\.mlp\.expand\.', '.mlp.fc1.'),
            (r'\.mlp\.depthwise\.', '.mlp.conv.'),
            (r'\.mlp\.project\.', '.mlp.fc2.'),
        ],
        convolutions=r'\.mlp\.fc[12]\.weight$',
        initial_std=lambda name, layer: 0.02 if '.attn.' in name else torch_default(layer),
    ),
    'glnet': Peer(
        **GLNET,
        parameters={'4g': 27_001_593, '9g': 60_010_617, '16g': 106_055_161},
        small=dict(embed_dims=(32, 32, 64, 64), depths=(1, 1, 2, 1), layer_scale=0.1),
        names=GLNET_NAMES,
        initial_std=glnet_std,
    ),
    # Other names in stage 4, whose MLPs are linear layers in the published code.
    'glnet_stl': Peer(
        **GLNET,
        parameters=dict(stl=30_296_786, stl_paramslot=30_481_106),
        small=dict(GLNet.ARCHS['stl_paramslot'], embed_dims=(32, 32, 64, 64), depths=(1, 1, 1, 1)),
        names=[(r'^(stages\.3\..*\.mlp)\.project\.', r'\1.2.'), *GLNET_NAMES],
        initial_std=lambda name, layer: (
            0.02 if re.match(r'stages\.3\..*\.mlp\.', name) else glnet_std(name, layer)
        ),
    ),
}
