"""The prefix pool equals a twin that keeps one free list and searches every block, whatever is done to both."""

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.decoding import Decoding
from mist.memory.prefix import PrefixPool
from mist.request import Request

BLOCK_TOKENS = 4


@dataclass(frozen=True)
class Family:
    """Blocks that end within ``shared`` tokens are the same in all of a family."""

    name: int
    request: int
    shared: int

    def key(self, block, block_tokens):
        whole = (block + 1) * block_tokens <= self.shared
        return (self.name, block) if whole else ("own", self.request, block)


class Side:
    """One of the two pools and the requests that use it."""

    def __init__(self, pool, decodes):
        self.pool, self.decodes = pool, decodes
        self.requests, self.held = {}, []  # by state: waiting, prefilling, decoding

    def wait(self, id_, tokens, output, content):
        self.requests[id_] = Request(id_, 0.0, tokens, output, content=content)

    def admit(self, id_):
        request = self.requests[id_]
        request.admitted = id_
        self.pool.admit(request)

    def grow(self, id_, tokens, accepted):
        """Blocks for so many tokens; ``accepted`` of them last, as drafts that were verified do."""
        request = self.requests[id_]
        self.pool.grow(request, tokens)
        request.computed += accepted
        request.known = max(request.known, request.computed + 1)

    def decode(self, id_):
        self.decodes.join(self.requests[id_])

    def step(self):
        self.pool.extend(self.decodes, 0, 1)
        return [request.id for request in self.decodes.advance(1)]

    def come_back(self, id_, sampled):
        """Somewhere else it gained tokens, and lost its cache."""
        request = self.requests[id_]
        request.known, request.computed, request.left = request.known + sampled, 0, 5

    def evict(self, id_):
        request = self.requests[id_]
        if request.joined >= 0:
            self.decodes.leave(request)
        self.pool.evict(request)

    def detach(self, id_):
        self.held.append(self.pool.detach(self.requests[id_]))

    def fetch(self, id_):
        request = self.requests[id_]
        request.computed = request.known
        self.pool.reserve(request)
        request.known += 1  # sampled where it comes from

    def give_back(self):
        self.pool.give_back(self.held.pop(0))

    def counts(self):
        pool, decodes = self.pool, self.decodes
        tables = {
            id_: (r.table, decodes.computed(r)) if r.joined >= 0 else (r.table, r.blocks, r.computed, r.known)
            for id_, r in self.requests.items()
        }
        return pool.used, pool.peak, pool.free, pool.use(), tables

    def lookups(self, waiting):
        return [(self.pool.hit(r), self.pool.need(r, r.known)) for r in (self.requests[id_] for id_ in waiting)]


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32))
def test_every_block_is_where_the_twin_has_it(seed, one_by_one, plain_prefix_pool):
    random = Random(seed)
    total = random.choice([6, 12, 40])
    sides = [
        Side(PrefixPool(total, BLOCK_TOKENS), Decoding(BLOCK_TOKENS)),
        Side(plain_prefix_pool(total, BLOCK_TOKENS), one_by_one(BLOCK_TOKENS)),
    ]
    drafting = random.random() < 0.3  # such an engine has no lockstep
    states = {name: [] for name in ("waiting", "prefilling", "decoding", "held")}
    for _ in range(120):
        act(random, sides, states, drafting)
        fast, slow = (side.counts() for side in sides)
        assert fast == slow
        if random.random() < 0.3:  # a lookup may leave something behind
            assert sides[0].lookups(states["waiting"]) == sides[1].lookups(states["waiting"])


