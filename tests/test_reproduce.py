"""Published weights are downloaded whole, checked, and run; tested against a server of our own."""

import hashlib
import json
import os
import pickle
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from drawn import drawn_checkpoint

from mmhatnet.download import download

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
import reproduce  # noqa: E402

CONTENT = bytes(range(256)) * 1000


class Release(BaseHTTPRequestHandler):
    """Serves ``server.content`` under every path, with the server's faults."""

    def do_GET(self) -> None:
        server = self.server
        self.server.ranges.append(self.headers.get('Range'))
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        tag = f'"{hashlib.md5(server.content).hexdigest()}"' if server.tagged else None
        asked = self.headers.get('Range')
        if asked and server.resumes and self.headers['If-Range'] in (tag, server.believed_tag):
            start = int(asked.removeprefix('bytes=').removesuffix('-'))
            if start >= len(server.content):
                self.send_error(416)
                return
            self.send_response(206)
            last = len(server.content) - 1
            self.send_header('Content-Range', f'bytes {start}-{last}/{last + 1}')
        else:
            self.send_response(200)
        if tag:
            self.send_header('ETag', tag)
        self.send_header('Content-Length', str(len(server.content) - start))
        self.end_headers()
        self.wfile.write(server.content[start : server.cut_at])

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Release)
    server.content, server.status, server.cut_at = CONTENT, 200, None
    server.tagged, server.resumes, server.believed_tag = True, True, None
    server.ranges = []
    server.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def break_off(server, path: Path, at: int = 100_000) -> None:
    server.cut_at = at
    with pytest.raises(ConnectionError, match=f'broke off after {at} of 256000 bytes: .* to go on'):
        download(f'{server.url}/file', path)
    assert not path.exists()
    server.cut_at = None


def assert_downloaded(path: Path, content: bytes) -> None:
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name], 'nothing else is left'


def test_download_shows_progress(server, tmp_path: Path, capsys) -> None:
    path = tmp_path / 'new' / 'file'
    download(f'{server.url}/file', path)
    assert_downloaded(path, CONTENT)
    assert server.ranges == [None]
    assert '100%' in capsys.readouterr().out


def test_goes_on_after_every_cut(server, tmp_path: Path) -> None:
    for at in (100_000, 200_000):
        break_off(server, tmp_path / 'file', at)
    download(f'{server.url}/file', tmp_path / 'file')
    assert_downloaded(tmp_path / 'file', CONTENT)
    assert server.ranges == [None, 'bytes=100000-', 'bytes=200000-']


@pytest.mark.parametrize('fault', ['resumes', 'tagged'])
def test_starts_again_where_the_server_cannot_go_on(server, tmp_path: Path, fault: str) -> None:
    setattr(server, fault, False)
    break_off(server, tmp_path / 'file')
    download(f'{server.url}/file', tmp_path / 'file')
    assert_downloaded(tmp_path / 'file', CONTENT)
    # Without a tag nobody could tell whether the file is the same, so nothing is asked for.
    assert server.ranges == [None, 'bytes=100000-' if fault == 'resumes' else None]


