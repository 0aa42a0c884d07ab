"""The demo's page shows what tools/predict.py writes, to one user at a time and to nobody else."""

import json
import os
import re
import shutil
import signal
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser, Tab
from experiments import as_text
from mmengine.config import Config
from PIL import ExifTags, Image
from predicting import random_job
from processes import Script

from mmhatnet.demo.server import application, describe, find_examples, is_local, listen
from mmhatnet.errors import DemoError
from mmhatnet.inference import build_inferencer

gradio_client = pytest.importorskip('gradio_client', reason='needs the extra demo')
uvicorn = pytest.importorskip('uvicorn')

JOBS = ('maskrcnn', 'semfpn', 'imagenet')
# Names of classes as somebody might write them, of which a page must not make code.
HOSTILE = (
    '<img src=x onerror="document.title=1">',
    '</div><script>document.title=2</script>',
    '${document.title=3}{{ 7 * 7 }}',
    '"><b>猫 & co\'',
)


class Page:
    """A page that is served.

    Attributes:
        config (Path): The config.
        checkpoint (Path): The checkpoint.
        url (str): The address.
        folder (Path): The folder of temporary files.
        forwards (list): An item for each image that the model has predicted.
    """

    def __init__(self, config: Path, checkpoint: Path, url: str, folder: Path) -> None:
        self.config, self.checkpoint, self.url, self.folder = config, checkpoint, url, folder
        self.forwards: list[object] = []

    def client(self) -> 'gradio_client.Client':
        """Returns a client, which is a user of its own."""
        folder = self.folder / 'client'
        return gradio_client.Client(self.url, verbose=False, download_files=str(folder))

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Returns the status, the headers and the body of an answer."""
        return self.ask('GET', path, headers=headers)

    def post(self, path: str, content: dict) -> dict:
        """Sends and returns JSON."""
        headers = {'Content-Type': 'application/json'}
        return json.loads(self.ask('POST', path, json.dumps(content), headers)[2])

    def ask(self, *request: object, **more: object) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        connection.request(*request, **more)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, body

    def files(self, html: str) -> dict[str, object]:
        """Returns the contents of the files that a result offers for download, by names."""
        found = {}
        for name, address in re.findall(r'download="([^"]*)" href="([^"]*)"', html):
            status, _, body = self.get(f'/{address}')
            assert status == 200
            found[name] = json.loads(body) if name.endswith('.json') else body
        return found


@contextmanager
def served(config: Path, checkpoint: Path, folder: Path) -> Iterator[Page]:
    cfg = Config.fromfile(config)
    inferencer = build_inferencer(cfg, str(checkpoint), 'cpu')
    with (
        listen(port=0) as sock,
        application(inferencer, cfg, str(checkpoint), is_local(sock), 0.3) as app,
    ):
        server = uvicorn.Server(
            uvicorn.Config(app, log_level='critical', timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[sock]))
        thread.start()
        page = Page(config, checkpoint, f'http://127.0.0.1:{sock.getsockname()[1]}', folder)
        inferencer.model.register_forward_hook(lambda *_: page.forwards.append(None))
        try:
            yield page
        finally:
            server.should_exit = True
            thread.join(60)


def planted_job(job: str, folder: Path) -> tuple[Path, Path]:
    """Writes a small job with hostile names, whose predictions have several scores."""
    config, checkpoint = random_job(job, folder)
    cfg = Config.fromfile(config).to_dict()
    if job == 'maskrcnn':
        cfg['model']['test_cfg']['rcnn'].update(score_thr=0, max_per_img=7)
    config = config.with_name(f'the {job}.py')
    config.write_text(as_text(cfg))
    weights = torch.load(checkpoint)
    names = {'maskrcnn': 4, 'semfpn': 6, 'imagenet': 3}[job]
    classes = [*HOSTILE, 'five', 'six'][:names]
    weights['meta'] = dict(dataset_meta=dict(classes=classes))
    torch.save(weights, checkpoint)
    return config, checkpoint


@pytest.fixture(scope='module')
def pages(tmp_path_factory, toy_data: Path) -> Iterator[Callable[[str], Page]]:
    """Serves a job until another one is asked for, as each takes the environment."""
    folders = {job: tmp_path_factory.mktemp(job) for job in JOBS}
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.chdir(toy_data)
        current: dict[str, Page] = {}

        def page(job: str) -> Page:
            if job not in current:
                stack.close()
                current.clear()
                planted = planted_job(job, folders[job])
                current[job] = stack.enter_context(served(*planted, folders[job]))
            return current[job]

        yield page


def write_images(folder: Path, source: Path) -> list[Path]:
    """Writes images of many formats."""
    image = Image.open(source).convert('RGB').resize((120, 80))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    gray = np.asarray(image.convert('L'))
    paths = [folder / name for name in ('turned.jpg', 'palette.png', 'gray.png', 'rgba.png')]
    image.save(paths[0], exif=turned)
    image.quantize(16).save(paths[1])
    image.convert('L').save(paths[2])
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(gray))
    alpha.save(paths[3])
    paths.append(folder / '16 bits.png')
    cv2.imwrite(str(paths[-1]), gray.astype(np.uint16) * 257)
    return paths


def image_file(path: Path) -> dict:
    return gradio_client.handle_file(str(path))


def results_of(folder: Path) -> dict[str, list | dict]:
    return {path.name: json.loads(path.read_text()) for path in folder.glob('*.json')}


def predicted(run_tool, page: Page, folder: Path, threshold: float) -> Iterator[tuple[str, dict]]:
    """Yields what predict writes of each image of a folder, as if it were alone."""
    out = folder / f'out {threshold}'
    args = ['--score-thr', threshold, '--out-dir', out, '--device', 'cpu', '--no-drawn']
    run_tool('predict', page.config, page.checkpoint, folder / '*.*', *args)
    results = json.loads((out / 'predictions.json').read_text())
    if not (out / 'images.json').exists():
        for result in results:
            name = Path(result['image']).name
            yield name, {'predictions.json': [result | dict(image=name)]}
        return
    images = json.loads((out / 'images.json').read_text())
    for image in images['images']:
        own = [r | dict(image_id=1) for r in results if r['image_id'] == image['id']]
        name = Path(image['file_name']).name
        alone = images | dict(images=[image | dict(id=1, file_name=name)])
        yield name, {'predictions.json': own, 'images.json': alone}


@pytest.mark.parametrize('job', JOBS)
def test_results_are_those_of_predict(job: str, pages, run_tool, toy_data, tmp_path: Path) -> None:
    page = pages(job)
    paths = write_images(tmp_path, next(toy_data.glob('data/toy/coco/val2017/*.jpg')))
    expected = {0: dict(predicted(run_tool, page, tmp_path, 0))}
    if job == 'maskrcnn':
        scores = [r['score'] for r in expected[0][paths[0].name]['predictions.json']]
        assert len({*scores}) == 7
        for threshold in (scores[2], 1):
            expected[threshold] = dict(predicted(run_tool, page, tmp_path, threshold))
    for path in paths:
        client = page.client()
        shown = client.predict(image_file(path), 0, api_name='/predict')
        before = len(page.forwards)
        for threshold in expected:
            if job == 'maskrcnn':
                shown = client.predict(threshold, api_name='/threshold')
            found, files = page.files(shown), expected[threshold][path.name]
            if job == 'semfpn':
                (result,) = files['predictions.json']
                label_map = Path(result['label_map']).read_bytes()
                assert found.pop('label_map.png') == label_map
                result = result | dict(label_map='label_map.png')
                files = {'predictions.json': [result]}
            assert found == files and path.name in shown
            if job == 'maskrcnn':
                assert shown.count('class="box') == len(found['predictions.json'])
        assert len(page.forwards) == before


def bomb(width: int, height: int) -> bytes:
    """Returns a PNG file whose header states a size, without its pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack('>I', len(content)) + checked + struct.pack('>I', zlib.crc32(checked))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')


