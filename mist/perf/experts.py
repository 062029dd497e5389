"""How unevenly tokens fall on the devices that hold the experts."""

from functools import cache
from math import comb, sqrt
from statistics import NormalDist

from mist.model import ModelSpec


def busiest_load(model: ModelSpec, tokens: int, devices: int, skew: float) -> float:
    """Token-expert pairs expected on the busiest of ``devices`` groups that share the experts evenly.

    The pairs on one device have the mean n k / p and the variance of n hypergeometric draws; experts whose
    popularity falls with their rank as rank ** -skew (Zipf), dealt to the devices at random, add the variance
    of the device's share. The largest of p such loads lies as many deviations above the mean as the largest
    of p normal variates (Blom, 1958: quantile (p - 3/8) / (p + 1/4)).
    """
    chosen, experts = model.experts_per_token, model.experts
    pairs = tokens * chosen
    if devices == 1:
        return float(pairs)
    chance = pairs / devices * (1 - 1 / devices) * (experts - chosen) / (experts - 1)
    spread = sqrt(chance + (pairs * _share_deviation(experts, devices, skew)) ** 2)
    return min(pairs / devices + _largest_of(devices) * spread, tokens * min(chosen, experts / devices))


def touched(model: ModelSpec, tokens: int, devices: int, load: float) -> float:
    """Distinct experts that ``load`` token-expert pairs meet on one device, each as likely as the next."""
    here = model.experts / devices
    return here * (1 - (1 - min(load / (tokens * here), 1.0)) ** tokens)


def destinations(model: ModelSpec, groups: int) -> float:
    """Groups of experts, of ``groups``, that a token's choices fall into on average."""
    experts, chosen = model.experts, model.experts_per_token
    return groups * (1 - comb(experts - experts // groups, chosen) / comb(experts, chosen))


@cache
def _largest_of(devices: int) -> float:
    return NormalDist().inv_cdf((devices - 0.375) / (devices + 0.25))


@cache
def _share_deviation(experts: int, devices: int, skew: float) -> float:
    """Standard deviation of one device's share, its experts drawn without replacement."""
    weights = [rank**-skew for rank in range(1, experts + 1)]
    whole = sum(weights)
    variance = sum((weight / whole - 1 / experts) ** 2 for weight in weights) / max(experts - 1, 1)
    return sqrt(experts / devices * variance * (1 - 1 / devices))
