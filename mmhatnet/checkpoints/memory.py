"""How much memory there is, and how much an allocation needed that failed."""

import math
import re
from pathlib import Path

import torch

SYSTEM = Path('/proc/meminfo')
CONTAINER = (
    Path('/sys/fs/cgroup/memory.max'),
    Path('/sys/fs/cgroup/memory/memory.limit_in_bytes'),
)


def available_memory() -> float:
    """Returns the bytes that the system or the container still has, infinite if unknown."""
    try:
        found = re.findall(r'(?:MemAvailable|SwapFree):\s*(\d+) kB', SYSTEM.read_text())
    except OSError:
        return math.inf
    limits = [sum(map(int, found)) * 1024 if found else math.inf]
    for path in CONTAINER:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return min(limits)


def size_text(size: float) -> str:
    """Returns a number of bytes with a unit."""
    power = min(len(str(round(size))) - 1, 14) // 3
    return f'{size / 1000**power:.3g} {("bytes", "kB", "MB", "GB", "TB")[power]}'


def memory_that_lacks(error: Exception) -> str:
    """Says what an allocation needed that failed; '' for other errors."""
    text = str(error)
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and (
        "can't allocate memory" not in text
    ):
        return ''
    found = re.search(r'(?i)tried to allocate ([\d.]+ \w+)', text)
    if not found:
        return text.partition('\n')[0] or 'an allocation failed'
    number, unit = found[1].split()
    return f'{size_text(int(number)) if unit == "bytes" else found[1]} could not be allocated'
