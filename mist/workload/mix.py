"""Several request classes in one stream."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from mist.errors import InputError
from mist.request import RequestClass
from mist.streams import stream
from mist.units import PerSecond
from mist.workload.traffic import Closed, Traffic, Workload, check_rate, check_requests, class_names


@dataclass(frozen=True)
class Share:
    """One class: who arrives, its ``weight`` among the requests, and its ``priority`` (smaller is served first by
    schedulers that look at it)."""

    workload: Workload
    weight: float
    priority: int = 0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise InputError("weight", self.weight, "must be positive")
        if self.workload.rate is not None:
            raise InputError("workload.rate", self.workload.rate, "has no effect in a mix: set it to null")
        if isinstance(self.workload, Closed):
            raise InputError("workload", "a closed loop", "has no rate to take a share of")
        if class_names(self.workload):
            raise InputError("workload", ", ".join(class_names(self.workload)), "a class has no classes of its own")


@dataclass(frozen=True)
class Mix:
    """A superposition of independent streams, one a class, in a cycle of ``requests`` requests.

    Every class has its share of them by weight, rounded to whole requests: the first so many of its own
    workload, which repeats where it is shorter, spread over the whole cycle. ``rate`` is that of all classes
    together; None is the sum of their own rates.
    """

    classes: Mapping[str, Share]
    requests: int
    rate: PerSecond | None = None

    def __post_init__(self) -> None:
        check_requests(self.requests)
        check_rate(self.rate)
        if not self.classes:
            raise InputError("classes", "(nothing)", "a mix needs at least one class")
        for name, count in self.counts().items():
            if not count:
                weight = self.classes[name].weight
                raise InputError(f"classes.{name}.weight", weight, f"leaves it none of {self.requests} requests")

    def own_rate(self) -> float:
        return sum(share.workload.own_rate() for share in self.classes.values())

    def content(self) -> str:
        each = [share.workload.content() for share in self.classes.values()]
        return sha256(" ".join(each).encode()).hexdigest() if any(each) else ""

    def counts(self) -> dict[str, int]:
        """Requests of each class in a cycle."""
        total = sum(share.weight for share in self.classes.values())
        ends = np.rint(np.cumsum([share.weight for share in self.classes.values()]) / total * self.requests)
        counts = np.diff(ends, prepend=0.0).astype(int).tolist()
        return dict(zip(self.classes, counts, strict=True))

    def traffic(self, seed: int) -> Traffic:
        """Each class draws from streams of its own: how the others look changes nothing of what it draws."""
        times, inputs, outputs, members = [], [], [], []
        for index, (name, count) in enumerate(self.counts().items()):
            own_seed = int(stream(seed, f"workload.classes.{name}").integers(2**32))
            own = self.classes[name].workload.traffic(own_seed)
            rows = np.arange(count) % len(own)
            times.append(_spread(own, count) * self.requests)
            inputs.append(own.inputs[rows])
            outputs.append(own.outputs[rows])
            members.append(np.full(count, index))
        instants = np.concatenate(times)
        order = np.argsort(instants, kind="stable")
        return Traffic(
            np.minimum(instants[order], np.nextafter(self.requests, 0)),
            np.concatenate(inputs)[order],
            np.concatenate(outputs)[order],
            tuple(RequestClass(name, share.priority) for name, share in self.classes.items()),
            np.concatenate(members)[order],
        )


def _spread(traffic: Traffic, count: int) -> NDArray[np.float64]:
    """The first ``count`` arrivals of the endless repetition, in [0, 1); the one after them would be at 1."""
    n = len(traffic)
    rows = np.arange(count + 1)
    instants = rows // n * n + traffic.times[rows % n] - traffic.times[0]
    if instants[-1] == 0:  # one instant for all of them: evenly, as nothing is known of the gaps
        return rows[:-1] / count
    spread: NDArray[np.float64] = instants[:-1] / instants[-1]
    return spread
