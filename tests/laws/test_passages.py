"""Passages are found wherever they stand in a prompt, and all but a share of them is not computed again."""

import os
from dataclasses import replace
from pathlib import Path as File

import numpy as np
import pytest

from mist.build import build
from mist.clients.llm import LLMClient
from mist.clients.station import DrawnStation
from mist.compose import compose
from mist.errors import InputError
from mist.fetching.always import Always
from mist.inert import refuse_inert
from mist.plan.branches import Fork, Path
from mist.plan.corpus import Corpus
from mist.plan.stages import Generate, Pipeline, Serve
from mist.plan.times import Constant
from mist.scenario import Scenario
from mist.simulate import serve
from mist.tiers.passages import PassageTiers
from mist.tiers.spec import StoredTier
from mist.workload.arrivals import Poisson
from mist.workload.lengths import Fixed
from mist.workload.passages import PassagePrompt, RagPrompts

BLOCK, PIECE = 4, 22  # a passage fills five blocks and half of another
TOKEN = 1e-5 * 3**0.5
DATA = os.environ.get("MIST_DATA")


def tiers(capacity=None, recompute=0.0, whole_layers=0, layerwise=False, **tier):
    tier = {"read_bandwidth": 1e30, "write_bandwidth": 1e30, "latency": 0.0, "write": "through", **tier}
    share = {"recompute": recompute, "whole_layers": whole_layers}
    return PassageTiers({"dram": StoredTier(capacity=capacity, **tier)}, Always(), layerwise, **share)


@pytest.fixture
def pool(make_pool, tiny, linear):
    def make(perf=None, blocks=4000, **fields):
        limits = {"token_budget": 256, "max_running": 16}
        engine = {"block_tokens": BLOCK, "reserved_blocks": 0}
        perf = perf or linear(1e-3, TOKEN)
        spec = make_pool(
            model=tiny, perf=perf, limits=limits, engine=engine, kv_blocks=blocks, prefix_caching=True, **fields
        )
        return replace(spec, hardware=replace(spec.hardware, host_bandwidth=1e30))

    return make


def prompts(*read, system=8, question=10):
    """Prompts that hold these passages."""

    def content(request):
        names = read[request]
        tokens = system + PIECE * len(names) + question
        return PassagePrompt((0, request), tokens, system, PIECE, names)

    return content, [(float(n), content(n).tokens, 3) for n in range(len(read))]


def computed(run):
    """Tokens of prompts that steps computed, by request; a step takes 1 ms and TOKEN for each."""
    return [round((r.first_token - r.arrived - 1e-3) / TOKEN) for r in run.requests]


@pytest.mark.parametrize(("recompute", "whole_layers"), [(0.0, 0), (0.15, 0), (0.15, 1), (0.9, 0)])
def test_passages_in_another_order_are_computed_by_their_share(recompute, whole_layers, pool, drive, tiny):
    """Two passages of 22 tokens that another prompt had; the device finds the 8 tokens of the system prompt."""
    content, arrivals = prompts((1, 2), (2, 1))
    run = drive(pool(tiers=tiers(None, recompute, whole_layers)), arrivals, contents=content)
    kept = int(2 * PIECE * (1 - recompute) * (1 - whole_layers / tiny.layers)) // BLOCK * BLOCK
    assert computed(run) == [62, 62 - 8 - kept]
    assert run.cluster.pools["llm"].fetches.use().fetched_tokens == kept


