"""RAGPulse and agent calls replay whole, and an endless prefix cache finds what their ids say was there before."""

import gzip
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from mist.build import build
from mist.errors import InputError, TraceError
from mist.workload.trace import Trace
from mist.workload.traffic import Workload

CONF = Path(__file__).parents[2] / "conf" / "workload"
DATA = Path(os.environ.get("MIST_DATA", ""))
RAGPULSE, AGENTS = DATA / "traces/ragpulse/0_trace.jsonl", DATA / "traces/agents/agent_calls.jsonl.gz"
needs_traces = pytest.mark.skipif(not os.environ.get("MIST_DATA"), reason="MIST_DATA names no folder of traces")


def load(name, path):
    return build(Workload, yaml.safe_load((CONF / f"{name}.yaml").read_text()) | {"path": str(path)})


def rag(time, tokens, system, passages=(), question=99, session="a"):
    ids = {"sys_prompt": system, "passages_ids": list(passages), "history": [], "web_search": [],
           "user_input": [question]}  # fmt: skip
    row = {"timestamp": str(time), "input_length": tokens, "output_length": 5, "hash_ids": ids, "session_id": session}
    return json.dumps(row)


def call(time, tokens, hashes, session="a", output=7):
    return json.dumps({"dataset": "d", "session": session, "timestamp_us": time, "est_input_tokens": tokens,
                       "est_output_tokens": output, "hash_ids_2048ch": hashes})  # fmt: skip


def written(path, *rows):
    text = "\n".join(rows) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def shared(traffic, one, other, block=16):
    """Tokens in whole blocks that two requests have in common from their beginning."""
    mine, theirs = (traffic.contents.of(0, i) for i in (one, other))
    blocks = 0
    while mine.key(blocks, block) == theirs.key(blocks, block):
        blocks += 1
    return blocks * block


@pytest.fixture
def hits(make_pool, drive, tiny, linear):
    """Tokens that an endless prefix cache finds, of those looked up, one request after the other."""

    def run(traffic, block_tokens):
        pool = make_pool(
            model=tiny, engine={"block_tokens": block_tokens}, limits={"token_budget": 200_000}, perf=linear(1e-6),
            kv_blocks=2**40, prefix_caching=True,
        )  # fmt: skip
        columns = ((np.arange(len(traffic)) * 1e3).tolist(), traffic.inputs.tolist(), traffic.outputs.tolist())
        use = drive(pool, zip(*columns, strict=True), contents=partial(traffic.contents.of, 0)).clients[0].kv.use()
        return use.hit_tokens, use.looked_up_tokens

    return run


def test_ragpulse_without_lengths_shares_the_system_prompt_up_to_its_last_part(tmp_path):
    path = written(tmp_path / "0_trace.jsonl", rag(0, 2000, [1, 2, 3]), "", rag(5, 2100, [1, 2, 4]),
                   rag(9, 2100, [1, 5, 3]), rag(9, 600, [1, 2, 3]))  # fmt: skip
    traffic = load("ragpulse", path).traffic(0)
    assert traffic.inputs.tolist() == [2000, 2100, 2100, 600]
    assert [shared(traffic, 0, other) for other in (1, 2, 3)] == [1024, 512, 512]


def test_ragpulse_with_lengths_shares_passages_too_where_all_before_them_is_the_same(tmp_path):
    written(tmp_path / "1_sys_prompt.jsonl", *(json.dumps({"sys_prompt_id": i, "token_length": 100}) for i in (1, 2)))
    written(tmp_path / "2_passages.jsonl", *(json.dumps({"passages_id": i, "token_length": 64}) for i in (7, 8)))
    path = written(tmp_path / "0_trace.jsonl", rag(0, 400, [1], (7, 8)), rag(5, 400, [1], (7, 8), 98),
                   rag(9, 400, [1], (8, 7)), rag(9, 400, [2], (7, 8)))  # fmt: skip
    traffic = Trace(str(path)).traffic(0)
    assert [shared(traffic, 0, other, 4) for other in (1, 2, 3)] == [228, 100, 0]
    before = Trace(str(path)).content()
    written(tmp_path / "2_passages.jsonl", json.dumps({"passages_id": 7, "token_length": 65}))
    assert Trace(str(path)).content() != before
    assert shared(Trace(str(path)).traffic(0), 0, 1, 1) == 165


