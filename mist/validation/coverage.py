"""What became of every row of a file of measurements: predicted, left out, or not predicted and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mist.validation.replay import Answered, Source


@dataclass(frozen=True)
class Coverage:
    """One file as one set reads it, with one choice of overrides.

    ``rows`` are those of the file, ``left_out`` those that the set does not score, by reason. The others are
    ``cells``, single rows or groups of them; ``unmeasured`` ones have no figure to compare, ``predicted`` ones a
    prediction of every figure they have, and all that are left are counted in ``problems``, by reason. ``notes`` say
    what stands for something that conf/ does not have.
    """

    name: str  # of the set
    file: str
    variant: str
    rows: int
    left_out: Mapping[str, int]
    cells: int
    unmeasured: int
    predicted: int
    problems: Mapping[str, int]
    notes: Mapping[str, int]

    @property
    def lines(self) -> list[str]:
        """A sentence for everything that is not simply predicted."""
        kinds = (
            ("left out", "rows", self.rows, self.left_out),
            ("not compared", "cells", self.cells, {"no figure was measured": self.unmeasured}),
            ("not predicted", "cells", self.cells, self.problems),
            ("note", "cells", self.cells, self.notes),
        )
        return [
            f"{self.name}, {self.file}: {what}: {why} ({count} of {of} {unit})"
            for what, unit, of, reasons in kinds
            for why, count in reasons.items()
            if count
        ]


def coverage(sources: Sequence[Source], answered: Sequence[Answered]) -> list[Coverage]:
    """Of every file with every variant."""
    found: list[Coverage] = []
    for source in sources:
        own = [one for one in answered if one.job.file == source.file and one.job.name == source.name]
        variants = list(dict.fromkeys(one.job.variant for one in own)) or [""]
        found += [_of(source, variant, [one for one in own if one.job.variant == variant]) for variant in variants]
    return found


def _of(source: Source, variant: str, answered: Sequence[Answered]) -> Coverage:
    measured = [one for one in answered if one.lines]
    missing = [one for one in measured if any(line.predicted is None for line in one.lines)]
    problems = Counter(next(line.problem for line in one.lines if line.predicted is None) for one in missing)
    notes = Counter(one.job.cell.note for one in measured if one.job.cell.note and one not in missing)
    unmeasured, predicted = len(answered) - len(measured), len(measured) - len(missing)
    return Coverage(
        source.name, source.file.name, variant, source.rows, source.left_out,
        len(answered), unmeasured, predicted, dict(problems), dict(notes),
    )  # fmt: skip
