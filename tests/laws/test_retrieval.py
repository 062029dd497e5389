"""Laws of vector search and encoders: what a batch costs, and what an index weighs."""

from collections.abc import Callable
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mist.build import build, plain
from mist.clients.work_station import DeviceStation
from mist.errors import Infeasible, InputError
from mist.hardware import HardwareSpec
from mist.kernel import Kernel
from mist.model import ModelSpec
from mist.perf.encoder import Encoder, EncoderEngine
from mist.perf.retrieval.database import Database, Served
from mist.perf.retrieval.device import OnDevice
from mist.perf.retrieval.flat import Flat
from mist.perf.retrieval.hnsw import Hnsw
from mist.perf.retrieval.ivf_pq import IvfPq
from mist.perf.retrieval.recall import setting_for
from mist.perf.work import Work

CONF = Path(__file__).parents[2] / "conf"
KINDS = {"flat": Flat, "ivf_pq": IvfPq, "hnsw": Hnsw}


def read(path: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((CONF / path).read_text())
    return data


def shipped(kind: str, **fields: object) -> Any:
    return replace(build(KINDS[kind], read(f"retrieval/{kind}.yaml")), **fields)


def hardware(name: str) -> HardwareSpec:
    return build(HardwareSpec, read(f"hardware/{name}.yaml"))


def engine(name: str = "infinity", **fields: Any) -> EncoderEngine:
    return replace(build(EncoderEngine, read(f"encoder/{name}.yaml")), **fields)


def encoder(device: str = "sapphire-rapids", model: str = "bge-large-en", **fields: Any) -> Encoder:
    spec = build(ModelSpec, read(f"model/{model}.yaml"))
    return Encoder(spec, hardware(device), fields.pop("engine", engine()), **{"tokens": 256, **fields})


def total(work: Work) -> float:
    """On one core and 10 GB/s of memory, one after the other."""
    return work.latency + work.core_seconds + work.traffic / 10e9


# ------------------------------------------------------------------------------------------------ monotone


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        ("flat", "vectors", (1_000, 10_000, 100_000, 10_000_000)),
        ("flat", "dim", (384, 768, 3072)),  # 512 queries of fewer are no matrix product yet
        ("flat", "k", (1, 10, 100)),
        ("ivf_pq", "vectors", (100_000, 1_000_000, 1_000_000_000)),
        ("ivf_pq", "probes", (1, 8, 64, 4096)),
        ("ivf_pq", "subquantisers", (48, 96, 192)),
        ("ivf_pq", "k", (1, 10, 100)),
        ("ivf_pq", "refine", (0, 1, 4)),
        ("hnsw", "vectors", (1_000, 100_000, 1_000_000, 100_000_000)),
        ("hnsw", "links", (8, 16, 32, 64)),
        ("hnsw", "ef_search", (16, 64, 128, 512)),
        ("hnsw", "k", (1, 10, 100)),
    ],
)
@pytest.mark.parametrize("queries", [1, 8, 512])
def test_a_search_never_gets_cheaper_by_asking_more_of_it(
    kind: str, field: str, values: tuple[int, ...], queries: int
) -> None:
    costs = [total(shipped(kind, **{field: value}).work(queries)) for value in values]
    assert costs == sorted(costs)
    assert costs[-1] > costs[0]


@pytest.mark.parametrize("kind", list(KINDS))
@given(queries=st.integers(2, 1000))
def test_a_batch_costs_no_more_than_its_queries_one_by_one(kind: str, queries: int) -> None:
    index = shipped(kind)
    batch, one = index.work(queries), index.work(1)
    assert batch.core_seconds <= queries * one.core_seconds * (1 + 1e-12)
    assert batch.traffic <= queries * one.traffic * (1 + 1e-12)
    assert batch.latency <= queries * one.latency


@given(queries=st.integers(2, 300), tokens=st.sampled_from([16, 128, 512]))
@pytest.mark.parametrize("device", ["sapphire-rapids", "l4"])
def test_a_batch_of_texts_costs_no_more_than_its_texts_one_by_one(device: str, queries: int, tokens: int) -> None:
    service = encoder(device, tokens=tokens)
    batch, one = service.work(queries), service.work(1)
    for whole, single in zip(batch, one, strict=True):
        assert whole <= queries * single * (1 + 1e-12)


# ------------------------------------------------------------------------------------------------ worked by hand


