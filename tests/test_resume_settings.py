"""A training that resumes does not use other settings than its config has without saying so."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import forget_earlier_runs
from experiments import ALL_EXPERIMENTS, TOY, identify, rest_slow, without_amp
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, init_default_scope
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

from mmhatnet.checkpoints.files import read_checkpoint
from mmhatnet.checkpoints.safe_loader import load_weights_only
from mmhatnet.errors import CheckpointError
from mmhatnet.training.resume_settings import (
    reapply_settings,
    require_same_settings,
    settings_of,
)
from mmhatnet.training.schedules import drop_functions

EPOCH = 4  # iterations
SHUFFLED = dict(type='DefaultSampler', shuffle=True)
WARM_UP = dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=3)
COSINE = dict(type='CosineAnnealingLR', eta_min=1e-3, by_epoch=True, convert_to_iter_based=True)
# What the configs of this project and others use. Those that depend on the length of training
# change with it.
SCHEDULES = dict(
    cosine=[WARM_UP, COSINE],
    cosine_of_epochs=[WARM_UP, dict(type='CosineAnnealingLR', eta_min_ratio=0.1, begin=1)],
    steps=[WARM_UP, dict(type='MultiStepLR', milestones=[1, 2, 4], gamma=0.5)],
    poly=[WARM_UP, dict(type='PolyLR', power=0.9, begin=3, by_epoch=False)],
    exponential=[dict(type='ExponentialLR', gamma=0.7)],
    restarts=dict(
        type='CosineRestartLR', periods=[5, 50], restart_weights=[1, 0.5], eta_min=0, by_epoch=False
    ),
    one_cycle=dict(type='OneCycleLR', eta_max=0.3, convert_to_iter_based=True),
    constant=dict(type='ConstantLR', factor=0.5, end=1),
    two_values=[
        COSINE,
        dict(type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min=0.01),
        dict(type='LinearMomentum', start_factor=0.5, by_epoch=False, end=6),
    ],
    cosine_of_iterations=dict(type='CosineAnnealingLR', eta_min=0, by_epoch=False),
    one_cycle_of_iterations=dict(type='OneCycleLR', eta_max=0.3, by_epoch=False),
    none=None,
)


class Model(BaseModel):
    def __init__(self, features: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, features)
        self.norm = nn.LayerNorm(features)
        self.head = nn.Linear(features, 1)

    def forward(self, inputs, data_samples=None, mode: str = 'tensor'):
        output = self.head(self.norm(self.backbone(torch.stack(inputs))))
        if mode == 'loss':
            return dict(loss=output.square().mean())
        return [output]

    def train_step(self, data, optim_wrapper):
        if not isinstance(optim_wrapper, OptimWrapperDict):
            return super().train_step(data, optim_wrapper)
        losses = self.forward(**self.data_preprocessor(data, True), mode='loss')
        for wrapper in optim_wrapper.values():
            wrapper.zero_grad()
        losses['loss'].backward()
        for wrapper in optim_wrapper.values():
            wrapper.step()
        return losses


class Data(torch.utils.data.Dataset):
    def __init__(self, classes: tuple = ('cat', 'dog'), length: int = 2 * EPOCH) -> None:
        self.metainfo = dict(classes=classes)
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.tensor([index / 8, 1.0]))


class Rates(Hook):
    """Notes the values with which each iteration is trained."""

    priority = 'VERY_LOW'

    def __init__(self, key: str = 'lr') -> None:
        self.key, self.values = key, []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        wrappers = runner.optim_wrapper
        first = (
            next(iter(wrappers.values())) if isinstance(wrappers, OptimWrapperDict) else wrappers
        )
        value = [group[self.key] for group in first.optimizer.param_groups]
        self.values.append([v[0] if isinstance(v, tuple) else v for v in value])


class Metric(BaseMetric):
    """A metric that never improves."""

    def process(self, data_batch, data_samples) -> None:
        self.results.append(1.0)

    def compute_metrics(self, results: list) -> dict:
        return dict(loss=1.0)


class Job:
    """A small training, of which settings can be replaced."""

    def __init__(self, folder: Path, runner_type: type | None = None, **settings: Any) -> None:
        self.folder = folder
        self.runner_type = runner_type or JobRunner
        self.settings = dict(
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05)),
            param_scheduler=SCHEDULES['cosine'],
            train_cfg=dict(by_epoch=True, max_epochs=3),
            train_dataloader=dict(
                batch_size=2,
                dataset=Data(),
                sampler=SHUFFLED,
            ),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        )
        self.settings |= settings

    def runner(self, key: str = 'lr', resumed: str | None = None, **settings: Any) -> Runner:
        forget_earlier_runs()
        self.rates = Rates(key)
        all_settings = deepcopy(self.settings | settings)
        hooks = [self.rates, *all_settings.pop('custom_hooks', [])]
        model = all_settings.pop('model', None) or Model()
        runner = self.runner_type(
            model,
            work_dir=str(self.folder),
            custom_hooks=hooks,
            load_from=resumed and str(self.folder / resumed),
            resume=resumed is not None,
            log_level='ERROR',
            experiment_name='job',
            **all_settings,
        )
        return runner

    def train(self, key: str = 'lr', **settings: Any) -> list[list[float]]:
        """Returns the values used by each iteration."""
        self.runner(key, **settings).train()
        return self.rates.values

    def resume(
        self, name: str, reapply: bool = False, key: str = 'lr', **settings: Any
    ) -> list[list[float]]:
        runner = self.runner(key, resumed=name, **settings)
        runner.reapply = reapply
        with load_weights_only():
            runner.train()
        return self.rates.values

    def as_of_mmengine(self, name: str) -> str:
        """Writes the checkpoint as MMEngine alone would have, and returns its name."""
        content = torch.load(self.folder / name, weights_only=False)
        del content['mmhatnet']
        torch.save(content, self.folder / 'plain.pth')
        return 'plain.pth'


class Comparing:
    """Compares the settings when a runner resumes, and records them in its checkpoints."""

    reapply = False

    def _log_env(self, *args) -> None:
        pass  # It asks compilers for their versions.

    def call_hook(self, fn_name: str, **kwargs) -> None:
        super().call_hook(fn_name, **kwargs)
        content = kwargs.get('checkpoint')
        if fn_name == 'before_save_checkpoint':
            drop_functions(content)
            content['mmhatnet'] = dict(settings=settings_of(self))
        if fn_name == 'after_load_checkpoint' and self._resume:
            compare = reapply_settings if self.reapply else require_same_settings
            content.update(compare(self, content))


class JobRunner(Comparing, Runner):
    pass


class FlexibleJobRunner(Comparing, FlexibleRunner):
    pass


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def longer(job: Job, epochs: int) -> dict:
    """Returns the settings of a longer training of the same kind."""
    loop = job.settings['train_cfg']
    if loop['by_epoch']:
        return dict(train_cfg=dict(by_epoch=True, max_epochs=epochs))
    return dict(train_cfg=dict(by_epoch=False, max_iters=epochs * EPOCH))


def by_iteration() -> dict:
    return dict(
        train_cfg=dict(by_epoch=False, max_iters=3 * EPOCH),
        train_dataloader=dict(
            batch_size=2, dataset=Data(), sampler=dict(type='InfiniteSampler', shuffle=True)
        ),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)),
    )


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_unchanged_settings_are_resumed(schedule, tmp_path, capsys) -> None:
    job = Job(tmp_path, param_scheduler=SCHEDULES[schedule])
    whole = job.train()
    capsys.readouterr()
    for epoch in (1, 2):
        for name in (f'epoch_{epoch}.pth', job.as_of_mmengine(f'epoch_{epoch}.pth')):
            assert job.resume(name) == whole[epoch * EPOCH :]
    assert job.resume('epoch_2.pth', reapply=True) == whole[2 * EPOCH :]
    assert job.resume('epoch_3.pth') == []
    assert 'take effect' not in capsys.readouterr().out


@pytest.mark.parametrize('schedule', ['cosine_of_iterations', 'poly', 'one_cycle_of_iterations'])
def test_unchanged_settings_are_resumed_at_any_iteration(schedule, tmp_path, capsys) -> None:
    job = Job(tmp_path, **by_iteration(), param_scheduler=SCHEDULES[schedule])
    whole = job.train()
    for iteration in range(1, 3 * EPOCH + 1):
        assert job.resume(f'iter_{iteration}.pth') == whole[iteration:]


def close(rates: list[list[float]]) -> list:
    return [pytest.approx(values) for values in rates]


OF_ITERATIONS = ('cosine_of_iterations', 'poly', 'one_cycle_of_iterations', 'restarts', 'none')


@pytest.mark.parametrize(
    ('loop', 'schedule'),
    [('epochs', name) for name in SCHEDULES] + [('iterations', name) for name in OF_ITERATIONS],
)
def test_longer_training_gets_its_own_schedule(schedule, loop, tmp_path, capsys) -> None:
    settings = dict(param_scheduler=SCHEDULES[schedule])
    settings |= by_iteration() if loop == 'iterations' else {}
    whole = Job(tmp_path / 'whole', **settings)
    expected = whole.train(**longer(whole, 5))
    job = Job(tmp_path / 'short', **settings)
    job.train()
    name, last = (
        ('epoch_2.pth', 'epoch_3.pth') if loop == 'epochs' else ('iter_8.pth', 'iter_12.pth')
    )
    assert job.resume(name, reapply=True, **longer(job, 5)) == close(expected[8:])
    assert job.resume(last, reapply=True, **longer(job, 5)) == close(expected[12:])
    capsys.readouterr()
    assert job.resume(name, **longer(job, 5)) == close(expected[8:]), 'without the option as well'
    assert re.search(r'take effect: train_cfg.max_\w+ \d+, was \d+', capsys.readouterr().out)
    assert job.resume(last, **longer(job, 5)) == close(expected[12:])


def test_another_schedule_of_the_same_length_is_refused(job: Job) -> None:
    job.train()
    other = dict(param_scheduler=SCHEDULES['poly'])
    with pytest.raises(CheckpointError, match='(?s)param_scheduler.*--reapply-settings'):
        job.resume('epoch_2.pth', **other)


def test_message_names_each_difference_and_the_ways(job: Job) -> None:
    job.train()
    changed = dict(
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05)),
        **longer(job, 5),
    )
    with pytest.raises(CheckpointError) as refused:
        job.resume('epoch_2.pth', **changed)
    place = job.folder / 'epoch_2.pth'
    assert str(refused.value).splitlines() == [
        f'{place} comes from a training with other settings than the config has:',
        '  train_cfg.max_epochs: 5 in the config (would take effect), 3 in the checkpoint',
        '  optim_wrapper.optimizer.lr: 0.001 in the config, 0.1 in the checkpoint (would take '
        'effect)',
        '  param_scheduler[1] (CosineAnnealingLR, in iterations) T_max: 20 in the config, 12 in '
        'the checkpoint (would take effect)',
        '  param_scheduler[1] (CosineAnnealingLR, in iterations) end: 20 in the config, 12 in the '
        'checkpoint (would take effect)',
        'To go on as before, resume with the settings of the checkpoint. With --reapply-settings, '
        'those of the config take effect from here on. To start a new training from the weights, '
        f'leave out --resume and add --cfg-options load_from={place}',
    ]


def test_new_settings_of_the_optimizer_take_effect(job: Job, tmp_path: Path, capsys) -> None:
    job.train()
    changed = dict(
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=0.02, weight_decay=0.1, betas=(0.8, 0.9))
        )
    )
    expected = Job(tmp_path / 'whole').train(**changed)
    capsys.readouterr()
    assert job.resume('epoch_2.pth', reapply=True, **changed) == close(expected[8:])
    assert capsys.readouterr().out.endswith(
        '--reapply-settings: these settings take effect from here on: '
        'optim_wrapper.optimizer.lr 0.02, was 0.1; '
        'optim_wrapper.optimizer.betas [0.8, 0.9], was [0.9, 0.999]; '
        'optim_wrapper.optimizer.weight_decay 0.1, was 0.05\n'
    )
    group = read_checkpoint(tmp_path / 'epoch_3.pth')['optimizer']['param_groups'][0]
    assert (group['weight_decay'], group['betas']) == (0.1, (0.8, 0.9))
    # The checkpoint of the resumed training has the new settings. The option may stay.
    assert job.resume('epoch_3.pth', **changed) == []
    job.resume('epoch_1.pth', reapply=True, **changed)
    assert job.resume('epoch_2.pth', reapply=True, **changed) == close(expected[8:])


def test_state_of_the_optimizer_is_kept(job: Job) -> None:
    job.train()
    runner = job.runner(resumed='epoch_2.pth', **longer(job, 5))
    content = read_checkpoint(job.folder / 'epoch_2.pth')
    before = deepcopy(content)
    start(runner)
    reapplied = reapply_settings(runner, content)
    assert reapplied['optimizer']['state'] is content['optimizer']['state']
    assert content['optimizer']['param_groups'] == before['optimizer']['param_groups']
    assert content['param_schedulers'] == before['param_schedulers']
    runner.optim_wrapper.load_state_dict(reapplied['optimizer'])
    state = runner.optim_wrapper.optimizer.state[next(runner.model.parameters())]
    assert torch.equal(state['exp_avg'], content['optimizer']['state'][0]['exp_avg'])


def start(runner: Runner) -> None:
    """Builds what MMEngine builds before it resumes."""
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    if runner.param_schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)


@pytest.mark.parametrize('missing', ['optimizer', 'param_scheduler'])
def test_rates_go_on_without_a_part_of_the_state(missing: str, tmp_path: Path) -> None:
    checkpoint = {'type': 'CheckpointHook', 'interval': 1, f'save_{missing}': False}
    job = Job(tmp_path, default_hooks=dict(checkpoint=checkpoint))
    whole = job.train()
    for name in ('epoch_2.pth', job.as_of_mmengine('epoch_2.pth')):
        assert job.resume(name) == close(whole[8:])


def test_nothing_is_refused_when_nothing_is_left_to_train(job: Job) -> None:
    job.train()
    other = dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1.0)))
    assert job.resume('epoch_3.pth', **other) == []
    assert job.resume('epoch_3.pth', reapply=True, **other) == []
    assert job.resume('epoch_2.pth', train_cfg=dict(by_epoch=True, max_epochs=2), **other) == []


def test_settings_that_take_effect_are_printed(tmp_path: Path, capsys) -> None:
    job = Job(tmp_path, param_scheduler=None)
    job.train()
    changed = dict(
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05),
            accumulative_counts=2,
            clip_grad=dict(max_norm=1.0),
        ),
        train_dataloader=dict(batch_size=4, dataset=Data(), sampler=SHUFFLED),
        **longer(job, 4),
    )
    capsys.readouterr()
    assert job.resume('epoch_2.pth', **changed) == [[0.1]] * 4
    assert capsys.readouterr().out.endswith(
        'Other settings than in the checkpoint take effect: '
        'train_dataloader.batch_size 4, was 2; iterations per epoch 2, was 4; '
        'train_cfg.max_epochs 4, was 3; optim_wrapper.accumulative_counts 2, was 1; '
        'optim_wrapper.clip_grad {max_norm: 1}, was none\n'
    )


def test_other_batch_size_moves_the_schedule(tmp_path: Path) -> None:
    changed = dict(train_dataloader=dict(batch_size=4, dataset=Data(), sampler=SHUFFLED))
    expected = Job(tmp_path / 'whole').train(**changed)
    job = Job(tmp_path / 'job')
    job.train()
    for name in ('epoch_2.pth', job.as_of_mmengine('epoch_2.pth')):
        with pytest.raises(CheckpointError, match='T_max: 6 in the config, 12 in the checkpoint'):
            job.resume(name, **changed)
        assert job.resume(name, reapply=True, **changed) == close(expected[4:])


SGD = dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)))
PER_PARAMETER = dict(norm_decay_mult=0.0)


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        (
            SGD,
            'optim_wrapper.optimizer: SGD in the config, .* in the checkpoint; the state of the ',
        ),
        (
            dict(
                optim_wrapper=dict(
                    optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05),
                    paramwise_cfg=PER_PARAMETER,
                )
            ),
            'param groups: 6 with 6 parameters in the config, 1 with 6 parameters in the check',
        ),
        (dict(model=Model(4)), 'exp_avg of other shapes in the checkpoint; the state of'),
        (
            dict(
                train_dataloader=dict(batch_size=2, sampler=SHUFFLED, dataset=Data(('cat', 'cow')))
            ),
            'classes: 2, with number 1 cow in the config, 2, with number 1 dog in the checkpoint',
        ),
        (
            dict(
                train_dataloader=dict(
                    batch_size=2, sampler=SHUFFLED, dataset=Data(('cat', 'dog', 'cow'))
                )
            ),
            'classes: 3, with number 2 cow in the config, 2, with number 2 missing in the',
        ),
    ],
    ids=['optimizer', 'groups', 'shapes', 'other class', 'more classes'],
)
def test_impossible_settings_are_refused(changed: dict, message: str, job: Job) -> None:
    job.train(train_cfg=dict(by_epoch=True, max_epochs=1))
    for name in ('epoch_1.pth', job.as_of_mmengine('epoch_1.pth')):
        for reapply in (False, True):
            with pytest.raises(CheckpointError, match=message) as refused:
                job.resume(name, reapply=reapply, **changed)
            assert '--reapply-settings' not in str(refused.value)
            assert f'load_from={job.folder / name}' in str(refused.value)


def test_names_of_classes_may_change_their_case(job: Job) -> None:
    job.train()
    loader = dict(job.settings['train_dataloader'], dataset=Data(('Cat', 'dog')))
    assert len(job.resume('epoch_2.pth', train_dataloader=loader)) == EPOCH


def test_inside_an_epoch_its_order_must_stay(tmp_path: Path) -> None:
    hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False))
    job = Job(tmp_path, default_hooks=hooks, randomness=dict(seed=1))
    job.train(train_cfg=dict(by_epoch=True, max_epochs=2))
    loader = dict(job.settings['train_dataloader'], batch_size=4)
    for name, changed, message in (
        (
            'iter_3.pth',
            dict(train_dataloader=loader),
            'iterations per epoch: 2 in the config, 4 in',
        ),
        (
            'iter_6.pth',
            dict(randomness=dict(seed=2)),
            'randomness.seed: 2 in the config, 1 in the ',
        ),
    ):
        with pytest.raises(CheckpointError, match=f'cannot resume.*[\\s\\S]*{message}'):
            job.resume(name, reapply=True, **changed)


def test_schedule_is_placed_inside_an_epoch(tmp_path: Path) -> None:
    hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False))
    job = Job(tmp_path, default_hooks=hooks, param_scheduler=SCHEDULES['cosine_of_epochs'])
    expected = Job(tmp_path / 'whole', param_scheduler=SCHEDULES['cosine_of_epochs']).train(
        **longer(job, 5)
    )
    job.train()
    # After iteration 8, the second epoch has not ended yet, and its rate stays.
    for iteration, same_as in ((2, 2), (5, 5), (6, 6), (8, 7), (11, 11)):
        runner = job.runner(resumed=f'iter_{iteration}.pth', **longer(job, 5))
        start(runner)
        content = reapply_settings(runner, read_checkpoint(tmp_path / f'iter_{iteration}.pth'))
        rate = content['optimizer']['param_groups'][0]['lr']
        assert rate == pytest.approx(expected[same_as][0])
        assert content['meta']['iter'] == iteration


def test_seed_is_not_ignored(tmp_path: Path) -> None:
    job = Job(tmp_path, randomness=dict(seed=1))
    job.train()
    with pytest.raises(CheckpointError, match=r'randomness.seed: 2 in the config, 1 in the check'):
        job.resume('epoch_1.pth', randomness=dict(seed=2))
    job.resume('epoch_1.pth', randomness=dict(seed=None))
    job.resume('epoch_1.pth', randomness=dict(seed=2), reapply=True)
    assert read_checkpoint(tmp_path / 'epoch_3.pth')['meta']['seed'] == 2


def test_scaled_rates_count_as_they_are_used(tmp_path: Path) -> None:
    job = Job(tmp_path, auto_scale_lr=dict(enable=True, base_batch_size=7))
    whole = job.train()
    assert whole[0] == pytest.approx([0.001 * 2 / 7])
    assert job.resume('epoch_2.pth') == whole[8:]
    with pytest.raises(
        CheckpointError, match=r'lr: 0.1 in the config, 0.0285714 in the checkpoint'
    ):
        job.resume('epoch_2.pth', auto_scale_lr=None)


def test_rates_of_param_groups(tmp_path: Path) -> None:
    def wrapper(head: float) -> dict:
        keys = dict(backbone=dict(lr_mult=0.1), head=dict(lr_mult=head))
        optimizer = dict(type='AdamW', lr=0.1, weight_decay=0.05)
        paramwise_cfg = dict(custom_keys=keys, norm_decay_mult=0.0)
        return dict(optim_wrapper=dict(optimizer=optimizer, paramwise_cfg=paramwise_cfg))

    job = Job(tmp_path, **wrapper(2))
    whole = job.train()
    assert whole[0] == pytest.approx([1e-4, 1e-4, 1e-3, 1e-3, 2e-3, 2e-3])
    assert job.resume('epoch_2.pth') == whole[8:]
    expected = Job(tmp_path / 'whole').train(**wrapper(3))
    with pytest.raises(CheckpointError) as refused:
        job.resume('epoch_2.pth', **wrapper(3))
    line = 'optimizer.lr (in 2 of 6 param groups, here number 4): 0.3 in the config, 0.2 in the'
    assert line in str(refused.value) and str(refused.value).count('\n  ') == 1
    assert job.resume('epoch_2.pth', reapply=True, **wrapper(3)) == close(expected[8:])
    # MMEngine logs the rate of the optimizer as a whole.
    base = read_checkpoint(tmp_path / 'epoch_3.pth')['optimizer']['base_param_settings']
    assert base['lr'] == pytest.approx(expected[-1][2], rel=0.5) and 'params' in base


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class TwoOptimizers:
    """One optimizer for the head and one for the rest."""

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg=None) -> None:
        self.rates = optim_wrapper_cfg['rates']

    def __call__(self, model: nn.Module) -> OptimWrapperDict:
        modules = dict(body=model.backbone, head=model.head)
        return OptimWrapperDict(
            **{
                name: OptimWrapper(torch.optim.AdamW(module.parameters(), lr=rate))
                for (name, module), rate in zip(modules.items(), self.rates)
            }
        )


def test_several_optimizers(tmp_path: Path) -> None:
    def wrapper(*rates: float) -> dict:
        return dict(optim_wrapper=dict(constructor='TwoOptimizers', rates=rates))

    job = Job(tmp_path, **wrapper(0.1, 0.2))
    whole = job.train()
    for name in ('epoch_2.pth', job.as_of_mmengine('epoch_2.pth')):
        assert job.resume(name) == whole[8:]
    changed = dict(wrapper(0.1, 0.3), **longer(job, 5))
    with pytest.raises(CheckpointError) as refused:
        job.resume('epoch_2.pth', **changed)
    for line in (
        'optim_wrapper.head.optimizer.lr: 0.3 in the config, 0.2 in the checkpoint (would',
        'param_scheduler.body[1] (CosineAnnealingLR, in iterations) T_max: 20 in the config, 12 ',
    ):
        assert line in str(refused.value)
    expected = Job(tmp_path / 'whole').train(**changed)
    assert job.resume('epoch_2.pth', reapply=True, **changed) == close(expected[8:])


@OPTIM_WRAPPERS.register_module(force=True)
class AmpOnCPU(AmpOptimWrapper):
    """Mixed precision with a loss scaler, as on a GPU."""

    def __init__(self, growth_interval: int = 3, **kwargs) -> None:
        OptimWrapper.__init__(self, **kwargs)
        self._scale_update_param = self.cast_dtype = None
        self.loss_scaler = torch.amp.GradScaler('cpu', growth_interval=growth_interval)

    def optim_context(self, model: nn.Module):
        return OptimWrapper.optim_context(self, model)


def test_mixed_precision(job: Job, capsys) -> None:
    optimizer = job.settings['optim_wrapper']['optimizer']
    amp = dict(type='AmpOnCPU', optimizer=optimizer)
    whole = job.train(optim_wrapper=amp)
    scale = read_checkpoint(job.folder / 'epoch_2.pth')['optimizer']['loss_scaler']['scale']
    assert scale == 2**18
    assert job.resume('epoch_2.pth', optim_wrapper=amp) == whole[8:]
    changed = dict(amp, growth_interval=100)
    with pytest.raises(
        CheckpointError, match=r'loss_scale.growth_interval: 100 in the config, 3 in'
    ):
        job.resume('epoch_2.pth', optim_wrapper=changed)
    job.resume('epoch_2.pth', optim_wrapper=changed, reapply=True)
    scaler = read_checkpoint(job.folder / 'epoch_3.pth')['optimizer']['loss_scaler']
    assert (scaler['scale'], scaler['growth_interval']) == (2**18, 100)
    capsys.readouterr()
    assert job.resume('epoch_2.pth') == whole[8:]
    assert 'take effect: optim_wrapper.type OptimWrapper, was AmpOnCPU' in capsys.readouterr().out


def test_averaged_weights_are_not_trained(tmp_path: Path, capsys) -> None:
    averaging = dict(custom_hooks=[dict(type='EMAHook', momentum=0.5)])
    job = Job(tmp_path, **averaging)
    whole = job.train()
    assert job.resume('epoch_2.pth') == whole[8:]
    with pytest.raises(CheckpointError, match='EMAHook: no in the config, yes in the checkpoint'):
        job.resume('epoch_2.pth', custom_hooks=[])
    runner = job.runner(resumed='epoch_2.pth', custom_hooks=[])
    start(runner)
    content = read_checkpoint(tmp_path / 'epoch_2.pth')
    weights = reapply_settings(runner, content)['state_dict']
    trained = content['ema_state_dict']['module.head.weight']
    assert torch.equal(weights['head.weight'], trained)
    assert not torch.equal(content['state_dict']['head.weight'], trained)

    other = Job(tmp_path / 'other')
    other.train()
    capsys.readouterr()
    other.resume('epoch_2.pth', **averaging)
    assert 'take effect: EMAHook yes, was no' in capsys.readouterr().out


def test_reductions_after_a_metric_are_kept(tmp_path: Path) -> None:
    validation = dict(
        val_dataloader=dict(batch_size=2, dataset=Data(), sampler=dict(type='DefaultSampler')),
        val_cfg={},
        val_evaluator=Evaluator(Metric()),
        param_scheduler=[
            WARM_UP,
            dict(type='ReduceOnPlateauLR', monitor='loss', patience=0, factor=0.5),
        ],
    )
    job = Job(tmp_path, **validation)
    whole = job.train(train_cfg=dict(by_epoch=True, max_epochs=4))
    assert [values[0] for values in whole[3::EPOCH]] == pytest.approx([0.1, 0.1, 0.05, 0.025])
    job.train()
    assert job.resume('epoch_3.pth', reapply=True, **longer(job, 4)) == close([[0.05]] * 4)
    optimizer = dict(job.settings['optim_wrapper']['optimizer'], lr=0.2)
    changed = dict(
        optim_wrapper=dict(optimizer=optimizer), train_cfg=dict(by_epoch=True, max_epochs=5)
    )
    rates = job.resume('epoch_3.pth', reapply=True, **changed)
    assert rates == close([[0.1]] * 4 + [[0.05]] * 4)
    # A checkpoint does not know the metric that follows it.
    assert job.resume('epoch_2.pth') == close([[0.1]] * 4)


@pytest.mark.parametrize('config', rest_slow(ALL_EXPERIMENTS, *TOY.values()), ids=identify)
def test_configs_resume_unchanged(config: Path, tmp_path: Path, capsys) -> None:
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    wrapper = without_amp(cfg.optim_wrapper.to_dict())
    if 'layer_decay_rate' in wrapper.get('paramwise_cfg', {}):  # for the layers of a backbone
        wrapper = dict(optimizer=wrapper['optimizer'], clip_grad=wrapper.get('clip_grad'))
    schedule = cfg.to_dict()['param_scheduler']
    settings = by_iteration() if 'max_iters' in cfg.train_cfg else {}
    job = Job(tmp_path, optim_wrapper=wrapper, param_scheduler=schedule, **settings)
    whole = job.train(**longer(job, 2))
    name = 'iter_3.pth' if settings else 'epoch_1.pth'
    capsys.readouterr()
    assert job.resume(name, **longer(job, 2)) == whole[3 if settings else 4 :]
    assert 'take effect' not in capsys.readouterr().out


def test_strategies(tmp_path: Path) -> None:
    strategy = dict(type='SingleDeviceStrategy')
    job = Job(tmp_path / 'job', FlexibleJobRunner, strategy=strategy)
    whole = job.train()
    assert job.resume('epoch_2.pth') == whole[8:]
    other = dict(param_scheduler=SCHEDULES['poly'])
    with pytest.raises(CheckpointError, match='in the config, .* in the checkpoint'):
        job.resume('epoch_2.pth', **other)
    expected = Job(tmp_path / 'whole').train(**longer(job, 5))
    assert job.resume('epoch_2.pth', **longer(job, 5)) == close(expected[8:])


def test_malformed_training_state_is_refused(job: Job) -> None:
    job.train()
    for change in (
        dict(optimizer=5),
        dict(optimizer=dict(state={}, param_groups=[{}])),
        dict(param_schedulers=[5, 5]),
        dict(param_schedulers={'a': 1}),
        dict(message_hub=5),
        dict(mmhatnet=dict(settings=dict(optimizers=7))),
    ):
        content = torch.load(job.folder / 'epoch_2.pth', weights_only=False) | change
        runner = job.runner(resumed='epoch_2.pth')
        start(runner)
        with pytest.raises(CheckpointError, match='epoch_2.pth'):
            require_same_settings(runner, content)


def test_checkpoints_of_one_cycle_hold_no_code(tmp_path: Path) -> None:
    job = Job(tmp_path, param_scheduler=SCHEDULES['one_cycle'])
    job.train()
    state = read_checkpoint(tmp_path / 'epoch_1.pth')['param_schedulers'][0]
    assert state['eta_max'] == 0.3 and 'anneal_func' not in state
