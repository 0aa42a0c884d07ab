"""Makes the virtual environment of `make demo` and `make test`, or mends what is broken in it.

Any Python from 3.6 runs this, with nothing installed: it looks for a suitable one by itself.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / 'requirements.txt'
PYTHONS = ('3.12', '3.11', '3.10')
GIGABYTES = 8  # of which 6 stay occupied
BUILD_TOOLS = ('setuptools', 'wheel', 'ninja', 'packaging', 'psutil')
# mmcv is compiled for one version of torch. Both builds of OpenCV are required by others, and have
# the same files: those of the one that needs no display libraries have to be written last.
FOLLOWERS = {'torch': 'onedl-mmcv', 'opencv-python': 'opencv-python-headless'}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('venv', type=Path, help='folder of the virtual environment')
    parser.add_argument('--python', help='make it with this Python; default: any suitable one')
    args = parser.parse_args()

    python = make_venv(args.venv, args.python)
    sources = [REQUIREMENTS, ROOT / 'pyproject.toml', ROOT / 'setup.py', Path(__file__)]
    content = hashlib.sha256(b''.join(path.read_bytes() for path in sources)).hexdigest()
    stamp = args.venv / 'installed.sha256'
    outdated = not stamp.is_file() or stamp.read_text() != content
    broken, previous = check(python), None
    while broken or outdated:
        if broken and broken == previous:
            sys.exit(f'{args.venv} is still broken: {describe_problems(broken)}.')
        install(python, broken)
        # One fault can hide another one.
        broken, previous, outdated = check(python), broken, False
        if not broken:
            stamp.write_text(content)
            say(f'{args.venv} is complete')


def make_venv(venv, wanted):
    """Returns the Python of the virtual environment, which is made anew if it is of no use."""
    base = choose_python([wanted]) if wanted else None
    python = venv.absolute() / 'bin' / 'python'
    existing = inspect(python)
    # After an upgrade of Python to another minor version, its packages would lie elsewhere.
    if existing and existing['is_venv'] and os.path.isdir(existing['packages']):
        if existing['version'] in ([base['version']] if base else PYTHONS):
            return python

    base = base or choose_python([sys.executable] + [f'python{version}' for version in PYTHONS])
    if venv.is_dir() and os.listdir(str(venv)) and not (venv / 'pyvenv.cfg').is_file():
        sys.exit(f'{venv} is not a virtual environment: remove it, or choose another VENV.')
    check_machine(base, venv)
    say(f'Making {venv} with Python {base["version"]}')
    if subprocess.call([base['executable'], '-m', 'venv', '--clear', str(venv)]) != 0:
        sys.exit(
            f'{base["executable"]} cannot make virtual environments (see above); '
            f'on Debian and Ubuntu: apt install python{base["version"]}-venv'
        )
    return python


def choose_python(candidates):
    found = {name: inspect(name) for name in candidates}
    for facts in found.values():
        if facts and facts['version'] in PYTHONS:
            return facts
    versions = ', '.join(
        f'{name} is {facts["version"]}' if facts else f'{name} is not there'
        for name, facts in found.items()
    )
    sys.exit(
        f'Python {PYTHONS[-1]} to {PYTHONS[0]} is needed, but {versions}: install one and name '
        f'it, as in `make PYTHON=python{PYTHONS[0]} demo`.'
    )


def inspect(python):
    """Returns the facts needed about a Python, given by name or path, or None if it fails."""
    code = """if True:
        import json, os, sys, sysconfig
        print(json.dumps(dict(
            version='%d.%d' % sys.version_info[:2],
            # Inside a virtual environment, the Python that made it.
            executable=getattr(sys, '_base_executable', sys.executable),
            header=os.path.join(sysconfig.get_path('include'), 'Python.h'),
            packages=sysconfig.get_path('purelib'),
            is_venv=sys.prefix != sys.base_prefix,
        )))"""
    try:
        command = [str(python), '-c', code]
        return json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL).decode())
    except (OSError, subprocess.CalledProcessError):
        return None


def check_machine(base, venv):
    """Ends the program if something is missing that the installation would find out late."""
    compiler = os.environ.get('CXX', 'c++')
    if not shutil.which(compiler.split()[0]):
        sys.exit(
            f'mmcv has to be compiled, but the C++ compiler {compiler!r} is not there; '
            'on Debian and Ubuntu: apt install g++'
        )
    if not os.path.isfile(base['header']):
        sys.exit(
            f'mmcv has to be compiled, but {base["header"]} is not there; '
            f'on Debian and Ubuntu: apt install python{base["version"]}-dev'
        )
    folder = next(path for path in venv.absolute().parents if path.is_dir())
    free = shutil.disk_usage(str(folder)).free / 1e9
    if free < GIGABYTES:
        sys.exit(
            f'The environment needs {GIGABYTES} GB, but {folder} has {free:.1f} GB left: make '
            'room, or put it elsewhere, as in `make VENV=/other/disk/venv demo`.'
        )


def check(python):
    """Returns what is wrong with the packages of a Python: problems by distribution name."""
    process = subprocess.Popen(
        [str(python), '-W', 'ignore', str(ROOT / 'tools' / 'check_env.py')],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )
    output, errors = process.communicate()
    if process.returncode != 0 and not output:
        output = f'tools/check_env.py: {errors.strip().splitlines()[-1]}'
    return dict(line.split(': ', 1) for line in output.splitlines())


def describe_problems(broken):
    by_problem = {}
    for name, problem in broken.items():
        by_problem.setdefault(problem, []).append(name)
    return '; '.join(f'{", ".join(names)} ({problem})' for problem, names in by_problem.items())


def install(python, broken):
    """Installs what is missing or broken, in the order that compiling mmcv needs."""
    broken = dict(broken)
    for name, follower in FOLLOWERS.items():
        if name in broken:
            broken.setdefault(follower, f'has to be installed after {name}')
    if broken:
        say(f'Missing or broken: {describe_problems(broken)}')
        remove(python, broken)

    if 'pip' in broken:
        run([python, '-m', 'ensurepip'])
    pip = [python, '-m', 'pip', '--disable-pip-version-check', 'install', '-c', REQUIREMENTS]
    if any(name in broken for name in BUILD_TOOLS):
        say('Tools for compiling: a few seconds')
        run([*pip, 'pip>=23.1', *BUILD_TOOLS])
    if 'torch' in broken or 'torchvision' in broken:
        say('torch and torchvision: 5 GB, about 2 minutes')
        run([*pip, 'torch', 'torchvision'])
    if 'onedl-mmcv' in broken:
        say('mmcv, compiled for this torch: about 5 minutes on 2 cores, silently')
        # A wheel in pip's cache may be for another torch, and pip cannot tell.
        fresh = ['--no-build-isolation', '--no-deps', '--no-cache-dir', '--no-binary=onedl-mmcv']
        with tempfile.TemporaryDirectory() as folder:
            flags = compiler_flags(python, Path(folder))
            run([*pip, *fresh, 'onedl-mmcv'], MMCV_WITH_OPS='1', CFLAGS=flags)
    say('Everything else: about a minute the first time')
    if 'opencv-python' in broken:
        run([*pip, 'opencv-python'])
    # pip would name a hundred packages that are in place already.
    quiet = [] if 'onedl-mmengine' in broken else ['--quiet']
    run([*pip, *quiet, '-r', REQUIREMENTS])
    run([*pip, '--quiet', '--no-build-isolation', '--no-deps', '-e', ROOT])


def compiler_flags(python, folder):
    """Returns flags for mmcv, with PyTorch's header precompiled into a folder.

    Parsing it takes two thirds of the time of each of mmcv's 78 files. A compiler that cannot use
    the precompiled one reads the header itself.
    """
    # They replace Python's own flags: with its -g, this takes twice as long and 30 MB more.
    flags = '-O2 -g0 -DNDEBUG'
    header = folder / 'torch.hpp'
    header.write_text('#include <torch/types.h>\n')
    code = (
        'import sysconfig; from torch.utils.cpp_extension import include_paths; '
        "print(*include_paths(), sysconfig.get_path('include'))"
    )
    includes = subprocess.check_output([str(python), '-c', code]).decode().split()
    # The flags that torch adds for every extension.
    added = '-fPIC -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H -DTORCH_EXTENSION_NAME=_ext'
    run(
        [*os.environ.get('CXX', 'c++').split(), *flags.split(), *added.split()]
        + [f'-I{include}' for include in includes]
        + ['-x', 'c++-header', header, '-o', f'{header}.gch']
    )
    return f'{flags} -include {header}'


def remove(python, broken):
    """Removes broken distributions, those too whose installation was interrupted."""
    packages = Path(inspect(python)['packages'])
    infos = {path: distribution_name(path) for path in packages.glob('*.dist-info')}
    names = set(broken) & set(infos.values())
    if names:
        # It ends at the first one that it cannot remove, which the loop below then does.
        command = [str(python), '-m', 'pip', 'uninstall', '--yes', *names]
        subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    leftovers = [path for path, name in infos.items() if name in names]
    # pip renames what it is about to replace, so that the name starts with a tilde.
    for path in [*leftovers, *packages.glob('~*')]:
        shutil.rmtree(str(path), ignore_errors=True)


def distribution_name(dist_info):
    return re.sub(r'[-_.]+', '-', dist_info.name.split('-')[0]).lower()


def run(command, **variables):
    command = [str(part) for part in command]
    if subprocess.call(command, env=dict(os.environ, **variables)) != 0:
        sys.exit(
            f'`{" ".join(command)}` failed, see above. What was installed until then is kept, so '
            'the same make command goes on from here.'
        )


def say(text):
    print(f'==> {text}', flush=True)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('Interrupted. The same make command goes on from here.')
