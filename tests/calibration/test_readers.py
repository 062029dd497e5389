"""Laws of the readers: whoever wrote the file, the run is the same. The files are written by hand after the schemas
that the tools document."""

import json
import os
from math import inf
from pathlib import Path

import pandas as pd
import pytest

from mist.calibration.readers import frame, read, read_all
from mist.errors import InputError, TraceError

# one run, told by everybody: concurrency 8, 100 in, 5 out, two requests of TTFT 0.1 and 0.3 s, TPOT 0.02 and 0.04 s
TTFTS, GAPS = (0.1, 0.3), (0.02, 0.04)
DETAILS = {
    "input_lens": [90, 110, 100],
    "output_lens": [5, 5, 0],
    "ttfts": [*TTFTS, 0.0],
    "itls": [[0.02] * 4, [0.04] * 4, []],
    "errors": ["", "", "timed out"],
}
STATISTICS = {"mean_ttft_ms": 200.0, "median_ttft_ms": 200.0, "p99_ttft_ms": 298.0}
STATISTICS |= {
    "mean_tpot_ms": 30.0,
    "median_tpot_ms": 30.0,
    "p99_tpot_ms": 39.8,
    "mean_itl_ms": 30.0,
    "p99_itl_ms": 40.0,
}
TOTALS = {"completed": 2, "duration": 4.0, "total_input_tokens": 200, "total_output_tokens": 10}
VLLM = {
    "date": "20261121-101500", "backend": "vllm", "model_id": "meta-llama/Llama-3.1-8B", "num_prompts": 3,
    "request_rate": "inf", "burstiness": 1.0, "max_concurrency": 8, **TOTALS, **STATISTICS, "mean_e2el_ms": 320.0,
}  # fmt: skip
SGLANG = {
    "backend": "sglang", "dataset_name": "random", "request_rate": inf, "max_concurrency": 8, "random_input_len": 100,
    "server_info": {"model_path": "meta-llama/Llama-3.1-8B"}, **TOTALS, **STATISTICS, "mean_e2e_latency_ms": 320.0,
}  # fmt: skip


def block(unit, mean, p50=None, p99=None):
    return {"unit": unit, "avg": mean} | ({"p50": p50, "p99": p99} if p50 is not None else {})


AIPERF = {
    "schema_version": "1.0",
    "request_count": block("requests", 2),
    "time_to_first_token": block("ms", 200, 200, 298),
    "inter_token_latency": block("ms", 30, 30, 39.8),
    "request_latency": block("ms", 320, 320, 457),
    "input_sequence_length": block("tokens", 100, 100, 110),
    "output_sequence_length": block("tokens", 5, 5, 5),
    "benchmark_duration": block("sec", 4.0),
    "input_config": {
        "endpoint": {"model_names": ["meta-llama/Llama-3.1-8B"], "type": "chat"},
        "loadgen": {"concurrency": 8, "request_rate": None},
    },
}


def successful(mean, median, p99):
    return {"successful": {"mean": mean, "median": median, "percentiles": {"p90": p99, "p99": p99}}}


GUIDELLM = {
    "metadata": {"version": 1},
    "args": {"target": "http://localhost:8000", "model": "meta-llama/Llama-3.1-8B"},
    "benchmarks": [
        {
            "config": {"strategy": {"type_": "concurrent", "streams": 8}},
            "duration": 4.0,
            "metrics": {
                "request_totals": {"successful": 2, "incomplete": 0, "errored": 1, "total": 3},
                "time_to_first_token_ms": successful(200, 200, 298),
                "inter_token_latency_ms": successful(30, 30, 39.8),
                "time_per_output_token_ms": successful(64, 64, 90),
                "request_latency": successful(0.32, 0.32, 0.457),
                "prompt_token_count": successful(100, 100, 110),
                "output_token_count": successful(5, 5, 5),
            },
            "requests": {
                "successful": [
                    {"prompt_tokens": 90, "output_tokens": 5, "time_to_first_token_ms": 100.0,
                     "inter_token_latency_ms": 20.0, "request_latency": 0.18, "start_time": 1000.0},
                    {"prompt_tokens": 110, "output_tokens": 5, "time_to_first_token_ms": 300.0,
                     "inter_token_latency_ms": 40.0, "request_latency": 0.46, "start_time": 1001.0},
                ]
            },
        }
    ],
}  # fmt: skip
AIPERF_CSV = """Metric,avg,min,max,p1,p50,p90,p99,std
Time to First Token (ms),200.00,100,300,101,200.00,280,298.00,100
Inter Token Latency (ms),30.00,20,40,20,30.00,38,39.80,10
Request Latency (ms),320.00,180,460,180,320.00,440,457.00,140
Input Sequence Length (tokens),100.00,90,110,90,100,109,110,10
Output Sequence Length (tokens),5.00,5,5,5,5,5,5,0

Metric,Value
Request Count (requests),2
Output Token Throughput (tokens/sec),"1,002.50"
"""
CSV = """model,engine,max_concurrency,isl,osl,mean_ttft_ms,ttft_p50_s,p99_ttft_ms,std_ttft_ms,mean_tpot_ms,tpot_p99_ms
llama-3.1-8b,vllm,8,100,5,200,0.2,298,9,30,39.8
llama-3.1-8b,vllm,16,100,5,400,0.4,600,9,40,50
"""


