"""A tier that is endless and takes no time is a device that forgets nothing, whatever stands around it."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.network import LinkSpec
from mist.speculation import Head, NGram

LINK = LinkSpec("wire", 1e8, 1e-4)
ROOMY = 2**20  # blocks: nothing is ever evicted
SEATS = 4  # and each request needs 150 blocks at most, so that nobody ever waits for memory


def layouts(draw):
    return draw(
        st.sampled_from(
            [
                {},
                {"replicas": 3},
                {"pp": 2},
                {"speculation": NGram(tokens=2, acceptance=0.6)},
                {"speculation": Head(tokens=3, acceptance=0.5, layers=1, pass_overhead=1e-4)},
            ]
        )
    )


def times(run):
    return [
        (r.started, r.first_token, r.finished, [v for v in r.visits if v.stage != "fetch_kv"]) for r in run.requests
    ]


@settings(max_examples=25)
@given(data=st.data())
def test_an_endless_tier_without_delay_is_a_perfect_cache_to_the_last_bit(data, tiered, replay, chat, stored, linear):
    layout, write = layouts(data.draw), data.draw(st.sampled_from(["through", "evicted"]))
    traffic, gap = chat(requests=50).traffic(data.draw(st.integers(0, 99))), data.draw(st.sampled_from([0.01, 0.1]))
    fields = {"perf": linear(1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5), **layout}
    fields["limits"] = {"token_budget": 512, "max_running": SEATS}
    free = stored(read_bandwidth=inf, write_bandwidth=inf, write=write, shared_by=1)
    small = tiered(free, kv_blocks=700, **fields)
    small = without_host_link(small)
    perfect = tiered(kv_blocks=ROOMY, prefix_caching=True, **fields)
    one, other = (replay(pool, traffic, gap, one_by_one=True) for pool in (small, perfect))  # leaps differ in rounding
    assert times(one) == times(other)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layerwise", [False, True])
def test_before_a_decode_pool_too(seed, layerwise, tiered, replay, chat, stored, linear, fetches):
    """Prompts of a session are then found in the store but for what was decoded elsewhere."""
    traffic = chat().traffic(seed)
    fields = {"perf": linear(1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5), "limits": {"token_budget": 512}}
    decode = tiered(role="decode", kv_blocks=ROOMY, **fields)
    free = stored(read_bandwidth=inf, write_bandwidth=inf, layerwise=layerwise)
    small = without_host_link(tiered(free, role="prefill", kv_blocks=150, **fields))
    perfect = tiered(role="prefill", prefix_caching=True, kv_blocks=ROOMY, **fields)
    one, other = (
        replay({"prefill": p, "decode": decode}, traffic, 0.05, LINK, one_by_one=True) for p in (small, perfect)
    )
    assert times(one) == times(other)
    assert fetches(one).use().fetched > 0


def without_host_link(spec):
    """The devices' host links are endlessly wide."""
    return replace(spec, hardware=replace(spec.hardware, host_bandwidth=inf))
