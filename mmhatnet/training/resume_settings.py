"""Compares the settings of a training that resumes with those of its checkpoint.

MMEngine restores optimizers and schedules whole: their settings replace those of the config, and
nothing is said. Here, both are compared before anything is loaded. What the config has is read from
the optimizers and schedules that MMEngine has built from it; what the checkpoint has, from their
states in it. Few settings are known by name, so those of other optimizers and schedules count too.
"""

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict, _ParamScheduler
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmhatnet.errors import CheckpointError
from mmhatnet.training.schedules import (
    Group,
    Position,
    keep_reductions,
    parameters_of,
    run_schedules,
    settings_in,
)


class Effect(Enum):
    """What happens to a setting that differs when MMEngine resumes."""

    CONFIG = auto()  # The config's takes effect.
    CHECKPOINT = auto()  # The checkpoint's replaces it.
    IMPOSSIBLE = auto()  # Training cannot go on.


class Difference(NamedTuple):
    """A setting that differs between a config and a checkpoint."""

    setting: str
    configured: Any
    stored: Any
    effect: Effect
    reason: str = ''

    def __str__(self) -> str:
        marks = {effect: '' for effect in Effect} | {self.effect: ' (would take effect)'}
        configured = f'{_shown(self.configured)} in the config{marks[Effect.CONFIG]}'
        stored = f'{_shown(self.stored)} in the checkpoint{marks[Effect.CHECKPOINT]}'
        reason = f'; {self.reason}' if self.reason else ''
        return f'{self.setting}: {configured}, {stored}{reason}'


def settings_of(runner: Runner) -> dict[str, Any]:
    """Returns the settings that MMEngine stores in no checkpoint.

    Args:
        runner (Runner): A runner that has built what its config describes for training.

    Returns:
        dict[str, Any]: Numbers, texts, lists and dicts alone. ``require_same_settings`` expects
            them in a checkpoint as ``content['mmhatnet']['settings']``.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    loader = runner.train_dataloader
    return dict(
        by_epoch=isinstance(runner.train_loop, EpochBasedTrainLoop),
        processes=get_world_size(),
        batch_size=loader.batch_size,
        epoch_length=len(loader),
        optimizers={
            name: dict(
                type=type(wrapper).__name__,
                optimizer=type(wrapper.optimizer).__name__,
                accumulative_counts=getattr(wrapper, '_accumulative_counts', 1),
                clip_grad=_plain(getattr(wrapper, 'clip_grad_kwargs', None)),
                parameters=[
                    [names.get(id(parameter), '') for parameter in group['params']]
                    for group in wrapper.optimizer.param_groups
                ],
                schedules=[type(scheduler).__name__ for scheduler in _schedulers(runner, name)],
            )
            for name, wrapper in _wrappers(runner).items()
        },
    )


def require_same_settings(runner: Runner, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Checks that the checkpoint replaces no setting of the config by another one.

    Settings of the config that differ and take effect are printed. Schedules are among them if the
    training is longer or shorter now: whoever changes its length wants the rates of that length.
    They go on from where they would be if the whole training had had it. Settings without
    influence on the weights, such as intervals and numbers of workers, are not compared; nor is
    anything if no iteration is left to train.

    Args:
        runner (Runner): A runner that has built what its config describes, and has not resumed.
        content (Mapping[str, Any]): The content of the checkpoint, which is not changed.

    Returns:
        Mapping[str, Any]: The content that MMEngine is to load; usually the same object. If epochs
            have other lengths now, the iteration is that of the config. If it holds no optimizer or
            no schedules, those of the config are added, at its position.

    Raises:
        CheckpointError: If a setting of the config would not take effect, or training cannot go on
            with it.
    """
    found = _possible_differences(runner, content)
    follows = _follows_from_length(found)
    if _replaced(found) and not follows:
        place = _place(runner)
        raise CheckpointError(
            f'{place} comes from a training with other settings than the config has:\n'
            f'{_listed(found)}\n'
            'To go on as before, resume with the settings of the checkpoint. With '
            '--reapply-settings, those of the config take effect from here on. To start a new '
            'training from the weights, leave out --resume and add --cfg-options '
            f'load_from={place}'
        )
    _announce('Other settings than in the checkpoint take effect', found)
    moved = _moved(runner, content, found)
    return _reapplied(runner, moved) if follows or _lacks_state(runner, content) else moved


