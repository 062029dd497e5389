"""Transfers over a topology: hand-worked cases, the max-min certificate, conservation, and one link as before."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.build import build
from mist.errors import InputError
from mist.flows import Flows, max_min
from mist.handover import HandoverSpec
from mist.kernel import Kernel
from mist.network import Link, LinkSpec
from mist.request import Stage
from mist.roles import QueueRatio, SwitchRoles
from mist.topology import Network, Site, Tier, Topology, Wires

CONF = Path(__file__).parents[2] / "conf" / "network"
NETWORKS = sorted(path.stem for path in CONF.glob("*.yaml"))
FAST, SLOW = LinkSpec("inside", 100.0, 0.5), LinkSpec("port", 10.0, 1.0)


# rates, worked by hand


def test_in_a_parking_lot_everybody_gets_half():
    """Three links of 1 in a row, one flow over all of them and one over each."""
    flows = {("a", "b", "c"): 1, ("a",): 1, ("b",): 1, ("c",): 1}
    assert max_min(dict.fromkeys("abc", 1.0), flows) == dict.fromkeys(flows, 0.5)


def test_two_bottlenecks_one_after_the_other():
    """Bertsekas and Gallager, section 6.5.2: what the narrow link leaves over, the others take."""
    flows = {("a", "b"): 1, ("a",): 2, ("b",): 1, ("b", "c"): 1}
    # a (3): thirds, 1 each; b (10) has 9 left for two; c (2) holds one of them at 2, so the last has 7
    rates = max_min({"a": 3.0, "b": 10.0, "c": 2.0}, flows)
    assert rates == {("a", "b"): 1.0, ("a",): 1.0, ("b", "c"): 2.0, ("b",): 7.0}


def test_a_flow_alone_gets_its_bottleneck():
    assert max_min({"a": 3.0, "b": 2.0, "c": 5.0}, {("a", "b", "c"): 1}) == {("a", "b", "c"): 2.0}


def certified(capacities, rates):
    """No link above its capacity; every flow crosses a full link on which nobody has more."""
    load, most = dict.fromkeys(capacities, 0.0), dict.fromkeys(capacities, 0.0)
    for path, (count, rate) in rates.items():
        for link in path:
            load[link] += count * rate
            most[link] = max(most[link], rate)
    for link, capacity in capacities.items():
        assert load[link] <= capacity * (1 + 1e-12)
    for path, (_, rate) in rates.items():
        full = [link for link in path if load[link] >= capacities[link] * (1 - 1e-9)]
        assert any(rate >= most[link] * (1 - 1e-9) for link in full)


@st.composite
def webs(draw):
    """Links, and transfers over some of them: (time, path, bytes)."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    links = [f"link {i}" for i in range(draw(st.integers(1, 6)))]
    capacities = dict(zip(links, random.choice([1.0, 2.0, 3.0, 10.0], len(links)).tolist(), strict=True))
    load, now = [], 0.0
    for _ in range(draw(st.integers(1, 40))):
        now += float(random.exponential(0.3))
        path = tuple(random.permutation(links)[: random.integers(1, len(links) + 1)].tolist())
        load.append((now, path, float(random.exponential(1.0))))
    return capacities, load


@settings(max_examples=150)
@given(web=webs())
def test_rates_are_max_min_fair_at_every_instant_and_every_byte_arrives(web):
    capacities, load = web
    kernel, ends, carried = Kernel(), {}, [0.0]
    flows = Flows(kernel, capacities)
    for number, (time, path, size) in enumerate(load):
        kernel.at(time, flows.send, path, 0.0, size, lambda n: ends.setdefault(n, kernel.now), number)
    while not kernel.idle:
        before, rates = kernel.now, flows.rates
        kernel.run(until=kernel._facts[0][0])
        carried[0] += (kernel.now - before) * sum(count * rate for count, rate in rates.values())
        certified(capacities, flows.rates)
    assert sorted(ends) == list(range(len(load)))
    assert not flows.rates
    assert carried[0] == pytest.approx(sum(size for *_, size in load), rel=1e-9)
    assert flows.bytes_sent == pytest.approx(carried[0], rel=1e-9)


