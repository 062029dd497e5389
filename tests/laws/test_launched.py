"""Engines that replay no CUDA graph: a step takes what the slower of host and device takes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.build import build
from mist.compose import compose
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.inert import refuse_inert
from mist.model import ModelSpec
from mist.node import ISOLATED, NodeSpec
from mist.perf.base import Replica, StepShape
from mist.perf.engine import EngineProfile
from mist.perf.launched import LaunchedSteps, launched
from mist.perf.roofline import Roofline, RooflineSteps

SHAPES = [StepShape(1, 100), StepShape(64, 64 * 700), StepShape(0, 0, ((512, 0),)), StepShape(30, 9000, ((700, 0),))]
TIMES = ("started", "first_token", "finished")


@pytest.fixture(scope="module")
def roofline(sheet):
    return build(Roofline, sheet("perf", "roofline"))


@pytest.fixture(scope="module")
def replica(sheet):
    """Llama-3.1-8B on an H100, with fields of the engine; no overheads unless they are among them."""

    def of(tp=1, node=ISOLATED, **fields):
        free = {"step_overhead": 0.0, "request_overhead": 0.0, "mixed_overhead": 0.0}
        engine = replace(build(EngineProfile, sheet("engine", "vllm")), **free | fields)
        model, hardware = (
            build(ModelSpec, sheet("model", "llama-3.1-8b")),
            build(HardwareSpec, sheet("hardware", "h100")),
        )
        return Replica(model, hardware, tp, engine, node=node)

    return of


def test_a_replayed_graph_costs_nothing(roofline, replica):
    whole = replica(step_overhead=1e-3, request_overhead=1e-5, mixed_overhead=2e-3)
    assert type(roofline.of(whole)) is RooflineSteps
    assert launched(lambda one: RooflineSteps(roofline, one), whole).step_time(SHAPES[3]) == roofline.of(
        whole
    ).step_time(SHAPES[3])


def test_a_step_takes_what_the_slower_of_host_and_device_takes(roofline, replica):
    fields = {"step_overhead": 1e-3, "request_overhead": 1e-5, "mixed_overhead": 2e-3}
    bare = roofline.of(replica())
    for shape in SHAPES:
        for launch in (1e-6, 1e-3):
            host = 32 * launch + (2e-3 if shape.chunks else 0.0)
            expected = 1e-3 + shape.requests * 1e-5 + max(host, bare.step_time(shape))
            time = roofline.of(replica(launch_time=launch, **fields)).step_time(shape)
            assert time == pytest.approx(expected, rel=1e-12)


def test_more_devices_do_not_launch_faster_and_a_faster_host_does(roofline, replica):
    slow = NodeSpec("slow", host_speed=0.5)
    one, four = (roofline.of(replica(tp=tp, launch_time=1e-3)).step_time(SHAPES[0]) for tp in (1, 4))
    assert one == four == pytest.approx(0.032)
    assert roofline.of(replica(node=slow, launch_time=1e-3)).step_time(SHAPES[0]) == pytest.approx(0.064)


def test_devices_wait_for_each_other_at_every_all_reduce_and_one_for_nobody(roofline, replica):
    slow = NodeSpec("slow", host_speed=0.5)
    for shape in SHAPES:
        for tp, node, waits in ((1, ISOLATED, 0), (4, ISOLATED, 2 * 32), (4, slow, 4 * 32)):
            waiting, bare = (
                roofline.of(replica(tp, node, collective_wait=wait)).step_time(shape) for wait in (1e-5, 0)
            )
            assert waiting - bare == pytest.approx(waits * 1e-5, rel=1e-9)


def test_kernels_of_another_version_take_a_factor_longer(roofline, replica):
    for shape in SHAPES:
        timed = RooflineSteps(roofline, replica()).step_time(shape)
        slower = launched(lambda one: RooflineSteps(roofline, one), replica(mixed_overhead=2e-3), 1.5).step_time(shape)
        assert slower == pytest.approx(1.5 * timed + (2e-3 if shape.chunks else 0.0))


@pytest.mark.parametrize("launch", [0.0, 100e-6, 900e-6])
def test_what_reading_a_common_prefix_once_costs_is_the_hosts(launch, roofline, replica):
    """Other kernels are no reason for it to take longer, and beside a device that is busier it is hidden."""
    shape = StepShape(64, 64 * 3000, shared=2048)
    bare = RooflineSteps(roofline, replica(cascade_overhead=0.0))
    whole = replica(launch_time=launch, cascade_overhead=2e-3, mixed_overhead=1.0)
    model = launched(lambda one: RooflineSteps(roofline, one), whole, 1.5)
    device, host = 1.5 * bare.step_time(shape), 32 * launch + 2e-3
    expected = max(device, host) if launch else device + 2e-3
    assert model.step_time(shape) == pytest.approx(expected, rel=1e-12)
    stretch = model.decode_stretch(64, 64 * 3000, 0, 2048)
    assert stretch.first == pytest.approx(expected, rel=1e-12)
    step = int(min(stretch.steps, 500)) - 1
    later = model.step_time(StepShape(64, 64 * (3000 + step), shared=2048))
    assert stretch.first + step * stretch.slope == pytest.approx(later, rel=1e-9)


@settings(max_examples=60)
@given(
    decodes=st.integers(1, 300), context=st.integers(1, 3000), launch=st.floats(50e-6, 900e-6), factor=st.floats(0.5, 2)
)
def test_a_stretch_across_the_crossing_is_the_steps_it_stands_for(roofline, replica, decodes, context, launch, factor):
    whole = replica(launch_time=launch, request_overhead=1e-5)
    model = launched(lambda one: RooflineSteps(roofline, one), whole, factor)
    ahead = 0
    for _ in range(4):
        stretch = model.decode_stretch(decodes, decodes * context + ahead * decodes)
        count = int(min(stretch.steps, 50_000))
        assert count >= 1
        for i in {0, 1, count // 2, count - 1} & set(range(count)):
            time = model.step_time(StepShape(decodes, decodes * (context + ahead + i)))
            assert stretch.first + i * stretch.slope == pytest.approx(time, rel=1e-12)
        ahead += count


def test_a_stretch_is_level_up_to_the_crossing_and_no_further(roofline, replica):
    model, bare = roofline.of(replica(launch_time=500e-6)), roofline.of(replica())
    level = model.decode_stretch(64, 64 * 100)
    assert level.slope == 0
    assert level.first == 0.016
    beyond = StepShape(64, 64 * (100 + int(level.steps)))
    assert bare.step_time(StepShape(64, 64 * (99 + int(level.steps)))) <= 0.016 < bare.step_time(beyond)
    assert model.decode_stretch(*beyond[:2]).slope > 0


def test_leaping_equals_stepping_where_the_host_is_the_slower(make_pool, drive, poisson):
    load = poisson(5, 80, 30.0, (1, 4000), (1, 600))
    pool = make_pool(engine={"launch_time": "300 us", "mixed_overhead": "4 ms"}, limits={"max_running": 64})
    fast, slow = drive(pool, load), drive(pool, load, one_by_one=True)
    assert sum(client.leaps for client in fast.clients) < sum(client.leaps for client in slow.clients)
    for name in TIMES:
        np.testing.assert_allclose(fast.column(name), slow.column(name), rtol=1e-12, atol=0)


def test_what_explains_a_step_adds_up_to_it(roofline, replica):
    model = roofline.of(replica(launch_time=300e-6, step_overhead=1e-3))
    assert isinstance(model, LaunchedSteps)
    for shape in SHAPES:
        parts = model.explain(shape)
        assert sum(part.seconds for part in parts) == pytest.approx(model.step_time(shape), rel=1e-12)
        assert parts[-1].source == "fitted"
        assert parts[-1].seconds >= 1e-3 * (1 - 1e-9)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.launch_time=-1us", "must not be negative"),
        ("engine.collective_wait=-1us", "must not be negative"),
        ("engine.kernel_factor=0", "must be positive"),
        ("node.host_speed=0", "must be positive"),
    ],
)
def test_impossible_hosts_and_kernels_are_refused(override, message):
    with pytest.raises(InputError, match=message):
        refuse_inert(
            ["tp=2", override, "node.peer_to_peer=false"], compose(["tp=2", override, "node.peer_to_peer=false"])
        )


def test_a_hosts_speed_needs_somebody_who_launches():
    for engine, refused in (("vllm", True), ("vllm_0_2", False)):
        overrides = [f"engine={engine}", "node=pcie-box", "tp=2", "node.host_speed=0.5"]
        if refused:
            with pytest.raises(InputError, match=r"host_speed.* has no effect: .*engine\.launch_time"):
                refuse_inert(overrides, compose(overrides))
        else:
            refuse_inert(overrides, compose(overrides))
            refuse_inert([*overrides[:1], "node=hgx-a100"], compose([*overrides[:1], "node=hgx-a100"]))


@pytest.mark.parametrize(
    "overrides",
    [
        ["engine.kernel_factor=1.2", "perf=roofline"],
        ["engine.kernel_factor=1.2", "hardware=mi300x"],
    ],
)
def test_a_kernel_factor_needs_timed_kernels(overrides):
    with pytest.raises(InputError, match=r"kernel_factor.* has no effect"):
        refuse_inert(overrides, compose(overrides))
