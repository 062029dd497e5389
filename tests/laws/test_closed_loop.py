"""A closed loop: so many clients in the system, each behind its own last answer; the rate is theirs to make."""

from math import inf

import numpy as np
import pytest

from mist.errors import InputError
from mist.metrics import METRICS
from mist.scenario import Window
from mist.simulate import serve, simulate
from mist.slo import SLO
from mist.sweep.capacity import capacity
from mist.sweep.identity import canonical
from mist.workload.closed_loop import ClosedLoop, ClosedTrace
from mist.workload.lengths import Fixed, Uniform
from mist.workload.mix import Share

STEADY, BENCHMARK = Window(warmup=0.5), Window(warmup=0.0, drain=True)


@pytest.fixture(scope="module")
def looped(make_pool, make_scenario, tiny, linear):
    """Serve a closed loop on one tiny server; fields are the loop's, then the engine's and the window."""

    def run(window=STEADY, engine=None, limits=None, outputs=None, **fields):
        pool = make_pool(model=tiny, scheduler="vllm_v1", perf=linear(0.01, 1e-4, 1e-7), engine=engine, limits=limits)
        fields = {"requests": 400, "concurrency": 8, **fields}
        loop = ClosedLoop(inputs=Uniform(20, 100), outputs=outputs or Uniform(5, 50), **fields)
        scenario = make_scenario(pool, loop, slo=SLO(ttft_p99=1e6), window=window)
        return serve(scenario, loop.traffic(0), scenario.rate)

    return run


def in_system(requests, instant):
    return sum(r.arrived <= instant < (r.finished if r.finished >= 0 else inf) for r in requests)


@pytest.mark.parametrize(("clients", "think"), [(1, 0.0), (3, 0.0), (8, 0.5), (64, 0.0), (64, 2.0)])
def test_concurrency_is_throughput_times_response_and_think_time(looped, clients, think):
    """Little's law; exact but for what is under way at the two ends of the window."""
    result = looped(concurrency=clients, think=think, requests=4000)
    response = result.latency["e2e"].mean + think
    assert result.rate * response == pytest.approx(clients, rel=2 * clients / 4000 + 1e-9)


@pytest.mark.parametrize("clients", [1, 8, 50])
def test_without_think_time_every_client_is_always_in_the_system(looped, clients):
    result = looped(concurrency=clients)
    spans = np.linspace(0, result.window.end, 40, endpoint=False)
    assert {in_system(result.requests, instant) for instant in spans} == {clients}


def test_a_client_sends_when_it_has_thought_about_its_last_answer(looped):
    result = looped(concurrency=3, think=0.25, window=BENCHMARK)
    sent = sorted(r.arrived for r in result.requests)[3:]
    heard = sorted(r.finished for r in result.requests)[: len(sent)]
    assert sent == pytest.approx([time + 0.25 for time in heard])


def test_a_benchmark_sends_its_requests_and_no_more_and_waits_for_all(looped):
    result = looped(window=BENCHMARK)
    assert result.counts.arrived == result.counts.completed == 400
    assert result.window.start == 0
    assert result.window.end == max(r.finished for r in result.requests)
    assert result.requests_per_second == pytest.approx(400 / result.window.end)


def test_all_at_once_is_a_client_for_every_request(looped):
    result = looped(window=BENCHMARK, concurrency=None)
    assert {r.arrived for r in result.requests} == {0.0}
    assert result.counts.completed == 400


def test_the_steady_window_ends_when_the_request_after_it_is_sent(looped):
    result = looped()
    assert result.window.end == result.requests[600].arrived
    assert result.window.requests.arrived == result.window.requests.completed == 400
    assert result.window.backlog_start == result.window.backlog_end


def test_more_clients_never_serve_fewer_requests_a_second(looped):
    rates = [looped(concurrency=clients, outputs=Fixed(20)).rate for clients in (1, 2, 4, 8, 16, 32)]
    assert rates == sorted(rates)


def test_a_closed_loop_repeats_itself_to_the_last_bit(looped):
    once, again = looped(), looped()
    for metric in METRICS.values():
        assert [metric(r) for r in once.requests] == [metric(r) for r in again.requests]


def test_the_same_seed_draws_the_same_requests_and_another_seed_other_ones():
    loop = ClosedLoop(inputs=Uniform(20, 100), outputs=Uniform(5, 50), requests=100, concurrency=4)
    one, same, other = (loop.traffic(seed).inputs.tolist() for seed in (3, 3, 4))
    assert one == same != other


def test_refused_requests_are_answers_too(looped):
    result = looped(window=BENCHMARK, engine={"block_tokens": 16}, outputs=Fixed(10**9))
    assert result.counts.refused == 400
    assert result.requests_per_second == 0


