"""Retrieval-augmented generation: what its stages take, where they run, and how one thing more or less shows."""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from mist.build import build
from mist.compose import compose
from mist.errors import InputError
from mist.inert import refuse_inert
from mist.perf.encoder import EncoderEngine, TextEncoder
from mist.scenario import Scenario
from mist.simulate import simulate
from mist.sweep.capacity import capacity, judge
from mist.workload.traffic import Workload

RAGPULSE = Path(os.environ.get("MIST_DATA", "")) / "traces/ragpulse/0_trace.jsonl"
RAG = ("pipeline=rag", "slo=none", "workload=poisson_fixed", "workload.inputs.tokens=200", "workload.outputs.tokens=20")
ALONE = (*RAG, "workload.requests=20", "workload.rate=0.001", "engine.front_end=0s")
BUSY = (*RAG, "workload.requests=400", "workload.rate=4")
ON_CPU = ("stations.embedder=encoder_cpu", "stations.embedder.model=bge-small-en")


def run(*overrides):
    return simulate(compose(overrides))


def service(result, stage):
    return result.stages[stage].service.mean


def test_alone_the_first_token_comes_after_the_sum_of_the_stages():
    frame = run(*ALONE).requests_frame().query("state == 'completed'")
    stages = sum(frame[f"{stage}_service"] for stage in ("embed", "retrieve", "rerank", "prefill"))
    assert (frame.first_token - frame.arrived).tolist() == pytest.approx(stages.tolist(), rel=1e-9)
    assert frame.prompted.tolist() == [200 + 5 * 256] * len(frame)


@pytest.mark.parametrize("place", [(), ON_CPU, ("stations.index=index_gpu",), ("stations.index=database",)])
def test_alone_a_stage_takes_what_its_model_says(place):
    overrides = (*ALONE, *place)
    stations = build(Scenario, compose(overrides)).stations
    hardware = build(Scenario, compose(overrides)).hosts["cpu"].hardware
    spec, result = stations["embedder"], run(*overrides)
    encoder = TextEncoder(spec.model, getattr(spec, "hardware", hardware), spec.engine, spec.dtype)
    assert service(result, "embed") == pytest.approx(alone(encoder.work([200]), spec, hardware))
    spec = stations["index"]
    assert service(result, "retrieve") == pytest.approx(alone(spec.work.work(1), spec, hardware))


def alone(work, spec, hardware):
    cores = getattr(spec, "cores", 1)
    return max(work.core_seconds / cores, work.traffic / hardware.memory_bandwidth) + work.latency


@pytest.mark.parametrize(
    ("less", "more", "stage"),
    [
        ("stations.index.work.probes=16", "stations.index.work.probes=64", "retrieve"),
        ("stations.index.work.vectors=1000000", "stations.index.work.vectors=100000000", "retrieve"),
        ("stations.index.work.k=20", "stations.index.work.k=200", "retrieve"),
        ("pipeline.stages.rerank.items=5", "pipeline.stages.rerank.items=20", "rerank"),
        ("pipeline.stages.rerank.pieces=1", "pipeline.stages.rerank.pieces=10", "prefill"),
    ],
)
def test_more_passages_probes_or_vectors_take_longer_where_they_are_read(less, more, stage):
    few, many = run(*ALONE, less), run(*ALONE, more)
    assert service(few, stage) < service(many, stage)
    for other in few.stages:
        if other not in (stage, "prefill", "decode"):
            assert service(few, other) == pytest.approx(service(many, other), rel=1e-9)
    assert few.latency["ttft"].mean < many.latency["ttft"].mean


def test_where_the_embedder_runs_is_a_matter_of_its_own_stage():
    gpu, cpu = run(*ALONE), run(*ALONE, "stations.embedder=encoder_cpu")
    assert service(cpu, "embed") > 2 * service(gpu, "embed")
    for stage in ("retrieve", "rerank", "prefill", "decode"):
        assert service(cpu, stage) == pytest.approx(service(gpu, stage), rel=1e-9)
    assert (cpu.stations["embedder"].devices, gpu.stations["embedder"].devices) == (0, 1)
    assert cpu.dollars_per_hour < gpu.dollars_per_hour


def test_a_larger_host_is_never_slower():
    whole = [run(*BUSY, *ON_CPU, "stations.embedder.cores=8", f"hosts.cpu.cores={cores}") for cores in (1, 2, 8, 56)]
    for small, large in pairwise(whole):
        for stage in ("embed", "retrieve"):
            assert service(large, stage) <= service(small, stage) * (1 + 1e-9)
        assert large.latency["ttft"].mean <= small.latency["ttft"].mean * (1 + 1e-9)


def test_embedder_and_index_on_one_host_slow_each_other():
    tight = ("hosts.cpu.cores=1", "workload.rate=20", "workload.requests=400")
    base = tuple(word for word in BUSY if not word.startswith(("workload.rate", "workload.requests")))
    together, apart = run(*base, *tight, *ON_CPU), run(*base, *tight)
    assert service(together, "retrieve") > 1.05 * service(apart, "retrieve")


