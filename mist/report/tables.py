"""What the operator tables cover, and how well experts of an unseen shape are told, as a person reads it."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mist.validation.tables_coverage import Cell, Coverage
from mist.validation.tables_left_out import LeftOuts

LEGEND = (
    "MAPE over every count of tokens and cut of every shape, told from the shapes of another hidden size or width; "
    "roofline: the law of the same kernels at the shares of the peaks that perf=roofline takes"
)


def coverage(answer: Coverage) -> RenderableType:
    """Counts by device and kernels; then what is transferred and what is refused, with whom it concerns."""
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("hardware", "kernels"):
        grid.add_column(name)
    for name in ("deployments", "timed", "transferred", "refused"):
        grid.add_column(name, justify="right")
    cells: dict[tuple[str, str], list[Cell]] = {}
    for cell in answer.cells:
        cells.setdefault((cell.hardware, cell.kernels), []).append(cell)
    for (hardware, kernels), own in cells.items():
        counts = Counter(_standing(cell) for cell in own)
        figures = [len(own), counts["timed"], counts["transferred"], counts["refused"]]
        grid.add_row(hardware, kernels, *map(str, figures))
    return Group(grid, *_lines("transferred", answer.cells), *_lines("refused", answer.cells))


def left_out(answer: LeftOuts) -> RenderableType:
    """One row a device, engine and dtype."""
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("hardware", "kernels", "weights"):
        grid.add_column(name)
    for name in ("shapes", "timings", "MAPE", "median", "bias", "roofline", "worst shape"):
        grid.add_column(name, justify="right")
    grid.add_column("")
    for row in answer.rows:
        figures = [f"{share:.1%}" for share in (row.mape, row.median)] + [f"{row.bias:+.1%}"]
        figures += [f"{share:.1%}" for share in (row.roofline, row.worst)]
        named = (row.hardware, row.kernels, row.dtype, str(row.shapes), str(row.timings))
        grid.add_row(*named, *figures, row.worst_shape)
    return Group(grid, Text(f"{LEGEND}.", "dim"))


def _standing(cell: Cell) -> str:
    return "refused" if cell.refused else "transferred" if cell.transferred else "timed"


def _lines(standing: str, cells: Sequence[Cell]) -> list[Text]:
    """One line for each reason: the deployments of which it holds."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if _standing(cell) == standing:
            degree = f" x {cell.devices}" if cell.devices > 1 else ""
            deployment = f"{cell.model} {cell.weights} on {cell.hardware}{degree} ({cell.kernels})"
            reasons.setdefault(cell.refused or " and ".join(cell.transferred), []).append(deployment)
    return [Text(f"{standing}: {reason}: {', '.join(found)}") for reason, found in reasons.items()]
