"""Laws of what drafts cost: time, memory, power, and a cache of their own that is handed over."""

import numpy as np
import pytest

from mist.errors import InputError
from mist.network import LinkSpec
from mist.perf.base import StepShape
from mist.simulate import serve

NGRAM, HEAD, MODEL = (f"mist.speculation.{name}" for name in ("NGram", "Head", "DraftModel"))


def ngram(tokens, acceptance):
    return {"_target_": NGRAM, "tokens": tokens, "acceptance": acceptance}


def closed_form(pool, plain, batch, context, expected):
    """Time of a token without speculation over time of a token with it."""
    drafted = StepShape(batch, batch * context, (), batch * pool.speculation.tokens)
    return (
        expected
        * plain.steptimes()[0].step_time(StepShape(batch, batch * context))
        / pool.steptimes()[0].step_time(drafted)
    )


def big_pools(make_pool, sheet, tokens=5, acceptance=0.71, overhead=0.0):
    drafts = {"_target_": MODEL, "tokens": tokens, "acceptance": acceptance, "pass_overhead": overhead}
    fields = {"model": "llama-3.1-70b", "tp": 4, "limits": {"token_budget": 8192, "max_running": 1024}}
    return (
        make_pool(**fields, speculation=drafts | {"model": sheet("model", "llama-3.2-1b")}),
        make_pool(**fields),
    )


def test_alone_the_speedup_is_the_formula(make_pool, sheet, drive):
    tokens, acceptance, context = 5, 0.71, 1000
    pool, plain = big_pools(make_pool, sheet, tokens, acceptance)
    expected = (1 - acceptance ** (tokens + 1)) / (1 - acceptance)
    load = [(i * 1e4, context, 4000) for i in range(3)]
    times = [np.mean([r.tpot for r in drive(spec, load).requests]) for spec in (plain, pool)]
    observed = times[0] / times[1]
    assert observed == pytest.approx(closed_form(pool, plain, 1, context + 2000, expected), rel=0.03)
    target, draft = pool.steptimes()[0].target, pool.steptimes()[0].drafter
    one, several = StepShape(1, context), StepShape(1, context, (), tokens)
    verify, decode = target.step_time(several), target.step_time(one)
    assert verify == pytest.approx(decode, rel=0.05)  # memory-bound: the drafts ride along
    leviathan = expected * decode / (verify + tokens * draft.step_time(one))
    assert closed_form(pool, plain, 1, context, expected) == pytest.approx(leviathan, rel=0.01)
    assert observed > 2


def test_the_gain_is_gone_at_a_large_batch(make_pool, sheet):
    """Llama-3.1-70B on four H100 with Llama-3.2-1B drafting 5 tokens: 2.4 times as fast alone, no faster from some
    batch on.
    """
    pool, plain = big_pools(make_pool, sheet, overhead=0.2e-3)
    expected = (1 - 0.71**6) / (1 - 0.71)
    batches = [1, 4, 16, 64, 128, 256, 512]
    gains = [closed_form(pool, plain, batch, 500, expected) for batch in batches]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 2
    assert gains[-1] < 1
    crossing = next(batch for batch in range(1, 1024) if closed_form(pool, plain, batch, 500, expected) < 1)
    assert 64 < crossing < 512, crossing


def test_the_gain_is_gone_at_a_large_batch_in_the_simulation_too(make_pool, sheet, drive):
    pools = big_pools(make_pool, sheet, overhead=0.2e-3)
    ends = {
        batch: [drive(pool, [(0.0, 200, 100)] * batch).column("finished").max() for pool in pools]
        for batch in (1, 512)
    }  # fmt: skip
    assert ends[1][0] < 0.6 * ends[1][1]  # a drafter's layers take time too, however small
    assert ends[512][0] > ends[512][1]


def test_verifying_a_token_and_its_drafts_reads_the_cache_as_a_chunk_of_them_does(make_pool, model_name, sheet):
    pool = make_pool(
        model=model_name, hardware="h200", tp=1, engine={"mixed_overhead": "0 s", "request_overhead": "0 s"}
    )
    steps = pool.perf.of(pool.replica)
    for context in (10, 1000, 30_000):
        drafted, chunk = StepShape(1, context, (), 3), StepShape(0, 0, ((4, context),))
        assert steps.step_time(drafted) == pytest.approx(steps.step_time(chunk), rel=1e-3)


