"""The ways of a request through pools: which prefill pool hands over to which decode pool."""

from collections.abc import Mapping

from mist.drafting import check_prompt_drafting
from mist.errors import InputError
from mist.network import LinkSpec
from mist.pool import PoolSpec


def services(pools: Mapping[str, PoolSpec]) -> dict[str, str | None]:
    """Pools that requests enter, each with the decode pool behind it; None where it decodes itself. There may be none.

    Raises InputError unless every prefill pool has a decode pool of its own, and every decode pool a prefill pool.
    """
    roles = sorted(spec.role for spec in pools.values())
    decodes = [name for name, spec in pools.items() if spec.role == "decode"]
    prefills = {name: spec.hands_to for name, spec in pools.items() if spec.role == "prefill"}
    if len(prefills) != len(decodes):
        why = "every prefill pool needs a decode pool of its own; the other pools do both"
        raise InputError("pools", roles, why)
    for name, spec in pools.items():
        if spec.hands_to is not None and spec.role != "prefill":
            raise InputError(f"pools.{name}.hands_to", spec.hands_to, f"has no effect with role {spec.role}")
    if list(prefills.values()) == [None]:
        prefills = dict.fromkeys(prefills, decodes[0])
    for name, sink in prefills.items():
        if sink not in decodes or list(prefills.values()).count(sink) > 1:
            raise InputError(f"pools.{name}.hands_to", sink, "must name a decode pool of its own", decodes)
    return {name: prefills.get(name) for name, spec in pools.items() if spec.role != "decode"}


def check_pools(pools: Mapping[str, PoolSpec], link: LinkSpec | None) -> None:
    """Raises InputError unless the pools' roles make ways from prompt to last token."""
    pairs = {name: sink for name, sink in services(pools).items() if sink is not None}
    if not pairs:
        if link is not None:
            raise InputError("link", link.name, "no pool hands anything over: a link has no effect")
        return
    if link is None:
        raise InputError("link", "(nothing)", "prefill and decode pools need a link between them")
    for source, sink in pairs.items():
        if pools[source].model != pools[sink].model:
            why = f"cannot decode the KV cache of {pools[source].model.name}"
            raise InputError(f"pools.{sink}.model", pools[sink].model.name, why)
        try:
            check_prompt_drafting(pools[source].replica, pools[source].preemption, pools[sink].speculation)
        except InputError as error:
            raise type(error)(f"pools.{source}.{error.field}", error.value, error.why, error.choices) from None
