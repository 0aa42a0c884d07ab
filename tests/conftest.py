"""Small synthetic data for the tests that train, and the tools as functions."""

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
# MMEngine reads all metafiles of a package for each of its configs, which takes a second.
utils.load = functools.cache(utils.load)
# What the frameworks have made until now stays, and is looked through in no later collection.
gc.freeze()


@pytest.fixture(scope='session')
def toy_data(tmp_path_factory) -> Path:
    """A folder in which `data/toy` holds a handful of generated pictures."""
    folder = tmp_path_factory.mktemp('project')
    make_toy_data(folder / 'data' / 'toy', 0, dict(coco=[8, 4], ade=[8, 2], imagenet=[8, 2]))
    return folder


@pytest.fixture(scope='session')
def all_coco_classes(toy_data: Path) -> Path:
    """Annotations of the toy pictures that list the categories which these do not show as well."""
    from mmdet.datasets import CocoDataset

    for file in toy_data.glob('data/toy/coco/annotations/instances_*.json'):
        content = json.loads(file.read_text())
        shown = {category['name'] for category in content['categories']}
        content['categories'] += [
            dict(id=1000 + number, name=name)
            for number, name in enumerate(CocoDataset.METAINFO['classes'])
            if name not in shown
        ]
        # MMDetection numbers classes in this order, and not in that of the config.
        content['categories'].sort(key=lambda c: CocoDataset.METAINFO['classes'].index(c['name']))
        file.with_name(file.name.replace('instances_', ALL_CLASSES)).write_text(json.dumps(content))
    return toy_data


def forget_earlier_runs() -> None:
    """A process has one scope, visualizer and logger of each name, which the next run would take.

    Two runs within a second have the same name, and the second one would write no log.
    """

    def forget(manager: type[ManagerMixin]) -> None:
        manager._instance_dict.clear()
        for subclass in manager.__subclasses__():
            forget(subclass)

    for manager in (DefaultScope, MessageHub, MMLogger, Visualizer):
        forget(manager)


@pytest.fixture(autouse=True)
def every_test_by_itself() -> Iterator[None]:
    forget_earlier_runs()
    yield
    forget_earlier_runs()


@pytest.fixture
def run_tool(toy_data, monkeypatch) -> Callable[..., None]:
    """Runs a tool in this process, where importing the frameworks is paid for once."""
    # Formatting the dumped config takes longer than training; other processes format it.
    monkeypatch.setattr(Config, 'pretty_text', property(lambda cfg: as_text(cfg.to_dict())))

    def run(name: str, *args) -> None:
        forget_earlier_runs()
        monkeypatch.chdir(toy_data)
        monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
        runpy.run_path(str(ROOT / 'tools' / f'{name}.py'), run_name='__main__')

    return run


@pytest.fixture
def run_tool_captured(run_tool, capsys) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a tool in this process, and gives what a command line would show of it."""

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
