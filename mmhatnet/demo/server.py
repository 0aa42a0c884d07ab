"""Serves the page of the demo, to this machine alone unless asked otherwise."""

import errno
import ipaddress
import itertools
import mimetypes
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmhatnet.config_walk import build_unread, datasets_of
from mmhatnet.demo.predictions import Predictor
from mmhatnet.errors import DemoError

GRADIO, HOST, PORT = 'gradio>=6.31,<7', '127.0.0.1', 7860
LARGEST_FILE = '200mb'
# Examples for the page, and the folders in which they are looked for.
EXAMPLES, MOST_FOLDERS = 4, 100
FOR_BROWSERS = ('.jpg', '.jpeg', '.png', '.webp')
SCOPES = dict(mmdet='detector', mmseg='segmentor', mmpretrain='classifier')
# What browsers load for the page: nothing from elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
FROM_ELSEWHERE = re.compile(
    rb'<script\b[^>]*\bsrc="(?:https?:)?//[^>]*>\s*</script>|'
    rb'<link\b[^>]*\bhref="(?:https?:)?//[^>]*>'
)
Message = MutableMapping[str, Any]


def require_gradio() -> None:
    """Checks that Gradio is installed.

    Raises:
        DemoError: If not.
    """
    if not find_spec('gradio'):
        raise DemoError(f'The demo needs Gradio, which is not installed: pip install "{GRADIO}"')


@contextmanager
def listen(host: str = HOST, port: int = PORT) -> Iterator[socket.socket]:
    """Takes a port, so that nothing is loaded if it is in use.

    Args:
        host (str): The name or address to listen on. Defaults to the loopback.
        port (int): The port, or 0 for any that is free. Defaults to 7860.

    Yields:
        socket.socket: The socket, which is closed at the end.

    Raises:
        DemoError: If that is not possible.
    """
    if not 0 <= port < 2**16:  # the system would take the rest of a division
        raise DemoError(f'--port {port} must be from 0, for any that is free, to 65535.')
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.create_server(address, family=family)
    except socket.gaierror as error:
        raise DemoError(
            f'--host {host} is not known ({error.strerror}): name an address of this machine, or '
            'leave it out.'
        ) from error
    except OSError as error:
        raise DemoError(_why_not(error, host, port)) from error
    with sock:
        yield sock


def _why_not(error: OSError, host: str, port: int) -> str:
    code = error.errno
    if code == errno.EADDRINUSE:
        return f'--port {port} is in use on {host}: name another one, or 0 for any that is free.'
    if code == errno.EACCES:
        return f'--port {port} is not allowed to this user: name one from 1024 to 65535.'
    if code == errno.EADDRNOTAVAIL:
        return f'--host {host} is not an address of this machine: name one, or leave it out.'
    return f'--host {host} --port {port} cannot be listened on ({error}): name others.'


def serve(
    inferencer: object,
    cfg: Config,
    checkpoint: str,
    sock: socket.socket,
    score_thr: float = 0.3,
) -> None:
    """Serves the page until it is interrupted. Files are in a temporary folder until then.

    Args:
        inferencer (object): The result of ``build_inferencer``.
        cfg (Config): The config of the job.
        checkpoint (str): The checkpoint, for the page.
        sock (socket.socket): The result of ``listen``.
        score_thr (float): The minimum score of boxes at first. Defaults to 0.3.

    Raises:
        KeyboardInterrupt: When it is interrupted.
    """
    import uvicorn

    with (
        _cleaned_up_at_sigterm(),
        application(inferencer, cfg, checkpoint, is_local(sock), score_thr) as app,
    ):
        # Browsers keep connections open, for which the server would wait.
        settings = uvicorn.Config(app, log_level='critical', timeout_graceful_shutdown=1)
        print(f'{describe(sock)}\nCtrl-C ends it.', flush=True)
        uvicorn.Server(settings).run(sockets=[sock])


@contextmanager
def application(
    inferencer: object, cfg: Config, checkpoint: str, local: bool, score_thr: float
) -> Iterator['OwnHost']:
    """Builds the application, which may be used until the context ends.

    Args:
        inferencer (object): The result of ``build_inferencer``.
        cfg (Config): The config of the job.
        checkpoint (str): The checkpoint, for the page.
        local (bool): Whether this machine alone may reach it.
        score_thr (float): The minimum score of boxes at first.

    Yields:
        OwnHost: The application, for any ASGI server.
    """
    with (
        TemporaryDirectory(prefix='mmhatnet-demo-') as folder,
        # Gradio reads them whenever it takes a file.
        _environment(GRADIO_ANALYTICS_ENABLED='False', GRADIO_TEMP_DIR=f'{folder}/gradio'),
    ):
        import fastapi
        import gradio as gr

        from mmhatnet.demo.page import CSS, build_page, theme

        device = next(inferencer.model.parameters()).device
        subtitle = (
            f'{SCOPES[cfg.default_scope]} of {len(inferencer.classes or ())} classes, '
            f'{Path(checkpoint).name}, on {device}'
        )
        predictor = Predictor(inferencer, cfg.default_scope, Path(folder))
        examples = copied(find_examples(cfg), Path(folder, 'gradio', 'examples'))
        page = build_page(predictor, Path(cfg.filename).stem, subtitle, score_thr, examples)

        app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

        @app.get('/results/{key}/{name}')
        def download(key: str, name: str, threshold: float = 0) -> fastapi.Response:
            prediction = predictor[key]
            found = prediction.files(threshold) | prediction.images() if prediction else {}
            if name not in found:
                raise fastapi.HTTPException(404)
            headers = {'Cache-Control': 'private, max-age=3600'}
            media_type, _ = mimetypes.guess_type(name)
            return fastapi.Response(found[name], headers=headers, media_type=media_type)

        gr.mount_gradio_app(
            *(app, page, '/'),
            theme=theme(),
            css=CSS,
            allowed_paths=[],
            max_file_size=LARGEST_FILE,
            show_error=False,
            footer_links=[],
            # The environment could turn these on.
            **dict(ssr_mode=False, mcp_server=False, enable_monitoring=False, run_history=False),
        )
        page.has_launched = True  # else Gradio reads files without a check of their paths
        yield OwnHost(app, local)