def test_what_the_device_finds_as_a_prefix_is_taken_from_there(pool, drive):
    """The third prompt begins like the second: the prefix of both passages is on the device, the third is not."""
    content, arrivals = prompts((1, 2, 3), (3, 1, 2), (3, 1, 4))
    run = drive(pool(tiers=tiers()), arrivals, contents=content)
    prefix = (8 + 2 * PIECE) // BLOCK * BLOCK
    assert computed(run) == [84, 84 - 8 - 3 * PIECE // BLOCK * BLOCK, 84 - prefix]


@pytest.mark.parametrize("layerwise", [False, True])
def test_nothing_in_common_is_nothing_reused(layerwise, pool, drive):
    """To the last bit as without."""
    content, arrivals = prompts(*[(3 * n, 3 * n + 1, 3 * n + 2) for n in range(30)])
    arrivals = [(time / 20, *rest) for time, *rest in arrivals]
    runs = [drive(spec, arrivals, contents=content) for spec in (pool(tiers=tiers(layerwise=layerwise)), pool())]
    for name in ("first_token", "finished"):
        assert runs[0].column(name).tolist() == runs[1].column(name).tolist()


def test_a_prompt_that_holds_a_passage_twice_fetches_it_once(pool, drive):
    content, arrivals = prompts((1, 2), (2, 2))
    run = drive(pool(tiers=tiers()), arrivals, contents=content)
    assert computed(run)[1] == 62 - 8 - PIECE // BLOCK * BLOCK


def test_an_endless_store_finds_every_passage_that_was_read_before(pool, drive):
    """One after another: what ids say was there, less what is lost to whole blocks."""
    random = np.random.default_rng(3)
    read = [tuple(random.choice(12, 4, replace=False).tolist()) for _ in range(60)]
    content, arrivals = prompts(*read, system=0)
    run = drive(pool(blocks=60, tiers=tiers()), arrivals, contents=content)  # the device holds the last two prompts
    seen, expected = set(), []
    for names in read:
        expected.append(98 - PIECE * len(seen & {*names}) // BLOCK * BLOCK)
        seen |= {*names}
    assert all(got <= most for got, most in zip(computed(run), expected, strict=True))  # a prefix hit beside it
    assert sum(a == b for a, b in zip(computed(run), expected, strict=True)) > 40


def test_a_smaller_store_reuses_less(pool, drive):
    random = np.random.default_rng(4)
    read = [tuple(random.choice(40, 4, replace=False).tolist()) for _ in range(80)]
    content, arrivals = prompts(*read)
    size = BLOCK * pool().model.kv_bytes_per_token
    fetched = [
        drive(pool(tiers=tiers(blocks * size)), arrivals, contents=content).cluster.pools["llm"].fetches.use()
        for blocks in (0, 24, 60, 120, 10_000)
    ]
    tokens = [use.fetched_tokens for use in fetched]
    assert tokens == sorted(tokens)
    assert tokens[0] == 0 < tokens[2] < tokens[-1]


@pytest.mark.parametrize("layerwise", [False, True])
def test_leaping_equals_stepping(layerwise, pool, drive):
    """Under load, with slow stores and so little memory that some are preempted."""
    random = np.random.default_rng(5)
    read = [tuple(random.choice(15, 3, replace=False).tolist()) for _ in range(60)]
    content, arrivals = prompts(*read)
    times = np.cumsum(random.exponential(1 / 400, 60)).tolist()
    arrivals = [(t, tokens, 40) for t, (_, tokens, _) in zip(times, arrivals, strict=True)]
    slow = tiers(recompute=0.15, layerwise=layerwise, read_bandwidth=1e7 * 2**0.5, latency=1e-4 * 5**0.5)
    spec = pool(blocks=150, tiers=slow)
    runs = [drive(spec, arrivals, contents=content, one_by_one=one) for one in (False, True)]
    assert runs[0].column("finished") == pytest.approx(runs[1].column("finished"), rel=1e-9)
    assert runs[0].cluster.pools["llm"].fetches.use().fetched_tokens > 0
    assert runs[0].clients[0].preemptions == runs[1].clients[0].preemptions > 0
    assert runs[0].clients[0].kv.used == 0


SEARCH = {"s": Serve("retrieve", "s", time=Constant(0.01), pieces=3, piece_tokens=Fixed(PIECE), corpus=Corpus(9, 1.0))}


def test_what_a_pipeline_finds_in_a_corpus_is_found_again_in_the_store(pool, drive):
    """One after another: of nine passages three a request, between 10 tokens of its own and an instruction of 8."""
    pipeline = Pipeline({**SEARCH, "x": Generate(instruction=8)})
    arrivals, options = [(float(n), 10, 3) for n in range(50)], {"stations": {"s": DrawnStation()}, "cycle": 50}
    run = drive(pool(tiers=tiers()), arrivals, pipeline=pipeline, **options)
    plain = drive(pool(), arrivals, pipeline=pipeline, **options)
    seen, expected = set(), []
    for request in run.requests:
        names = {name for name, _ in request.steps[0].found}
        assert len(names) == 3
        expected.append(18 + 3 * PIECE - PIECE * len(seen & names) // BLOCK * BLOCK)
        seen |= names
    assert [round((r.ttft - 0.011) / TOKEN) for r in run.requests] == expected
    assert len(seen) == 9
    assert run.column("prompted").tolist() == plain.column("prompted").tolist() == [18 + 3 * PIECE] * 50


def test_branches_of_a_fork_hold_the_passages_of_what_came_before(pool, drive):
    """The trunk's passages are in every branch, and each branch's own are not in the others."""
    path = Path({**SEARCH, "y": Generate(output=Fixed(4))}, 2)
    pipeline = Pipeline({**SEARCH, "f": Fork({"p": path}, carries="one"), "x": Generate()})
    options = {"stations": {"s": DrawnStation()}, "cycle": 1, "pipeline": pipeline}
    held = []
    client = "mist.clients.llm.LLMClient.submit"
    with pytest.MonkeyPatch.context() as patch:
        submit = LLMClient.submit
        patch.setattr(client, lambda self, r: (held.append(r.content.passages()), submit(self, r)))
        drive(pool(tiers=tiers()), [(0.0, 10, 3)], **options)
    assert [len(passages) for passages in held] == [6, 6, 6]
    assert held[0][:3] == held[1][:3] == held[2][:3]
    assert held[2] in held[:2]
    assert [passage.begin for passage in held[0]] == [10 + n * PIECE for n in range(6)]


def test_popular_passages_are_drawn_in_proportion():
    """Zipf: the r-th in proportion to r^-skew; never twice in a prompt."""
    traffic = RagPrompts(Poisson(), Fixed(5), Fixed(5), 4000, 50, 1.0, 1, 10).traffic(1)
    counts = np.bincount(traffic.contents.read[:, 0], minlength=50)
    expected = 4000 / np.arange(1, 51) / (1 / np.arange(1, 51)).sum()
    assert np.abs(counts - expected).max() < 5 * expected.max() ** 0.5
    several = RagPrompts(Poisson(), Fixed(5), Fixed(5), 200, 8, 1.5, 6, 10).traffic(1)
    assert all(len({*row}) == 6 for row in several.contents.read.tolist())
    assert set(several.inputs.tolist()) == {65}


def test_prompts_share_blocks_only_where_all_before_is_the_same():
    one, two = (PassagePrompt((0, n), 100, 8, 20, read) for n, read in enumerate([(1, 2, 3, 4), (1, 2, 4, 3)]))
    same = [one.key(block, 4) == two.key(block, 4) for block in range(25)]
    assert same == [True] * 12 + [False] * 13  # up to token 48
    assert len({one.key(block, 4) for block in range(25)}) == 25


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["tiers=passages"], "prefix_caching=true"),
        (["tiers=passages", "prefix_caching=true"], "do not say which passages they hold"),
        (["workload=rag_prompts", "tiers=passages", "prefix_caching=true", "tiers.recompute=1"], r"\[0, 1\)"),
        (
            ["workload=rag_prompts", "tiers=passages", "prefix_caching=true", "tiers.tiers.dram.write=evicted"],
            "through",
        ),
        (["pipeline=rag", "pipeline.stages.rerank.corpus.skew=1"], "corpus without end"),
        (["pipeline=rag", "pipeline.stages.rerank.corpus.passages=3"], "5 pieces are found"),
        (["workload=rag_prompts", "workload.pieces=9", "workload.corpus=8"], "must hold the 9 passages"),
    ],
)
def test_what_cannot_be_is_refused_by_name(words, why):
    with pytest.raises(InputError, match=why):
        build(Scenario, compose(words))


