"""An engine that drafts and verifies: a decoding request gains one token a step, and every draft accepted."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np

from mist.clients.llm import LLMClient
from mist.decoding import Decoding
from mist.drafting import drafting_replica
from mist.errors import InputError
from mist.kernel import Kernel
from mist.perf.base import Replica, StepShape
from mist.perf.footprint import check_layout
from mist.policy import Grant, Scheduler
from mist.request import Request
from mist.schedulers.vllm_v1 import VllmV1
from mist.speculation import Speculation
from mist.streams import stream


@dataclass
class Acceptance:
    """What became of the drafts, counted as vLLM counts them: drafts beyond a request's last token count too."""

    verifications: int = 0  # decoding requests times steps
    drafted: int = 0  # tokens verified
    accepted: int = 0  # of those


class Members(Decoding):
    """The decoding requests of an engine that speculates: their own counts, as no two gain alike."""

    __slots__ = ("_members", "_ordered")

    def __init__(self, block_tokens: int) -> None:
        super().__init__(block_tokens)
        self._members: dict[int, Request] = {}
        self._ordered: list[Request] | None = None

    @property
    def longest(self) -> int:
        return max((member.computed for member in self._members.values()), default=0)

    @property
    def in_admission_order(self) -> list[Request]:
        if self._ordered is None:
            self._ordered = sorted(self._members.values(), key=_admitted)
        return self._ordered

    def computed(self, request: Request) -> int:
        return request.computed

    def join(self, request: Request) -> None:
        request.joined = self.step
        self._members[request.id] = request
        self._ordered = None
        self.count += 1
        self.cached += request.computed

    def leave(self, request: Request) -> None:
        """Take a member out; it keeps its blocks, those reserved for drafts too."""
        del self._members[request.id]
        self._ordered = None
        request.joined = -1
        self.count -= 1
        self.cached -= request.computed

    def gain(self, request: Request, tokens: int) -> None:
        """``tokens`` more tokens for one member."""
        request.computed += tokens
        request.known += tokens
        request.left -= tokens
        self.cached += tokens


class SpeculativeClient(LLMClient):
    """An LLMClient whose decode steps verify ``tokens`` drafts of every decoding request.

    A member takes blocks for all its drafts before the step and keeps those that the rejected would have
    filled for its next drafts, as vLLM V1 does. How many are accepted is drawn per request and step from a
    stream of the request's own, so that it depends neither on the batch nor on preemption. A step costs
    O(batch). A member that a scheduler grants fewer tokens verifies fewer drafts.
    """

    decodes: Members

    def __init__(self, kernel: Kernel, name: str, *, speculation: Speculation, seed: int, **engine: Any) -> None:
        """``engine`` is what Seats take."""
        super().__init__(kernel, name, **engine)
        self.decodes = Members(self.kv.block_tokens)
        self.acceptance = Acceptance()
        self._width = 1 + speculation.tokens
        # accepted drafts = survival probabilities above a uniform draw; negated, as bisect wants them rising
        self._survival = [-probability for probability in speculation.survival()]
        self._seed = seed
        self._draws: dict[int, np.random.Generator] = {}  # by request

    @property
    def decoding(self) -> int:
        return self.decodes.count * self._width

    @property
    def due(self) -> int:
        return sum([self.need(r, r.computed + self._width) for r in self.decodes.in_admission_order])

    def pending(self, request: Request) -> int:
        return self._width if request.joined >= 0 else super().pending(request)

    def need(self, request: Request, tokens: int) -> int:
        return max(self.kv.need(request, tokens), 0)  # a trimmed step needs less than it has

    def _extend(self) -> None:
        for request in self.decodes.in_admission_order:
            self._reserve(request, self._width)

    def _grant(self, grant: Grant) -> None:
        if grant.request.joined < 0:
            super()._grant(grant)
        else:
            self._reserve(*grant)
            self.granted[grant.request.id] = grant

    def _reserve(self, member: Request, tokens: int) -> None:
        if self.kv.need(member, member.computed + tokens) >= 0:
            self.kv.grow(member, tokens)

    def _shape(self, chunks: tuple[tuple[int, int], ...], last: Request) -> StepShape:
        shape = super()._shape(chunks, last)
        return shape._replace(drafted=shape.decodes * (self._width - 1))

    def _step_time(self, shape: StepShape) -> float:
        if shape.decodes:
            members = self._verifying()
            context = sum([member.computed for member in members])
            drafted = sum([self._tokens(member) - 1 for member in members])
            longest = max([member.computed for member in members]) if self._uneven else 0
            shape = shape._replace(decodes=len(members), context=context, drafted=drafted, longest=longest)
        return super()._step_time(shape)

    def _bench(self) -> None:
        """Members that get no token sit the step out: their counts are their own, nothing need be undone."""

    def _quit(self, request: Request) -> None:
        super()._quit(request)
        self._draws.pop(request.id, None)

    def _verifying(self) -> list[Request]:
        """The members that share the step under way: all, unless the scheduler named some."""
        members = self.decodes.in_admission_order
        return [member for member in members if member.id in self.granted] or members

    def _tokens(self, member: Request) -> int:
        """Tokens the member computes in the step under way."""
        grant = self.granted.get(member.id)
        return self._width if grant is None else grant.tokens

    def _sample_decodes(self, steps: int) -> None:
        assert steps == 1
        self.decodes.step += 1
        for member in self._verifying():
            self.decodes.gain(member, min(1 + self._accepted(member), member.left))
            if not member.left:
                self.decodes.leave(member)
                self._draws.pop(member.id, None)
                self._finish(member)

    def _accepted(self, member: Request) -> int:
        """Drafts of this step that the model accepts."""
        draws = self._draws.get(member.id)
        if draws is None:
            draws = self._draws[member.id] = stream(self._seed, f"speculation/{member.id}")
        drafted = self._tokens(member) - 1
        accepted = min(bisect_left(self._survival, -draws.random()), drafted)
        self.acceptance.verifications += 1
        self.acceptance.drafted += drafted
        self.acceptance.accepted += accepted
        return accepted


def _admitted(request: Request) -> int:
    return request.admitted


def check_speculation(speculation: Speculation, replica: Replica, scheduler: Scheduler, decodes: bool) -> None:
    """Raises InputError where speculation has no effect or cannot work on this pool."""
    if not speculation.tokens:
        return
    if not decodes:
        why = "a pool that only prefills drafts nothing; what the decode pool's drafter needs is computed here untold"
        raise InputError("speculation", speculation.name, why)
    try:
        speculation.check(replica.model)
    except InputError as error:
        field = f"speculation.{error.field}" if error.field else "speculation"
        raise InputError(field, error.value, error.why, error.choices) from None
    drafter = speculation.drafter(replica.model)
    if drafter is not None:
        check_layout(drafting_replica(replica, drafter))
    most = scheduler.max_running * (1 + speculation.tokens)
    if scheduler.token_budget <= most and not isinstance(scheduler, VllmV1):  # which trims drafts to what is left
        why = f"a full batch of {scheduler.max_running} verifies {most} tokens a step and leaves prompts nothing"
        raise InputError("scheduler.token_budget", scheduler.token_budget, why)
