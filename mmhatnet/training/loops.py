"""Training loops that can start inside an epoch, and read nothing that was trained before."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.base_loop import BaseLoop
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader

from mmhatnet.training.data_order import OrderedBatches


class EpochLoop(EpochBasedTrainLoop):
    """MMEngine's loop over epochs, which may start inside an epoch.

    Attributes:
        order (OrderedBatches | None): The order of the batches.
        done (int): How many batches of the present epoch are trained.
    """

    order: OrderedBatches | None = None
    done = 0

    def run_epoch(self) -> None:
        """Trains the batches of an epoch that are not trained yet."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        if self.order:
            self.order.first = self._iter
            self.order.rest = islice(iter(self.order.batches), self.done, None)
            batches = iter(self.dataloader)
        else:  # What is passed over must be read.
            batches = islice(self.dataloader, self.done, None)
        for index, batch in enumerate(batches, self.done):
            self.done = index + 1
            self.run_iter(index, batch)
        self.done = 0
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


class PlacedIterator(_InfiniteDataloaderIterator):
    """MMEngine's endless iterator over a data loader, which may start anywhere.

    Args:
        loader (DataLoader): The data loader.
        order (OrderedBatches): The order of its batches.
    """

    def __init__(self, loader: DataLoader, order: OrderedBatches) -> None:
        self._dataloader, self._order = loader, order
        self._iterator: Iterator[Any] | None = None
        self._epoch = self._passed = 0
        order.first = 0

    def start_at(self, iteration: int) -> None:
        """Passes over the batches of earlier iterations, of which no data are read.

        Args:
            iteration (int): The iteration of the next batch.
        """
        batches = iter(self._order.batches)
        for _ in range(iteration):
            if next(batches, None) is None:
                self._next_epoch()
                batches = iter(self._order.batches)
                next(batches)
        self._order.first, self._order.rest = iteration, batches
        self._passed = iteration

    def skip_iter(self, num_iters: int) -> None:
        """Does nothing, because ``start_at`` did. OneDL's MMEngine calls it."""
        self._passed = 0

    def __next__(self) -> Any:
        if self._passed:  # The original MMEngine reads the earlier batches and drops them.
            self._passed -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self._dataloader)
        batch = next(self._iterator, None)
        if batch is None:
            self._next_epoch()
            self._iterator = iter(self._dataloader)
            batch = next(self._iterator)
        return batch

    def _next_epoch(self) -> None:
        self._epoch += 1
        loader = self._dataloader
        samplers: list[Any] = [loader.sampler, getattr(loader.batch_sampler, 'sampler', None)]
        for sampler in samplers:
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(self._epoch)
                break


def place_loop(loop: BaseLoop, order: OrderedBatches) -> None:
    """Makes a loop independent of what it has read before, if it is one of MMEngine's.

    Args:
        loop (BaseLoop): The loop, which is changed.
        order (OrderedBatches): The order of its batches.
    """
    if isinstance(loop, EpochLoop):
        loop.order = order
    elif type(loop).run is IterBasedTrainLoop.run:
        loop.dataloader_iterator = PlacedIterator(loop.dataloader, order)
    else:  # a loop of somebody else's, which reads the batches as it likes
        order.first = 0