@pytest.mark.skipif(not DATA, reason="MIST_DATA names no folder of traces")
def test_ragpulse_finds_the_passages_that_were_read_before():
    """Of every fourth request, at a rate so low that hardly any two meet, with an endless store."""
    path = File(DATA or "") / "traces/ragpulse/0_trace.jsonl"
    words = ["workload=ragpulse", f"workload.path={path}", "workload.passage_tokens=330", "slo=none", "window.warmup=0"]
    words += [
        "window.drain=true",
        "prefix_caching=true",
        "tiers=passages",
        "tiers.tiers.dram.capacity=null",
        "tiers.fetch=always",
    ]
    scenario = build(Scenario, compose(words))
    traffic = scenario.workload.traffic(0).thinned(4)
    held = [p.name for index in range(len(traffic)) for p in traffic.contents.of(0, index).passages()]
    use = serve(scenario, traffic, 0.2).pools["llm"].tiers
    found = use.tiers["dram"].hit_tokens / (336 * len(held))  # 21 blocks of 16 tokens each
    assert found == pytest.approx(1 - len({*held}) / len(held), abs=0.01)
    assert found > 0.7


@pytest.mark.skipif(not DATA, reason="MIST_DATA names no folder of traces")
def test_a_length_that_nobody_looks_at_is_refused():
    path = File(DATA or "") / "traces/ragpulse/0_trace.jsonl"
    words = ["workload=ragpulse", f"workload.path={path}", "workload.passage_tokens=330", "slo=none"]
    with pytest.raises(InputError, match="nobody looks for passages"):
        refuse_inert(words, compose(words))


def test_a_corpus_that_nobody_looks_into_is_refused():
    words = ["pipeline=rag", "pipeline.stages.rerank.corpus=ragpulse"]
    with pytest.raises(InputError, match="nobody looks for passages"):
        refuse_inert(words, compose(words))
    words += ["llm.prefix_caching=true", "llm.tiers=passages"]
    refuse_inert(words, compose(words))
    refuse_inert(
        ["workload=rag_prompts", "workload.corpus=50"], compose(["workload=rag_prompts", "workload.corpus=50"])
    )


def test_corpora_of_one_name_have_the_same_passages():
    search = SEARCH["s"]
    assert Pipeline({"a": search, "b": replace(search, corpus=Corpus(9, 0.5))})  # asked for otherwise
    for other in (replace(search, corpus=Corpus(12, 1.0)), replace(search, piece_tokens=Fixed(PIECE + 1))):
        with pytest.raises(InputError, match=r"stages.b.corpus.name = documents: stages.a searches a corpus"):
            Pipeline({"a": search, "b": other})
    assert Pipeline({"a": search, "b": replace(search, corpus=Corpus(12, 1.0, "others"))})
