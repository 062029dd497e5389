"""Lengths of which only the mean is known, and that nobody was longer than so many tokens."""

from collections.abc import Mapping
from math import exp, log
from typing import Any

import numpy as np

from mist.errors import InputError

LEVELS = np.concatenate([np.linspace(0, 0.9, 19), 1 - 0.1 / 2.0 ** np.arange(1, 13)])  # knots of the curve


def memoryless(mean: float, longest: int) -> Mapping[str, Any]:
    """Config of lengths drawn from the exponential distribution cut at ``longest`` tokens, with this ``mean``.

    Of all distributions on [0, longest] with that mean it assumes least (maximum entropy: Jaynes, Physical Review
    106, 1957). InputError where the mean is not below half of the longest, beyond which it would have to rise.
    """
    if not 1 <= mean < longest / 2:
        raise InputError("drawn", f"{mean:g}", f"a mean must lie in [1, {longest / 2:g}), half of the longest")
    rate = _rate(mean, longest)
    reached = 1 - exp(-rate * longest)
    knots = [(level, max(-log(1 - level * reached) / rate, 1.0)) for level in LEVELS] + [(1.0, longest)]
    text = " ".join(f"{level:g}:{tokens:.0f}" for level, tokens in knots)
    return {"_target_": "mist.workload.lengths.Quantiles", "quantiles": text}


def _rate(mean: float, longest: int) -> float:
    """The exponential's rate, by bisection: the mean 1/rate - longest/(e^(rate x longest) - 1) falls with it."""
    low, high = 1e-6 / longest, 1 / mean  # without the cut the mean would be 1/rate
    for _ in range(60):
        rate = (low + high) / 2
        beyond = exp(-rate * longest)
        low, high = (rate, high) if 1 / rate - longest * beyond / (1 - beyond) > mean else (low, rate)
    return low
