"""examples/quickstart.ipynb runs, and shows what a run of it has shown."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / 'examples' / 'quickstart.ipynb'
# As pip installs it, from whatever package PYTHONPATH or the environment has.
COMMAND = """#!{python}
from mmhatnet_cli import main
main()
"""


def shown(notebook: dict) -> str:
    """Returns the text below the cells."""
    parts = []
    for cell in notebook['cells']:
        for output in cell.get('outputs', ()):
            assert output['output_type'] != 'error', output
            text = output.get('text') or output.get('data', {}).get('text/plain') or ''
            parts.append(text if isinstance(text, str) else ''.join(text))
    return '\n'.join(parts)


def test_it_runs_in_any_folder(tmp_path: Path, monkeypatch) -> None:
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    program = tmp_path / 'bin' / 'mmhatnet'
    program.parent.mkdir()
    program.write_text(COMMAND.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{program.parent}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('PYTHONPATH', str(NOTEBOOK.parents[1]))
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
    folder = tmp_path / 'project'
    folder.mkdir()

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, resources=dict(metadata=dict(path=str(folder)))).execute()

    assert 'Traceback' not in shown(notebook)
    assert list((folder / 'work_dirs' / 'small').glob('epoch_*.pth'))
    assert (folder / 'work_dirs' / 'small' / 'report.html').is_file()
    predictions = folder / 'predictions'
    assert len(json.loads((predictions / 'images.json').read_text())['images']) == 4
    assert isinstance(json.loads((predictions / 'predictions.json').read_text()), list)
    assert len(list((predictions / 'drawn').iterdir())) == 4
    assert (folder / 'detector.onnx').is_file()


def test_the_saved_outputs_are_those_of_a_run() -> None:
    assert NOTEBOOK.stat().st_size < 300_000
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
    assert 8 <= len(code) <= 14
    assert [cell['execution_count'] for cell in code] == list(range(1, len(code) + 1))
    shown_images = [
        o for cell in code for o in cell['outputs'] if 'image/jpeg' in o.get('data', ())
    ]
    assert len(shown_images) == 4
    text = shown(notebook)
    assert 'Traceback' not in text and not re.search(r'/(tmp|root|home|work)/', text)
    assert 'few iterations' in ''.join(notebook['cells'][0]['source'])
