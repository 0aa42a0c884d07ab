"""The wheel is complete, and configs can be inherited from it and from a checkout."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import yaml
from experiments import rest_slow
from mmengine.config import Config
from processes import Script

import mmhatnet
from mmhatnet.openmmlab.patches import apply_patches

ROOT = Path(__file__).parents[1]
INHERITED = [
    'semfpn_hatnet.py',
    'hatnet/mask-rcnn_hatnet-s_fpn_1x_coco.py',
    'toy/maskrcnn_hatnet_toy.py',
]
BUILD_FILES = (
    *('pyproject.toml', 'setup.py', 'MANIFEST.in'),
    *('LICENSE', 'NOTICE', 'README.md', 'model-index.yml'),
)
INHERIT = """
import json, sys
import mmhatnet.openmmlab.setup
from mmengine.config import Config
from mmengine.utils import get_installed_path
configs = {}
for name in sys.argv[1:]:
    with open('inheriting.py', 'w') as file:
        file.write(f'_base_ = "mmhatnet::{name}"')
    configs[name] = Config.fromfile('inheriting.py').to_dict()
with open('result.json', 'w') as file:
    json.dump([mmhatnet.__file__, get_installed_path('mmhatnet'), configs], file)
"""


def run(*arguments, cwd):
    process = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr


def run_with(wheel: Path, script: str | Path, *args, cwd: Path) -> None:
    Script(script, *args, log=cwd / 'output.txt', cwd=cwd, PYTHONPATH=str(wheel)).wait()


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """Copies the files that the package is built from."""
    copy = tmp_path_factory.mktemp('checkout')
    generated = shutil.ignore_patterns('__pycache__', '.mim')
    for name in ('mmhatnet', 'mmhatnet_cli', 'configs', 'tools'):
        shutil.copytree(ROOT / name, copy / name, ignore=generated)
    for name in BUILD_FILES:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope='module')
def wheel(checkout, tmp_path_factory):
    """Builds the wheel and returns the folder of its content, as after installation."""
    leftovers = [
        checkout / 'build' / 'lib' / 'mmhatnet' / '.mim' / 'configs' / 'deleted_since.py',
        checkout / 'configs' / '__pycache__' / 'compiled.pyc',
    ]
    for leftover in leftovers:
        leftover.parent.mkdir(parents=True, exist_ok=True)
        leftover.touch()
    dist, content = tmp_path_factory.mktemp('dist'), tmp_path_factory.mktemp('site-packages')
    options = ['--no-index', '--no-deps', '--no-build-isolation', '--wheel-dir', str(dist)]
    run('-m', 'pip', 'wheel', *options, '.', cwd=checkout)
    (file,) = dist.iterdir()
    zipfile.ZipFile(file).extractall(content)
    return content


def files_below(folder):
    return {
        str(path.relative_to(folder))
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def test_wheel_holds_configs_and_tools_where_mim_looks(wheel):
    mim = wheel / 'mmhatnet' / '.mim'
    for name in ('configs', 'tools'):
        assert files_below(mim / name) == files_below(ROOT / name)
    assert (mim / 'model-index.yml').exists() == (ROOT / 'model-index.yml').exists()
    assert not list(wheel.rglob('*.pyc'))


def test_wheel_holds_the_package_and_nothing_else(wheel):
    assert {path.name for path in wheel.iterdir()} == {
        'mmhatnet',
        'mmhatnet_cli',
        f'mmhatnet-{mmhatnet.__version__}.dist-info',
    }
    modules = {name for name in files_below(wheel / 'mmhatnet') if not name.startswith('.mim')}
    originals = files_below(ROOT / 'mmhatnet')
    assert modules == {name for name in originals if not name.startswith('.mim')}
    assert files_below(wheel / 'mmhatnet_cli') == files_below(ROOT / 'mmhatnet_cli')


@pytest.mark.parametrize('name', ['LICENSE', 'NOTICE'])
def test_wheel_holds_the_licence(wheel: Path, name: str) -> None:
    (licence,) = wheel.glob(f'*.dist-info/licenses/{name}')
    assert licence.read_text() == (ROOT / name).read_text()


def test_wheel_is_typed(wheel: Path) -> None:
    assert (wheel / 'mmhatnet' / 'py.typed').is_file()


def test_wheel_requires_neither_package_family(wheel):
    (metadata,) = wheel.glob('*.dist-info/METADATA')
    required = HeaderParser().parsestr(metadata.read_text()).get_all('Requires-Dist')
    unconditional = {re.match(r'[\w-]+', line)[0] for line in required if 'extra ==' not in line}
    assert unconditional == {'numpy', 'packaging', 'torch'}


def test_configs_are_inherited_from_the_wheel(wheel, tmp_path):
    script = tmp_path / 'inherit.py'
    script.write_text(INHERIT)
    run_with(wheel, script, *INHERITED, cwd=tmp_path)
    imported, installed, inherited = json.loads((tmp_path / 'result.json').read_text())
    assert Path(imported).parent == Path(installed) == wheel / 'mmhatnet'
    originals = {name: Config.fromfile(ROOT / 'configs' / name).to_dict() for name in INHERITED}
    assert inherited == json.loads(json.dumps(originals))


def test_editable_installation_links_to_the_checkout(checkout, tmp_path):
    build = 'import sys; from setuptools.build_meta import build_editable as b; b(sys.argv[1])'
    run('-c', build, str(tmp_path), cwd=checkout)
    for name in ('configs', 'tools'):
        link = checkout / 'mmhatnet' / '.mim' / name
        assert os.readlink(link) == f'../../{name}'
        assert link.resolve() == (checkout / name).resolve()


def inherit(tmp_path, base):
    apply_patches()
    config = tmp_path / 'inheriting.py'
    config.write_text(f'_base_ = {base!r}\n')
    return Config.fromfile(config)


def test_inherited_modules_are_built_in_the_scope_of_the_framework(tmp_path):
    """MMEngine would mark every module of an inherited config with the scope 'mmhatnet'."""
    config = inherit(tmp_path, 'mmhatnet::retinanet_hatnet.py')
    assert config.default_scope == 'mmdet'
    assert "'_scope_': 'mmhatnet'" not in str(config)
    assert config.model.backbone.type == 'HATNet'


def test_configs_of_mmseg_are_found_in_both_package_families(tmp_path):
    pytest.importorskip('mmseg')
    config = inherit(tmp_path, 'mmseg::_base_/datasets/ade20k.py')
    assert config.train_dataloader.dataset.type == 'ADE20KDataset'


def test_config_path_needs_no_earlier_import(tmp_path, wheel):
    """Projects use it in configs for tools that do not import mmhatnet."""
    config, script = tmp_path / 'inheriting.py', tmp_path / 'script.py'
    config.write_text("_base_ = __import__('mmhatnet').config_path('toy/maskrcnn_hatnet_toy.py')")
    script.write_text(
        'from mmengine.config import Config; config = Config.fromfile("inheriting.py"); '
        'assert config.model.backbone.type == "HATNet" and config.model.backbone.arch == "tiny"'
    )
    run_with(wheel, script, cwd=tmp_path)


def test_missing_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mmhatnet has no config 'toy/none\.py' in "):
        inherit(tmp_path, 'mmhatnet::toy/none.py')


def test_toy_configs_are_inherited_by_their_earlier_names(tmp_path):
    earlier = inherit(tmp_path, 'mmhatnet::toy/retinanet_hatnet.py')
    now = Config.fromfile(ROOT / 'configs' / 'toy' / 'retinanet_hatnet_toy.py')
    assert earlier.to_dict() == now.to_dict()


@pytest.mark.parametrize('tool', rest_slow(['mmhatnet', 'mmdet'], 'mmhatnet'))
def test_downstream_project_trains_outside_the_checkout(tool, wheel, tmp_path):
    project = tmp_path / 'kites'
    shutil.copytree(ROOT / 'examples' / 'kites', project)
    package = wheel / 'mmhatnet'
    if tool != 'mmhatnet':
        package = Path(pytest.importorskip(tool).__file__).parent
    options = [
        'model.backbone.init_cfg=None',
        'train_dataloader.dataset.indices=2',
        'val_dataloader.dataset.indices=2',
        'train_dataloader.dataset.pipeline.2.scale=(96,96)',
        'val_dataloader.dataset.pipeline.1.scale=(96,96)',
        'train_cfg.max_epochs=1',
        'model.test_cfg.rpn.max_per_img=32',
        'default_hooks.checkpoint.save_optimizer=False',
    ]
    train = str(package / '.mim' / 'tools' / 'train.py')
    run_with(wheel, train, 'config.py', '--cfg-options', *options, cwd=project)
    assert (project / 'work_dirs' / 'config' / 'epoch_1.pth').is_file()
    (results,) = project.glob('work_dirs/config/*/vis_data/scalars.json')
    assert '"coco/segm_mAP"' in results.read_text()


def test_commands_need_no_checkout(wheel: Path, tmp_path: Path) -> None:
    """From synthetic data to predictions, with the commands that are printed."""
    (entry,) = wheel.glob('*.dist-info/entry_points.txt')
    module, function = re.search(r'^mmhatnet = (\S+):(\S+)$', entry.read_text(), re.M).groups()
    script, folder = tmp_path / 'bin' / 'mmhatnet', tmp_path / 'empty'
    for new in (script.parent, folder):
        new.mkdir()
    start = f"if __name__ == '__main__':\n    {function}()\n"  # workers import the script, too
    script.write_text(f'from {module} import {function}\n{start}')

    def call(*words: object) -> str:
        run_with(wheel, script, *words, cwd=folder)
        return (folder / 'output.txt').read_text()

    def printed(output: str) -> list[list[str]]:
        lines = [line.partition(f'{script} ')[2] for line in output.splitlines()]
        return [shlex.split(line) for line in lines if line]

    few = ['--coco', 6, 2, '--ade', 0, 0, '--imagenet', 0, 0]
    call('make-toy-data', 'data', *few)
    train, predict = printed(call('new-config', '--data', 'data/coco', '--job', 'retinanet'))
    assert train == ['train', 'config.py'] and predict[:2] == ['predict', 'config.py']
    settings = ['--cfg-options', 'model.backbone.init_cfg=None', 'train_cfg.max_epochs=1']
    settings += ['train_dataloader.dataset.indices=2', 'model.test_cfg.score_thr=0']
    for split, place in dict(train=2, val=1, test=1).items():
        settings += [
            f'{split}_dataloader.num_workers=0',
            f'{split}_dataloader.persistent_workers=False',
            f'{split}_dataloader.dataset.pipeline.{place}.scale=(96,96)',
        ]
    (test,) = printed(call(*train, *settings))
    assert test[:2] == ['test', 'work_dirs/config/config.py']
    assert 'coco/bbox_mAP' in call(*test)
    call(*predict, *settings)
    assert (folder / 'work_dirs/predictions/predictions.json').is_file()


def test_ci_runs_on_every_supported_python() -> None:
    workflow = yaml.safe_load((ROOT / '.github' / 'workflows' / 'ci.yml').read_text())
    supported = re.findall(r'Python :: (3\.\d+)"', (ROOT / 'pyproject.toml').read_text())
    assert workflow['jobs']['run']['strategy']['matrix']['python'] == supported