def test_images_that_cannot_be_predicted_are_named(pages, toy_data, tmp_path: Path) -> None:
    source = next(toy_data.glob('data/toy/coco/val2017/*.jpg'))
    Image.new('RGB', (4000, 3)).save(tmp_path / 'narrow.png')
    contents = {
        'text.jpg': (b'no image', 'text.jpg is not an image.'),
        'empty.png': (b'', 'empty.png is empty.'),
        'half.jpg': (source.read_bytes()[:900], 'half.jpg is damaged or cut off'),
        'bomb.png': (bomb(20000, 20000), 'bomb.png has more pixels than the 67,108,864 that'),
        'vast.png': (bomb(2**20, 2**20), 'vast.png has more pixels than the 67,108,864 that'),
        'film.mp4': (b'\0\0\0\x18ftypmp42', 'film.mp4 is not an image.'),
        'narrow.png': ((tmp_path / 'narrow.png').read_bytes(), 'narrow.png is too narrow'),
    }
    client = pages('maskrcnn').client()
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        shown = client.predict(image_file(tmp_path / name), 0.3, api_name='/predict')
        assert shown.count('role="alert"') == 1 and 'stage' not in shown
        assert message in shown and str(tmp_path) not in shown and 'served' not in shown, shown
        shown = client.predict(image_file(source), 0.3, api_name='/predict')
        assert 'stage' in shown and 'alert' not in shown


