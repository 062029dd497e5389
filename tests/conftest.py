"""Builders shared by the tests: real sheets from conf/, a tiny model, and clusters driven until they drain.

Session fixtures return plain functions, so that property tests may call them as often as they like. A test that
asks for ``scheduler_name``, ``router_name``, ``hardware_name``, ``model_name`` or ``pipeline_name`` runs once for every
YAML of that noun: whoever adds a file is examined unasked. ``preempting_name`` are the schedulers that may preempt.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, settings

from mist.build import build
from mist.clients import seats
from mist.clients.leaping import LeapingClient
from mist.cluster import Cluster
from mist.kernel import Kernel
from mist.memory.pool import BlockPool
from mist.memory.prefix import PrefixUse
from mist.model import ModelSpec
from mist.network import LinkSpec
from mist.perf.base import PerfModel, Replica, StepModel, StepShape, Stretch
from mist.plan.query import Query
from mist.pool import PoolSpec
from mist.price import PriceList
from mist.request import UNCLASSED, Content, Request, RequestClass
from mist.scenario import Scenario, Window
from mist.slo import SLO
from mist.workload.traffic import Traffic

CONF = Path(__file__).parents[1] / "conf"
NOUNS = ("scheduler", "router", "hardware", "model", "pipeline")
TINY = ModelSpec("tiny", 2, 64, 4, 2, 16, 128, 256, context=10**9, parameters=1e5)

os.environ.pop("COLUMNS", None)  # of a process that pytest-xdist starts: reports would be cut to it

settings.register_profile("laws", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile(
    "fuzz", max_examples=50_000, print_blob=True, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("laws")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for noun in NOUNS:
        if f"{noun}_name" in metafunc.fixturenames:
            metafunc.parametrize(f"{noun}_name", sorted(path.stem for path in (CONF / noun).glob("*.yaml")))
    if "preempting_name" in metafunc.fixturenames:
        schedulers = {path.stem for path in (CONF / "scheduler").glob("*.yaml")}
        metafunc.parametrize("preempting_name", sorted(schedulers - {"guaranteed_no_evict"}))


# step times for tests


@dataclass(frozen=True)
class Linear:
    """A perf model whose steps take ``step + token * tokens + cached * context`` seconds."""

    step: float = 0.0
    token: float = 0.0
    cached: float = 0.0

    def of(self, replica: Replica) -> "Linear":
        return self

    def step_time(self, shape: StepShape) -> float:
        read = shape.context - max(shape.decodes - 1, 0) * shape.shared
        return self.step + self.token * shape.tokens + self.cached * read

    def decode_stretch(self, decodes: int, context: int, longest: int = 0, shared: int = 0) -> Stretch:
        return Stretch(inf, self.step_time(StepShape(decodes, context, shared=shared)), self.cached * decodes)


@dataclass(frozen=True)
class Unleapt:
    """A perf model's own step times, one step at a time."""

    inner: PerfModel | StepModel

    def of(self, replica: Replica) -> "Unleapt":
        return Unleapt(self.inner.of(replica))

    @property
    def uneven(self) -> bool:
        return getattr(self.inner, "uneven", False)

    def step_time(self, shape: StepShape) -> float:
        return self.inner.step_time(shape)

    def decode_stretch(self, decodes: int, context: int, longest: int = 0, shared: int = 0) -> Stretch:
        shape = StepShape(decodes, context, longest=longest, shared=shared)
        return Stretch(1, self.inner.step_time(shape), 0.0)


