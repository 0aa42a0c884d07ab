"""What of a checkpoint is handed on: its weights, and the plain data that a training needs.

MMEngine evaluates a config that it finds in a checkpoint, and nobody knows what else does. So
entries pass because a job needs them, by their name and their type, and everything else is left
out. What passes is rebuilt from exact types, without attributes that a file may have set.
"""

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from functools import cached_property
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from mmhatnet.checkpoints.rehearsal import COPIES, SLACK
from mmhatnet.errors import CheckpointError, printable

# The state of a training, which holds numbers, tensors and names.
STATE = ('optimizer', 'param_schedulers', 'mmhatnet')
NUMBERS = (bool, int, float, complex)
CLASSES = ('dataset_meta', 'CLASSES', 'PALETTE')
# The only text in meta and in the runtime info. The config that MMEngine stores is not among it.
TEXT_IN_META = re.compile(rf'time|exp(eriment)?_name|mmengine|\w+_version|{"|".join(CLASSES)}')
TEXT_IN_INFO = re.compile(
    r'experiment_name|mmengine_version|loop_stage|last_ckpt|best_ckpt.*|dataset_meta'
)
# Buffers that may be infinite: masks, and observers of a range that have seen nothing yet.
MAY_BE_INFINITE = re.compile(r'mask|min_val|max_val')

MAX_DEPTH, MAX_ENTRIES, MAX_NAME = 50, 1_000_000, 1000

_LEFT_OUT = object()


class Record:
    """Replaces the objects that a checkpoint holds beside tensors and plain containers.

    Nothing of their classes runs. Only a loss history is used, from which MMEngine's is built.
    """

    stands_for = ''
    content: Any = None
    code: object = None

    def __new__(cls, *content: object) -> 'Record':
        return super().__new__(cls)

    def __init__(self, *content: object) -> None:
        pass

    def __setstate__(self, content: object) -> None:
        self.content = content


class History(Record):
    """Replaces MMEngine's HistoryBuffer, of which a pickle names the methods."""

    stands_for = 'HistoryBuffer'
    min = max = current = mean = None


class Schedule(Record):
    """Replaces MMEngine's OneCycleParamScheduler, of which a pickle names the methods."""

    stands_for = 'OneCycleParamScheduler'
    _annealing_cos = _annealing_linear = None


def allowed_content(content: object, name: object, size: float = math.inf) -> dict[str, Any]:
    """Returns those entries of a checkpoint that a job may use.

    These are tensors by name, also in nested dicts; the state of a training, which is plain data;
    and in ``meta`` and ``message_hub`` what MMEngine and its inferencers read. A checkpoint of
    others keeps its weights, whatever else it holds.

    Args:
        content (object): What was read. It is not modified.
        name (object): Names the checkpoint in messages.
        size (float): The bytes that the file holds. Defaults to infinity, for content that does
            not come from a file.

    Returns:
        dict[str, Any]: The entries, in dicts, lists and tuples of their own. They share the
        tensors' memory with ``content``.

    Raises:
        CheckpointError: If the content has no names, an entry has the wrong type, tensors declare
            more data than the file holds, or weights are not finite.
    """
    return _Content(name, size).allowed(content)


class DataType(Record):
    """Replaces NumPy's, whose flags a file could set so that numbers are taken for addresses."""

    def __new__(cls, *arguments: object) -> Any:
        made = super().__new__(cls)
        made.code = arguments[0] if arguments else None
        return made

    def read(self) -> np.dtype:
        if not isinstance(self.code, str) or not re.fullmatch('[biufc][0-9]{1,2}', self.code):
            raise ValueError(f'{self.code} is no type of numbers')
        is_swapped = isinstance(self.content, tuple) and self.content[1] == '>'
        return np.dtype(f'{">" if is_swapped else "<"}{self.code}')


class Array(Record):
    """Replaces NumPy's array while it is read. NumPy's own reader trusts a file."""

    @cached_property
    def value(self) -> np.ndarray:
        _, shape, kind, is_fortran, data = self.content
        array = np.frombuffer(data, kind.read())
        return array.reshape(shape, order='F' if is_fortran else 'C').copy(order='K')


