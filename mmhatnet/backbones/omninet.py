"""The OmniNet backbone: a plain ViT in which some blocks attend over the tokens of several layers.

Tay et al., "OmniNet: Omnidirectional Representations from Transformers", ICML 2021, arXiv
2103.01075. Published code: https://github.com/google-research/scenic, projects/omninet.

The file reads from the pieces of a block to the network.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmhatnet.backbones.base import Backbone, Stage, check_rate
from mmhatnet.backbones.layers import CeilPatchConv, DropPath, multi_head_attention
from mmhatnet.checkpoints.keys import Published

PATCH = 16
# Positions along a side of the grid on which the position embeddings are learned.
GRID = 14
POOLS = ('max', 'last', 'top')


def linear(in_channels: int, out_channels: int, bias_std: float = 0.0) -> nn.Linear:
    """A linear layer with the published initialization."""
    module = nn.Linear(in_channels, out_channels)
    nn.init.xavier_uniform_(module.weight)
    nn.init.normal_(module.bias, std=bias_std)
    return module


class Attention(nn.Module):
    """Multi-head softmax attention: queries (N, L, C), others (N, M, C) to (N, L, C)."""

    def __init__(self, channels: int, head_dim: int, drop_rate: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.drop_rate = drop_rate
        self.q = linear(channels, channels)
        self.k = linear(channels, channels)
        self.v = linear(channels, channels)
        self.proj = linear(channels, channels)

    def forward(self, queries: Tensor, others: Tensor) -> Tensor:
        return self.proj(self.attend(self.q(queries), self.k(others), self.v(others)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout = self.drop_rate if self.training else 0.0
        return multi_head_attention(q, k, v, self.head_dim, dropout=dropout)


class PerformerAttention(Attention):
    """Attention whose weights are products of positive features, in linear time.

    The features are ReLU + 0.001 of queries and keys, the published default.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # In 16 bits sums over all tokens are too coarse.
        with torch.autocast(q.device.type, enabled=False):
            precise = torch.promote_types(q.dtype, torch.float32)
            heads = (t.to(precise).unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))
            queries, keys, values = (t.transpose(1, 2) for t in heads)
            queries, keys = queries.relu() + 0.001, keys.relu() + 0.001
            total = queries @ keys.sum(dim=2).unsqueeze(-1)
            out = queries @ (keys.mT @ values) / total
            return out.transpose(1, 2).flatten(2).to(q.dtype)


class MLP(nn.Module):
    """Expansion and projection of each token: (N, L, C) to (N, L, C)."""

    def __init__(self, channels: int, ratio: int, drop_rate: float) -> None:
        super().__init__()
        self.expand = linear(channels, channels * ratio, bias_std=1e-6)
        self.project = linear(channels * ratio, channels, bias_std=1e-6)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.drop(F.gelu(self.expand(x), approximate='tanh')))


