"""Linear attention of all its layers, beside Attention and asked the same: it is blind to the context."""

from bisect import bisect_right
from collections.abc import Iterator
from math import inf

from mist.perf.base import Explained, Table
from mist.perf.tables.linear import Scan

Chunks = tuple[tuple[int, int], ...]


class Scanned:
    """Seconds over all linear-attention layers: every token updates a state of constant size."""

    uneven = False
    windowed = True  # what lies far back is not read

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._decode = Table(lambda sequences: scan.layers * scan.decode(sequences))
        self._alone = Table(lambda tokens: self._row(1.0, tokens))

    def decode(self, decodes: int, context: float, longest: int = 0, launched: int = 0) -> float:  # noqa: ARG002
        """One token of each of ``decodes`` sequences."""
        return self._decode[decodes]

    def stretch(
        self,
        decodes: int,
        context: float,  # noqa: ARG002
        longest: int = 0,  # noqa: ARG002
        launched: int = 0,  # noqa: ARG002
    ) -> tuple[float, float, float]:
        """``decode``, which no further step changes."""
        return self._decode[decodes], 0.0, inf

    def prompts(self, chunks: Chunks) -> float:
        """All prompt chunks of a step in one launch, together as equal ones of the same work would take.

        Tokens of one sequence wait for those before them, and sequences run side by side.
        """
        if len(chunks) == 1:
            return self._alone[chunks[0][0]]
        longest, together = self._together(chunks)
        return self._row(together, longest)

    def verification(self, decodes: int, context: float, drafted: int, longest: int = 0) -> float:  # noqa: ARG002
        """Sequences that verify drafts: a short prompt each."""
        return self._row(float(decodes), -(-drafted // decodes) + 1)

    def explain(
        self,
        decodes: int,
        context: float,
        chunks: Chunks,
        *,
        drafted: int,
        longest: int,  # noqa: ARG002
        launched: int,  # noqa: ARG002
    ) -> Iterator[Explained]:
        """The parts of a step, and how they are known."""
        if chunks:
            most, together = self._together(chunks)
            yield Explained(
                "linear attention of prompts", self.prompts(chunks), self._scan.prompt.source_at(together, most)
            )
        if decodes:
            time = self.verification(decodes, context, drafted) if drafted else self._decode[decodes]
            yield Explained("linear attention", time, self._scan.decode.source_at(decodes))

    def _together(self, chunks: Chunks) -> tuple[int, float]:
        """The longest chunk, and how many of it have as many tokens."""
        longest = max(tokens for tokens, _ in chunks)
        return longest, sum(tokens for tokens, _ in chunks) / longest

    def _row(self, together: float, tokens: int) -> float:
        lengths, row = self._scan.prompt.lengths, self._scan.prompt.row(together)
        at = min(max(bisect_right(lengths, tokens) - 1, 0), len(lengths) - 2)
        rise = (row[at + 1] - row[at]) / (lengths[at + 1] - lengths[at])
        return self._scan.layers * (row[at] + rise * (tokens - lengths[at]))
