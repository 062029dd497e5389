"""Laws of request classes: who arrives, what they are held to, and what is said of them."""

from dataclasses import replace

import numpy as np
import pytest

from mist.build import build
from mist.compose import compose
from mist.errors import InputError
from mist.metrics import METRICS, percentile, within
from mist.request import RequestClass
from mist.scenario import Scenario
from mist.simulate import serve, simulate
from mist.slo import SLO
from mist.window import Doomed
from mist.workload.arrivals import Deterministic, Poisson
from mist.workload.lengths import Fixed, Uniform
from mist.workload.mix import Mix, Share
from mist.workload.synthetic import Synthetic
from mist.workload.traffic import Traffic

CHAT = Synthetic(Poisson(), Uniform(1, 800), Uniform(1, 300), 500)
CODE = Synthetic(Poisson(), Uniform(1000, 4000), Uniform(1, 60), 200)
LIMITS = SLO(classes={"chat": SLO(ttft_p90=0.3, tpot_p99=0.04), "code": SLO(ttft_p99=2.0, e2e_p50=3.0)})


def mix(requests=800, chat=3.0, code=1.0):
    return Mix({"chat": Share(CHAT, chat), "code": Share(CODE, code, priority=1)}, requests)


def members(traffic, name):
    index = [known.name for known in traffic.classes].index(name)
    return np.flatnonzero(traffic.members == index)


@pytest.fixture
def scenario(make_pool, make_scenario):
    """Chat and code on one engine, each with limits of its own."""
    return make_scenario(make_pool(), workload=mix(), slo=LIMITS)


# who arrives


def test_every_class_has_its_share_of_the_requests():
    for chat, code, requests in ((3.0, 1.0, 800), (1.0, 1.0, 7), (2.0, 1.0, 100)):
        sizes = mix(requests, chat, code).traffic(0).sizes()
        assert sum(sizes.values()) == requests
        assert abs(sizes["chat"] - requests * chat / (chat + code)) <= 1