@settings(max_examples=60)
@given(web=webs())
def test_what_is_reached_part_by_part_is_the_whole_worked_out_anew(web):
    """The oracle shares everything out at every change, one flow at a time."""
    capacities, load = web
    kernel, ends = Kernel(), {}
    flows = Flows(kernel, capacities)
    for number, (time, path, size) in enumerate(load):
        kernel.at(time, flows.send, path, 0.0, size, lambda n: ends.setdefault(n, kernel.now), number)
    kernel.run()
    left, now, coming, expected = {}, 0.0, list(enumerate(load)), {}
    while left or coming:
        paths = {}
        for number in left:
            paths[load[number][1]] = paths.get(load[number][1], 0) + 1
        rates = max_min(capacities, paths)
        done = {number: now + rest / rates[load[number][1]] for number, rest in left.items()}
        first = min(done, key=done.get) if done else None
        until = min(done[first] if done else np.inf, coming[0][1][0] if coming else np.inf)
        for number in left:
            left[number] -= (until - now) * rates[load[number][1]]
        now = until
        if first is not None and done[first] == until:
            expected[first] = now
            del left[first]
        else:
            number, (_, _, size) = coming.pop(0)
            left[number] = size
    found = np.array([ends[number] for number in range(len(load))])
    np.testing.assert_allclose(found, [expected[number] for number in range(len(load))], rtol=1e-9)


