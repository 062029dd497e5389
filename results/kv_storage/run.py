"""Where to keep reusable KV: serves every case and writes table.md, table.csv and plot.svg beside this file.

python results/kv_storage/run.py
"""

import csv
import sys
from math import log10
from pathlib import Path

from mist.build import build
from mist.compose import compose
from mist.scenario import Scenario
from mist.simulate import simulate

HERE = Path(__file__).parent
BASE = [
    "model=llama-3.1-70b", "hardware=h100", "tp=2", "replicas=128", "scheduler=chunked_prefill",
    "scheduler.token_budget=512", "engine.block_tokens=256", "engine.memory_utilization=0.95", "slo=none",
    "workload=reused_contexts", "workload.zipf=0", "workload.questions.requests=2560", "workload.rate=240",
    "window.drain=true",
]  # fmt: skip
CASES = {
    "A": ("own LPDDR", "mist_dedicated", []),
    "B": ("platform DRAM, per 4", "mist_platform", []),
    "C": ("rack SSD, per 32", "mist_rack", []),
    "D 128": ("rack SSD over 128 GB/s", "mist_datacentre", []),
    "D 1": ("rack SSD over 1 GB/s", "mist_datacentre", ["tiers.tiers.ssd.link.bandwidth='1 GB/s'"]),
    "E": ("computed again", None, []),
}


def overrides(tokens: int, contexts: str, case: str, fetch: str) -> list[str]:
    """The deployment of one case."""
    _, tiers, rest = CASES[case]
    private = contexts == "private"
    chosen = [*BASE, f"workload.tokens={tokens}", f"workload.contexts={1280 if private else 8}"]
    chosen += ["window.warmup=0"] if private else ["window.warmup=1", "prefix_caching=true"]
    if tiers is None:
        return chosen
    chosen += [f"tiers={tiers}_drawn", f"tiers.reusable.tokens={tokens}"] if private else [f"tiers={tiers}"]
    return [*chosen, f"tiers.fetch={fetch}", *rest]


def alone(scenario: Scenario, tokens: int) -> float:
    """L + S / B of the only tier: the paper's transfer time, which knows no others."""
    pool = scenario.pools["llm"]
    (tier,) = pool.tiers.tiers.values()
    port = pool.hardware.host_bandwidth * pool.replica.devices
    bandwidth = min(tier.read_bandwidth, tier.link.bandwidth, port)
    return tier.latency + tier.link.latency + tokens * pool.model.kv_bytes_per_token / bandwidth


def row(tokens: int, contexts: str, case: str, fetch: str) -> dict[str, object]:
    config = compose(overrides(tokens, contexts, case, fetch))
    result = simulate(config)
    pool = result.pools["llm"]
    cohort = [r for r in result.requests if r.id >= 0 and not r.refused]
    times = {name: sorted(getattr(r, name) for r in cohort) for name in ("ttft", "e2e")}
    use = pool.tiers
    (tier,) = use.tiers.values() if use else (None,)
    figures = {
        "tokens": tokens, "contexts": contexts, "case": case, "fetch": fetch if use else "-",
        "refused": sum(bool(r.refused) for r in result.requests if r.id >= 0),
        "ttft_mean": mean(times["ttft"]), "ttft_p50": at(times["ttft"], 0.5), "ttft_p99": at(times["ttft"], 0.99),
        "e2e_mean": mean(times["e2e"]), "e2e_p99": at(times["e2e"], 0.99),
        "makespan": result.window.end - result.window.start, "fetched": 0.0, "alone": 0.0, "transfer": 0.0, "wait": 0.0,
        "device_hits": pool.prefix.hit_rate if pool.prefix else 0.0,
    }  # fmt: skip
    if use and tier:
        figures |= {"fetched": use.fetched / use.requests, "alone": alone(build(Scenario, config), tokens)}
        figures |= {"transfer": tier.transfer_time, "wait": tier.wait}
    return figures


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def at(values: list[float], share: float) -> float:
    return values[min(int(share * len(values)), len(values) - 1)]


