"""Impossible configs and options end with an error message; unusual ones that work do not."""

import runpy
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmhatnet import config_checks
from mmhatnet.cli import load_config, merge_options, parse_settings, read_config
from mmhatnet.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / 'configs'


def read(path: Path, text: str, encoding: str = 'utf-8') -> Config:
    path.write_text(text, encoding=encoding)
    return read_config(str(path))


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('a.py', 'a = 1\nb = dict(\n', r'a\.py, line 2: syntax error'),
        ('a.py', "a = 1\nb = open('no')\n", r'a\.py, line 2: FileNotFoundError'),
        ('a.py', '_base_ = "b.py"\nc = 1\n', r'a\.py: it inherits .*/b\.py, which is not there'),
        ('a.py', '_base_ = "./bad.py"\n', r'bad\.py, line 3: NameError: .*nothing'),
        ('a.py', '_base_ = "./heir.py"\n', r'/bad\.py, line 3: NameError: .*nothing'),
        (
            'a.py',
            'from mmengine.config import read_base\nwith read_base():\n    from .lazy import *\n',
            r'lazy\.py, line 2: NameError: .*nothing',
        ),
        ('a.pth', '', r'a\.pth is a checkpoint: the config comes first'),
        ('a.txt', '', r'a\.txt is no config'),
    ],
)
def test_unreadable(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / 'bad.py').write_text('a = 1\n\nb = nothing\n')
    (tmp_path / 'heir.py').write_text('_base_ = "./bad.py"\n')
    (tmp_path / 'lazy.py').write_text('a = 1\nb = nothing\n')
    parsers = [Config.__dict__[name] for name in ('_file2dict', '_parse_lazy_import')]
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / name, text)
    assert parsers == [Config.__dict__[name] for name in ('_file2dict', '_parse_lazy_import')]


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    assert read(tmp_path / 'a.py', 'a = 1\n', 'utf-8-sig').a == 1


def test_imports_of_inherited_configs_are_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name in ('base_part', 'own_part', 'gone_part'):
        (tmp_path / f'{name}.py').write_text('')
    (tmp_path / 'old.py').write_text("custom_imports = dict(imports='gone_part')\n")
    (tmp_path / 'base.py').write_text(
        '_base_ = "old.py"\ncustom_imports = dict(imports=["base_part"])\n'
    )
    text = '_base_ = "base.py"\ncustom_imports = dict(imports=["own_part"])\n'
    cfg = read(tmp_path / 'own.py', text)
    assert {'base_part', 'own_part', 'gone_part'} <= {*sys.modules}
    assert cfg.custom_imports.imports == ['gone_part', 'base_part', 'own_part']
    cfg.dump(tmp_path / 'written.py')
    assert read_config(str(tmp_path / 'written.py')).custom_imports == cfg.custom_imports
    # One that was replaced need not be there, but the config's own has to be.
    monkeypatch.delitem(sys.modules, 'gone_part')
    (tmp_path / 'gone_part.py').unlink()
    assert read(tmp_path / 'own.py', text).custom_imports.imports == ['base_part', 'own_part']
    with pytest.raises(ConfigError, match='no_part'):
        read(tmp_path / 'own.py', text.replace('own_part', 'no_part'))


def test_a_config_with_imports_of_its_own_builds_our_head(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'own_hook.py').write_text('')
    base = CONFIGS / 'toy' / 'imagenet_hatnet_toy.py'
    text = f'_base_ = {str(base)!r}\ncustom_imports = dict(imports=["own_hook"])\n'
    cfg = read(tmp_path / 'own.py', text)
    assert 'mmhatnet.openmmlab.cls_head' in cfg.custom_imports.imports


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('model.backbone.arch', 'settings are key=value'),
        ('a = 1', 'settings are key=value'),
        ('a=1 config.py', 'files come before --cfg-options'),
        ('a=[1,2', 'brackets do not pair up'),
        ('model.backbone=dict(type=HATNet)', 'given by its keys'),
        ('model.backbone=small', 'it is a dict'),
        ('model.backbone.init_cfg=none', 'nothing is written None'),
        ('model.backbone.arch.depths=2', "model.backbone.arch is 'tiny'"),
        ('model.neck.in_channels.0=2', 'give all of it'),
        ('train_dataloader.dataset.pipeline.9.type=Pad', 'pipeline.0 to 4'),
        ('optim_wrapper.optimizer.lr=0,001', 'decimals have a point'),
        ('model.backbone.frozen_stage=2', 'perhaps model.backbone.frozen_stages is meant'),
        ('train_cgf.max_epochs=2', 'perhaps train_cfg.max_epochs is meant'),
    ],
)
def test_impossible_options(words: str, message: str) -> None:
    cfg = Config.fromfile(CONFIGS / 'toy' / 'maskrcnn_hatnet_toy.py')
    with pytest.raises(ConfigError, match=message):
        merge_options(cfg, parse_settings(words.split()))


