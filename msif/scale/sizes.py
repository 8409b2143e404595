"""Sizes in bytes, and durations, as people write and read them."""

import re

UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


def parse_bytes(size: str | float, what: str = "memory") -> int:
    """Bytes of "16GiB", "500 MB" or a number.

    Raises ValueError, naming `what` it is of, for anything else, and for nothing at all."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?I?)B?\s*", str(size).upper())
    if not found or found[2] not in UNITS or not (number := float(found[1]) * UNITS[found[2]]) > 0:
        raise ValueError(
            f"{what} is {size!r}: expected a size such as '16GiB', '500MB' or a number of bytes"
        )
    return int(number)


def human(size: float) -> str:
    """Bytes in a readable unit: "512 MiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def duration(seconds: float) -> str:
    """Seconds in a readable unit: "4.2 s", "12 min", "1.5 h"."""
    for unit, least in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * least:
            return f"{seconds / least:.2g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
