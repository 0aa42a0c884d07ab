"""Drives headless Chromium by its DevTools protocol."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
OPTIONS = (
    *('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'),
    *('--disable-background-networking', '--disable-component-update', '--disable-sync'),
    '--remote-debugging-pipe',
)
# Chromium reads commands from the file descriptor 3 and writes answers to 4.
LAUNCH = """
import fcntl, os, sys
# Copies from 5 on, as the originals may be 3 and 4.
read, write = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 5) for fd in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 60  # seconds until a browser that does not answer is an error


class Browser:
    """A browser process. To be used as a context.

    Args:
        profile (Path): The folder of its profile.
    """

    def __init__(self, profile: Path) -> None:
        self.profile, self.number, self.rest = profile, 0, b''
        self.tabs: dict[str, Tab] = {}

    def __enter__(self) -> 'Browser':
        theirs_in, self.write = os.pipe()
        self.read, theirs_out = os.pipe()
        command = [sys.executable, '-c', LAUNCH, str(theirs_in), str(theirs_out), CHROMIUM]
        self.process = subprocess.Popen(
            [*command, *OPTIONS, f'--user-data-dir={self.profile}'],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.call('Browser.close')
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.read)
            os.close(self.write)

    def call(self, method: str, session: str | None = None, **params: object) -> dict:
        """Sends a command and returns its result."""
        self.number += 1
        message = dict(id=self.number, method=method, params=params)
        if session:
            message['sessionId'] = session
        rest = json.dumps(message).encode() + b'\0'
        while rest:
            rest = rest[os.write(self.write, rest) :]
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._receive(deadline)
            if answer.get('id') == self.number:
                assert 'error' not in answer, (method, answer['error'])
                return answer['result']

    def listen(self, seconds: float) -> None:
        """Receives events for a moment."""
        with suppress(TimeoutError):
            self._receive(time.monotonic() + seconds)

    def _receive(self, deadline: float) -> dict:
        while b'\0' not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise TimeoutError('Chromium does not answer')
            chunk = os.read(self.read, 2**20)
            if not chunk:
                raise ConnectionError('Chromium has ended')
            self.rest += chunk
        text, _, self.rest = self.rest.partition(b'\0')
        message = json.loads(text)
        if 'method' in message and (tab := self.tabs.get(message.get('sessionId'))):
            tab.events.append(message)
        return message

    def open(self, url: str, width: int = 1280, height: int = 900, **settings: object) -> 'Tab':
        """Opens a page as another user would, without what other tabs have stored.

        Args:
            url (str): The address.
            width (int): The width of the window in pixels.
            height (int): Its height.
            settings: More of Emulation.setDeviceMetricsOverride.
        """
        context = self.call('Target.createBrowserContext')['browserContextId']
        target = self.call('Target.createTarget', url='about:blank', browserContextId=context)
        session = self.call('Target.attachToTarget', targetId=target['targetId'], flatten=True)
        tab = Tab(self, session['sessionId'], context)
        for domain in ('Page', 'Runtime', 'Network', 'Log', 'DOM'):
            tab.call(f'{domain}.enable')
        screen = dict(width=width, height=height, deviceScaleFactor=1, mobile=False) | settings
        tab.call('Emulation.setDeviceMetricsOverride', **screen)
        tab.call('Page.navigate', url=url)
        return tab


class Tab:
    """A page in a browser.

    Attributes:
        events (list[dict]): The events so far.
    """

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self.browser, self.session, self.context, self.events = browser, session, context, []
        browser.tabs[session] = self

    def call(self, method: str, **params: object) -> dict:
        return self.browser.call(method, self.session, **params)

    def evaluate(self, script: str) -> object:
        """Returns the value of an expression."""
        answer = self.call('Runtime.evaluate', expression=script, returnByValue=True)
        assert 'exceptionDetails' not in answer, answer
        return answer['result'].get('value')

    def wait_for(self, condition: str) -> object:
        """Returns the value of an expression as soon as it is true."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            # An element has no value outside of its page.
            if value := self.evaluate(f'(value => value instanceof Node || value)({condition})'):
                return value
            self.browser.listen(0.05)
        raise TimeoutError(f'{condition} did not become true: {self.text()}')

    def text(self) -> str:
        return self.evaluate('document.body.innerText')

    def choose_file(self, path: Path, selector: str = 'input[type=file]') -> None:
        """Sets the file of an input element."""
        element = f'document.querySelector({selector!r})'
        self.wait_for(f'{element} !== null')
        node = self.call('Runtime.evaluate', expression=element)['result']['objectId']
        self.call('DOM.setFileInputFiles', objectId=node, files=[str(path)])

    def download(self, selector: str, folder: Path) -> Path:
        """Clicks a link and returns the file that it downloads."""
        self.browser.call(
            'Browser.setDownloadBehavior',
            **dict(behavior='allow', browserContextId=self.context, downloadPath=str(folder)),
        )
        before = {*folder.iterdir()}
        self.evaluate(f'document.querySelector({selector!r}).click()')
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.browser.listen(0.05)
            for path in {*folder.iterdir()} - before:
                if path.suffix not in ('.crdownload', '.tmp') and path.stat().st_size:
                    return path
        raise TimeoutError(f'{selector} downloads nothing')

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call('Page.captureScreenshot')['data']))

    def requested(self) -> list[str]:
        """Returns the addresses that the page has asked for."""
        return [
            event['params']['request']['url']
            for event in self.events
            if event['method'] == 'Network.requestWillBeSent'
        ]

    def complaints(self) -> list[str]:
        """Returns the errors of the console, and what the browser itself warns of."""
        found = []
        for event in self.events:
            params = event['params']
            if event['method'] == 'Log.entryAdded' and params['entry']['level'] != 'verbose':
                found.append(f'{params["entry"]["text"]} {params["entry"].get("url")}')
            elif event['method'] == 'Runtime.exceptionThrown':
                found.append(str(params['exceptionDetails']))
            elif event['method'] == 'Runtime.consoleAPICalled' and params['type'] == 'error':
                found.append(str(params['args']))
        return found
