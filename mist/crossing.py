"""From a prefill pool to its decode pool: what is sent, and what carries it."""

from collections.abc import Callable

from mist.clients.llm import LLMClient
from mist.handover import Handovers, HandoverSpec, Wire
from mist.kernel import Kernel
from mist.network import Link, LinkSpec
from mist.replicas import Pool
from mist.request import Request
from mist.topology import Wires


class Crossing:
    """The way of KV between the replicas of two pools: one ``link`` for all, or the wires of a network."""

    def __init__(self, kernel: Kernel, prefill: Pool, decode: Pool, link: LinkSpec | None, wires: Wires | None) -> None:
        self._kernel, self.prefill, self.decode = kernel, prefill, decode
        self._link, self._wires = Link(kernel, link) if link is not None else None, wires

    def between(self, source: int, sink: int) -> Wire:
        """What carries KV from a prefill replica to a decode replica."""
        if self._wires is None:
            assert self._link is not None
            return self._link
        return self._wires.way((self.prefill.name, source), (self.decode.name, sink))

    def moved(self, role: str, old: int, new: int) -> None:
        """A replica has changed to a role: it stays where it stands."""
        if self._wires is not None:
            names = {"prefill": self.prefill.name, "decode": self.decode.name}
            giver = names["decode" if role == "prefill" else "prefill"]
            self._wires.move((giver, old), (names[role], new))

    def handovers(
        self,
        spec: HandoverSpec,
        route: Callable[[Request, int | None, Callable[[], None]], tuple[int, LLMClient] | None],
        landed: Callable[[Request, int], None],
        withdrawn: Callable[[int], None],
    ) -> Handovers:
        """What goes this way: the KV of the model, and of whatever drafts for it behind."""
        self.decode.groups = spec.groups
        model = self.prefill.spec.model
        drafter = self.decode.spec.speculation.drafter(model)
        sent = [model] if drafter is None else [model, drafter]
        return Handovers(
            self._kernel,
            spec,
            self.between,
            bytes_per_token=sum(part.kv_bytes_per_token for part in sent),
            layers=sum(part.layers for part in sent),
            state_bytes=sum(part.state_bytes for part in sent),
            route=route,
            landed=landed,
            fetched=self.prefill.settle,
            withdrawn=withdrawn,
        )
