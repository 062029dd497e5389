"""Chat in several turns: every prompt carries the system prompt and the whole conversation so far."""

from dataclasses import dataclass

import numpy as np

from mist.errors import InputError
from mist.streams import stream
from mist.units import PerSecond
from mist.workload.content import SessionTurns
from mist.workload.drawn import Drawn
from mist.workload.lengths import Lengths
from mist.workload.traffic import Traffic, check_rate, check_requests


@dataclass(frozen=True)
class ChatSessions(Drawn):
    """A cycle of ``requests`` requests in sessions of ``turns`` turns each (the last one may be cut short), open loop.

    Turn k's prompt is the system prompt (``system`` tokens, one of ``groups``), all earlier messages and answers
    of the session, and a new message; ``messages`` and ``answers`` are tokens. Sessions begin at random; between
    two turns of one, ``apart`` other requests arrive on average (exponential): the distance a cache has to
    bridge, the same at every rate. A turn does not wait for the answer before it. Sessions that reach past
    the end of the cycle go on in the next, so the traffic is stationary.

    Having no recorded rate, it runs at 1 request/s where ``rate`` is None.
    """

    requests: int
    turns: Lengths
    messages: Lengths
    answers: Lengths
    system: int
    groups: int = 1
    apart: float = 100.0
    rate: PerSecond | None = None

    def __post_init__(self) -> None:
        check_requests(self.requests)
        if self.groups < 1:
            raise InputError("groups", self.groups, "must be at least 1")
        for field in ("system", "apart"):
            if getattr(self, field) < 0:
                raise InputError(field, getattr(self, field), "must not be negative")
        check_rate(self.rate)

    def traffic(self, seed: int) -> Traffic:
        """One cycle of requests, each a turn."""
        n = self.requests
        turns = self.turns.draw(n, stream(seed, "workload.turns"))
        session = np.repeat(np.arange(n), turns)[:n]
        firsts = np.flatnonzero(np.diff(session, prepend=-1))
        messages = self.messages.draw(n, stream(seed, "workload.messages"))
        answers = self.answers.draw(n, stream(seed, "workload.answers"))
        gaps = stream(seed, "workload.gaps").exponential(self.apart, n)
        gaps[firsts] = stream(seed, "workload.sessions").uniform(0, n, len(firsts))
        times = _within(gaps, firsts, session)
        rounds, times = np.divmod(times, n)
        times = np.minimum(times, np.nextafter(n, 0))
        order = np.argsort(times, kind="stable")
        inputs = self.system + _within(messages + answers, firsts, session) - answers
        content = SessionTurns(session[order], rounds[order].astype(np.int64), self.groups, self.system)
        return Traffic(times[order], inputs[order], answers[order], contents=content)


def _within(values: np.ndarray, firsts: np.ndarray, session: np.ndarray) -> np.ndarray:
    """Running sums of ``values`` that begin anew with every session."""
    sums = np.cumsum(values)
    before = sums[firsts] - values[firsts]
    return np.asarray(sums - before[session])
