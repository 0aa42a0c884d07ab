"""The tensors of a checkpoint: where they are, their names, and whose weights they are.

Every network keeps the weights of its features under ``stem`` and ``stages``. Its ``Published``
says how its authors name them.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from mmhatnet.errors import CheckpointError


@dataclass(frozen=True)
class Published:
    """The names that the authors of a network give its tensors.

    Attributes:
        network (str): The network's name in messages.
        keys (str): Regular expression for the beginning of the backbone's published keys.
        renamings (Sequence[tuple[str, str]]): Regular expressions and their replacements, which
            turn a published key into this package's when applied in order. They leave this
            package's own keys alone.
        unused (str): Regular expression for keys that are skipped: constants, or tensors whose
            output the published network does not use. Matches nothing by default.
        head (Sequence[tuple[str, str]]): Regular expressions for the published keys of the
            classifier, and their replacements in a classifier of MMPretrain.
        to_torch (Callable[[str, Tensor], Tensor], optional): Brings a tensor with this published
            key into PyTorch's layout. Defaults to None, for tensors that are in it.
    """

    network: str
    keys: str
    renamings: Sequence[tuple[str, str]]
    unused: str = r'(?!)'
    head: Sequence[tuple[str, str]] = ((r'^head\.', 'head.fc.'),)
    to_torch: Callable[[str, Tensor], Tensor] | None = None


class Network(Protocol):
    """The attributes of a backbone's class that this module needs."""

    ARCHS: dict[str, dict[str, Any]]
    CHECKPOINT: Published


def lift_backbone(state_dict: dict[str, Any], published: Published) -> None:
    """Moves the tensors of a backbone to the top level of a checkpoint, in place.

    They may be nested, as under ``state_dict``, ``model`` or ``model_ema``, and have a prefix, such
    as ``module.backbone.`` in a detector trained in parallel. Among several backbones, those under
    ``state_dict`` or ``model`` come first, and among several prefixes the one with most tensors.
    Other tensors keep their names.

    Args:
        state_dict (dict[str, Any]): Tensors by key, or a checkpoint that contains such a dict.
        published (Published): The names that they may have instead of this package's.
    """
    key = re.compile(
        rf'(?P<prefix>(.*?\.)?)(stem\.|stages\.\d+\.(downsample|blocks\.\d+)\.|{published.keys})'
    )
    for weights in _nested_dicts(state_dict):
        if prefixes := _count_prefixes(weights, key):
            break
    else:
        return
    if weights is state_dict and '' in prefixes:
        return
    prefix = '' if '' in prefixes else prefixes.most_common(1)[0][0]
    lifted = {k.removeprefix(prefix): v for k, v in weights.items() if isinstance(k, str)}
    state_dict.clear()
    state_dict.update(lifted)


