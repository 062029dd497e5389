"""The replicas of a pool at work: who gets which request, what they have done and drawn."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from math import inf

from mist.clients.llm import LLMClient
from mist.fleet import Fleet
from mist.perf.power import joules
from mist.perf.stages import hop_time
from mist.pool import PoolSpec
from mist.request import Request
from mist.routing import Candidates
from mist.spans import seconds
from mist.speculation import Speculation
from mist.streams import stream
from mist.tiers.fetches import Fetches


class Pool:
    """The replicas of a PoolSpec at work; ``drafts`` is how those who decode draft: prompts pass their drafter too."""

    def __init__(self, name: str, spec: PoolSpec, drafts: Speculation, seed: int = 0) -> None:
        self.name, self.spec = name, spec
        if drafts.drafter(spec.model) is None:  # nothing to prefill for
            drafts = spec.speculation
        self.stages = spec.steptimes(drafts)
        self.loads = spec.loads(drafts)
        self.blocks, self.block_tokens = spec.blocks(drafts), spec.block_tokens
        self._longest: float = getattr(spec.scheduler, "longest", inf)
        self.clients: list[LLMClient] = []
        self.outstanding = [0] * spec.replicas  # unfinished requests by replica
        self._fixed: Sequence[int] = range(spec.replicas)  # where none comes or goes
        self.groups = 1  # of affinity
        self.part = 1.0  # of its devices that it pays for; others share those of colocated pools
        self.turns: defaultdict[int | None, int] = defaultdict(int)  # requests routed, by group
        self.fetches: Fetches | None = None  # of a pool with tiers
        self.fleet: Fleet | None = None  # of a pool whose replicas come and go
        self.members: dict[int, dict[int, Request]] | None = None  # by replica, where one may fail
        chunk = spec.scheduler.token_budget
        self._view = Candidates(self.clients, self.stages, chunk, partial(stream, seed, f"router/{name}"))

    def route(self, request: Request, group: int | None = None) -> int | None:
        """The replica the request goes to, of its affinity group if one is given; None while none is up."""
        among, outstanding = self._fixed, self.outstanding
        if self.fleet is not None or group is not None:
            up = self.fleet.up if self.fleet is not None else self._fixed
            among = [index for index in up if group is None or index % self.groups == group]
            outstanding = [outstanding[index] for index in among]
        if not outstanding:
            return None
        view = self._view
        view.turn, view.request, view.replicas, view.outstanding = self.turns[group], request, among, outstanding
        index = among[self.spec.router.choose(view)]
        self.turns[group] += 1
        self.outstanding[index] += 1
        return index

    def join(self, request: Request, index: int) -> None:
        request.replica = index
        if self.members is not None:
            self.members[index][request.id] = request

    def leave(self, request: Request) -> None:
        self.outstanding[request.replica] -= 1
        if self.members is not None:
            del self.members[request.replica][request.id]

    def settle(self, index: int) -> None:
        """Something may have left this replica for good."""
        if self.fleet is not None:
            self.fleet.settle(index)

    @property
    def everybody(self) -> list[LLMClient]:
        """Every client there has been."""
        return self.clients if self.fleet is None else self.fleet.everybody()

    @property
    def waiting(self) -> int:
        """Requests that no engine has admitted, hand-overs without room included."""
        held = 0 if self.fleet is None else len(self.fleet.held)
        return held + sum(client.waiting + client.expected for client in self.everybody)

    def hop_time(self, tokens: int, stage: int) -> float:
        """Seconds to send the activations of ``tokens`` from a pipeline stage to the next."""
        return hop_time(self.spec.replica, tokens, stage, getattr(self.spec.perf, "link_efficiency", 1.0))

    def joules(self, now: float) -> float:
        """Energy drawn so far, what was spent of the steps under way included."""
        hardware, devices = self.spec.hardware, self.spec.replica.devices
        rented = now * len(self.clients) if self.fleet is None else seconds(self.fleet.history(now))
        stepping = sum(joules(hardware, devices, 0.0, *client.worked()) for client in self.everybody)
        return joules(hardware, devices, rented * self.part, 0.0, 0.0) + stepping

    def refusal(self, request: Request) -> str:
        """Why this pool can never serve the request; empty if it can."""
        model, tokens = self.spec.model, request.input + request.output
        if tokens > model.context:
            return f"{tokens} tokens, {model.name} takes {model.context}"
        if tokens > self._longest:
            return f"{tokens} tokens, without chunked prefill the engine takes at most token_budget, {self._longest}"
        held = request.input + 1 if self.spec.role == "prefill" else tokens  # prefill hands over after one token
        need = -(-(held + self.spec.speculation.tokens) // self.block_tokens)
        # A request lives in one copy, and pipeline lanes that each held one of more than their share would preempt
        # each other for ever.
        most = self.blocks // (self.spec.dp * self.spec.pp)
        return f"needs {need} KV blocks, a replica of {self.name} has {most}" if need > most else ""