@pytest.mark.parametrize("cluster", ["rag", "rag_disaggregated"])
def test_an_index_larger_than_its_memory_is_infeasible_by_name(cluster):
    large = ("stations.index.work=flat", "stations.index.work.vectors=1000000000")
    result = run(*RAG, f"cluster={cluster}", *large)
    assert result.verdict == "infeasible"
    assert "flat 3072.0" in result.reason
    assert "sapphire-rapids has 512.0" in result.reason
    config = compose(["pipeline=rag", "stations.index=index_gpu", "stations.index.work.index.vectors=10000000000"])
    traffic = {0: build(Workload, config["workload"]).traffic(0)}
    answer = judge(config, traffic)
    assert (answer["verdict"], answer["value"]) == ("infeasible", 0.0)
    assert "l4 has 24.15 GB" in answer["reason"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            (
                "pipeline=rag",
                "stations.index.work.k=10",
            ),
            r"stages\.rerank\.items = 20: stations\.index finds 10",
        ),
        (
            (
                "pipeline=rag",
                "pipeline.stages.rerank.items=4",
            ),
            r"stages\.rerank\.pieces = 5: only 4 were reranked",
        ),
        (
            ("pipeline=rag", "stations.embedder=encoder_gpu", "stations.embedder.hardware=genoa"),
            r"hardware = genoa: is a host",
        ),
        (
            ("pipeline=rag", "stations.embedder=encoder_cpu", "stations.embedder.host=x"),
            r"embedder\.host = x: no such host.*cpu",
        ),
        (("pipeline=embedding", "cluster=one_pool"), r"stages\.embed\.station = encoder: this cluster has no stations"),
        (("pipeline=chat", "cluster=encoder"), r"stages\.answer = generate: this cluster has no pools"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(overrides, told):
    with pytest.raises(InputError, match=told):
        build(
            Scenario, compose(["pipeline=rag", *overrides] if not overrides[0].startswith("pipeline=") else overrides)
        )


def test_a_host_may_stand_idle_but_its_cores_are_then_no_option():
    overrides = [*ALONE, "stations.index=index_gpu", "hosts.cpu.cores=8"]
    with pytest.raises(InputError, match=r"hosts\.cpu\.cores = 8: has no effect: no station runs there"):
        refuse_inert(overrides, compose(overrides))
    assert run(*overrides[:-1]).hosts["cpu"].core_utilization == 0


def test_recall_is_told_where_the_user_gives_it():
    table = "stations.index.work.recalls.16=0.9", "stations.index.work.recalls.64=0.98"
    assert run(*ALONE).stations["index"].recall is None
    assert run(*ALONE, *table).stations["index"].recall == pytest.approx(0.94)


def test_iterative_retrieval_searches_every_round_and_its_prompts_grow():
    words = (word for word in ALONE if word != "pipeline=rag")
    result = run("pipeline=rag_iterative", *words, "pipeline.stages.rounds.rounds.count=3")
    assert result.stages["retrieve"].visits_per_request == 3
    rounds = [200 + r * (2 * 256 + 64) + 2 * 256 for r in range(3)]
    frame = result.requests_frame().query("state == 'completed'")
    assert set(frame.prompted) == {sum(rounds) + rounds[-1] + 64}
    assert set(frame.generated) == {3 * 64 + 20}
    assert result.pools["llm"].prefix.hit_rate > 0.5


# against the recording


@pytest.mark.skipif(not RAGPULSE.is_file(), reason="MIST_DATA names no folder with the traces")
def test_ragpulse_goes_whole_through_a_pipeline_that_searches_and_adds_nothing():
    words = ["pipeline=rag_replay", "workload=ragpulse", f"workload.path={RAGPULSE}", "workload.rate=1", "slo=none"]
    result = run(*words, "prefix_caching=true", "window.warmup=0")
    assert result.window.requests.completed == 7106
    assert result.stages["retrieve"].visits == 7106
    frame = result.requests_frame().query("id >= 0 and id < 7106")
    assert (frame.prompted == frame.input).all()
    assert result.pools["llm"].prefix.hit_rate > 0.25  # system prompts at least


@pytest.mark.skipif(not RAGPULSE.is_file(), reason="MIST_DATA names no folder with the traces")
def test_nine_in_ten_passages_of_ragpulse_were_read_before_and_few_in_the_same_order():
    rows = [json.loads(line) for line in RAGPULSE.read_text().splitlines() if line.strip()]
    lists = [row["hash_ids"]["passages_ids"] for row in sorted(rows, key=lambda row: float(row["timestamp"]))]
    seen, before, orders, same = set(), 0, set(), 0
    for passages in filter(None, lists):
        before += sum(passage in seen for passage in passages)
        same += tuple(passages) in orders
        seen.update(passages)
        orders.add(tuple(passages))
    assert before / sum(map(len, lists)) == pytest.approx(0.902, abs=0.001)
    assert same / sum(map(bool, lists)) == pytest.approx(0.068, abs=0.001)


# texts in, nothing generated


def test_an_encoder_of_its_own_reaches_the_tokens_per_second_it_was_solved_from():
    """Infinity's page: bge-large-en on an L4, requests of 256 sentences and 115,000 tokens, 58,787 tokens/s."""
    words = ["pipeline=embedding", "stations.encoder.engine=infinity", "pipeline.stages.embed.items=256"]
    words += ["stations.encoder.max_batch=1", "workload.lengths={_target_: mist.workload.lengths.Fixed, tokens: 449}"]
    found = capacity(compose([*words, "workload.requests=200"])).worst
    station = found.stations["encoder"]
    assert 256 * 449 / found.stages["embed"].service.mean == pytest.approx(58_787, rel=0.01)
    assert station.tokens_per_second == pytest.approx(station.items_per_second * 449)
    assert found.output_tokens_per_second == found.tokens_per_dollar == 0


def test_an_engine_that_pads_takes_a_batch_for_as_long_as_its_longest_text():
    spec = build(Scenario, compose(["pipeline=embedding"])).stations["encoder"]
    pads, packs = (
        TextEncoder(spec.model, spec.hardware, EncoderEngine("e", 0.4, 0.4, 0.8, 0.0, pads)) for pads in (True, False)
    )
    assert pads.work([10, 400]) == packs.work([400, 400])
    assert packs.work([10, 400]).latency < pads.work([10, 400]).latency
    assert packs.work([10_000]) == packs.work([spec.model.context])
