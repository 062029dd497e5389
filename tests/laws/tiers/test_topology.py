"""Tiers that hang in a topology: who shares a store, which links lead there, and whom transfers meet on them."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.compose import compose
from mist.errors import InputError
from mist.handover import HandoverSpec
from mist.kernel import Kernel
from mist.network import LinkSpec
from mist.node import NodeSpec
from mist.simulate import simulate
from mist.spans import Span
from mist.tiers.prices import mean_tier_dollars
from mist.tiers.wiring import Wiring
from mist.topology import ONE_LINK, Tier, Topology, Wires
from mist.workload.lengths import Uniform

SIZE = 256 * 80  # bytes of the 80 tokens that are fetched
PORT, RACK, POD = SIZE / 2.0, SIZE / 8.0, SIZE / 16.0  # bytes per second: 2, 8 and 16 s
NODE = NodeSpec("small", 1, PORT, 0.25)  # one device a node
NET = Topology(
    "net", Tier(2, LinkSpec("rack", RACK, 0.5)), Tier(2, LinkSpec("pod", POD, 1.0))
)  # 2 nodes a rack, 2 racks a pod
FLAT = Topology("flat")


@pytest.fixture
def standing(tiered):
    """A pool on nodes of one device."""

    def make(tiers=None, **fields):
        return replace(tiered(tiers, **fields), node=NODE)

    return make


def took(requests, visit):
    return [v.finished - v.started for v in (visit(r, "fetch_kv") for r in requests)]


# alone, and with others of its kind


@pytest.mark.parametrize(
    ("at", "seconds"),
    [("node", 0.0), ("rack", 2 + 0.25), ("pod", 8 + 0.25 + 0.5), ("datacenter", 16 + 0.25 + 0.5 + 1.0)],
)
def test_alone_a_fetch_crosses_what_lies_between(at, seconds, standing, drive, drawn_hits, visit):
    spec = standing(drawn_hits(at=at, latency=3.0, link=LinkSpec("not used", 1.0, 100.0)))
    run = drive(spec, [(0.0, 100, 1)], network=NET)
    assert took(run.requests, visit) == pytest.approx([3.0 + seconds], rel=1e-6)


@pytest.mark.parametrize(
    ("at", "seconds"),
    [
        ("rack", [2.25] * 4),  # everybody's own port
        ("pod", [16 + 0.75] * 4),  # two nodes behind each rack's uplink
        ("datacenter", [64 + 1.75] * 4),  # all behind that of the pod
    ],
)
def test_fetches_share_the_uplinks_they_cross(at, seconds, standing, drive, drawn_hits, visit):
    run = drive(standing(drawn_hits(at=at), replicas=4), [(0.0, 100, 1)] * 4, network=NET)
    assert took(run.requests, visit) == pytest.approx(seconds, rel=1e-6)


@pytest.mark.parametrize(
    ("at", "found"),
    [("node", [0, 0, 0, 0, 0]), ("rack", [0, 1, 0, 1, 0]), ("pod", [0, 1, 1, 1, 0]), ("datacenter", [0, 1, 1, 1, 1])],
)
def test_replicas_share_a_store_where_their_ways_meet(at, found, standing, drive, stored, same, visit):
    """Five nodes: two racks of one pod, and one node of another; one after another they ask for the same prompt."""
    spec = standing(stored(at=at, shared_by=7), replicas=5)
    run = drive(spec, [(1000.0 * i, 100, 1) for i in range(5)], contents=same(80), network=NET)
    assert [int(visit(r, "fetch_kv") is not None) for r in run.requests] == found


def test_racks_hold_their_stores_on_a_network_without_pods(standing, drive, stored, same, visit):
    spec = standing(stored(at="datacenter"), replicas=3)
    run = drive(spec, [(1000.0 * i, 100, 1) for i in range(3)], contents=same(80), network=replace(NET, pod=None))
    assert took(run.requests[-1:], visit)[0] == pytest.approx(8 + 0.75, rel=1e-6)
    run = drive(spec, [(1000.0 * i, 100, 1) for i in range(3)], contents=same(80), network=FLAT)
    assert took(run.requests[-1:], visit)[0] == pytest.approx(2 + 0.25, rel=1e-6)


# with transfers of another kind


@pytest.mark.parametrize(("at", "seconds"), [(None, 2.0), ("datacenter", 4.0)])
def test_write_back_and_hand_over_share_the_port_of_the_prefill_replica(
    at, seconds, standing, drive, stored, linear, visit
):
    """Both are of 20 blocks, and begin when the prompt has been computed."""
    tiers = stored(at=at, shared_by=None)
    pools = {
        "prefill": standing(tiers, role="prefill", perf=linear(1.0), limits={"token_budget": 500}),
        "decode": standing(role="decode", perf=linear(1.0)),
    }
    (request,) = drive(pools, [(0.0, 80, 2)], network=FLAT).requests
    seen = visit(request, "handover")
    assert seen.finished - seen.started == pytest.approx(seconds + 0.25, rel=1e-6)


def test_a_fetch_and_a_hand_over_into_one_rack_share_its_uplink(standing, drive, drawn_hits, linear, visit):
    """Nodes 0 and 1 are rack 0, 2 and 3 rack 1. From node 0 a cache goes to node 3, which decodes; node 2 fetches
    from the data centre at the same time: both come down to rack 1, and take 16 s instead of 8."""
    net = Topology("two racks", Tier(2, LinkSpec("rack", RACK, 0.0)))
    prefill = standing(drawn_hits(at="datacenter"), role="prefill", perf=linear(1.0), replicas=3)
    pools = {"prefill": prefill, "decode": standing(role="decode", perf=linear(1.0))}
    begin = 0.95 * 8 + 0.25 + 1.0  # of the hand-over: 76 of 80 tokens are fetched, and the rest takes a step
    first, _, third = drive(pools, [(0.0, 80, 2), (1.0, 1, 1), (begin, 100, 1)], network=net).requests
    for seen in (visit(first, "handover"), visit(third, "fetch_kv")):
        assert seen.started == pytest.approx(begin)
        assert seen.finished - seen.started == pytest.approx(16 + 0.25, rel=1e-6)


@settings(max_examples=15)
@given(data=st.data())
def test_every_byte_crosses_the_network_once(data, standing, replay, chat, stored, linear, fetches):
    """What was read, written and handed over is what the network carried; leaping equals stepping."""
    at = data.draw(st.sampled_from(["node", "rack", "pod", "datacenter"]))
    decoded = at != "node" and data.draw(st.booleans())
    tiers = stored(at=at, decoded=decoded, read_bandwidth=10**8.1, write_bandwidth=10**7.9, write="through")
    wide = NodeSpec("wide", 1, 10**7.2, 1e-4 * 2**0.5)
    net = Topology("net", Tier(2, LinkSpec("rack", 10**7.1, 1e-4)), Tier(2, LinkSpec("pod", 10**6.9, 1e-4)))
    steps = linear(1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5)
    pools = {
        "prefill": replaced(wide, standing(tiers, role="prefill", replicas=2, kv_blocks=150, perf=steps)),
        "decode": replaced(wide, standing(role="decode", kv_blocks=1000, perf=steps)),
    }
    traffic = chat(turns=Uniform(3, 6)).traffic(data.draw(st.integers(0, 99)))
    options = {"network": net, "handover": HandoverSpec(layerwise=data.draw(st.booleans()))}
    run, slow = (replay(pools, traffic, 0.02, **options, one_by_one=one) for one in (False, True))
    use, moved = fetches(run).use().tiers["store"], sum(r.input for r in run.requests if r.output > 1) * 256
    assert run.cluster.wires.flows.bytes_sent == pytest.approx(moved + use.read_bytes + use.written_bytes)
    assert use.read_bytes > 0
    for mine, theirs in zip(run.requests, slow.requests, strict=True):
        assert mine.finished == pytest.approx(theirs.finished, rel=1e-9)


def replaced(node, spec):
    return replace(spec, node=node)


@pytest.mark.parametrize("network", [FLAT, NET])
def test_a_tier_that_hangs_nowhere_takes_what_it_takes_without_a_network(
    network, standing, replay, chat, stored, visit
):
    spec = standing(stored(read_bandwidth=1e6, link=LinkSpec("own", 5e5, 0.01)))
    alone = {"small": spec}
    runs = [replay(alone, chat().traffic(2), 5.0, network=net) for net in (network, ONE_LINK)]
    assert took([r for r in runs[0].requests if visit(r, "fetch_kv")], visit)
    assert [r.finished for r in runs[0].requests] == [r.finished for r in runs[1].requests]


# what it costs, and what is refused


def test_as_many_stores_are_paid_for_as_there_are_places(standing, make_scenario, stored):
    for at, stores in (("node", 5), ("rack", 3), ("pod", 2), ("datacenter", 1)):
        spec = standing(stored(at=at, price=10.0, shared_by=None), replicas=5)
        hourly = [make_scenario(spec, network=net).dollars_per_hour for net in (NET, ONE_LINK)]
        assert hourly[0] - hourly[1] == pytest.approx(10.0 * (stores - 1))


def test_a_replica_in_another_role_uses_and_pays_for_the_store_where_it_stands(standing, stored):
    """Two prefill replicas, on nodes 0 and 1; one from the decode pool, on node 2, takes the place of the second."""
    tiers, kernel = stored(at="node", price=4.0), Kernel()
    wires = Wires(kernel, FLAT, {name: replace(standing(), replicas=2).site() for name in ("prefill", "decode")})
    wiring = Wiring(kernel, "prefill", tiers.tiers, wires)
    assert wiring.store("store", ("prefill", 1)) == "node 1"
    kernel.now = 10.0
    wires.move(("prefill", 1), ("decode", 2))
    wires.move(("decode", 0), ("prefill", 1))
    wiring.lay(("prefill", 1), PORT)
    assert wiring.store("store", ("prefill", 1)) == "node 2"
    spans = [Span(0, "up", 0.0, 20.0), Span(1, "up", 0.0, 10.0), Span(1, "up", 15.0, 20.0)]
    nodes = [wires.node(("prefill", span.replica), span.since) for span in spans]
    assert nodes == [0, 1, 2]
    paid = mean_tier_dollars(tiers, FLAT, lambda span: nodes[spans.index(span)], spans, 0.0, 20.0)
    assert paid == pytest.approx(4.0 * (1 + 10 / 20 + 5 / 20))


def test_more_replicas_of_a_role_than_to_begin_with_have_a_place_and_stores():
    words = "cluster=disaggregated model=llama-3.2-1b workload=chat_sessions workload.requests=150 workload.rate=300"
    words += " prefill.tiers=dram_nvme_remote prefill.prefix_caching=true prefill.replicas=3 decode.replicas=3 slo=none"
    words += " network=flat prefill.node=hgx-h100 decode.node=hgx-h100 prefill.tiers.tiers.nvme.at=node perf=roofline"
    words += " roles=queue_ratio roles.interval=100ms roles.policy.least=0.1 roles.policy.ratio=1.1 window.drain=true"
    result = simulate(compose(words.split()))
    assert max(pool.fleet.most for pool in result.pools.values()) > 3
    assert result.counts.completed == result.counts.arrived


@pytest.mark.parametrize(
    ("at", "network", "node", "words"),
    [
        ("rack", FLAT, NODE, "network=flat has no such level"),
        ("pod", replace(NET, pod=None), NODE, "network=net has no such level"),
        ("datacenter", FLAT, NodeSpec(), "no way out of it"),
        (None, FLAT, NODE, "no tier of KV hangs in it"),
    ],
)
def test_a_tier_without_a_place_or_a_way_is_refused(at, network, node, words, tiered, stored, make_scenario):
    with pytest.raises(InputError, match=words):
        make_scenario(replace(tiered(stored(at=at)), node=node), network=network)


def test_a_level_that_no_topology_has_is_refused(stored):
    with pytest.raises(InputError, match="no level of a topology"):
        stored(at="shelf")
