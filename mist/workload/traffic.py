"""Who arrives and what they ask for: the form every workload takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mist.errors import InputError
from mist.request import RequestClass
from mist.workload.content import Contents


class Loop(NamedTuple):
    """A closed loop: who sends the requests, whatever their times."""

    clients: int
    think: float  # s between an answer and the client's next request


@dataclass(frozen=True, eq=False)
class Traffic:
    """One cycle of requests at unit rate; it repeats for ever.

    ``times`` (shape [n], non-decreasing, in [0, n)) are arrival instants in units of the mean gap, so that
    request i of cycle c arrives at ``(c * n + times[i]) / rate`` seconds and every rate replays the same
    draws (common random numbers). ``inputs`` and ``outputs`` (shape [n], tokens) belong to the same request.
    ``members`` (shape [n]), where there are ``classes``, are indices into them.
    ``contents`` says what of them is shared, for prefix caching; None is nothing. In a closed ``loop`` the times
    say nothing but the order.
    """

    times: NDArray[np.float64]
    inputs: NDArray[np.int64]
    outputs: NDArray[np.int64]
    classes: tuple[RequestClass, ...] = ()
    members: NDArray[np.int64] | None = None
    contents: Contents | None = None
    loop: Loop | None = None

    def __post_init__(self) -> None:
        n = len(self.times)
        if n == 0:
            raise InputError("requests", 0, "a workload needs at least one request")
        if not (len(self.inputs) == len(self.outputs) == n):
            raise ValueError(f"{n} times, {len(self.inputs)} inputs, {len(self.outputs)} outputs")
        if bool(self.classes) != (self.members is not None) or (self.members is not None and len(self.members) != n):
            raise ValueError(f"{n} times, {len(self.classes)} classes, members {self.members}")
        if self.times[0] < 0 or self.times[-1] >= n or np.any(np.diff(self.times) < 0):
            raise ValueError("times must rise within [0, n)")
        if self.inputs.min() < 1 or self.outputs.min() < 1:
            raise ValueError("every request has at least one input and one output token")

    def __len__(self) -> int:
        return len(self.times)

    def thinned(self, keep: int) -> "Traffic":
        """Every ``keep``-th request, at unit rate again: the same course of the cycle in fewer requests."""
        end = len(self) // keep * keep
        members = None if self.members is None else self.members[:end:keep]
        times, inputs, outputs = self.times[:end:keep] / keep, self.inputs[:end:keep], self.outputs[:end:keep]
        contents = self.contents and self.contents.every(keep, end)
        return Traffic(times, inputs, outputs, self.classes, members, contents)

    def sizes(self) -> dict[str, int]:
        """Requests in a cycle by class; empty where there are no classes."""
        if self.members is None:
            return {}
        counts = np.bincount(self.members, minlength=len(self.classes)).tolist()
        return {known.name: count for known, count in zip(self.classes, counts, strict=True)}


class Workload(Protocol):
    """A frozen description of traffic; the same seed draws the same traffic."""

    @property
    def rate(self) -> float | None:
        """Mean requests per second; None is the traffic's own."""

    def traffic(self, seed: int) -> Traffic:
        """One cycle of requests."""

    def own_rate(self) -> float:
        """Requests per second of the traffic as recorded or published."""

    def content(self) -> str:
        """SHA-256 of the file behind the traffic, part of a run's identity; "" where there is none."""


class Prioritised(Protocol):
    """One request class of a workload."""

    @property
    def priority(self) -> int: ...


@runtime_checkable
class Classed(Protocol):
    """A workload whose requests fall into classes, keyed by name."""

    @property
    def classes(self) -> Mapping[str, Prioritised]: ...


@runtime_checkable
class Closed(Protocol):
    """A workload whose clients wait for their answers."""

    @property
    def clients(self) -> int: ...


def check_open(workload: Workload) -> None:
    """InputError where a rate is sought and the workload has none: its clients wait."""
    if isinstance(workload, Closed):
        why = "its clients send when they are answered: there is no rate to seek (mist simulate serves it)"
        raise InputError("workload", f"{workload.clients} clients in a closed loop", why)


def class_names(workload: Workload) -> tuple[str, ...]:
    """The request classes of a workload; none where all requests are alike."""
    return tuple(workload.classes) if isinstance(workload, Classed) else ()


def names_passages(workload: Workload) -> bool:
    """Whether its prompts say which passages they hold, so that these can be found wherever they stand."""
    told = getattr(workload, "names_passages", None)
    return told is not None and told()


def class_priorities(workload: Workload) -> frozenset[int]:
    """The priorities its requests have."""
    return (
        frozenset(known.priority for known in workload.classes.values())
        if isinstance(workload, Classed)
        else frozenset({0})
    )


def check_rate(rate: float | None) -> None:
    """InputError unless ``rate`` is None or positive."""
    if rate is not None and not rate > 0:
        raise InputError("rate", rate, "must be positive, or null for the workload's own rate")


def check_requests(requests: int) -> None:
    """InputError unless a cycle of ``requests`` has anything in it."""
    if requests < 1:
        raise InputError("requests", requests, "a workload needs at least one request")


def unit_times(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Arrival instants in [0, n), the first at 0, that keep the proportions of ``gaps`` (the last one leads
    into the next cycle) and have a mean gap of exactly 1.

    Poisson gaps so scaled are a Poisson process given its count: the rate asked for is the rate that arrives.
    """
    n, ends = len(gaps), np.cumsum(gaps)
    starts = np.concatenate(([0.0], ends[:-1]))
    times: NDArray[np.float64] = np.minimum(starts * (n / ends[-1]), np.nextafter(n, 0))
    return times
