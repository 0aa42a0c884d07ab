"""Finds settings at the top of a config that nothing reads.

Configs define variables beside the settings. A variable has no effect on the settings that a base
config has made of its own variable of this name.
"""

import ast
import functools
import inspect
import logging
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from mmhatnet.errors import ConfigError

# What reading a config and the tools read beside the runners.
OF_TOOLS = ('custom_imports', 'goals', 'runner_type', 'tta_model', 'tta_pipeline')
# The settings of the second versions of the frameworks, and what they are called now.
SUCCESSORS = {
    'auto_resume': 'resume',
    'checkpoint_config': 'default_hooks.checkpoint',
    'cudnn_benchmark': 'env_cfg.cudnn_benchmark',
    'data': 'train_dataloader, val_dataloader and test_dataloader',
    'data.samples_per_gpu': 'train_dataloader.batch_size',
    'data.workers_per_gpu': 'train_dataloader.num_workers',
    'data.train': 'train_dataloader.dataset',
    'data.val': 'val_dataloader.dataset',
    'data.test': 'test_dataloader.dataset',
    'dist_params': 'env_cfg.dist_cfg',
    'evaluation': 'train_cfg.val_interval, val_evaluator and default_hooks.checkpoint.save_best',
    'evaluation.interval': 'train_cfg.val_interval',
    'evaluation.metric': 'val_evaluator.metric',
    'evaluation.save_best': 'default_hooks.checkpoint.save_best',
    'fp16': "optim_wrapper.type='AmpOptimWrapper'",
    'log_config': 'default_hooks.logger',
    'log_config.interval': 'default_hooks.logger.interval',
    'lr_config': 'param_scheduler',
    'momentum_config': 'param_scheduler',
    'optimizer': 'optim_wrapper.optimizer',
    'optimizer_config': 'optim_wrapper',
    'optimizer_config.grad_clip': 'optim_wrapper.clip_grad',
    'resume_from': 'load_from with resume=True',
    'runner': 'train_cfg',
    'runner.max_epochs': 'train_cfg.max_epochs',
    'runner.max_iters': 'train_cfg.max_iters',
    'seed': 'randomness.seed',
    'total_epochs': 'train_cfg.max_epochs',
    'total_iters': 'train_cfg.max_iters',
    'workflow': 'train_cfg.val_interval',
}


def top_level_of(cfg: Config) -> set[str]:
    """Returns the settings at the top of a config that runners and tools read."""
    runners = {Runner, FlexibleRunner, RUNNERS.get(cfg.get('runner_type', 'Runner'))} - {None}
    return {*OF_TOOLS}.union(*map(_read_by, runners))


@functools.cache
def _read_by(runner: type) -> set[str]:
    read = re.findall(r"self\.cfg\.get\(\s*'(\w+)'", inspect.getsource(runner))
    return {*read, *inspect.signature(runner).parameters}


def successor_of(key: str) -> str | None:
    """Returns what a setting of a framework's second version is called now."""
    top, _, rest = key.partition('.')
    first = '.'.join([top, *rest.split('.')[:1]])
    if first in SUCCESSORS:
        return SUCCESSORS[first] + rest[len(first) - len(top) - 1 :]
    found = SUCCESSORS.get(top)
    return f'{found}.{rest}' if found and rest and re.fullmatch(r'[\w.]+', found) else found


def users_of(cfg: Config, value: object) -> list[str]:
    """Returns the paths of the settings that equal a dict or list of the config."""
    known = top_level_of(cfg)
    return [
        path
        for key in cfg
        if key in known
        for path, found in _containers(cfg[key], key)
        if found == value
    ]


def _containers(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, (dict, list, tuple)):
        yield path, value
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from _containers(inner, f'{path}.{key}')


