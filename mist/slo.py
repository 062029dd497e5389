"""Service-level objectives: percentile limits on latency."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

from mist.errors import InputError
from mist.units import Seconds


class Limit(NamedTuple):
    """``percentile`` of ``metric`` must not exceed ``limit`` seconds."""

    name: str  # ttft_p99
    metric: str  # ttft
    percentile: float  # 99.0
    limit: float  # s


@dataclass(frozen=True)
class SLO:
    """Limits on TTFT, TPOT and E2E at a percentile over requests; None is no limit.

    TTFT is arrival to first token, TPOT the mean time of the tokens after it, E2E arrival to last token.
    ``classes`` holds the limits of request classes that have their own; such a class is held to them alone, and
    the limits beside ``classes`` to everybody else.
    """

    name: str = "custom"
    ttft_p50: Seconds | None = None
    ttft_p90: Seconds | None = None
    ttft_p95: Seconds | None = None
    ttft_p99: Seconds | None = None
    tpot_p50: Seconds | None = None
    tpot_p90: Seconds | None = None
    tpot_p95: Seconds | None = None
    tpot_p99: Seconds | None = None
    e2e_p50: Seconds | None = None
    e2e_p90: Seconds | None = None
    e2e_p95: Seconds | None = None
    e2e_p99: Seconds | None = None
    classes: Mapping[str, "SLO"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for limit in self:
            if not limit.limit > 0:
                raise InputError(limit.name, limit.limit, "a limit must be positive")
        for name, own in self.classes.items():
            if own.classes:
                raise InputError(f"classes.{name}.classes", ", ".join(own.classes), "a class has no classes")

    def __iter__(self) -> Iterator[Limit]:
        """The limits by rising percentile, those of classes last."""
        for option in fields(self):
            metric, _, percentile = option.name.partition("_p")
            value = getattr(self, option.name)
            if percentile and value is not None:
                yield Limit(option.name, metric, float(percentile), value)
        for name, own in self.classes.items():
            yield from (limit._replace(name=f"classes.{name}.{limit.name}") for limit in own)

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds one request of no class may take, by metric; of several limits the highest percentile's."""
        return {limit.metric: limit.limit for limit in self._alone}

    @property
    def parts(self) -> dict[str, "SLO"]:
        """The SLO cut into plain ones that hold for disjoint requests: by class name, "" for all the others."""
        return {"": self._alone, **self.classes}

    def of(self, name: str) -> "SLO":
        """What a request of this class is held to."""
        return self.classes.get(name, self._alone)

    @property
    def _alone(self) -> "SLO":
        return replace(self, classes={}) if self.classes else self

    def check_classes(self, names: tuple[str, ...]) -> None:
        """InputError unless every class with limits of its own is one of ``names``, and every limit holds for some."""
        for name in self.classes:
            if name not in names:
                why = "no such request class" if names else "no such request class: the workload has none"
                raise InputError(f"classes.{name}", self.classes[name].name, why, names)
        if names and set(names) == set(self.classes):
            for limit in self._alone:
                why = "has no effect: every class has limits of its own"
                raise InputError(limit.name, f"{limit.limit:g} s", why)
