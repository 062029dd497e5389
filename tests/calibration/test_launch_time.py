"""Laws of calibrating engines whose host launches kernels: their launch time is found again where the runs tell it.

Benchmarks are tables of runs as a user writes them, of runs of the simulator itself.
"""

import pytest

from mist.calibration.calibrate import AFTER, calibrate
from mist.calibration.forms import GRAPHS
from mist.calibration.page import unidentified
from mist.calibration.scalars import SCALARS
from mist.compose import compose
from mist.simulate import simulate

DEPLOYED = {"model": "llama-3.1-8b", "hardware": "h100", "tp": "1", "perf": "roofline"}
OWN = {**DEPLOYED, "engine": "vllm"}
LAUNCHED = {"launch_time": 260e-6, "front_end": 25e-3, "mixed_overhead": 8e-3, "request_overhead": 60e-6}
GRAPHED = {"step_overhead": 6e-3, "front_end": 25e-3, "mixed_overhead": 8e-3, "request_overhead": 90e-6}
SHAPES = [(1, 60, 60), (4, 60, 60), (16, 120, 200), (64, 60, 900), (128, 100, 900), (2, 12, 9000)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A table of closed loops of (clients, output, prompt tokens), served with ``true`` scalars; the same ones once."""
    known = {}

    def served(true, clients, output, prompt):
        asked = (*sorted(true.items()), clients, output, prompt)
        if asked not in known:
            config = compose([
                "slo=none", "window.drain=true", "window.warmup=0", "workload=closed_loop",
                f"workload.concurrency={clients}", f"workload.requests={max(2 * clients, 40)}",
                *(f"workload.{side}.{end}={n}" for side, n in (("inputs", prompt), ("outputs", output))
                  for end in ("low", "high")),
                "scheduler=vllm_v1", *(f"{address}={value}" for address, value in OWN.items()),
                *(f"engine.{scalar}={value * 1e6} us" for scalar, value in true.items()),
            ])  # fmt: skip
            seen = simulate(config).latency
            known[asked] = (seen["ttft"].mean * 1e3, seen["tpot"].mean * 1e3)
        return known[asked]

    def table(true, shapes=SHAPES):
        lines = ["model,backend,concurrency,input,output,requests,mean_ttft_ms,mean_tpot_ms"]
        for clients, output, prompt in shapes:
            ttft, tpot = served(true, clients, output, prompt)
            lines.append(f"llama-3.1-8b,vllm,{clients},{prompt},{output},{max(2 * clients, 40)},{ttft},{tpot}")
        file = tmp_path_factory.mktemp("runs") / "runs.csv"
        file.write_text("\n".join(lines))
        return str(file)

    return table


def found(answer):
    return {one.name: one for one in answer.estimates}


@pytest.fixture(scope="module")
def from_graphs(runs):
    """What is found in an eager engine's runs, beginning with a profile that replays CUDA graphs."""
    return calibrate([runs(LAUNCHED)], OWN)


@pytest.fixture(scope="module")
def from_launched(runs):
    """The same, beginning with a profile that does not."""
    return calibrate([runs(LAUNCHED)], {**OWN, "engine": "vllm_0_2", "engine.step_overhead": "485 us"})


@pytest.mark.parametrize("begun", ["from_graphs", "from_launched"])
def test_a_launch_time_that_made_a_benchmark_is_found_again(begun, request):
    estimates = found(request.getfixturevalue(begun))
    launch = estimates["launch_time"]
    assert launch.value == pytest.approx(LAUNCHED["launch_time"], rel=0.05)
    assert launch.low <= launch.value <= launch.high
    assert sum(one.low is not None for one in estimates.values()) <= 4


def test_what_it_finds_predicts_the_runs(from_graphs):
    errors = {score.metric: score.mape for score in from_graphs.scores if score.variant == AFTER}
    assert errors["tpot_mean"] < 0.02


def test_an_engine_that_replays_graphs_gets_no_launch_time(runs):
    estimates = found(calibrate([runs(GRAPHED)], OWN))
    assert (estimates["launch_time"].value, estimates["launch_time"].why) == (0.0, GRAPHS)
    assert estimates["step_overhead"].value == pytest.approx(GRAPHED["step_overhead"], rel=0.05)


def test_a_launch_time_is_given_up_where_graphs_fit_better(runs):
    own = {**OWN, "engine": "vllm_0_2", "engine.mixed_overhead": "8 ms"}
    estimates = found(calibrate([runs(GRAPHED)], own))
    assert estimates["launch_time"].value == 0
    assert estimates["step_overhead"].value == pytest.approx(GRAPHED["step_overhead"], rel=0.05)


def test_a_host_that_is_nowhere_the_slower_leaves_no_launch_time_and_says_so(runs):
    own = {**OWN, "engine": "vllm_0_2", "engine.mixed_overhead": "0 ms", "engine.step_overhead": "0 ms"}
    true = {
        "launch_time": 5e-6,
        "step_overhead": 0.0,
        "mixed_overhead": 0.0,
        "front_end": 25e-3,
        "request_overhead": 60e-6,
    }
    launch = found(calibrate([runs(true)], own))["launch_time"]
    assert (launch.value, launch.low) == (0, None)
    assert "nowhere the slower" in unidentified(launch)


def test_a_launch_time_that_is_given_is_held(runs):
    estimates = found(calibrate([runs(LAUNCHED)], {**OWN, "engine.launch_time": "260 us"}))
    assert estimates["launch_time"].why == "given: engine.launch_time=260 us"
    assert estimates["launch_time"].low is None


def test_steps_of_one_size_do_not_tell_the_host_from_an_overhead(runs):
    """Whatever stays the same in all runs may be either."""
    estimates = found(calibrate([runs(LAUNCHED, [(2, n, 60) for n in (40, 60, 80, 100, 120)])], OWN))
    assert sum(estimates[name].low is not None for name in ("launch_time", "step_overhead")) <= 1
    assert set(estimates) == set(SCALARS)
