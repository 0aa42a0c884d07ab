"""``make env`` leaves the environment of another checkout alone."""

import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(folder: Path, checkout: Path) -> Path:
    """Makes an environment in which the package is a link to a checkout, as pip notes it."""
    venv.create(folder)
    (packages,) = folder.glob('lib/python*/site-packages')
    about = packages / 'mmhatnet-0.1.0.dist-info'
    about.mkdir()
    (about / 'METADATA').write_text('Metadata-Version: 2.1\nName: mmhatnet\nVersion: 0.1.0\n')
    url = dict(url=checkout.as_uri(), dir_info=dict(editable=True))
    (about / 'direct_url.json').write_text(json.dumps(url))
    (folder / 'stamp').write_text('onedl 1 2\n')
    return folder


def make(environment: Path, **variables: str) -> subprocess.CompletedProcess:
    variables = dict(FAMILY='onedl', VENV=str(environment), PATH='/usr/bin:/bin') | variables
    command = ['sh', str(ROOT / 'tools' / 'make_env.sh')]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables)


def files(folder: Path) -> dict[Path, float]:
    return {
        path: path.lstat().st_mtime for path in folder.rglob('*') if '__pycache__' not in str(path)
    }


def test_the_environment_of_another_checkout_is_refused(tmp_path: Path) -> None:
    other = tmp_path / 'the other checkout'
    other.mkdir()
    made = environment(tmp_path / 'venv', other)
    link = tmp_path / 'link'
    link.symlink_to(made)
    before = files(made)
    for name in (made, link):
        ended = make(name)
        assert ended.returncode == 1 and files(made) == before
        assert ended.stderr == (
            f'{name} belongs to the checkout {other}: name another folder with VENV=.\n'
        )


def test_the_environment_of_a_checkout_that_is_gone_is_taken(tmp_path: Path) -> None:
    made = environment(tmp_path / 'venv', tmp_path / 'gone')
    # The check has passed when an interpreter is asked to make the environment.
    stub = tmp_path / 'python3.11'
    version = f'{sys.version_info[0]}.{sys.version_info[1]}'
    stub.write_text(f'#!/bin/sh\ncase "$*" in *venv*) exit 1 ;; *) echo {version} ;; esac\n')
    stub.chmod(0o755)
    assert f'{stub} cannot make {made}' in make(made, PYTHON=str(stub)).stderr
