"""Scored cells of the stages: measured, predicted, and which of them were calibrated on."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

COLUMNS = ["set", "slice", "cell", "measured", "predicted", "unit", "split"]


class Cell(NamedTuple):
    """One measured figure and its prediction; None where the model does not cover it."""

    slice: str
    cell: str
    measured: float
    predicted: float | None
    unit: str
    split: str  # calibration or held-out


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a measured table, by column."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def frame(name: str, cells: Iterable[Cell]) -> pd.DataFrame:
    """The cells of set ``name``; those without a prediction are *not modelled*, whatever their split was to be."""
    listed = [
        [name, c.slice, c.cell, c.measured, c.predicted, c.unit, c.split if c.predicted is not None else "not modelled"]
        for c in cells
    ]
    return pd.DataFrame(listed, columns=COLUMNS).astype({"measured": float, "predicted": float})


def errors(scored: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Per group of ``by``: cells, mean and median absolute and mean signed relative error, rank correlation.

    Cells without a prediction are left out.
    """
    covered = scored.dropna(subset=["predicted"])
    relative = covered.predicted / covered.measured - 1
    table = []
    for key, part in covered.assign(error=relative).groupby(list(by)):
        rank = part.measured.rank().corr(part.predicted.rank()) if len(part) > 2 else float("nan")
        size = part.error.abs()
        table.append([*key, len(part), size.mean(), size.median(), part.error.mean(), rank])
    return pd.DataFrame(table, columns=[*by, "n", "mape", "median", "bias", "rank"])