def test_users_see_their_own_images(pages, toy_data: Path) -> None:
    page, paths = pages('maskrcnn'), sorted(toy_data.glob('data/toy/coco/val2017/*.jpg'))[:3]
    clients = [page.client() for _ in paths]
    jobs = [
        client.submit(image_file(path), 0, api_name='/predict')
        for client, path in zip(clients, paths)
    ]
    before = [page.files(job.result(60)) for job in jobs]
    again = [client.submit(0, api_name='/threshold') for client in clients]
    after = [page.files(job.result(60)) for job in again]
    assert before == after
    names = [found['images.json']['images'][0]['file_name'] for found in after]
    assert names == [path.name for path in paths]


def test_predictions_that_are_no_longer_kept(pages, toy_data, monkeypatch) -> None:
    monkeypatch.setattr('mmhatnet.demo.predictions.KEPT', 2)
    page, path = pages('imagenet'), next(toy_data.glob('data/toy/coco/val2017/*.jpg'))
    client = page.client()
    first = client.predict(image_file(path), 0, api_name='/predict')
    others = [page.client().predict(image_file(path), 0, api_name='/predict') for _ in range(2)]
    assert all(map(page.files, others))
    (address,) = re.findall(r'href="([^"]*)"', first)
    assert page.get(f'/{address}')[0] == 404
    shown = client.predict(0, api_name='/threshold')
    assert 'drop the image again' in shown and 'alert' in shown


def test_other_names_of_the_machine_are_refused(pages) -> None:
    page = pages('imagenet')
    assert page.get('/')[0] == 200
    for host in ('localhost', '127.0.0.1:80', '[::1]:7860', 'LOCALHOST:1'):
        assert page.get('/', Host=host)[0] == 200
    for host in ('example.org', 'localhost.example.org', '10.0.0.1', '', '127.0.0.1@evil', '[:'):
        assert page.get('/', Host=host)[0] == 421, host


def test_nothing_of_the_machine_can_be_read(pages, toy_data: Path) -> None:
    page = pages('imagenet')
    secret, image = page.checkpoint, next(toy_data.glob('data/toy/coco/val2017/*.jpg'))
    held = Path(os.environ['GRADIO_TEMP_DIR'])
    tried = (f'/gradio_api/file={secret}', f'/file={secret}', f'/results/../{secret}')
    for path in (*tried, '/gradio_api/file=/etc/passwd', '/results/x/predictions.json'):
        assert page.get(path)[0] in (403, 404), path
    for path in (image, secret, f'{page.url}/theme.css', 'https://192.0.2.1/a.png'):
        file = dict(path=str(path), url=str(path), meta={'_type': 'gradio.FileData'})
        for data in ([file, 0.3], [None, file]):
            answer = page.post('/gradio_api/call/predict', dict(data=data))
            _, _, events = page.get(f'/gradio_api/call/predict/{answer["event_id"]}')
            assert b'event: error' in events and b'complete' not in events, path
    assert not [path for path in held.rglob('*') if path.name == secret.name]


