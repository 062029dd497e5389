"""Laws of fitting and scoring retrieval and embedding: constants are found again, nothing is left out unsaid."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from mist.calibration.calibrate import calibrate
from mist.cli import main
from mist.errors import InputError
from mist.perf.retrieval.ivf_pq import IvfPq
from mist.profiling.faiss_cells import BUILDS
from mist.profiling.retrieval import as_yaml, said
from mist.profiling.retrieval_fit import as_index, fit, scores
from mist.validation import vector_search
from mist.validation.run import Validation, validate
from mist.validation.score import Score

ROOT = Path(__file__).parents[2]
KINDS = ("flat", "ivf_pq", "hnsw")


def shipped() -> pd.DataFrame:
    return pd.read_csv(ROOT / "conf" / "retrieval" / "measured.csv", comment="#")


def figure(text: object) -> float:
    return float(str(text).split()[0])


def rates(kind: str) -> dict[str, float]:
    sheet: dict[str, Any] = yaml.safe_load((ROOT / "conf" / "retrieval" / f"{kind}.yaml").read_text())
    return {name: figure(value) for name, value in sheet["rates"].items()}


def measured_set(name: str) -> Path:
    data = os.environ.get("MIST_DATA")
    if not data or not (Path(data) / "measured" / name).is_file():
        pytest.skip(f"MIST_DATA names no folder with measured/{name}")
    return Path(data) / "measured" / name


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_constants_are_the_fit_of_the_shipped_cells(kind: str) -> None:
    known = rates(kind)
    fitted = fit(kind, shipped(), known.get("cache", 0.0), known.get("matrix_from", 0.0))
    for name, value in fitted.rates.items():
        assert value == pytest.approx(known[name], rel=0.01, abs=1e-12), name


@pytest.mark.parametrize("kind", KINDS)
def test_cells_made_by_the_model_give_back_the_model(kind: str) -> None:
    known, cells = rates(kind), shipped()
    cells = cells[(cells["index"] == kind) & (cells.threads == 1)].reset_index(drop=True)
    made = []
    for cell in cells.to_dict("records"):
        index = as_index({str(name): value for name, value in cell.items()}, known)
        distances = index.distances if kind == "hnsw" else cell["distances"]
        index_bytes = index.memory_bytes
        work = index.work(int(cell["batch"]))
        seconds = work.latency + work.core_seconds
        made.append({**cell, "core_seconds": seconds, "distances": distances, "index_bytes": index_bytes})
    again = fit(kind, pd.DataFrame(made), known.get("cache", 0.0), known.get("matrix_from", 0.0))
    assert scores(again.cells).mape.max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_sizes_are_scored_and_never_fitted(kind: str) -> None:
    known, cells = rates(kind), shipped()
    fitted = fit(kind, cells, known.get("cache", 0.0), known.get("matrix_from", 0.0))
    spoilt = cells.assign(core_seconds=cells.core_seconds.where(~cells.held_out, 1e6))
    assert fit(kind, spoilt, known.get("cache", 0.0), known.get("matrix_from", 0.0)).rates == fitted.rates
    assert set(fitted.cells.split) == {"calibration", "held-out", "threads"}
    assert "held-out" in said(fitted)
    assert "Error on held-out cells" in as_yaml(kind, fitted, "test")


@pytest.mark.parametrize("kind", ["ivf_pq", "hnsw"])
def test_memory_and_work_counted_by_the_library_are_those_of_the_formulas(kind: str) -> None:
    cells, known = shipped(), rates(kind)
    for cell in cells[cells["index"] == kind].to_dict("records"):
        index = as_index({str(name): value for name, value in cell.items()}, known)
        assert index.memory_bytes == pytest.approx(cell["index_bytes"], rel=0.001)
        counted = index.codes if isinstance(index, IvfPq) else getattr(index, "distances", 0)
        assert counted == pytest.approx(cell["distances"], rel=0.05 if kind == "ivf_pq" else 0.25)


def test_every_index_has_sizes_to_fit_and_sizes_to_score() -> None:
    for kind in KINDS:
        held = [build.held_out for build in BUILDS if build.index == kind]
        assert held.count(True) >= 2
        assert held.count(False) >= 3


def test_profiling_without_faiss_says_what_to_install(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    try:
        import faiss  # noqa: F401
    except ImportError:
        assert main(["profile", "retrieval", "--out", str(tmp_path)]) == 1
        assert "pip install 'mist-llm[profile]'" in capsys.readouterr().err
    else:
        pytest.skip("faiss is installed")


def test_profiling_something_unknown_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "retreival"]) == 2
    assert "retrieval" in capsys.readouterr().err


def whole(answer: Validation, part: str) -> dict[str, Score]:
    """The scores of one part of the cells, by metric."""
    return {score.metric: score for score in answer.scores if score.part == part}


def test_every_row_of_an_embedding_table_is_scored_or_named_as_not_predicted(tmp_path: Path) -> None:
    table = tmp_path / "servers.csv"
    head = "hardware,model,engine,requests_s,seconds_for_10_requests,tokens_per_request,tokens_s"
    rows = (
        "L4,bge-large-en-v1.5,TEI candle flashbert,0.54,18.491,115000,62192",
        "Abacus,bge-m3,infinity torch,1,1,1,1",
    )
    table.write_text("\n".join((head, *rows)) + "\n")
    answer = validate(table)
    solved, unknown = answer.compared
    assert (solved.name, solved.fitted, solved.problem) == ("embedding", True, "")
    assert solved.predicted == pytest.approx(62192, rel=0.005)  # solved from this very row
    assert (unknown.fitted, unknown.predicted) == (False, None)
    assert "hardware = Abacus" in unknown.problem


def test_the_embedding_engines_do_as_well_as_they_did() -> None:
    """A seat belt: the held-out errors of the published page, as docs/retrieval.md has them."""
    answer = validate(measured_set("infinity_benchmark.csv"))
    fitted, held = (whole(answer, part)["tokens_per_second"] for part in ("calibration", "held out"))
    assert (fitted.covered, held.covered, held.cells) == (5, 4, 5)
    assert (fitted.mape or 1) < 0.005
    assert (held.mape or 1) < 0.10


def test_the_databases_do_as_well_as_they_did() -> None:
    """A seat belt: the errors on VectorDBBench, as docs/retrieval.md has them."""
    answer = validate(measured_set("T12_vector_search_curves.csv"))
    fitted, held, warm = (whole(answer, part)["latency"] for part in ("calibration", "held out", "start warm"))
    assert (fitted.cells, fitted.covered, held.covered, warm.covered) == (23, 23, 155, 162)
    assert (fitted.mape or 1) < 0.01
    assert (held.mape or 1) < 0.24
    assert (warm.mape or 1) < 0.16
    assert (warm.rank or 0) > 0.9
    for problem in answer.problems:
        assert any(word in problem for word in ("several segments", "filtered searches", "the row has no ef"))


def search_row(**fields: Any) -> pd.DataFrame:
    params = '{"element_type":"float","M":16,"num_candidates":120,"efConstruction":256}'
    row = {"file": "f.json", "db": "ElasticCloud", "db_label": "8c60g-force_merge", "params": params, "k": 100}
    row |= {"case": "Performance768D1M", "recall": 0.93, "serial_p99_s": 0.0107, "concurrency": 5, "qps": 357.0}
    return pd.DataFrame([{**row, "lat_avg_s": 0.014, **fields}])


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"case": "LabelFilterPerformanceCase"}, "filtered searches"),
        ({"db_label": "8c60g"}, "several segments"),
        ({"db_label": None}, "several segments"),
        ({"db": "Qdrant"}, "several segments"),  # the label is another database's
        ({"params": "{}"}, "no ef, links"),
        ({"params": "not JSON"}, "no ef, links"),
        ({"concurrency": None}, "no concurrency"),
    ],
)
def test_a_search_that_is_not_modelled_says_why(tmp_path: Path, fields: dict[str, Any], why: str) -> None:
    file = tmp_path / "searches.csv"
    pd.concat([search_row(), search_row(**fields)]).to_csv(file, index=False)
    known, other = validate(file).compared[::2]
    assert known.predicted is not None
    assert other.predicted is None
    assert why in other.problem


def test_a_lone_client_that_reads_from_disk_is_a_slice_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "searches.csv"
    pd.concat([search_row(concurrency=1), search_row(concurrency=1, lat_avg_s=0.008)]).to_csv(file, index=False)
    assert {score.part for score in validate(file).scores} >= {"start cold", "start warm"}


def test_clients_right_after_a_cold_start_are_cold_until_they_are_quick(tmp_path: Path) -> None:
    def starts(*rows: tuple[int, float]) -> list[str]:
        table = pd.concat([search_row(concurrency=clients, lat_avg_s=latency) for clients, latency in rows])
        return list(vector_search.Configurations().of(table.reset_index(drop=True))["start"])

    assert starts((1, 0.02), (5, 0.02)) == ["cold", "cold"]
    assert starts((1, 0.02), (5, 0.008)) == ["cold", "warm"]
    assert starts((1, 0.008), (5, 0.02)) == ["warm", "warm"]  # five clients wait for each other


def test_candidates_that_are_scored_again_are_searched_for(tmp_path: Path) -> None:
    def params(**more: object) -> str:
        return json.dumps({"M": 16, "ef": 100, "refine": True, "refine_k": 1.0, **more})

    file, row = tmp_path / "searches.csv", {"db": "Milvus", "db_label": "16c64g-sq4u-fp16-force_merge"}
    rows = [params(), params(refine_k=3.0), params(refine_k=3.0, refine=False), params(refine_k=3.0, ef=300)]
    pd.concat([search_row(params=text, **row) for text in rows]).to_csv(file, index=False)
    once, thrice, unrefined, deep = (cell.predicted or 0.0 for cell in validate(file).compared[::2])
    assert unrefined < once < thrice == deep


def test_options_of_an_engine_are_refused_where_no_engine_is_replayed(tmp_path: Path) -> None:
    file = tmp_path / "searches.csv"
    search_row().to_csv(file, index=False)
    with pytest.raises(InputError, match=r"perf=roofline: has no effect: .* vector_search"):
        validate(file, ["perf=roofline"])
    with pytest.raises(InputError, match="no serving engine was measured"):
        calibrate([str(file)], {"model": "llama-3.1-8b", "hardware": "h100", "tp": "1", "engine": "vllm"})


def test_a_databases_scalars_are_what_its_calibration_cells_give() -> None:
    solved = vector_search.calibrate(measured_set("T12_vector_search_curves.csv"))
    assert sorted(solved) == sorted(path.stem for path in (ROOT / "conf" / "database").glob("*.yaml"))
    for name, (query_time, slowdown) in solved.items():
        sheet = yaml.safe_load((ROOT / "conf" / "database" / f"{name}.yaml").read_text())
        assert figure(sheet["query_time"]) / 1e3 == pytest.approx(query_time, rel=0.01)
        assert float(sheet["slowdown"]) == pytest.approx(slowdown, rel=0.01)
