"""Rehearses the pickles of a checkpoint, to learn what reading it would take, before it is read.

PyTorch's weights-only reader calls a few functions that a pickle names. None of them runs code of
the file, but some allocate what the file asks for: 30 bytes can ask for all memory, as
``bytearray(10**11)`` or as the rows of a tensor that repeats one number. A rehearsal runs the same
pickle with stand-ins, which only count.
"""

import math
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch

# What is in a file may be used more than once: a name in many calls, or a number in an expanded
# position index.
COPIES, SLACK = 10, 2**20
# Functions that make a tensor from another one.
OF_TENSORS = ('torch._utils._rebuild_', 'torch._tensor._rebuild_', 'torch.nn.parameter.Parameter')
# The older format starts with the magic number, version, system, content and keys of storages.
PICKLES_OF_OLDER_FORMAT = 5


# The only attributes that MMEngine's checkpoints name, by the class of their owner.
METHODS = {
    'HistoryBuffer': ('min', 'max', 'current', 'mean'),
    'OneCycleParamScheduler': ('_annealing_cos', '_annealing_linear'),
}


class ExcessError(ValueError):
    """A pickle asks for more than its file holds."""


class AttributeRequestError(pickle.UnpicklingError):
    """A pickle asks for an attribute of an object."""


def rehearse(path: Path, size: int) -> None:
    """Runs the pickles of a checkpoint with stand-ins for everything that they name.

    Args:
        path (Path): The file.
        size (int): The bytes that it holds, unpacked.

    Raises:
        ExcessError: If calls or tensors ask for more than the file holds.
        AttributeRequestError: If one asks for an attribute that no checkpoint needs.
        Exception: Any other if a pickle is damaged.
    """
    try:
        with path.open('rb') as file:
            if file.read(2) == b'PK':
                # PyTorch's own view of the archive, from which that of zipfile may differ.
                reader = torch._C.PyTorchFileReader(str(path))  # noqa: SLF001
                content = reader.get_record('data.pkl')
                _Rehearsal(BytesIO(content), size).load()
                return
            file.seek(0)
            for _ in range(PICKLES_OF_OLDER_FORMAT):
                _Rehearsal(file, size).load()
    except EOFError:
        return  # a file of fewer pickles
    except AttributeRequestError:
        raise
    except KeyError as error:
        raise ValueError(f'{error} is missing in a pickle') from error
    except pickle.UnpicklingError as error:
        raise ValueError(str(error)) from error


class _Rehearsal(pickle._Unpickler):  # noqa: SLF001
    """Is in Python, because the one in C allocates a memo of whatever length a pickle names."""

    dispatch: ClassVar = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()  # noqa: SLF001
        if code != pickle.BYTEARRAY8[0]  # allocates before it reads
    }

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, encoding='latin1')
        self.size = size
        self.storages: dict[object, int] = {}
        self.declared = 0
        self.copied = 0
        self.names: dict[str, type[_StandIn]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Returns a stand-in, whatever the name."""
        full = f'{module}.{name}'
        if full not in self.names:
            self.names[full] = type('StandIn', (_StandIn,), {'name': full, 'rehearsal': self})
        return self.names[full]

    def persistent_load(self, pid: Any) -> Any:
        """Returns a stand-in for a storage, after a check of its declared length."""
        if pid[0] != 'storage':
            return _Storage(('', '', '', '', 0))  # PyTorch refuses it.
        storage = _Storage(pid)
        self.declared += storage.length - self.storages.get(storage.key, 0)
        self.storages[storage.key] = storage.length
        if self.declared > self.size:
            raise ExcessError(
                f'its tensors declare at least {self.declared:,} bytes, and it holds {self.size:,}'
            )
        return storage

    def count(self, name: str, arguments: tuple) -> None:
        """Counts what a call may allocate."""
        for argument in arguments:
            if isinstance(argument, int) and not isinstance(argument, bool):
                self.copied += abs(argument)
            elif isinstance(argument, (list, tuple)):
                self.copied += len(argument)
                self.copied += sum(abs(item) for item in argument if isinstance(item, int))
            elif isinstance(argument, (str, bytes, dict, set)):
                self.copied += len(argument)
        self.require_less(f'{name} asks for {self.copied:,} bytes')

    def count_repeated(self, storage: '_Storage', offset: object, shape: tuple[int, ...]) -> None:
        """Counts the numbers of a tensor beyond those that it has."""
        self.copied += max(math.prod(shape) - storage.length, 0)
        self.require_less(
            f'it has a tensor of the shape {str(shape)[:60]} from {storage.length:,} numbers'
        )

    def require_less(self, reason: str) -> None:
        if self.copied > COPIES * self.size + SLACK:
            raise ExcessError(f'{reason}, and it holds {self.size:,}')


class _Storage:
    def __init__(self, pid: Any) -> None:
        self.key, self.length = pid[2], pid[4]
        if not isinstance(self.length, int) or self.length < 0:
            raise ValueError(f'a tensor has the length {str(self.length)[:40]}')


class _StandIn(dict):
    """An object that a pickle makes. Its class is the function or class that the pickle names."""

    name: str
    rehearsal: _Rehearsal
    is_tensor = False
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __new__(cls, *arguments: Any) -> '_StandIn':
        made = super().__new__(cls)
        if arguments and isinstance(arguments[0], _Storage):
            made.is_tensor = True
            cls.rehearsal.count_repeated(*arguments[:3])
        elif cls.name.startswith(OF_TENSORS):
            made.is_tensor = True
            if cls.name.endswith('_rebuild_from_type_v2'):  # calls a function
                arguments[0](*arguments[2])
        elif cls.name == 'builtins.getattr':
            _require_harmless(*arguments)
        elif any(isinstance(item, _StandIn) and item.is_tensor for item in arguments):
            raise ExcessError(f'it calls {cls.name} with a tensor')
        else:
            cls.rehearsal.count(cls.name, arguments)
        return made

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __call__(self, *arguments: Any) -> '_StandIn':
        return type(self)(*arguments)

    def append(self, item: object) -> None:
        """Takes the place of a list's method, which pickle calls."""

    extend = add = append


def _require_harmless(owner: object, attribute: object) -> None:
    """OneDL's MMEngine allows getattr, by which a file reaches whatever it likes."""
    name = getattr(owner, 'name', '').rpartition('.')[2] if isinstance(owner, type) else ''
    if attribute not in METHODS.get(name, ()):
        raise AttributeRequestError(f'it asks for the attribute {str(attribute)[:60]!r}')