class OneByOne:
    """The slow twin of mist.decoding.Decoding: every member is updated at every step, nothing is summed up."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.step = 0
        self.members: list[Request] = []

    @property
    def count(self) -> int:
        return len(self.members)

    @property
    def cached(self) -> int:
        return sum(request.computed for request in self.members)

    @property
    def longest(self) -> int:
        return max((request.computed for request in self.members), default=0)

    @property
    def blocks_due(self) -> int:
        return len(self.due(0))

    def due(self, ahead: int) -> list[Request]:
        return [r for r in self.members if (r.computed + ahead) % self.block_tokens == 0]

    def computed(self, request: Request) -> int:
        return request.computed

    def blocks_for(self, steps: int, ahead: int = 0) -> int:
        return sum(len(self.due(ahead + step)) for step in range(steps))

    def steps_within(self, blocks: int, steps: int) -> int:
        return max(k for k in range(steps + 1) if self.blocks_for(k) <= blocks)

    def steps_to_leaver(self) -> int:
        return min(request.left for request in self.members)

    def join(self, request: Request) -> None:
        request.joined = self.step
        self.members.append(request)

    def leave(self, request: Request) -> None:
        request.joined = -1
        self.members.remove(request)

    def advance(self, steps: int) -> list[Request]:
        done = []
        for _ in range(steps):
            self.step += 1
            for request in sorted(self.members, key=lambda member: member.admitted):
                request.computed += 1
                request.blocks = -(-request.computed // self.block_tokens)
                request.known += 1
                request.left -= 1
                if not request.left:
                    self.leave(request)
                    done.append(request)
        return done


class PlainPrefixPool(BlockPool):
    """The slow twin of mist.memory.prefix.PrefixPool: one free list, and the whole pool searched at every lookup.

    vLLM V1's rules as its documentation gives them: the free list is taken from its front; a block keeps its content
    until it is taken; whoever leaves frees the tail first, blocks without content to the front, the others to the end.
    """

    def __init__(self, total: int, block_tokens: int) -> None:
        super().__init__(total, block_tokens)
        self.queue = list(range(total))  # the free list
        self.holders = [0] * total  # requests that hold each block
        self.contents: list[Any] = [None] * total  # of each block; None is not known
        self.registered: list[int] = []  # blocks with content, the latest last
        self.hit_tokens = self.looked_up_tokens = 0

    def use(self) -> PrefixUse:
        return PrefixUse(self.hit_tokens, self.looked_up_tokens)

    def key(self, request: Request, index: int) -> Any:
        return (request.id, index) if request.content is None else request.content.key(index, self.block_tokens)

    def chain(self, request: Request) -> list[int]:
        blocks: list[int] = []
        while (len(blocks) + 1) * self.block_tokens < request.known:
            key = self.key(request, len(blocks))
            found = [block for block in self.registered if self.contents[block] == key]
            if not found:
                break
            blocks.append(found[0])
        return blocks

    def hit(self, request: Request) -> int:
        return len(self.chain(request)) * self.block_tokens

    def need(self, request: Request, tokens: int) -> int:
        blocks = -(-tokens // self.block_tokens)
        if request.table:
            return blocks - len(request.table)
        return blocks - sum(1 for block in self.chain(request) if self.holders[block])

    def admit(self, request: Request) -> None:
        request.table = self.chain(request)
        for block in request.table:
            self.holders[block] += 1
        self.queue = [block for block in self.queue if not self.holders[block]]
        request.blocks = len(request.table)
        request.computed = request.blocks * self.block_tokens
        self.hit_tokens += request.computed
        self.looked_up_tokens += request.known
        self.count()

    def grow(self, request: Request, tokens: int) -> None:
        end = request.computed + tokens
        while len(request.table) * self.block_tokens < end:
            self.take(request)
        whole = min(end, request.known) // self.block_tokens
        for index in range(whole):  # those registered before keep their place
            self.register(request, index)
        request.blocks = len(request.table)

    def grow_member(self, request: Request, computed: int) -> None:
        if len(request.table) * self.block_tokens <= computed:
            self.take(request)
        for index in range((computed + 1) // self.block_tokens):
            self.register(request, index)

    def extend(self, decodes: Any, ahead: int, steps: int) -> None:
        for step in range(ahead, ahead + steps):
            for request in sorted(decodes.members, key=lambda member: member.admitted):
                self.grow_member(request, decodes.computed(request) + step)

    def shared_blocks(self, running: Any) -> int:
        tables = [request.table for request in running]
        return sum(1 for i in range(min(map(len, tables))) if len({tuple(table[: i + 1]) for table in tables}) == 1)

    def reserve(self, request: Request) -> None:
        tokens, request.computed = request.computed, 0
        self.grow(request, tokens)
        request.computed = tokens

    def detach(self, request: Request) -> list[int]:
        held, request.table, request.blocks = request.table, [], 0
        return held

    def give_back(self, held: list[int]) -> None:
        for block in held:
            self.holders[block] -= 1
        freed = [block for block in reversed(held) if not self.holders[block]]
        blank = [block for block in freed if self.contents[block] is None]
        self.queue = blank + self.queue + [block for block in freed if self.contents[block] is not None]
        self.count()

    def take(self, request: Request) -> None:
        block = self.queue.pop(0)
        self.contents[block] = None
        if block in self.registered:
            self.registered.remove(block)
        self.holders[block] = 1
        request.table.append(block)
        self.count()

    def register(self, request: Request, index: int) -> None:
        block = request.table[index]
        if self.contents[block] is None:
            self.registered.append(block)
            self.contents[block] = self.key(request, index)

    def count(self) -> None:
        self.used = sum(1 for holders in self.holders if holders)
        self.peak = max(self.peak, self.used)


# builders


@cache
def _parsed(noun: str, name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((CONF / noun / f"{name}.yaml").read_text())
    return data


def _sheet(noun: str, name: str) -> dict[str, Any]:
    """conf/<noun>/<name>.yaml as plain data, the caller's own."""
    return deepcopy(_parsed(noun, name))