def test_agent_calls_are_sorted_and_know_their_sessions(tmp_path):
    rows = [call(9_000_000, 1100, [1, 2]), call(10_000_000, 0, [], output=0), call(8_000_000, 600, [1], "b")]
    for name in ("calls.jsonl", "calls.jsonl.gz"):
        traffic = Trace(str(written(tmp_path / name, *rows))).traffic(0)
        assert traffic.inputs.tolist() == [600, 1100, 1]
        assert traffic.outputs.tolist() == [7, 7, 1]
        assert shared(traffic, 0, 1) == 512
        sessions = [traffic.contents.of(0, i).conversation for i in range(3)]
        assert sessions[0] != sessions[1] == sessions[2]
        assert [traffic.thinned(2).contents.of(0, i).ids for i in range(1)] == [(1,)]


def test_a_gap_between_recordings_is_cut_and_no_other(tmp_path):
    path = written(tmp_path / "a.jsonl", *(call(t, 600, [1]) for t in (0, 2_000_000, 9_000_000_000, 9_001_000_000)))
    assert Trace(str(path)).own_rate() == pytest.approx(3 / 9001)
    assert Trace(str(path), longest_gap=3.0).own_rate() == pytest.approx(3 / 6)
    with pytest.raises(InputError, match="longest_gap = 0"):
        Trace(str(path), longest_gap=0.0)


@pytest.mark.parametrize(
    ("rows", "line", "why"),
    [
        ([rag(0, 600, [1, 2]), rag("x", 600, [1])], 2, "seconds or a date"),
        ([rag(0, 0, [1])], 1, "at least one input"),
        ([rag(0, 600, [1]), rag(1, 600, ["x"])], 2, "sys_prompt must be a list"),
        ([rag(0, 600, [1]), '{"timestamp": 0}'], 2, "needs input_length"),
        ([call(0, 600, [1]), call(0, 600, "1")], 2, "must be a list"),
        ([call(0, 600, [1]), "{}"], 2, "needs est_input_tokens"),
        ([call(0, 600, [1]), call(0, 5000, [1])], 0, "not 512 tokens each"),
    ],
)
def test_a_bad_row_is_refused_by_its_line(tmp_path, rows, line, why):
    with pytest.raises(TraceError, match=why) as error:
        Trace(str(written(tmp_path / "a.jsonl", *rows))).traffic(0)
    assert not line or error.value.field.endswith(f"a.jsonl:{line}")


def test_a_packed_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(TraceError, match="holds no agent calls"):
        Trace(str(written(tmp_path / "a.jsonl.gz", '{"time": 0, "input": 1, "output": 1}'))).traffic(0)
    (tmp_path / "b.jsonl.gz").write_text("not packed")
    with pytest.raises(TraceError, match="cannot be read"):
        Trace(str(tmp_path / "b.jsonl.gz")).traffic(0)


# against the recordings


def ideal(traffic, block):
    """Tokens in whole blocks that some earlier prompt began with, by ids alone; the last token is always computed."""
    seen, hit = set(), 0
    for i in range(len(traffic)):
        content = traffic.contents.of(0, i)
        keys = [content.key(k, block) for k in range(int(traffic.inputs[i]) // block)]
        found = next((k for k, key in enumerate(keys) if key not in seen), len(keys))
        hit += min(found, (int(traffic.inputs[i]) - 1) // block) * block
        seen.update(keys)
    return hit


@needs_traces
def test_ragpulse_replays_whole_and_an_endless_cache_finds_its_system_prompts(hits):
    trace = load("ragpulse", RAGPULSE)
    traffic = trace.traffic(0)
    assert len(traffic) == 7106
    assert trace.own_rate() == pytest.approx(7105 / (604_603 - 82), rel=1e-3)
    found, asked = hits(traffic, 16)
    assert asked == traffic.inputs.sum()
    assert found == ideal(traffic, 16)
    assert len(set(traffic.contents.sessions.tolist())) == 3990


@needs_traces
def test_agent_calls_replay_whole_and_an_endless_cache_finds_nearly_all_of_their_prompts(hits):
    trace = load("agents", AGENTS)
    traffic = trace.traffic(0)
    assert len(traffic) == 1619
    assert len(set(traffic.contents.sessions.tolist())) == 69
    ids, seen = traffic.contents.ids.tolist(), set()
    again = sum(i in seen or seen.add(i) is not None for i in ids)
    assert again / len(ids) == pytest.approx(0.894, abs=0.001)
    found, asked = hits(traffic, 512)
    assert found == ideal(traffic, 512)
    assert found / asked == pytest.approx(512 * again / asked, abs=0.01)
