"""Service-level objectives: percentile limits on latency."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
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

    def __post_init__(self) -> None:
        for limit in self:
            if not limit.limit > 0:
                raise InputError(limit.name, limit.limit, "a limit must be positive")

    def __iter__(self) -> Iterator[Limit]:
        for field in fields(self):
            metric, _, percentile = field.name.partition("_p")
            value = getattr(self, field.name)
            if percentile and value is not None:
                yield Limit(field.name, metric, float(percentile), value)
