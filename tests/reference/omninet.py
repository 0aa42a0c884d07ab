"""OmniNet, written from docs/networks/omninet.md with the published key names and layouts.

Nothing is made fast. The simple feature pyramid, which docs/networks/omninet.md states as well, is
at the end.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRID = 14
SIZES = {'tiny': 192, 'small': 384, 'base': 768}
SETTINGS = {
    'last': dict(pool='last'),
    'top': dict(top=True),
    'pool_after_attention': dict(pool_after_attention=True),
    'performer': dict(performer=True),
    'no_skip': dict(skip=False),
    'partition5': dict(partition=5),
    'class_token': dict(class_token=True),
}


def norm(x: Tensor, scale: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer normalization over the last axis."""
    centered = x - x.mean(dim=-1, keepdim=True)
    return centered / (centered.square().mean(dim=-1, keepdim=True) + eps).sqrt() * scale + bias


def gelu(x: Tensor) -> Tensor:
    """The approximation with tanh."""
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries (n, L, heads, d), keys and values (n, M, heads, d) to (n, L, heads, d)."""
    weights = torch.einsum('nihd,njhd->nhij', q, k) / math.sqrt(q.shape[-1])
    return torch.einsum('nhij,njhd->nihd', weights.softmax(dim=-1), v)


def performer_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = q.relu() + 0.001, k.relu() + 0.001
    weights = torch.einsum('nihd,njhd->nhij', q, k)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return torch.einsum('nhij,njhd->nihd', weights, v)


def cubic(distance: float, a: float = -0.75) -> float:
    """The weight of a sample at a distance, by cubic convolution."""
    t = abs(distance)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def resizing(size: int) -> Tensor:
    """The matrix (size, 14) that resizes a side of the grid of position embeddings."""
    matrix = torch.zeros(size, GRID, dtype=torch.float64)
    for i in range(size):
        place = (i + 0.5) * GRID / size - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[i, min(max(j, 0), GRID - 1)] += cubic(place - j)
    return matrix


class OmniNet(nn.Module):
    """(n, 3, h, w) to the states after the omni blocks and the map, and the logits."""

    def __init__(
        self,
        dim: int,
        head_dim: int = 64,
        depth: int = 12,
        partition: int = 4,
        skip: bool = True,
        pool: str = 'max',
        top: bool = False,
        pool_after_attention: bool = False,
        performer: bool = False,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.head_dim, self.depth = dim, head_dim, depth
        self.partition, self.skip, self.pool, self.top = partition, skip, pool, top
        self.pool_after_attention, self.performer = pool_after_attention, performer
        self.class_token = class_token
        self.declare('embedding/kernel', 16, 16, 3, dim)
        self.declare('embedding/bias', dim)
        if class_token:
            self.declare('cls', 1, 1, dim)
        self.declare('Transformer/posembed_input/pos_embedding', 1, GRID**2 + class_token, dim)
        # What runs: ('block', l) and ('omni', l) in turn.
        self.order: list[tuple[str, int]] = []
        layer, waiting = 0, 0
        while layer < depth:
            self.order.append(('block', layer))
            waiting += 1
            if waiting == partition - 1:
                self.order.append(('omni', layer))
                waiting = 0
                layer += skip
            layer += 1
        for kind, layer in self.order:
            self.declare_block(self.name(kind, layer), kind == 'omni')
        self.declare_norm('Transformer/encoder_norm')
        self.declare('output_projection/kernel', dim, 1000)
        self.declare('output_projection/bias', 1000)

    @staticmethod
    def name(kind: str, layer: int) -> str:
        return f'Transformer/{"omni_" * (kind == "omni")}encoder_block_{layer}'

    def declare(self, name: str, *shape: int) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def declare_norm(self, name: str) -> None:
        self.declare(f'{name}/scale', self.dim)
        self.declare(f'{name}/bias', self.dim)

    def declare_block(self, block: str, omni: bool) -> None:
        dim, heads = self.dim, self.dim // self.head_dim
        for index in range(3 if omni and self.top else 2):
            self.declare_norm(f'{block}/LayerNorm_{index}')
        attention = self.attention_name(block, omni)
        for layer in ('query', 'key', 'value'):
            self.declare(f'{attention}/{layer}/kernel', dim, heads, self.head_dim)
            self.declare(f'{attention}/{layer}/bias', heads, self.head_dim)
        self.declare(f'{attention}/out/kernel', heads, self.head_dim, dim)
        self.declare(f'{attention}/out/bias', dim)
        for index, (inputs, outputs) in enumerate(((dim, 4 * dim), (4 * dim, dim))):
            self.declare(f'{block}/MlpBlock_0/Dense_{index}/kernel', inputs, outputs)
            self.declare(f'{block}/MlpBlock_0/Dense_{index}/bias', outputs)

    def attention_name(self, block: str, omni: bool) -> str:
        wrapped = omni and self.performer
        return f'{block}/{"PerformerEncoderAttention_0/" * wrapped}MultiHeadAttention_0'

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        rows, columns = (-(-side // 16) for side in image.shape[2:])
        x = self.tokens(image, rows, columns)
        features, states = [], []
        for kind, layer in self.order:
            if kind == 'block':
                x = self.block(x, self.name(kind, layer))
                states.append(x)
            else:
                x = x + self.omni(states, self.name(kind, layer))
                features.append(self.to_map(x, rows, columns))
                states = []
        x = self.norm(x, 'Transformer/encoder_norm')
        features.append(self.to_map(x, rows, columns))
        pooled = x[:, 0] if self.class_token else x.mean(dim=1)
        weights = self._parameters
        logits = pooled @ weights['output_projection/kernel'] + weights['output_projection/bias']
        return features, logits

    def tokens(self, image: Tensor, rows: int, columns: int) -> Tensor:
        """Pads, cuts into patches, embeds them and adds the position embeddings."""
        weights = self._parameters
        bottom, right = 16 * rows - image.shape[2], 16 * columns - image.shape[3]
        image = F.pad(image, (0, right, 0, bottom))
        patches = image.unflatten(3, (columns, 16)).unflatten(2, (rows, 16))
        x = torch.einsum('nirpcq,pqio->nrco', patches, weights['embedding/kernel'])
        x = (x + weights['embedding/bias']).flatten(1, 2)
        positions = weights['Transformer/posembed_input/pos_embedding']
        first, grid = positions[:, : self.class_token], positions[:, self.class_token :]
        if (rows, columns) != (GRID, GRID):
            grid = grid.unflatten(1, (GRID, GRID))
            by_rows, by_columns = (resizing(side).to(grid.dtype) for side in (rows, columns))
            grid = torch.einsum('ri,cj,nijo->nrco', by_rows, by_columns, grid).flatten(1, 2)
        if self.class_token:
            x = torch.cat([weights['cls'].expand(len(x), -1, -1), x], dim=1)
        return x + torch.cat([first, grid], dim=1)

    def to_map(self, x: Tensor, rows: int, columns: int) -> Tensor:
        return x[:, self.class_token :].transpose(1, 2).unflatten(2, (rows, columns))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return norm(x, self._parameters[f'{name}/scale'], self._parameters[f'{name}/bias'])

    def attend(self, queries: Tensor, others: Tensor, block: str, omni: bool) -> Tensor:
        weights, name = self._parameters, self.attention_name(block, omni)
        q, k, v = (
            torch.einsum('nic,chd->nihd', x, weights[f'{name}/{layer}/kernel'])
            + weights[f'{name}/{layer}/bias']
            for layer, x in (('query', queries), ('key', others), ('value', others))
        )
        attention = performer_attention if omni and self.performer else softmax_attention
        out = torch.einsum('nihd,hdc->nic', attention(q, k, v), weights[f'{name}/out/kernel'])
        return out + weights[f'{name}/out/bias']

    def mlp(self, x: Tensor, block: str) -> Tensor:
        weights, name = self._parameters, f'{block}/MlpBlock_0/Dense'
        x = gelu(x @ weights[f'{name}_0/kernel'] + weights[f'{name}_0/bias'])
        return x @ weights[f'{name}_1/kernel'] + weights[f'{name}_1/bias']

    def block(self, x: Tensor, name: str, omni: bool = False) -> Tensor:
        z = self.norm(x, f'{name}/LayerNorm_0')
        x = x + self.attend(z, z, name, omni)
        return x + self.mlp(self.norm(x, f'{name}/LayerNorm_1'), name)

    def omni(self, states: list[Tensor], name: str) -> Tensor:
        """What an omni block adds to the stream, from the listed states (n, N, c)."""
        joined, layers = torch.cat(states, dim=1), (len(states), -1)
        if self.top:
            others = self.norm(joined, f'{name}/LayerNorm_1')
            queries = self.norm(states[-1], f'{name}/LayerNorm_0')
            z = states[-1] + self.attend(queries, others, name, omni=True)
            return z + self.mlp(self.norm(z, f'{name}/LayerNorm_2'), name)
        if self.pool_after_attention:
            z = self.norm(joined, f'{name}/LayerNorm_0')
            z = joined + self.attend(z, z, name, omni=True)
            z = z.unflatten(1, layers).amax(dim=1)
            return z + self.mlp(self.norm(z, f'{name}/LayerNorm_1'), name)
        y = self.block(joined, name, omni=True).unflatten(1, layers)
        return y[:, -1] if self.pool == 'last' else y.amax(dim=1)


def build(variant: str) -> OmniNet:
    """Builds 'tiny', 'small', 'base', or one with a setting, such as 'tiny+last'."""
    arch, _, setting = variant.partition('+')
    return OmniNet(SIZES[arch], **SETTINGS.get(setting, {}))


def feature_name(index: int, count: int) -> str:
    return 'map' if index == count - 1 else f'partition{index}'


class SimpleFeaturePyramid(nn.Module):
    """A map (n, c, h, w) to maps of 4, 2, 1 and 1/2 times its size, by ViTDet's key names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        up = nn.ConvTranspose2d
        half, quarter = channels // 2, channels // 4
        self.simfp_2 = nn.ModuleDict(
            {
                '0': up(channels, half, 2, stride=2),
                '1': nn.LayerNorm(half, eps=1e-6),
                '3': up(half, quarter, 2, stride=2),
                **self.end(4, quarter),
            }
        )
        self.simfp_3 = nn.ModuleDict({'0': up(channels, half, 2, stride=2), **self.end(1, half)})
        self.simfp_4 = nn.ModuleDict(self.end(0, channels))
        self.simfp_5 = nn.ModuleDict(self.end(1, channels))

    @staticmethod
    def end(first: int, channels: int) -> dict[str, nn.Module]:
        convs = nn.Conv2d(channels, 256, 1, bias=False), nn.Conv2d(256, 256, 3, 1, 1, bias=False)
        for conv in convs:
            conv.norm = nn.LayerNorm(256, eps=1e-6)
        return {str(first + i): conv for i, conv in enumerate(convs)}

    def forward(self, x: Tensor) -> list[Tensor]:
        def normed(layer: nn.LayerNorm, x: Tensor) -> Tensor:
            return norm(x.permute(0, 2, 3, 1), layer.weight, layer.bias).permute(0, 3, 1, 2)

        def end(level: nn.ModuleDict, x: Tensor) -> Tensor:
            for conv in [*level.values()][-2:]:
                x = normed(conv.norm, conv(x))
            return x

        two = self.simfp_2
        finest = two['3'](F.gelu(normed(two['1'], two['0'](x))))
        coarsest = F.max_pool2d(x, 2, ceil_mode=True)
        return [
            end(two, finest),
            end(self.simfp_3, self.simfp_3['0'](x)),
            end(self.simfp_4, x),
            end(self.simfp_5, coarsest),
        ]