def test_a_flat_index_weighs_its_vectors() -> None:
    assert shipped("flat", vectors=1000, dim=128).memory_bytes == 1000 * 128 * 4
    assert shipped("flat", vectors=1000, dim=128, dtype="bf16").memory_bytes == 1000 * 128 * 2


def test_an_ivf_pq_index_weighs_codes_ids_centroids_and_codebooks() -> None:
    index = shipped("ivf_pq", vectors=100_000, dim=128, centroids=256, subquantisers=16)
    # faiss 1.15.1 serialises this very index, IVF256,PQ16 over 100,000 x 128, to 2,664,478 bytes
    assert index.memory_bytes == 100_000 * (16 + 8) + 256 * 128 * 4 + 256 * 128 * 4 == 2_662_144
    assert index.memory_bytes == pytest.approx(MEASURED_BYTES["ivf_pq"], rel=0.002)
    refined = replace(index, refine=1)
    assert refined.memory_bytes - index.memory_bytes == 100_000 * 128 * 4


def test_an_hnsw_index_weighs_vectors_and_links_on_every_layer() -> None:
    index = shipped("hnsw", vectors=30_000, dim=128, links=16)
    assert index.memory_bytes == pytest.approx(30_000 * (512 + 4 * (32 + 16 / 15) + 12))
    assert index.memory_bytes == pytest.approx(MEASURED_BYTES["hnsw"], rel=0.002)


# serialized by faiss 1.15.1: IVF256,PQ16 over 100,000 x 128 and HNSW16 over 30,000 x 128 (conf/retrieval/measured.csv)
MEASURED_BYTES = {"ivf_pq": 2_664_478, "hnsw": 19_686_714}


def test_ivf_pq_counts_the_operations_and_bytes_of_the_paper() -> None:
    vectors, dim, centroids, probes, codes, k = 1_000_000, 768, 1000, 20, 96, 10
    index = shipped(
        "ivf_pq", vectors=vectors, dim=dim, centroids=centroids, probes=probes, subquantisers=codes, k=k, refine=1
    )
    per_list = vectors / centroids
    flops, read = index.operations(1)
    table = 2 * 256 * dim  # which the paper leaves out of the operations
    assert flops == pytest.approx(2 * dim * centroids + codes * per_list * probes + 2 * dim * k + table)
    assert read == pytest.approx(4 * centroids * dim + 4 * 256 * dim + probes * per_list * codes + 4 * k * dim)


def test_a_search_of_all_lists_reads_every_code_once() -> None:
    index = shipped("ivf_pq", vectors=100_000, centroids=256, probes=256, imbalance=1.3)
    assert index.codes == 100_000


def test_an_hnsw_walk_grows_with_the_logarithm_of_the_vectors() -> None:
    small, large = shipped("hnsw", vectors=1_000_000), shipped("hnsw", vectors=100_000_000)
    assert large.distances / small.distances == pytest.approx(log(1e8) / log(1e6))
    assert shipped("hnsw", vectors=50, k=10, ef_search=500).distances == 50


def test_an_encoder_computes_two_operations_per_weight_and_token_and_four_per_pair_and_width() -> None:
    service = encoder("sapphire-rapids", tokens=512)
    service = replace(service, hardware=replace(service.hardware, memory_bandwidth=1e18))
    layer = 4 * 1024 * 1024 + 3 * 1024 + 2 * 1024 * 4096  # projections with three biases, MLP
    engine, peak = service.engine, service.hardware.peak("bf16")
    linear = 2 * 512 * 24 * layer / engine.matmul_efficiency
    attention = 4 * 24 * 512**2 * 1024 / engine.attention_efficiency
    assert service.work(1).core_seconds == pytest.approx((linear + attention) / peak * 56)


@given(tokens=st.integers(1, 512), texts=st.integers(1, 64), passes=st.sampled_from([2.0, 4.0, 8.0]))
@pytest.mark.parametrize("device", ["sapphire-rapids", "l4"])
def test_scores_that_are_not_fused_pass_through_memory(device: str, tokens: int, texts: int, passes: float) -> None:
    fused, unfused = (encoder(device, tokens=tokens, engine=engine(score_passes=n)).work(texts) for n in (0.0, passes))
    scores = texts * 24 * 16 * tokens**2 * 2  # bytes: layers, heads, pairs, 16 bits
    spec, share = hardware(device), engine().bandwidth_efficiency
    waited = passes * scores / (spec.memory_bandwidth * share)
    if spec.kind == "cpu":
        assert unfused.traffic - fused.traffic == pytest.approx(passes * scores / share)
        assert unfused.core_seconds - fused.core_seconds == pytest.approx(waited * spec.cores)
    else:
        assert unfused.latency - fused.latency == pytest.approx(waited)


