"""What MMEngine's logger tells users of commands without a log file."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import MMLogger


@contextmanager
def messages_from(level: int) -> Iterator[None]:
    """Drops messages of MMEngine's logger below a level, such as how each weight begins.

    Args:
        level (int): The level of the least messages that are shown, as ``logging.WARNING``.
    """
    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
