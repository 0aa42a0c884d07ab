"""Which installed packages are accepted, and what the user is told about the others."""

import re
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest

from mmhatnet.openmmlab import versions

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


@pytest.fixture
def check(monkeypatch):
    """Checks an environment in which exactly these distributions are installed."""

    def check_environment(distributions):
        def version(name):
            if name not in distributions:
                raise metadata.PackageNotFoundError(name)
            return distributions[name]

        monkeypatch.setattr(versions.metadata, 'version', version)
        monkeypatch.setattr(versions, 'find_spec', lambda module: None)
        versions.check_versions()

    return check_environment


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
def test_supported_packages_pass_in_silence(check, distributions):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check({'torch': '2.12.1', **distributions})


@pytest.mark.parametrize(
    ('distribution', 'version', 'supported', 'command'),
    [
        ('mmdet', '2.28.2', '<4,>=3.3', 'pip install mmdet==3.3.0'),
        ('onedl-mmdetection', '4.0.0', '<4,>=3.3', 'pip install onedl-mmdetection==3.5.1'),
        ('mmcv', '1.7.2', '<2.4,>=2.0', 'pip install mmcv==2.1.0'),
        ('onedl-mmcv', '2.4.0', '<2.4,>=2.0', 'pip install onedl-mmcv==2.3.6'),
        ('mmsegmentation', '0.30.0', '<2,>=1.2.2', 'pip install mmsegmentation==1.2.2'),
        ('onedl-mmpretrain', '2.0.0', '<2,>=1.2', 'pip install onedl-mmpretrain==1.3.6'),
        ('torch', '2.1.2+cu118', '>=2.7', 'pip install torch==2.12.1'),
    ],
)
def test_unsupported_version_is_named_with_a_way_out(
    check, distribution, version, supported, command
):
    with pytest.raises(ImportError) as error:
        check({'torch': '2.12.1', 'mmengine': '0.10.7', distribution: version})
    assert f'{distribution} {version} is installed, but {supported} is supported' in str(
        error.value
    )
    assert f'`{command}`' in str(error.value)


def test_all_problems_are_told_at_once(check):
    with pytest.raises(ImportError, match=r'mmengine 0\.9\.1 .* mmdet 2\.28\.2 '):
        check({'torch': '2.12.1', **ORIGINAL, 'mmengine': '0.9.1', 'mmdet': '2.28.2'})


@pytest.mark.parametrize('family', [ONEDL, ORIGINAL])
def test_transformers_that_mmpretrain_cannot_be_imported_with(check, family):
    """What it says by itself is `TypeError: NoneType takes no arguments`."""
    sentence = r'transformers 5\.24\.0 .* but <5 is .*: `pip install transformers==4\.57\.6`'
    with pytest.raises(ImportError, match=sentence):
        check({'torch': '2.12.1', **family, 'transformers': '5.24.0'})


def test_missing_mmengine_names_both_families(check):
    with pytest.raises(ImportError) as error:
        check({'torch': '2.12.1'})
    assert 'mmengine (supported: <0.11,>=0.10) is not installed' in str(error.value)
    assert '`pip install onedl-mmengine==0.10.12`' in str(error.value)
    assert '`pip install mmengine==0.10.7`' in str(error.value)


def test_module_without_metadata_is_accepted(check, monkeypatch):
    with pytest.raises(ImportError):
        check({'torch': '2.12.1'})
    monkeypatch.setattr(versions, 'find_spec', lambda module: object())
    versions.check_versions()


def test_mmcv_and_mmcv_lite_are_a_trap(check):
    with pytest.warns(UserWarning, match=r'pip uninstall -y mmcv-lite mmcv\)'):
        check({'torch': '2.12.1', **ORIGINAL, 'mmcv-lite': '2.1.0'})


def test_both_families_of_one_module_are_a_trap(check):
    with pytest.warns(UserWarning, match='overwritten') as caught:
        check({'torch': '2.12.1', **ONEDL, 'mmdet': '3.3.0'})
    assert len(caught) == 1
    assert 'onedl-mmdetection 3.5.1 and mmdet 3.3.0' in str(caught[0].message)
    assert 'pip uninstall -y onedl-mmdetection mmdet' in str(caught[0].message)


def test_pinned_versions_are_the_tested_ones():
    requirements = Path(__file__).parents[1] / 'requirements.txt'
    pins = dict(re.findall(r'(?m)^([\w-]+)==(\S+)', requirements.read_text()))
    recommended = dict(next(iter(r.tested.items())) for r in versions.REQUIREMENTS)
    assert recommended == {name: pins.get(name) for name in recommended}


def test_import_is_refused_before_mmengine_is_touched(tmp_path):
    """The real thing, in a process of its own: metadata of an old mmdet comes first on the path."""
    info = tmp_path / 'mmdet-2.28.2.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: mmdet\nVersion: 2.28.2\n')
    code = f'import sys; sys.path.insert(0, {str(tmp_path)!r})\n' + (
        'try:\n    import mmhatnet\n'
        'except ImportError as error:\n    print(error)\n'
        'print("mmengine" in sys.modules)'
    )
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    message, mmengine_imported = process.stdout.splitlines()
    assert 'mmdet 2.28.2 is installed' in message
    assert mmengine_imported == 'False'
