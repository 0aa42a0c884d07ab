"""The tensors of a checkpoint: where in it they are, their names, and other networks and variants.

Every network has its features' weights under ``stem`` and ``stages`` and tells with ``Published``
how its authors name them.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmhatnet.errors import CheckpointError

if TYPE_CHECKING:
    from mmhatnet.backbones.base import Backbone


@dataclass(frozen=True)
class Published:
    """How the authors of a network name its tensors.

    Attributes:
        network (str): The network, as messages call it.
        keys (str): Regular expression for the beginning of a published key of the backbone's part.
        renamings (Sequence[tuple[str, str]]): Regular expressions and their replacements. By all
            of them in turn a published key becomes this package's; they leave its own keys alone.
        unused (str): Regular expression for keys that are skipped: constants, or tensors whose
            output the published network uses nowhere. Defaults to none.
        head (Sequence[tuple[str, str]]): Regular expressions for the published keys of the
            classifier, and what takes their place in a classifier of MMPretrain.
    """

    network: str
    keys: str
    renamings: Sequence[tuple[str, str]]
    unused: str = r'(?!)'
    head: Sequence[tuple[str, str]] = ((r'^head\.', 'head.fc.'),)


def lift_backbone(state_dict: dict, published: Published) -> None:
    """Brings the tensors of a backbone to the top of a checkpoint, in place.

    They may be nested, as under ``state_dict``, ``model`` or ``model_ema``, and have a prefix, as
    ``module.backbone.`` in a detector that was trained in parallel. Where there are several, those
    under ``state_dict`` or ``model`` are taken before others, and the largest part of them. Other
    tensors stay as they are.

    Args:
        state_dict (dict): Tensors by key, or a checkpoint that holds such a dict.
        published (Published): The names that they may have beside this package's.
    """
    key = re.compile(
        rf'(?P<prefix>(.*?\.)?)(stem\.|stages\.\d+\.(downsample|blocks\.\d+)\.|{published.keys})'
    )
    found = [(_prefixes(weights, key), weights) for weights in _state_dicts(state_dict)]
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


def _prefixes(weights: Mapping, key: re.Pattern) -> Counter:
    """How many tensors of a backbone there are after each prefix."""
    tensors = (str(name) for name, value in weights.items() if isinstance(value, Tensor))
    return Counter(match['prefix'] for match in map(key.match, tensors) if match)


def to_native_keys(
    state_dict: dict, published: Published, expected: Mapping[str, Tensor], prefix: str = ''
) -> None:
    """Renames the published tensors of a state dict to this package's names, in place.

    Dimensions of size one are added and removed as the backbone has them: a published 1x1
    convolution may be a linear layer here. Native names and everything else stay as they are.

    Args:
        state_dict (dict): Tensors by key.
        published (Published): The names that they may have.
        expected (Mapping): The backbone's own state dict.
        prefix (str): Only the keys that start with it are the backbone's. Defaults to ''.
    """
    for key in list(state_dict):
        name = key.removeprefix(prefix)
        if not (key.startswith(prefix) and re.match(published.keys, name)):
            continue
        tensor = state_dict.pop(key)
        if re.search(published.unused, name):
            continue
        for pattern, replacement in published.renamings:
            name = re.sub(pattern, replacement, name)
        if name in expected and _sizes(tensor) == _sizes(expected[name]):
            tensor = tensor.reshape(expected[name].shape)
        state_dict[prefix + name] = tensor


def _sizes(tensor: Tensor) -> list[int]:
    """Its shape, whatever dimensions of size one it has."""
    return [size for size in tensor.shape if size > 1]


def check_architecture(
    state_dict: Mapping, prefix: str, network: type['Backbone'], expected: Mapping[str, Tensor]
) -> None:
    """Refuses the weights of another network or variant before any of them is loaded.

    Single missing and additional tensors are not its concern, nor is a whole stage of them:
    MMEngine reports these.

    Args:
        state_dict (Mapping): Tensors by native key.
        prefix (str): Only the keys that start with it are the backbone's.
        network (type[Backbone]): The backbone's class.
        expected (Mapping): The backbone's own state dict.

    Raises:
        CheckpointError: If a tensor has another shape than the backbone's, or the blocks of a stage
            are another number or have other tensors.
    """
    given = {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix) and isinstance(value, Tensor)
    }
    given_depths, expected_depths = _depths(given), _depths(expected)
    given_parts, expected_parts = _parts(given), _parts(expected)
    stages = [stage for stage in given_depths if stage in expected_depths]
    differing = [
        f'stage {stage} has {given_depths[stage]} blocks instead of {expected_depths[stage]}'
        for stage in stages
        if given_depths[stage] != expected_depths[stage]
    ]
    for stage in stages:
        additional = given_parts[stage] - expected_parts[stage]
        lacking = expected_parts[stage] - given_parts[stage]
        differing += [f'the blocks of stage {stage} have {part}' for part in sorted(additional)]
        differing += [f'the blocks of stage {stage} lack {part}' for part in sorted(lacking)]
    differing += [
        f'{key} has the shape {tuple(given[key].shape)} instead of {tuple(value.shape)}'
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    if differing:
        raise CheckpointError(
            f'The checkpoint holds {_describe(given, network)}, but the backbone is '
            f'{_describe(expected, network)}: {differing[0]} ({len(differing)} differences). Build '
            'the backbone with the arch and in_channels of the checkpoint, or load the checkpoint '
            'of this variant.'
        )


def _depths(state_dict: Mapping) -> dict[int, int]:
    """Number of blocks of each stage."""
    blocks = {re.match(r'stages\.(\d+)\.blocks\.\d+\.', key) for key in state_dict}
    blocks = {block[0]: int(block[1]) for block in blocks if block}
    return dict(sorted(Counter(blocks.values()).items()))


def _parts(state_dict: Mapping) -> dict[int, set[str]]:
    """What the blocks of each stage consist of; counters of batches are in newer files alone."""
    parts = {}
    for key in state_dict:
        block = re.match(r'stages\.(\d+)\.blocks\.\d+\.(.*)', key)
        if block and not key.endswith('.num_batches_tracked'):
            parts.setdefault(int(block[1]), set()).add(block[2])
    return parts


@cache
def _sizes_of(network: type['Backbone'], arch: str) -> dict[str, list[int]]:
    with torch.device('meta'):
        return {key: _sizes(value) for key, value in network(arch).state_dict().items()}


def _describe(state_dict: Mapping, network: type['Backbone']) -> str:
    """The variant whose blocks these are."""
    given = {key: _sizes(value) for key, value in state_dict.items() if '.blocks.' in key}
    depths = _depths(given)
    for arch in network.ARCHS:
        blocks = _sizes_of(network, arch)
        if depths.items() <= _depths(blocks).items() and all(
            blocks.get(key) == sizes for key, sizes in given.items()
        ):
            return f'{network.CHECKPOINT.network} {arch!r}'
    return f'no variant of {network.CHECKPOINT.network} that has a name'