def test_possible_options(capsys) -> None:
    cfg = Config.fromfile(CONFIGS / 'toy' / 'maskrcnn_hatnet_toy.py')
    words = 'model.backbone.frozen_stages=2 model.test_cfg.rcnn.score_the=0.1 tta_model.type=A '
    words += 'model.backbone.init_cfg._delete_=True model.backbone.init_cfg.type=Pretrained '
    words += 'model.roi_head.mask_head=None train_dataloader.dataset.pipeline.3.prob=0.3,0.5'
    merge_options(cfg, parse_settings(words.split()))
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained')
    assert cfg.model.backbone.frozen_stages == 2
    assert 'perhaps model.test_cfg.rcnn.score_thr is meant' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(model=None), 'has no model'),
        (dict(optim_wrapper=None), 'has no optim_wrapper'),
        (dict(val_evaluator=None), 'has no val_evaluator, .* without validation'),
        ({'model.backbone.type': 'ResNet'}, "ResNet has no setting 'arch'.*_delete_=True"),
        ({'model.backbone.in_channels': 4}, 'in_channels is 4, but data_preprocessor.mean has 3'),
        ({'model.backbone.arch': 'small'}, r'model\.neck\.in_channels is \[48.* gives \[64'),
        (
            {'train_dataloader.dataset.pipeline.0.color_type': 'grayscale'},
            "in_channels is 3, but the train pipeline's LoadImageFromFile gives 1",
        ),
    ],
)
def test_configs_that_do_not_fit_together(changes: dict, message: str) -> None:
    cfg = Config.fromfile(CONFIGS / 'toy' / 'maskrcnn_hatnet_toy.py')
    cfg.merge_from_dict(changes)
    with pytest.raises(ConfigError, match=message):
        config_checks.require_complete(cfg, 'train', 'val')
        config_checks.require_known_settings(cfg)
        config_checks.require_channels(cfg, 'train', 'val', 'test')


def test_a_config_may_train_without_validation() -> None:
    cfg = Config.fromfile(CONFIGS / 'toy' / 'maskrcnn_hatnet_toy.py')
    cfg.merge_from_dict(dict(val_dataloader=None, val_cfg=None, val_evaluator=None))
    config_checks.require_complete(cfg, 'train', 'val')


class Own(nn.Module):
    """A user's module that raises an error."""

    def __init__(self, error: Exception) -> None:
        raise error


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(type='HATNet', archs='tiny'), "HATNet has no setting 'archs'"),
        (dict(type='mmdet.RetinaHead', num_classes=2), 'RetinaHead.*missing .*in_channels'),
        (dict(type='mmdet.RetinaHead', num_classes=2, in_channels=2, a=1), "no setting 'a'"),
        (dict(type='Hatnet'), 'there is no Hatnet in .*; import your own with custom_imports'),
        (dict(type='ImgDataPreprocessor', mean=[1, 2], std=[1, 2]), 'Preprocessor: `mean` should'),
        (dict(type=Own), r'Own.__init__\(\) missing'),
    ],
)
def test_constructor_errors_become_messages(settings, message, tmp_path) -> None:
    cfg = read(tmp_path / 'a.py', '')
    refused = pytest.raises(ConfigError, match=rf'a\.py: .*{message}')
    with refused, config_checks.build_errors_as_messages(cfg):
        MODELS.build(settings)