def test_an_open_benchmark_ends_with_its_last_answer(make_pool, make_scenario, drawn, tiny, linear):
    pool = make_pool(model=tiny, scheduler="vllm_v1", perf=linear(0.01, 1e-4))
    scenario = make_scenario(pool, drawn(n=200), window=BENCHMARK)
    traffic = scenario.workload.traffic(0)
    result = serve(scenario, traffic, 2.0)
    assert result.counts.completed == result.counts.arrived == 200
    assert [r.arrived for r in result.requests] == pytest.approx(((traffic.times - traffic.times[0]) / 2).tolist())
    assert result.window.end == max(r.finished for r in result.requests)


def test_a_drained_benchmark_is_the_open_loop_without_those_that_follow(make_pool, make_scenario, drawn, tiny, linear):
    pool = make_pool(model=tiny, scheduler="vllm_v1", perf=linear(0.01, 1e-4))
    drained, followed = (
        serve(scenario, scenario.workload.traffic(0), 0.01)
        for scenario in (
            make_scenario(pool, drawn(n=100), window=Window(warmup=0.0, drain=drain)) for drain in (True, False)
        )
    )
    for name in METRICS:
        ours, theirs = (getattr(r.latency[name], "mean") for r in (drained, followed))  # noqa: B009
        assert ours == pytest.approx(theirs, rel=1e-9)  # so far apart that nobody meets anybody


# the front end


def test_a_front_end_delays_first_tokens_and_nothing_between_tokens(looped):
    plain, delayed = (looped(concurrency=1, engine={"front_end": delay}) for delay in (0.0, 0.03))
    for ours, theirs in zip(plain.requests, delayed.requests, strict=False):
        assert theirs.ttft == pytest.approx(ours.ttft + 0.03)
        assert theirs.tpot == pytest.approx(ours.tpot)


def test_a_front_end_makes_a_client_miss_the_step_after_its_answer(looped):
    """However short it is: the engine goes on at once, so the new request waits for a whole step."""
    prompt, token = 0.01 + 20 * 1e-4, 0.01
    plain, late = (
        np.median([r.ttft for r in looped(concurrency=2, engine={"front_end": delay}).requests]) for delay in (0, 1e-6)
    )
    assert plain >= prompt
    assert late - plain == pytest.approx(token, rel=0.5)


# who asks for what makes no sense


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"concurrency": 0}, "concurrency = 0: must be at least 1"),
        ({"concurrency": 500}, "concurrency = 500: there are only 400 requests to send"),
        ({"think": -1.0}, "think = -1.0: must not be negative"),
        ({"concurrency": None, "think": 1.0}, "think = 1.0: has no effect"),
        ({"requests": 0}, "requests = 0"),
    ],
)
def test_a_loop_that_cannot_be_is_refused(fields, why):
    fields = {"requests": 400, "concurrency": 8, **fields}
    with pytest.raises(InputError, match=why):
        ClosedLoop(inputs=Fixed(10), outputs=Fixed(10), **fields)


def test_a_rate_is_not_sought_where_there_is_none():
    from mist.compose import compose

    config = compose(["workload=closed_loop"])
    for seeks in (capacity, canonical):
        with pytest.raises(InputError, match=r"64 clients in a closed loop: .* no rate to seek"):
            seeks(config)
    with pytest.raises(InputError, match="no rate to take a share of"):
        Share(ClosedLoop(Fixed(1), Fixed(1), 10, 5), 1.0)


def test_a_limit_no_request_keeps_is_told_of_a_closed_loop_too():
    from mist.compose import compose
    from mist.errors import UnmeetableSLO

    with pytest.raises(UnmeetableSLO, match="even alone"):
        simulate(compose(["workload=closed_loop", "workload.requests=64", "slo=none", "slo.ttft_p99=1us"]))


def test_a_file_is_taken_in_its_order_whatever_its_times(tmp_path):
    from mist.compose import compose

    file = tmp_path / "trace.csv"
    file.write_text("arrival,input,output\n" + "".join(f"{i * 60},{100 + i},{10 + i % 3}\n" for i in range(40)))
    overrides = ["workload=closed_trace", f"workload.path={file}", "workload.concurrency=4", "slo=none"]
    result = simulate(compose([*overrides, "window.drain=true", "window.warmup=0"]))
    assert [(r.input, r.output) for r in result.requests] == [(100 + i, 10 + i % 3) for i in range(40)]
    assert result.window.end < 60
    with pytest.raises(InputError, match=r"workload\.concurrency = 41: there are only 40 requests"):
        ClosedTrace(str(file), 41).traffic(0)
