"""The data of a resumed training: each sample once per epoch, in the same order, augmented anew."""

import errno
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseModel
from mmengine.runner import EpochBasedTrainLoop, FlexibleRunner, IterBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from mmhatnet.errors import CheckpointError
from mmhatnet.training.runner import ReliableTraining

# MMDetection and MMPretrain register samplers and hooks that these tests name.
pytest.importorskip('mmdet.datasets')
pytest.importorskip('mmpretrain.datasets')

SAMPLES, BATCH = 10, 2
EPOCH = SAMPLES // BATCH
WORKERS = dict(num_workers=2, persistent_workers=True)


class Numbers(Dataset):
    """Samples that hold their index and random numbers."""

    def __init__(self, length: int = SAMPLES) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def get_data_info(self, index: int) -> dict:
        return dict(width=1 + index % 3, height=2)

    def __getitem__(self, index: int) -> dict:
        drawn = [random.random(), np.random.rand(), torch.rand(()).item()]
        return dict(index=torch.tensor(index), drawn=torch.tensor(drawn))


class Line(BaseModel):
    """A layer with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, index: Tensor, drawn: Tensor, mode: str) -> dict[str, Tensor]:
        return dict(loss=self.layer(nn.functional.dropout(drawn, 0.5)).square().mean())


class Recorder(Hook):
    """Keeps the data and the learning rate of each iteration."""

    def __init__(self) -> None:
        self.batches: dict[int, list] = {}
        self.rates: dict[int, float] = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        indices, drawn = (torch.as_tensor(data_batch[key]) for key in ('index', 'drawn'))
        self.batches[runner.iter] = list(zip(indices.tolist(), map(tuple, drawn.tolist())))
        self.rates[runner.iter] = runner.optim_wrapper.get_lr()['lr'][0]


class Killed(Exception):
    """Ends a training where a kill would."""


class Kill(Hook):
    priority = 'LOWEST'

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        if runner.iter + 1 == self.at:
            raise Killed


class ReliableRunner(ReliableTraining, Runner):
    pass


class SavingRunner(ReliableRunner):
    save_every = 0.0


class ReliableFlexibleRunner(ReliableTraining, FlexibleRunner):
    pass


@pytest.fixture
def train(tmp_path: Path, monkeypatch) -> Callable:
    """Trains the layer and returns what it has seen and the weights that it ends with."""

    def run(
        loop: dict,
        sampler: dict,
        resumed: Path | None = None,
        kill: int | None = None,
        base: type = ReliableRunner,
        work: str = 'work',
        dataset: Dataset | None = None,
        hooks: tuple = (),
        **settings,
    ) -> tuple[Recorder, dict]:
        loader = dict(
            dataset=dataset or Numbers(),
            sampler=sampler,
            batch_size=BATCH,
            collate_fn=dict(type='default_collate'),
            **settings.pop('loader', {}),
        )
        iterations = loop.get('max_iters') or loop['max_epochs'] * EPOCH
        recorder = Recorder()
        kept = dict(by_epoch=False, interval=kill or -1, save_last=False)
        settings.setdefault('optim_wrapper', dict(optimizer=dict(type='SGD', lr=1.0)))
        settings.setdefault('randomness', dict(seed=1))
        settings.setdefault('default_hooks', dict(checkpoint=dict(type='CheckpointHook', **kept)))
        torch.manual_seed(0)
        runner = base(
            model=Line(),
            work_dir=str(tmp_path / work),
            train_dataloader=loader,
            train_cfg=loop,
            param_scheduler=dict(type='LinearLR', by_epoch=False, end=iterations, end_factor=0.0),
            load_from=resumed and str(resumed),
            resume=resumed is not None,
            custom_hooks=[recorder, *hooks, *([Kill(kill)] if kill else [])],
            experiment_name=f'{work}{len(list(tmp_path.rglob("*")))}',
            cfg=Config(dict(a=1)),
            **settings,
        )
        if kill:
            with pytest.raises(Killed):
                runner.train()
        else:
            runner.train()
        return recorder, runner.model.state_dict()

    return run


def assert_resumed(resumed: tuple, whole: tuple, start: int) -> None:
    """Checks data, random numbers, learning rates and weights from an iteration on."""
    (seen, weights), (all_seen, expected) = resumed, whole
    assert list(seen.batches) == list(range(start, len(all_seen.batches)))
    for iteration, batch in seen.batches.items():
        assert batch == all_seen.batches[iteration], iteration
        assert seen.rates[iteration] == all_seen.rates[iteration]
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_each_sample_gets_random_numbers_of_its_own(train) -> None:
    job = dict(loop=dict(by_epoch=True, max_epochs=3), sampler=dict(type='DefaultSampler'))
    recorder, weights = train(**job)
    seen = [sample for batch in recorder.batches.values() for sample in batch]
    for epoch in range(3):
        indices = [index for index, _ in seen[epoch * SAMPLES :][:SAMPLES]]
        assert sorted(indices) == list(range(SAMPLES))
    numbers = Counter(number for _, drawn in seen for number in drawn)
    assert len(numbers) == 3 * 3 * SAMPLES
    assert_resumed(train(**job, loader=WORKERS, work='workers'), (recorder, weights), 0)


class EagerLoop(IterBasedTrainLoop):
    """Starts to read when it is built, as the loop of the original MMEngine does."""

    def __init__(self, runner: Runner, dataloader: DataLoader, max_iters: int) -> None:
        super().__init__(runner, dataloader, max_iters)
        self.dataloader_iterator._iterator = iter(self.dataloader)


EPOCHS, ITERATIONS = dict(by_epoch=True, max_epochs=3), dict(by_epoch=False, max_iters=3 * EPOCH)
SHUFFLED, ENDLESS = dict(type='DefaultSampler'), dict(type='InfiniteSampler')
BY_SHAPE = dict(batch_sampler=dict(type='mmdet.AspectRatioBatchSampler'))
REPEATED = dict(type='mmpretrain.RepeatAugSampler')
MIXED = dict(type='mmdet.MultiSourceSampler', batch_size=BATCH, source_ratio=[1, 1])
SEVERAL = ConcatDataset([Numbers(6), Numbers(4)])
FLEXIBLE = dict(base=ReliableFlexibleRunner, strategy=dict(type='SingleDeviceStrategy'))
RESUMED = {
    'epochs': (EPOCHS, SHUFFLED, {}),
    'epochs with workers': (EPOCHS, SHUFFLED, dict(loader=WORKERS)),
    'epochs by shape': (EPOCHS, SHUFFLED, dict(loader=BY_SHAPE)),
    'epochs of repeated samples': (EPOCHS, REPEATED, {}),
    'iterations': (ITERATIONS, SHUFFLED, {}),
    'iterations by shape': (ITERATIONS, SHUFFLED, dict(loader=BY_SHAPE)),
    'endless': (ITERATIONS, ENDLESS, {}),
    'endless with workers': (ITERATIONS, ENDLESS, dict(loader=WORKERS)),
    'endless, read early': (dict(type=EagerLoop, max_iters=15), ENDLESS, dict(loader=WORKERS)),
    'mixed': (ITERATIONS, MIXED, dict(dataset=SEVERAL)),
    'seed per process': (EPOCHS, SHUFFLED, dict(randomness=dict(seed=1, diff_rank_seed=True))),
    'flexible': (EPOCHS, SHUFFLED, FLEXIBLE),
    'flexible iterations': (ITERATIONS, ENDLESS, FLEXIBLE),
}


@pytest.mark.parametrize('case', RESUMED)
@pytest.mark.parametrize('iteration', [EPOCH, EPOCH + 2])
def test_a_checkpoint_inside_an_epoch(case: str, iteration: int, train, tmp_path) -> None:
    """The last iteration of an epoch lies inside it, because the epoch has not ended then."""
    loop, sampler, settings = RESUMED[case]
    whole = train(loop, sampler, work='whole', **settings)
    assert len(whole[0].batches) == 3 * EPOCH
    train(loop, sampler, kill=iteration, **settings)
    checkpoint = tmp_path / 'work' / f'iter_{iteration}.pth'
    resumed = train(loop, sampler, resumed=checkpoint, **settings)
    assert_resumed(resumed, whole, iteration)


@pytest.mark.parametrize('loop', [EPOCHS, ITERATIONS], ids=['epochs', 'iterations'])
@pytest.mark.parametrize('iteration', [EPOCH, EPOCH + 2])
def test_a_checkpoint_of_mmengine_inside_an_epoch(loop, iteration, train, tmp_path) -> None:
    """It holds no random numbers, but data and learning rates go on where they were."""
    whole, _ = train(loop, SHUFFLED, work='whole')
    train(loop, SHUFFLED, kill=iteration, base=Runner)
    checkpoint = tmp_path / 'work' / f'iter_{iteration}.pth'
    recorder, _ = train(loop, SHUFFLED, resumed=checkpoint)
    assert list(recorder.batches) == list(range(iteration, 3 * EPOCH))
    for number, batch in recorder.batches.items():
        assert batch == whole.batches[number]
        assert recorder.rates[number] == whole.rates[number]


@pytest.mark.parametrize('base', [ReliableRunner, Runner])
def test_an_epoch_of_another_length_is_refused(base, train, tmp_path) -> None:
    train(EPOCHS, SHUFFLED, kill=EPOCH + 2, base=base)
    resumed = tmp_path / 'work' / f'iter_{EPOCH + 2}.pth'
    with pytest.raises(CheckpointError, match='iterations per epoch: 6 .*, 5 in the .* inside an'):
        train(EPOCHS, SHUFFLED, resumed=resumed, dataset=Numbers(12))


class OwnLoop(EpochBasedTrainLoop):
    """A loop of somebody else's."""

    def run_epoch(self) -> None:
        super().run_epoch()


