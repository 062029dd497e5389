"""The largest arrival rate that holds, by probing: strides from below, then bisection in the logarithm."""

from collections.abc import Callable, Sequence
from math import exp, inf, log, sqrt

from mist.metrics import Result

SLOPE = 3.0  # d log(latency) / d log(rate) to begin with
LEAP = log(2)  # furthest step up, in log(rate)
IDLE = 1 / 4096  # of the first guess: a rate at which requests are alone
FLOOD = 4096  # times the first guess: a rate at which they come all at once

Probe = Callable[[float], Result]


def largest(probe: Probe, start: float, precision: float) -> Result:
    """The Result at the largest rate that holds, within ``precision`` of one that does not.

    Where no rate holds, the Result of requests served alone.
    """
    held: list[Result] = []  # by rising rate
    fails, rate, retreat = inf, start, 1.04
    while not held or fails / held[-1].rate > precision:
        result = probe(rate)
        if result.verdict == "infeasible":
            return result
        if result.verdict == "ok":
            held.append(result)
            if rate >= start * FLOOD:
                return result  # too few requests to overload anything
        else:
            fails = rate
            if not held and rate <= start * IDLE:
                return result
        if held:
            rate = _between(held, fails, precision)
        else:
            rate, retreat = max(rate / retreat, start * IDLE), retreat**2
    return held[-1]


def _between(held: Sequence[Result], fails: float, precision: float) -> float:
    """The next rate to try, above the last that held and below the first that did not.

    Where the slack of the tightest limit would be used up if it went on as between the last two rates that
    held; halfway, in the logarithm, where that is beyond what fails.
    """
    low, slack = held[-1].rate, _slack(held[-1])
    slope = SLOPE
    if len(held) > 1 and _slack(held[-2]) > slack > 0:
        slope = (_slack(held[-2]) - slack) / log(low / held[-2].rate)
    aim = low * exp(min(slack / slope, LEAP)) / precision**0.25  # just below, so that the next one closes in
    least = low * precision ** (2 ** min(len(held) - 1, 4))  # a crawl from below speeds up
    rate = max(aim, least)
    return rate if rate < fails / precision**0.25 else sqrt(low * fails)


def _slack(result: Result) -> float:
    """log(limit / observed) of the tightest limit; enough for a stride of a quarter where there is none."""
    shares = [check.observed / check.limit for check in (result.slo or {}).values()]
    return -log(max(shares)) if shares and max(shares) > 0 else 0.25 * SLOPE