def _nested_dicts(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields a dict and those inside it, in the order in which they are searched for weights."""
    yield content
    for key in sorted(content, key=lambda key: key not in ('state_dict', 'model')):
        if isinstance(content[key], Mapping):
            yield from _nested_dicts(content[key])


def _count_prefixes(weights: Mapping[str, Any], key: re.Pattern[str]) -> Counter[str]:
    """Counts the tensors of a backbone under each prefix."""
    tensors = (str(name) for name, value in weights.items() if isinstance(value, Tensor))
    return Counter(match['prefix'] for match in map(key.match, tensors) if match)


def to_native_keys(
    state_dict: dict[str, Any],
    published: Published,
    expected: Mapping[str, Tensor],
    prefix: str = '',
) -> None:
    """Gives the published tensors of a state dict this package's names, in place.

    They are brought into PyTorch's layout. Their shapes get or lose dimensions of size one to match
    the backbone's: a published 1x1 convolution may be a linear layer here. Native names and all
    other items stay as they are.

    Args:
        state_dict (dict[str, Any]): Tensors by key.
        published (Published): The published names.
        expected (Mapping[str, Tensor]): The backbone's own state dict.
        prefix (str): What the backbone's keys start with. Defaults to ''.
    """
    for key in list(state_dict):
        name = key.removeprefix(prefix)
        if not (key.startswith(prefix) and re.match(published.keys, name)):
            continue
        tensor = state_dict.pop(key)
        if re.search(published.unused, name):
            continue
        if published.to_torch and isinstance(tensor, Tensor):
            tensor = published.to_torch(name, tensor)
        for pattern, replacement in published.renamings:
            name = re.sub(pattern, replacement, name)
        if name in expected and _sizes(tensor) == _sizes(expected[name]):
            tensor = tensor.reshape(expected[name].shape)
        state_dict[prefix + name] = tensor


def _sizes(tensor: Tensor) -> list[int]:
    """Returns the shape without dimensions of size one."""
    return [size for size in tensor.shape if size > 1]


def check_architecture(
    state_dict: Mapping[str, Any], prefix: str, network: Network, expected: Mapping[str, Tensor]
) -> None:
    """Refuses the weights of another network or variant before any of them is loaded.

    Single missing and unexpected tensors, and whole missing stages, pass: MMEngine reports these.

    Args:
        state_dict (Mapping[str, Any]): Tensors by native key.
        prefix (str): What the backbone's keys start with.
        network (Network): The backbone's class.
        expected (Mapping[str, Tensor]): The backbone's own state dict.

    Raises:
        CheckpointError: If a shape differs from the backbone's, or the blocks of a stage differ in
            number or in their tensors.
    """
    given = {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix) and isinstance(value, Tensor)
    }
    given_depths, expected_depths = _depths(given), _depths(expected)
    given_tensors, expected_tensors = _tensors_of_blocks(given), _tensors_of_blocks(expected)
    stages = [stage for stage in given_depths if stage in expected_depths]
    differences = [
        f'stage {stage} has {given_depths[stage]} blocks instead of {expected_depths[stage]}'
        for stage in stages
        if given_depths[stage] != expected_depths[stage]
    ]
    for stage in stages:
        extra = sorted(given_tensors[stage] - expected_tensors[stage])
        missing = sorted(expected_tensors[stage] - given_tensors[stage])
        differences += [f'the blocks of stage {stage} have {name}' for name in extra]
        differences += [f'the blocks of stage {stage} lack {name}' for name in missing]
    differences += [
        f'{key} has the shape {tuple(given[key].shape)} instead of {tuple(value.shape)}'
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    if differences:
        raise CheckpointError(
            f'The checkpoint holds {_variant(given, network)}, but the backbone is '
            f'{_variant(expected, network)}: {differences[0]} ({len(differences)} differences). '
            'Build the backbone with the arch and in_channels of the checkpoint, or load a '
            'checkpoint of this variant.'
        )


def _depths(state_dict: Mapping[str, Any]) -> dict[int, int]:
    """Returns the number of blocks of each stage."""
    matches = (re.match(r'stages\.(\d+)\.blocks\.\d+\.', key) for key in state_dict)
    blocks = {match[0]: int(match[1]) for match in matches if match}
    return dict(sorted(Counter(blocks.values()).items()))


def _tensors_of_blocks(state_dict: Mapping[str, Any]) -> dict[int, set[str]]:
    """Returns the names of the tensors in the blocks of each stage.

    Counters of batches are left out: old files lack them.
    """
    tensors: dict[int, set[str]] = {}
    for key in state_dict:
        block = re.match(r'stages\.(\d+)\.blocks\.\d+\.(.*)', key)
        if block and not key.endswith('.num_batches_tracked'):
            tensors.setdefault(int(block[1]), set()).add(block[2])
    return tensors


@cache
def _sizes_of(network: Any, arch: str) -> dict[str, list[int]]:
    with torch.device('meta'):
        return {key: _sizes(value) for key, value in network(arch).state_dict().items()}


def _variant(state_dict: Mapping[str, Any], network: Network) -> str:
    """Names the variant that has these blocks."""
    given = {key: _sizes(value) for key, value in state_dict.items() if '.blocks.' in key}
    depths = _depths(given)
    build: Any = network  # the class itself
    for arch in network.ARCHS:
        blocks = _sizes_of(build, arch)
        if depths.items() <= _depths(blocks).items() and all(
            blocks.get(key) == sizes for key, sizes in given.items()
        ):
            return f'{network.CHECKPOINT.network} {arch!r}'
    return f'no named variant of {network.CHECKPOINT.network}'