class Block(nn.Module):
    """Attention and MLP, each with a residual connection: (N, L, C) to (N, L, C)."""

    def __init__(
        self, channels: int, attn: Attention, mlp: MLP, drop_rate: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = mlp
        self.drop = nn.Dropout(drop_rate)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm1(x)
        x = self.add(x, self.attn(z, z))
        return self.add(x, self.mlp(self.norm2(x)))

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + self.drop_path(self.drop(branch))


class OmniBlock(Block):
    """A block over the tokens of several layers, whose result is added to the last of them.

    Args:
        num_layers (int): The number of layers.
        pool (str): 'max', 'last' or 'top', as OmniNet defines them.
        pool_after_attention (bool): Whether to take the maximum before the MLP.
        channels, attn, mlp, drop_rate, drop_path: As in a block.
    """

    def __init__(
        self,
        num_layers: int,
        pool: str,
        pool_after_attention: bool,
        channels: int,
        attn: Attention,
        mlp: MLP,
        drop_rate: float,
        drop_path: float,
    ) -> None:
        super().__init__(channels, attn, mlp, drop_rate, drop_path)
        self.num_layers = num_layers
        self.pool = pool
        self.pool_after_attention = pool_after_attention
        # Norms are numbered as published: of queries, of keys and values, of the MLP's input.
        self.norm3 = nn.LayerNorm(channels, eps=1e-6) if pool == 'top' else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, num_layers * L, C), the layers one after the other, to (N, L, C)."""
        layers = (self.num_layers, -1)
        last = x.unflatten(1, layers)[:, -1]
        if self.norm3 is not None:
            y = self.add(last, self.attn(self.norm1(last), self.norm2(x)))
            return last + self.add(y, self.mlp(self.norm3(y)))
        z = self.norm1(x)
        if self.pool == 'last':
            y = self.add(last, self.attn(z.unflatten(1, layers)[:, -1], z))
            return last + self.add(y, self.mlp(self.norm2(y)))
        y = self.add(x, self.attn(z, z))
        if self.pool_after_attention:
            y = y.unflatten(1, layers).amax(dim=1)
            return last + self.add(y, self.mlp(self.norm2(y)))
        return last + self.add(y, self.mlp(self.norm2(y))).unflatten(1, layers).amax(dim=1)


class PatchEmbedding(nn.Module):
    """Patches as tokens, with position embeddings and, if wanted, a class token before them."""

    def __init__(
        self, in_channels: int, channels: int, class_token: bool, drop_rate: float
    ) -> None:
        super().__init__()
        self.patch = CeilPatchConv(in_channels, channels, PATCH)
        # A normal distribution that is cut at two standard deviations has 0.88 of its spread.
        std = 1 / math.sqrt(in_channels * PATCH**2) / 0.87962566103423978
        nn.init.trunc_normal_(self.patch.weight, std=std, a=-2 * std, b=2 * std)
        self.patch.bias = nn.Parameter(torch.zeros(channels))
        self.position = nn.Parameter(torch.empty(1, GRID**2 + class_token, channels))
        nn.init.normal_(self.position, std=0.02)
        self.class_token = nn.Parameter(torch.zeros(1, 1, channels)) if class_token else None
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C_in, H, W) to tokens (N, L, C), and the map of patches (N, C, h, w)."""
        patches = self.patch(x)
        tokens = patches.flatten(2).mT
        num_others = self.position.shape[1] - GRID**2
        position = self.resize(self.position[:, num_others:], *patches.shape[2:])
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
            position = torch.cat([self.position[:, :num_others], position], dim=1)
        return self.drop(tokens + position), patches

    @staticmethod
    def resize(position: Tensor, height: int, width: int) -> Tensor:
        """Position embeddings (1, GRID * GRID, C) to (1, height * width, C)."""
        # An export would be fixed to one side of this condition. Equal sizes change no value.
        if not isinstance(height, torch.SymInt) and (height, width) == (GRID, GRID):
            return position
        grid = position.to(torch.promote_types(position.dtype, torch.float32))
        grid = grid.mT.unflatten(2, (GRID, GRID))
        grid = F.interpolate(grid, size=(height, width), mode='bicubic', align_corners=False)
        return grid.flatten(2).mT.to(position.dtype)


class Partition(Stage):
    """Blocks, and a last one over the outputs of all of them: (N, L, C) to (N, L, C)."""

    def forward(self, x: Tensor) -> Tensor:
        states: list[Tensor] = []
        for block in self.blocks:
            if isinstance(block, OmniBlock):
                x = torch.cat(states, dim=1)
            x = self.call(block, x)
            states.append(x)
        return x


class LastStage(Stage):
    """The blocks that fill no partition, possibly none, and a norm: (N, L, C) to (N, L, C)."""

    def __init__(self, channels: int, blocks: Sequence[nn.Module], with_cp: bool) -> None:
        super().__init__(nn.Identity(), blocks, with_cp)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


def partitions(depth: int, partition: int, skip: bool) -> list[list[int]]:
    """Returns the layers that share an omni block, and in the last list those that fill none."""
    layers: list[list[int]] = [[]]
    layer = 0
    while layer < depth:
        layers[-1].append(layer)
        if len(layers[-1]) == partition - 1:
            layers.append([])
            layer += skip  # the omni block stands for the layer after it
        layer += 1
    return layers


def to_torch(name: str, tensor: Tensor) -> Tensor:
    """Brings a tensor of the published code, with its name there, into PyTorch's layout.

    Its heads are an axis of their own, and inputs come before outputs.
    """
    if name.endswith('bias'):
        return tensor.flatten()
    if not name.endswith('kernel'):
        return tensor
    if name.startswith('embedding') and tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)
    return tensor.flatten(0, -2).mT if name.endswith('out/kernel') else tensor.flatten(1).mT


