"""What joins the devices of one server, and what joins servers."""

from dataclasses import dataclass

from mist.errors import InputError
from mist.units import BytesPerSecond, Seconds


@dataclass(frozen=True)
class NodeSpec:
    """A scale-up domain and the way out of it.

    ``devices`` share a domain; None is as many as the hardware sheet says. ``bandwidth`` is what each device can
    send to other nodes in one direction (its own network port), ``latency`` the time of one such hop; no
    bandwidth is no way out. Without ``peer_to_peer`` devices reach each other through host memory only.
    ``host_speed`` is that of one host core over one of an Intel Xeon Platinum 8480C (DGX H100): kernels are launched
    by one.
    """

    name: str = "isolated"
    devices: int | None = None
    bandwidth: BytesPerSecond | None = None
    latency: Seconds = 0.0
    peer_to_peer: bool = True
    host_speed: float = 1.0

    def __post_init__(self) -> None:
        if self.devices is not None and self.devices < 1:
            raise InputError("devices", self.devices, "must be at least 1")
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise InputError("bandwidth", self.bandwidth, "must be positive")
        if not self.host_speed > 0:
            raise InputError("host_speed", self.host_speed, "must be positive")
        if self.latency < 0:
            raise InputError("latency", self.latency, "must not be negative")


ISOLATED = NodeSpec()
