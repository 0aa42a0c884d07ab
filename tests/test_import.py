"""Importing the package changes no other package and needs PyTorch and MMEngine alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmhatnet.openmmlab.roi_layers import FUNCTIONS

OTHERS = ('mmcv', 'cv2', 'mmdet', 'mmseg', 'mmpretrain', 'timm', 'transformers', 'torchvision')
BLOCK = f"""
import sys
from importlib.abc import MetaPathFinder

class Block(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition('.')[0] in {OTHERS}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Block())
"""
# Counts how often each method of mmcv's functions is wrapped.
WRAPPED = f"""
from importlib import import_module
def wrapped():
    counts = set()
    for module, name in {FUNCTIONS}.items():
        function = getattr(import_module(f'mmcv.ops.{{module}}'), name)
        for method in (function.forward, function.backward):
            count = 0
            while hasattr(method, 'accepts_any_memory_format'):
                method, count = method.__wrapped__, count + 1
            counts.add(count)
    return counts
"""


def run(code: str, *arguments: str | Path, folder: Path | None = None) -> list[str]:
    """Runs code in a new interpreter, with a folder first on its path, and returns its output."""
    path = os.pathsep.join(filter(None, [folder and str(folder), os.environ.get('PYTHONPATH')]))
    command = [sys.executable, '-c', code, *map(str, arguments)]
    environment = {**os.environ, 'PYTHONPATH': path}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_backbones_need_torch_and_mmengine_alone() -> None:
    code = f"""{BLOCK}
import torch
import mmhatnet

built = []
for name, arch in dict(
    HATNet='tiny', P2T='tiny', ShuntedTransformer='tiny', STViT='small', GLNet='4g', OmniNet='tiny'
).items():
    network = getattr(mmhatnet, name)(arch).eval()
    network.init_weights()
    with torch.no_grad():
        features = network(torch.zeros(1, 3, 64, 64))
    assert [tuple(f.shape[1:]) for f in features] == [
        (channels, 64 // stride, 64 // stride)
        for channels, stride in zip(network.out_channels, network.out_strides)
    ]
    assert all(f.isfinite().all() for f in features)
    built.append(name)
print(*built)
"""
    assert run(code)[-1] == 'HATNet P2T ShuntedTransformer STViT GLNet OmniNet'


def test_import_leaves_other_packages_alone_and_patches_are_applied_once() -> None:
    pytest.importorskip('mmcv')
    code = f"""
import sys, warnings
import mmcv.ops
import mmengine.model
from mmengine.config import Config, utils
from mmengine.registry import MODELS
{WRAPPED}
def state():
    tables = dict(utils.MODULE2PACKAGE), [*sys.meta_path], [*sys.path_hooks], [*warnings.filters]
    return wrapped(), Config._get_cfg_path, *tables

before = state()
with warnings.catch_warnings():
    warnings.simplefilter('error')
    import mmhatnet
assert state() == before and wrapped() == {{0}}
names = mmhatnet.__all__[:7]
assert [MODELS.get(name) for name in names] == [getattr(mmhatnet, name) for name in names]

import mmhatnet.openmmlab.setup
from mmhatnet.openmmlab.patches import apply_patches
after = state()
assert after != before and wrapped() == {{1}}
apply_patches()
apply_patches.__wrapped__()  # each step by itself
assert state() == after
print(*names)
"""
    registered = 'P2T GLNet HATNet OmniNet STViT ShuntedTransformer SimpleFeaturePyramid'
    assert run(code)[-1] == registered


def test_patches_come_after_mmdet_and_name_an_operator_that_mmcv_has_renamed() -> None:
    pytest.importorskip('mmdet')
    code = f"""
import warnings
import mmdet.models
{WRAPPED}
renamed = import_module('mmcv.ops.roi_align')
renamed.NewFunction = renamed.RoIAlignFunction
del renamed.RoIAlignFunction
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import mmhatnet.openmmlab.setup
    mmhatnet.openmmlab.patches.apply_patches()
messages = [str(one.message) for one in caught if 'mmcv.ops has no' in str(one.message)]
assert len(messages) == 1 and 'roi_align.RoIAlignFunction' in messages[0], messages
renamed.RoIAlignFunction = import_module('mmcv.ops.roi_pool').RoIPoolFunction
print(wrapped())
"""
    assert run(code)[-1] == '{1}'


def test_configs_before_and_after_the_patches(tmp_path: Path) -> None:
    """An mmcv that cannot be imported does not prevent it."""
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text("raise RuntimeError('undefined symbol')")
    base = "_base_ = __import__('mmhatnet').config_path('_base_/hatnet.py')\n"
    custom = "custom_imports = dict(imports=['mmhatnet'], allow_failed_imports=False)\n"
    by_path, by_name = tmp_path / 'by_path.py', tmp_path / 'by_name.py'
    by_path.write_text(f"{base}{custom}model = dict(type='HATNet', arch='tiny')\n")
    by_name.write_text("_base_ = 'mmhatnet::_base_/hatnet.py'\n")
    code = f"""
import sys
from mmengine.config import Config
from mmengine.registry import MODELS
cfg = Config.fromfile(sys.argv[1])
assert not {{*{OTHERS[:6]}}} & sys.modules.keys()
print(MODELS.build(cfg.model).out_channels)
try:
    Config.fromfile(sys.argv[2])
except AssertionError as error:
    print(error)
import mmhatnet.openmmlab.setup
print(Config.fromfile(sys.argv[2]).hatnet.tiny.type)
"""
    *_, built, refused, found = run(code, by_path, by_name, folder=tmp_path)
    assert built == '(48, 96, 240, 384)'
    assert refused == 'mmengine does not support to load mmhatnet config.'
    assert found == 'HATNet'
