"""Locks on files, which the system ends with the process that holds them."""

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock_file(handle: int) -> bool:
    """Locks a file until this process closes it or ends. Its child processes do not hold the lock.

    Args:
        handle (int): A file that is open for writing.

    Returns:
        bool: Whether the file is free for this process.

    Raises:
        OSError: If the file system has no locks.
    """
    if fcntl is None:
        return True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # as POSIX systems report it
        return False
    return True
