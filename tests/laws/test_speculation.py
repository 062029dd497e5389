"""Speculation: what it yields, what it costs, and that it loses nothing."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.clients.speculative import SpeculativeClient
from mist.compose import compose
from mist.errors import InputError
from mist.kernel import Kernel
from mist.memory.prefix import PrefixPool
from mist.network import LinkSpec
from mist.request import Request
from mist.simulate import serve, simulate

STEP, TOKEN, CACHED = 1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5
NGRAM = "mist.speculation.NGram"
LIMITS = {"max_running": 31, "token_budget": 400}
BY_NUMBER = {"tokens": 3, "accepted": {"0": 0.4, "1": 0.3, "3": 0.3}}


def ngram(tokens, acceptance):
    return {"_target_": NGRAM, "tokens": tokens, "acceptance": acceptance}


def yielded(run):
    """Verifications, drafted and accepted tokens over all clients."""
    counts = [client.acceptance for client in run.clients if hasattr(client, "acceptance")]
    return tuple(sum(getattr(count, name) for count in counts) for name in ("verifications", "drafted", "accepted"))


@pytest.fixture
def small_pool(make_pool, tiny, linear):
    """A pool of a tiny model with blocks of 4 tokens."""

    def pool(speculation=None, **fields):
        fields = {"limits": LIMITS, "perf": linear(STEP, TOKEN, CACHED), "kv_blocks": 10_000, **fields}
        drafts = {} if speculation is None else {"speculation": speculation}
        return make_pool(model=tiny, engine={"block_tokens": 4, "reserved_blocks": 0}, **fields, **drafts)

    return pool


# what it yields


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.71, 0.9, 1.0])
@pytest.mark.parametrize("tokens", [1, 3, 7])
def test_the_mean_tokens_of_a_step_are_those_of_the_formula(acceptance, tokens, small_pool, drive):
    run = drive(small_pool(ngram(tokens, acceptance)), [(i * 0.01, 5, 400) for i in range(60)])
    steps, drafted, accepted = yielded(run)
    expected = tokens + 1 if acceptance == 1 else (1 - acceptance ** (tokens + 1)) / (1 - acceptance)
    assert drafted == tokens * steps
    # the accepted of one step differ by no more than tokens / 2 in standard deviation
    assert 1 + accepted / steps == pytest.approx(expected, abs=4 * tokens / 2 / steps**0.5)
    if acceptance in (0, 1):
        assert accepted == acceptance * drafted


def test_a_distribution_of_accepted_drafts_is_drawn_as_given(small_pool, drive):
    run = drive(small_pool({"_target_": NGRAM} | BY_NUMBER), [(i * 0.01, 5, 400) for i in range(60)])
    steps, _, accepted = yielded(run)
    assert accepted / steps == pytest.approx(1.2, abs=4 * 1.3 / steps**0.5)


def test_two_ways_to_say_one_distribution_are_one(small_pool, drive, poisson):
    load = poisson(5, 50, 100.0, (1, 30), (1, 60))
    explicit = {"_target_": NGRAM, "tokens": 2, "accepted": {"0": 0.5, "1": 0.25, "2": 0.25}}
    one, other = drive(small_pool(ngram(2, 0.5)), load), drive(small_pool(explicit), load)
    assert one.column("finished").tolist() == other.column("finished").tolist()


def test_nothing_accepted_costs_time_and_gains_nothing(scheduler_name, small_pool, drive, poisson):
    load = [(i * 10.0, 20, 50) for i in range(4)]  # alone
    plain = drive(small_pool(scheduler=scheduler_name), load)
    futile = drive(small_pool(ngram(3, 0.0), scheduler=scheduler_name), load)
    steps = 49
    np.testing.assert_allclose(futile.column("finished") - plain.column("finished"), steps * 3 * TOKEN, rtol=1e-9)
    assert [client.steps for client in futile.clients] == [client.steps for client in plain.clients]


def test_all_accepted_yields_one_token_more_than_drafted(scheduler_name, small_pool, drive):
    for output in (1, 2, 5, 6, 41):
        run = drive(small_pool(ngram(4, 1.0), scheduler=scheduler_name), [(0.0, 20, output)])
        assert run.clients[0].steps == 1 + -(-(output - 1) // 5)  # a prompt, then five tokens a step


def test_drafts_that_cost_nothing_and_yield_nothing_change_nothing(scheduler_name, small_pool, drive, poisson, linear):
    load = poisson(11, 80, 300.0, (1, 30), (1, 60))
    fields = {"scheduler": scheduler_name, "perf": linear(STEP, 0.0, CACHED)}
    fields["limits"] = {"max_running": 31, "token_budget": 4000}  # drafts take no prompt's place
    plain, futile = drive(small_pool(**fields), load), drive(small_pool(ngram(2, 0.0), **fields), load)
    for name in ("first_token", "finished"):
        np.testing.assert_allclose(futile.column(name), plain.column(name), rtol=1e-12)


def test_what_is_accepted_depends_on_the_request_alone(small_pool, drive, poisson):
    load = poisson(5, 60, 500.0, (1, 30), (1, 60))
    pools = [small_pool(ngram(3, 0.6), limits=LIMITS | {"max_running": batch}) for batch in (1, 4, 31)]
    counts = {yielded(drive(pool, load)) for pool in [*pools, replace(pools[2], replicas=3)]}
    assert len(counts) == 1


def test_the_seed_and_nothing_else_changes_what_is_accepted(small_pool, make_scenario, drawn):
    traffic = drawn(n=200, prompt=20.0, answer=30.0).traffic(0)
    results = [
        serve(make_scenario(small_pool(ngram(3, 0.6)), seed=seed), traffic, 20.0).to_json() for seed in (1, 1, 2)
    ]
    assert results[0] == results[1]
    counts = [result["pools"]["llm"]["speculation"]["accepted"] for result in results]
    assert counts[0] != counts[2]


# what it loses


@pytest.mark.parametrize("blocks", [25, 60, 5000])
@settings(max_examples=40)
@given(data=st.data())
def test_every_request_gets_exactly_its_tokens_and_every_block_comes_back(
    data, scheduler_name, blocks, small_pool, drive, poisson
):
    tokens = data.draw(st.integers(1, 8))
    drafts = ngram(tokens, data.draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])))
    batch = data.draw(st.sampled_from([1, 4, 20]))
    limits = {"max_running": batch, "token_budget": data.draw(st.integers(batch * (tokens + 1) + 1, 300))}
    if scheduler_name == "vllm_v1" and data.draw(st.booleans()):
        limits["token_budget"] = data.draw(st.integers(1, 30))  # too few for the drafts of a batch
    load = poisson(data.draw(st.integers(0, 2**32)), 30, data.draw(st.sampled_from([10.0, 1e4])), (1, 50), (1, 40))
    roles = data.draw(st.sampled_from([("both",), ("prefill", "decode")]))
    fields = {"scheduler": scheduler_name, "limits": limits, "kv_blocks": blocks}
    pools = {
        role: small_pool(
            None if role == "prefill" else drafts, role=role, replicas=data.draw(st.integers(1, 2)), **fields
        )
        for role in roles
    }  # fmt: skip

    def conserved(run):
        states = Counter(
            "refused" if r.refused else "completed" if r.finished >= 0 else "in flight"
            for r in run.requests
            if r.arrived <= run.kernel.now
        )
        cluster = run.cluster
        assert (cluster.completed, cluster.in_flight, cluster.refused) == tuple(
            states[state] for state in ("completed", "in flight", "refused")
        )
        assert all(0 <= client.kv.used <= client.kv.peak <= client.kv.total for client in run.clients)

    run = drive(pools, load, LinkSpec("wire", 1e7, 1e-4) if len(roles) > 1 else None, after_each=conserved)
    for request in run.requests:
        need = -(-(request.input + request.output + tokens) // 4)
        if len(roles) == 1:
            assert bool(request.refused) == (need > blocks)
        if not request.refused:
            assert (request.left, request.known) == (0, request.input + request.output)
            assert request.computed == request.known - 1
            assert request.arrived < request.first_token <= request.finished
    for client in run.clients:
        assert client.kv.used == client.decodes.count == client.decodes.cached == client.waiting == 0
        assert not client.running


def test_drafts_are_trimmed_to_the_token_budget_of_vllm(small_pool, drive):
    limits = {"max_running": 2, "token_budget": 7}  # five tokens and two: four drafts and one
    run = drive(small_pool(ngram(4, 1.0), scheduler="vllm_v1", limits=limits), [(0.0, 3, 21)] * 2)
    assert [request.left for request in run.requests] == [0, 0]
    assert yielded(run) == (4 + 4 + 3, 4 * 4 + 4 * 1 + 3 * 4, 4 * 4 + 4 * 1 + 3 * 4)


def test_a_request_beyond_the_token_budget_waits_with_its_drafts(small_pool, drive):
    limits = {"max_running": 2, "token_budget": 6}  # the second computes one token a step while the first runs
    run = drive(small_pool(ngram(5, 1.0), scheduler="vllm_v1", limits=limits), [(0.0, 3, 13)] * 2)
    assert [client.steps for client in run.clients] == [1 + 2 + 2]
    assert run.requests[0].finished < run.requests[1].finished
    assert yielded(run) == (4, 20, 20)


@dataclass(frozen=True)
class Session:
    """Tokens of one conversation: the same for all its requests."""

    def key(self, block, block_tokens):
        return block, block_tokens


@pytest.mark.parametrize("acceptance", [0.0, 0.6, 1.0])
def test_drafts_are_never_found_in_the_prefix_cache_and_accepted_tokens_are(acceptance, small_pool):
    spec = small_pool(ngram(5, acceptance), limits={"max_running": 4, "token_budget": 64})
    kernel, cache = Kernel(), PrefixPool(100, 4)
    ended, known = [], []
    client = SpeculativeClient(
        kernel, "llm/0", scheduler=spec.scheduler, steptimes=spec.steptimes()[0], kv=cache, finished=ended.append,
        speculation=spec.speculation, seed=0,
    )  # fmt: skip
    first, second = Request(0, 0.0, 9, 40, 0, Session()), Request(1, 100.0, 60, 1, 0, Session())
    client.watch = lambda *_: known.append((cache.contents, first.known // 4))
    for request in (first, second):
        kernel.at(request.arrived, client.submit, request)
    kernel.run(until=50.0)
    assert all(contents <= whole for contents, whole in known)
    cached = cache.contents
    assert cached == known[-1][1]  # what the last step filled is not registered, as in vLLM
    kernel.run()
    assert cache.hit_tokens == 4 * cached
    assert (ended, cache.used) == ([first, second], 0)


# through the front door


@pytest.mark.parametrize("choice", ["ngram", "draft_model", "eagle", "mtp"])
def test_one_override_turns_it_on_and_the_result_says_so(choice):
    quick = ["workload=poisson_fixed", "workload.rate=2", "workload.requests=50", "workload.outputs.tokens=64"]
    for cluster, pool in (("one_pool", "llm"), ("disaggregated", "decode")):
        report = simulate(compose([*quick, f"cluster={cluster}", f"speculation={choice}"])).pools[pool]
        assert report.speculation.acceptance_rate == report.speculation.accepted / report.speculation.drafted
        assert report.speculation.tokens_per_step > 1
    assert simulate(compose(quick)).pools["llm"].speculation is None


@pytest.mark.parametrize(
    ("overrides", "field", "why"),
    [
        (["speculation.tokens=3"], "speculation.tokens", "no such option"),
        (["speculation=draft_model", "speculation.model=qwen3-0.6b"], "speculation.model", "another vocabulary"),
        (["speculation=draft_model", "speculation.model=bge-m3"], "speculation.model", "another vocabulary"),
        (["speculation=ngram", "speculation.layers=2"], "speculation.layers", "no such option"),
        (["speculation=ngram", "speculation.tokens=0"], "speculation.tokens", "at least 1"),
        (["speculation=eagle", "speculation.acceptance=1.5"], "speculation.acceptance", "a probability"),
        (["speculation=eagle", "speculation.accepted={0: 1.0}"], "speculation.acceptance", "no effect beside accepted"),
        (
            ["speculation=eagle", "speculation.acceptance=null", "speculation.accepted={0: 0.5, 4: 0.5}"],
            "speculation.accepted",
            "3 tokens are drafted",
        ),
        (
            ["speculation=eagle", "speculation.acceptance=null", "speculation.accepted={0: 0.5, 1: 0.4}"],
            "speculation.accepted",
            "sum to 1",
        ),
        (["speculation=ngram", "speculation.tokens=7"], "scheduler.token_budget", "verifies 2048 tokens"),
        (["speculation=draft_model", "tp=64"], "tp", "devices"),
    ],
)
def test_what_cannot_work_or_has_no_effect_is_refused(overrides, field, why):
    with pytest.raises(InputError, match=why) as caught:
        simulate(compose(overrides))
    assert caught.value.field == f"pools.llm.{field}"


def test_a_pool_that_only_prefills_cannot_speculate(small_pool):
    with pytest.raises(InputError, match="only prefills"):
        small_pool(ngram(1, 0.5), role="prefill")
