"""How numbers are spelled in tables and beside pictures: in both the same."""

from __future__ import annotations

from rich.filesize import decimal


def percent(share: float | None) -> str:
    """With two digits behind the point; small shares with as many as tell something."""
    if share is None:
        return "-"
    return f"{share:.2%}" if share == 0 or share >= 0.0001 else f"{share * 100:.2g}%"


def real(value: float | None) -> str:
    """With four significant digits."""
    return "-" if value is None else f"{value:.4g}"


def whole(count: int) -> str:
    """With commas between thousands."""
    return f"{count:,}"


def size(count: int) -> str:
    """Bytes, kB, MB and so on."""
    return decimal(count)
