"""Options that were typed for replays and change nothing that they compare."""

from collections.abc import Iterable, Mapping

from mist.errors import InputError
from mist.inert import idle
from mist.overrides import parse
from mist.validation.harness import Overrides

LOAD = ("workload", "window")  # the harness's own part of a config: with it alone do these addresses exist
LOOKS_AT_SLO = ("slo_aware", "slo_attainment")  # schedulers, routers, autoscalers


def refuse_idle(deployments: Iterable[Overrides], own: Overrides) -> None:
    """InputError for the first of ``own`` overrides that no deployment, with them on top, depends on.

    A deployment that cannot be composed without its load may depend on anything.
    """
    typed = {address: value for address, value in own.items() if _root(address) not in LOAD}
    different = {tuple(sorted({**deployed, **typed}.items())) for deployed in deployments}
    if not typed or not different:
        return
    reasons = [_idle(dict(deployed)) for deployed in different]
    for address, value in typed.items():
        told = [found.get(parse(f"{address}={value}").name, "") for found in reasons]
        if all(told):
            raise InputError(address, value, f"has no effect: {told[0]}")


def _idle(deployed: Overrides) -> Mapping[str, str]:
    """Why, by address, for those overrides that times do not depend on."""
    unasked = {address: why for address in deployed if (why := _of_no_time(address, deployed))}
    try:
        return unasked | idle([f"{address}={value}" for address, value in deployed.items()])
    except InputError:  # it is told where it is replayed
        return unasked


def _of_no_time(address: str, deployed: Overrides) -> str:
    if _root(address) == "slo" and not any(value in LOOKS_AT_SLO for value in deployed.values()):
        return "times are compared, and nothing that is deployed looks at an SLO"
    if _root(address) == "price":
        return "times are compared, not dollars"
    return ""


def _root(address: str) -> str:
    return address.partition(".")[0]