class Scalar(Record):
    """Replaces NumPy's number."""

    def __new__(cls, *arguments: object) -> Any:
        made = super().__new__(cls)
        made.content = arguments
        return made

    @cached_property
    def value(self) -> Any:
        kind, data = self.content
        return np.frombuffer(data, kind.read()).reshape(())[()]


def no_bytes(*content: object) -> bytes:
    """Replaces the type of bytes, by which a pickle names those of an empty array."""
    if content:
        raise UnpicklingError('it makes bytes')
    return b''


def short(value: object) -> str:
    """Returns a value for a message, or the name of its type."""
    known = isinstance(value, (str, int, float))
    return repr(value)[:60] if known else f'a {type(value).__name__}'


class _Content:
    """The content of one checkpoint while it is examined."""

    def __init__(self, name: object, size: float) -> None:
        self.name = name
        self.size = size
        self.entries = 0
        self.viewed = 0  # bytes of all tensors, which may share memory
        self.logged = 0  # bytes of all loss histories, which are copied
        self.storages: dict[int, int] = {}
        self.weights: list[tuple[str, Tensor]] = []

    def allowed(self, content: object) -> dict[str, Any]:
        if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
            raise CheckpointError(
                f'{self.name} holds a {type(content).__name__} instead of named weights: save them '
                'with torch.save(model.state_dict(), FILE).'
            )
        for key, absent in (('state_dict', {}), ('ema_state_dict', None)):
            if not isinstance(value := content.get(key, absent), Mapping) and value is not absent:
                raise self.wrong(key, value, 'weights by name')
        readers = dict.fromkeys(STATE, self.plain) | dict(meta=self.meta, message_hub=self.hub)
        others = {key: value for key, value in content.items() if key not in readers}
        allowed = self.tensors(others, '', getattr(content, '_metadata', None))
        for key, read in readers.items():
            value = read(content[key], key) if content.get(key) is not None else _LEFT_OUT
            if value is not _LEFT_OUT:
                allowed[key] = value
        self.require_memory_of_its_own()
        self.require_finite()
        return allowed

    def wrong(self, place: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(
            f'{self.name} is damaged, or no checkpoint: its {printable(place)} is {short(value)} '
            f'instead of {expected}.'
        )

    def enter(self, place: str, depth: int) -> None:
        """Counts an entry. A dict that contains itself has no end, and shared ones multiply."""
        self.entries += 1
        if depth > MAX_DEPTH or self.entries > MAX_ENTRIES:
            reason = f'it has more than {MAX_ENTRIES:,} entries'
            if depth > MAX_DEPTH:
                where = printable(place[:40])
                reason = f'{where} is nested more than {MAX_DEPTH} levels deep, or contains itself'
            raise CheckpointError(
                f'{self.name} is no checkpoint of a model: {reason}. Save the weights with '
                'torch.save(model.state_dict(), FILE) where it was made.'
            )

    def tensors(
        self, content: Mapping[Any, Any], place: str, metadata: object = None, depth: int = 0
    ) -> 'OrderedDict[str, Any]':
        """Returns the tensors by name, also those in nested dicts."""
        weights: OrderedDict[str, Any] = OrderedDict()
        for key, value in content.items():
            where = f'{place}{key}'
            self.enter(where, depth)
            if not isinstance(key, str) or len(key) > MAX_NAME or not key.isprintable():
                if place in ('state_dict.', 'ema_state_dict.'):
                    raise self.wrong(f'name of a tensor in {place[:-1]}', key, 'a short text')
            elif isinstance(value, Tensor):
                # Some modules unpickle their extra state.
                if not key.endswith('_extra_state'):
                    weights[key] = self.tensor(value, where)
                    self.weights.append((where, weights[key]))
            elif isinstance(value, Mapping):
                nested = getattr(value, '_metadata', None)
                weights[key] = self.tensors(value, f'{where}.', nested, depth + 1)
        if isinstance(metadata, Mapping):
            versions = {
                key: {'version': value['version']}
                for key, value in metadata.items()
                if isinstance(value, Mapping) and type(value.get('version')) is int
            }
            vars(weights)['_metadata'] = OrderedDict(versions)
        return weights

    def tensor(self, value: Tensor, place: str) -> Tensor:
        """Returns a tensor without the attributes that the file gave it."""
        tensor, place = Tensor.detach(value), printable(place)
        if type(value) not in (Tensor, nn.Parameter) or (
            tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta
        ):
            what = (
                'without values, on the meta device'
                if tensor.is_meta
                else f'with {"quantized" if tensor.is_quantized else tensor.layout} values'
            )
            raise CheckpointError(
                f'{self.name} cannot be used: {place} is a {type(value).__name__} {what}. Save '
                'dense tensors with torch.save(model.state_dict(), FILE).'
            )
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        self.viewed += tensor.numel() * tensor.element_size()
        if self.viewed > COPIES * self.size + SLACK:
            raise CheckpointError(
                f'{self.name} is no checkpoint of a model: its tensors are views of each other, '
                f'{COPIES} times as large as the file.'
            )
        return tensor

    def plain(self, value: object, place: str, text: bool = True, depth: int = 0) -> Any:  # noqa: PLR0911
        """Returns plain data, and _LEFT_OUT for everything else, such as text if it is unwanted."""
        self.enter(place, depth)
        if isinstance(value, (Array, Scalar)):
            value = self.numbers(value, place)
        kind: Any = type(value)
        if value is None or kind in NUMBERS or isinstance(value, np.generic):
            return value
        if isinstance(value, str):
            return value if text and _is_text(value) else _LEFT_OUT
        if isinstance(value, Tensor):
            return self.tensor(value, place)
        if isinstance(value, np.ndarray):
            if kind is not np.ndarray or value.dtype.hasobject:
                return _LEFT_OUT
            self.storages[id(value)] = value.nbytes
            return value
        if isinstance(value, (list, tuple)):
            items = [
                self.plain(item, f'{place}.{index}', text, depth + 1)
                for index, item in enumerate(value)
            ]
            if any(item is _LEFT_OUT for item in items):
                return _LEFT_OUT
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, Mapping):
            entries = {
                key: self.plain(item, f'{place}.{key}', text, depth + 1)
                for key, item in value.items()
                if type(key) in (str, int, float)
            }
            entries = {key: item for key, item in entries.items() if item is not _LEFT_OUT}
            return kind(entries) if kind in (Counter, OrderedDict) else entries
        return _LEFT_OUT

    def numbers(self, value: Array | Scalar, place: str) -> Any:
        try:
            return value.value
        except Exception as error:  # Any part may have any type.
            raise self.wrong(place, value, 'numbers') from error

    def meta(self, meta: object, place: str) -> dict[str, Any]:
        if not isinstance(meta, Mapping):
            raise self.wrong(place, meta, 'a dict')
        kept = self.chosen(meta, place, TEXT_IN_META)
        named = kept.get('dataset_meta', {})
        if isinstance(named, list) and named and all(isinstance(one, dict) for one in named):
            named = kept['dataset_meta'] = self.joined(named)
        if not isinstance(named, dict) or not all(isinstance(key, str) for key in named):
            raise self.wrong(f'{place}.dataset_meta', named, 'a dict')
        self.check_classes(kept, place, 'CLASSES', 'PALETTE')
        self.check_classes(named, f'{place}.dataset_meta', 'CLASSES', 'PALETTE')
        self.check_classes(named, f'{place}.dataset_meta', 'classes', 'palette')
        return kept

    def joined(self, metas: list[dict[Any, Any]]) -> dict[Any, Any]:
        """Returns what several datasets of a training, each with its metainfo, have in common."""
        first = metas[0]
        common = {
            key: value
            for key, value in first.items()
            if all(key in one and repr(one[key]) == repr(value) for one in metas)
        }
        other = next((one for one in metas if one.get('classes') != first.get('classes')), None)
        if other is None:
            return common
        names = ' and '.join(
            f'({printable(", ".join(map(str, one.get("classes") or ()))[:200])})'
            for one in (first, other)
        )
        raise CheckpointError(
            f'{self.name} is from a training on datasets whose classes differ, {names}, so that '
            'its labels mean something else in each: train again with the same '
            'metainfo=dict(classes=...) in all of them. A copy of its state_dict alone, without '
            'meta, can still be the start of a training.'
        )

    def check_classes(self, owner: dict[str, Any], place: str, names: str, colors: str) -> None:
        """Raises a CheckpointError if classes have no names, and drops colors that do not fit."""
        classes, palette = owner.get(names), owner.get(colors)
        if isinstance(classes, str):
            owner[names] = classes = (classes,)
        if not _are_all(classes, lambda label: isinstance(label, (str, int))):
            raise self.wrong(f'{place}.{names}', classes, 'a list of names')
        if palette is not None and not (
            _are_all(palette, _is_color) and len(palette) >= len(classes or ())
        ):
            del owner[colors]  # OpenMMLab fails on them, and has others.

    def hub(self, hub: object, place: str) -> Any:
        """Returns the history of losses, and what MMEngine's hooks have noted."""
        if not isinstance(hub, Mapping):
            return self.plain(hub, place, text=False)
        kept: dict[str, Any] = {
            key: self.chosen(hub[key], f'{place}.{key}', TEXT_IN_INFO)
            for key in ('log_scalars', 'runtime_info', 'resumed_keys')
            if isinstance(hub.get(key), Mapping)
        }
        for key, value in (hub.get('log_scalars') or {}).items() if 'log_scalars' in kept else ():
            if isinstance(value, (History, HistoryBuffer)) and isinstance(key, str):
                kept['log_scalars'][key] = self.history(value, f'{place}.log_scalars.{key}')
        return kept

    def chosen(self, content: Mapping[Any, Any], place: str, text: re.Pattern[str]) -> Any:
        """Returns the plain entries of a dict. Those with other names hold no text."""
        entries = {
            key: self.plain(value, f'{place}.{key}', text.fullmatch(key) is not None, depth=1)
            for key, value in content.items()
            if isinstance(key, str)
        }
        return {key: value for key, value in entries.items() if value is not _LEFT_OUT}

    def history(self, value: object, place: str) -> HistoryBuffer:
        state = value.content if isinstance(value, History) else vars(value)
        state = state if isinstance(state, Mapping) else {}
        logs, counts = (
            self.numbers(part, place) if isinstance(part, Array) else part
            for part in (state.get('_log_history'), state.get('_count_history'))
        )
        length = state.get('max_length')
        if not (
            type(logs) is type(counts) is np.ndarray
            and logs.ndim == counts.ndim == 1
            and logs.size == counts.size
            and type(length) is int
            and length > 0
        ):
            raise self.wrong(place, value, 'a history of numbers')
        self.logged += logs.nbytes + counts.nbytes
        if self.logged > self.size:
            raise self.wrong(place, value, f'what fits into the {self.size:,} bytes of the file')
        return HistoryBuffer(logs, counts, length)

    def require_memory_of_its_own(self) -> None:
        """Raises a CheckpointError if tensors and arrays claim more than the file holds.

        Their memory would be that of others. PyTorch before 2.10 does not check this.
        """
        declared = sum(self.storages.values())
        if declared > self.size:
            raise CheckpointError(
                f'{self.name} is damaged: its tensors declare {declared:,} bytes, and the file '
                f'holds {self.size:,}. Download or copy it again.'
            )

    def require_finite(self) -> None:
        found = [where for where, tensor in self.weights if not _is_sound(where, tensor)]
        if found:
            others = f' and {len(found) - 1} other tensors' if found[1:] else ''
            raise CheckpointError(
                f'{self.name} holds weights that are not finite, in {found[0]}{others}: they come '
                'from a training that diverged, and every result would be NaN. Use an earlier '
                'checkpoint.'
            )


def _are_all(items: object, fits: Callable[[Any], bool]) -> bool:
    return items is None or (isinstance(items, (list, tuple)) and all(map(fits, items)))


def _is_color(item: object) -> bool:
    return (
        isinstance(item, (list, tuple))
        and len(item) == 3
        and all(isinstance(value, (int, np.integer)) for value in item)
    )


def _is_text(value: str) -> bool:
    """Says whether a text can be written; halves of surrogate pairs cannot."""
    return not re.search('[\ud800-\udfff]', value)


def _is_sound(name: str, tensor: Tensor) -> bool:
    """Says whether weights are finite. Nothing but a mask may be infinite, and nothing NaN."""
    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.element_size() == 1:
        if str(tensor.dtype).startswith('torch.float4'):
            return True  # has neither
        tensor = tensor.float()
    limits = torch.stack(torch.aminmax(tensor))  # one pass, in which NaN wins
    if MAY_BE_INFINITE.search(name.rpartition('.')[2]):
        return not limits.isnan().any()
    return bool(limits.isfinite().all())
