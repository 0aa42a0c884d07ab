"""What can be checked of the Dockerfile without an engine."""

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

from test_packaging import BUILD_FILES

ROOT = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """Returns the instructions of the Dockerfile, each on one line."""
    text = re.sub(r'(?m)^#.*\n', '', (ROOT / 'Dockerfile').read_text()).replace('\\\n', ' ')
    return [
        (name, rest.strip())
        for name, _, rest in (x.partition(' ') for x in text.split('\n'))
        if name
    ]


def copied(path: str) -> bool:
    """Returns whether the build gets a file, by the patterns of .dockerignore."""
    lines = (ROOT / '.dockerignore').read_text().splitlines()
    ignored, parts = False, path.split('/')
    ends = ['/'.join(parts[: i + 1]) for i in range(len(parts))]  # a pattern takes what is below
    for line in lines:
        if not line or line.startswith('#'):
            continue
        pattern = line.removeprefix('!')
        found = [
            end
            for end in ends
            if fnmatch(end, pattern)
            or (pattern.startswith('**/') and fnmatch(end.split('/')[-1], pattern[3:]))
        ]
        if found:
            ignored = not line.startswith('!')
    return not ignored


def test_the_build_gets_what_the_package_is_made_of_and_nothing_else() -> None:
    needed = [
        *BUILD_FILES[:2], *BUILD_FILES[3:], 'requirements.txt', 'mmhatnet/cli/job.py',
        'configs/hatnet/metafile.yml', 'tools/train.py',
    ]  # fmt: skip
    assert [path for path in needed if not copied(path)] == []
    patterns = (ROOT / '.gitignore').read_text().splitlines()
    examples = [pattern.strip('/').replace('*', 'x') for pattern in patterns if pattern[0] != '#']
    examples += ['mmhatnet/cli/__pycache__', 'data', 'work_dirs', '.git', '.venv']
    wrong = [path for name in examples for path in (name, f'{name}/file.py') if copied(path)]
    assert wrong == []


def test_it_installs_as_the_pages_say() -> None:
    commands = [words for name, words in instructions() if name == 'RUN']
    page = (ROOT / 'docs' / 'inherit.md').read_text()
    (install,) = (shlex.split(c) for c in commands if c.endswith('"/mmhatnet[onedl,export]"'))
    assert install[:2] == ['pip', 'install'] and 'pip install ".[onedl]"' in page
    (operators,) = (command for command in commands if 'install_ops' in command)
    assert f'\n{operators}\n' in page
    # Nothing is compiled, and the versions are the tested ones.
    assert not re.search('gcc|build-essential|nvcc|devel', (ROOT / 'Dockerfile').read_text())
    for command in commands:
        assert 'pip install' not in command or '-c /mmhatnet/requirements.txt' in command


def test_it_runs_the_command_as_an_ordinary_user() -> None:
    found = dict(instructions())
    (user,) = re.findall(r'useradd --create-home (\w+)', str(instructions()))
    assert found['USER'] == user != 'root'
    assert found['ENTRYPOINT'] == '["mmhatnet"]'
    names = [name for name, _ in instructions()]
    assert names.index('USER') > max(i for i, name in enumerate(names) if name in ('RUN', 'COPY'))


def test_its_default_python_is_supported() -> None:
    (version,) = re.findall(r'ARG PYTHON=(\S+)', (ROOT / 'Dockerfile').read_text())
    assert f'Python :: {version}"' in (ROOT / 'pyproject.toml').read_text()
