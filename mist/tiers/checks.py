"""Whether tiers go with the network and the pools around them."""

from mist.errors import InputError
from mist.node import NodeSpec
from mist.tiers.spec import StoredTiers, Tiers, reached_by_all, tiers_of
from mist.topology import Network, Topology


def check_hung(tiers: Tiers, network: Network, node: NodeSpec) -> None:
    """InputError unless every tier of a pool on such nodes has its place in the network, if it wants one."""
    for name, tier in tiers_of(tiers).items():
        if tier.at is None or not isinstance(network, Topology):
            continue
        try:
            network.check_level(tier.at)
        except InputError as error:
            raise InputError(f"tiers.tiers.{name}.at", error.value, error.why, error.choices) from None
        if tier.at != "node" and node.bandwidth is None:
            why = f"has no way out of it to the tier {name} (at {tier.at}): name a node that has"
            raise InputError("node", node.name, why)


def check_decoded(tiers: StoredTiers, network: Network, blocks: tuple[int, int], host: bool) -> None:
    """InputError unless a decode pool can write to these tiers of its prefill pool.

    ``blocks`` are the tokens of a KV block in either; ``host`` says whether the decode pool's devices have a host link.
    """
    if not any(reached_by_all(tier, network) for tier in tiers.tiers.values()):
        why = "no store is reached by decode replicas: one that all replicas share (shared_by=null) would be"
        raise InputError("tiers.decoded", "true", why)
    if blocks[0] != blocks[1]:
        why = f"the decode pool has blocks of {blocks[1]} tokens: what it writes could not be found"
        raise InputError("engine.block_tokens", blocks[0], why, [str(blocks[1])])
    if not host:
        raise InputError("tiers.decoded", "true", "the decode pool's devices have no link to a host")
