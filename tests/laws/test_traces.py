"""Laws of trace files: replayed row for row, and refused by file and line."""

import json
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mist.errors import TraceError
from mist.workload.trace import Trace


def same(one, other):
    return all(np.array_equal(getattr(one, f), getattr(other, f)) for f in ("times", "inputs", "outputs"))


AZURE_TEXT = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return Trace(str(path))


def test_an_azure_file_replays_row_for_row(tmp_path):
    trace = written(tmp_path, "azure.csv", AZURE_TEXT)
    traffic = trace.traffic(0)
    assert traffic.inputs.tolist() == [374, 396, 879]
    assert traffic.outputs.tolist() == [44, 109, 55]
    assert trace.own_rate() == pytest.approx(2 / 4.541877)
    assert traffic.times / trace.own_rate() == pytest.approx([0, 4.314579, 4.541877])
    assert same(traffic, trace.traffic(1))


def test_every_format_of_the_same_rows_is_the_same_traffic(tmp_path):
    rows = [(0.0, 10, 1), (1.5, 20, 2), (1.5, 30, 3), (4.0, 40, 4)]
    table = pa.table(dict(zip(("arrival", "input", "output"), zip(*rows, strict=True), strict=True)))
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    lines = "".join(f"{t},{o},{i}\n" for t, i, o in rows)
    mooncake = [{"timestamp": int(t * 1000), "input_length": i, "output_length": o} for t, i, o in rows]
    objects = [{"time": t, "prompt_tokens": i, "completion_tokens": o, "note": "x"} for t, i, o in rows]
    traces = [
        Trace(str(tmp_path / "rows.parquet")),
        written(tmp_path, "rows.csv", "Time,Output_Tokens,input_tokens\r\n" + lines.replace("\n", "\r\n")),
        written(tmp_path, "blank.csv", "\ufefftimestamp,output,input\n\n" + lines),
        written(tmp_path, "mooncake.jsonl", "\n".join(json.dumps(row) for row in mooncake)),
        written(tmp_path, "plain.jsonl", "\n".join(json.dumps(row) for row in objects) + "\n\n"),
    ]
    first = traces[0].traffic(0)
    assert first.inputs.tolist() == [10, 20, 30, 40]
    for trace in traces:
        assert trace.own_rate() == pytest.approx(3 / 4)
        assert same(trace.traffic(0), first), trace.path


def test_the_content_of_a_trace_is_the_hash_of_its_file_and_follows_it(tmp_path):
    trace = written(tmp_path, "azure.csv", AZURE_TEXT)
    assert trace.content() == sha256(AZURE_TEXT.encode()).hexdigest()
    shorter = "\n".join(AZURE_TEXT.splitlines()[:3]) + "\n"
    (tmp_path / "azure.csv").write_text(shorter)
    assert trace.content() == sha256(shorter.encode()).hexdigest()
    assert len(trace.traffic(0)) == 2


@pytest.mark.parametrize(
    ("name", "text", "where", "shown", "why"),
    [
        ("a.csv", "", "a.csv", "(nothing)", "no requests"),
        ("a.csv", "arrival,input,output\n", "a.csv", "(nothing)", "no requests"),
        ("a.csv", "arrival,input\n0,1\n", "a.csv", "arrival, input", "column of output"),
        ("a.csv", "arrival,input,output\n0,1,1\n\n1,x,1\n", "a.csv:4", "x", "whole number of tokens"),
        ("a.csv", "arrival,input,output\n0,1,1\n1,,1\n", "a.csv:3", "(nothing)", "whole number of tokens"),
        ("a.csv", "arrival,input,output\n0,1,1\n1,2.5,1\n", "a.csv:3", "2.5", "whole number of tokens"),
        ("a.csv", "arrival,input,output\n0,1,1\n1,0,1\n", "a.csv:3", "0", "at least one input"),
        ("a.csv", "arrival,input,output\n0,1,1\n1,1,-4\n", "a.csv:3", "-4", "at least one output"),
        ("a.csv", "arrival,input,output\n0,1,1\n1,1\n", "a.csv:3", "1,1", "2 fields where the header has 3"),
        ("a.csv", "arrival,input,output\n5,1,1\n4,1,1\n", "a.csv:3", "4", "sort"),
        ("a.csv", "arrival,input,output\n0,1,1\nnan,1,1\n", "a.csv:3", "nan", "seconds or a date"),
        ("a.csv", "arrival,input,output\n0,1,1\nsoon,1,1\n", "a.csv:3", "soon", "seconds or a date"),
        ("a.csv", AZURE_TEXT + "2023-11-16 18:15:40,1,1\n", "a.csv:5", "2023-11-16 18:15:40", "sort"),
        ("a.csv", "time,input,input,output\n0,1,1,1\n", "a.csv", "time, input, input, output", "same name"),
        ("a.jsonl", "", "a.jsonl", "(nothing)", "no requests"),
        ("a.jsonl", '{"time": 0, "input": 1, "output": 1}\n{"time"', "a.jsonl:2", '{"time"', "JSON"),
        ("a.jsonl", '{"time": 0, "input": 1, "output": 0}\n', "a.jsonl:1", "0", "at least one output"),
        ("a.jsonl", '{"time": 0, "input": true, "output": 1}\n', "a.jsonl:1", "True", "whole number"),
        ("a.jsonl", '{"time": 0, "input": 1e400, "output": 1}\n', "a.jsonl:1", "inf", "whole number"),
        ("a.jsonl", '{"time": null, "input": 1, "output": 1}\n', "a.jsonl:1", "None", "seconds or a date"),
        ("a.jsonl", "[1, 2]\n", "a.jsonl:1", "[1, 2]", "JSON object"),
        ("a.csv", f"arrival,input,output\n0,{2**31},1\n", "a.csv:2", str(2**31), "no request has more"),
        ("a.csv", f"arrival,input,output\n0,1,{10**30}\n", "a.csv:2", str(10**30), "no request has more"),
        ("a.parquet", "not parquet", "a.parquet", ".parquet", "cannot be read"),
        ("a.txt", "0 1 1", "workload.path", "a.txt", "no format"),
    ],
)
def test_a_bad_trace_is_refused_by_file_and_line(tmp_path, name, text, where, shown, why):
    trace = written(tmp_path, name, text)
    with pytest.raises(TraceError, match=why) as error:
        trace.traffic(0)
    assert error.value.field.endswith(where)
    assert str(error.value.value).endswith(shown)


def test_text_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"arrival,input,output\n0,1,\xff\xfe\n")
    with pytest.raises(TraceError):
        Trace(str(tmp_path / "a.csv")).traffic(0)


@pytest.mark.parametrize("path", ["", "missing.csv", "."])
def test_a_trace_that_is_not_there_is_refused(path):
    for ask in (Trace(path).own_rate, Trace(path).content, lambda: Trace(path).traffic(0)):
        with pytest.raises(TraceError, match=r"workload\.path"):
            ask()


def test_requests_that_all_come_at_once_have_no_rate_of_their_own(tmp_path):
    trace = written(tmp_path, "a.csv", "arrival,input,output\n3,1,1\n3,2,2\n")
    assert trace.traffic(0).times.tolist() == [0, 0]
    with pytest.raises(TraceError, match="one instant"):
        trace.own_rate()
