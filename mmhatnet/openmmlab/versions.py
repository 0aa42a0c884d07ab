"""Which versions of the OpenMMLab packages mmhatnet works with, checked when it is imported.

The packages exist twice under the same module names: the originals, and the forks that OneDL
maintains. Both are supported, and nothing but the installed metadata is read, because importing
the modules takes seconds.
"""

import warnings
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from packaging.specifiers import SpecifierSet


class Requirement(NamedTuple):
    """What is supported of one module.

    Attributes:
        module (str): The name that it is imported by.
        supported (SpecifierSet): The versions that should work, of either family.
        tested (dict[str, str]): The version that was tested of each distribution that holds the
            module, the recommended one first.
        required (bool): Whether the backbone itself needs it.
    """

    module: str
    supported: SpecifierSet
    tested: dict[str, str]
    required: bool = False


MMPRETRAIN = Requirement(
    'mmpretrain', SpecifierSet('>=1.2,<2'), {'onedl-mmpretrain': '1.3.6', 'mmpretrain': '1.2.0'}
)
REQUIREMENTS = (
    Requirement('torch', SpecifierSet('>=2.7'), {'torch': '2.12.1'}, required=True),
    Requirement(
        'mmengine',
        SpecifierSet('>=0.10,<0.11'),
        {'onedl-mmengine': '0.10.12', 'mmengine': '0.10.7'},
        required=True,
    ),
    Requirement(
        'mmcv',
        SpecifierSet('>=2.0,<2.4'),
        {'onedl-mmcv': '2.3.6', 'mmcv-lite': '2.1.0', 'mmcv': '2.1.0'},
    ),
    Requirement(
        'mmdet', SpecifierSet('>=3.3,<4'), {'onedl-mmdetection': '3.5.1', 'mmdet': '3.3.0'}
    ),
    Requirement(
        'mmseg',
        SpecifierSet('>=1.2.2,<2'),
        {'onedl-mmsegmentation': '1.4.2', 'mmsegmentation': '1.2.2'},
    ),
    MMPRETRAIN,
)

# Without names that a later one lacks, mmpretrain cannot be imported, nor mmdet, which imports it.
WITH_MMPRETRAIN = Requirement('transformers', SpecifierSet('<5'), {'transformers': '4.57.6'})


def check_versions() -> None:
    """Checks the installed versions of torch, the OpenMMLab packages and what breaks these.

    Raises:
        ImportError: If a required package is missing, or a package has an unsupported version.
            The message says for each of them what was found and what to install.
    """
    requirements = [*REQUIREMENTS]
    if any(map(_installed_version, MMPRETRAIN.tested)):
        requirements.append(WITH_MMPRETRAIN)
    problems = [problem for requirement in requirements for problem in _problems(requirement)]
    if problems:
        raise ImportError('mmhatnet cannot work with what is installed. ' + ' '.join(problems))


def _problems(requirement: Requirement) -> list[str]:
    module, supported, tested, required = requirement
    installed = {name: version for name in tested if (version := _installed_version(name))}
    if len(installed) > 1:
        found = ' and '.join(f'{name} {version}' for name, version in installed.items())
        warnings.warn(
            f'{found} are installed together and have overwritten parts of each other, because '
            f'both are the module {module!r}: uninstall both (pip uninstall -y '
            f'{" ".join(installed)}), then install one.',
            stacklevel=2,
        )
    # A module without metadata is one that the user put on the path: it is taken as it is.
    if required and not installed and find_spec(module) is None:
        commands = ' or '.join(f'`{_install_command(name, tested)}`' for name in tested)
        return [f'{module} (supported: {supported}) is not installed: {commands}.']
    return [
        f'{name} {version} is installed, but {supported} is supported: '
        f'`{_install_command(name, tested)}`.'
        for name, version in installed.items()
        if not supported.contains(version, prereleases=True)
    ]


def _installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _install_command(distribution: str, tested: dict[str, str]) -> str:
    return f'pip install {distribution}=={tested[distribution]}'