@pytest.mark.parametrize("arrivals", [Poisson(), Deterministic()])
def test_the_order_in_which_classes_are_written_changes_nothing(arrivals):
    own = Synthetic(arrivals, Uniform(1, 800), Uniform(1, 300), 50)
    shares = {name: Share(own, weight, priority) for name, weight, priority in (("b", 1, 0), ("a", 1, 2), ("c", 1, 1))}
    one, two = (Mix(dict(items), 100).traffic(3) for items in (shares.items(), reversed(shares.items())))
    assert one.sizes() == two.sizes() == {"a": 34, "b": 33, "c": 33}
    for name in ("times", "inputs", "outputs"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    who = [[traffic.classes[member] for member in traffic.members.tolist()] for traffic in (one, two)]
    assert who[0] == who[1]


def test_no_two_classes_of_a_mix_arrive_in_step():
    own = Synthetic(Deterministic(), Fixed(9), Fixed(9), 50)
    times = Mix({name: Share(own, 1.0) for name in "abc"}, 150).traffic(0).times
    assert np.diff(times).min() > 0


def test_a_class_draws_the_same_whatever_the_others_are():
    alone = Mix({"chat": Share(CHAT, 1.0)}, 600).traffic(5)
    traffic = mix().traffic(5)
    rows = members(traffic, "chat")
    for name in ("inputs", "outputs"):
        np.testing.assert_array_equal(getattr(traffic, name)[rows], getattr(alone, name))
    np.testing.assert_allclose(traffic.times[rows] / 800, alone.times / 600, rtol=1e-12)


def test_classes_of_one_workload_draw_apart():
    traffic = Mix({name: Share(CHAT, 1.0) for name in "ab"}, 1000).traffic(0)
    assert not np.array_equal(traffic.inputs[members(traffic, "a")], traffic.inputs[members(traffic, "b")])


def test_a_workload_shorter_than_its_share_repeats():
    traffic = mix(1600, 1.0, 1.0).traffic(0)
    inputs = traffic.inputs[members(traffic, "code")]
    for start in (200, 400, 600):
        np.testing.assert_array_equal(inputs[start : start + 200], inputs[:200])


def test_a_thinned_mix_keeps_every_request_in_its_class():
    traffic = mix().traffic(0)
    thinned = traffic.thinned(4)
    np.testing.assert_array_equal(thinned.inputs[members(thinned, "code")] >= 1000, True)
    np.testing.assert_array_equal(thinned.inputs[members(thinned, "chat")] <= 800, True)
    assert sum(thinned.sizes().values()) == len(thinned) == 200


def test_classes_that_nobody_looks_at_change_nothing(make_pool, make_scenario):
    traffic = mix().traffic(1)
    plain = Traffic(traffic.times, traffic.inputs, traffic.outputs)
    for scheduler in ("chunked_prefill", "vllm_v1", "slo_aware"):
        scenario = make_scenario(make_pool(scheduler=scheduler), workload=mix())
        classed, unclassed = (serve(scenario, draws, 4.0).to_json() for draws in (traffic, plain))
        assert classed.pop("classes") is not None
        assert unclassed.pop("classes") is None
        assert classed == unclassed


# what they are held to


def test_a_class_is_held_to_its_own_limits_and_everybody_else_to_the_rest(scenario):
    slo = replace(LIMITS, ttft_p99=0.5, classes={"code": LIMITS.classes["code"]})
    result = serve(replace(scenario, slo=slo), scenario.workload.traffic(0), 4.0)
    cohort = [r for r in result.requests if r.id >= 0][:800]
    assert set(result.slo) == {"ttft_p99", "classes.code.ttft_p99", "classes.code.e2e_p50"}
    for name, check in result.slo.items():
        metric, _, q = name.rpartition(".")[2].partition("_p")
        held = [r for r in cohort if (r.kind.name == "code") == name.startswith("classes.code")]
        assert check.observed == percentile([METRICS[metric](r) for r in held], float(q))
    good = [r.ttft <= 0.5 if r.kind.name == "chat" else r.ttft <= 2 and r.e2e <= 3 for r in cohort]
    assert [within(slo)(r) for r in cohort] == good
    assert result.attainment == sum(good) / 800


def test_what_is_said_of_the_classes_adds_up_to_the_whole(scenario):
    result = serve(scenario, scenario.workload.traffic(0), 6.0)
    classes = result.classes
    assert sum(got.requests.arrived for got in classes.values()) == result.window.requests.arrived == 800
    assert sum(got.goodput_tokens_per_second for got in classes.values()) == pytest.approx(
        result.goodput_tokens_per_second
    )
    shares = [got.attainment * got.requests.arrived for got in classes.values()]
    assert sum(shares) / 800 == pytest.approx(result.attainment)
    frame = result.requests_frame()
    assert set(frame["class"]) == {"chat", "code"}
    assert (frame["priority"] == (frame["class"] == "code")).all()
    longest = frame[(frame["class"] == "code") & (frame["id"] >= 0)].head(200)
    assert (longest["first_token"] - longest["arrived"]).max() >= classes["code"].latency["ttft"].p99


def test_one_missed_class_limit_is_a_missed_slo(scenario):
    strict = replace(LIMITS, classes=LIMITS.classes | {"code": SLO(ttft_p99=1e-3)})
    result = serve(replace(scenario, slo=strict), scenario.workload.traffic(0), 1.0)
    assert result.verdict == "slo_missed"
    assert result.reason.startswith("classes.code.ttft_p99 ")
    assert result.slo["classes.chat.ttft_p90"].met


def test_an_early_stop_by_class_never_changes_a_verdict(scenario):
    stopped = 0
    for case in range(24):
        chat, code = 0.01 * 2 ** (case % 8), 0.05 * 2 ** (case % 5)
        slo = SLO(classes={"chat": SLO(ttft_p90=chat), "code": SLO(ttft_p99=code)})
        traffic = mix(300).traffic(case)
        args = replace(scenario, slo=slo), traffic, (2.0, 5.0, 20.0)[case % 3]
        whole = serve(*args)
        cut = serve(*args, Doomed(slo, len(traffic), traffic.sizes()))
        assert (cut.verdict == "ok") == (whole.verdict == "ok")
        stopped += cut.counts.arrived < whole.counts.arrived
    assert stopped > 5


def test_a_request_knows_what_its_class_was_promised(scenario):
    result = serve(scenario, scenario.workload.traffic(0), 2.0)
    promised = {"chat": RequestClass("chat", 0, 0.3, 0.04), "code": RequestClass("code", 1, 2.0)}
    assert all(r.kind == promised[r.kind.name] and r.priority == r.kind.priority for r in result.requests)


# what is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["slo.classes.x.ttft_p99=3s"], r"slo\.classes\.x = .* the workload has none"),
        (
            ["workload=two_class", "slo.classes.interactve.ttft_p99=3s"],
            r"slo\.classes\.interactve .*interactive, batch",
        ),
        (["workload=two_class", "slo=two_class", "slo.ttft_p99=1s"], r"slo\.ttft_p99 = 1 s: has no effect"),
        (["slo.classes.x.ttft_p99=-3s"], r"slo\.classes\.x\.ttft_p99 .*must be positive"),
        (["workload=two_class", "workload.classes.batch.weight=0"], r"workload\.classes\.batch\.weight .*positive"),
        (["workload=two_class", "workload.classes.batch.workload=poisson_fixed"], r"batch\.workload\.rate .*no effect"),
        (["workload=two_class", "workload.classes.batch.workload=two_class"], "has no classes of its own"),
        (["scheduler=vllm_v1", "scheduler.policy=priority"], r"scheduler\.policy = priority: has no effect"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(overrides, message):
    with pytest.raises(InputError, match=message):
        build(Scenario, compose(overrides))


def test_two_classes_are_one_override_away_and_any_class_can_be_given_another_workload():
    config = compose(["workload=two_class", "slo=two_class", "workload.requests=200", "workload.rate=2"])
    result = simulate(config)
    assert list(result.classes) == ["interactive", "batch"]
    chosen = compose(["workload=two_class", "workload.classes.batch.workload=azure_conv"])["workload"]
    assert chosen["classes"]["batch"]["workload"] == compose(["workload=azure_conv"])["workload"]


def test_a_class_of_identical_instants_is_spread_evenly():
    class Burst:
        rate = None

        def own_rate(self):
            return 1.0

        def content(self):
            return ""

        def traffic(self, seed):
            return Traffic(np.zeros(50), Fixed(10).draw(50, None), Fixed(10).draw(50, None))

    traffic = Mix({"burst": Share(Burst(), 1.0)}, 10).traffic(0)
    np.testing.assert_allclose(np.diff(traffic.times), 1.0)
