"""Closed loops: so many clients, each of which sends its next request when its last one is answered."""

from dataclasses import dataclass, replace

import numpy as np

from mist.errors import InputError
from mist.streams import stream
from mist.units import Seconds
from mist.workload.drawn import Drawn
from mist.workload.lengths import Lengths
from mist.workload.trace import Trace
from mist.workload.traffic import Loop, Traffic, check_requests


@dataclass(frozen=True)
class ClosedLoop(Drawn):
    """``concurrency`` clients share ``requests`` requests of ``inputs`` and ``outputs`` tokens.

    A client waits ``think`` seconds between an answer and its next request; all begin at once. None is as many
    clients as requests: all at once, an offline batch. What vLLM's ``bench serve --max-concurrency`` does with
    an infinite request rate. There is no rate to choose: by Little's law it is clients / (response + think).
    """

    inputs: Lengths
    outputs: Lengths
    requests: int
    concurrency: int | None
    think: Seconds = 0.0

    def __post_init__(self) -> None:
        check_requests(self.requests)
        _check_clients(self.concurrency, self.think)
        if self.clients > self.requests:
            raise InputError("concurrency", self.concurrency, f"there are only {self.requests} requests to send")

    @property
    def clients(self) -> int:
        return self.concurrency or self.requests

    @property
    def rate(self) -> None:
        """It has none."""

    def traffic(self, seed: int) -> Traffic:
        n = self.requests
        inputs = self.inputs.draw(n, stream(seed, "workload.inputs"))
        outputs = self.outputs.draw(n, stream(seed, "workload.outputs"))
        return Traffic(np.arange(n, dtype=float), inputs, outputs, loop=Loop(self.clients, self.think))


@dataclass(frozen=True)
class ClosedTrace(Drawn):
    """``concurrency`` clients take the requests of the file at ``path`` in its order, whatever their times."""

    path: str
    concurrency: int
    think: Seconds = 0.0
    hash_tokens: int = 512  # tokens of a hash id; kvcache-ai/Mooncake, README

    def __post_init__(self) -> None:
        _check_clients(self.concurrency, self.think)
        self._trace()

    @property
    def clients(self) -> int:
        return self.concurrency

    @property
    def rate(self) -> None:
        """It has none."""

    def content(self) -> str:
        return self._trace().content()

    def traffic(self, seed: int) -> Traffic:
        rows = self._trace().traffic(seed)
        if self.clients > len(rows):
            raise InputError("workload.concurrency", self.concurrency, f"there are only {len(rows)} requests to send")
        return replace(rows, times=np.arange(len(rows), dtype=float), loop=Loop(self.clients, self.think))

    def _trace(self) -> Trace:
        return Trace(self.path, hash_tokens=self.hash_tokens)


def _check_clients(concurrency: int | None, think: float) -> None:
    if concurrency is not None and concurrency < 1:
        raise InputError("concurrency", concurrency, "must be at least 1")
    if concurrency is None and think:
        raise InputError("think", think, "has no effect where every request has a client of its own")
    if think < 0:
        raise InputError("think", think, "must not be negative")
