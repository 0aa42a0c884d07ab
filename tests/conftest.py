"""Fixtures: small synthetic data for training, and the tools as functions."""

import functools
import gc
import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from experiments import ALL_CLASSES, as_text
from mmengine.config import Config, utils
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.utils import ManagerMixin
from mmengine.visualization import Visualizer

from mmhatnet.synthetic_data import make_toy_data

ROOT = Path(__file__).parents[1]
# MMEngine reads all metafiles of a package for each config, which takes a second.
utils.load = functools.cache(utils.load)
# The objects that the frameworks have created so far stay: no garbage collection need visit them.
gc.freeze()


@pytest.fixture(scope='session')
def toy_data(tmp_path_factory) -> Path:
    """Returns a folder in which `data/toy` holds a few synthetic images."""
    folder = tmp_path_factory.mktemp('project')
    make_toy_data(folder / 'data' / 'toy', 0, dict(coco=[8, 4], ade=[8, 2], imagenet=[8, 2]))
    return folder


@pytest.fixture(scope='session')
def all_coco_classes(toy_data: Path) -> Path:
    """Adds annotations of the synthetic data that list all categories of COCO."""
    from mmdet.datasets import CocoDataset

    for file in toy_data.glob('data/toy/coco/annotations/instances_*.json'):
        content = json.loads(file.read_text())
        shown = {category['name'] for category in content['categories']}
        content['categories'] += [
            dict(id=1000 + number, name=name)
            for number, name in enumerate(CocoDataset.METAINFO['classes'])
            if name not in shown
        ]
        # MMDetection numbers classes in the order of the file, not of the config.
        content['categories'].sort(key=lambda c: CocoDataset.METAINFO['classes'].index(c['name']))
        file.with_name(file.name.replace('instances_', ALL_CLASSES)).write_text(json.dumps(content))
    return toy_data


def forget_earlier_runs() -> None:
    """Deletes MMEngine's global scopes, visualizers and loggers, which the next run would reuse.

    Two runs within a second have the same name, so the second one would write no log.
    """

    def forget(manager: type[ManagerMixin]) -> None:
        manager._instance_dict.clear()
        for subclass in manager.__subclasses__():
            forget(subclass)

    for manager in (DefaultScope, MessageHub, MMLogger, Visualizer):
        forget(manager)


@pytest.fixture(autouse=True)
def isolate_tests() -> Iterator[None]:
    forget_earlier_runs()
    yield
    forget_earlier_runs()


@pytest.fixture
def run_tool(toy_data, monkeypatch) -> Callable[..., None]:
    """Runs a tool in this process, which has imported the frameworks already."""
    # Formatting the dumped config takes longer than training. Tests in other processes format it.
    monkeypatch.setattr(Config, 'pretty_text', property(lambda cfg: as_text(cfg.to_dict())))

    def run(name: str, *args) -> None:
        forget_earlier_runs()
        monkeypatch.chdir(toy_data)
        monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
        runpy.run_path(str(ROOT / 'tools' / f'{name}.py'), run_name='__main__')

    return run


@pytest.fixture
def run_tool_captured(run_tool, capsys) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a tool in this process and returns its exit status and output."""

    def run(*args) -> subprocess.CompletedProcess:
        capsys.readouterr()
        code, message = 0, ''
        try:
            run_tool(*args)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
            message = ended.code if isinstance(ended.code, str) else ''
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(args, code, shown.out, shown.err + message)

    return run
