"""Which cells are kept from the fit."""

from collections.abc import Sequence

from mist.calibration.cells import Measured
from mist.errors import InputError

OPTION = "--hold-out"


def held_out(cells: Sequence[Measured], told: str | None) -> list[bool]:
    """Per cell: ``column=value|value`` holds out cells with one of these values, a number every so-manieth cell.

    Columns are the file's own, or what the harness calls them. Raises InputError where no or every cell would be.
    """
    if told is None:
        return [False] * len(cells)
    column, equals, values = told.partition("=")
    held = _chosen(cells, column.strip(), values.split("|")) if equals else _every(cells, told)
    usable = [is_held for cell, is_held in zip(cells, held, strict=True) if not cell.problem]
    if not any(usable) or all(usable):
        raise InputError(
            OPTION, told, f"holds out {sum(usable)} of {len(usable)} cells: some must be left on each side"
        )
    return held


def _every(cells: Sequence[Measured], told: str) -> list[bool]:
    if not told.isdecimal() or int(told) < 2:
        raise InputError(OPTION, told, "column=value, or a number above 1 for every so-manieth cell")
    return [number % int(told) == 0 for number in range(1, len(cells) + 1)]


def _chosen(cells: Sequence[Measured], column: str, values: Sequence[str]) -> list[bool]:
    known = {name: None for cell in cells for name in ("file", *cell.facts)}
    if column not in known:
        raise InputError(OPTION, column, "no such column", known)
    found = [{"file": cell.file, **cell.facts}.get(column) for cell in cells]
    wanted = {_plain(value) for value in values}
    if not wanted <= {_plain(value) for value in found}:
        there = sorted({_plain(value) for value in found if value is not None}, key=lambda v: (len(v), v))
        raise InputError(OPTION, f"{column}={'|'.join(values)}", "no cell has that value", there[:12])
    return [_plain(value) in wanted for value in found]


def _plain(value: object) -> str:
    """A number however it is written, text as it is."""
    try:
        return f"{float(str(value)):g}"
    except ValueError:
        return str(value).strip()