def require_read(cfg: Config, *splits: str) -> None:
    """Refuses what the config file itself sets at its top to no effect.

    Variables of other names are reported: code of the user may read them. So is what a file of the
    user sets that the config inherits: it may be meant for other configs.

    Args:
        cfg (Config): The config.
        splits (str): 'train', 'val' or 'test', whose pipelines matter.

    Raises:
        ConfigError: If pipelines, settings of a framework's second version or misspelt settings
            are read by nothing.
    """
    file = Path(cfg.filename or '')
    inherits, unread = _unread_in(cfg, file)
    wrong, others = [], []
    loaders = {f'{split}_dataloader' for split in splits}
    for name in unread:
        loader = loader_of(name)
        if loader not in loaders if loader else not inherits:
            continue  # a dump repeats variables
        if _has_users(cfg, name):
            continue
        if hint := _what_is_meant(cfg, name):
            wrong.append(f'{cfg.filename} sets {name}, which nothing reads: {hint}.')
        else:
            others.append(name)
    if wrong and inherits and _is_own(file):
        raise ConfigError('\n'.join(wrong))
    wrong += _unread_in_bases(cfg, file, loaders)
    for text in wrong:  # --cfg-options may have changed what a dump made of its variables
        _say(text)
    if others:
        _say(
            f'{cfg.filename} sets {", ".join(others)}, which nothing in it reads: set what is '
            'meant itself, as a base config has used its own values.'
        )


def _is_own(file: Path) -> bool:
    """Returns whether a file is none of a framework's."""
    return '.mim' not in file.parts


def _has_users(cfg: Config, name: str) -> bool:
    return isinstance(cfg[name], (dict, list, tuple)) and bool(users_of(cfg, cfg[name]))


def _unread_in_bases(
    cfg: Config, file: Path, loaders: set[str], heirs: tuple[str, ...] = ()
) -> list[str]:
    """Returns what nothing reads of the files that a file inherits, if no heir names it."""
    try:
        heirs = (*heirs, file.read_text('utf-8-sig'))
        bases = [
            Path(Config._get_cfg_path(base, str(file))[0])
            for base in Config._get_base_files(str(file))
        ]
    except Exception:  # MMEngine replaces its own marks before it reads bases
        return []
    found = []
    for base in filter(_is_own, bases):
        inherits, unread = _unread_in(cfg, base)
        for name in unread if inherits else ():
            if loader_of(name) not in (None, *loaders) or _has_users(cfg, name):
                continue
            if any(re.search(rf'\b{name}\b', text) for text in heirs):
                continue
            if hint := _what_is_meant(cfg, name):
                found.append(f'{base} sets {name}, which nothing reads: {hint}.')
        found += _unread_in_bases(cfg, base, loaders, heirs)
    return found


def _what_is_meant(cfg: Config, name: str) -> str | None:
    known, value = top_level_of(cfg), cfg[name]
    if name in SUCCESSORS:
        inner = value if isinstance(value, dict) else {}
        named = {key: SUCCESSORS.get(f'{name}.{key}') for key in inner}
        renamed = [f'{name}.{key} is now {new}' for key, new in named.items() if new]
        return '; '.join(renamed or [f'it is now {SUCCESSORS[name]}'])
    if loader := loader_of(name):
        return (
            f'{loader} keeps the pipeline that it has; pass this one on with '
            f'{loader}=dict(dataset=dict(pipeline={name})), or leave it out'
        )
    similar = get_close_matches(name, known, n=1, cutoff=0.85)
    return f'perhaps {similar[0]} is meant' if similar else None


def loader_of(variable: str) -> str | None:
    """Returns the data loader for which a pipeline is usually made, by the variable's name."""
    split = re.fullmatch(r'(train|val|test)_pipeline', variable)
    return f'{split[1]}_dataloader' if split else None


def _say(text: str) -> None:
    if is_main_process():
        print_log(text, logger='current', level=logging.WARNING)


def _unread_in(cfg: Config, path: Path) -> tuple[bool, list[str]]:
    """Returns whether a file of a config inherits others, and the variables that it never reads."""
    if path.suffix != '.py' or not path.is_file():
        return False, []
    try:
        tree = ast.parse(path.read_text('utf-8-sig'))
    except (SyntaxError, UnicodeDecodeError):  # MMEngine replaces its own marks before it parses
        return False, []
    nodes = list(ast.walk(tree))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    read = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    read |= {
        node.target.id
        for node in nodes
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)
    }
    written = dict.fromkeys(name.id for name in names if isinstance(name.ctx, ast.Store))
    inherits = '_base_' in written or 'read_base' in read
    known = {*top_level_of(cfg), *read}
    return inherits, [name for name in written if name in cfg and name not in known]
