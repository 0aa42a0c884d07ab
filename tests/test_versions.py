"""Supported packages are accepted, and messages name the others and their remedy."""

import re
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest
from experiments import TOY
from packaging.requirements import Requirement
from packaging.version import Version

from mmhatnet.openmmlab import versions

ROOT = Path(__file__).parents[1]
ONEDL = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
    'onedl-mmpretrain': '1.3.6',
}
ORIGINAL = {
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmsegmentation': '1.2.2',
    'mmpretrain': '1.2.0',
}
SCOPES = ('mmdet', 'mmseg', 'mmpretrain')


@pytest.fixture
def install(monkeypatch):
    """Pretends that exactly these distributions are installed, beside a tested torch."""

    def install_distributions(distributions):
        distributions = {'torch': '2.12.1', **distributions}

        def version(name):
            if name not in distributions:
                raise metadata.PackageNotFoundError(name)
            return distributions[name]

        monkeypatch.setattr(versions.metadata, 'version', version)
        monkeypatch.setattr(versions, 'find_spec', lambda module: None)

    return install_distributions


@pytest.mark.parametrize(
    'distributions',
    [
        ONEDL,
        ORIGINAL,
        {'mmengine': '0.10.0'},
        {'onedl-mmengine': '0.10.12', 'onedl-mmdetection': '3.6.0', 'transformers': '5.24.0'},
        {**ONEDL, 'transformers': '4.57.6'},
        {'torch': '2.13.0+cpu', 'mmengine': '0.10.7', 'mmcv': '2.0.0', 'mmpretrain': '1.2.0'},
        {'mmengine': '0.10.7', 'mmcv-lite': '2.1.0', 'mmdet': '3.3.0'},
    ],
)
def test_supported_packages_pass_in_silence(install, distributions):
    install(distributions)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        versions.check_versions()
        versions.warn_of_versions()
        for scope in (*SCOPES, 'mmpose', None):
            versions.require_supported(scope)


@pytest.mark.parametrize(
    ('distribution', 'version', 'scope', 'supported', 'command'),
    [
        ('mmdet', '2.28.2', 'mmdet', '<4,>=3.3', 'pip install mmdet==3.3.0'),
        ('onedl-mmdetection', '4.0', 'mmdet', '<4,>=3.3', 'pip install onedl-mmdetection==3.5.1'),
        ('mmcv', '1.7.2', 'mmseg', '<2.4,>=2.0', 'pip install mmcv==2.1.0'),
        ('onedl-mmcv', '2.4.0', 'mmpretrain', '<2.4,>=2.0', 'pip install onedl-mmcv==2.3.6'),
        ('mmsegmentation', '0.30', 'mmseg', '<2,>=1.2.2', 'pip install mmsegmentation==1.2.2'),
        ('onedl-mmpretrain', '2.0', 'mmpretrain', '<2,>=1.2', 'install onedl-mmpretrain==1.3.6'),
    ],
)
def test_unsupported_package_is_an_error_only_for_its_jobs(
    install, distribution, version, scope, supported, command
):
    install({'mmengine': '0.10.7', distribution: version})
    versions.check_versions()
    message = f'{distribution} {version} is installed, but {supported} is supported'
    with pytest.warns(UserWarning) as caught:
        versions.warn_of_versions()
    (warning,) = caught
    with pytest.raises(ImportError) as error:
        versions.require_supported(scope)
    for text in (str(warning.message), str(error.value)):
        assert message in text and f'{command}`' in text
    if not distribution.endswith('mmcv'):
        for other in {*SCOPES} - {scope, 'mmdet'}:
            versions.require_supported(other)


def test_unsupported_torch_is_an_error_at_import(install):
    install({'torch': '2.1.2+cu118', 'mmengine': '0.10.7'})
    with pytest.raises(ImportError) as error:
        versions.check_versions()
    assert 'torch 2.1.2+cu118 is installed, but >=2.7 is supported' in str(error.value)
    assert '`pip install torch==2.12.1`' in str(error.value)