def records():
    for (length, start), ttft, gap in zip(((90, 0), (110, 1)), TTFTS, GAPS, strict=True):
        metrics = {
            "input_sequence_length": {"value": length, "unit": "tokens"},
            "output_sequence_length": {"value": 5, "unit": "tokens"},
            "time_to_first_token": {"value": ttft * 1e3, "unit": "ms"},
            "inter_token_latency": {"value": gap * 1e9, "unit": "ns"},
            "request_latency": {"value": (ttft + 4 * gap) * 1e3, "unit": "ms"},
        }
        metadata = {"request_start_ns": 1_759_813_207_000_000_000 + start * 10**9, "was_cancelled": False}
        yield {"metadata": metadata, "metrics": metrics, "error": None}
    yield {"metadata": {"was_cancelled": True}, "metrics": {}, "error": {"code": 499}}


FILES = {
    "vllm.json": json.dumps(VLLM),
    "vllm-detailed.json": json.dumps(VLLM | DETAILS),
    "vllm-appended.jsonl": json.dumps(VLLM) + "\n" + json.dumps(VLLM) + "\n",
    "sglang.jsonl": json.dumps(SGLANG) + "\n",
    "sglang-details.jsonl": json.dumps(SGLANG | DETAILS) + "\n",
    "profile_export_aiperf.json": json.dumps(AIPERF),
    "profile_export_genai_perf.json": json.dumps(
        AIPERF | {"input_config": {"model": ["meta-llama/Llama-3.1-8B"], "stimulus": {"concurrency": 8}}}
    ),
    "profile_export_aiperf.csv": AIPERF_CSV,
    "profile_export.jsonl": "".join(json.dumps(record) + "\n" for record in records()),
    "benchmarks.json": json.dumps(GUIDELLM),
    "plain.csv": CSV,
}
DETAILED = ("vllm-detailed.json", "sglang-details.jsonl", "profile_export.jsonl", "benchmarks.json")