@pytest.mark.parametrize(
    ('host', 'port', 'message'),
    [
        ('127.0.0.1', None, r'--port \d+ is in use on 127.0.0.1: name another one, or 0'),
        ('127.0.0.1', 70000, r'--port 70000'),
        ('192.0.2.1', 0, r'--host 192.0.2.1 is not an address of this machine'),
        ('no such host', 0, r'--host no such host is not known'),
    ],
)
def test_addresses_that_cannot_be_used(host: str, port: int | None, message: str) -> None:
    with listen(port=0) as taken:
        port = taken.getsockname()[1] if port is None else port
        with pytest.raises(DemoError, match=message), listen(host, port):
            pass


def test_listening_elsewhere_is_said() -> None:
    with listen(port=0) as sock:
        assert is_local(sock) and describe(sock).count('\n') == 0
        assert f'http://127.0.0.1:{sock.getsockname()[1]}/' in describe(sock)
    with listen('0.0.0.0', 0) as sock:
        assert not is_local(sock) and 'no password' in describe(sock)
        assert f'http://{socket.gethostname()}:{sock.getsockname()[1]}/' in describe(sock)


def test_examples_are_of_several_folders(toy_data: Path, monkeypatch) -> None:
    monkeypatch.chdir(toy_data)
    root = Path(__file__).parents[1] / 'configs' / 'toy'
    for job in JOBS:
        cfg = Config.fromfile(root / f'{job}_hatnet_toy.py')
        found = find_examples(cfg)
        assert 2 <= len({*found}) <= 4 and all(cv2.imread(path) is not None for path in found)
        if job == 'imagenet':
            assert len({Path(path).parent for path in found}) > 1
        cfg.test_dataloader.dataset.data_root = 'nowhere'
        assert find_examples(cfg) == []


@pytest.fixture(scope='module')
def browser(tmp_path_factory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip('needs Chromium')
    with Browser(tmp_path_factory.mktemp('profile')) as started:
        yield started


def move_slider(tab: Tab, value: float) -> None:
    tab.evaluate("slider = document.querySelector('input[type=range]')")
    tab.evaluate(f'slider.value = {value}')
    for event in ('input', 'change'):
        tab.evaluate(f"slider.dispatchEvent(new Event('{event}', {{bubbles: true}}))")


def assert_quiet(tab: Tab, page: Page) -> None:
    """Checks that a page is as it should be, asks nobody else, and runs no code of names."""
    assert tab.complaints() == []
    others = [url for url in tab.requested() if not url.startswith((page.url, 'data:', 'blob:'))]
    assert len(tab.requested()) > 10 and others == []
    assert tab.evaluate('document.title') == page.config.stem
    assert (
        tab.evaluate("document.querySelectorAll('[onerror], .result script, img[src=x]').length")
        == 0
    )


@pytest.mark.parametrize('job', JOBS)
def test_page_in_a_browser(job: str, pages, browser: Browser, toy_data, tmp_path: Path) -> None:
    page = pages(job)
    before = len(page.forwards)
    file = tmp_path / '<img src=x onerror=alert(1)>{{1}}${2}.jpg'
    shutil.copy(next(toy_data.glob('data/toy/coco/val2017/*.jpg')), file)
    tab = browser.open(f'{page.url}/', width=390, height=844)
    tab.wait_for("document.querySelector('.nothing')")
    tab.choose_file(file)
    tab.wait_for("document.querySelector('.result a')")
    text = tab.text()
    assert file.name in text and page.config.stem in text
    if job == 'maskrcnn':
        counts = []
        for threshold in (0, 1, 0):
            move_slider(tab, threshold)
            number = 7 if threshold == 0 else 0
            tab.wait_for(f"document.querySelector('.summary b').innerText === '{number}'")
            counts.append(tab.evaluate("document.querySelectorAll('.stage .box').length"))
        assert counts == [7, 0, 7]
        assert tab.evaluate("document.querySelectorAll('.stage path').length") > 0
    names = tab.evaluate("[...document.querySelectorAll('td.name')].map(td => td.innerText)")
    assert {*names} & {*HOSTILE} and {*names} <= {*HOSTILE, 'five', 'six'}
    if job != 'imagenet':
        tab.wait_for("[...document.querySelectorAll('.stage img')].every(i => i.naturalWidth)")
    downloaded = tab.download('.result a', tmp_path)
    assert downloaded.name == 'predictions.json'
    content = json.loads(downloaded.read_text())
    assert len(content) == (7 if job == 'maskrcnn' else 1)
    assert len(page.forwards) == before + 1
    assert tab.evaluate('document.documentElement.scrollWidth') <= 390
    assert_quiet(tab, page)


def test_two_browsers_and_a_file_that_is_no_image(
    pages, browser: Browser, toy_data: Path, tmp_path: Path
) -> None:
    page, paths = pages('imagenet'), sorted(toy_data.glob('data/toy/coco/val2017/*.jpg'))
    tabs = [browser.open(f'{page.url}/') for _ in range(2)]
    for tab, path in zip(tabs, paths):
        tab.choose_file(path)
    for tab, path, other in zip(tabs, paths, paths[::-1]):
        tab.wait_for("document.querySelector('.result a')")
        assert path.name in tab.text() and other.name not in tab.text()
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'no image')
    tabs[0].choose_file(broken)
    message = tabs[0].wait_for("document.querySelector('[role=alert]')?.innerText")
    assert message == 'broken.png is not an image.'
    clear = "[...document.querySelectorAll('button')].find(b => /clear|remove/i.test(b.outerHTML))"
    tabs[0].evaluate(f'{clear}.click()')
    tabs[0].wait_for("document.querySelector('.nothing')")
    tabs[0].evaluate("document.querySelector('.gallery-item').click()")
    tabs[0].wait_for("document.querySelector('.result a')")
    assert paths[1].name in tabs[1].text()
    assert_quiet(tabs[1], page)


