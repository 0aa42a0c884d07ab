"""The errors that the package raises about what a user gave it.

Each message names the problem, the value and the way to fix it. The library raises these errors;
only the command line turns them into an exit.
"""


class MMHATNetError(ValueError):
    """Base class of the errors of this package."""


class ConfigError(MMHATNetError):
    """A config or one of its settings cannot be used."""


class DataError(MMHATNetError):
    """The data of a job are missing or wrong."""


class ImageError(DataError):
    """An image or a video cannot be predicted. Others of the job can."""


class CheckpointError(MMHATNetError):
    """A checkpoint cannot be used."""


class ExportError(MMHATNetError):
    """A model cannot be exported."""


class DemoError(MMHATNetError):
    """The demo cannot be served."""


def printable(text: str) -> str:
    """Escapes what terminals cannot show, in a text that was not written here."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)