def _pool(
    *,
    model: str | ModelSpec = "llama-3.1-8b",
    hardware: str = "h100",
    scheduler: str = "chunked_prefill",
    router: str = "round_robin",
    perf: PerfModel | None = None,
    limits: Mapping[str, int] | None = None,
    engine: Mapping[str, Any] | None = None,
    **fields: Any,
) -> PoolSpec:
    """A pool from the sheets, without front end; ``limits`` are the scheduler's, ``engine`` fields of the profile."""
    config = {
        "model": model if isinstance(model, ModelSpec) else _sheet("model", model),
        "hardware": _sheet("hardware", hardware),
        "engine": _sheet("engine", "vllm") | {"front_end": 0.0} | dict(engine or {}),
        "perf": _sheet("perf", "roofline"),
        "scheduler": _sheet("scheduler", scheduler) | dict(limits or {}),
        "router": _sheet("router", router),
        **fields,
    }
    spec = build(PoolSpec, config)
    return spec if perf is None else replace(spec, perf=perf)


@dataclass(frozen=True)
class Drawn:
    """A workload of ``n`` requests: Poisson arrivals, log-normal prompts, geometric answers."""

    rate: float | None = 1.0
    n: int = 1000
    prompt: float = 600.0  # median tokens
    answer: float = 150.0  # mean tokens

    def own_rate(self) -> float:
        return 1.0

    def content(self) -> str:
        return ""

    def traffic(self, seed: int) -> Traffic:
        draw = np.random.default_rng(seed)
        times = np.sort(draw.uniform(0, self.n, self.n))
        inputs = np.clip(draw.lognormal(np.log(self.prompt), 0.8, self.n), 1, 16 * self.prompt).astype(np.int64)
        outputs = np.minimum(draw.geometric(1 / self.answer, self.n), 8 * self.answer).astype(np.int64)
        return Traffic(times, inputs, outputs)


PRICES = PriceList(
    "flat", "nobody", "nowhere", "none", "2025-01-01", {p.stem: 3.6 for p in (CONF / "hardware").glob("*")}
)


def _scenario(pools: PoolSpec | Mapping[str, PoolSpec], workload: Drawn | None = None, **fields: Any) -> Scenario:
    """One pool called ``llm``, or several; every device costs 3.6 $/h unless a price list is given."""
    named = {"llm": pools} if isinstance(pools, PoolSpec) else pools
    fields = {"slo": SLO(ttft_p99=1.0, tpot_p99=0.05), "price": PRICES, "window": Window(), **fields}
    return Scenario(pools=named, workload=workload or Drawn(), **fields)


