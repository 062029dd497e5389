"""Energy: bounded by idle and full power, additive, more for more work."""

from itertools import pairwise

import numpy as np
import pytest

from mist.build import build
from mist.cluster import Cluster
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.kernel import Kernel
from mist.model import ModelSpec
from mist.perf.base import Replica, StepShape
from mist.perf.engine import EngineProfile
from mist.perf.power import LINEAR, LinearPower
from mist.perf.roofline import Roofline
from mist.request import Request
from mist.scenario import Window
from mist.simulate import serve
from mist.speculation import NGram
from mist.workload.traffic import Traffic


@pytest.fixture(scope="module")
def replica(sheet):
    def of(model, hardware="h100", tp=1, **degrees):
        specs = build(ModelSpec, sheet("model", model)), build(HardwareSpec, sheet("hardware", hardware))
        return Replica(*specs, tp, build(EngineProfile, sheet("engine", "vllm")), **degrees)

    return of


@pytest.fixture(scope="module")
def run(make_pool, make_scenario, drawn):
    """The Result of a deployment at a rate."""

    def of(rate, pools=None, **fields):
        scenario = make_scenario(pools or make_pool(**fields), drawn(n=400))
        return serve(scenario, scenario.workload.traffic(1), rate)

    return of


def test_a_stretch_draws_what_its_steps_draw(model_name, replica):
    load = LINEAR.of(replica(model_name))
    for decodes, context in ((1, 5), (7, 3500), (64, 6400), (64, 64 * 4090), (64, 64 * 5000)):
        for steps in (1, 2, 40):
            singly = sum(load.step(StepShape(decodes, context + i * decodes)) for i in range(steps))
            assert load.stretch(decodes, context, steps) == pytest.approx(singly, rel=1e-12)


def test_prompts_bring_a_device_near_its_limit_and_decodes_do_not(replica, sheet):
    llama, perf = replica("llama-3.1-8b", "h200"), build(Roofline, sheet("perf", "roofline"))
    times, load = perf.of(llama), LINEAR.of(llama, perf.matmul_efficiency, perf.bandwidth_efficiency)
    prompt, decode = StepShape(0, 0, ((8192, 0),)), StepShape(32, 32 * 1000)
    assert load.step(prompt) / times.step_time(prompt) > 0.8
    watts = 74 + (700 - 74) * load.step(decode) / times.step_time(decode)
    assert 137 <= watts <= 300  # as arXiv:2605.11999 measures decoding on an H200


def test_work_does_not_depend_on_how_it_is_spread(replica):
    alone, halves = LINEAR.of(replica("llama-3.1-8b")), LINEAR.of(replica("llama-3.1-8b", tp=2))
    for shape in (StepShape(64, 64 * 700), StepShape(3, 90, ((500, 100),))):
        assert 2 * halves.step(shape) == pytest.approx(alone.step(shape), rel=1e-9)


@pytest.mark.parametrize("fields", [{}, {"tp": 2}, {"pp": 2}, {"model": "mixtral-8x7b", "tp": 2, "dp": 2, "ep": 4}])
@pytest.mark.parametrize("rate", [0.2, 2.0])
def test_energy_lies_between_idle_and_full_power(fields, rate, run, sheet):
    device = build(HardwareSpec, sheet("hardware", "h100"))
    result = run(rate, **fields)
    (pool,) = result.pools.values()
    assert device.idle_power < pool.watts < device.power
    assert pool.devices * device.idle_power < result.watts < pool.devices * device.power
    assert result.joules_per_token * result.tokens_per_joule == pytest.approx(1)


def test_a_busier_replica_draws_more_and_less_per_token(run):
    results = [run(rate) for rate in (0.1, 0.5, 2.0, 8.0)]
    watts, each = ([getattr(r, name) for r in results] for name in ("watts", "joules_per_token"))
    assert watts == sorted(watts)
    assert each == sorted(each, reverse=True)


def test_a_cluster_with_nothing_to_do_draws_idle_power(make_pool, drive, sheet):
    device = build(HardwareSpec, sheet("hardware", "h100"))
    cluster = drive(make_pool(tp=2, replicas=3), []).cluster
    cluster.kernel.now = 10.0
    assert cluster.joules == pytest.approx(10 * 6 * device.idle_power)


def test_energy_adds_up_over_pools_and_leaps(make_pool, drive, poisson, linear):
    load = poisson(2, 60, 20.0, (1, 300), (1, 100))
    pool = make_pool(perf=linear(0.02, 1e-6, 1e-8), replicas=2)
    fast, slow = drive(pool, load), drive(pool, load, one_by_one=True)
    assert fast.cluster.joules == pytest.approx(slow.cluster.joules, rel=1e-9)
    now = fast.kernel.now
    assert fast.cluster.joules == sum(pool.joules(now) for pool in fast.cluster.pools.values())


@pytest.mark.parametrize("fields", [{}, {"pp": 2}, {"speculation": NGram(tokens=2, acceptance=0.5)}])
def test_energy_up_to_any_instant_is_the_same_stepping_and_leaping(fields, make_pool, drive, poisson, linear, sheet):
    """An instant in the middle of a step has seen its part of it."""
    device = build(HardwareSpec, sheet("hardware", "h100"))
    pool = make_pool(perf=linear(0.02, 1e-6, 1e-8), **fields)
    load, before, since = poisson(2, 12, 4.0, (1, 300), (1, 400)), 0.0, 0.0
    for until in np.cumsum([0.013] * 40 + [0.41] * 20).tolist():
        drawn = []
        for twin in (False, True):
            run = drive(pool, load, one_by_one=twin, until=until)
            run.kernel.now = until
            drawn.append(run.cluster.joules)
        assert drawn[0] == pytest.approx(drawn[1], rel=1e-9)
        watts = (drawn[0] - before) / (until - since) / pool.devices
        assert device.idle_power * (1 - 1e-9) <= watts <= device.power * (1 + 1e-9)
        before, since = drawn[0], until


def test_the_watts_of_a_window_are_those_between_its_edges(make_pool, make_scenario, linear):
    """Answers of four windows: every window draws what its steps draw, wherever events fall."""
    traffic = Traffic(np.zeros(1), np.array([10]), np.array([1990]))
    pool = make_pool(perf=linear(0.02))
    ends = [serve(make_scenario(pool, window=Window(warmup=warm)), traffic, 0.1) for warm in (8, 9, 10)]
    kernel = Kernel()
    cluster = Cluster(kernel, {"llm": pool}, None)
    marks = []
    for id_ in range(11):
        kernel.run(until=10.0 * id_)
        kernel.now = 10.0 * id_
        marks.append(cluster.joules)
        kernel.at(kernel.now, cluster.arrive, Request(id_, kernel.now, 10, 1990))
    kernel.run(until=110.0)
    kernel.now = 110.0
    marks.append(cluster.joules)
    own = [(after - before) / 10.0 for before, after in pairwise(marks)][8:]
    assert [result.watts for result in ends] == pytest.approx(own, rel=1e-9)


def test_a_share_of_power_lies_between_nothing_and_all():
    with pytest.raises(InputError, match="memory_share"):
        LinearPower(1.5)
