"""Verifies and loads the checkpoints of a job."""

import copy
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModule, BaseTTAModel, is_model_wrapper
from mmengine.registry import MODELS
from torch import nn
from torch.func import functional_call

from mmhatnet.backbones.base import Backbone
from mmhatnet.checkpoints.files import fetch_and_read
from mmhatnet.checkpoints.safe_loader import Checkpoint, load_weights_only
from mmhatnet.checkpoints.training_state import wrong_parts
from mmhatnet.config_walk import class_of, dicts_of, type_name
from mmhatnet.errors import CheckpointError, printable


def verify_resumable(checkpoint: Checkpoint) -> None:
    """Checks that training can resume from a checkpoint. An address is not read for this.

    Raises:
        CheckpointError: If a part of the training state that MMEngine needs is missing, or is none.
    """
    if '://' in checkpoint.place:
        return
    missing = [name for name in ('epoch', 'iter') if name not in checkpoint.meta]
    missing += [name for name in ('message_hub',) if name not in checkpoint.content]
    wrong = [] if missing else list(wrong_parts(checkpoint.content))
    other_way = (
        f'training cannot resume from it: to start from its weights, leave out --resume and add '
        f'--cfg-options load_from={checkpoint}'
    )
    if missing:
        raise CheckpointError(
            f'{checkpoint} holds weights but no training state ({", ".join(missing)}), so '
            f'{other_way}'
        )
    if wrong:
        others = f' and {len(wrong) - 1} other faults' if wrong[1:] else ''
        raise CheckpointError(
            f'{checkpoint} holds no training state of MMEngine ({printable(wrong[0])}{others}), so '
            f'{other_way}'
        )
    if 'optimizer' not in checkpoint.content:
        print(f'{checkpoint} holds no optimizer state: the optimizer starts afresh.')


def read_pretrained(cfg: Config, start: Checkpoint | None = None) -> list[Checkpoint]:
    """Reads, and downloads where necessary, the checkpoints from which modules of a model start.

    Only the first process of a node does so; the others find the downloads there.

    Args:
        cfg (Config): A config with ``model``.
        start (Checkpoint | None): The checkpoint from which the whole model starts afterwards. What
            it replaces is not read. Defaults to None.

    Returns:
        list[Checkpoint]: What was read.

    Raises:
        CheckpointError: If a file is missing or unusable, a download fails, or a checkpoint holds
            no weights of its module.
    """
    checkpoints: dict[str, Checkpoint] = {}
    if os.environ['LOCAL_RANK'] != '0':
        return []
    for where, module, init_cfg in _pretrained_modules(cfg.model):
        place = init_cfg.checkpoint
        if start and _holds_all_of(start, where, module):
            part = f'model.{where}'.rstrip('.')
            print(f'load_from={start} holds all weights of {part}: {place} is not read.')
            continue
        hint = (
            '--cfg-options model.backbone.init_cfg.checkpoint=FILE, or start from random weights '
            'with --cfg-options model.backbone.init_cfg=None'
        )
        if '://' in place and not place.startswith(('http://', 'https://')):
            continue  # MMEngine reads and checks those of other schemes.
        if place not in checkpoints:
            checkpoints[place] = _read_pretrained(place, hint)
        network = class_of(MODELS, module)
        if network and issubclass(network, Backbone):
            _verify_backbone(network, module, init_cfg, checkpoints[place])
        else:
            _verify_fit(where, module, init_cfg, checkpoints[place])
    return list(checkpoints.values())


def without_pretrained(cfg: ConfigDict, start: Checkpoint, resumes: bool) -> None:
    """Removes the checkpoints of modules that another one replaces, since they may be gone.

    Args:
        cfg (ConfigDict): The model of a config, which is changed.
        start (Checkpoint): The checkpoint from which the training starts or resumes.
        resumes (bool): Whether it resumes, so that this checkpoint has all weights.
    """
    for where, module, init_cfg in list(_pretrained_modules(cfg)):
        if not resumes and not _holds_all_of(start, where, module):
            continue
        given = module.init_cfg
        listed = isinstance(given, (list, tuple))
        module.init_cfg = [other for other in given if other is not init_cfg] if listed else None


