"""Attention of the layers of one kind, out of its two grids."""

from bisect import bisect_right
from collections.abc import Iterator
from math import ceil, floor, inf, sqrt

from mist.perf.base import Explained
from mist.perf.tables.operators import Layers

Chunks = tuple[tuple[int, int], ...]
SIDE_BY_SIDE = (
    128,
    512,
)  # tokens of a lone prompt whose tiles of queries all run at once: longer ones only pass over more


class Attention:
    """Seconds over all layers of the kind."""

    def __init__(self, layers: Layers) -> None:
        self._layers, self._count, self._window = layers, layers.layers, layers.window
        self.layers, self.windowed = layers.layers, layers.window > 0
        self._lengths, self._prompt_lengths = layers.decode.lengths, layers.prompt.lengths
        self._last = len(self._lengths) - 2  # interval
        self.uneven = layers.uneven
        self._rows: dict[tuple[int, int], tuple[float, ...]] = {}
        self._prompt_rows: dict[int, tuple[float, ...]] = {}
        self._whole: dict[int, float] = {}  # s, of prompts alone by their tokens
        longest = layers.prompt.lengths[-2]
        self._pair = layers.prompt.row(1)[-2] / self._pairs(int(longest), 0)  # s per query-key pair at full speed
        self._pass = self._one_pass() if layers.prompt.whole else (0.0, 0.0)

    def decode(self, decodes: int, context: float, longest: float = 0, launched: int = 0) -> float:
        """One token of each of ``decodes`` sequences, which hold ``context`` tokens together.

        A kernel that splits every cache into as many parts is done when the ``longest`` (0: not known) is. Where
        multiprocessors take whole sequences in turn, the busiest reads more than its share as the sum of so many
        unequal ones strays from its mean: by the square root of their number. ``launched`` is the batch of the CUDA
        graph that is replayed (0: none is).
        """
        return self.stretch(decodes, context, longest, launched)[0]

    def stretch(
        self, decodes: int, context: float, longest: float = 0, launched: int = 0
    ) -> tuple[float, float, float]:
        """``decode``, seconds that each further step adds, and the steps for which it is that many."""
        row, lengths = self._rows.get((decodes, launched)) or self._row(decodes, launched), self._lengths
        if longest and self.uneven:
            context += (decodes * longest - context) / sqrt(self._turns(decodes))
        tokens = context + decodes
        seen = tokens / decodes
        at = bisect_right(lengths, seen) - 1
        at = 0 if at < 0 else self._last if at > self._last else at
        low, high = lengths[at], lengths[at + 1]
        rise = row[at + 1] - row[at]
        if seen < low:  # below the shortest that was timed
            return self._count * row[at], 0.0, floor(low - seen) + 1
        steps = inf if at == self._last else max(floor((high * decodes - tokens) / decodes) + 1, 1)
        wide = high - low
        return self._count * (row[at] + rise * (seen - low) / wide), self._count * rise / wide, steps

    def prompts(self, chunks: Chunks) -> float:
        """All prompt chunks of a step, in one launch: together as equal ones of the same work would, never less than
        the longest alone.

        Timed batches are of equal prompts; chunks of works w count as sum(w) / max(w) of them.
        """
        if len(chunks) == 1:
            return self._lone(*chunks[0])
        alone = [self._chunk(self._prompt_row(1), 1, chunk, past) for chunk, past in chunks]
        longest = max(alone)
        together = sum(alone) / longest
        row = self._layers.prompt.row(together) if together % 1 else self._prompt_row(int(together))
        each = sum(self._chunk(row, together, chunk, past) for chunk, past in chunks) / together
        return self._count * max(each, longest)

    def verification(self, decodes: int, context: float, drafted: int, longest: int = 0) -> float:
        """Sequences that verify drafts, the same number each: the cache is read once for all their queries."""
        width = 1 + drafted / decodes
        reading = self.decode(decodes, context + drafted, longest + drafted / decodes if longest else 0)
        seen = context / decodes + width
        pairs = decodes * width * (min(seen, self._window) if self._window else seen - width / 2)
        return max(reading, self._count * pairs * self._pair)

    def cascade(self, decodes: int, shared: int) -> float:
        """A token of each of ``decodes`` sequences over the ``shared`` first ones of all, read once; merging apart."""
        return max(self.decode(1, shared - 1), self._count * decodes * shared * self._pair)

    def explain_cascade(self, decodes: int, shared: int) -> Explained:
        """``cascade``, and how it is known."""
        reading, time = self.decode(1, shared - 1), self.cascade(decodes, shared)
        source = self._layers.decode.source_at(1, shared) if time == reading else "extrapolated"
        return Explained("common prefix attention", time, source)

    def explain(
        self, decodes: int, context: float, chunks: Chunks, *, drafted: int, longest: int, launched: int
    ) -> Iterator[Explained]:
        """The parts of a step, and how they are known."""
        name = f"window {self._window} " if self._window else ""
        if chunks:
            whole = max(chunk + past for chunk, past in chunks)
            source = self._layers.prompt.source_at(len(chunks), whole)
            if any(past for _, past in chunks) and source == "measured":
                source = "interpolated"
            yield Explained(f"{name}prompt attention", self.prompts(chunks), source)
        if decodes:
            verified = self.verification(decodes, context, drafted, longest) if drafted else 0.0
            time = verified or self.decode(decodes, context, longest, launched)
            seen = longest if longest and self.uneven else context / decodes
            source = self._layers.decode.source_at(decodes, seen + 1)
            yield Explained(f"{name}decode attention", time, "extrapolated" if drafted else source)

    def _lone(self, chunk: int, past: int) -> float:
        """One prompt chunk; those that begin a prompt are looked up."""
        if past:
            return self._count * self._chunk(self._prompt_row(1), 1, chunk, past)
        time = self._whole.get(chunk)
        if time is None:
            time = self._whole[chunk] = self._count * self._prompt(self._prompt_row(1), chunk)
        return time

    def _chunk(self, row: tuple[float, ...], together: float, chunk: int, past: int) -> float:
        """A chunk after ``past`` tokens has their share of the whole prompt's query-key pairs.

        It takes no less than a prompt of its own length, no less than reading what it attends to, and no less than
        one tile of queries needs to pass over that, where the kernel does not split it.
        """
        if not past:
            return self._prompt(row, chunk)
        seen = chunk + past
        share = self._pairs(chunk, past) / self._pairs(seen, 0)
        whole = self._prompt(row, seen)
        if self._layers.module:  # what grows with tokens is shared by tokens, the rest by pairs
            squared = min(max(2 - 4 * self._prompt(row, seen / 2) / whole, 0.0), 1.0)
            share = squared * share + (1 - squared) * chunk / seen
        once, each = self._pass
        passing = once + each * (min(seen, self._window) if self._window else seen)
        return max(whole * share, self._prompt(row, chunk), together * self._reading(seen), passing)

    def _one_pass(self) -> tuple[float, float]:
        """Seconds of a tile of queries that attends to nothing, and more for every key."""
        row, (short, long) = self._prompt_row(1), SIDE_BY_SIDE
        each = (self._prompt(row, long) - self._prompt(row, short)) / (long - short)
        return self._prompt(row, short) - each * short, each

    def _reading(self, seen: int) -> float:
        """One sequence's cache in one layer."""
        return self.decode(1, seen - 1) / self._count

    def _pairs(self, chunk: int, past: int) -> float:
        """Query-key pairs of a chunk."""
        if not self._window:
            return chunk * (past + (chunk + 1) / 2)
        return self._prefix_pairs(chunk + past) - self._prefix_pairs(past)

    def _prefix_pairs(self, tokens: int) -> float:
        window = min(self._window, tokens)
        return window * (window + 1) / 2 + (tokens - window) * window

    def _prompt(self, row: tuple[float, ...], tokens: float) -> float:
        """Between lengths that were timed: the lesser of linear time and linear time per token.

        A chord lies above a convex curve: the first is too much where time grows with the square, the
        second where it does not grow.
        """
        lengths = self._prompt_lengths
        at = min(max(bisect_right(lengths, tokens) - 1, 0), len(lengths) - 2)
        low, high, first, last = lengths[at], lengths[at + 1], row[at], row[at + 1]
        along = (tokens - low) / (high - low)
        each = first / low + (last / high - first / low) * along
        return min(first + (last - first) * along, tokens * each)

    def _turns(self, decodes: int) -> int:
        """Sequences that the busiest multiprocessor reads one after the other, at least one."""
        slots = self._layers.decode.slots
        return ceil(decodes / slots) if slots else 1

    def _row(self, decodes: int, launched: int) -> tuple[float, ...]:
        row = self._rows[decodes, launched] = self._layers.decode.row(decodes, launched)
        return row

    def _prompt_row(self, together: int) -> tuple[float, ...]:
        row = self._prompt_rows.get(together)
        if row is None:
            row = self._prompt_rows[together] = self._layers.prompt.row(together)
        return row