@MODELS.register_module()
class OmniNet(Backbone):
    """OmniNet as a backbone with one feature, of stride 16.

    It takes any input size: the feature has ceil(H / 16) x ceil(W / 16) positions, and the position
    embeddings of 14 x 14 are resized. ``SimpleFeaturePyramid`` makes features of strides 4 to 32
    of it. Its time grows with the square of the number of positions.

    The stages of ``Backbone`` are the partitions here: some blocks and an omni block, which attends
    over the outputs of all of them together. The last stage has the blocks that fill no partition,
    possibly none, and the last norm. The defaults of the settings are those that describe the
    paper. Other single settings agree with the published code as well; their combinations follow
    from docs/networks/omninet.md.

    ``Backbone`` documents the other arguments and the attributes.

    Args:
        arch (str | dict): 'tiny', 'small', 'base' (DeiT's sizes, because the authors published
            none for images), or a dict of settings: ``embed_dims`` (channels), ``depth`` (layers,
            skipped ones included), and optionally ``head_dim`` (channels per head) and
            ``mlp_ratio``.
        out_indices (Sequence[int], optional): The stages whose features are returned, in this
            order: maps of stride 16, without a norm but for the last stage. The number of stages
            is one more than that of the omni blocks. Defaults to None, for the last stage alone.
        partition (int): An omni block follows ``partition - 1`` blocks. 1, or more than ``depth +
            1``, means a plain ViT. Defaults to 4.
        skip (bool): Whether an omni block stands for the layer after it, which then has no block.
            Defaults to True.
        pool (str): What is added to the last layer of a partition. 'max': the maximum over the
            layers. 'last': the result of the last layer, whose tokens alone are queries. 'top': the
            same, and queries have a norm of their own. Defaults to 'max'.
        pool_after_attention (bool): Whether to take the maximum after the attention, before the
            MLP. Defaults to False.
        performer (bool): Whether omni blocks have Performer's attention with ReLU features, in
            linear time, instead of softmax attention. Defaults to False.
        class_token (bool): Whether a learned token precedes those of the patches. Defaults to
            False.
        out_type (str): The feature of the last stage. 'map': (N, C, H', W'). 'class_token': the
            class token (N, C), which the published classifier takes if there is one, without a neck
            before it. Defaults to 'map'.
        drop_rate (float): Dropout after the position embeddings, on attention weights, and after
            attention, GELU and MLP. The published class has 0.1, its default configuration 0.
            Defaults to 0.
        drop_path_rate (float): Stochastic depth of the last layer. It grows linearly from 0 at the
            first one. Defaults to 0.
        frozen_stages (int): -1 freezes nothing, 0 the patch and position embeddings, n these and
            the first n stages. Defaults to -1.
        with_cp (bool): Whether to recompute each block in the backward pass, which saves memory for
            time. Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to None: the authors' initialization.

    The authors publish no weights. Weights of their code load if a checkpoint has the names of the
    tree, joined by '/', and tensors in its layouts.

    Raises:
        ValueError: If an argument or an input is impossible, or a checkpoint is of another network.
    """

    ARCHS = {
        'tiny': dict(embed_dims=192, depth=12),
        'small': dict(embed_dims=384, depth=12),
        'base': dict(embed_dims=768, depth=12),
    }
    ARCH_DEFAULTS = dict(head_dim=64, mlp_ratio=4)
    CHECKPOINT = Published(
        network='OmniNet',
        keys=r'(embedding/|cls$|Transformer/)',
        renamings=[
            (r'^embedding/', 'stem.patch/'),
            (r'^cls$', 'stem.class_token'),
            (r'^Transformer/posembed_input/pos_embedding$', 'stem.position'),
            (r'/LayerNorm_0/', '/norm1/'),
            (r'/LayerNorm_1/', '/norm2/'),
            (r'/LayerNorm_2/', '/norm3/'),
            (r'/PerformerEncoderAttention_0/', '/'),
            (r'/MultiHeadAttention_0/', '/attn/'),
            (r'/(q|k|v)(uery|ey|alue)/', r'/\1/'),
            (r'/out/', '/proj/'),
            (r'/MlpBlock_0/Dense_0/', '/mlp/expand/'),
            (r'/MlpBlock_0/Dense_1/', '/mlp/project/'),
            (r'/(kernel|scale)$', '/weight'),
            (r'/', '.'),
        ],
        head=[],  # its kernel has another layout than MMPretrain's
        to_torch=to_torch,
    )

    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        partition: int = 4,
        skip: bool = True,
        pool: str = 'max',
        pool_after_attention: bool = False,
        performer: bool = False,
        class_token: bool = False,
        out_type: str = 'map',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        check_positive('partition', partition)
        check_rate('drop_rate', drop_rate)
        if pool not in POOLS:
            raise ValueError(f'pool={pool!r} must be one of {POOLS}')
        if pool_after_attention and pool != 'max':
            raise ValueError(
                f"pool_after_attention=True needs pool='max', not {pool!r}, which pools nothing"
            )
        if out_type not in ('map', 'class_token'):
            raise ValueError(f"out_type={out_type!r} must be 'map' or 'class_token'")
        if out_type == 'class_token' and not class_token:
            raise ValueError("out_type='class_token' needs class_token=True")
        sizes = self.resolve_arch(arch)
        layers = partitions(sizes['depth'], partition, skip)
        last = len(layers) - 1
        super().__init__(
            arch,
            in_channels,
            (last,) if out_indices is None else out_indices,
            drop_path_rate,
            frozen_stages,
            init_cfg,
            depths=[len(shared) + (stage < last) for stage, shared in enumerate(layers)],
        )
        self.out_strides = (PATCH,) * len(self.out_indices)
        self.out_type = out_type
        self.class_token = class_token
        self.published = replace(self.CHECKPOINT, renamings=renamings(layers))
        channels, head_dim = sizes['embed_dims'], sizes['head_dim']

        def block(stage: int, index: int, _: float) -> Block:
            shared = layers[stage]
            omni = index == len(shared)
            # An omni block has the rate of the layer before it.
            drop_path = drop_path_rate * shared[index - omni] / max(sizes['depth'] - 1, 1)
            build, attention = Block, Attention
            if omni:
                build = partial(OmniBlock, len(shared), pool, pool_after_attention)  # type: ignore
                attention = PerformerAttention if performer else Attention
            attn = attention(channels, head_dim, drop_rate)
            mlp = MLP(channels, sizes['mlp_ratio'], drop_rate)
            return build(channels, attn, mlp, drop_rate, drop_path)

        def stage(before: nn.Module, blocks: list[nn.Module]) -> Stage:
            if len(self.stages) == last:
                return LastStage(channels, blocks, with_cp)
            return Partition(before, blocks, with_cp)

        self._build(
            PatchEmbedding(in_channels, channels, class_token, drop_rate),
            lambda before, channels: nn.Identity(),
            block,
            stage,
        )

    @classmethod
    def resolve_arch(cls, arch: str | dict) -> dict[str, Any]:
        """Returns the complete settings of a named or custom architecture.

        Raises:
            ValueError: As for every backbone, and if a setting is not a positive whole number.
        """
        settings = super().resolve_arch(arch)
        for name, value in settings.items():
            check_positive(name, value)
        return settings

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the features of a batch of images.

        Args:
            x (Tensor): Images of any size, (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: A contiguous feature for each of ``out_indices``: (N, C, ceil(H / 16),
            ceil(W / 16)), or the class token (N, C).

        Raises:
            ValueError: If the input has another number of dimensions or channels.
        """
        self.check_input(x)
        tokens, patches = self.stem(x)
        features = {}
        for index, stage in enumerate(self.stages):
            tokens = stage(tokens)
            if index not in self.out_indices:
                continue
            if self.out_type == 'class_token' and isinstance(stage, LastStage):
                features[index] = tokens[:, 0]
            else:
                of_patches = tokens[:, 1:] if self.class_token else tokens
                features[index] = of_patches.mT.reshape(patches.shape).contiguous()
        return tuple(features[index] for index in self.out_indices)


def check_positive(name: str, value: object) -> None:
    """Raises a ValueError if a setting is not a positive whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f'{name}={value!r} must be a positive whole number')


def renamings(layers: list[list[int]]) -> list[tuple[str, str]]:
    """Returns the renamings of published keys, from the layers of the partitions."""
    places = [(r'^Transformer/encoder_norm/', f'stages.{len(layers) - 1}.norm/')]
    for stage, shared in enumerate(layers):
        for index, layer in enumerate(shared):
            places.append(
                (rf'^Transformer/encoder_block_{layer}/', f'stages.{stage}.blocks.{index}/')
            )
        if stage < len(layers) - 1:
            omni = rf'^Transformer/omni_encoder_block_{shared[-1]}/'
            places.append((omni, f'stages.{stage}.blocks.{len(shared)}/'))
    return [*places, *OmniNet.CHECKPOINT.renamings]
