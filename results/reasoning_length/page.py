"""The first two tables of README.md and e2e.svg: ``python results/reasoning_length/page.py``.

Serves one question at a time, and 0.1 questions/s, for every length of thinking and every number of paths; writes
table.csv and e2e.svg here and prints the tables. The third table is the sweep's.
"""

import csv
from math import log2, log10
from pathlib import Path

from mist.compose import compose
from mist.metrics import Result
from mist.simulate import simulate

HERE = Path(__file__).parent
LENGTHS, PATHS = (500, 1000, 2000, 4000, 8000), (1, 2, 4, 8)
LOADS = {"alone": (0.001, 3, 0.0), "loaded": (0.1, 200, 1.0)}  # questions/s, questions in a cycle, cycles of warm-up
ATTEMPT = "pipeline.stages.attempts.paths.attempt"
BASE = [
    "pipeline=reasoning", "model=deepseek-r1-distill-llama-70b", "tp=4", "perf=measured", "scheduler=vllm_v1",
    "workload=poisson_fixed", "workload.inputs.tokens=256", "workload.outputs.tokens=300", "slo=none",
    f"{ATTEMPT}.stages.think.output=fixed",
]  # fmt: skip
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0")


def serve(thinking: int, paths: int, load: str) -> Result:
    rate, requests, warmup = LOADS[load]
    own = [f"{ATTEMPT}.stages.think.output.tokens={thinking}", f"{ATTEMPT}.copies={paths}"]
    traffic = [f"workload.rate={rate}", f"workload.requests={requests}", f"window.warmup={warmup}"]
    return simulate(compose([*BASE, *own, *traffic]))


def row(thinking: int, paths: int, load: str) -> dict[str, object]:
    result = serve(thinking, paths, load)
    pool = result.pools["llm"]
    figures = {"thinking": thinking, "paths": paths, "load": load, "verdict": result.verdict}
    if result.verdict == "unstable":
        return figures
    e2e = result.latency["e2e"]
    return figures | {"e2e_mean": e2e.mean, "e2e_p90": e2e.p90, "kv": pool.kv_peak, "preemptions": pool.preemptions}


def cell(row: dict[str, object]) -> str:
    if "e2e_mean" not in row:
        return "overload"
    if row["load"] == "alone":
        return f"{row['e2e_mean']:.1f}"
    return f"{row['e2e_mean']:.1f} / {row['e2e_p90']:.1f}, {row['kv']:.0%}"


def table(rows: list[dict[str, object]], load: str) -> str:
    head = "| thinking, tokens | " + " | ".join(f"{n} path{'s' * (n > 1)}" for n in PATHS) + " |"
    lines = [head, "|--:|" + "---|" * len(PATHS)]
    for thinking in LENGTHS:
        cells = [cell(r) for r in rows if (r["thinking"], r["load"]) == (thinking, load)]
        lines.append(f"| {thinking:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict[str, object]]) -> str:
    """E2E over the length of thinking, both on logarithmic scales: a line for each number of paths and load."""
    x = {thinking: 60 + 115 * log2(thinking / LENGTHS[0]) for thinking in LENGTHS}

    def y(seconds: float) -> float:
        return 330 - 300 * log10(seconds / 10) / log10(50)

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 380" font-family="sans-serif" font-size="12">']
    parts.append('<rect width="640" height="380" fill="white"/>')
    for s in (10, 20, 50, 100, 200, 500):
        parts.append(f'<line x1="60" x2="520" y1="{y(s):.1f}" y2="{y(s):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="52" y="{y(s) + 4:.1f}" text-anchor="end">{s}</text>')
    parts += [f'<text x="{at:.1f}" y="348" text-anchor="middle">{t:,}</text>' for t, at in x.items()]
    parts.append('<text x="290" y="370" text-anchor="middle">thinking, tokens</text>')
    parts.append('<text x="60" y="18">mean E2E, s: dashed one question at a time, solid at 0.1 questions/s</text>')
    for number, (paths, colour) in enumerate(zip(PATHS, COLOURS, strict=True)):
        for load, dash in (("alone", ' stroke-dasharray="4 4"'), ("loaded", "")):
            drawn = [r for r in rows if (r["paths"], r["load"]) == (paths, load) and "e2e_mean" in r]
            points = " ".join(f"{x[int(str(r['thinking']))]:.1f},{y(float(str(r['e2e_mean']))):.1f}" for r in drawn)
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2"{dash} points="{points}"/>')
        name = f"{paths} path{'s' * (paths > 1)}"
        parts.append(f'<text x="530" y="{60 + 20 * number}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    rows = [row(thinking, paths, load) for load in LOADS for thinking in LENGTHS for paths in PATHS]
    with (HERE / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
    (HERE / "e2e.svg").write_text(plot(rows))
    print(*(f"{load}\n\n{table(rows, load)}\n" for load in LOADS), sep="\n")


if __name__ == "__main__":
    main()
