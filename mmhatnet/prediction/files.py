"""Files that are complete or absent, whenever a job ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmhatnet.errors import DataError


@contextmanager
def names_the_file(path: Path) -> Iterator[None]:
    """Turns an error of the system, such as a full disk, into one that names the file.

    Raises:
        DataError: If the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f'{path} cannot be written ({error.strerror or error}): free space or correct the '
            'permissions, and start the same command again, which goes on.'
        ) from error


@contextmanager
def complete_or_absent(path: Path, place: Path) -> Iterator[Path]:
    """Gives a file another name until it is complete.

    Args:
        path (Path): The file. Its folder is created.
        place (Path): A file beside which it is written. The suffix is that of ``path``.

    Yields:
        Path: The name to write to.

    Raises:
        DataError: If the file cannot be written.
    """
    partial = place.with_name(f'{place.name}{path.suffix}')
    try:
        with names_the_file(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
