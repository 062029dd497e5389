"""One KV cache on its way from one server to another, replayed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from mist.build import build
from mist.errors import InputError
from mist.kernel import Kernel
from mist.network import Link
from mist.scenario import Scenario
from mist.validation.facts import number
from mist.validation.harness import Facts, Overrides, composed

PEAK = re.compile(r"([\d.]+)\s*GB/s\s*peak", re.IGNORECASE)


@dataclass(frozen=True)
class KvTransfer:
    """One KV cache of ``megabytes`` over a link that nobody else uses.

    Where the file's words for the link (``setup``) tell its line rate, the link has ``share`` of that.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError("share", self.share, "must lie in (0, 1]")

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:  # noqa: ARG002
        line = {"link": str(facts["link"])}
        if (told := PEAK.search(str(facts.get("setup", "")))) is not None:
            line["link.bandwidth"] = f"{float(told[1]) * self.share} GB/s"
        spec = build(Scenario, composed({"cluster": "disaggregated", "slo": "none"}, line, overrides)).link
        assert spec is not None
        kernel = Kernel()
        arrived: list[float] = []
        Link(kernel, spec).send(number(facts, "megabytes") * 1e6, lambda: arrived.append(kernel.now))
        kernel.run()
        return {"transfer_time": arrived[0]}
