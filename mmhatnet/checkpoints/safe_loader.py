"""Makes MMEngine read checkpoints safely, and only once, while a job runs.

MMEngine reads every checkpoint (``load_from``, ``--resume``, ``init_cfg`` of any module, teachers)
through ``CheckpointLoader.load_checkpoint``, which unpickles it. Only these reads are changed: the
code of a job, such as a dataset, may call ``torch.load`` as it likes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pickle import UnpicklingError
from threading import Lock
from typing import Any

from mmengine.dist import barrier, get_rank
from mmengine.logging import print_log
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader, load_from_http, load_from_local

from mmhatnet.checkpoints.contents import allowed_content
from mmhatnet.checkpoints.files import (
    MapLocation,
    fetch_and_read,
    first_reason,
    force_weights_only,
    read_checkpoint,
)
from mmhatnet.checkpoints.memory import memory_that_lacks
from mmhatnet.errors import CheckpointError


class Checkpoint:
    """A checkpoint that is read once, for all steps of a job that need its content.

    A file is read immediately, so that errors appear before time is spent. An address is read at
    the first access to ``content``: by then the processes of a distributed job are connected, and
    only one of them downloads.

    Args:
        place (str): A file or an address in a form that MMEngine knows.

    Raises:
        CheckpointError: If the file cannot be used.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        if '://' not in place:
            self.content = read_checkpoint(place)

    def __str__(self) -> str:
        return self.place

    @cached_property
    def content(self) -> dict[str, Any]:
        """The content, with tensors on the CPU. Users of it must not change it."""
        with load_weights_only():
            content: dict[str, Any] = CheckpointLoader.load_checkpoint(
                self.place, 'cpu', logger='silent'
            )
        return content

    @property
    def weights(self) -> dict[str, Any]:
        """The state dict inside the content, without the prefix of distributed training."""
        weights = self.content.get('state_dict', self.content)
        return {str(key).removeprefix('module.'): value for key, value in weights.items()}

    @property
    def meta(self) -> Mapping[str, Any]:
        """What MMEngine stores about the training, such as the classes; may be empty."""
        meta = self.content.get('meta')
        return meta if isinstance(meta, Mapping) else {}

    def hand_over(self) -> dict[str, Any] | None:
        """Returns the content to a caller that may change it, and forgets it.

        Returns:
            dict[str, Any] | None: None if it was not read, or was handed over before.
        """
        content: dict[str, Any] | None = self.__dict__.pop('content', None)
        return content


_lock = Lock()
_users = 0
_already_read: dict[str, Checkpoint] = {}
_originals: dict[str, Any] = {}


@contextmanager
def load_weights_only(*checkpoints: Checkpoint) -> Iterator[None]:
    """Makes MMEngine read checkpoints as ``read_checkpoint`` does, so that nothing is executed.

    A checkpoint that holds more than weights is refused, whatever the environment asks for. The
    training state that MMEngine stores is read, so training can resume. A config inside a
    checkpoint is Python code, and is left out. Calls of ``torch.load`` elsewhere are not affected.
    The context may be nested and may be entered by several threads.

    Args:
        *checkpoints (Checkpoint): Checkpoints that were read already. MMEngine's first read of each
            gets this content, with tensors on the CPU.
    """
    global _users
    with _lock:
        if not _users:
            for owner, name, replacement in _REPLACEMENTS:
                if name in vars(owner):
                    _originals[name] = vars(owner)[name]
                    setattr(owner, name, replacement)
        _users += 1
        _already_read.update({checkpoint.place: checkpoint for checkpoint in checkpoints})
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            for checkpoint in checkpoints:
                if _already_read.get(checkpoint.place) is checkpoint:
                    del _already_read[checkpoint.place]
            if not _users:
                for owner, name, _ in _REPLACEMENTS:
                    if name in _originals:
                        setattr(owner, name, _originals[name])


def _load_checkpoint(
    cls: type[CheckpointLoader],
    filename: str,
    map_location: MapLocation = None,
    logger: Any = 'current',
) -> dict[str, Any]:
    """Replaces CheckpointLoader.load_checkpoint."""
    checkpoint = _already_read.get(filename)
    content = checkpoint.hand_over() if checkpoint else None
    loader = cls._get_checkpoint_loader(filename)
    if content is not None or loader in (load_from_local, load_from_http):
        backend = loader.__name__.removeprefix('load_from_')
        print_log(f'Loads checkpoint by {backend} backend from path: {filename}', logger=logger)
    if content is None and loader is load_from_local:
        content = read_checkpoint(filename, map_location)
    elif content is None and loader is load_from_http:
        content = _read_address(filename, map_location)
    elif content is None:  # Other schemes, such as torchvision:// and openmmlab://
        try:
            with force_weights_only():
                content = _originals['load_checkpoint'].__func__(
                    cls, filename, map_location, logger
                )
        except Exception as error:  # A server, a damaged file or a refused one may raise anything.
            if needed := memory_that_lacks(error):
                raise CheckpointError(f'{filename} does not fit into memory: {needed}.') from error
            # MMEngine tries again after a refusal, and a stream is at its end then.
            refusal = error.__context__
            reason = first_reason(refusal if isinstance(refusal, UnpicklingError) else error)
            raise CheckpointError(
                f'{filename} cannot be loaded ({reason}): name a local file that holds weights '
                'alone.'
            ) from error
        content = allowed_content(content, filename)
    return content


_REPLACEMENTS: list[tuple[Any, str, Any]] = [
    (CheckpointLoader, 'load_checkpoint', classmethod(_load_checkpoint)),
    # What OneDL's MMEngine allows PyTorch's weights-only reader to name: getattr, for one.
    (mmengine_checkpoint, 'get_torch_safe_globals', list),
]


def _read_address(url: str, map_location: MapLocation) -> dict[str, Any]:
    """Downloads in one process, for which the others wait."""
    hint = 'its path in place of the address'
    if get_rank() != 0:
        barrier()
        path, content = fetch_and_read(url, hint)
    else:
        path, content = fetch_and_read(url, hint)
        barrier()
    return content if map_location in (None, 'cpu') else read_checkpoint(path, map_location)