@pytest.fixture
def written(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", FILES)
def test_the_same_run_is_the_same_whoever_wrote_it(written, name):
    run = read(written(name, FILES[name]))[0]
    assert run.input == pytest.approx(100)
    assert run.output == pytest.approx(5)
    assert run.latency["ttft_mean"] == pytest.approx(0.2)
    assert run.latency["ttft_p50"] == pytest.approx(0.2)
    assert run.latency["ttft_p99"] == pytest.approx(0.298)
    assert run.latency["tpot_mean"] == pytest.approx(0.03)
    assert run.latency["tpot_p99"] == pytest.approx(0.0398)
    if "plain" not in name:
        assert run.completed == 2
        assert run.latency["e2e_mean"] == pytest.approx(0.32)
    if name.endswith("json") or "sglang" in name:
        assert (run.concurrency, run.model.lower().rpartition("/")[2]) == (8, "llama-3.1-8b")


@pytest.mark.parametrize("name", DETAILED)
def test_requests_that_succeeded_come_one_by_one_in_seconds(written, name):
    run = read(written(name, FILES[name]))[0]
    assert run.failed == 1
    rows = run.requests
    assert rows["input"].tolist() == [90, 110]
    assert rows["output"].tolist() == [5, 5]
    assert rows["ttft"].tolist() == pytest.approx(TTFTS)
    assert rows["tpot"].tolist() == pytest.approx(GAPS)
    assert rows["e2e"].tolist() == pytest.approx([0.18, 0.46])
    if "arrival" in rows:
        assert rows["arrival"].tolist() == pytest.approx([0, 1])


def test_all_at_once_is_an_infinite_rate(written):
    for name in ("vllm.json", "sglang.jsonl"):
        assert read(written(name, FILES[name]))[0].rate == inf


def test_a_rate_and_a_closed_loop_are_told_apart(written):
    constant = {"config": {"strategy": {"type_": "constant", "rate": 2.5}}}
    report = GUIDELLM | {"benchmarks": [GUIDELLM["benchmarks"][0] | constant, GUIDELLM["benchmarks"][0]]}
    first, second = read(written("two.json", json.dumps(report)))
    assert (first.rate, first.concurrency) == (2.5, None)
    assert (second.rate, second.concurrency) == (None, 8)
    assert first.source.endswith("benchmark 1")


def test_all_files_make_one_frame(written):
    table = frame(read_all([written(name, text) for name, text in FILES.items()]))
    assert len(table) == len(FILES) + 2  # two appended runs, two rows of the table
    assert table["ttft_mean"].notna().all()
    assert set(table["tool"]) == {"vllm bench serve", "sglang.bench_serving", "aiperf", "guidellm", "csv"}


def test_a_table_of_requests_is_one_run(written):
    text = "request_id,arrival_s,input_toks,output_toks,ttft_ms,tpot_ms,e2e_ms\n"
    text += "a,5,90,5,100,20,180\nb,6,110,5,300,40,460\n"
    (run,) = read(written("requests.csv", text))
    assert run.requests["arrival"].tolist() == [0, 1]
    assert run.latency["e2e_mean"] == pytest.approx(0.32)
    assert run.input == 100


def test_an_unstated_statistic_is_said_to_be_assumed(written):
    (run,) = read(written("t.csv", "concurrency,isl,osl,ttft_ms\n4,1024,1024,121\n"))
    assert run.latency == {"ttft_mean": pytest.approx(0.121)}
    assert "not stated" in run.note


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.json", "{}", "no result of a benchmark that is known"),
        ("a.jsonl", '{"a": 1}\nnonsense\n', r"a\.jsonl:2 = nonsense: is not JSON"),
        ("a.json", "[]", "holds no run"),
        ("a.json", '{"mean_ttft_ms": -1}', "seconds, 0 or more"),
        ("a.csv", "rate,input\n1,2\n", "no latency with a unit"),
        ("a.txt", "", "no format is known"),
        ("profile_export_aiperf.csv", "Metric,avg\nTime to First Token (parsecs),1\n", "no unit of time"),
        (
            "profile_export_aiperf.csv",
            "Metric,avg\nTime to First Token (ms),soon\n",
            "time_to_first_token avg soon: is no",
        ),
        ("a.json", "", "holds no run"),
        ("a.csv", "", "cannot be read"),
        ("a.json", '{"mean_ttft_ms": "fast"}', "mean_ttft_ms fast: is no number"),
        ("a.json", '{"mean_ttft_ms": 1, "request_rate": "many"}', "request_rate many: is no number"),
        ("a.json", json.dumps(VLLM | DETAILS | {"ttfts": [0.1, "x", 0.2]}), "ttfts x: is no number"),
        ("a.json", json.dumps(VLLM | DETAILS | {"itls": [[0.1], ["y"], []]}), "itls y: is no number"),
        ("a.json", json.dumps(VLLM | DETAILS | {"output_lens": "long"}), "output_lens long: is no list of one number"),
        ("a.json", '{"benchmarks": [null]}', "is not as this tool writes it"),
        ("a.json", '{"benchmarks": [{"metrics": [1]}]}', "is not as this tool writes it"),
        ("a.csv", "concurrency,mean_ttft_ms\nfour,3\n", r"a\.csv:2 = concurrency four: is no number"),
        ("a.csv", "concurrency,mean_ttft_ms\n4,soon\n", r"a\.csv:2 = mean_ttft_ms soon: is no number"),
        ("a.csv", "arrival,input,output,ttft_ms\nx,5,5,1\n0,5,5,1\n", "arrival x: is no time of arrival"),
        ("a.csv", "arrival,input,output,ttft_ms\n0,five,5,1\n", "input five: is no number"),
    ],
)
def test_what_is_no_benchmark_is_refused_by_name(written, name, text, why):
    with pytest.raises((InputError, TraceError), match=why):
        read(written(name, text))
    with pytest.raises(InputError, match="no such file"):
        read("nowhere.json")


def test_what_a_tool_left_out_is_left_out(written):
    holes = {"ttfts": [0.1, None, 0.3], "itls": [[0.02] * 4, None, [0.04] * 4], "output_lens": [5, 5, 5]}
    (run,) = read(written("a.json", json.dumps(VLLM | DETAILS | holes | {"errors": None, "mean_e2el_ms": None})))
    assert run.requests["ttft"].tolist() == [0.1, 0.3]
    assert run.latency["e2e_mean"] == pytest.approx(0.32)


@pytest.mark.skipif("MIST_DATA" not in os.environ, reason="MIST_DATA names no folder of measured data")
def test_real_benchmark_tables_are_read():
    folder = Path(os.environ["MIST_DATA"]) / "measured"
    closed = frame(read(str(folder / "T05_closed_loop_llama70b_inferencex.csv")))
    assert closed["concurrency"].min() == 4 and closed["tpot_mean"].between(0.005, 0.2).all()
    (replay,) = read(str(folder / "T08_replay_RTXPRO6000_Llama-3.1-8B.csv"))
    assert isinstance(replay.requests, pd.DataFrame) and len(replay.requests) == 300
    assert replay.requests["arrival"].is_monotonic_increasing