def reapply_settings(runner: Runner, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a checkpoint with which the settings of the config take effect from here on.

    The optimizers keep their state, such as the moments of Adam. The schedules are the config's,
    at the point where they would be if the whole training had had these settings.

    Args:
        runner (Runner): A runner that has built what its config describes, and has not resumed.
        content (Mapping[str, Any]): The content of the checkpoint, which is not changed.

    Returns:
        Mapping[str, Any]: The content that MMEngine is to load; the same object if it has the
            settings of the config already.

    Raises:
        CheckpointError: If training cannot go on with a setting of the config.
    """
    found = _possible_differences(runner, content)
    _announce('--reapply-settings: these settings take effect from here on', found)
    moved = _moved(runner, content, found)
    if not (_replaced(found) or _lacks_state(runner, content)):
        return moved
    return _reapplied(runner, moved)


def _reapplied(runner: Runner, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a checkpoint with the settings of the config."""
    states = {name: _states(runner, content, name) for name in _wrappers(runner)}
    optimizers = {name: state[0] for name, state in states.items()}
    schedules = {name: state[1] for name, state in states.items()}
    reapplied = dict(
        content,
        optimizer=optimizers.get('', optimizers),
        param_schedulers=schedules.get('', schedules),
    )
    if (seed := _seed(runner)) is not None:
        reapplied['meta'] = dict(content['meta'], seed=seed)
    if 'ema_state_dict' in content and not _averages(runner):
        reapplied['state_dict'] = _unaveraged(content)
    return reapplied


def _moved(
    runner: Runner, content: Mapping[str, Any], found: Sequence[Difference]
) -> Mapping[str, Any]:
    """Returns a checkpoint whose iteration is that of the config, if epochs have other lengths."""
    iterations = _position(runner, content).iterations
    if not found or iterations == content['meta']['iter']:
        return content
    return dict(content, meta=dict(content['meta'], iter=iterations))


def _states(
    runner: Runner, content: Mapping[str, Any], name: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the states of an optimizer and its schedules with the settings of the config."""
    position = _position(runner, content)
    wrapper, built = _wrappers(runner)[name], _schedulers(runner, name)
    stored = _part(content, 'optimizer', name) or {}
    states = _part(content, 'param_schedulers', name) or []
    schedulers, groups = run_schedules(built, wrapper.param_groups, position)
    if stored:
        base = stored.get('base_param_settings')
        before = [*stored['param_groups'], *([base] if base else [])]
        keep_reductions(schedulers, groups, states, before, position)
    numbers = iter(range(len([p for g in wrapper.optimizer.param_groups for p in g['params']])))
    fresh = [[next(numbers) for _ in g['params']] for g in wrapper.optimizer.param_groups]
    parameters = [group['params'] for group in stored.get('param_groups', ())] or fresh
    state = dict(
        stored,
        state=stored.get('state', {}),
        param_groups=[dict(group, params=ids) for group, ids in zip(groups, parameters)],
    )
    if wrapper.base_param_settings is not None:
        state['base_param_settings'] = {**wrapper.base_param_settings, **groups[-1]}
    if 'loss_scaler' in stored:
        state['loss_scaler'] = {**stored['loss_scaler'], **_scaler_settings(wrapper)}
    return state, [scheduler.state_dict() for scheduler in schedulers]


def _unaveraged(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the weights as trained, which EMAHook has swapped with their averages."""
    trained = {
        name.removeprefix('module.'): value
        for name, value in content['ema_state_dict'].items()
        if name.startswith('module.')
    }
    return {**content['state_dict'], **trained}


def _possible_differences(runner: Runner, content: Mapping[str, Any]) -> list[Difference]:
    """Returns what differs, or raises a CheckpointError if training cannot go on with it."""
    try:
        found = [] if _is_finished(runner, content) else [*_differences(runner, content)]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f'{_place(runner)} holds a training state that MMEngine cannot have written '
            f'({type(error).__name__}: {error}): to start a new training from the weights, leave '
            f'out --resume and add --cfg-options load_from={_place(runner)}'
        ) from error
    impossible = [difference for difference in found if difference.effect is Effect.IMPOSSIBLE]
    if impossible:
        place = _place(runner)
        raise CheckpointError(
            f'Training cannot resume from {place} with this config:\n{_listed(impossible)}\n'
            'Resume with the settings of the checkpoint, or start a new training from the weights: '
            f'leave out --resume and add --cfg-options load_from={place}'
        )
    return found


def _replaced(found: Iterable[Difference]) -> bool:
    return any(difference.effect is Effect.CHECKPOINT for difference in found)


def _follows_from_length(found: Sequence[Difference]) -> bool:
    """Says whether the length of the training differs, and nothing but schedules besides it."""
    replaced = [item.setting for item in found if item.effect is Effect.CHECKPOINT]
    length = any(item.setting.startswith('train_cfg.max_') for item in found)
    return length and bool(replaced) and all(s.startswith('param_scheduler') for s in replaced)


def _listed(found: Iterable[Difference]) -> str:
    return '\n'.join(f'  {difference}' for difference in found)


def _announce(begin: str, found: Iterable[Difference]) -> None:
    changes = '; '.join(
        f'{difference.setting} {_shown(difference.configured)}, was {_shown(difference.stored)}'
        for difference in found
    )
    if changes and is_main_process():
        print(f'{begin}: {changes}')


def _differences(runner: Runner, content: Mapping[str, Any]) -> Iterator[Difference]:
    settings = settings_of(runner)
    yield from _differing_data(runner, content, settings)
    yield from _differing_loop(runner, content)
    averages = _averages(runner), 'ema_state_dict' in content
    if averages[0] != averages[1]:
        # Without the hook, MMEngine would go on training the averages.
        effect = Effect.CONFIG if averages[0] else Effect.CHECKPOINT
        here, there = ('yes' if used else 'no' for used in averages)
        yield Difference('EMAHook', here, there, effect)
    configured, recorded = settings['optimizers'], _recorded(content).get('optimizers')
    stored = content.get('optimizer')
    if '' not in configured and isinstance(stored, Mapping) and {*stored} != {*configured}:
        reason = 'each has a state of its own'
        yield Difference('optimizers', [*configured], [*stored], Effect.IMPOSSIBLE, reason)
        return
    for name in configured:
        types = (recorded or {}).get(name, {})
        yield from _differing_optimizers(runner, content, name, configured[name], types)
        yield from _differing_schedules(runner, content, name, types.get('schedules'))


def _differing_data(
    runner: Runner, content: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[Difference]:
    position = _position(runner, content)
    dataset_meta = getattr(runner.train_dataloader.dataset, 'metainfo', None)
    configured, trained = (
        [str(name) for name in (meta or {}).get('classes') or ()]
        for meta in (dataset_meta, content['meta'].get('dataset_meta'))
    )
    if configured and trained and not _same(*map(_folded, (configured, trained))):
        same = [a == b for a, b in zip(_folded(configured), _folded(trained))] + [False]
        number = same.index(False)
        here, there = (
            f'{len(names)}, with number {number} {([*names, "missing"])[number]}'
            for names in (configured, trained)
        )
        reason = 'the weights of the head belong to those of the checkpoint'
        yield Difference('classes', here, there, Effect.IMPOSSIBLE, reason)
    names = dict(processes='processes', batch_size='train_dataloader.batch_size')
    for key, name in names.items():
        stored = _recorded(content).get(key, settings[key])
        if stored != settings[key]:
            yield Difference(name, settings[key], stored, Effect.CONFIG)
    length = _stored_epoch_length(content)
    if settings['by_epoch'] and length and length != settings['epoch_length']:
        inside = _inside_epoch(content)
        yield Difference(
            'iterations per epoch',
            settings['epoch_length'],
            length,
            Effect.IMPOSSIBLE if inside else Effect.CONFIG,
            'the checkpoint lies inside an epoch' if inside else '',
        )
    seeds = _seed(runner), content['meta'].get('seed')
    if None not in seeds and seeds[0] != seeds[1]:
        inside = position.inside_epoch
        yield Difference(
            'randomness.seed',
            *seeds,
            Effect.IMPOSSIBLE if inside else Effect.CHECKPOINT,
            'the checkpoint lies inside an epoch, and its order depends on it' if inside else '',
        )


def _differing_loop(runner: Runner, content: Mapping[str, Any]) -> Iterator[Difference]:
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    if _recorded(content).get('by_epoch', by_epoch) != by_epoch:
        effect = Effect.IMPOSSIBLE if by_epoch else Effect.CONFIG
        reason = 'its iterations belong to no epoch' if by_epoch else ''
        yield Difference('train_cfg.by_epoch', by_epoch, not by_epoch, effect, reason)
        return
    key = 'max_epochs' if by_epoch else 'max_iters'
    configured, stored = getattr(runner, key), _info(content).get(key)
    if stored is not None and configured != stored:
        yield Difference(f'train_cfg.{key}', configured, stored, Effect.CONFIG)


def _differing_optimizers(
    runner: Runner,
    content: Mapping[str, Any],
    name: str,
    configured: Mapping[str, Any],
    recorded: Mapping[str, Any],
) -> Iterator[Difference]:
    wrapper, state = _wrappers(runner)[name], _part(content, 'optimizer', name)
    label = f'optim_wrapper.{name}' if name else 'optim_wrapper'
    for key in ('type', 'accumulative_counts', 'clip_grad'):
        if key in recorded and not _same(configured[key], recorded[key]):
            yield Difference(f'{label}.{key}', configured[key], recorded[key], Effect.CONFIG)
    if not state:
        return
    if misfit := _misfit(wrapper.optimizer, configured, state, recorded):
        reason = 'the state of the optimizer does not fit'
        yield Difference(f'{label}{misfit[0]}', *misfit[1:], Effect.IMPOSSIBLE, reason)
        return
    for key in wrapper.optimizer.defaults:
        pairs = [
            (_at_start(group, key), _at_start(stored, key))
            for group, stored in zip(wrapper.optimizer.param_groups, state['param_groups'])
            if key in group and key in stored
        ]
        differing = [index for index, pair in enumerate(pairs) if not _same(*pair)]
        if differing:
            some = f'{len(differing)} of {len(pairs)} param groups, here number {differing[0]}'
            if len(differing) == len(pairs):
                some = f'all {len(pairs)} param groups, here the first'
            setting = f'{label}.optimizer.{key}' + (f' (in {some})' if len(pairs) > 1 else '')
            yield Difference(setting, *pairs[differing[0]], Effect.CHECKPOINT)
    scaler = state.get('loss_scaler') or {}
    for key, value in _scaler_settings(wrapper).items():
        if key in scaler and not _same(value, scaler[key]):
            yield Difference(f'{label}.loss_scale.{key}', value, scaler[key], Effect.CHECKPOINT)


def _misfit(
    optimizer: torch.optim.Optimizer,
    configured: Mapping[str, Any],
    state: Mapping[str, Any],
    recorded: Mapping[str, Any],
) -> tuple[str, str, str] | None:
    """Returns why a state does not fit an optimizer: what differs, here and there."""
    groups, stored = optimizer.param_groups, state['param_groups']
    if recorded.get('optimizer', configured['optimizer']) != configured['optimizer']:
        return '.optimizer', configured['optimizer'], recorded['optimizer']
    # MMEngine does not record the type, but another one lacks numbers such as Adam's betas.
    numbers = (k for k, v in optimizer.defaults.items() if not isinstance(v, bool | None))
    lacking = [key for key in numbers if stored and key not in stored[0]]
    if lacking:
        return '.optimizer', configured['optimizer'], f'another one, without {", ".join(lacking)}'
    ids = [number for group in stored for number in group['params']]
    if not all(isinstance(number, int) for number in ids):
        return None  # Sharded optimizers name parameters, and check that when they load.
    here, there = ([len(group['params']) for group in some] for some in (groups, stored))
    if here != there:
        shown = [f'{len(sizes)} with {sum(sizes)} parameters' for sizes in (here, there)]
        return ' param groups', shown[0], shown[1] if shown[0] != shown[1] else 'of other sizes'
    names, before = (
        [name for group in settings.get('parameters', ()) for name in group]
        for settings in (configured, recorded)
    )
    swapped = ((n, f'{b} in its place') for n, b in zip(names, before) if n != b)
    pair = next(swapped, None) or _other_shapes(optimizer, state, ids)
    return (' param groups', *pair) if pair else None


def _other_shapes(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], ids: Sequence[int]
) -> tuple[str, str] | None:
    """Returns what has other shapes than the parameters in a state; None if nothing has."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    for key in {key: None for values in state['state'].values() for key in values}:
        tensors = [(state['state'].get(n, {}).get(key), p) for n, p in zip(ids, parameters)]
        fits = [v.shape == p.shape for v, p in tensors if isinstance(v, torch.Tensor) and v.ndim]
        # Some optimizers store factors, which never have the shapes of parameters.
        if any(fits) and not all(fits):
            return 'parameters of these shapes', f'{key} of other shapes'
    return None


def _differing_schedules(
    runner: Runner, content: Mapping[str, Any], name: str, recorded: Sequence[str] | None
) -> Iterator[Difference]:
    schedulers, states = _schedulers(runner, name), _part(content, 'param_schedulers', name)
    label = f'param_scheduler.{name}' if name else 'param_scheduler'
    types = [type(scheduler).__name__ for scheduler in schedulers]
    if recorded is not None and types != [*recorded]:
        yield Difference(label, types, [*recorded], Effect.CHECKPOINT)
    elif states is None:
        if schedulers and recorded is None:
            yield Difference(label, types, [], Effect.CONFIG)
    elif len(states) != len(schedulers):
        yield Difference(label, types, f'{len(states)} of them', Effect.CHECKPOINT)
    else:
        for index, (scheduler, state) in enumerate(zip(schedulers, states)):
            yield from _differing_schedule(f'{label}[{index}]', scheduler, state)


def _differing_schedule(
    label: str, scheduler: _ParamScheduler, state: Mapping[str, Any]
) -> Iterator[Difference]:
    name = f'{type(scheduler).__name__}, in {"epochs" if scheduler.by_epoch else "iterations"}'
    configured = settings_in(scheduler, scheduler.state_dict())
    stored = settings_in(scheduler, state)
    # Another version of the same scheduler may have more settings, which are unused.
    alone = {
        key
        for key in configured.keys() ^ stored.keys()
        if configured.get(key, stored.get(key)) is not None
    }
    if alone:
        other = f'another one, with {", ".join(sorted(stored.keys() - {"begin", "end"}))}'
        yield Difference(label, f'{name}', other, Effect.CHECKPOINT)
        return
    differing = [
        key for key in configured if key in stored and not _same(configured[key], stored[key])
    ]
    # Others follow from the parameters, and need not be named beside them.
    parameters = [key for key in differing if key in parameters_of(type(scheduler))]
    for key in parameters or differing:
        setting = f'{label} ({name}) {key.strip("_")}'
        yield Difference(setting, configured[key], stored[key], Effect.CHECKPOINT)


def _place(runner: Runner) -> str:
    return str(runner._load_from or 'the checkpoint')


def _seed(runner: Runner) -> int | None:
    """Returns the seed that the config names."""
    seed: int | None = runner._randomness_cfg.get('seed')
    return seed


def _averages(runner: Runner) -> bool:
    return any(isinstance(hook, EMAHook) for hook in runner.hooks)


def _wrappers(runner: Runner) -> dict[str, OptimWrapper]:
    """Returns the optimizers by name; the name is '' if there is only one."""
    wrappers = runner.optim_wrapper
    return dict(wrappers.items()) if isinstance(wrappers, OptimWrapperDict) else {'': wrappers}


def _schedulers(runner: Runner, name: str) -> list[_ParamScheduler]:
    schedulers = runner.param_schedulers or []
    return schedulers[name] if isinstance(schedulers, dict) else schedulers


def _scaler_settings(wrapper: OptimWrapper) -> dict[str, Any]:
    """Returns what comes from the config in the state of a loss scaler, if there is one."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    state = scaler.state_dict() if scaler else {}
    return {k: v for k, v in state.items() if k in inspect.signature(type(scaler)).parameters}


def _part(content: Mapping[str, Any], key: str, name: str) -> Any:
    """Returns what a checkpoint has for one optimizer, or None."""
    part = content.get(key)
    return part.get(name) if name and isinstance(part, Mapping) else part


def _lacks_state(runner: Runner, content: Mapping[str, Any]) -> bool:
    """Says whether schedules would start anew, or an optimizer with their first values."""
    if _is_finished(runner, content):
        return False
    scheduled = any(_schedulers(runner, name) for name in _wrappers(runner))
    return scheduled and not {'optimizer', 'param_schedulers'} <= content.keys()


def _recorded(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what ``settings_of`` has recorded; nothing in a checkpoint of MMEngine alone."""
    return (content.get('mmhatnet') or {}).get('settings') or {}


def _info(content: Mapping[str, Any]) -> Mapping[str, Any]:
    return (content.get('message_hub') or {}).get('runtime_info') or {}


def _is_finished(runner: Runner, content: Mapping[str, Any]) -> bool:
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return bool(content['meta']['epoch'] >= runner.max_epochs)
    return bool(content['meta']['iter'] >= runner.max_iters)


def _stored_epoch_length(content: Mapping[str, Any]) -> int | None:
    """Returns the iterations of an epoch when a checkpoint was saved; None if unknown."""
    if length := _recorded(content).get('epoch_length'):
        return int(length)
    iterations, epochs = (_info(content).get(key) for key in ('max_iters', 'max_epochs'))
    return int(iterations) // int(epochs) if iterations and epochs else None


def _inside_epoch(content: Mapping[str, Any]) -> bool:
    """Says whether a checkpoint lies inside an epoch, as far as it is known."""
    length = _stored_epoch_length(content)
    epochs, iterations = content['meta']['epoch'], content['meta']['iter']
    done = (content.get('mmhatnet') or {}).get('done')
    return bool(iterations != epochs * length if length and done is None else done)


def _position(runner: Runner, content: Mapping[str, Any]) -> Position:
    """Returns the position of a checkpoint, in iterations of the config."""
    epochs, iterations = content['meta']['epoch'], content['meta']['iter']
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        return Position(epochs, iterations, 0)
    length = len(runner.train_dataloader)
    return Position(epochs, iterations if _inside_epoch(content) else epochs * length, length)


def _at_start(group: Group, key: str) -> Any:
    """Returns a hyperparameter of a param group as it was before any schedule changed it."""
    if key == 'betas' and 'initial_momentum' in group:  # by which MMEngine schedules Adam's
        return group['initial_momentum'], *group['betas'][1:]
    return group.get(f'initial_{key}', group[key])


def _folded(names: Iterable[str]) -> list[str]:
    return [name.casefold() for name in names]


def _same(one: Any, other: Any) -> bool:
    """Compares two values. Floats may differ by their rounding."""
    one, other = _plain(one), _plain(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if float in {type(one), type(other)} <= {int, float}:
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def _plain(value: Any) -> Any:
    """Returns a value as numbers, texts, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _shown(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, float):
        return f'{value:.6g}'
    if isinstance(value, list):
        return f'[{", ".join(map(_shown, value))}]'
    if isinstance(value, dict):
        return f'{{{", ".join(f"{key}: {_shown(item)}" for key, item in value.items())}}}'
    return 'none' if value is None else str(value)
