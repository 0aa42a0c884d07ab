"""The versions of the OpenMMLab packages that mmhatnet works with.

This is the one place that states them. Tests check that ``pyproject.toml``, ``requirements.txt``
and the pages agree with it.

The packages exist twice under the same module names: the originals, and the forks that OneDL
maintains. Both are supported. Only installed metadata is read, because importing the modules takes
seconds.
"""

import warnings
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from packaging.specifiers import SpecifierSet


class Requirement(NamedTuple):
    """The supported versions of one module.

    Attributes:
        module (str): The name that it is imported by.
        supported (SpecifierSet): The versions that should work, in both families.
        tested (dict[str, str]): The tested version of each distribution that holds the module, the
            recommended distribution first.
    """

    module: str
    supported: SpecifierSet
    tested: dict[str, str]

    def installed(self) -> dict[str, str]:
        """Returns the version of each distribution of ``tested`` that is installed."""
        versions = {name: _installed_version(name) for name in self.tested}
        return {name: version for name, version in versions.items() if version}


TORCH = Requirement('torch', SpecifierSet('>=2.7'), {'torch': '2.12.1'})
MMENGINE = Requirement(
    'mmengine',
    SpecifierSet('>=0.10,<0.11'),
    {'onedl-mmengine': '0.10.12', 'mmengine': '0.10.7'},
)
MMCV = Requirement(
    'mmcv',
    SpecifierSet('>=2.0,<2.4'),
    {'onedl-mmcv': '2.3.6', 'mmcv-lite': '2.1.0', 'mmcv': '2.1.0'},
)
MMDET = Requirement(
    'mmdet', SpecifierSet('>=3.3,<4'), {'onedl-mmdetection': '3.5.1', 'mmdet': '3.3.0'}
)
MMSEG = Requirement(
    'mmseg',
    SpecifierSet('>=1.2.2,<2'),
    {'onedl-mmsegmentation': '1.4.2', 'mmsegmentation': '1.2.2'},
)
MMPRETRAIN = Requirement(
    'mmpretrain', SpecifierSet('>=1.2,<2'), {'onedl-mmpretrain': '1.3.6', 'mmpretrain': '1.2.0'}
)
# mmpretrain imports names that transformers 5 lacks. mmdet imports mmpretrain if it is installed.
TRANSFORMERS = Requirement('transformers', SpecifierSet('<5'), {'transformers': '4.57.6'})

REQUIRED = (TORCH, MMENGINE)  # by the backbones themselves
OF_SCOPE = {
    'mmdet': (MMCV, MMDET, MMPRETRAIN),
    'mmseg': (MMCV, MMSEG),
    'mmpretrain': (MMCV, MMPRETRAIN),
}
REQUIREMENTS = (*REQUIRED, MMCV, MMDET, MMSEG, MMPRETRAIN)


def check_versions() -> None:
    """Checks the packages that the backbones need: torch and mmengine.

    Raises:
        ImportError: If one of them is missing or has an unsupported version. The message names
            each one, and what to install.
    """
    for requirement in REQUIRED:
        _warn_of_both_families(requirement)
    _raise([problem for requirement in REQUIRED for problem in _problems(requirement, True)])


def warn_of_versions() -> None:
    """Warns of installed OpenMMLab packages that have unsupported versions or overwrite each other.

    They are not an error, because they may not be used.
    """
    others = (MMCV, MMDET, MMSEG, MMPRETRAIN)
    for requirement in others:
        _warn_of_both_families(requirement)
    for problem in _problems_of(others):
        warnings.warn(f'{problem} What uses it may fail.', stacklevel=2)


def require_supported(scope: str) -> None:
    """Checks the packages that a job is going to use, before time is spent on it.

    Args:
        scope (str): The ``default_scope`` of a config. Scopes other than 'mmdet', 'mmseg' and
            'mmpretrain' need nothing.

    Raises:
        ImportError: If one of them is installed in an unsupported version.
    """
    _raise(_problems_of(OF_SCOPE.get(scope, ())))


def install_command(requirement: Requirement, distribution: str | None = None) -> str:
    """Returns the pip command that installs a tested version, by default the recommended one."""
    distribution = distribution or next(iter(requirement.tested))
    return f'pip install {distribution}=={requirement.tested[distribution]}'


def _raise(problems: list[str]) -> None:
    if problems:
        raise ImportError(
            'mmhatnet cannot work with what is installed. ' + ' '.join(problems), name='mmhatnet'
        )


def _problems_of(requirements: tuple[Requirement, ...]) -> list[str]:
    if MMPRETRAIN in requirements and MMPRETRAIN.installed():
        requirements = (*requirements, TRANSFORMERS)
    return [problem for requirement in requirements for problem in _problems(requirement)]


def _problems(requirement: Requirement, required: bool = False) -> list[str]:
    module, supported, tested = requirement
    installed = requirement.installed()
    # A module without metadata was put on the path by the user and is accepted as it is.
    if required and not installed and find_spec(module) is None:
        commands = ' or '.join(f'`{install_command(requirement, name)}`' for name in tested)
        return [f'{module} (supported: {supported}) is not installed: {commands}.']
    return [
        f'{name} {version} is installed, but {supported} is supported: '
        f'`{install_command(requirement, name)}`.'
        for name, version in installed.items()
        if not supported.contains(version, prereleases=True)
    ]


def _warn_of_both_families(requirement: Requirement) -> None:
    installed = requirement.installed()
    if len(installed) > 1:
        found = ' and '.join(f'{name} {version}' for name, version in installed.items())
        warnings.warn(
            f'{found} are installed together and have overwritten parts of each other, because '
            f'both are the module {requirement.module!r}: uninstall both (pip uninstall -y '
            f'{" ".join(installed)}), then install one.',
            stacklevel=3,
        )


def _installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
