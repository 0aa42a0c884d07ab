"""Batches whose order and random numbers depend on the iteration alone.

Augmentations draw random numbers. MMEngine seeds each worker once, so that the numbers depend on
how many workers there are and on all that they have loaded before. A resumed training would begin
with the same numbers again. Here each sample gets numbers of its own, which follow from the seed,
the process, the iteration and the place in the batch.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from mmhatnet.training.random_state import seeded


class SeededBatch(Sequence):
    """The indices of a batch. Random numbers are seeded while a sample is loaded.

    Iterating over it yields the indices, which the data loader uses to load samples.

    Args:
        indices (Sequence): The indices.
        *numbers (int): Non-negative numbers from which the random numbers follow.
    """

    def __init__(self, indices: Sequence[Any], *numbers: int) -> None:
        self.indices = indices
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: Any) -> Any:
        return self.indices[place]

    def __iter__(self) -> Iterator[Any]:
        for place, index in enumerate(self.indices):
            with seeded(*self.numbers, place):
                yield index


class OrderedBatches:
    """A batch sampler that can start anywhere, without loading what comes before.

    Args:
        batches (Any): The batch sampler.
        *numbers (int): Non-negative numbers from which the random numbers follow, such as the seed.

    Attributes:
        first (int | None): The iteration of the first batch of the next pass. Nothing is yielded
            before it is known.
        rest (Iterator[Any] | None): The batches of the next pass; None for all of them.
    """

    def __init__(self, batches: Any, *numbers: int) -> None:
        self.batches = batches
        self.numbers = numbers
        self.first: int | None = None
        self.rest: Iterator[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':  # while it is copied
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[SeededBatch]:
        batches = iter(self.batches) if self.rest is None else self.rest
        self.rest = None
        if self.first is None:
            return
        for number, batch in enumerate(batches, self.first):
            self.first = number + 1
            yield SeededBatch(batch, *self.numbers, number)


def order_batches(loader: DataLoader, *numbers: int) -> OrderedBatches | None:
    """Makes the random numbers of a data loader depend on the iteration alone.

    Args:
        loader (DataLoader): The data loader, which is changed.
        *numbers (int): Non-negative numbers such as the seed and the number of the process.

    Returns:
        OrderedBatches | None: What decides where the loader starts; None if it has no batches of
        indices.
    """
    isolate_workers(loader)
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return None
    order = OrderedBatches(loader.batch_sampler, *numbers)
    vars(loader)['batch_sampler'] = order  # PyTorch forbids the assignment.
    return order


def isolate_workers(loader: DataLoader) -> None:
    """Keeps a data loader from the random numbers of training, and its workers from signals."""
    if loader.generator is None:
        loader.generator = torch.Generator()
    if loader.num_workers:
        loader.worker_init_fn = _WorkerInit(loader.worker_init_fn)


class _WorkerInit:
    """Makes a worker leave the signals that stop a job to the main process, then calls another.

    A scheduler sends signals to all processes, and the main process still needs the worker.
    """

    def __init__(self, following: Any) -> None:
        self.following = following

    def __call__(self, worker: int) -> None:
        for name in ('SIGINT', 'SIGUSR1'):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        if hasattr(signal, 'sigwaitinfo'):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_end_with_parent, daemon=True).start()
        if self.following is not None:
            self.following(worker)


def _end_with_parent() -> None:
    """Ends a worker at the SIGTERM of its parent, and ignores those of others."""
    parent = multiprocessing.parent_process()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != getattr(parent, 'pid', None):
        pass
    os._exit(0)
