"""The networks as their pages state them, independently of the package's tables.

A network is one entry of ``NETWORKS``. ``test_backbones.py`` runs the same tests for all of them.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from synthetic import published_shapes, synthetic_value
from torch import Tensor, nn

from mmhatnet import P2T, GLNet, HATNet, OmniNet, ShuntedTransformer, STViT
from mmhatnet.backbones.base import Backbone

DATA = Path(__file__).parent / 'data'


def ceil_sizes(height: int, width: int) -> list[tuple[int, int]]:
    return [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]


def torch_default(module: nn.Module) -> float:
    """Returns the standard deviation of a layer's weights by PyTorch's default initialization."""
    return 1 / math.sqrt(3 * module.weight[0].numel())


@dataclass(frozen=True)
class Network:
    """The properties of one network, which tests check.

    Attributes:
        network: Its class.
        features: The file of golden features in ``tests/data``.
        parameters: The exact number for each variant, with the 1000-class head. The first variant
            is the smallest one. Golden features of the others are slow tests.
        head_parameters: The number for the head alone, from the channels of the last stage.
        small: Settings of a small instance with every kind of layer.
        names: Regular expressions and replacements that turn our names into published ones.
        convolutions: Regular expression for published 1x1 convolutions, which may be linear layers
            in this package.
        initial_std: The standard deviation of a layer's weights after ``init_weights``, from its
            name and the layer.
        constants: Makes, from the backbone, published tensors that have no counterpart in it.
        sizes: The sizes of the four features, from the height and width of the input.
        noise: Arguments that make training random.
        wrong_heads: A change of ``small`` in which the heads do not divide the channels, and the
            message.
        arguments: Arguments with which there are four features.
        strides: The strides of the four features.
        feature_names: Their names in the file of golden features.
        rates: The drop path rate of each block of ``small``, in units of the last one's. None means
            that it grows linearly.
    """

    network: type[Backbone]
    features: str
    parameters: dict[str, int]
    head_parameters: Callable[[int], int]
    small: dict
    names: list[tuple[str, str]]
    convolutions: str
    initial_std: Callable[[str, nn.Module], float]
    constants: Callable[[Backbone], dict[str, Tensor]] = lambda model: {}
    sizes: Callable[[int, int], list[tuple[int, int]]] = ceil_sizes
    noise: dict = field(default_factory=lambda: dict(drop_path_rate=0.5))
    wrong_heads: tuple[dict, str] = (
        dict(head_dim=48),
        'embed_dims=[0-9]+ cannot be divided by head_dim=48',
    )
    arguments: dict = field(default_factory=dict)
    strides: tuple[int, ...] = (4, 8, 16, 32)
    feature_names: tuple[str, ...] = ('stage0', 'stage1', 'stage2', 'stage3')
    rates: list[float] | None = None

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of the four features of ``small``."""
        return self.small['embed_dims']

    @property
    def golden(self) -> dict[str, np.ndarray]:
        return np.load(DATA / self.features)

    def build(self, **kwargs) -> Backbone:
        """Builds the small instance with synthetic weights."""
        model = self.network(self.small, **{**self.arguments, **kwargs})
        model.load_state_dict(self.synthetic_weights(model), strict=False)
        return model

    def published(self, model: nn.Module) -> dict[str, str]:
        """Returns the published name of each of the backbone's tensors."""
        names = {}
        for ours in model.state_dict():
            names[ours] = ours
            for pattern, replacement in self.names:
                names[ours] = re.sub(pattern, replacement, names[ours])
        return names

    def published_shape(self, name: str, tensor: Tensor) -> tuple[int, ...]:
        """Returns the published shape of a tensor: a convolution's where ours is a linear layer."""
        linear = tensor.ndim == 2 and re.search(self.convolutions, name)
        return (*tensor.shape, 1, 1) if linear else tuple(tensor.shape)

    def in_our_layout(self, value: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Returns a published tensor as this package has it."""
        return value.reshape(shape)

    def synthetic_weights(self, model: Backbone) -> dict[str, Tensor]:
        """Returns a published checkpoint for a backbone, with synthetic weights."""
        weights = model.state_dict()
        checkpoint = {}
        for ours, name in self.published(model).items():
            checkpoint[name] = synthetic_value(name, self.published_shape(name, weights[ours]))
        return checkpoint | self.constants(model) | {'head.bias': torch.zeros(7)}


class OmniNetwork(Network):
    """A network whose published tensors are in the layouts of JAX."""

    @property
    def channels(self) -> tuple[int, ...]:
        return (self.small['embed_dims'],) * 4

    def published_shape(self, name: str, tensor: Tensor) -> tuple[int, ...]:
        head_dim = 64 if tensor.shape[0] % 64 == 0 else self.small['head_dim']
        if name.startswith('embedding/kernel'):
            out, channels, *sides = tensor.shape
            return (*sides, channels, out)
        if match := re.search('/(query|key|value|out)/(kernel|bias)$', name):
            heads = (tensor.shape[0] // head_dim, head_dim)
            if match[2] == 'bias':
                return tuple(tensor.shape) if match[1] == 'out' else heads
            return (*heads, len(tensor)) if match[1] == 'out' else (len(tensor), *heads)
        return tuple(tensor.T.shape) if name.endswith('kernel') else tuple(tensor.shape)

    def in_our_layout(self, value: Tensor, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 4:
            return value.movedim((2, 3), (1, 0))
        return value.reshape(*shape[::-1]).T if len(shape) == 2 else value.reshape(shape)


def shunted_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """The stem's last convolution rounds down, but never to zero."""
    sides = [[max((side + 1) // 2 // 2, 1)] for side in (height, width)]
    for side in sides:
        for _ in range(3):
            side.append((side[-1] + 1) // 2)
    return list(zip(*sides))


def glnet_std(name: str, layer: nn.Module) -> float:
    if name.endswith('.qkv'):
        return math.sqrt(2 / sum(layer.weight.shape))
    return 0.02 if name.endswith('.proj') else torch_default(layer)


GLNET = dict(
    network=GLNet,
    features='glnet_features.npz',
    head_parameters=lambda channels: 1002 * channels + 1000,
    convolutions=r'\.(feature_conv\.[02]|mlp\.[03])\.weight$',
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

NETWORKS = {
    'hatnet': Network(
        network=HATNet,
        features='hatnet_features.npz',
        parameters=dict(tiny=12_650_152, small=25_738_568, medium=42_925_960, large=63_108_936),
        head_parameters=lambda channels: 1000 * channels + 1000,
        # Windows that the edge cuts, both kinds of attention, two kernel sizes.
        small=dict(
            embed_dims=(8, 16, 16, 24),
            head_dim=8,
            depths=(1, 2, 1, 1),
            kernel_sizes=(3, 5, 3, 3),
        ),
        names=[
            (r'^stem\.conv1\.', 'patch_embed.0.'),
            (r'^stem\.norm\.', 'patch_embed.1.'),
            (r'^stem\.conv2\.', 'patch_embed.3.'),
            *((rf'^stages\.{t - 1}\.downsample\.', f'ds{t}.') for t in (2, 3, 4)),
            (r'^stages\.(\d)\.blocks\.', r'blocks.\1.'),
            (r'\.attn\.global_norm\.', '.attn.grid_norm.'),
            (r'\.attn\.global_q\.', '.attn.q.'),
            (r'\.attn\.pooled_norm\.', '.attn.ds_norm.'),
            (r'\.attn\.pooled_kv\.', '.attn.kv.'),
            (r'\.mlp\.norm\.', '.conv.conv1.0.'),
            (r'\.mlp\.expand\.', '.conv.conv1.1.'),
            (r'\.mlp\.depthwise\.', '.conv.conv2.0.'),
            (r'\.mlp\.project\.', '.conv.conv3.0.'),
            (r'\.mlp\.out_norm\.', '.conv.conv3.1.'),
        ],
        convolutions=r'\.weight$',
        initial_std=lambda name, layer: 0.02,
        # The published code never uses the output of these.
        constants=lambda model: {
            name: synthetic_value(name, tuple(meta.shape))
            for name, meta in published_shapes(model.settings, 0).items()
            if '.proj_norm.' in name and int(name.split('.')[1]) < len(model.stages)
        },
        noise=dict(drop_path_rate=0.5, drop_rate=0.1),
    ),
    'p2t': Network(
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
        wrong_heads=(
            dict(num_heads=(1, 3, 2, 3)),
            'embed_dims=16 cannot be divided by num_heads=3',
        ),
    ),
    'shunted': Network(
        network=ShuntedTransformer,
        features='shunted_features.npz',
        parameters=dict(tiny=11_553_576, small=22_401_256, base=39_614_376),
        head_parameters=lambda channels: 1000 * channels + 1000,
        small=dict(embed_dims=(16, 16, 32, 24), head_dim=8, depths=(1, 2, 1, 1), stem_convs=1),
        names=[
            (r'^stem\.convs\.', 'patch_embed1.conv.'),
            (r'^stem\.norm\.', 'patch_embed1.norm.'),
            *((rf'^stages\.{t - 1}\.downsample\.', f'patch_embed{t}.') for t in (2, 3, 4)),
            *((rf'^stages\.{t - 1}\.blocks\.', f'block{t}.') for t in (1, 2, 3, 4)),
            *((rf'^stages\.{t - 1}\.norm\.', f'norm{t}.') for t in (1, 2, 3, 4)),
            (r'^(patch_embed[2-4])\.conv\.', r'\1.proj.'),
            (r'\.coarse\.(\w+)\.', r'.\g<1>1.'),
            (r'\.fine\.(\w+)\.', r'.\g<1>2.'),
            (r'\.attn\.conv', '.attn.sr'),
            (r'\.attn\.depthwise', '.attn.local_conv'),
            (r'\.mlp\.expand\.', '.mlp.fc1.'),
            (r'\.mlp\.depthwise\.', '.mlp.dwconv.dwconv.'),
            (r'\.mlp\.project\.', '.mlp.fc2.'),
        ],
        convolutions=r'(?!)',
        initial_std=lambda name, layer: (
            math.sqrt(2 * layer.groups / (len(layer.weight) * layer.weight[0, 0].numel()))
            if isinstance(layer, nn.Conv2d)
            else 0.02
        ),
        sizes=shunted_sizes,
        wrong_heads=(dict(head_dim=12), 'embed_dims=16 cannot be divided by head_dim=12'),
    ),
    'stvit': Network(
        network=STViT,
        features='stvit_features.npz',
        parameters=dict(small=25_495_624, base=51_691_288, large=94_971_096),
        head_parameters=lambda channels: 1024 * channels + 1024 + 2 * 1024 + 1000 * 1024 + 1000,
        small=dict(
            embed_dims=(8, 16, 16, 24),
            num_heads=(1, 2, 2, 3),
            depths=(1, 2, 1, 1),
            layer_scales=(None, None, 1e-6, 1e-6),
        ),
        names=[
            (r'^stem\.', 'patch_embed.proj.'),
            *((rf'^stages\.{s + 1}\.downsample\.', f'layers.{s}.downsample.') for s in range(3)),
            (r'\.downsample\.conv\.', '.downsample.proj.0.'),
            (r'\.downsample\.norm\.', '.downsample.proj.1.'),
            (r'^stages\.', 'layers.'),
            (r'\.position\.', '.pos_embed.conv.'),
            (r'\.norm1\.', '.norm1.norm.'),
            (r'\.attn\.', '.attn.stoken_refine.'),
            (r'\.scale([12])\.gamma$', r'.gamma_\1'),
            (r'\.mlp\.expand\.', '.mlp2.fc1.'),
            (r'\.mlp\.depthwise\.', '.mlp2.conv.conv.'),
            (r'\.mlp\.project\.', '.mlp2.fc2.'),
        ],
        convolutions=r'(qkv|proj|fc[12])\.weight$',
        initial_std=lambda name, layer: torch_default(layer),
        wrong_heads=(
            dict(num_heads=(1, 3, 2, 3)),
            'embed_dims=16 cannot be divided by num_heads=3',
        ),
        constants=lambda model: {
            f'layers.{stage}.blocks.{block}.attn.{kernels}.weights': torch.eye(9).view(9, 1, 3, 3)
            for stage, part in enumerate(model.stages)
            for block in range(len(part.blocks))
            for kernels in ('unfold', 'fold')
        },
    ),
    'glnet': Network(
        **GLNET,
        parameters={'4g': 27_001_593, '9g': 60_010_617, '16g': 106_055_161},
        small=dict(embed_dims=(32, 32, 64, 64), depths=(1, 1, 2, 1), layer_scale=0.1),
        names=GLNET_NAMES,
        initial_std=glnet_std,
    ),
    # Other names in stage 4, whose MLPs are linear layers in the published code.
    'glnet_stl': Network(
        **GLNET,
        parameters=dict(stl=30_296_786, stl_paramslot=30_481_106),
        small=dict(GLNet.ARCHS['stl_paramslot'], embed_dims=(32, 32, 64, 64), depths=(1, 1, 1, 1)),
        names=[(r'^(stages\.3\..*\.mlp)\.project\.', r'\1.2.'), *GLNET_NAMES],
        initial_std=lambda name, layer: (
            0.02 if re.match(r'stages\.3\..*\.mlp\.', name) else glnet_std(name, layer)
        ),
    ),
    'omninet': OmniNetwork(
        network=OmniNet,
        features='omninet_features.npz',
        parameters=dict(tiny=5_717_032, small=22_049_896, base=86_566_120),
        head_parameters=lambda channels: 1000 * channels + 1000,
        # Three omni blocks, and a layer that fills no partition.
        small=dict(embed_dims=16, head_dim=8, depth=13),
        names=[
            (r'^stem\.patch\.', 'embedding.'),
            (r'^stem\.class_token', 'cls'),
            (r'^stem\.position', 'Transformer.posembed_input.pos_embedding'),
            (r'^stages\.3\.norm\.', 'Transformer.encoder_norm.'),
            *(
                (rf'^stages\.{s}\.blocks\.{i}\.', f'Transformer.encoder_block_{4 * s + i}.')
                for s in range(4)
                for i in range(3)
            ),
            *(
                (rf'^stages\.{s}\.blocks\.3\.', f'Transformer.omni_encoder_block_{4 * s + 2}.')
                for s in range(3)
            ),
            *((rf'\.norm{i + 1}\.', f'.LayerNorm_{i}.') for i in range(3)),
            (r'(LayerNorm_\d|encoder_norm)\.weight', r'\1.scale'),
            (r'\.weight$', '.kernel'),
            (r'\.attn\.', '.MultiHeadAttention_0.'),
            *((rf'\.{name[0]}\.', f'.{name}.') for name in ('query', 'key', 'value')),
            (r'\.proj\.', '.out.'),
            (r'\.mlp\.expand\.', '.MlpBlock_0.Dense_0.'),
            (r'\.mlp\.project\.', '.MlpBlock_0.Dense_1.'),
            (r'\.', '/'),
        ],
        convolutions=r'(?!)',
        initial_std=lambda name, layer: math.sqrt(
            1 / 768 if isinstance(layer, nn.Conv2d) else 2 / sum(layer.weight.shape)
        ),
        sizes=lambda height, width: [(-(-height // 16), -(-width // 16))] * 4,
        noise=dict(drop_path_rate=0.5, drop_rate=0.1),
        arguments=dict(out_indices=(0, 1, 2, 3)),
        strides=(16,) * 4,
        feature_names=('partition0', 'partition1', 'partition2', 'map'),
        # An omni block has the rate of the layer before it.
        rates=[layer / 12 for layer in (0, 1, 2, 2, 4, 5, 6, 6, 8, 9, 10, 10, 12)],
    ),
}