class Watched(Kernel):
    """A kernel that can be stopped at every instant at which something happens."""

    def each_instant(self, until: float = inf) -> Iterator[float]:
        """Run from one to the next, stopping at each."""
        while self._facts and self._facts[0][0] <= until:
            self.run(until=self._facts[0][0])
            yield self.now


@dataclass(frozen=True)
class Run:
    """A drained cluster and everybody who went through it, in order of arrival."""

    kernel: Kernel
    cluster: Cluster
    requests: list[Request]

    @property
    def clients(self) -> list[LeapingClient]:
        return [client for pool in self.cluster.pools.values() for client in pool.clients]

    def column(self, name: str) -> np.ndarray:
        return np.array([getattr(request, name) for request in self.requests])


def _drive(
    pools: PoolSpec | Mapping[str, PoolSpec],
    arrivals: Iterable[tuple[float, int, int]],
    link: LinkSpec | None = None,
    *,
    one_by_one: bool = False,
    kinds: Sequence[RequestClass] = (UNCLASSED,),
    contents: Callable[[int], Content] | None = None,
    after_each: Callable[[Run], None] | None = None,
    until: float = inf,
    **dynamics: Any,
) -> Run:
    """Serve (time, input, output) triples until nothing is left to do, or ``until``, seconds.

    ``kinds`` are their classes in turn, ``contents`` says what request i holds; ``one_by_one`` swaps the slow twin
    in and forbids leaps; ``after_each`` looks at the run after every instant at which something happened;
    ``dynamics`` are options of the Cluster.
    """
    named = {"llm": pools} if isinstance(pools, PoolSpec) else dict(pools)
    with pytest.MonkeyPatch.context() as patch:
        if one_by_one:
            patch.setattr(seats, "Decoding", OneByOne)
            named = {name: replace(spec, perf=Unleapt(spec.perf)) for name, spec in named.items()}
        kernel, make = Watched(), Query if "pipeline" in dynamics else Request
        run = Run(kernel, Cluster(kernel, named, link, **dynamics), [])
        for id_, (time, input_, output) in enumerate(arrivals):
            kind, content = kinds[id_ % len(kinds)], contents and contents(id_)
            run.requests.append(make(id_, time, input_, output, kind.priority, content, kind))
            kernel.at(time, run.cluster.arrive, run.requests[-1])
        if after_each is None:
            kernel.run(until)
        else:
            for _ in kernel.each_instant(until):
                after_each(run)
    return run


# the fixtures


@pytest.fixture(scope="session")
def sheet() -> Callable[[str, str], dict[str, Any]]:
    return _sheet


@pytest.fixture(scope="session")
def make_pool() -> Callable[..., PoolSpec]:
    return _pool


@pytest.fixture(scope="session")
def make_scenario() -> Callable[..., Scenario]:
    return _scenario


@pytest.fixture(scope="session")
def drive() -> Callable[..., Run]:
    return _drive


@pytest.fixture(scope="session")
def drawn() -> type[Drawn]:
    return Drawn


@pytest.fixture(scope="session")
def linear() -> type[Linear]:
    return Linear


@pytest.fixture(scope="session")
def one_by_one() -> type[OneByOne]:
    return OneByOne


@pytest.fixture(scope="session")
def plain_prefix_pool() -> type[PlainPrefixPool]:
    return PlainPrefixPool


@pytest.fixture(scope="session")
def tiny() -> ModelSpec:
    """A model of two layers that fits everything, with an endless context."""
    return TINY


@pytest.fixture(scope="session")
def poisson() -> Callable[..., list[tuple[float, int, int]]]:
    """Poisson arrivals with uniform lengths, as ``drive`` takes them."""

    def arrivals(seed: int, n: int, rate: float, inputs: tuple[int, int], outputs: tuple[int, int]) -> list[Any]:
        draw = np.random.default_rng(seed)
        times = np.cumsum(draw.exponential(1 / rate, n)).tolist()
        prompts = draw.integers(inputs[0], inputs[1] + 1, n).tolist()
        answers = draw.integers(outputs[0], outputs[1] + 1, n).tolist()
        return list(zip(times, prompts, answers, strict=True))

    return arrivals