@pytest.mark.parametrize('size', [300_000, 256_000, 100_000, 50_000])
@pytest.mark.parametrize('honest', [True, False])
def test_starts_again_when_the_file_has_changed(server, tmp_path, size: int, honest: bool) -> None:
    break_off(server, tmp_path / 'file')
    if not honest:  # it ignores If-Range, and goes on in the middle of the new file
        server.believed_tag = f'"{hashlib.md5(CONTENT).hexdigest()}"'
    server.content = b'new' * (size // 3)
    download(f'{server.url}/file', tmp_path / 'file')
    assert_downloaded(tmp_path / 'file', server.content)


def test_server_refuses(server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(ConnectionError, match=r'127\.0\.0\.1:\d+/file: the server answers 404 Not'):
        download(f'{server.url}/file', tmp_path / 'file')
    assert not os.listdir(tmp_path)


@pytest.fixture(scope='module')
def published(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('release') / 'HAT-Net_Tiny.pth'
    torch.save(drawn_checkpoint('tiny'), path)
    return path


@pytest.fixture
def cache(server, published, tmp_path: Path, monkeypatch) -> Path:
    """The cache of a machine for which the test's server is the authors'."""
    server.content = published.read_bytes()
    monkeypatch.setattr(reproduce, 'RELEASE', server.url)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


def run(monkeypatch, *args: object) -> None:
    monkeypatch.setattr(sys, 'argv', ['reproduce.py', *map(str, args)])
    reproduce.main()


def test_fetched_once_and_recorded(server, cache: Path, capsys) -> None:
    reproduce.fetch('tiny')
    digest = hashlib.sha256(server.content).hexdigest()
    assert f'has the sha256 {digest}' in capsys.readouterr().out
    record = cache / 'HAT-Net_Tiny.pth.sha256'
    assert record.read_text() == f'{digest}  HAT-Net_Tiny.pth\n'
    assert {path.name for path in cache.iterdir()} == {'HAT-Net_Tiny.pth', record.name}
    reproduce.fetch('tiny')
    assert len(server.ranges) == 1

    record.write_text(record.read_text().replace(digest, '0' * 64))
    with pytest.raises(ValueError, match=f'has changed since it was downloaded: .* {digest}'):
        reproduce.fetch('tiny')


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def test_bad_files_are_refused(server, published, cache: Path, tmp_path: Path) -> None:
    weights = torch.load(published)
    trace = tmp_path / 'executed'
    bad = tmp_path / 'bad.pth'

    def refusal() -> str:
        server.content = bad.read_bytes()
        with pytest.raises(ValueError) as refused:
            reproduce.fetch('tiny')
        assert not (cache / 'HAT-Net_Tiny.pth').exists()
        return str(refused.value)

    bad.write_bytes(published.read_bytes()[: 10**7])
    assert 'is damaged, or holds more than weights' in refusal()
    torch.save({**weights, 'more': Malicious(trace)}, bad)
    assert 'is damaged, or holds more than weights (which was not executed)' in refusal()
    bad.write_bytes(pickle.dumps(Malicious(trace)))
    assert 'is damaged, or holds more than weights (which was not executed)' in refusal()
    assert not trace.exists()
    torch.save([1, 2], bad)
    assert 'is damaged, or holds more than weights' in refusal()
    torch.save({k: v for k, v in weights.items() if k != 'ds3.norm.bias'}, bad)
    assert "HAT-Net 'tiny', from which it differs in stages.2.downsample.norm.bias" in refusal()
    torch.save({**weights, 'classifier.1.bias': torch.zeros(10)}, bad)
    assert 'differs in classifier.1.bias (1 differences)' in refusal()
    with pytest.raises(ValueError, match="holds HAT-Net 'tiny', but the backbone is .*'small'"):
        reproduce.check_weights(published, 'small')

    server.content = published.read_bytes()
    reproduce.fetch('tiny')
    assert (cache / 'HAT-Net_Tiny.pth').exists()


@pytest.fixture
def experiments(toy_data: Path, tmp_path: Path, monkeypatch) -> Path:
    """Two experiments of the paper with small generated pictures in the place of its data."""
    configs = tmp_path / 'configs'
    configs.mkdir()
    (configs / 'imagenet_hatnet_tiny.py').write_text(f"""
_base_ = {str(ROOT / 'configs' / 'imagenet_hatnet_tiny.py')!r}
test_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    dataset=dict(
        data_root='data/toy/imagenet',
        metainfo=dict(classes=('ladybug', 'starfish', 'balloon', 'clock', 'puzzle', 'daisy')),
    ),
)
""")
    (configs / 'retinanet_hatnet_tiny.py').write_text(f"""
_base_ = {str(ROOT / 'configs' / 'toy' / 'retinanet_hatnet.py')!r}
model = dict(
    backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='')),
    test_cfg=dict(score_thr=0.0),
)
train_dataloader = dict(batch_size=2, dataset=dict(indices=2))
train_cfg = dict(max_epochs=1, val_interval=2)
""")
    monkeypatch.setattr(reproduce, 'CONFIGS', configs)
    monkeypatch.chdir(toy_data)
    return configs


def test_classifier_is_tested(experiments, cache, monkeypatch, tmp_path, capfd) -> None:
    run(monkeypatch, 'imagenet_hatnet_tiny', '--work-dir', tmp_path / 'work')
    output = capfd.readouterr().out
    assert 'tensors written to' in output
    *_, row, _ = output.splitlines()
    assert row.split()[1::2] == ['accuracy/top1', '79.8', row.split()[5]]
    assert f'accuracy/top1: {row.split()[5]}' in output
    assert 'do not match' not in output


def test_detector_is_trained_and_tested(experiments, published, monkeypatch, tmp_path, capfd):
    work_dir = tmp_path / 'work'
    args = ['--checkpoint', published, '--cfg-options', 'test_evaluator.metric=bbox']
    run(monkeypatch, 'retinanet_hatnet_tiny', '--work-dir', work_dir, *args)
    (log,) = work_dir.glob('*/*.log')
    assert f'PretrainedInit: load from {published}' in log.read_text()
    assert 'Scaling the original LR by 0.125.' in log.read_text()
    (results,) = work_dir.glob('test/*/*.json')
    measured = f'{json.loads(results.read_text())["coco/bbox_mAP"] * 100:.1f}'
    *_, row, _ = capfd.readouterr().out.splitlines()
    assert row.split()[1:-1] == ['coco/bbox_mAP', '│', 'see', 'the', 'paper', '│', measured]


def test_dry_run_and_list(monkeypatch, cache: Path, tmp_path: Path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, 'semfpn_hatnet_large', '--gpus', 4, '--dry-run', '--cfg-options', 'a=1')
    download_note, train, _, test = capsys.readouterr().out.splitlines()
    assert download_note.startswith(f'# {cache / "HAT-Net_Large.pth"} is downloaded from http')
    assert (
        '-m torch.distributed.run --standalone --nproc-per-node=4' in train and '/train.py' in train
    )
    assert f'checkpoint={cache / "HAT-Net_Large.pth"} a=1 --launcher pytorch' in train
    assert '/test.py' in test and test.endswith('--cfg-options a=1 --launcher pytorch')
    assert not os.listdir(tmp_path), 'nothing is downloaded or written'

    run(monkeypatch, '--list')
    listed = {
        line.split()[1]: line.split()[3:-1] for line in capsys.readouterr().out.splitlines()[3:-1]
    }
    assert listed.keys() == {path.stem for path in (ROOT / 'configs').glob('*.py')}
    assert listed['imagenet_hatnet'] == ['82.6'] and listed['imagenet_hatnet_large'] == ['84.2']
    assert listed['maskrcnn_hatnet_medium'] == ['see', 'the', 'paper']
    assert listed['upernet_hatnet_160k'] == ['not', 'in', 'the', 'paper']


def test_missing_things_are_named(experiments, cache, server, monkeypatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match='There is no experiment resnet: --list names them all'):
        run(monkeypatch, 'resnet')
    with pytest.raises(SystemExit, match='There is no checkpoint nothing.pth'):
        run(monkeypatch, 'imagenet_hatnet_tiny', '--checkpoint', 'nothing.pth')
    (tmp_path / 'bad.pth').write_bytes(b'bad')
    with pytest.raises(SystemExit, match='is damaged.* Delete it, or name another one: --checkpoi'):
        run(monkeypatch, 'imagenet_hatnet_tiny', '--checkpoint', tmp_path / 'bad.pth')
    with pytest.raises(SystemExit, match='The test data are missing'):
        run(monkeypatch, 'imagenet_hatnet_tiny', '--cfg-options', 'test_dataloader.dataset.split=x')
    assert not server.ranges, 'nothing is downloaded for data that are missing'

    server.shutdown()
    server.server_close()
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, 'imagenet_hatnet_tiny')
    url = f'{server.url}/HAT-Net_Tiny.pth'
    assert str(refused.value).startswith(f'{url} cannot be reached (')
    assert str(refused.value).endswith('A file from elsewhere: --checkpoint FILE.')