@given(seed=st.integers(0, 2**32), n=st.integers(1, 60))
def test_over_one_link_it_is_the_link(seed, n):
    draw = np.random.default_rng(seed)
    times, sizes = np.cumsum(draw.exponential(0.4, n)).tolist(), draw.exponential(1.0, n).tolist()
    ends = [{}, {}]

    def arrived(kernel, seen, number):
        seen[number] = kernel.now

    for kind, seen in zip(("link", "flows"), ends, strict=True):
        kernel = Kernel()
        link, flows = Link(kernel, LinkSpec("wire", 3.0, 0.25)), Flows(kernel, {"wire": 3.0})
        for number, (time, size) in enumerate(zip(times, sizes, strict=True)):
            call = (link.send,) if kind == "link" else (flows.send, ("wire",), 0.25)
            kernel.at(time, *call, size, arrived, kernel, seen, number)
        cancelled = (link if kind == "link" else flows).cancel
        kernel.at(times[n // 2], cancelled, n // 2)
        kernel.run()
    assert ends[0].keys() == ends[1].keys()
    for number, end in ends[0].items():
        assert ends[1][number] == pytest.approx(end, rel=1e-12)


def test_strangers_are_not_touched():
    kernel = Kernel()
    flows = Flows(kernel, {"a": 1.0, "b": 1.0})
    flows.send(("a",), 0.0, 8.0, lambda: None)
    kernel.at(1.0, flows.send, ("b",), 0.0, 2.0, lambda: None)
    kernel.run()
    assert kernel.events == 5  # a send, two ends, two arrivals: nobody planned anew


# places and ways


def sites(prefill=4, decode=4, devices=4, outside=SLOW):
    make = lambda replicas: Site(devices, replicas, 8, FAST, outside)  # noqa: E731
    return {"prefill": make(prefill), "decode": make(decode)}


def test_replicas_stand_whole_in_nodes_one_after_another():
    places = Topology("flat").places(sites(3, 2))
    assert places == {("prefill", 0): 0, ("prefill", 1): 0, ("prefill", 2): 1, ("decode", 0): 2, ("decode", 1): 2}


def test_a_way_crosses_the_ports_of_its_ends_and_every_uplink_between():
    rack, pod = Tier(1, LinkSpec("leaf", 30.0, 2.0)), Tier(2, LinkSpec("spine", 25.0, 4.0))
    wires = Wires(Kernel(), Topology("tree", rack, pod), sites(6, 2))
    near = wires.way(("prefill", 0), ("prefill", 1))
    assert (near.name, near.latency) == ("node", 0.5)
    assert near.path == ("prefill/0 inside up", "prefill/1 inside down")
    pod_mate = wires.way(("prefill", 0), ("prefill", 2))
    assert (pod_mate.name, pod_mate.latency) == ("pod", 1.0 + 2.0)
    far = wires.way(("prefill", 0), ("decode", 1))
    assert (far.name, far.latency) == ("datacenter", 1.0 + 2.0 + 4.0)
    assert far.path == (
        "prefill/0 outside up", "rack 0 up", "rack 3 down", "pod 0 up", "pod 1 down", "decode/1 outside down",
    )  # fmt: skip
    assert far is wires.way(("prefill", 0), ("decode", 1))
    capacities = wires.flows.capacities
    assert [capacities[link] for link in far.path] == [40.0, 30.0, 30.0, 25.0, 25.0, 40.0]


def test_two_pairs_do_not_hold_each_other_up_and_two_caches_to_one_sink_do():
    kernel, ends = Kernel(), {}
    wires = Wires(kernel, Topology("flat"), sites())
    for number, (source, sink) in enumerate([(0, 0), (1, 1), (2, 3), (3, 3)]):
        way = wires.way(("prefill", source), ("decode", sink))
        way.send(80.0, lambda n: ends.setdefault(n, kernel.now), number)
    kernel.run()
    assert ends == {0: 3.0, 1: 3.0, 2: 5.0, 3: 5.0}  # 80 over 40, or over half of it, and a second


@pytest.fixture
def pools(make_pool, tiny, linear):
    def make(prefill, decode, **fields):
        node = {"name": "box", "devices": 2, "bandwidth": 1e6, "latency": 1e-3}
        fields = {"perf": linear(1e-3, 1e-5, 1e-6), "node": node, "router": "least_loaded", **fields}
        return {
            role: make_pool(model=tiny, role=role, replicas=replicas, **fields)
            for role, replicas in (("prefill", prefill), ("decode", decode))
        }

    return make


@pytest.mark.parametrize("layerwise", [False, True])
def test_one_pair_on_a_flat_network_is_one_pair_on_a_link(layerwise, pools, drive, poisson):
    load, made = poisson(4, 100, 200.0, (5, 80), (1, 40)), pools(1, 1)
    spec = HandoverSpec(layerwise=layerwise)
    one = drive(made, load, LinkSpec("wire", 1e6, 1e-3), handover=spec)
    flat = drive(made, load, None, handover=spec, network=Topology("flat"))
    for name in ("first_token", "finished"):
        np.testing.assert_allclose(flat.column(name), one.column(name), rtol=1e-12)


def test_more_pairs_move_more_than_one_link_does(pools, drive, poisson, tiny):
    load, made = poisson(4, 200, 2000.0, (200, 400), (2, 4)), pools(3, 3)
    one = drive(made, load, LinkSpec("wire", 1e6, 1e-3))
    flat = drive(made, load, None, network=Topology("flat"))
    assert flat.column("finished").max() < 0.5 * one.column("finished").max()
    places = {visit.place for r in flat.requests for visit in r.visits if visit.stage is Stage.HANDOVER}
    assert places == {"network"}
    sent = sum(r.input for r in flat.requests) * tiny.kv_bytes_per_token
    assert flat.cluster.wires.flows.bytes_sent == pytest.approx(sent)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_in_conf_carries_a_cluster(name, make_scenario, pools, drive, poisson):
    network = build(Network, yaml.safe_load((CONF / f"{name}.yaml").read_text()))
    made, link = pools(2, 2), LinkSpec("wire", 1e6, 1e-3)
    assert make_scenario(made, link=link, network=network).network == network
    run = drive(made, poisson(1, 50, 100.0, (5, 80), (1, 20)), link, network=network)
    assert run.cluster.in_flight == 0


def test_a_replica_larger_than_a_node_stands_on_nodes_of_its_own():
    sites = {"a": Site(5, 2, 2, FAST, SLOW), "b": Site(1, 3, 2, FAST, SLOW)}
    tree = Topology("t", Tier(3, LinkSpec("leaf", 7.0, 0.25)))
    assert [*tree.places(sites).values()] == [0, 3, 6, 6, 7]
    wires = Wires(Kernel(), tree, sites)
    way = wires.way(("a", 1), ("b", 0))
    assert (way.path, way.latency) == (("a/1 outside up", "rack 1 up", "rack 2 down", "b/0 outside down"), 1.25)
    assert wires.flows.capacities["a/1 outside up"] == 50.0


def test_a_pair_of_replicas_over_two_nodes_each_has_the_ports_of_all_its_devices(pools, drive, poisson):
    load, made = poisson(4, 100, 200.0, (5, 80), (1, 40)), pools(1, 1, tp=4)
    one = drive(made, load, LinkSpec("wire", 4e6, 1e-3))
    flat = drive(made, load, None, network=Topology("flat"))
    np.testing.assert_allclose(flat.column("finished"), one.column("finished"), rtol=1e-12)


def test_a_replica_that_begins_while_another_drains_has_a_place_beyond_the_last():
    """An autoscaler may order one before the last of ``max_replicas`` has left: there was no place for its index."""
    wires = Wires(Kernel(), Topology("flat"), sites(prefill=4, decode=4, devices=4))
    assert [wires.node(("prefill", index)) for index in range(6)] == [0, 0, 1, 1, 0, 0]
    beyond, first = wires.way(("prefill", 4), ("decode", 5)), wires.way(("prefill", 0), ("decode", 1))
    assert beyond.latency == first.latency
    assert not {*beyond.path} & {*first.path}
    capacities = wires.flows.capacities
    assert [capacities[link] for link in beyond.path] == [capacities[link] for link in first.path]


def test_a_replica_that_changes_its_role_stays_where_it_stands():
    sites = {"p": Site(1, 2, 1, FAST, SLOW), "d": Site(1, 2, 1, FAST, SLOW)}
    wires = Wires(Kernel(), Topology("t", Tier(1, LinkSpec("leaf", 7.0, 0.25))), sites)
    wires.move(("p", 1), ("d", 2))
    assert wires.way(("p", 0), ("d", 2)) is wires.way(("p", 0), ("p", 1))
    wires.move(("d", 0), ("p", 1))
    assert wires.way(("p", 1), ("d", 1)) is wires.way(("d", 0), ("d", 1))
    wires.move(("d", 2), ("p", 2))
    assert wires.way(("p", 2), ("d", 1)).path[0] == "p/1 outside up"


def test_replicas_change_their_roles_on_a_network_and_nobody_is_lost(pools, drive, poisson, tiny):
    load, made = poisson(4, 300, 400.0, (300, 400), (2, 60)), pools(2, 2)
    switching = SwitchRoles(QueueRatio(1.2, 0.5), 0.05, 0.01)
    run = drive(made, load, None, network=Topology("flat"), roles=switching, until=30.0)
    joined = [pool.fleet.joined for pool in run.cluster.pools.values()]
    assert run.cluster.completed == 300
    assert sum(joined) > 0
    sent = sum(r.input for r in run.requests) * tiny.kv_bytes_per_token
    assert run.cluster.wires.flows.bytes_sent >= sent * (1 - 1e-9)


def test_what_a_network_cannot_hold_is_refused(make_scenario, make_pool, pools):
    link, flat = LinkSpec("wire", 1e6, 1e-3), Topology("flat")
    cases = [
        ({"llm": make_pool()}, None, {}, "no pool hands anything over"),
        (pools(2, 1, node={"name": "isolated"}), link, {}, "no way out"),
    ]
    for made, wire, fields, message in cases:
        with pytest.raises(InputError, match=message):
            make_scenario(made, link=wire, network=flat, **fields)
    with pytest.raises(InputError, match="holds racks"):
        Topology("x", None, Tier(2, SLOW))
    with pytest.raises(InputError, match="holds = 0"):
        Tier(0, SLOW)
