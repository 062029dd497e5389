"""What an inference engine adds to the physics: overheads, reserves, block size."""

from dataclasses import dataclass
from typing import Literal

from mist.errors import InputError
from mist.units import Bytes, Seconds

OVERHEADS = ("step_overhead", "request_overhead", "mixed_overhead", "front_end", "cascade_overhead")


@dataclass(frozen=True)
class EngineProfile:
    """The few scalars that belong to one engine and version, never to a device or a model."""

    name: str
    version: str
    step_overhead: Seconds  # every step: scheduling, launch, sampling
    request_overhead: Seconds  # every request in a step
    mixed_overhead: Seconds  # a step that holds a prefill chunk (no full CUDA graph)
    block_tokens: int  # tokens per KV block
    memory_utilization: float  # share of device memory the engine may use
    reserve: Bytes  # CUDA graphs, workspaces, communication buffers, per device
    reserved_blocks: int = 0  # KV blocks of its count that no request gets
    kernels: Literal["vllm", "sglang", "trtllm"] = "vllm"  # whose timed operators stand for its own (perf=measured)
    front_end: Seconds = 0.0  # every request, before it is in line: HTTP, tokenising, hand-over to the engine
    cascade_attention: bool = False  # a prefix that all running requests have in common is read once (perf/cascade.py)
    cascade_overhead: Seconds = 0.0  # a decode-only step that does so, for want of a full CUDA graph

    def __post_init__(self) -> None:
        if not 0 < self.memory_utilization <= 1:
            raise InputError("memory_utilization", self.memory_utilization, "must lie in (0, 1]")
        if self.block_tokens < 1:
            raise InputError("block_tokens", self.block_tokens, "must be at least 1")
        for field in (*OVERHEADS, "reserve", "reserved_blocks"):
            if getattr(self, field) < 0:
                raise InputError(field, getattr(self, field), "must not be negative")
