"""What the tools ask of a checkpoint before time is spent on it."""

import copy
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from mmhatnet.backbones.base import Backbone
from mmhatnet.checkpoint_files import (
    fetch_weights,
    load_weights_only,
    read_checkpoint,
)
from mmhatnet.config_walk import class_of, dicts_of, type_name
from mmhatnet.errors import CheckpointError


def find_checkpoint(place: str | Path) -> str | None:
    """Finds the checkpoint that a user means.

    Args:
        place (str | Path): A checkpoint, a work folder, or the file ``last_checkpoint`` in one,
            which MMEngine writes with the path that the checkpoint had then.

    Returns:
        str | None: The checkpoint; in a folder the last one. None if there is none.

    Raises:
        CheckpointError: If the one that ``last_checkpoint`` names is gone.
    """
    record = Path(place, 'last_checkpoint') if os.path.isdir(place) else Path(place)
    if not record.is_file():
        numbered = {
            int(path.stem.rpartition('_')[2]): str(path)
            for path in Path(place).glob('*_[0-9]*.pth')
            if re.fullmatch(r'(epoch|iter)_\d+', path.stem)
        }
        return numbered[max(numbered)] if numbered else str(place) if '://' in str(place) else None
    if record.name not in ('last_checkpoint', 'last_checkpoint.txt'):
        return str(place)
    recorded = record.read_text().strip()
    # The folder may have been moved or copied, from another system as well.
    for path in (record.with_name(re.split(r'[\\/]', recorded)[-1] or '.'), Path(recorded)):
        if path.is_file():
            return str(path)
    raise CheckpointError(
        f'{record} names {recorded}, which exists neither there nor in {record.parent}: name the '
        'checkpoint itself.'
    )


def require_checkpoint(path: str) -> None:
    """Checks that a local checkpoint can be read.

    Raises:
        CheckpointError: If it cannot.
    """
    if '://' not in path:
        read_checkpoint(path)


def require_resumable(path: str) -> None:
    """Checks that a local checkpoint holds the state of a training.

    Raises:
        CheckpointError: If it cannot be read, or MMEngine could not go on with it.
    """
    if '://' in path:
        return
    content = read_checkpoint(path)
    lacking = [name for name in ('epoch', 'iter') if name not in _meta(content)]
    lacking += [name for name in ('message_hub',) if name not in content]
    if lacking:
        raise CheckpointError(
            f'{path} holds weights and no state of a training ({", ".join(lacking)}), so nothing '
            'can be resumed from it: to start from its weights, leave out --resume and add '
            f'--cfg-options load_from={path}'
        )
    if 'optimizer' not in content:
        print(f'{path} holds no state of the optimizer, which starts anew.')


def _meta(content: Mapping) -> Mapping:
    meta = content.get('meta')
    return meta if isinstance(meta, Mapping) else {}


def require_pretrained(cfg: Config) -> None:
    """Checks that the pretrained weights which the config names can be had, and downloads them.

    Raises:
        CheckpointError: If a file is missing or none of weights, a download fails, or no weights
            for a backbone of this package are in its checkpoint.
    """
    # The other processes of a node find in the cache what its first one has downloaded.
    if os.environ['LOCAL_RANK'] != '0':
        return
    for module, init_cfg in _pretrained(cfg.model):
        path = init_cfg.checkpoint
        way_out = (
            '--cfg-options model.backbone.init_cfg.checkpoint=FILE, or start from random weights '
            'with --cfg-options model.backbone.init_cfg=None'
        )
        if path.startswith(('http://', 'https://')):
            path = fetch_weights(path, way_out)
        elif '://' not in path and not Path(path).expanduser().exists():
            raise CheckpointError(
                f'There is no checkpoint {path}, from which this training starts: put it there, '
                f'name another place with {way_out}.'
            )
        if '://' not in str(path):
            content = read_checkpoint(path)
            if init_cfg.get('prefix'):  # as MMEngine does it
                prefix = init_cfg.prefix.rstrip('.') + '.'
                weights = content.get('state_dict', content).items()
                content = {k.removeprefix(prefix): v for k, v in weights if k.startswith(prefix)}
            network = class_of(MODELS, module)
            if network and issubclass(network, Backbone):
                _require_backbone(network, module, content, path)


def _pretrained(cfg: ConfigDict) -> Iterator[tuple[ConfigDict, ConfigDict]]:
    """The modules anywhere inside a config that start from a checkpoint, and where they name it."""
    for _, module in dicts_of(cfg):
        given = module.get('init_cfg')
        for init_cfg in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(init_cfg, dict) and type_name(init_cfg).startswith('Pretrained'):
                yield module, init_cfg


def _require_backbone(
    network: type[Backbone], settings: ConfigDict, content: Mapping, path: str | Path
) -> None:
    try:
        with torch.device('meta'):
            backbone = network(**{key: value for key, value in settings.items() if key != 'type'})
    except (TypeError, ValueError):
        return  # the tool says it where it builds the model
    try:
        backbone.load_state_dict(content, strict=False, assign=True)
        backbone.require_loaded()
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error


def require_fitting(
    model: nn.Module | ConfigDict, checkpoint: str, dataset_meta: Mapping | None = None
) -> None:
    """Loads a checkpoint for a test, which is worth nothing if weights stay random.

    Args:
        model (nn.Module | ConfigDict): The model, or a wrapper of it; or its settings, which are
            all that a FlexibleRunner has before it starts, and of which one is built here.
        checkpoint (str): A file or an address, as MMEngine takes it.
        dataset_meta (Mapping, optional): The metainfo of the dataset to be tested. Defaults to
            None: classes are not compared.

    Raises:
        CheckpointError: If weights of the model are missing or of another shape, or the checkpoint
            was trained for other classes, or in another order. Names in other case are the same.
    """
    with load_weights_only():
        content = CheckpointLoader.load_checkpoint(checkpoint, 'cpu', logger='silent')
    if not isinstance(model, nn.Module):
        model = MODELS.build(copy.deepcopy(model))
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    other_classes = _other_classes(content, dataset_meta or {})
    weights = content.get('state_dict', content)
    weights = {re.sub(r'^module\.', '', str(key)): value for key, value in weights.items()}
    try:
        missing = {*model.load_state_dict(weights, strict=False).missing_keys}
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from error
    except RuntimeError as error:
        differing = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(
            f'{checkpoint} is of another model: {differing[0].rstrip(".")} ({len(differing)} '
            f'differences){other_classes and f", and it {other_classes}"}; name the config that it '
            'was trained with.'
        ) from error
    learnt = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    learnt += [name for name, _ in model.named_buffers() if '.running_' in f'.{name}']
    lacking = [name for name in learnt if name in missing]
    if lacking:
        raise CheckpointError(
            f'{checkpoint} lacks {len(lacking)} of the {len(learnt)} weights of this model, such '
            f'as {lacking[0]}, which would stay random: name the config that it was trained with, '
            'or a checkpoint of the whole model.'
        )
    if other_classes:
        raise CheckpointError(
            f'{checkpoint} {other_classes}: give the test dataset metainfo=dict(classes=...) with '
            'the names and the order of the checkpoint, or test it nevertheless with '
            '--ignore-classes.'
        )


def _other_classes(content: Mapping, dataset_meta: Mapping) -> str:
    """How the classes of a checkpoint differ from a dataset's, or '' if they do not."""
    meta = _meta(content)
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
