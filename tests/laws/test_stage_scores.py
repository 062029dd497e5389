"""Laws of fitting and scoring retrieval and embedding: constants are found again, nothing is left out unsaid."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from mist.cli import main
from mist.perf.retrieval.ivf_pq import IvfPq
from mist.profiling.faiss_cells import BUILDS
from mist.profiling.retrieval import as_yaml, said
from mist.profiling.retrieval_fit import as_index, fit, scores
from mist.validation import embedding, vector_search
from mist.validation.cells import COLUMNS, errors

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


def test_every_row_of_an_embedding_table_is_scored_or_named_as_not_modelled(tmp_path: Path) -> None:
    table = tmp_path / "infinity_benchmark.csv"
    head = "hardware,model,engine,requests_s,seconds_for_10_requests,tokens_per_request,tokens_s"
    rows = ("L4,bge-large-en-v1.5,TEI candle flashbert,0.54,18.491,115000,62192", "Abacus,none,none,1,1,1,1")
    table.write_text("\n".join((head, *rows)) + "\n")
    scored = embedding.score(table)
    assert list(scored.columns) == COLUMNS
    assert list(scored.split) == ["calibration", "not modelled"]
    assert scored.predicted[0] == pytest.approx(62192, rel=0.005)  # solved from this very row
    assert pd.isna(scored.predicted[1])


def test_the_embedding_engines_do_as_well_as_they_did() -> None:
    """A seat belt: the held-out errors of the published page, as docs/retrieval.md has them."""
    scored = embedding.score(measured_set("infinity_benchmark.csv"))
    table = errors(scored, "split").set_index("split")
    assert table.n.to_dict() == {"calibration": 5, "held-out": 4}
    assert table.mape["calibration"] < 0.005
    assert table.mape["held-out"] < 0.41


def test_the_databases_do_as_well_as_they_did() -> None:
    """A seat belt: the errors on VectorDBBench, as docs/retrieval.md has them."""
    scored = vector_search.score(measured_set("T12_vector_search_curves.csv"))
    warm = scored[(scored.unit == "s") & ~scored.slice.str.endswith("cold")]
    table = errors(warm, "split").set_index("split")
    assert len(scored) == 2 * 688
    assert table["median"]["calibration"] < 0.03
    assert table.mape["held-out"] < 0.22
    assert table["rank"]["held-out"] > 0.85


def test_a_databases_scalars_are_what_its_calibration_cells_give() -> None:
    solved = vector_search.calibrate(measured_set("T12_vector_search_curves.csv"))
    assert sorted(solved) == sorted(path.stem for path in (ROOT / "conf" / "database").glob("*.yaml"))
    for name, (query_time, slowdown) in solved.items():
        sheet = yaml.safe_load((ROOT / "conf" / "database" / f"{name}.yaml").read_text())
        assert figure(sheet["query_time"]) / 1e3 == pytest.approx(query_time, rel=0.01)
        assert float(sheet["slowdown"]) == pytest.approx(slowdown, rel=0.01)