def test_all_problems_are_named_at_once(install):
    install({**ORIGINAL, 'torch': '2.1.2', 'mmengine': '0.9.1', 'mmcv': '1.7', 'mmdet': '2.28.2'})
    with pytest.raises(ImportError, match=r'torch 2\.1\.2 .* mmengine 0\.9\.1 '):
        versions.check_versions()
    with pytest.raises(ImportError, match=r'mmcv 1\.7 .* mmdet 2\.28\.2 '):
        versions.require_supported('mmdet')


@pytest.mark.parametrize('family', [ONEDL, ORIGINAL])
def test_transformers_that_mmpretrain_cannot_be_imported_with(install, family):
    """MMPretrain's own message is `TypeError: NoneType takes no arguments`."""
    install({**family, 'transformers': '5.24.0'})
    message = r'transformers 5\.24\.0 .* but <5 is .*: `pip install transformers==4\.57\.6`'
    versions.check_versions()
    versions.require_supported('mmseg')
    with pytest.warns(UserWarning, match=message):
        versions.warn_of_versions()
    for scope in ('mmpretrain', 'mmdet'):
        with pytest.raises(ImportError, match=message):
            versions.require_supported(scope)


def test_missing_mmengine_names_both_families(install):
    install({})
    with pytest.raises(ImportError) as error:
        versions.check_versions()
    assert 'mmengine (supported: <0.11,>=0.10) is not installed' in str(error.value)
    assert '`pip install onedl-mmengine==0.10.12`' in str(error.value)
    assert '`pip install mmengine==0.10.7`' in str(error.value)


def test_module_without_metadata_is_accepted(install, monkeypatch):
    install({})
    with pytest.raises(ImportError):
        versions.check_versions()
    monkeypatch.setattr(versions, 'find_spec', lambda module: object())
    versions.check_versions()


def test_mmcv_beside_mmcv_lite_is_named(install):
    install({**ORIGINAL, 'mmcv-lite': '2.1.0'})
    with pytest.warns(UserWarning, match=r'pip uninstall -y mmcv-lite mmcv\)'):
        versions.warn_of_versions()


def test_both_families_of_one_module_are_named(install):
    install({**ONEDL, 'mmdet': '3.3.0'})
    with pytest.warns(UserWarning, match='overwritten') as caught:
        versions.warn_of_versions()
    assert len(caught) == 1
    assert 'onedl-mmdetection 3.5.1 and mmdet 3.3.0' in str(caught[0].message)
    assert 'pip uninstall -y onedl-mmdetection mmdet' in str(caught[0].message)


def test_both_families_of_mmengine_are_named_at_import(install):
    install({**ONEDL, 'mmengine': '0.10.7'})
    with pytest.warns(UserWarning, match='onedl-mmengine 0.10.12 and mmengine 0.10.7'):
        versions.check_versions()


# ---------------------------------------------------------------------------------------------
# All files agree with mmhatnet/openmmlab/versions.py, which states the versions.


def test_pinned_versions_are_the_tested_ones():
    pins = dict(re.findall(r'(?m)^([\w-]+)==(\S+)', (ROOT / 'requirements.txt').read_text()))
    recommended = dict(next(iter(r.tested.items())) for r in versions.REQUIREMENTS)
    assert recommended == {name: pins.get(name) for name in recommended}


def test_package_metadata_asks_for_supported_versions():
    """The extras start at the tested versions and stay within the supported ones."""
    tomllib = pytest.importorskip('tomllib')  # from Python 3.11 on
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    known = {name: r for r in versions.REQUIREMENTS for name in r.tested}
    asked = {
        extra: {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}
        for extra, lines in project['optional-dependencies'].items()
    }
    (torch,) = (r for r in map(Requirement, project['dependencies']) if r.name == 'torch')
    assert torch.specifier == versions.TORCH.supported
    families = {
        'onedl': {name for name in known if name.startswith('onedl-')},
        'openmmlab': {name for name in known if not name.startswith('onedl-')} - {'torch', 'mmcv'},
        'timm': {'onedl-mmengine'},
    }
    for extra, names in families.items():
        assert names == {name for name in asked[extra] if name in known}, extra
        for name in names:
            bounds = {one.operator: Version(one.version) for one in asked[extra][name]}
            supported = {one.operator: Version(one.version) for one in known[name].supported}
            assert bounds['>='] == Version(known[name].tested[name])
            assert bounds['<'] <= supported['<']


