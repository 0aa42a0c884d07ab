"""Schedules of learning rates and the like: their settings, and their values inside a training."""

import copy
import dis
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from mmengine.optim import _ParamScheduler

Group = dict[str, Any]


class Position(NamedTuple):
    """How far a training is.

    Attributes:
        epochs (int): The epochs that have ended.
        iterations (int): The iterations.
        epoch_length (int): The iterations of an epoch; 0 if the training counts no epochs.
    """

    epochs: int
    iterations: int
    epoch_length: int

    @property
    def inside_epoch(self) -> bool:
        """Whether an epoch has begun and not ended."""
        return bool(self.epoch_length) and self.iterations != self.epochs * self.epoch_length


def parameters_of(scheduler: type[_ParamScheduler]) -> set[str]:
    """Returns the names of the parameters that the constructors of a scheduler have."""
    constructors = (vars(base).get('__init__') for base in scheduler.__mro__)
    return {
        name
        for constructor in constructors
        if inspect.isfunction(constructor)
        for name in inspect.signature(constructor).parameters
    }


def progress_of(scheduler: type[_ParamScheduler]) -> set[str]:
    """Returns the names of the attributes that change while a scheduler runs.

    These are what its ``step`` assigns, and what other methods do unless it is a parameter.
    """

    def assigned(function: Callable) -> set[str]:
        code = dis.get_instructions(inspect.unwrap(function))
        return {line.argval for line in code if line.opname == 'STORE_ATTR'}

    names = set()
    for base in scheduler.__mro__:
        for name, value in vars(base).items():
            if name != '__init__' and inspect.isfunction(value):
                names |= assigned(value) - (set() if name == 'step' else parameters_of(scheduler))
    return names


def settings_in(scheduler: _ParamScheduler, state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what comes from the config in the state of a scheduler.

    Args:
        scheduler (_ParamScheduler): A scheduler of the same type.
        state (Mapping[str, Any]): The state. The param groups hold its base values as well.
    """
    other = progress_of(type(scheduler)) | {'verbose', 'base_values'}
    return {key: value for key, value in state.items() if key not in other and not callable(value)}


class _Stepped(SimpleNamespace):
    """What a scheduler needs of an optimizer: param groups, and to have made a step before."""

    def __init__(self, groups: list[Group]) -> None:
        def step() -> None: ...

        step._with_counter = True  # type: ignore[attr-defined]
        super().__init__(param_groups=groups, step=step, _global_step=0)


def copied(groups: Iterable[Group]) -> list[Group]:
    """Copies param groups without their parameters."""
    return [{key: value for key, value in group.items() if key != 'params'} for group in groups]


def run_schedules(
    schedulers: Iterable[_ParamScheduler], groups: Iterable[Group], position: Position
) -> tuple[list[_ParamScheduler], list[Group]]:
    """Runs schedules from their beginning to a position, as MMEngine does in a training.

    Args:
        schedulers (Iterable[_ParamScheduler]): The schedules, as built. They are not changed.
        groups (Iterable[Group]): The param groups that they were built with, including MMEngine's
            one for the base values, if any. They are not changed.
        position (Position): The position.

    Returns:
        tuple[list[_ParamScheduler], list[Group]]: The schedules and the groups at the position.
    """
    reached = copied(groups)
    copies = [copy.copy(scheduler) for scheduler in schedulers]
    for scheduler in copies:
        scheduler.optimizer = _Stepped(reached)
    # They would print each value.
    loud = [scheduler for scheduler in copies if scheduler.verbose]
    for scheduler in loud:
        scheduler.verbose = False
    by_epoch, by_iteration = ([s for s in copies if s.by_epoch is flag] for flag in (True, False))
    ended = 0
    for iteration in range(1, position.iterations + 1):
        for scheduler in by_iteration:
            scheduler.step()
        if position.epoch_length and iteration % position.epoch_length == 0:
            ended += 1
            for scheduler in by_epoch if ended <= position.epochs else ():
                scheduler.step()
    for _ in range(ended, position.epochs):
        for scheduler in by_epoch:
            scheduler.step()
    for scheduler in loud:
        scheduler.verbose = True
    return copies, reached


def keep_reductions(
    schedulers: Sequence[_ParamScheduler],
    groups: Iterable[Group],
    states: Sequence[Mapping[str, Any]],
    stored: Sequence[Group],
    position: Position,
) -> None:
    """Repeats what schedules that follow a metric have done, for which the metrics are missing.

    Args:
        schedulers (Sequence[_ParamScheduler]): The schedules at the position. Those that follow a
            metric get their progress from the states.
        groups (Iterable[Group]): The groups at the position, which get the same reductions.
        states (Sequence[Mapping[str, Any]]): The states of the schedules in a checkpoint. If they
            are other schedules, nothing is repeated.
        stored (Sequence[Group]): The groups in it.
        position (Position): Its position.
    """
    following = {i for i, s in enumerate(schedulers) if getattr(s, 'need_val_args', False)}
    comparable = all(
        {*state} >= {*settings_in(s, s.state_dict())} for s, state in zip(schedulers, states)
    )
    if not following or not comparable or len(states) != len(schedulers):
        return
    names = {state['param_name'] for state in states}
    start = copied(stored)
    for group in start:
        group.update({name: group[f'initial_{name}'] for name in names})
    others = []
    for index, state in enumerate(states):
        if index not in following:
            scheduler = copy.copy(schedulers[index])
            scheduler.load_state_dict({**state, 'last_step': -1, '_global_step': -1})
            scheduler.optimizer = _Stepped(start)
            scheduler.step()  # as the constructor does
            others.append(scheduler)
    _, unreduced = run_schedules(others, start, position)
    for index in following:
        scheduler, name = schedulers[index], schedulers[index].param_name
        for group, before, without in zip(groups, stored, unreduced):
            if without[name]:
                group[name] *= before[name] / without[name]
        kept = progress_of(type(scheduler)) & {*states[index]}
        scheduler.load_state_dict({key: states[index][key] for key in kept})


def drop_functions(content: Mapping[str, Any]) -> None:
    """Removes the functions that schedules such as OneCycleLR add to a checkpoint.

    They are not needed, and a checkpoint that holds them cannot be read without executing code.

    Args:
        content (Mapping[str, Any]): The content of a checkpoint, whose schedules are changed.
    """
    several = content.get('param_schedulers') or []
    for states in several.values() if isinstance(several, Mapping) else [several]:
        for state in states:
            for key in [key for key, value in state.items() if callable(value)]:
                del state[key]
