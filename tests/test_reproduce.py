"""Experiments are repeated and compared with the paper. A local server publishes the weights."""

import itertools
import json
import pickle
import re
import runpy
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from processes import Script
from synthetic import synthetic_checkpoint

from mmhatnet import HATNet
from mmhatnet.checkpoints.files import fetch_weights
from mmhatnet.errors import CheckpointError
from mmhatnet.reproduce import read_experiments

ROOT = Path(__file__).parents[1]

CLASSIFIER, DETECTOR = 'hatnet-tiny_8xb128_in1k', 'retinanet_hatnet-t_fpn_1x_coco'


class Release(SimpleHTTPRequestHandler):
    """Serves the authors' release, over a connection that may break."""

    cut_at = None

    def copyfile(self, source, outputfile) -> None:
        outputfile.write(source.read(self.cut_at))

    def log_message(self, format: str, *args) -> None:
        self.server.requests.append(args)


@pytest.fixture(scope='module')
def published(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('release') / 'HAT-Net_Tiny.pth'
    torch.save(synthetic_checkpoint('tiny'), path)
    return path


@pytest.fixture
def server(published: Path) -> Iterator[ThreadingHTTPServer]:
    handler = partial(Release, directory=published.parent)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        server.requests = []
        server.url = f'http://127.0.0.1:{server.server_port}'
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


@pytest.fixture
def run(server, cache, toy_data: Path, tmp_path: Path, monkeypatch):
    """Runs two experiments of the paper on small synthetic data instead of its data."""
    (tmp_path / 'classifier.py').write_text(f"""
_base_ = {str(ROOT / 'configs' / 'hatnet' / f'{CLASSIFIER}.py')!r}
test_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    dataset=dict(
        data_root='data/toy/imagenet',
        metainfo=dict(classes=('beach wagon', 'soccer ball', 'umbrella')),
    ),
)
""")
    (tmp_path / 'detector.py').write_text(f"""
_base_ = {str(ROOT / 'configs' / 'toy' / 'retinanet_hatnet_toy.py')!r}
model = dict(
    backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='nowhere')),
    test_cfg=dict(score_thr=0.0),
)
train_dataloader = dict(batch_size=2, dataset=dict(indices=2))
train_cfg = dict(max_epochs=1, val_interval=2)
""")
    configs = {CLASSIFIER: 'classifier.py', DETECTOR: 'detector.py'}
    experiments = read_experiments(ROOT / 'configs' / 'hatnet' / 'metafile.yml')
    for name, model in experiments.items():
        if name in configs:
            model['Config'] = str(tmp_path / configs[name])
        if 'Weights' in model:
            model['Weights'] = f'{server.url}/{Path(model["Weights"]).name}'
    monkeypatch.setattr('mmhatnet.reproduce.read_experiments', lambda metafile: experiments)
    monkeypatch.chdir(toy_data)
    logs = (tmp_path / f'{number}.log' for number in itertools.count())

    def call(command: list[str]) -> int:
        print(Script(*command[1:], log=next(logs)).wait())
        return 0

    monkeypatch.setattr('subprocess.call', call)

    def run(*args: object) -> None:
        words = ['reproduce.py', *map(str, args), '--work-dir', str(tmp_path / 'work')]
        monkeypatch.setattr(sys, 'argv', words)
        runpy.run_path(str(ROOT / 'tools' / 'reproduce.py'), run_name='__main__')

    return run


def test_classifier_is_fetched_and_tested(run, server, cache: Path, published, capfd) -> None:
    run(CLASSIFIER)
    output = capfd.readouterr().out
    *_, row, _ = output.splitlines()
    metric, measured = row.split('│')[1], row.split('│')[3].strip()
    assert metric.split() == ['Top', '1', 'Accuracy'] and row.split('│')[2].strip() == '79.8'
    assert re.search(rf'^result +accuracy/top1 +{float(measured):g}$', output, re.MULTILINE)
    assert 'do not match' not in output, 'some weights are not loaded'
    assert [path.name for path in cache.iterdir()] == ['HAT-Net_Tiny.pth']
    assert len(server.requests) == 1
    fetch_weights(f'{server.url}/HAT-Net_Tiny.pth', '')
    assert len(server.requests) == 1, 'an existing file is downloaded again'


@pytest.mark.slow
def test_detector_is_trained_and_tested(run, published, tmp_path, server, capfd) -> None:
    options = ['--cfg-options', 'test_evaluator.metric=bbox']
    run(DETECTOR, '--checkpoint', published, *options)
    (log,) = tmp_path.glob('work/*/*.log')
    assert f'PretrainedInit: load from {published}' in log.read_text()
    assert 'Scaling the original LR by 0.125.' in log.read_text()
    (results,) = tmp_path.glob('work/test/*/*.json')
    measured = f'{json.loads(results.read_text())["coco/bbox_mAP"] * 100:.1f}'
    output = capfd.readouterr().out
    *_, row, _ = output.splitlines()
    assert [cell.strip() for cell in row.split('│')[1:-1]] == ['box AP', '42.5', measured]
    assert ' --resume ' in output, 'the same command does not resume an interrupted training'
    assert not server.requests


def test_several_processes(run, published, monkeypatch, capsys) -> None:
    monkeypatch.setattr('subprocess.call', lambda command: 3)
    with pytest.raises(SystemExit, match='The command failed with status 3: .* -m mmhatnet train '):
        run(DETECTOR, '--gpus', 4, '--cfg-options', 'a.b=[1,2]')
    command = capsys.readouterr().out
    assert '-m torch.distributed.run --standalone --nproc-per-node=4' in command
    assert "--cfg-options 'a.b=[1,2]' --launcher pytorch" in command


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(
    ('fault', 'what'),
    [
        ('cut', 'is incomplete'),
        ('malicious', f'holds {Path.__module__}.Path, which belongs'),
        ('pickle', 'is a pickle'),
        ('page', 'is a web page'),
    ],
)
def test_bad_download_is_refused(
    fault: str, what: str, server, published, cache, tmp_path, monkeypatch
):
    """Nothing in it is executed, and the file is deleted."""
    trace, file = tmp_path / 'executed', published.with_name(f'{fault}.pth')
    if fault == 'cut':
        file.write_bytes(published.read_bytes())
        monkeypatch.setattr(Release, 'cut_at', 10**7)
    elif fault == 'malicious':
        torch.save({'weight': torch.zeros(1), 'more': Malicious(trace)}, file)
    elif fault == 'pickle':
        file.write_bytes(pickle.dumps(Malicious(trace)))
    else:
        file.write_text('<html>Log in to this network</html>')
    message = rf'{file.name} could not be downloaded \(the download {what}.*with --checkpoint FILE'
    with pytest.raises(CheckpointError, match=message):
        fetch_weights(f'{server.url}/{file.name}', '--checkpoint FILE')
    init_cfg = dict(type='Pretrained', checkpoint=f'{server.url}/{file.name}')
    with pytest.raises(CheckpointError, match=rf'{file.name} could not .*\(the download {what}'):
        HATNet('tiny', init_cfg=init_cfg).init_weights()  # as other tools do
    assert list(cache.iterdir()) == [] and not trace.exists()


def test_a_bad_file_in_the_cache_is_replaced(server, published: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    left_over, url = cache / published.name, f'{server.url}/{published.name}'
    left_over.write_text('<html>Log in to this network</html>')
    with pytest.raises(CheckpointError, match=rf'{left_over} is a web page.*HTTP Error 404'):
        fetch_weights(f'{server.url}/absent/{published.name}', '')
    assert fetch_weights(url, '') == left_over
    assert left_over.read_bytes() == published.read_bytes()


def test_missing_things_are_named(run, server, cache: Path) -> None:
    with pytest.raises(SystemExit, match=f'no experiment resnet, only {CLASSIFIER}, '):
        run('resnet')
    with pytest.raises(SystemExit, match=r'There is no checkpoint nothing\.pth'):
        run(CLASSIFIER, '--checkpoint', 'nothing.pth')
    with pytest.raises(SystemExit, match='The test data are missing'):
        run(CLASSIFIER, '--cfg-options', 'test_dataloader.dataset.split=x')
    assert not server.requests, 'weights are downloaded although the data are missing'
    with pytest.raises(
        CheckpointError, match=r'absent.pth could not be downloaded \(HTTP Error 404'
    ):
        fetch_weights(f'{server.url}/absent.pth', '')
    assert list(cache.iterdir()) == []
