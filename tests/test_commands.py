"""The command ``mmhatnet``: its help, how it dispatches, and how it ends."""

import os
import re
import runpy
import subprocess
import sys
import warnings
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
from test_screen import run_as

import mmhatnet
from mmhatnet import HATNet, export
from mmhatnet.benchmark import BACKBONES
from mmhatnet.cli import Screen, load_config, read_config
from mmhatnet.cli.train import resume_command
from mmhatnet.errors import ConfigError
from mmhatnet.new_config.templates import BASES
from mmhatnet_cli import COMMANDS, NAMES, command_of, main, parser_of
from mmhatnet_cli.calls import command_line

ROOT = Path(__file__).parents[1]
OF_CHECKOUT = {'check_goals', 'compare'}  # tools that are no commands
TOOLS = {path.stem: path for path in ROOT.glob('tools/*.py') if path.stem not in OF_CHECKOUT}


@pytest.fixture
def ended(capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process, and returns its exit status and output."""

    def run(*words: str) -> tuple[int, str, str]:
        status: object = 0
        try:
            main(words)
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return (status, out, err) if isinstance(status, int) else (1, out, err + str(status))

    return run


HELP = """
import sys
before = {*sys.modules}
from mmhatnet_cli import NAMES, main
main([])
for name in NAMES:
    try:
        main([name, '--help'])
    except SystemExit as end:
        assert end.code == 0
loaded = {name.partition('.')[0] for name in {*sys.modules} - before}
print('loaded', *sorted(loaded - sys.stdlib_module_names))
"""


def test_help_needs_the_standard_library_alone() -> None:
    """To import PyTorch alone takes seconds."""
    found = subprocess.run([sys.executable, '-c', HELP], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == 'loaded mmhatnet_cli'
    assert found.stdout.count('usage: mmhatnet') == len(NAMES) + 1


@pytest.mark.parametrize('name', NAMES)
def test_every_option_says_its_default(name: str, monkeypatch) -> None:
    monkeypatch.setenv('COLUMNS', '10000')  # no line is broken
    parser = parser_of(command_of(name))
    for action in parser._actions:
        if action.help == SUPPRESS or action.required or action.dest == 'help':
            continue
        formatter = parser._get_formatter()
        formatter.add_argument(action)
        text = formatter.format_help()
        assert '(default: ' in text, text
        assert 'None' not in text and '[]' not in text and 'False' not in text, text


def test_the_overview_has_a_line_for_each_command(ended) -> None:
    status, shown, _ = ended()
    assert status == 0 and ended('--help') == ended('-h') == (0, shown, '')
    lines = shown.splitlines()
    for group, names in COMMANDS.items():
        place = lines.index(f'{group}:') + 1
        for line, name in zip(lines[place:], names):
            assert re.match(rf'  {name} +[A-Z][^.]+\.?', line), line
    assert max(map(len, lines)) <= 100


def test_help_keeps_indented_lines(ended, monkeypatch) -> None:
    monkeypatch.setenv('COLUMNS', '60')
    _, shown, _ = ended('make-toy-data', '--help')
    assert '\n    FOLDER/imagenet/{train,val}/WNID       ' in shown
    assert 'bytes with the same versions\nof NumPy' in shown
    assert '(default: 400 50)' in ' '.join(shown.split())


def test_version(ended) -> None:
    assert ended('--version') == (0, f'mmhatnet {mmhatnet.__version__}\n', '')


@pytest.mark.parametrize(
    ('word', 'meant'),
    [
        ('trian', 'perhaps `mmhatnet train` is meant'),
        ('new_config', 'perhaps `mmhatnet new-config` is meant'),
        ('get_flops', 'perhaps `mmhatnet flops` is meant'),
        ('--verbose', '`mmhatnet` lists all'),
    ],
)
def test_unknown_commands(word: str, meant: str, ended) -> None:
    assert ended(word) == (2, '', f'mmhatnet: error: there is no command {word}: {meant}.\n')


def test_exit_statuses(ended) -> None:
    status, _, message = ended('flops', 'nothing.py')
    assert status == 1 and message.startswith('There is no config nothing.py: ')
    status, _, message = ended('train')
    assert status == 2 and 'mmhatnet train: error: the following arguments are req' in message
    status, _, message = ended(
        'visualize-attention', 'a', 'b', 'c', '--point', '1', '1', '--out=d.e'
    )
    assert status == 2 and message.startswith('usage: mmhatnet visualize-attention [-h]')
    assert message.endswith('error: --out d.e must end with one of .pdf, .png, .svg\n')


def test_what_mmhatnet_needs_is_named(ended, monkeypatch) -> None:
    def fail(args: Namespace) -> None:
        monkeypatch.setattr('mmhatnet.openmmlab.versions.find_spec', lambda name: None)
        monkeypatch.setattr('mmhatnet.openmmlab.versions._installed_version', lambda name: None)
        mmhatnet.check_versions()

    monkeypatch.setattr(command_of('flops'), 'run', fail)
    status, _, message = ended('flops', 'a.py')
    assert status == 1 and message.startswith('mmhatnet cannot work with what is installed. torch')


INTERRUPTED = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""


@pytest.mark.parametrize(
    'start', [['-c', 'from mmhatnet_cli import main; main()', 'flops'], [TOOLS['get_flops']]]
)
def test_an_interruption_while_pytorch_is_imported(start: list, tmp_path: Path) -> None:
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'torch' / '__init__.py').write_text(INTERRUPTED)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    found = subprocess.run(
        [sys.executable, *start, 'config.py'],
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stdout, found.stderr) == (130, '', 'Interrupted.\n')


@pytest.mark.parametrize('stem', TOOLS)
def test_a_tool_is_a_command(stem: str, monkeypatch) -> None:
    called = []
    monkeypatch.setattr('mmhatnet_cli.run_command', called.append)
    runpy.run_path(str(TOOLS[stem]), run_name='__main__')
    assert called == [{'get_flops': 'flops'}.get(stem, stem.replace('_', '-'))]
    assert called[0] in NAMES
    assert f'``mmhatnet {called[0]}``' in TOOLS[stem].read_text()


def choices(command: str, dest: str) -> list[str]:
    (action,) = (a for a in parser_of(command_of(command))._actions if a.dest == dest)
    return [*(action.choices or action.help.replace(',', ' ').split())]


def test_choices_are_those_of_the_package() -> None:
    assert choices('export', 'format') == [*export.FORMATS]
    assert choices('export', 'part') == [*export.PARTS]
    assert choices('new-config', 'arch') == [*HATNet.ARCHS]
    assert choices('new-config', 'job') == [*BASES]
    named = choices('benchmark', 'backbones')
    assert {name for name in BACKBONES if not re.match('(hatnet|literal)_[a-z]+$', name)} <= {
        *named
    }


@pytest.mark.parametrize(
    ('program', 'expected'),
    [
        ('BIN/mmhatnet', 'mmhatnet'),
        ('ELSEWHERE/mmhatnet', 'ELSEWHERE/mmhatnet'),
        ('ROOT/tools/train.py', 'python ROOT/tools/NAME.py'),
        ('ROOT/mmhatnet/__main__.py', 'python -m mmhatnet'),
        ('ROOT/tests/own.py', 'mmhatnet'),
        ('', 'mmhatnet'),
    ],
)
def test_other_commands_are_named_as_this_one_was(
    program: str, expected: str, tmp_path: Path, monkeypatch
) -> None:
    for folder in ('bin', 'elsewhere'):
        (tmp_path / folder).mkdir()
        for name in ('mmhatnet', 'python'):
            (tmp_path / folder / name).touch(0o755)
    places = dict(BIN=tmp_path / 'bin', ELSEWHERE=tmp_path / 'elsewhere', ROOT=ROOT)
    for name, place in places.items():
        program, expected = (text.replace(name, str(place)) for text in (program, expected))
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'))
    monkeypatch.setattr('sys.executable', str(tmp_path / 'bin' / 'python'))
    monkeypatch.setattr('sys.argv', [program, 'train'])
    for name, tool in (('new-config', 'new_config'), ('flops', 'get_flops')):
        command = expected.replace('NAME', tool) if 'NAME' in expected else f'{expected} {name}'
        assert command_line(name, 'a b') == f"{command} 'a b'"


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        ('a.py', 'a.py --resume'),
        ('a.py --resume', 'a.py --resume'),
        ('a.py --resume b.pth --amp', 'a.py --amp --resume'),
        ('a.py --res=b.pth --amp', 'a.py --amp --resume'),
        ('a.py --resume --cfg-options b=1', 'a.py --cfg-options b=1 --resume'),
    ],
)
def test_how_a_training_is_resumed(words: str, expected: str) -> None:
    args = Namespace(launcher='none', words=words.split())
    assert resume_command(args) == command_line('train', *expected.split())


def test_configs_of_the_package(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = parser().parse_args(['mmhatnet::retinanet_hatnet.py'])
    cfg = load_config(args)
    assert cfg.model.type == 'RetinaNet' and cfg.work_dir == 'work_dirs/retinanet_hatnet'
    assert Path(args.config).samefile(ROOT / 'configs' / 'retinanet_hatnet.py')
    for name, message in {
        'configs/retinanet_hatnet.py': 'this package has mmhatnet::retinanet_hatnet.py',
        'mmhatnet::retinanet_hatnt.py': 'this package has mmhatnet::retinanet_hatnet.py',
        'imagenet_hatnet_toy.py': 'this package has mmhatnet::toy/imagenet_hatnet_toy.py',
        'mmhatnet::../setup.py': 'one of this package, such as mmhatnet::maskrcnn_hatnet.py',
        'mmhatnet::own.py': 'one of this package, such as mmhatnet::maskrcnn_hatnet.py',
    }.items():
        with pytest.raises(ConfigError, match=f'^There is no config {name}: .*{message}.$'):
            read_config(name)


def parser() -> ArgumentParser:
    return parser_of(command_of('flops'))


def test_what_frameworks_print_is_hidden(ended, monkeypatch) -> None:
    """Such as "Could not import OneDL", which MMDetection prints when it is imported."""

    def print_texts(args: Namespace) -> None:
        for module in ('mmdet.datasets', 'mmengine.logging.logger', 'own', 'rich.console'):
            run_as(module, 'print("text of " + __name__)')
        print('text of this file')

    monkeypatch.setattr(command_of('flops'), 'run', print_texts)
    _, shown, _ = ended('flops', 'a.py')
    expected = ['own', 'rich.console', 'this file']
    assert shown.splitlines() == [f'text of {name}' for name in expected]


def test_what_frameworks_warn_of_is_hidden(ended, monkeypatch) -> None:
    """Such as "faster_coco_eval is not installed, metrics will not be computed"."""

    def warn(args: Namespace) -> None:
        for file in ('packages/mmdet/metric.py', 'own.py'):
            warnings.warn_explicit(f'warning of {file}', UserWarning, file, 1)
        with Screen(verbose=True):
            warnings.warn_explicit('shown on request', UserWarning, 'packages/mmdet/metric.py', 2)

    monkeypatch.setattr(command_of('flops'), 'run', warn)
    with pytest.warns(UserWarning) as caught:
        ended('flops', 'a.py')
    expected = ['warning of own.py', 'shown on request']
    assert [str(warning.message) for warning in caught] == expected
