"""Downloading a large file in as many attempts as it takes."""

from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.progress import DownloadColumn, Progress, TransferSpeedColumn


def download(url: str, path: Path) -> None:
    """Downloads a file, showing progress.

    Until it is complete it is at ``path`` with '.part' appended. The next attempt goes on from
    there, if the server can do that and confirms that the file is still the same, and starts again
    otherwise.

    Raises:
        ConnectionError: If the server cannot be reached, refuses, or breaks off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, note = (path.with_name(path.name + suffix) for suffix in ('.part', '.version'))
    known_version = note.read_text() if part.is_file() and note.is_file() else ''
    done = part.stat().st_size if known_version else 0
    headers = {'Range': f'bytes={done}-', 'If-Range': known_version} if done else {}
    try:
        response = urlopen(Request(url, headers=headers), timeout=30)
    except HTTPError as error:
        if error.code == 416 and done:  # what we have is not the beginning of what is there
            part.unlink()
            return download(url, path)
        raise ConnectionError(f'{url}: the server answers {error.code} {error.reason}.') from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, 'reason', error)
        raise ConnectionError(f'{url} cannot be reached ({reason}).') from error

    with response:
        version = _version(response)
        if response.status != 206:
            done = 0
        elif version != known_version or not _starts_at(response, done):
            part.unlink()
            return download(url, path)
        note.write_text(version)
        length = response.headers.get('Content-Length')
        total = done + int(length) if length else None
        _save(response, part, done, total)
    size = part.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(
            f'The download of {url} broke off after {size} of {total} bytes: give the same command '
            'again to go on.'
        )
    part.replace(path)
    note.unlink()


def _version(response: HTTPResponse) -> str:
    """What identifies the content of the file for If-Range, or '' if the server names nothing."""
    tag = response.headers.get('ETag', '')
    return tag if tag and not tag.startswith('W/') else response.headers.get('Last-Modified', '')


def _starts_at(response: HTTPResponse, position: int) -> bool:
    return response.headers.get('Content-Range', '').startswith(f'bytes {position}-')


def _save(response: HTTPResponse, path: Path, done: int, total: int | None) -> None:
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with open(path, 'ab' if done else 'wb') as file, Progress(*columns) as progress:
        task = progress.add_task(path.stem, total=total, completed=done)
        while True:
            try:
                chunk = response.read(1 << 16)
            except (OSError, HTTPException):
                return  # what is missing shows in the size
            if not chunk:
                return
            file.write(chunk)
            progress.advance(task, len(chunk))
