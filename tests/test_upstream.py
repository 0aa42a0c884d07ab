"""The patch in docs/upstream/ corrects mmcv, and the page names existing workarounds."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmhatnet.openmmlab.roi_layers import FUNCTIONS

ROOT = Path(__file__).parents[1]
UPSTREAM = ROOT / 'docs' / 'upstream'
PATCH = UPSTREAM / 'mmcv_memory_format.patch'
# The deviation of each operator between channels-last and contiguous inputs, without mmhatnet.
COMPARE = """
import json
import mmcv, torch
from mmcv.ops import RoIAlign, RoIAlignRotated, RoIPool, modulated_deform_conv2d

boxes = torch.tensor([[0, 1.0, 2, 30, 20], [1, 5, 5, 20, 30.5], [1, 0, 0, 39, 31]])
rotated = torch.tensor([[0, 15.0, 12, 20, 10, 0.3], [1, 20, 16, 30, 20, -0.7]])
offset, mask, weight = torch.rand(2, 18, 32, 40), torch.rand(2, 9, 32, 40), torch.rand(8, 8, 3, 3)

def convolve(x):
    format = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else None
    tensors = (offset, mask, weight)
    if format:
        tensors = [t.contiguous(memory_format=format) for t in tensors]
    return modulated_deform_conv2d(x, *tensors, None, 1, 1)

operators = dict(
    RoIAlign=lambda x: RoIAlign((5, 7), 0.5, 2)(x, boxes),
    RoIAlignRotated=lambda x: RoIAlignRotated((5, 7), 0.5, 2)(x, rotated),
    RoIPool=lambda x: RoIPool((5, 7), 0.5)(x, boxes),
    ModulatedDeformConv2d=convolve,
)

def compute(operator, format):
    torch.manual_seed(0)
    x = torch.rand(2, 8, 32, 40).contiguous(memory_format=format).requires_grad_()
    out = operator(x)
    out.backward(torch.rand(out.shape).contiguous(memory_format=format))
    return out.detach(), x.grad

distances = {}
for name, operator in operators.items():
    try:
        expected = compute(operator, torch.contiguous_format)
    except (NotImplementedError, RuntimeError):  # not among these operators, or for GPUs only
        continue
    actual = compute(operator, torch.channels_last)
    distances[name] = max((a - b).abs().max().item() for a, b in zip(actual, expected))
print(json.dumps([mmcv.__file__, distances]))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copies the installed mmcv, with a link to its compiled module."""
    mmcv = pytest.importorskip('mmcv')
    original = Path(mmcv.__file__).parent
    ignored = shutil.ignore_patterns('__pycache__', '*.so', '*.pyd')
    shutil.copytree(original, tmp_path / 'mmcv', ignore=ignored)
    for compiled in (*original.glob('_ext*.so'), *original.glob('_ext*.pyd')):
        (tmp_path / 'mmcv' / compiled.name).symlink_to(compiled)
    return tmp_path


def apply(folder: Path) -> None:
    command = ['git', 'apply', str(PATCH)]
    # Inside a repository, git would skip files that do not belong to it.
    variables = {**os.environ, 'GIT_CEILING_DIRECTORIES': str(folder.parent)}
    process = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def distances(folder: Path) -> dict[str, float]:
    """Returns the deviation of each operator with channels-last inputs."""
    environment = {**os.environ, 'PYTHONPATH': str(folder)}
    command = [sys.executable, '-c', COMPARE]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    mmcv, found = json.loads(process.stdout.splitlines()[-1])
    assert Path(mmcv).parent == folder / 'mmcv'
    return found


@pytest.mark.skipif(not shutil.which('git'), reason='git applies the patch')
def test_patch_corrects_mmcv(copy: Path) -> None:
    before = {path: path.read_text() for path in (copy / 'mmcv' / 'ops').glob('*.py')}
    if list(copy.glob('mmcv/_ext*.so')):  # compiled
        assert distances(copy)['RoIAlign'] > 0.1
    apply(copy)
    changed = {path.stem for path, text in before.items() if path.read_text() != text}
    assert changed == {*FUNCTIONS}
    right = distances(copy)
    assert {'RoIAlign', 'ModulatedDeformConv2d'} <= right.keys()
    assert max(right.values()) < 1e-5, right


def test_workarounds_of_the_page_exist() -> None:
    """Each name in the third column occurs in the code."""
    folders = ('mmhatnet', 'tools', 'configs', 'tests')
    sources = [path for folder in folders for path in (ROOT / folder).rglob('*.py')]
    code = '\n'.join(path.read_text() for path in sources if path != Path(__file__))
    code += ' '.join(str(path.relative_to(ROOT)) for path in sources)
    rows = re.findall(r'(?m)^\| (?!Fault|-)(.*) \|$', (UPSTREAM / 'README.md').read_text())
    assert len(rows) > 20
    for row in rows:
        _, _, here, _ = row.split(' | ')
        names = re.findall(r'`(.+?)`', here)
        assert names or '](' in here, row
        for name in names:
            assert name in code, row


def test_links_of_the_pages_exist() -> None:
    for page in UPSTREAM.glob('*.md'):
        for target in re.findall(r'\]\((?!https)([^)#]+)', page.read_text()):
            assert (UPSTREAM / target).exists(), target
