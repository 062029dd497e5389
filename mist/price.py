"""What a device costs to rent."""

from collections.abc import Mapping
from dataclasses import dataclass

from mist.errors import InputError
from mist.units import DollarsPerHour


@dataclass(frozen=True)
class PriceList:
    """Dollars per device-hour by hardware name, as one provider asked on one date."""

    name: str
    provider: str
    region: str
    commitment: str
    date: str  # ISO
    hourly: Mapping[str, DollarsPerHour]

    def __post_init__(self) -> None:
        for name, price in self.hourly.items():
            if not price > 0:
                raise InputError(f"hourly.{name}", price, "a price must be positive")

    @property
    def source(self) -> str:
        """Whose prices they are, in one line."""
        region = "" if self.region in ("none", "mixed") else f", {self.region}"
        return f"{self.name}: {self.provider}{region}, {self.commitment}, {self.date}"

    def of(self, hardware: str) -> float:
        """Dollars per hour of one device; InputError if the list lacks it."""
        if hardware not in self.hourly:
            field = f"price.hourly.{hardware}"
            why = f"{self.name} has no price for it; give one ({field}='2.5 $/h') or another list (price=NAME)"
            raise InputError(field, "(nothing)", why, sorted(self.hourly))
        return self.hourly[hardware]