def every() -> list[tuple[int, str, str, str]]:
    runs = []
    for tokens in (4096, 24576):
        for case in CASES:
            fetches = ["always", "faster"] if CASES[case][1] else ["always"]
            runs += [(tokens, contexts, case, fetch) for contexts in ("private", "shared") for fetch in fetches]
    return sorted(runs, key=lambda run: (run[0], run[1]))


def table(rows: list[dict[str, object]]) -> str:
    heads = ("context", "", "case", "fetch", "TTFT mean", "P50", "P99", "E2E mean", "P99", "all done", "fetched",
             "L + S/B", "transfer", "of it waiting", "device hits", "refused")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---|---|" + "---:|" * (len(heads) - 4)]
    for r in rows:
        times = [
            f"{r[name]:.3g} s" for name in ("ttft_mean", "ttft_p50", "ttft_p99", "e2e_mean", "e2e_p99", "makespan")
        ]
        moved = [f"{r['fetched']:.0%}", *(f"{r[name]:.3g} s" for name in ("alone", "transfer", "wait"))]
        if r["fetch"] == "-":
            moved = ["-"] * 4
        size = f"{int(r['tokens']) // 1024}K"
        cells = [size, r["contexts"], r["case"], r["fetch"], *times, *moved, f"{r['device_hits']:.0%}", r["refused"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, object]]) -> str:
    """Mean time to first token by case, on a scale of powers of ten, private contexts left and shared ones right."""
    low, high, width, height = -1, 4, 200, 220
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 320" font-family="sans-serif" font-size="11">',
        '<rect width="960" height="320" fill="white"/>',
        '<text x="40" y="18" font-size="14">Mean time to first token, 240 requests/s, all to completion</text>',
    ]

    def y(value: float) -> float:
        return 50 + height * (high - log10(value)) / (high - low)

    panels = [(tokens, kind) for tokens in (4096, 24576) for kind in ("private", "shared")]
    for power in range(low, high + 1):
        label = f"{10.0**power:g} s"
        parts.append(f'<line x1="45" x2="950" y1="{y(10.0**power):.1f}" y2="{y(10.0**power):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="40" y="{y(10.0**power) + 4:.1f}" text-anchor="end">{label}</text>')
    for number, (tokens, kind) in enumerate(panels):
        left = 55 + number * (width + 28)
        parts.append(f'<text x="{left}" y="42" font-weight="bold">{tokens // 1024}K tokens, {kind}</text>')
        for place, case in enumerate(CASES):
            x = left + place * width / len(CASES)
            parts.append(f'<text x="{x:.0f}" y="{50 + height + 16}">{case}</text>')
            for row in rows:
                if (row["tokens"], row["contexts"], row["case"]) == (tokens, kind, case):
                    second = row["fetch"] == "faster"
                    top = y(float(str(row["ttft_mean"])))
                    colour = "#2a7" if second else "#888" if row["fetch"] == "-" else "#36c"
                    bar = f'width="13" height="{50 + height - top:.1f}" fill="{colour}"'
                    parts.append(f'<rect x="{x + 14 * second:.0f}" y="{top:.1f}" {bar}/>')
    keys = {"#36c": "always fetched", "#2a7": "fetched if faster", "#888": "nothing to fetch"}
    for place, (colour, label) in enumerate(keys.items()):
        parts.append(f'<rect x="{60 + 170 * place}" y="298" width="11" height="11" fill="{colour}"/>')
        parts.append(f'<text x="{76 + 170 * place}" y="308">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    rows = []
    for run in every():
        rows.append(row(*run))
        print(*(f"{value:.4g}" if isinstance(value, float) else value for value in rows[-1].values()))
        sys.stdout.flush()
    with (HERE / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
    (HERE / "table.md").write_text(table(rows))
    (HERE / "plot.svg").write_text(plot(rows))


if __name__ == "__main__":
    main()
