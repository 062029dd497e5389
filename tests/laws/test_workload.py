"""Laws of traffic: what a workload draws, and what it refuses."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from mist.build import build, plain
from mist.compose import compose
from mist.errors import InputError
from mist.workload.arrivals import Deterministic, Gamma, Poisson
from mist.workload.empirical import Empirical
from mist.workload.fit import fit, yaml_text
from mist.workload.lengths import Fixed, Geometric, Lognormal, Uniform
from mist.workload.quantiles import curve
from mist.workload.synthetic import Synthetic
from mist.workload.trace import Trace
from mist.workload.traffic import Traffic, Workload, class_names

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "workload").glob("*.yaml"))
CLOSED = ("all_at_once", "closed_loop", "closed_trace")  # they have no rate: test_closed_loop.py
OPEN = [path for path in CONFIGS if path.stem not in CLOSED]
DRAWN = [path for path in OPEN if '\npath: ""' not in path.read_text()]  # the others want a file
AZURE = Path(os.environ.get("MIST_DATA", "")) / "traces" / "azure-2023"
MOONCAKE = AZURE.parent / "mooncake" / "conversation_trace.jsonl"
needs_traces = pytest.mark.skipif(not os.environ.get("MIST_DATA"), reason="MIST_DATA names no folder of traces")
drawn = pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.stem)


def load(path):
    return build(Workload, compose([f"workload={path.stem}"])["workload"])


def same(one, other):
    return all(np.array_equal(getattr(one, f), getattr(other, f)) for f in ("times", "inputs", "outputs"))


def dispersion(traffic, requests):
    """Index of dispersion of counts in windows of so many mean gaps."""
    counts = np.histogram(traffic.times, bins=np.arange(0, len(traffic), requests))[0]
    return counts.var() / counts.mean()


def spearman(traffic):
    ranks = [np.unique(x, return_inverse=True)[1] for x in (traffic.inputs, traffic.outputs)]
    middle = [(np.cumsum(np.bincount(r)) - (np.bincount(r) - 1) / 2)[r] for r in ranks]
    return np.corrcoef(*middle)[0, 1]


def azure(kind):
    return Trace(str(AZURE / f"AzureLLMInferenceTrace_{kind}.csv"))


# every workload


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_workload_in_conf_builds_and_its_plain_form_builds_the_same(path):
    workload = load(path)
    assert build(Workload, plain(workload)) == workload


@drawn
def test_the_same_seed_draws_the_same_traffic_and_another_seed_other_traffic(path):
    workload = load(path)
    assert same(workload.traffic(3), load(path).traffic(3))
    assert not same(workload.traffic(3), workload.traffic(4))


@drawn
def test_the_rate_changes_nothing_of_what_is_drawn(path):
    workload = load(path)
    assert same(workload.traffic(1), replace(workload, rate=123.0).traffic(1))


@drawn
def test_a_cycle_has_as_many_requests_as_asked_for_however_few(path):
    for requests in (1, 2, 7, 100, 4321):
        if requests < len(class_names(load(path))):
            continue  # each class has at least one
        assert len(replace(load(path), requests=requests).traffic(0)) == requests


@drawn
def test_every_workload_has_a_positive_own_rate_and_only_files_have_content(path):
    assert load(path).own_rate() > 0
    assert load(path).content() == ""


@pytest.mark.parametrize("rate", [0.0, -1.0])
@pytest.mark.parametrize("path", OPEN, ids=lambda path: path.stem)
def test_a_rate_that_is_not_positive_is_refused_by_name(path, rate):
    with pytest.raises(InputError, match=r"^workload\.rate = .*positive"):
        build(Workload, {**compose([f"workload={path.stem}"])["workload"], "rate": rate}, "workload")


@drawn
def test_a_cycle_of_no_requests_is_refused(path):
    with pytest.raises(InputError, match="requests = 0"):
        replace(load(path), requests=0)


# textbook distributions


@pytest.mark.parametrize(
    ("lengths", "mean", "cv"),
    [
        (Fixed(700), 700, 0),
        (Uniform(101, 300), 200.5, 57.73 / 200.5),
        (Geometric(200), 200, (1 - 1 / 200) ** 0.5),
        (Lognormal(500, 1.2), 500, 1.2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_lengths_have_the_mean_and_variation_they_are_named_after(lengths, mean, cv):
    drawn = lengths.draw(400_000, np.random.default_rng(5))
    assert drawn.min() >= 1
    assert drawn.mean() == pytest.approx(mean, rel=0.01)
    assert drawn.std() / drawn.mean() == pytest.approx(cv, rel=0.03, abs=1e-9)


@pytest.mark.parametrize(
    ("arrivals", "cv"), [(Poisson(), 1), (Gamma(0.4), 0.4), (Gamma(3), 3), (Deterministic(), 0)], ids=str
)
def test_gaps_average_one_and_vary_as_much_as_their_process(arrivals, cv):
    times = Synthetic(arrivals, Fixed(1), Fixed(1), 200_000).traffic(0).times
    gaps = np.diff(np.append(times, len(times)))
    assert gaps.mean() == pytest.approx(1, rel=1e-9)
    assert gaps.std() == pytest.approx(cv, rel=0.03, abs=1e-6)


def test_poisson_counts_are_as_dispersed_as_their_mean_at_every_scale():
    traffic = Synthetic(Poisson(), Fixed(1), Fixed(1), 300_000).traffic(1)
    for window in (1, 10, 100):
        assert dispersion(traffic, window) == pytest.approx(1, rel=0.06)


@pytest.mark.parametrize("cv", [0, 1], ids=["M/D/1", "M/M/1"])
def test_one_server_waits_as_pollaczek_and_khinchine_say(cv):
    load_factor, mean = 0.7, 1000
    lengths = Geometric(mean) if cv else Fixed(mean)
    traffic = Synthetic(Poisson(), lengths, Fixed(1), 400_000).traffic(2)
    gaps, service = np.diff(traffic.times) * mean / load_factor, traffic.inputs[:-1]
    backlog = np.concatenate(([0.0], np.cumsum(service - gaps)))
    waits = backlog - np.minimum.accumulate(backlog)
    theory = mean * load_factor * (1 + cv**2) / (2 * (1 - load_factor))
    assert waits.mean() == pytest.approx(theory, rel=0.05)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Fixed(0), "tokens"),
        (lambda: Uniform(0, 3), "low"),
        (lambda: Uniform(5, 3), "high"),
        (lambda: Geometric(0.5), "mean"),
        (lambda: Lognormal(0.1, 1), "mean"),
        (lambda: Lognormal(10, 0), "cv"),
        (lambda: Gamma(0), "cv"),
    ],
)
def test_impossible_distributions_are_refused_by_field(make, field):
    with pytest.raises(InputError) as error:
        make()
    assert error.value.field == field


# empirical tables


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "two knots"),
        ("0:1", "two knots"),
        ("0:1 1:x", "two knots"),
        ("0:1 1", "two knots"),
        ("0:1 1:nan", "two knots"),
        ("0.1:1 1:2", "levels"),
        ("0:1 0.7:2 0.5:3", "levels"),
        ("0:2 1:1", "values"),
        ("0:-2 1:1", "values"),
    ],
)
def test_a_malformed_curve_is_refused_with_its_address(text, why):
    config = yaml.safe_load(next(p for p in CONFIGS if p.stem == "azure_conv").read_text())
    config["lengths"]["s03"]["inputs"] = text
    with pytest.raises(InputError, match=why) as error:
        build(Workload, config, "workload")
    assert error.value.field == "workload.lengths.s03.inputs"


def test_tables_fitted_to_a_recording_give_back_its_rate_moments_and_joint_lengths():
    chance = np.random.default_rng(0)
    n = 6000
    pace = 1 + 0.5 * np.sin(np.linspace(0, 2 * np.pi, n))
    gaps = chance.exponential(size=n) / pace
    inputs = chance.integers(1, 2000, n)
    outputs = np.maximum(1, (inputs * chance.uniform(0.05, 0.2, n) * pace).astype(int))
    recording = Traffic(np.cumsum(gaps) * (n - 1) / gaps.sum(), inputs, outputs)
    tables = fit(recording, 2.5, "made up", segments=8)
    assert tables.own_rate() == pytest.approx(2.5, rel=1e-4)
    for seed in range(3):
        traffic = tables.traffic(seed)
        assert traffic.inputs.mean() == pytest.approx(inputs.mean(), rel=0.01)
        assert traffic.outputs.mean() == pytest.approx(outputs.mean(), rel=0.01)
        assert spearman(traffic) == pytest.approx(spearman(recording), abs=0.03)
        for window in (20, 500):
            assert dispersion(traffic, window) == pytest.approx(dispersion(recording, window), rel=0.25)
    assert build(Workload, yaml.safe_load(yaml_text(tables, "made up"))) == tables


@pytest.mark.parametrize("requests", [500, 4000])
@pytest.mark.parametrize("name", ["azure_conv", "azure_code"])
def test_seeds_change_the_order_of_lengths_and_hardly_their_mean(name, requests):
    tables = replace(load(next(p for p in CONFIGS if p.stem == name)), requests=requests)
    means = np.array([[t.inputs.mean(), t.outputs.mean()] for t in (tables.traffic(seed) for seed in range(8))])
    spread = means.std(axis=0) / means.mean(axis=0)
    independent = np.array([[t.inputs.std() / t.inputs.mean()] for t in [tables.traffic(0)]]) / requests**0.5
    assert spread[0] < 0.35 * independent.item()
    assert spread[1] < 0.09


def test_a_curve_is_monotone_between_its_knots():
    levels = np.linspace(0, 1, 1001)
    assert np.all(np.diff(curve("0:2 0.5:2 0.5:100 1:1000")(levels)) >= 0)


# against the recordings


@needs_traces
@pytest.mark.parametrize("kind", ["conv", "code"])
def test_drawn_traffic_has_the_moments_quantiles_and_dispersion_of_the_recording(kind):
    trace, tables = azure(kind), load(next(p for p in CONFIGS if p.stem == f"azure_{kind}"))
    recorded = trace.traffic(0)
    assert tables.own_rate() == pytest.approx(trace.own_rate(), rel=1e-4)
    assert tables.requests == len(recorded)
    for seed in range(3):
        traffic = tables.traffic(seed)
        for field in ("inputs", "outputs"):
            real, drawn = getattr(recorded, field), getattr(traffic, field)
            assert drawn.mean() == pytest.approx(real.mean(), rel=0.01)
            assert drawn.std() == pytest.approx(real.std(), rel=0.03)
            for level, within in ((10, 0.08), (50, 0.08), (75, 0.08), (90, 0.08), (95, 0.08), (99, 0.08), (99.9, 0.08)):
                assert np.percentile(drawn, level) == pytest.approx(np.percentile(real, level), rel=within, abs=5)
        assert spearman(traffic) == pytest.approx(spearman(recorded), abs=0.03)
        for window in (0.5, 2, 5, 20, 100, 300, 1000):
            assert dispersion(traffic, window) == pytest.approx(dispersion(recorded, window), rel=0.2)


@needs_traces
def test_requests_in_flight_at_p99_are_those_of_the_replay():
    """Infinitely many servers at 20 ms a token: what the batch of an unsaturated engine sees."""
    tables = load(next(p for p in CONFIGS if p.stem == "azure_conv"))

    def in_flight(traffic, rate):
        starts = traffic.times / rate
        ends = np.sort(starts + 0.02 * traffic.outputs)
        return np.percentile(np.arange(len(traffic)) - np.searchsorted(ends, starts), 99)

    for rate in (5, 20, 80):
        drawn = np.mean([in_flight(tables.traffic(seed), rate) for seed in range(4)])
        assert drawn == pytest.approx(in_flight(azure("conv").traffic(0), rate), rel=0.05)


@needs_traces
def test_the_wait_at_one_prefill_server_is_that_of_the_replay():
    """The recursion of Lindley, prompts served at 20,000 tokens/s: P99 wait over six seeds within a quarter.

    A quarter in waiting is a few percent in rate at these loads.
    """
    tables = load(next(p for p in CONFIGS if p.stem == "azure_conv"))

    def wait(traffic, rate):
        backlog = np.concatenate(([0.0], np.cumsum(traffic.inputs[:-1] / 20_000 - np.diff(traffic.times) / rate)))
        return np.percentile(backlog - np.minimum.accumulate(backlog), 99)

    recorded = azure("conv").traffic(0)
    for load_factor in (0.3, 0.5, 0.6):
        rate = load_factor * 20_000 / recorded.inputs.mean()
        drawn = np.mean([wait(tables.traffic(seed), rate) for seed in range(6)])
        assert drawn == pytest.approx(wait(recorded, rate), rel=0.25)


@needs_traces
def test_the_tables_in_conf_are_what_the_fit_makes_of_the_recording():
    tables = load(next(p for p in CONFIGS if p.stem == "azure_conv"))
    trace = azure("conv")
    assert fit(trace.traffic(0), trace.own_rate(), tables.source) == tables


@needs_traces
def test_a_mooncake_file_replays_at_its_published_rate():
    trace = Trace(str(MOONCAKE))
    assert len(trace.traffic(0)) == 12_031
    assert trace.own_rate() == pytest.approx(3.40, abs=0.01)
    assert trace.traffic(0).inputs.mean() == pytest.approx(12_035, rel=0.001)
    assert isinstance(load(next(p for p in CONFIGS if p.stem == "azure_code")), Empirical)
