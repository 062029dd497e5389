"""The engine of a replica: which client a pool's options ask for."""

from collections.abc import Callable
from functools import partial
from typing import cast

from mist.clients.cascading import CascadingClient, LeapLoad
from mist.clients.colocated import (
    ColocatedCascadingClient,
    ColocatedClient,
    ColocatedSpeculativeClient,
    SharedDevice,
)
from mist.clients.leaping import LeapingClient
from mist.clients.llm import LLMClient
from mist.clients.pipeline import PipelineClient
from mist.clients.speculative import SpeculativeClient
from mist.clients.stages import Stages
from mist.kernel import Kernel
from mist.memory.choice import make_pool
from mist.perf.cascade import CascadeLoad, CascadeRule
from mist.replicas import Pool
from mist.request import Request


def engine(
    kernel: Kernel,
    pool: Pool,
    index: int,
    *,
    device: SharedDevice | None,
    seed: int,
    finished: Callable[[Request], None],
) -> LLMClient:
    """The client of replica ``index``; ``device`` is what it shares with other pools', ``seed`` is of its drafts."""
    spec = pool.spec
    name, scheduler = f"{pool.name}/{index}", spec.scheduler
    kv = make_pool(pool.blocks, pool.block_tokens, spec.prefix_caching, spec.host(), spec.state_blocks)
    if pool.fetches is not None:
        kv = pool.fetches.pool(pool.blocks)
    if spec.pp > 1:
        passage = Stages(kernel, pool.stages, pool.hop_time, pool.loads)
        pipeline = PipelineClient(kernel, name, scheduler=scheduler, stages=passage, kv=kv, finished=finished)
        return cast(LLMClient, pipeline)  # it lacks layer-wise hand-over, which Scenario refuses
    kind = _kind(pool, device, seed)
    client = kind(kernel, name, scheduler=scheduler, steptimes=pool.stages[0], kv=kv, finished=finished)
    client.power = pool.loads[0]
    if isinstance(client, CascadingClient):
        client.power = LeapLoad(cast(CascadeLoad, client.power), client)
    return client


def _kind(pool: Pool, device: SharedDevice | None, seed: int) -> Callable[..., LLMClient]:
    spec = pool.spec
    kind: Callable[..., LLMClient] = LeapingClient if device is None else ColocatedClient
    if spec.speculation.tokens:
        kind = SpeculativeClient if device is None else ColocatedSpeculativeClient
        kind = partial(kind, speculation=spec.speculation, seed=seed)
    elif spec.engine.cascade_attention and not spec.no_cascade:
        kind = CascadingClient if device is None else ColocatedCascadingClient
        kind = partial(kind, rule=CascadeRule(spec.replica))
    return kind if device is None else partial(kind, device=device, pool=pool.name)