def _pretrained_modules(cfg: ConfigDict) -> Iterator[tuple[str, ConfigDict, ConfigDict]]:
    """Yields modules of a model that start from a checkpoint: name, settings, Pretrained init_cfg.

    The names are those in the model, if its class calls its parts as the config does.
    """
    for place, module in dicts_of(cfg):
        given = module.get('init_cfg')
        for init_cfg in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(init_cfg, dict) and type_name(init_cfg).startswith('Pretrained'):
                yield re.sub(r'\[(\d+)\]', r'.\1', place).lstrip('.'), module, init_cfg


def _holds_all_of(checkpoint: Checkpoint, where: str, settings: ConfigDict) -> bool:
    """Returns whether a checkpoint of a model holds all weights of one of its modules."""
    if '://' in checkpoint.place:
        return False  # It is read when the processes are connected.
    weights = _below(f'{where}.', checkpoint.weights) if where else checkpoint.weights
    if not weights:
        return False
    try:
        module = _without_values(dict(settings, init_cfg=None))
        missing, differences = _rehearse(module, weights)
    except Exception:  # Code of others may raise anything, and does so again when it is built.
        return False
    return not differences and not missing & {*_learned(module)}


def _below(prefix: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def _without_values(settings: Mapping[str, Any]) -> nn.Module:
    """Builds a module, on the meta device if its class allows it."""
    # It may read checkpoints when it is built, such as a teacher's.
    with load_weights_only():
        try:
            with torch.device('meta'):
                return MODELS.build(copy.deepcopy(settings))
        except (NotImplementedError, RuntimeError):  # It computes with its tensors.
            return MODELS.build(copy.deepcopy(settings))


def _verify_fit(
    where: str, settings: ConfigDict, init_cfg: ConfigDict, checkpoint: Checkpoint
) -> None:
    """Raises a CheckpointError if nothing in a checkpoint fits a module of another package."""
    prefix = init_cfg.get('prefix') or ''
    weights = checkpoint.weights
    try:
        module = _without_values(dict(settings, init_cfg=None))
        # Modules that initialize themselves may rename keys there.
        if getattr(type(module), 'init_weights', None) is not BaseModule.init_weights:
            return
        start = prefix.rstrip('.') + '.' if prefix else ''  # as MMEngine does it
        missing, differences = _rehearse(module, _below(start, weights))
    except Exception:  # Code of others may raise anything, and does so again when it is built.
        return
    learned = _learned(module)
    fitting = [name for name in learned if name not in missing | _of_other_shape(differences)]
    if fitting or not learned:
        return
    found = [key.removesuffix(name) for name in learned for key in weights if key.endswith(name)]
    meant = next((other for other in found if other.endswith('.') and other != start), None)
    hint = 'name a file for this module'
    if differences:
        hint = differences[0].rstrip('.')
    elif meant:
        hint = f"set prefix={meant!r} in its init_cfg, with which its file's keys begin"
    part = f'model.{where}'.rstrip('.')
    raise CheckpointError(
        f'{checkpoint} holds none of the {len(learned)} weights of {part}, a '
        f'{type_name(settings)}, which would stay random: {hint}, or set its init_cfg=None.'
    )


def _of_other_shape(differences: list[str]) -> set[str]:
    """Returns the names in PyTorch's messages about shapes."""
    return {*re.findall(r'^size mismatch for (\S+):', '\n'.join(differences), re.M)}


def _read_pretrained(place: str, hint: str) -> Checkpoint:
    if '://' not in place:
        if not Path(place).expanduser().exists():
            raise CheckpointError(
                f'There is no checkpoint {place}, from which this training starts: put it there, '
                f'or name another file with {hint}.'
            )
        return Checkpoint(place)
    checkpoint = Checkpoint(place)
    checkpoint.content = fetch_and_read(place, hint)[1]
    return checkpoint


def _verify_backbone(
    network: type[Backbone], settings: ConfigDict, init_cfg: ConfigDict, checkpoint: Checkpoint
) -> None:
    """Raises a CheckpointError if a checkpoint has no weights of a backbone of this package."""
    content = checkpoint.content
    if init_cfg.get('prefix'):  # as MMEngine does it
        prefix = init_cfg.prefix.rstrip('.') + '.'
        weights = content.get('state_dict', content).items()
        content = {k.removeprefix(prefix): v for k, v in weights if k.startswith(prefix)}
    try:
        with torch.device('meta'):
            backbone = network(**{key: value for key, value in settings.items() if key != 'type'})
    except (TypeError, ValueError):
        return  # The tool reports it when it builds the model.
    try:
        # A copy without metadata, in which PyTorch would note assign=True for later loads as well.
        backbone.load_state_dict(dict(content), strict=False, assign=True)
        backbone.require_loaded()
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from error


def verify_checkpoint(
    checkpoint: Checkpoint,
    model: nn.Module | ConfigDict,
    dataset_meta: Mapping[str, Any] | None = None,
) -> None:
    """Checks that a checkpoint has all weights of a model. The model keeps its own.

    A model of which some weights stay random gives a result that means nothing.

    Args:
        checkpoint (Checkpoint): The checkpoint.
        model (nn.Module | ConfigDict): The model, or a wrapper of it; or its settings, with which
            it is built here for the check, without values where that is possible.
        dataset_meta (Mapping[str, Any], optional): The metainfo of the dataset to be tested.
            Defaults to None, which compares no classes.

    Raises:
        CheckpointError: If weights of the model are missing or differ in shape, or the checkpoint
            was trained for other classes or for another order of them. Case does not matter.
    """
    model = _built(model)
    other_classes = _other_classes(checkpoint.meta, dataset_meta or {})
    missing, differences = _rehearse_checkpoint(model, checkpoint)
    if differences:
        raise CheckpointError(
            f'{checkpoint} belongs to another model: {differences[0].rstrip(".")} '
            f'({len(differences)} differences)'
            f'{other_classes and f", and it {other_classes}"}; name the config with which it was '
            'trained.'
        )
    learned = _learned(model)
    lacking = [name for name in learned if name in missing]
    if lacking:
        raise CheckpointError(
            f'{checkpoint} lacks {len(lacking)} of the {len(learned)} weights of this model, such '
            f'as {lacking[0]}, which would stay random: name the config with which it was trained, '
            'or a checkpoint of the whole model.'
        )
    if other_classes:
        raise CheckpointError(
            f'{checkpoint} {other_classes}: give the test dataset metainfo=dict(classes=...) with '
            'the names and the order of the checkpoint, or test nevertheless with '
            '--ignore-classes.'
        )


def verify_start(checkpoint: Checkpoint, model: nn.Module | ConfigDict) -> str:
    """Checks that training can start from the weights of a checkpoint.

    A model may start from part of them, such as those before a head for other classes.

    Args:
        checkpoint (Checkpoint): The checkpoint.
        model (nn.Module | ConfigDict): As for ``verify_checkpoint``. It keeps its own weights.

    Returns:
        str: How many of the weights fit, and which do not.

    Raises:
        CheckpointError: If none fits, so that all weights of the model would stay random.
    """
    model = _built(model)
    missing, differences = _rehearse_checkpoint(model, checkpoint)
    other = _of_other_shape(differences)
    learned = _learned(model)
    fitting = [name for name in learned if name not in missing | other]
    if not fitting:
        raise CheckpointError(
            f'load_from={checkpoint} holds none of the {len(learned)} weights of this model, which '
            'would all stay random: name a checkpoint of such a model. If it holds weights of the '
            "backbone alone, set init_cfg=dict(type='Pretrained', checkpoint=...) in "
            'model.backbone instead of load_from.'
        )
    text = f'{len(fitting)} of {len(learned)} weights of the model are those of {checkpoint}'
    for names, why in ((missing, 'not in it'), (other, 'of another shape there')):
        if rest := [name for name in learned if name in names]:
            text += f'; {len(rest)} are {why}, such as {rest[0]}'
    return text


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads the weights of a checkpoint into a model.

    Args:
        model (nn.Module): The model, or a wrapper of it.
        checkpoint (Checkpoint): The checkpoint. ``verify_checkpoint`` finds what it lacks.
    """
    _unwrapped(model).load_state_dict(checkpoint.weights, strict=False)


def _unwrapped(model: nn.Module) -> nn.Module:
    """Returns a model without its wrappers for distributed training and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = cast(nn.Module, model.module)
    return model


def _built(model: nn.Module | ConfigDict) -> nn.Module:
    """Returns a model without wrappers, which is built if only its settings are given."""
    if not isinstance(model, nn.Module):
        model = _without_values(model)
    return _unwrapped(model)


def _learned(model: nn.Module) -> list[str]:
    """Returns the names of what a model has learned: parameters, and statistics of norms."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return names + [name for name, _ in model.named_buffers() if '.running_' in f'.{name}']


class _Loading(nn.Module):
    """Loading as a forward pass, which ``functional_call`` can run with other tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, weights: dict[str, Any]) -> tuple[set[str], list[str]]:
        missing: set[str] = set()
        # PyTorch raises its error before it would return the missing keys.
        hook = self.model.register_load_state_dict_post_hook(
            lambda _, keys: missing.update(keys.missing_keys)
        )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings('ignore', message='.*copying from a non-meta parameter')
                self.model.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            if not str(error).startswith('Error(s) in loading state_dict'):
                raise
            return missing, [line.strip() for line in str(error).splitlines()[1:]]
        finally:
            hook.remove()
        return missing, []