def find_examples(cfg: Config) -> list[str]:
    """Returns a few images of the test data, in turn from several folders if there are some."""
    init_default_scope(cfg.default_scope)
    folders: list[list[str]] = []
    for settings in datasets_of(cfg, 'test'):
        with suppress(Exception):  # the data need not be there
            dataset = build_unread(settings)
            prefixes = (dataset.data_prefix.get(key) for key in ('img', 'img_path'))
            root = next(filter(None, prefixes), dataset.data_root)
            for top, below, names in itertools.islice(os.walk(root), MOST_FOLDERS):
                below.sort()
                images = sorted(name for name in names if name.lower().endswith(FOR_BROWSERS))
                folders.append([os.path.join(top, name) for name in images[:EXAMPLES]])
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*filter(None, folders)))
    return list(itertools.islice(filter(None, in_turn), EXAMPLES))


def copied(paths: list[str], folder: Path) -> list[str]:
    """Copies images to a folder, as no other files may be shown, and returns their paths."""
    targets = [folder / str(number) / Path(path).name for number, path in enumerate(paths)]
    for path, target in zip(paths, targets):
        target.parent.mkdir(parents=True)
        shutil.copyfile(path, target)
    return [*map(str, targets)]


def is_local(sock: socket.socket) -> bool:
    """Returns whether nothing but this machine reaches a socket."""
    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback


def describe(sock: socket.socket) -> str:
    """Returns the address of the page, and what it means to listen there."""
    host, port = sock.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    address = f'http://[{host}]:{port}/' if ':' in host else f'http://{host}:{port}/'
    if is_local(sock):
        return f'The demo is at {address}'
    return (
        f'The demo is at {address}\nIt is open to everybody who reaches this machine: there is no '
        'password and no encryption, and the examples are images of your data.'
    )


class OwnHost:
    """Lets a page load nothing from other hosts, and other pages nothing from it.

    A page of the internet may reach the loopback by a name of its own, but then with that name in
    the header ``Host``.

    Args:
        app (object): The application, which is wrapped.
        local (bool): Whether this machine alone may reach it.
    """

    def __init__(self, app: Any, local: bool) -> None:
        self.app, self.local = app, local

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
        elif self.local and not _names_loopback(dict(scope['headers']).get(b'host', b'')):
            await send({'type': 'http.response.start', 'status': 421, 'headers': []})
            await send({'type': 'http.response.body', 'body': b'Unknown host'})
        else:
            await self.app(scope, receive, _Answer(send))


class _Answer:
    """Sends an answer with the policy, and a page without what is from elsewhere."""

    def __init__(self, send: Any) -> None:
        self.send, self.start, self.body = send, None, b''

    async def __call__(self, message: Message) -> None:
        if message['type'] == 'http.response.start':
            headers = dict(message['headers'])
            headers[b'content-security-policy'] = POLICY.encode()
            headers[b'x-content-type-options'] = b'nosniff'
            message = {**message, 'headers': list(headers.items())}
            if headers.get(b'content-type', b'').startswith(b'text/html'):
                self.start = message
                return
        elif self.start:
            self.body += message.get('body', b'')
            if message.get('more_body'):
                return
            body = FROM_ELSEWHERE.sub(b'', self.body)
            headers = dict(self.start['headers']) | {b'content-length': str(len(body)).encode()}
            await self.send({**self.start, 'headers': list(headers.items())})
            message = {'type': 'http.response.body', 'body': body}
        await self.send(message)


def _names_loopback(host: bytes) -> bool:
    try:
        name = urlsplit(f'//{host.decode()}').hostname or ''
        return name == 'localhost' or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _cleaned_up_at_sigterm() -> Iterator[None]:
    """Lets contexts end before SIGTERM ends this process, which would leave temporary files."""

    def end(*_: object) -> None:
        raise _TerminatedError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        with suppress(_TerminatedError):
            yield
            return
    finally:
        signal.signal(signal.SIGTERM, before)
    signal.raise_signal(signal.SIGTERM)


class _TerminatedError(BaseException):
    """SIGTERM was sent."""
