"""The tensors of a HAT-Net checkpoint: where in it they are, their names, and other variants."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from torch import Tensor

from mmhatnet.backbones.archs import ARCHS, resolve_arch
from mmhatnet.checkpoint_files import CheckpointError

# A published name (without prefix) becomes ours by all of these substitutions in turn.
PUBLISHED_TO_NATIVE = [
    (r'^patch_embed\.0\.', r'stem.conv1.'),
    (r'^patch_embed\.1\.', r'stem.norm.'),
    (r'^patch_embed\.3\.', r'stem.conv2.'),
    (r'^ds2\.', r'stages.1.downsample.'),
    (r'^ds3\.', r'stages.2.downsample.'),
    (r'^ds4\.', r'stages.3.downsample.'),
    (r'^blocks\.(\d+)\.(\d+)\.', r'stages.\1.blocks.\2.'),
    (r'\.attn\.grid_norm\.', r'.attn.global_norm.'),
    (r'\.attn\.q\.', r'.attn.global_q.'),
    (r'\.attn\.ds_norm\.', r'.attn.pooled_norm.'),
    (r'\.attn\.kv\.', r'.attn.pooled_kv.'),
    (r'\.conv\.conv1\.0\.', r'.mlp.norm.'),
    (r'\.conv\.conv1\.1\.', r'.mlp.expand.'),
    (r'\.conv\.conv2\.0\.', r'.mlp.depthwise.'),
    (r'\.conv\.conv3\.0\.', r'.mlp.project.'),
    (r'\.conv\.conv3\.1\.', r'.mlp.out_norm.'),
]
PUBLISHED_KEY = re.compile(r'(patch_embed|ds[234]|blocks\.\d+\.\d+)\.')
BACKBONE_KEY = re.compile(
    r'(?P<prefix>(.*?\.)?)'
    r'(stem\.(conv1|norm|conv2)|stages\.\d+\.(downsample|blocks\.\d+)'
    r'|patch_embed\.\d|ds[234]\.\d|blocks\.\d+\.\d+)\.'
)


def lift_backbone(state_dict: dict) -> None:
    """Brings the tensors of a backbone to the top of a checkpoint, in place.

    They may be nested, as under ``state_dict``, ``model`` or ``model_ema``, and have a prefix, as
    ``module.backbone.`` in a detector that was trained in parallel. Where there are several, those
    under ``state_dict`` or ``model`` are taken before others, and the largest part of them. Other
    tensors stay as they are.

    Args:
        state_dict (dict): Tensors by key, or a checkpoint that holds such a dict.
    """
    found = [(_prefixes(weights), weights) for weights in _state_dicts(state_dict)]
    prefixes, weights = next(((p, w) for p, w in found if p), (None, state_dict))
    if prefixes is None or (weights is state_dict and '' in prefixes):
        return
    prefix = '' if '' in prefixes else prefixes.most_common(1)[0][0]
    lifted = {k.removeprefix(prefix): v for k, v in weights.items() if isinstance(k, str)}
    state_dict.clear()
    state_dict.update(lifted)


def _state_dicts(content: Mapping) -> Iterator[Mapping]:
    """A dict and those inside it, in the order in which they are looked for weights."""
    yield content
    for key in sorted(content, key=lambda key: key not in ('state_dict', 'model')):
        if isinstance(content[key], Mapping):
            yield from _state_dicts(content[key])


def _prefixes(weights: Mapping) -> Counter:
    """How many tensors of a backbone there are after each prefix."""
    tensors = (str(key) for key, value in weights.items() if isinstance(value, Tensor))
    return Counter(key['prefix'] for key in map(BACKBONE_KEY.match, tensors) if key)


def to_native_keys(state_dict: dict, prefix: str = '') -> None:
    """Renames the published tensors of a state dict to this package's names, in place.

    Published 1x1 convolutions lose their two spatial dimensions, because they are linear layers
    here. ``proj_norm`` is dropped: the published network stores it and uses its output nowhere.
    Everything else, native names above all, stays as it is.

    Args:
        state_dict (dict): Tensors by key.
        prefix (str): Only the keys that start with it are the backbone's. Defaults to ''.
    """
    for key in list(state_dict):
        name = key.removeprefix(prefix)
        if not (key.startswith(prefix) and PUBLISHED_KEY.match(name)):
            continue
        tensor = state_dict.pop(key)
        if '.attn.proj_norm.' in name:
            continue
        for pattern, replacement in PUBLISHED_TO_NATIVE:
            name = re.sub(pattern, replacement, name)
        # The depthwise convolution of a custom architecture may be 1x1 and stays a convolution.
        if tensor.shape[2:] == (1, 1) and '.depthwise.' not in name:
            tensor = tensor.flatten(1)
        state_dict[prefix + name] = tensor


def check_architecture(state_dict: Mapping, prefix: str, expected: Mapping[str, Tensor]) -> None:
    """Refuses the weights of another HAT-Net before any of them is loaded.

    Missing and additional tensors are not its concern, a whole stage of them included: MMEngine
    reports these.

    Args:
        state_dict (Mapping): Tensors by native key.
        prefix (str): Only the keys that start with it are the backbone's.
        expected (Mapping): The backbone's own state dict.

    Raises:
        CheckpointError: If a tensor has another shape than the backbone's, or a stage another
            number of blocks.
    """
    given = {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix) and isinstance(value, Tensor)
    }
    given_depths, expected_depths = _depths(given), _depths(expected)
    differing = [
        f'stage {stage} has {depth} blocks instead of {expected_depths[stage]}'
        for stage, depth in given_depths.items()
        if depth != expected_depths.get(stage, depth)
    ] + [
        f'{key} has the shape {tuple(given[key].shape)} instead of {tuple(value.shape)}'
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    if differing:
        raise CheckpointError(
            f'The checkpoint holds {_describe(given)}, but the backbone is {_describe(expected)}: '
            f'{differing[0]} ({len(differing)} differences). Build the backbone with the arch and '
            'in_channels of the checkpoint, or load the checkpoint of this variant.'
        )


def _depths(state_dict: Mapping) -> dict[int, int]:
    """Number of blocks of each stage."""
    blocks = {re.match(r'stages\.(\d+)\.blocks\.\d+\.', key) for key in state_dict}
    blocks = {block[0]: int(block[1]) for block in blocks if block}
    return dict(sorted(Counter(blocks.values()).items()))


def _describe(state_dict: Mapping) -> str:
    depths = _depths(state_dict)
    depthwise = [state_dict.get(f'stages.{s}.blocks.0.mlp.depthwise.weight') for s in depths]
    project = [state_dict.get(f'stages.{s}.blocks.0.mlp.project.weight') for s in depths]
    settings = dict(
        embed_dims=tuple(len(weight) for weight in project if weight is not None),
        depths=tuple(depths.values()),
        kernel_sizes=tuple(weight.shape[-1] for weight in depthwise if weight is not None),
    )
    for name in ARCHS:
        arch = resolve_arch(name)
        if all(arch[key][: len(value)] == value for key, value in settings.items()):
            return f'HAT-Net {name!r}'
    return f'a custom HAT-Net ({settings})'