def test_loops_of_others_continue_the_random_numbers(train, tmp_path) -> None:
    loop = dict(type=OwnLoop, max_epochs=3)
    hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    whole = train(loop, SHUFFLED, work='whole', default_hooks=hooks)
    train(loop, SHUFFLED, kill=EPOCH + 2, default_hooks=hooks)
    resumed = train(loop, SHUFFLED, resumed=tmp_path / 'work' / 'epoch_1.pth')
    assert_resumed(resumed, whole, EPOCH)


class OwnHook(CheckpointHook):
    """A hook of somebody else's."""


@pytest.mark.parametrize('hook', [CheckpointHook, OwnHook])
def test_the_older_checkpoint_stays_until_the_next_is_saved(
    hook, train, tmp_path, monkeypatch
) -> None:
    hooks = dict(checkpoint=dict(type=hook, interval=1, max_keep_ckpts=1))
    train(dict(by_epoch=True, max_epochs=2), SHUFFLED, default_hooks=hooks)
    assert [path.name for path in tmp_path.glob('work/*.pth')] == ['epoch_2.pth']
    put = LocalBackend.put

    def fail(backend: LocalBackend, content: bytes, path: str) -> None:
        put(backend, content[:9], path)
        if 'epoch_2' in str(path):
            raise OSError(errno.EIO, 'Input/output error')

    monkeypatch.setattr(LocalBackend, 'put', fail)
    with pytest.raises(CheckpointError, match='failing/epoch_2.pth cannot be written'):
        train(EPOCHS, SHUFFLED, default_hooks=hooks, work='failing')
    assert [path.name for path in tmp_path.glob('failing/*.pth')] == ['epoch_1.pth']


class Batched(Numbers):
    """A dataset that loads a batch at once."""

    def __getitems__(self, indices: list[int]) -> list[dict]:
        assert indices[0] in range(SAMPLES) and len(indices) == BATCH
        return [self[index] for index in indices]


def test_datasets_that_load_a_batch_at_once(train) -> None:
    assert_resumed(
        train(EPOCHS, SHUFFLED, dataset=Batched(), loader=WORKERS),
        train(EPOCHS, SHUFFLED, work='single'),
        0,
    )


def test_gradients_that_are_accumulated(train, tmp_path) -> None:
    """A checkpoint by time waits until they are applied."""
    job = dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0), accumulative_counts=3))
    whole = train(EPOCHS, SHUFFLED, work='whole', **job)
    train(EPOCHS, SHUFFLED, kill=8, base=SavingRunner, **job)
    resumed = train(EPOCHS, SHUFFLED, resumed=tmp_path / 'work' / 'latest.pth', **job)
    assert_resumed(resumed, whole, 6)
