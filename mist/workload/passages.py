"""Prompts that hold passages, the same ones again and again in another order: retrieval-augmented generation."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mist.errors import InputError
from mist.request import Passage
from mist.streams import stream
from mist.units import PerSecond
from mist.workload.arrivals import Arrivals
from mist.workload.lengths import Lengths
from mist.workload.traffic import Traffic, check_rate, check_requests, unit_times


class PassagePrompt(NamedTuple):
    """A prompt of ``system`` tokens, ``passages`` of ``length`` tokens each, and what only this request holds."""

    request: tuple[int, int]  # cycle, number
    tokens: int
    system: int
    length: int
    read: tuple[int, ...]  # passages, in the order of the prompt

    def key(self, block: int, block_tokens: int) -> Hashable:
        end = (block + 1) * block_tokens
        part = max(-(-(end - self.system) // self.length), 0) if self.length else len(self.read) + 1
        if end <= self.tokens and (part == 0 or part <= len(self.read)):
            return *self.read[:part], block, "passages"
        return *self.request, block, "own"

    def passages(self) -> tuple[Passage, ...]:
        """Where its passages stand."""
        begins = range(self.system, self.tokens, self.length)
        return tuple([Passage(name, begin, self.length) for name, begin in zip(self.read, begins, strict=False)])


@dataclass(frozen=True, eq=False)
class PassagePrompts:
    """What the prompts of a cycle hold: passages ``read`` (shape [n, pieces])."""

    inputs: NDArray[np.int64]
    read: NDArray[np.int64]
    system: int
    length: int

    def of(self, cycle: int, index: int) -> PassagePrompt:
        read = tuple(self.read[index].tolist())
        return PassagePrompt((cycle, index), int(self.inputs[index]), self.system, self.length, read)

    def every(self, keep: int, end: int) -> "PassagePrompts":
        return PassagePrompts(self.inputs[:end:keep], self.read[:end:keep], self.system, self.length)


def by_popularity(n: int, pieces: int, corpus: int, skew: float, random: np.random.Generator) -> NDArray[np.int64]:
    """Different passages out of a corpus for each of n prompts, shape [n, pieces]: the r-th in proportion to r^-skew.

    One after another, in proportion to what is left: the largest of log weights with Gumbel noise.
    """
    weights = -skew * np.log(np.arange(1, corpus + 1))
    rows = (weights + random.gumbel(size=corpus) for _ in range(n))
    return np.array([largest(row, pieces) for row in rows], dtype=np.int64)


def largest(row: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Places of the ``count`` largest, the largest first, the first of equals; the others are left unsorted."""
    among = np.flatnonzero(row >= np.partition(row, -count)[-count])
    return among[np.argsort(-row[among], kind="stable")][:count]


@dataclass(frozen=True)
class RagPrompts:
    """A cycle of ``requests`` prompts: a system prompt, passages out of a ``corpus``, and a question.

    Each has ``pieces`` different passages of ``piece_tokens`` tokens; the r-th most popular of the corpus is wanted in
    proportion to r^-``skew`` (Zipf). ``questions`` and ``outputs`` are tokens. The corpus is the same in every cycle,
    as documents are. Having no recorded rate, it runs at 1 request/s where ``rate`` is None.
    """

    arrivals: Arrivals
    questions: Lengths
    outputs: Lengths
    requests: int
    corpus: int
    skew: float
    pieces: int
    piece_tokens: int
    system: int = 0
    rate: PerSecond | None = None

    def __post_init__(self) -> None:
        check_requests(self.requests)
        check_rate(self.rate)
        for field in ("pieces", "piece_tokens"):
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 1")
        for field in ("skew", "system"):
            if getattr(self, field) < 0:
                raise InputError(field, getattr(self, field), "must not be negative")
        if self.corpus < self.pieces:
            raise InputError(
                "corpus", self.corpus, f"must hold the {self.pieces} passages (pieces) of a prompt at least"
            )

    def own_rate(self) -> float:
        return 1.0

    def content(self) -> str:
        return ""

    def names_passages(self) -> bool:
        """Its prompts say which passages they hold."""
        return True

    def traffic(self, seed: int) -> Traffic:
        """One cycle."""
        n = self.requests
        questions = self.questions.draw(n, stream(seed, "workload.inputs"))
        inputs = self.system + self.pieces * self.piece_tokens + questions
        read = by_popularity(n, self.pieces, self.corpus, self.skew, stream(seed, "workload.passages"))
        return Traffic(
            unit_times(self.arrivals.gaps(n, stream(seed, "workload.gaps"))),
            inputs,
            self.outputs.draw(n, stream(seed, "workload.outputs")),
            contents=PassagePrompts(inputs, read, self.system, self.piece_tokens),
        )
