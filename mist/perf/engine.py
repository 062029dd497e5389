"""What an inference engine adds to the physics: overheads, reserves, block size."""

from dataclasses import dataclass
from typing import Literal

from mist.errors import InputError
from mist.units import Bytes, Seconds

NOT_NEGATIVE = (
    "step_overhead", "request_overhead", "mixed_overhead", "launch_time", "reserve", "reserved_blocks", "front_end",
    "captured_tokens", "cascade_overhead", "collective_wait",
)  # fmt: skip


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
    kernel_factor: float = 1.0  # time of its own kernels over the timed ones (perf=measured)
    launch_time: Seconds = 0.0  # the host's for a layer's kernels, one by one beside the device; 0 replays a CUDA graph
    front_end: Seconds = 0.0  # every request, before it is in line: HTTP, tokenising, hand-over to the engine
    # of the largest CUDA graph; a step of fewer is padded to the next captured (perf=measured, launch_time=0)
    captured_tokens: int = 0
    # every all-reduce of a step, where each host launches its kernels one by one: for the last device to arrive
    collective_wait: Seconds = 0.0
    # fused: the all-reduce adds residual and norm, where the device has such a kernel (perf=measured)
    allreduce: Literal["apart", "fused"] = "apart"
    cascade_attention: bool = False  # a prefix that all running requests have in common is read once (perf/cascade.py)
    cascade_overhead: Seconds = 0.0  # a decode-only step that does so, for want of a full CUDA graph

    def __post_init__(self) -> None:
        if not 0 < self.memory_utilization <= 1:
            raise InputError("memory_utilization", self.memory_utilization, "must lie in (0, 1]")
        if self.block_tokens < 1:
            raise InputError("block_tokens", self.block_tokens, "must be at least 1")
        if not self.kernel_factor > 0:
            raise InputError("kernel_factor", self.kernel_factor, "must be positive")
        for field in NOT_NEGATIVE:
            if getattr(self, field) < 0:
                raise InputError(field, getattr(self, field), "must not be negative")

    def computed(self, tokens: int, copies: int = 1) -> int:
        """Rows that a step of ``tokens`` computes, spread evenly over ``copies`` of the model, padding included.

        CUDA graphs are captured for 1, 2 and 4 tokens, every multiple of 8 below 256 and every multiple of 16 from
        there (vLLM compilation config, cudagraph_capture_sizes).
        """
        share = -(-tokens // copies)
        if share > self.captured_tokens:
            return tokens
        if share <= 4:
            return copies * (4 if share == 3 else share)
        step = 8 if share <= 256 else 16
        return copies * min(-(-share // step) * step, self.captured_tokens)
