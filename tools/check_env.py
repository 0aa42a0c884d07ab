"""Prints what is wrong with the packages of the Python that runs it, a line for each.

They shall have the versions of requirements.txt, lie on the disk as they were installed, and be
importable where they are compiled. Ends with status 1 if anything is wrong.
"""

import csv
import re
import subprocess
import sys
from contextlib import redirect_stdout
from importlib import import_module, metadata
from pathlib import Path
from sysconfig import get_path

ROOT = Path(__file__).resolve().parent.parent
# Compiled modules can fail although every file of them is in place.
COMPILED_MODULES = {
    'torch': 'torch',
    'torchvision': 'torchvision',
    'cv2': 'opencv-python-headless',
    'mmcv.ops': 'onedl-mmcv',
    'pycocotools.mask': 'pycocotools',
}


def find_broken() -> dict[str, str]:
    """Returns what is wrong, by the name of the distribution.

    The later checks take the earlier ones for granted, so the first that finds something is the
    last.
    """
    return badly_installed() or conflicting() or not_importable()


def badly_installed() -> dict[str, str]:
    pins = dict(re.findall(r'(?m)^([\w-]+)==(\S+)', (ROOT / 'requirements.txt').read_text()))
    broken = dict.fromkeys(['pip', *pins, 'mmhatnet'], 'not installed')
    seen = set()
    for dist in metadata.distributions(path=[get_path('purelib')]):
        name = re.sub(r'[-_.]+', '-', dist._path.name.split('-')[0]).lower()
        broken.pop(name, None)
        if dist.read_text('RECORD') is None or name in seen:
            broken[name] = 'not installed to the end'
        elif pins.get(name, dist.version) != dist.version:
            broken[name] = f'{dist.version} instead of {pins[name]}'
        # The other build of OpenCV, which needs no display libraries, overwrites the files of this.
        elif name != 'opencv-python' and (file := damaged_file(dist)):
            broken[name] = f'{file} is missing or damaged'
        elif name == 'mmhatnet' and not points_here(dist):
            broken[name] = f'not linked to {ROOT}'
        seen.add(name)
    return broken


def damaged_file(dist: metadata.Distribution) -> str | None:
    # Not by dist.files, which newer versions of Python clear of missing files.
    for file, _, size in csv.reader(dist.read_text('RECORD').splitlines()):
        # What Python compiled itself may come and go; its size is not recorded.
        if size and not file.endswith('.pyc'):
            path = Path(dist.locate_file(file))
            if not path.is_file() or path.stat().st_size != int(size):
                return file
    return None


def points_here(dist: metadata.Distribution) -> bool:
    links = ROOT / 'mmhatnet' / '.mim'
    origin = dist.read_text('direct_url.json') or ''
    return f'"{ROOT.as_uri()}"' in origin and (links / 'configs').is_dir()


def conflicting() -> dict[str, str]:
    command = [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'check']
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode == 0:
        return {}
    return {'pip check': (process.stdout or process.stderr).splitlines()[0]}


def not_importable() -> dict[str, str]:
    for module, name in COMPILED_MODULES.items():
        try:
            with redirect_stdout(sys.stderr):
                import_module(module)
        except Exception as error:
            return {name: 'not importable: ' + ' '.join(str(error).split())}
    return {}


if __name__ == '__main__':
    problems = find_broken()
    for name, problem in problems.items():
        print(f'{name}: {problem}')
    sys.exit(bool(problems))