def test_a_drafter_takes_memory_from_the_cache(make_pool, sheet):
    pool, plain = (big_pools(make_pool, sheet)[i].blocks() for i in (0, 1))
    lookup = make_pool(
        model="llama-3.1-70b", tp=4, limits={"token_budget": 8192, "max_running": 1024}, speculation=ngram(5, 0.2)
    )
    assert pool < lookup.blocks() < plain  # logits of the drafts alone, then weights and a cache of its own too
    head = {"_target_": HEAD, "tokens": 1, "acceptance": 0.85}
    kinds = [
        make_pool(model=name, tp=tp, hardware="h200", speculation=head)
        for name, tp in (("deepseek-v3", 8), ("llama-3.1-8b", 1))
    ]
    for spec in kinds:
        layer = spec.model.counted_parameters / spec.model.layers
        assert 0.5 * layer < spec.speculation.weight_bytes(spec.model) / 2 < 2 * layer


# drafting beside the model


def test_the_drafters_passes_draw_power(make_pool, make_scenario, sheet, drawn):
    draft = {"_target_": MODEL, "model": sheet("model", "llama-3.2-1b"), "tokens": 4, "acceptance": 0.0}
    pool = make_pool(speculation=draft)
    (load,), (target,) = pool.loads(), make_pool().loads()
    (drafter,) = make_pool(model="llama-3.2-1b").loads()
    shape = StepShape(8, 4000, ((300, 0),), 32)
    passes = drafter.step(shape) + 3 * drafter.step(StepShape(8, 4000))
    assert load.step(shape) == pytest.approx(target.step(shape) + passes)
    # a lookup verifies the same drafts on the same device, in less time and with less energy
    results = []
    for speculation in (draft, ngram(4, 0.0)):
        scenario = make_scenario(make_pool(speculation=speculation), drawn(n=100))
        results.append(serve(scenario, scenario.workload.traffic(1), 0.2))
    assert results[0].joules_per_token > 1.02 * results[1].joules_per_token


@pytest.fixture
def apart(make_pool, drive):
    """One request through a prefill and a decode pool that drafts so."""

    def of(drafts, prompt=2000, bandwidth=1e9):
        fields = {"prefill": {}, "decode": {} if drafts is None else {"speculation": drafts}}
        pools = {role: make_pool(role=role, scheduler="vllm_v1", **more) for role, more in fields.items()}
        return drive(pools, [(0.0, prompt, 2)], LinkSpec("wire", bandwidth, 0.0))

    return of


def test_the_drafters_cache_is_computed_and_handed_over_with_the_models(apart, make_pool, sheet):
    draft = {"_target_": MODEL, "model": sheet("model", "llama-3.2-1b"), "tokens": 4, "acceptance": 0.0}
    plain, lookup, drafted = (apart(drafts).requests[0] for drafts in (None, ngram(4, 0.0), draft))
    assert (lookup.first_token, lookup.visits[1]) == (plain.first_token, plain.visits[1])
    free = {"step_overhead": 0.0, "request_overhead": 0.0, "mixed_overhead": 0.0}  # paid once a step
    small = make_pool(model="llama-3.2-1b", engine=free)
    alone = small.steptimes()[0].step_time(StepShape(0, 0, ((2000, 0),)))
    assert drafted.first_token - plain.first_token == pytest.approx(alone)
    sent = [request.visits[1].finished - request.visits[1].started for request in (plain, drafted)]
    assert sent[1] - sent[0] == pytest.approx(2000 * small.model.kv_bytes_per_token / 1e9)


def test_a_prefill_pool_that_cannot_run_the_drafter_is_refused(make_pool, make_scenario, sheet):
    decode = make_pool(role="decode", speculation=sheet("speculation", "eagle"))
    for more, message in (
        ({"pp": 2}, r"pools\.prefill\.pp = 2: prefills for .* one stage"),
        ({"preemption": "swap"}, r"pools\.prefill\.preemption = swap: prefills for .* not swapped"),
    ):
        pools = {"prefill": make_pool(role="prefill", **more), "decode": decode}
        with pytest.raises(InputError, match=message):
            make_scenario(pools, link=LinkSpec("wire", 1e9, 0.0))