SCRIPT = """
import signal, tempfile
from mmhatnet_cli import main
tempfile.tempdir = None  # the process was forked from one that may have chosen it
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
main()
"""


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, -15)])
def test_the_end_leaves_nothing(number: int, status: int, toy_data: Path, tmp_path: Path) -> None:
    config, checkpoint = random_job('imagenet', tmp_path)
    script, folders = tmp_path / 'script.py', [tmp_path / name for name in ('home', 'tmp', 'cwd')]
    script.write_text(SCRIPT)
    for folder in folders:
        folder.mkdir()
    home, temporary, cwd = folders
    variables = dict(HOME=str(home), TMPDIR=str(temporary), MPLCONFIGDIR=str(tmp_path / 'mpl'))
    variables |= dict(XDG_CACHE_HOME='', GRADIO_SHARE='True', GRADIO_SERVER_NAME='0.0.0.0')
    words = ['demo', config, checkpoint, '--device', 'cpu', '--port', 0]
    log = tmp_path / 'log.txt'
    log.touch()
    running = Script(script, *words, log=log, cwd=cwd, **variables)
    try:
        while not (found := re.search(r'http://127.0.0.1:\d+/', log.read_text())):
            assert running.process.is_alive(), log.read_text()
            time.sleep(0.1)
        client = gradio_client.Client(found[0], verbose=False, download_files=str(tmp_path))
        image = next(toy_data.glob('data/toy/coco/val2017/*.jpg'))
        assert 'download=' in client.predict(image_file(image), 0, api_name='/predict')
        assert image.name in {path.name for path in temporary.rglob('*.jpg')}
        os.kill(running.process.pid, number)
        running.process.join(60)
    finally:
        running.process.kill()
    assert running.process.exitcode == status
    lines = log.read_text().splitlines()
    first, *rest = lines
    assert first == f'The demo is at {found[0]}'
    assert rest == ['Ctrl-C ends it.', *['Interrupted.'] * (number == signal.SIGINT)]
    assert [path for folder in folders for path in folder.rglob('*')] == []


def test_what_is_wrong_is_said_before_the_model_is_loaded(run_tool_captured, monkeypatch) -> None:
    config = Path(__file__).parents[1] / 'configs' / 'toy' / 'imagenet_hatnet_toy.py'
    with listen(port=0) as taken:
        port = taken.getsockname()[1]
        result = run_tool_captured('demo', config, 'no.pth', '--port', port)
    assert result.returncode == 1
    assert result.stderr.strip() == (
        f'--port {port} is in use on 127.0.0.1: name another one, or 0 for any that is free.'
    )
    monkeypatch.setattr('mmhatnet.demo.server.find_spec', lambda name: None)
    result = run_tool_captured('demo', config, 'no.pth')
    assert result.returncode == 1
    assert result.stderr.strip() == (
        'The demo needs Gradio, which is not installed: pip install "gradio>=6.31,<7"'
    )