def act(random, sides, states, drafting):  # noqa: PLR0912, PLR0915
    """Something that a client may do next, done on both sides; nothing if it cannot be."""
    both = lambda name, *arguments: [getattr(side, name)(*arguments) for side in sides]  # noqa: E731
    pool, requests = sides[0].pool, sides[0].requests
    doing = random.choice(
        ["wait", "admit", "grow", "decode", "step", "step", "evict", "detach", "give back", "fetch", "come back"]
    )
    if doing == "wait" and len(states["waiting"]) < 4:
        id_ = len(requests)
        content = Family(random.randrange(2), id_, random.choice([0, 6, 24])) if random.random() < 0.8 else None
        both("wait", id_, random.randint(1, 24), random.randint(2, 20), content)
        states["waiting"].append(id_)
    elif doing == "admit" and states["waiting"]:
        id_ = states["waiting"][0]
        if pool.need(requests[id_], requests[id_].known) <= pool.free:
            move(states, id_, "waiting", "prefilling")
            both("admit", id_)
            tokens = random.randint(1, requests[id_].known - requests[id_].computed)
            both("grow", id_, tokens, tokens)
    elif doing == "grow" and states["prefilling"]:
        request = requests[random.choice(states["prefilling"])]
        drafts = request.computed == request.known - 1 and drafting
        tokens = random.randint(1, 5) if drafts else random.randint(1, max(request.known - request.computed, 1))
        if pool.need(request, request.computed + tokens) <= pool.free:
            both("grow", request.id, tokens, random.randint(1, tokens) if drafts else tokens)
    elif doing == "decode" and states["prefilling"] and not drafting:
        id_ = random.choice(states["prefilling"])
        request = requests[id_]
        if len(request.table) == -(-request.computed // BLOCK_TOKENS) and request.computed == request.known - 1:
            move(states, id_, "prefilling", "decoding")
            both("decode", id_)
    elif doing == "step" and states["decoding"] and sides[0].decodes.blocks_due <= pool.free:
        fast, slow = both("step")
        assert fast == slow
        for id_ in fast:
            move(states, id_, "decoding", "held")
            both("detach", id_)
    elif doing == "evict" and (running := states["prefilling"] + states["decoding"]):
        id_ = random.choice(running)
        move(states, id_, "decoding" if id_ in states["decoding"] else "prefilling", "waiting")
        both("evict", id_)
    elif doing == "detach" and states["prefilling"]:
        id_ = random.choice(states["prefilling"])
        move(states, id_, "prefilling", "held")
        both("detach", id_)
    elif doing == "come back" and states["held"]:
        id_ = random.choice(states["held"])
        move(states, id_, "held", "waiting")
        both("come_back", id_, random.randint(0, 9))
    elif doing == "give back" and sides[0].held:
        both("give_back")
    elif doing == "fetch" and states["waiting"]:
        id_ = states["waiting"][-1]
        if -(-requests[id_].known // BLOCK_TOKENS) <= pool.free:
            move(states, id_, "waiting", "prefilling")
            both("fetch", id_)


def move(states, id_, before, after):
    states[before].remove(id_)
    states[after].append(id_)


def test_a_claim_of_a_whole_cache_can_be_hit_by_the_next_prompt(plain_prefix_pool):
    pools = [kind(8, BLOCK_TOKENS) for kind in (PrefixPool, plain_prefix_pool)]
    for pool in pools:
        first, second = (Request(id_, 0.0, 13, 5, content=Family(0, id_, 12)) for id_ in (0, 1))
        first.computed = 13
        pool.reserve(first)
        assert pool.hit(second) == 12
        pool.release(first)
        assert (pool.used, pool.hit(second), pool.need(second, 13)) == (0, 12, 4)


def test_who_comes_back_with_more_tokens_finds_what_is_cached_of_those_too(plain_prefix_pool):
    """Its replica failed where it decoded, and nothing has changed since in the pool that first computed its prompt."""
    for pool in (PrefixPool(40, BLOCK_TOKENS), plain_prefix_pool(40, BLOCK_TOKENS)):
        long, back = (Request(id_, 0.0, tokens, 9, content=Family(0, id_, 48)) for id_, tokens in ((0, 20), (1, 10)))
        pool.admit(long)
        pool.grow(long, 20)
        pool.admit(back)
        pool.grow(back, 2)
        pool.release(back)
        back.known, back.computed = 19, 0
        assert pool.hit(back) == 16


@pytest.mark.parametrize("drafts", [0, 3])
def test_the_pools_are_equal_in_a_whole_engine(drafts, drive, poisson, make_pool, tiny, linear, plain_prefix_pool):
    """Line, preemption and drafts included: the pool that a cluster makes is exchanged."""
    from mist.memory import choice
    from mist.speculation import NGram

    fields = {"speculation": NGram(tokens=drafts, acceptance=0.5)} if drafts else {}
    pool = make_pool(
        model=tiny, perf=linear(1e-3, 1e-5), engine={"block_tokens": BLOCK_TOKENS, "reserved_blocks": 0},
        limits={"token_budget": 64, "max_running": 6}, kv_blocks=24, prefix_caching=True, **fields,
    )  # fmt: skip
    load = poisson(3, 80, 400.0, (1, 40), (1, 20))
    contents = lambda id_: Family(id_ % 3, id_, 20)  # noqa: E731
    fast = drive(pool, load, contents=contents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "PrefixPool", plain_prefix_pool)
        slow = drive(pool, load, contents=contents, one_by_one=True)
    assert isinstance(slow.clients[0].kv, plain_prefix_pool)
    assert fast.clients[0].preemptions == slow.clients[0].preemptions > 0
    assert fast.clients[0].kv.use() == slow.clients[0].kv.use()
    assert fast.column("finished") == pytest.approx(slow.column("finished"), rel=1e-12)
