"""Several request classes in one stream."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import fsum

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

    Every class has its share of them by weight, rounded to whole requests by largest remainders: the first so many of
    its own workload, which repeats where it is shorter, spread over the whole cycle from a random instant of its
    first mean gap on. ``rate`` is that of all classes together; None is the sum of their own rates. The order in which
    classes are written is that of the report, and changes nothing else.
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
        return fsum(share.workload.own_rate() for share in self.classes.values())

    def content(self) -> str:
        each = [self.classes[name].workload.content() for name in sorted(self.classes)]
        return sha256(" ".join(each).encode()).hexdigest() if any(each) else ""

    def counts(self) -> dict[str, int]:
        """Requests of each class in a cycle."""
        total = fsum(share.weight for share in self.classes.values())
        exact = {name: share.weight / total * self.requests for name, share in self.classes.items()}
        counts = {name: int(count) for name, count in exact.items()}
        largest = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
        for name in largest[: self.requests - sum(counts.values())]:
            counts[name] += 1
        return counts

    def traffic(self, seed: int) -> Traffic:
        """Each class draws from streams of its own: how the others look changes nothing of what it draws."""
        counts, classes = self.counts(), list(self.classes)
        times, inputs, outputs, members = [], [], [], []
        for name in sorted(classes):
            draws, count = stream(seed, f"workload.classes.{name}"), counts[name]
            own = self.classes[name].workload.traffic(int(draws.integers(2**32)))
            instants = (_spread(own, count) + draws.random() / count) % 1.0
            first = np.argsort(instants, kind="stable")  # what was shifted over the cycle's end begins it
            times.append(instants[first] * self.requests)
            inputs.append(own.inputs[first % len(own)])
            outputs.append(own.outputs[first % len(own)])
            members.append(np.full(count, classes.index(name)))
        instants = np.concatenate(times)
        order = np.argsort(instants, kind="stable")
        return Traffic(
            np.minimum(instants[order], np.nextafter(self.requests, 0)),
            np.concatenate(inputs)[order],
            np.concatenate(outputs)[order],
            tuple(RequestClass(name, self.classes[name].priority) for name in classes),
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
