"""Times, sizes and counts as people write them. Rounded: for reading, not for reckoning."""

UNITS = ("B", "kB", "MB", "GB", "TB")


def duration(seconds: float) -> str:
    """Return a time with two digits that matter.

    >>> [duration(s) for s in (0.004, 2, 42, 200, 5400, 40000, 400000)]
    ['4 ms', '2.0 s', '42 s', '3 min 20 s', '1 h 30 min', '11 h', '4.6 days']
    """
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 600:
        return _two(round(seconds / 10) * 10, 60, "min", "s")
    minutes = seconds / 60
    if minutes < 89.5:
        return f"{minutes:.0f} min"
    if minutes < 600:
        return _two(round(minutes / 10) * 10, 60, "h", "min")
    hours = minutes / 60
    if hours < 47.5:
        return f"{hours:.0f} h"
    return f"{hours / 24:.1f} days" if hours < 239 else f"{hours / 24:.0f} days"


def _two(value: int, size: int, large: str, small: str) -> str:
    whole, rest = divmod(value, size)
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"


def data_size(amount: float) -> str:
    """Return bytes in decimal units, as disks are sold and `df -H` counts.

    >>> [data_size(n) for n in (900, 12_345, 1_234_567, 45_600_000_000)]
    ['900 B', '12 kB', '1.2 MB', '46 GB']
    """
    unit = 0
    while amount >= 999.5 and unit < len(UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.1f} {UNITS[unit]}" if 0 < amount < 9.95 else f"{amount:.0f} {UNITS[unit]}"


def count(number: float) -> str:
    """Return a count; a large one in millions.

    >>> [count(n) for n in (0, 4800, 119568, 2_345_678, 8_030_000_000)]
    ['0', '4,800', '119,568', '2.3 million', '8.0 billion']
    """
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.1f} {word}"
    return f"{number:,.0f}"
