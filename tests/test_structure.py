"""Modules depend on each other in one direction, and only commands turn errors into exits."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from experiments import TOY
from processes import Script

from mmhatnet.errors import CheckpointError, ConfigError, DataError, ExportError
from mmhatnet_cli import NAMES

ROOT = Path(__file__).parents[1]
TOOLS = {path.stem: path for path in ROOT.glob('tools/*.py')}
MODULES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
    for path in ROOT.glob('mmhatnet/**/*.py')
    if '.mim' not in path.parts
}
# The dependencies of the data checks, which could be a distribution of their own.
OF_DATA_CHECKS = {'mmhatnet.config_walk', 'mmhatnet.errors'}
FRAMEWORKS = {'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg', 'numpy', 'PIL', 'rich'}


def imports(path: Path, everywhere: bool = False) -> Iterator[str]:
    """Yields what a file imports, at its top level or everywhere."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f'{node.module}.{alias.name}'
                yield name if name in MODULES else node.module


def packages_of(name: str) -> set[str]:
    """Returns the packages that Python imports before a module, except the outermost."""
    parts = name.split('.')
    return {'.'.join(parts[:i]) for i in range(2, len(parts))}


def test_imports_form_no_circle() -> None:
    graph = {}
    for module, path in MODULES.items():
        named = {*imports(path)}
        before = set().union(*map(packages_of, named)) - packages_of(module) - {module}
        graph[module] = (named | before) & {*MODULES}
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle
    assert len(graph) > 30 and 'mmhatnet.errors' in graph['mmhatnet.data_checks.check']


def test_no_tool_imports_a_tool() -> None:
    for path in TOOLS.values():
        assert not {name.partition('.')[0] for name in imports(path, everywhere=True)} & {*TOOLS}


def test_no_command_imports_a_command() -> None:
    commands = {f'mmhatnet_cli.{name.replace("-", "_")}' for name in NAMES}
    for path in ROOT.glob('mmhatnet_cli/*.py'):
        assert not {*imports(path, everywhere=True)} & commands, path


def test_commands_import_the_standard_library_until_they_run() -> None:
    for path in ROOT.glob('mmhatnet_cli/*.py'):
        named = {name.partition('.')[0] for name in imports(path)}
        assert named <= sys.stdlib_module_names | {'mmhatnet_cli'}, path


def test_nothing_needs_the_command_line_but_the_commands() -> None:
    for module, path in MODULES.items():
        if module.startswith('mmhatnet.cli'):
            continue
        assert not any(name.startswith('mmhatnet.cli') for name in imports(path, everywhere=True))
        assert 'SystemExit' not in path.read_text(), module


def test_data_checks_import_nothing_of_the_networks() -> None:
    for module, path in MODULES.items():
        if module.startswith('mmhatnet.data_checks') or module in OF_DATA_CHECKS:
            for name in imports(path, everywhere=True):
                own = name.startswith('mmhatnet.data_checks') or name in OF_DATA_CHECKS
                assert own or name.partition('.')[0] in FRAMEWORKS | sys.stdlib_module_names, (
                    module,
                    name,
                )


ALONE = """
import sys, types
package = types.ModuleType('mmhatnet')
package.__path__ = [sys.argv[1]]
sys.modules['mmhatnet'] = package
for name in ('backbones', 'cli', 'openmmlab'):
    sys.modules[f'mmhatnet.{name}'] = None  # to import it is an ImportError
from mmengine.config import Config
from mmhatnet.data_checks import check_data
head = dict(type='Shared2FCBBoxHead', num_classes=9)
cfg = Config(dict(
    default_scope='mmdet',
    model=dict(roi_head=dict(bbox_head=head)),
    train_dataloader=dict(dataset=dict(
        type='CocoDataset', data_root='data/toy/coco', data_prefix=dict(img='train2017/'),
        ann_file='annotations/instances_train2017.json',
        metainfo=dict(classes=('car', 'umbrella', 'sports ball', 'kite')),
        pipeline=[dict(type='LoadImageFromFile')])),
))
print(check_data(cfg, 'train'))
"""


def test_data_checks_work_alone(toy_data: Path, tmp_path: Path) -> None:
    script = tmp_path / 'alone.py'
    script.write_text(ALONE)
    shown = Script(script, ROOT / 'mmhatnet', log=tmp_path / 'log.txt', cwd=toy_data).wait()
    assert 'bbox_head.num_classes is 9, but the data have 4 classes' in shown


@pytest.mark.parametrize(
    ('error', 'tool', 'args', 'message'),
    [
        (ConfigError, 'get_flops', ['nothing.py'], 'There is no config nothing.py: '),
        (DataError, 'train', [ROOT / 'configs' / 'maskrcnn_hatnet.py'], 'The train data are'),
        (
            CheckpointError,
            'test',
            [TOY['maskrcnn_hatnet_toy'], 'y.pth'],
            'There is no checkpoint y.pth: ',
        ),
        (
            ExportError,
            'export',
            [TOY['imagenet_hatnet_toy'], 'EMPTY', '--out', 'a.onnx'],
            '--format onnx needs onnx and onnxscript: ',
        ),
    ],
)
def test_tools_end_with_the_message(
    error: type,
    tool: str,
    args: list,
    message: str,
    run_tool,
    run_tool_captured,
    tmp_path,
    monkeypatch,
) -> None:
    monkeypatch.setattr('mmhatnet.export.files.find_spec', lambda name: None)
    torch.save({'state_dict': {}}, tmp_path / 'empty.pth')
    args = [tmp_path / 'empty.pth' if arg == 'EMPTY' else arg for arg in args]
    with pytest.raises(SystemExit) as ended:
        run_tool(tool, *args)
    assert type(ended.value.__context__) is error
    result = run_tool_captured(tool, *args)
    assert result.returncode == 1
    assert result.stderr.startswith(message) and 'Traceback' not in result.stderr


def test_a_process_shows_the_message_alone(tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as failed:
        Script(TOOLS['get_flops'], 'nothing.py', log=tmp_path / 'log.txt', cwd=tmp_path).wait()
    status, *lines = str(failed.value).strip().splitlines()
    assert status.startswith('exit status 1') and 'Traceback' not in str(failed.value)
    assert lines[-1] == (
        'There is no config nothing.py: name a file, or one of this package, such as '
        'mmhatnet::maskrcnn_hatnet.py.'
    )
