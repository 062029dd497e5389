"""What an accelerator or a host is: peaks, memory, links, power."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mist.errors import InputError
from mist.units import Bytes, BytesPerSecond, OpsPerSecond, Seconds, Watts

BUS = 121e9  # bytes/s one way: 16 lanes of PCIe 6.0, 64 GT/s x 16 x 242/256 / 8 (PCI-SIG)


@dataclass(frozen=True)
class HardwareSpec:
    """One device as its vendor publishes it; ``peaks`` are dense rates by dtype, without sparsity.

    ``memory`` is what the driver reports as the device's total, where that is known: a card sold with 80 GB
    holds 81,559 MiB. ``scale_up_bandwidth`` is what one device can send to its neighbours in one direction
    (NVLink, ICI, Infinity Fabric, or PCIe where there is nothing better); ``scale_up_latency`` the time a
    small message takes over one such hop of a collective, synchronisation included, the launch of a kernel
    not; ``scale_up_devices`` how many devices such a domain holds. A resident process draws some 30 to 70 W
    above ``idle_power`` (arXiv:2605.23918).
    """

    name: str
    vendor: str
    kind: Literal["gpu", "asic", "cpu"]
    peaks: Mapping[str, OpsPerSecond]
    memory: Bytes
    memory_bandwidth: BytesPerSecond
    scale_up_bandwidth: BytesPerSecond
    scale_up_latency: Seconds
    scale_up_devices: int
    host_bandwidth: BytesPerSecond  # to host memory, one direction
    power: Watts  # at full load
    idle_power: Watts  # with no process on the device
    cores: int = 0  # of a CPU, over which its peaks are spread; an accelerator is not shared by the core
    multiprocessors: int = 0  # of a GPU that attention kernels are cut for; 0: not known, or of no account
    generated_attention: bool = False  # engines decode with TensorRT-LLM's generated kernels, not with FlashAttention
    tables: str = ""  # of operators timed on it: a folder of the package's, a path with / of yours; empty: none

    def __post_init__(self) -> None:
        for field in ("memory", "memory_bandwidth", "scale_up_bandwidth", "power"):
            if not getattr(self, field) > 0:
                raise InputError(field, getattr(self, field), "must be positive")
        if "bf16" not in self.peaks:
            raise InputError("peaks", sorted(self.peaks), "needs bf16 at least")
        for dtype, peak in self.peaks.items():
            if not peak > 0:
                raise InputError(f"peaks.{dtype}", peak, "must be positive")
        for field in ("scale_up_latency", "host_bandwidth", "idle_power"):
            if getattr(self, field) < 0:
                raise InputError(field, getattr(self, field), "must not be negative")
        if self.idle_power > self.power:
            raise InputError("idle_power", self.idle_power, f"more than full power, {self.power:g} W")
        if self.cores < 0 or (self.cores and self.kind != "cpu"):
            raise InputError("cores", self.cores, "must not be negative" if self.cores < 0 else "only a CPU has them")
        if self.multiprocessors < 0:
            raise InputError("multiprocessors", self.multiprocessors, "must not be negative")
        if self.scale_up_devices < 1:
            raise InputError("scale_up_devices", self.scale_up_devices, "must be at least 1")

    @property
    def over_bus(self) -> bool:
        """Whether devices reach each other over the host's bus, for want of links of their own."""
        return self.kind != "cpu" and self.scale_up_bandwidth <= min(self.host_bandwidth, BUS)

    def peak(self, dtype: str) -> float:
        """Dense operations per second when weights are stored as ``dtype``.

        Weights narrower than the device can multiply are widened to 16 bits on the way in, as weight-only
        kernels do (FP4 on Hopper multiplies in BF16, not FP8): they save bytes, not time in the multiplier.
        """
        return self.peaks.get(dtype, self.peaks["bf16"])