def test_scores_in_memory_that_is_new_every_time_cost_a_core_their_writing() -> None:
    reused, new = (encoder(engine=engine(score_passes=8.0, fresh_rate=rate)).work(3) for rate in (None, 2e9))
    assert new.core_seconds - reused.core_seconds == pytest.approx(4 * 3 * 24 * 16 * 256**2 * 2 / 2e9)
    assert new.traffic == reused.traffic


@given(texts=st.integers(1, 200), name=st.sampled_from(["onnx_cpu", "onnx_quantised_cpu", "sentence_transformers_cpu"]))
def test_a_core_that_waits_for_memory_is_busy(texts: int, name: str) -> None:
    dtype = "int8" if "quantised" in name else "fp32"
    service = encoder("genoa", engine=engine(name), dtype=dtype)
    work, spec = service.work(texts), service.hardware
    assert work.core_seconds / spec.cores >= work.traffic / spec.memory_bandwidth * (1 - 1e-12)
    quick = replace(service, hardware=replace(spec, memory_bandwidth=1e18)).work(texts)
    assert quick.core_seconds < work.core_seconds


def test_weights_of_eight_bits_save_their_own_time_only() -> None:
    narrow, wide = (
        encoder("genoa", engine=engine(name), dtype=dtype).work(32)
        for name, dtype in (("onnx_quantised_cpu", "int8"), ("onnx_cpu", "fp32"))
    )
    quick, slow = engine("onnx_quantised_cpu"), engine("onnx_cpu")
    ratio = 4 * quick.matmul_efficiency / slow.matmul_efficiency  # VNNI over AVX-512, by what each reaches
    assert 1 < wide.core_seconds / narrow.core_seconds < ratio
    weights = 24 * (4 * 1024 * 1024 + 3 * 1024 + 2 * 1024 * 4096)
    assert wide.traffic - narrow.traffic == pytest.approx(3 * weights / engine("onnx_cpu").bandwidth_efficiency)


def test_an_engine_without_fused_attention_is_the_same_engine_otherwise() -> None:
    fused, native = engine("infinity"), engine("infinity_native")
    assert replace(native, name="infinity", score_passes=0.0) == fused


def test_on_its_own_device_an_encoder_or_an_index_leaves_the_host_alone() -> None:
    index = OnDevice(shipped("flat"), hardware("l4"), 0.5, 0.8, 0.0001)
    for work in (encoder("l4").work(8), index.work(8)):
        assert (work.core_seconds, work.traffic) == (0.0, 0.0)
        assert work.latency > 0
    read = 1_000_000 * 768 * 4 / (300e9 * 0.8)
    assert index.work(1).latency == pytest.approx(0.0001 + read)


def test_reranking_k_passages_costs_as_much_as_embedding_k_texts() -> None:
    assert encoder(texts=20).work(3) == encoder(texts=1).work(60)


def test_a_database_adds_its_overhead_and_slows_the_search() -> None:
    index = shipped("hnsw")
    served = Served(index, Database("none", "0", query_time=0.003, slowdown=2.0))
    assert served.work(4).core_seconds == pytest.approx(8 * index.work(1).core_seconds)
    assert served.work(4).latency == 0.003


def test_every_segment_of_a_collection_is_searched_as_deep_as_the_whole() -> None:
    index, plain_database = shipped("hnsw", vectors=8_000_000), Database("none", "0", 0.003, 2.0)
    cut = Served(index, replace(plain_database, segments=8))
    part = replace(index, vectors=1_000_000)
    assert cut.work(1).core_seconds == pytest.approx(8 * 2 * part.work(1).core_seconds)
    assert cut.work(1).core_seconds > Served(index, plain_database).work(1).core_seconds
    assert cut.memory_bytes == index.memory_bytes


def test_a_limit_on_segments_makes_as_few_as_it_allows_and_at_least_as_many_as_are_asked_for() -> None:
    limited = Database("none", "0", 0.0, 1.0, segments=2, segment_bytes=1e9)
    for vectors, segments in ((1000, 2), (1_000_000, 4), (10_000_000, 31)):  # of 3,072 bytes
        assert Served(shipped("hnsw", vectors=vectors, dim=768), limited).segments == segments
    small = shipped("hnsw", vectors=10_000_000, dtype="int8")  # cut by what came, not by what is kept of it
    assert Served(small, limited).segments == 31


