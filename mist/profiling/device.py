"""A torch device and its clock: CUDA and ROCm by events around graphs, anything else by the wall clock."""

import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from statistics import median
from typing import Any

from mist.errors import InputError

Call = Callable[[], object]

BURST = 0.05  # s of measuring aimed at per shape
FEWEST, MOST = 3, 20  # samples of a shape
LONG = 1.0  # s of samples after which fewer will do
COPIES = 32  # of an operand, at most, to keep it out of the cache
TYPES = ("cuda", "cpu")  # CUDA and ROCm, which torch calls cuda too, and the CPU
INFINITY = 256 * 2**20  # bytes behind the L2 of an AMD GPU, which no driver tells: MI300X (CDNA 3 white paper)
CACHE = 64 * 2**20  # bytes taken as the last-level cache where the system does not say: that of a large server CPU


def torch() -> Any:
    """The torch module; InputError, saying how to get it, where there is none."""
    try:
        return import_module("torch")
    except ImportError:
        why = "is not installed, and operators are measured with it: pip install 'mist-llm[profile-ops]'"
        raise InputError("torch", "(nothing)", why) from None


class Device:
    """One device: where tensors go, how long calls take on it.

    ``time`` measures a call as a running engine makes it: captured in a CUDA graph, so that no launch is in the
    figure, with other operands than the call before and a last-level cache that was flushed, since between two uses of
    one layer's weights lie those of all the others.
    """

    def __init__(self, name: str) -> None:
        self.torch = torch()
        self.name = name or ("cuda" if self.torch.cuda.is_available() else "cpu")
        try:
            self.where = self.torch.device(self.name)
            self.torch.empty(1, device=self.where)
        except (RuntimeError, AssertionError) as error:
            choices = ["cpu", *(f"cuda:{i}" for i in range(self.torch.cuda.device_count()))]
            raise InputError("--device", name, str(error).splitlines()[0], choices) from None
        if self.where.type not in TYPES:
            raise InputError("--device", name, "no clock is known for this kind of device", TYPES)
        self.gpu = self.where.type == "cuda"
        if self.gpu:  # streams and graphs belong to the current device
            self.where = self.torch.device("cuda", self.where.index or 0)
            self.torch.cuda.set_device(self.where)
        self.count = self.torch.cuda.device_count() if self.gpu else 1
        self.cache = self._cache()
        self._scratch = self.torch.empty(2 * self.cache, dtype=self.torch.int8, device=self.where)

    @property
    def properties(self) -> Any:
        return self.torch.cuda.get_device_properties(self.where)

    @property
    def amd(self) -> bool:
        """A GPU under ROCm."""
        return self.gpu and bool(getattr(self.torch.version, "hip", None))

    @property
    def serial(self) -> str:
        """By which nvidia-smi knows the GPU, whatever CUDA_VISIBLE_DEVICES makes of the numbers."""
        uuid = getattr(self.properties, "uuid", None)
        return f"GPU-{uuid}" if uuid else str(self.where.index or 0)

    @property
    def title(self) -> str:
        """As its driver calls it: "NVIDIA H100 80GB HBM3"."""
        return str(self.properties.name) if self.gpu else _processor()

    @property
    def memory(self) -> int:
        """Bytes, in all."""
        if self.gpu:
            return int(self.properties.total_memory)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    @property
    def room(self) -> float:
        """Bytes that operands may take: half of what is free."""
        if self.gpu:
            return float(self.torch.cuda.mem_get_info(self.where)[0]) / 2
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 2

    def copies(self, operand_bytes: float, seconds: float) -> int:
        """How many copies of an operand to take turns with, so that each is cold when its turn comes.

        Fewer where a call of about ``seconds`` is long: then it computes rather than waits for memory.
        """
        cold, held = 2 * self.cache // max(operand_bytes, 1) + 1, self.room // max(operand_bytes, 1)
        return int(max(min(cold, held, BURST / max(seconds, 1e-9), COPIES), 1))

    def time(self, calls: Sequence[Call]) -> float:
        """Seconds of one call: the median over bursts of all of them, one after the other."""
        burst = self._burst(calls)
        burst()  # caches, allocations, choice of kernels
        samples = [burst()]
        while len(samples) < MOST and (sum(samples) < BURST or (len(samples) < FEWEST and sum(samples) < LONG)):
            samples.append(burst())
        return median(samples) / len(calls)

    def _burst(self, calls: Sequence[Call]) -> Callable[[], float]:
        """A function that makes all calls and says how many seconds they took."""
        if not self.gpu:
            return lambda: self._walled(calls)
        cuda = self.torch.cuda
        replay = self._graph(calls)

        def timed() -> float:
            begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            self._scratch.zero_()  # the flush also keeps the device busy while the rest is queued
            begin.record()
            replay()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) * 1e-3

        return timed

    def _walled(self, calls: Sequence[Call]) -> float:
        self._scratch.zero_()
        began = time.perf_counter()
        for call in calls:
            call()
        return time.perf_counter() - began

    def _graph(self, calls: Sequence[Call]) -> Callable[[], object]:
        """All calls as one CUDA graph; as they are where one cannot be captured."""
        cuda, stream = self.torch.cuda, self.torch.cuda.Stream()

        def plain() -> None:
            for call in calls:
                call()

        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):  # libraries choose kernels and allocate workspaces outside the capture
            for _ in range(2):
                plain()
        cuda.current_stream().wait_stream(stream)
        cuda.synchronize()
        graph = cuda.CUDAGraph()
        with suppress(RuntimeError):
            with cuda.graph(graph):
                plain()
            return graph.replay  # type: ignore[no-any-return]  # torch may be absent, so untyped
        cuda.synchronize()
        return plain

    def _cache(self) -> int:
        if self.gpu:
            found = int(getattr(self.properties, "L2_cache_size", 0)) or 4 * CACHE
            return max(found, INFINITY) if self.amd else found
        with suppress(ValueError, OSError):
            return max(os.sysconf("SC_LEVEL3_CACHE_SIZE"), 0) or CACHE
        return CACHE


def _processor() -> str:
    with suppress(OSError):
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 (a pseudo-file)
            found = re.search(r"model name\s*:\s*(.+)", file.read())
        if found:
            return found[1].strip()
    import platform  # noqa: PLC0415

    return platform.processor() or platform.machine()