@pytest.mark.parametrize('error', [AssertionError, KeyError, TypeError, ValueError])
def test_an_error_inside_a_users_class_keeps_its_traceback(error: type) -> None:
    message = "A.__init__() got an unexpected keyword argument 'b'"
    with pytest.raises(error), config_checks.build_errors_as_messages(Config()):
        MODELS.build(dict(type=Own, error=error(message)))
    with pytest.raises(error), config_checks.build_errors_as_messages(Config()):
        raise error(message)  # as training itself may


TOOLS = [path.stem for path in CONFIGS.parent.glob('tools/*.py')]
# Arguments that are text, but name no file or folder.
OF_NO_FILE = {
    *('backbones', 'cfg_options', 'classes', 'device', 'experiment', 'host', 'local_rank'),
    *('measure', 'tracker'),
    *('json',),  # a name in the folder --docs
}


class Parsed(Exception):
    """Ends a tool after it has defined its arguments."""


@pytest.mark.parametrize('tool', TOOLS)
def test_home_is_found_in_all_arguments_that_name_files(tool: str, tmp_path, monkeypatch) -> None:
    def end(parser: ArgumentParser, *_: object) -> None:
        raise Parsed(parser)

    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(ArgumentParser, 'parse_args', end)
    with pytest.raises(Parsed) as ended:
        runpy.run_path(str(CONFIGS.parent / 'tools' / f'{tool}.py'), run_name='__main__')
    (parser,) = ended.value.args
    texts = [
        action
        for action in parser._actions
        if action.nargs != 0 and not action.choices and action.dest not in OF_NO_FILE
    ]
    named = [action for action in texts if not _is_number(action.type)]
    assert named
    for action in named:
        assert str(action.type('~/a b/')).rstrip('/') == f'{tmp_path}/a b', action.dest
        assert str(action.type('$HOME/a')) == f'{tmp_path}/a', action.dest
        with pytest.raises(ArgumentTypeError, match='empty'):
            action.type('')


def _is_number(read: object) -> bool:
    try:
        read('~/a')
    except (ValueError, ArgumentTypeError):
        return True
    except TypeError:  # None, which leaves text as it is
        return False
    return False


def test_home_is_found_in_a_config(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'base.py').write_text("load_from = '~/a.pth'\nword = 'a~/b'\nnames = ('~', 'b')\n")
    (tmp_path / 'own.py').write_text(
        "_base_ = '~/base.py'\n"
        "train_dataloader = dict(dataset=dict(data_root='~/data', data_prefix=('~/a', 1)))\n"
        "transforms = [dict(folders=['~/b'])]\n"
    )
    args = Namespace(
        config=str(tmp_path / 'own.py'),
        cfg_options=['work_dir=~/work'],
        **dict(work_dir=None, launcher='none', local_rank=0),
    )
    cfg = load_config(args)
    assert cfg.work_dir == f'{tmp_path}/work' and cfg.load_from == f'{tmp_path}/a.pth'
    assert cfg.train_dataloader.dataset.data_root == f'{tmp_path}/data'
    assert cfg.train_dataloader.dataset.data_prefix == (f'{tmp_path}/a', 1)
    assert cfg.transforms[0].folders == [f'{tmp_path}/b']
    assert cfg.word == 'a~/b' and cfg.names == ('~', 'b')


def test_options_import_modules(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'part_of_options.py').write_text('')
    cfg = read_config(str(CONFIGS / 'toy' / 'maskrcnn_hatnet_toy.py'))
    before = cfg.custom_imports.imports
    merge_options(cfg, parse_settings(['custom_imports.imports=part_of_options']))
    assert 'part_of_options' in sys.modules
    assert cfg.custom_imports.imports == [*before, 'part_of_options']
    with pytest.raises(ConfigError, match='custom_imports: Failed to import no_part; .*PYTHONPATH'):
        merge_options(cfg, parse_settings(['custom_imports.imports=no_part']))


def test_an_interruption_is_one_line(run_tool_captured, monkeypatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr('mmhatnet.config_walk.DATASETS.build', interrupt)
    try:
        ended = run_tool_captured('train', CONFIGS / 'toy' / 'maskrcnn_hatnet_toy.py')
    except KeyboardInterrupt:  # which would end pytest
        pytest.fail('ends in a traceback')
    assert ended.returncode == 130 and ended.stderr.endswith('Interrupted.\n')
    assert 'Traceback' not in ended.stderr