def test_pages_name_tested_versions():
    known = {name: version for r in versions.REQUIREMENTS for name, version in r.tested.items()}
    named = 0
    for page in (ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')):
        for name, version in re.findall(r'([\w-]+)==([\d.]+\d)', page.read_text()):
            if name in known:
                assert version == known[name], page
                named += 1
    assert named
    install = (ROOT / 'docs' / 'inherit.md').read_text()
    for extra, is_onedl in (('onedl', True), ('openmmlab', False)):
        (comment,) = re.findall(rf'(?m)^pip install "\.\[{extra}\]" *# (.*)$', install)
        tested = [
            next(v for name, v in r.tested.items() if name.startswith('onedl-') == is_onedl)
            for r in versions.REQUIREMENTS[1:]
        ]
        assert re.findall(r'\d[\d.]*', comment) == [v.rpartition('.')[0] for v in tested]
    operators = (ROOT / 'docs' / 'operators.md').read_text()
    (oldest,) = versions.TORCH.supported
    assert f'PyTorch {oldest.version} is the oldest one that is accepted' in operators


def test_tool_names_versions_before_time_is_spent(run_tool_captured, monkeypatch):
    pytest.importorskip('mmpretrain')
    version = metadata.version
    installed = dict(transformers='5.24.0')
    monkeypatch.setattr(metadata, 'version', lambda name: installed.get(name) or version(name))
    config = next(path for path in TOY.values() if 'maskrcnn' in path.name)
    ended = run_tool_captured('get_flops', config)
    assert ended.returncode == 1 and 'Traceback' not in ended.stderr
    message = f'{config}: mmhatnet cannot work with what is installed. transformers 5.24.0'
    assert ended.stderr.splitlines()[-1].startswith(message)


# ---------------------------------------------------------------------------------------------
# Tests in separate processes, with metadata at the front of the path


def put_metadata(folder: Path, name: str, version: str) -> None:
    info = folder / f'{name}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')


def run(folder: Path, code: str) -> list[str]:
    code = f'import sys; sys.path.insert(0, {str(folder)!r})\n{code}'
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return [*process.stdout.splitlines(), *process.stderr.splitlines()]


def test_unsupported_torch_is_named_before_mmengine_is_imported(tmp_path):
    put_metadata(tmp_path, 'torch', '2.1.2')
    code = (
        'try:\n    import mmhatnet\n'
        'except ImportError as error:\n    print(error)\n'
        'print("mmengine" in sys.modules)'
    )
    message, mmengine_imported = run(tmp_path, code)
    assert 'torch 2.1.2 is installed' in message
    assert mmengine_imported == 'False'


def test_unneeded_versions_are_named_once_where_they_matter(tmp_path):
    """A classifier's head is imported before the scope of its config is known."""
    pytest.importorskip('mmpretrain')
    put_metadata(tmp_path, 'mmdet', '2.28.2')
    put_metadata(tmp_path, 'transformers', '5.24.0')
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import mmhatnet
    assert not any('is installed' in str(one.message) for one in caught)
    import mmhatnet.openmmlab.setup
    mmhatnet.openmmlab.patches.apply_patches()
print(*(str(one.message) for one in caught if 'is installed' in str(one.message)))
try:
    import mmhatnet.openmmlab.cls_head
except ImportError as error:
    print(error)
print('mmpretrain' in sys.modules)
"""
    warned, refused, mmpretrain_imported = run(tmp_path, code)
    assert warned.count('is installed') == 2
    assert 'mmdet 2.28.2 is installed' in warned and 'transformers 5.24.0 is installed' in warned
    assert 'transformers 5.24.0 is installed, but <5 is supported' in refused
    assert 'mmdet' not in refused and mmpretrain_imported == 'False'
