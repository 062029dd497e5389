"""Distributions of token counts; every draw is a whole number of at least one token."""

from dataclasses import dataclass
from math import log, sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mist.errors import InputError
from mist.workload.quantiles import check_curve, curve


class Lengths(Protocol):
    """How long prompts or answers are."""

    def draw(self, n: int, chance: np.random.Generator) -> NDArray[np.int64]:
        """``n`` independent token counts."""


@dataclass(frozen=True)
class Fixed:
    """Always ``tokens``."""

    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InputError("tokens", self.tokens, "must be at least 1")

    def draw(self, n: int, chance: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG002
        return np.full(n, self.tokens, dtype=np.int64)


@dataclass(frozen=True)
class Uniform:
    """Every count from ``low`` to ``high``, both included, equally likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low < 1:
            raise InputError("low", self.low, "must be at least 1")
        if self.high < self.low:
            raise InputError("high", self.high, f"must not be below low, which is {self.low}")

    def draw(self, n: int, chance: np.random.Generator) -> NDArray[np.int64]:
        return chance.integers(self.low, self.high, size=n, endpoint=True)


@dataclass(frozen=True)
class Geometric:
    """The exponential distribution of whole numbers: each token is the last with probability 1/``mean``."""

    mean: float  # tokens

    def __post_init__(self) -> None:
        if self.mean < 1:
            raise InputError("mean", self.mean, "must be at least 1")

    def draw(self, n: int, chance: np.random.Generator) -> NDArray[np.int64]:
        return chance.geometric(1 / self.mean, size=n)


@dataclass(frozen=True)
class Quantiles:
    """A measured distribution by its quantile function, ``"0:20 0.5:480 1:9000"``, probability:tokens."""

    quantiles: str

    def __post_init__(self) -> None:
        check_curve("quantiles", self.quantiles)

    def draw(self, n: int, chance: np.random.Generator) -> NDArray[np.int64]:
        return np.maximum(np.rint(curve(self.quantiles)(chance.random(n))), 1).astype(np.int64)


@dataclass(frozen=True)
class Lognormal:
    """Lognormal with this ``mean`` and coefficient of variation, rounded; the usual long-tailed shape.

    With s^2 = ln(1 + cv^2), ln(tokens) is normal with mean ln(mean) - s^2/2 and variance s^2.
    """

    mean: float  # tokens
    cv: float

    def __post_init__(self) -> None:
        if self.mean < 1:
            raise InputError("mean", self.mean, "must be at least 1")
        if not self.cv > 0:
            raise InputError("cv", self.cv, "must be positive")

    def draw(self, n: int, chance: np.random.Generator) -> NDArray[np.int64]:
        variance = log(1 + self.cv**2)
        drawn = chance.lognormal(log(self.mean) - variance / 2, sqrt(variance), size=n)
        return np.maximum(np.rint(drawn), 1).astype(np.int64)