def test_candidates_scored_again_cost_a_full_distance_each_and_their_memory() -> None:
    plain_index = shipped("hnsw", dtype="int4", ef_search=200)
    again = replace(plain_index, refine=20.0, refine_dtype="bf16")
    rates = plain_index.rates
    assert again.memory_bytes - plain_index.memory_bytes == pytest.approx(1_000_000 * 768 * 2)
    extra = again.work(1).core_seconds - plain_index.work(1).core_seconds
    missed = (again.misses - plain_index.misses) * again.distances * rates.miss_time
    each = rates.distance_time + 768 * 2 / rates.scan_rate + again.misses * rates.miss_time
    assert extra == pytest.approx(200 * each + missed)


# ------------------------------------------------------------------------------------------------ sheets and errors


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_shipped_index_survives_the_way_to_plain_data_and_back(kind: str) -> None:
    index = shipped(kind)
    assert build(KINDS[kind], plain(index)) == index


@pytest.mark.parametrize("group", ["retrieval", "encoder", "database"])
def test_every_figure_of_a_sheet_has_its_source_beside_it(group: str) -> None:
    for path in sorted((CONF / group).glob("*.yaml")):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# ")
        bare = [line for line in lines if any(c.isdigit() for c in line.partition(":")[2]) and "#" not in line]
        assert not bare, path.name


@pytest.mark.parametrize("path", sorted((CONF / "encoder").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_encoder_engine_builds_and_is_named_after_its_file(path: Path) -> None:
    assert build(EncoderEngine, yaml.safe_load(path.read_text())).name == path.stem


@pytest.mark.parametrize("path", sorted((CONF / "database").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_database_builds_and_is_named_after_its_file(path: Path) -> None:
    assert build(Database, yaml.safe_load(path.read_text())).name == path.stem


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: shipped("flat", k=0), "k"),
        (lambda: shipped("flat", vectors=5, k=10), "k"),
        (lambda: shipped("ivf_pq", probes=5000), "probes"),
        (lambda: shipped("ivf_pq", subquantisers=100), "subquantisers"),
        (lambda: shipped("ivf_pq", imbalance=0.5), "imbalance"),
        (lambda: shipped("hnsw", ef_search=5), "ef_search"),
        (lambda: shipped("hnsw", links=1), "links"),
        (lambda: shipped("hnsw", recalls={"16": 0.9, "64": 0.8}), "recalls"),
        (lambda: shipped("hnsw", recalls={"16": 0.9, "64": 0.95}), "recalls"),  # silent at 128
        (lambda: shipped("hnsw", refine=20.0), "refine"),  # 200 of 128 candidates
        (lambda: shipped("hnsw", refine=0.5), "refine"),
        (lambda: Database("none", "0", 0.0, 1.0, segments=0), "segments"),
        (lambda: Database("none", "0", 0.0, 1.0, segment_bytes=0.0), "segment_bytes"),
        (lambda: encoder(tokens=1000), "tokens"),
        (lambda: engine(score_passes=-1.0), "score_passes"),
        (lambda: engine(score_passes=8.0, fresh_rate=0.0), "fresh_rate"),
        (lambda: engine(fresh_rate=1e9), "fresh_rate"),  # no scores are kept: no effect
        (lambda: encoder("l4", engine=engine(score_passes=8.0, fresh_rate=1e9)), "engine.fresh_rate"),
        (lambda: OnDevice(shipped("flat"), hardware("genoa"), 0.5, 0.8, 0.0), "hardware"),
    ],
)
def test_a_wrong_field_is_named(make: Callable[[], object], field: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.field == field


def test_an_index_that_does_not_fit_is_infeasible_by_name() -> None:
    with pytest.raises(Infeasible, match=r"the index needs 30\.72 GB of memory, l4 has 24\.15 GB"):
        index = OnDevice(shipped("flat", vectors=10_000_000), hardware("l4"), 0.5, 0.8, 0.0)
        DeviceStation(index).server(Kernel(), {})


def test_recall_comes_from_the_users_table_between_its_settings() -> None:
    table = {"64": 0.90, "256": 0.98}
    assert shipped("hnsw", ef_search=128, recalls=table).recall == pytest.approx(0.94)
    assert shipped("hnsw").recall is None
    assert setting_for(table, 0.95) == 256
    with pytest.raises(InputError, match=r"reaches 0\.98 at most"):
        setting_for(table, 0.99)