def _rehearse_checkpoint(model: nn.Module, checkpoint: Checkpoint) -> tuple[set[str], list[str]]:
    """Does the same as ``_rehearse`` with a whole checkpoint, which its errors name."""
    try:
        return _rehearse(model, checkpoint.weights)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from error


def _rehearse(model: nn.Module, weights: Mapping[str, Any]) -> tuple[set[str], list[str]]:
    """Returns the keys that loading would miss, and the differences that PyTorch would name.

    Only loading itself knows, because modules rename keys in their hooks. It runs with tensors on
    the meta device in place of the model's, to which PyTorch copies nothing.

    Raises:
        CheckpointError: If the weights are of another variant of a backbone.
    """
    loading = _Loading(model)
    tensors: dict[str, torch.Tensor] = dict(loading.named_parameters(remove_duplicate=False))
    tensors.update(loading.named_buffers(remove_duplicate=False))
    on_meta = {name: tensor.detach().to('meta') for name, tensor in tensors.items()}
    found: tuple[set[str], list[str]] = functional_call(
        loading, on_meta, (weights,), tie_weights=False
    )
    return found


def _other_classes(meta: Mapping[str, Any], dataset_meta: Mapping[str, Any]) -> str:
    """Says how the classes of a checkpoint differ from a dataset's; '' if they do not."""
    trained, tested = (
        [str(name) for name in named.get('classes') or named.get('CLASSES') or ()]
        for named in (meta.get('dataset_meta') or meta, dataset_meta)
    )
    if not trained or not tested:
        return ''
    for index in range(max(len(trained), len(tested))):
        ours, theirs = (
            repr(names[index]) if index < len(names) else 'none' for names in (trained, tested)
        )
        if ours.casefold() != theirs.casefold():
            return (
                f'was trained for {len(trained)} classes and the config tests {len(tested)}, of '
                f'which class {index} is {ours} in the checkpoint and {theirs} in the config'
            )
    return ''
