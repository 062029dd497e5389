"""Questions about long contexts that come again and again: documents, repositories, what is known of a user."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mist.errors import InputError
from mist.streams import stream
from mist.units import PerSecond
from mist.workload.traffic import Traffic, Workload, check_rate, check_requests


class Question(NamedTuple):
    """A prompt that begins with a known context and goes on with tokens of its own."""

    context: int  # which
    tokens: int  # of it
    cycle: int
    request: int

    @property
    def conversation(self) -> Hashable:
        """Equal for the questions about one context."""
        return "context", self.context

    def key(self, block: int, block_tokens: int) -> Hashable:
        if (block + 1) * block_tokens <= self.tokens:
            return "context", self.context, block
        return self.cycle, self.request, block, "own"


@dataclass(frozen=True, eq=False)
class Questions:
    """Request i asks about context ``contexts[i]`` (shape [n]), ``tokens`` long; contexts stay from cycle to cycle."""

    contexts: NDArray[np.int64]
    tokens: int

    def of(self, cycle: int, index: int) -> Question:
        return Question(int(self.contexts[index]), self.tokens, cycle, index)

    def every(self, keep: int, end: int) -> "Questions":
        return Questions(self.contexts[:end:keep], self.tokens)


@dataclass(frozen=True)
class ReusedContexts:
    """The requests of ``questions``, each behind one of so many ``contexts`` of ``tokens`` tokens.

    The k-th most popular context is asked about in proportion to 1 / k^``zipf``; 0 is all alike. ``rate`` null is that
    of the questions, and so is ``requests``, how many a cycle has.
    """

    questions: Workload
    tokens: int
    contexts: int
    zipf: float = 0.0
    requests: int | None = None
    rate: PerSecond | None = None

    def __post_init__(self) -> None:
        check_rate(self.rate)
        for field in ("tokens", "contexts"):
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 1")
        if self.zipf < 0:
            raise InputError("zipf", self.zipf, "must not be negative")
        if self.contexts == 1 and self.zipf:
            raise InputError("zipf", self.zipf, "has no effect: there is one context")
        if self.requests is not None:
            check_requests(self.requests)
            if not hasattr(self.questions, "requests"):
                raise InputError("requests", self.requests, "has no effect: the questions come as they were recorded")

    def own_rate(self) -> float:
        return self.questions.own_rate() if self.questions.rate is None else self.questions.rate

    def content(self) -> str:
        return self.questions.content()

    def traffic(self, seed: int) -> Traffic:
        """One cycle of requests, each a question."""
        questions: Any = self.questions
        if self.requests is not None:
            questions = replace(questions, requests=self.requests)
        own: Traffic = questions.traffic(seed)
        shares = np.arange(1, self.contexts + 1) ** -self.zipf
        chosen = stream(seed, "workload.contexts").choice(self.contexts, len(own), p=shares / shares.sum())
        contents = Questions(chosen.astype(np.int64), self.tokens)
        return Traffic(own.times, own.inputs + self.tokens, own.outputs, own.classes, own.members, contents)
