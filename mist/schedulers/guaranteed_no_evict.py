"""In-flight batching that admits nobody whom it might have to evict."""

from collections.abc import Iterator
from dataclasses import dataclass

from mist.policy import Decision, EngineView, Grant
from mist.schedulers.mixed import Mixed


@dataclass(frozen=True)
class GuaranteedNoEvict(Mixed):
    """Mixed batching, but the head of the line waits until all blocks of its whole answer can be had.

    The default of TensorRT-LLM (documentation, "Useful Runtime Options", CapacitySchedulerPolicy
    GUARANTEED_NO_EVICT): what is admitted is never paused. It counts on answers as long as their limit, which here
    is as long as they will be. Blocks that requests share are counted for each. Caches handed over by a
    prefill client, and drafts beyond the answer's end, are not counted on: for them the youngest gives way, as in
    ``Mixed``.
    """

    def schedule(self, view: EngineView) -> Iterator[Decision]:
        pledged = -1  # blocks; summed only if somebody could come in
        for decision in super().schedule(view):
            if isinstance(decision, Grant):
                pledged = view.pledged if pledged < 0 else pledged
                pledged += view.pledge(decision.request)
                if pledged > view.blocks:
                    return
            yield decision
