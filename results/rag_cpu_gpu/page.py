"""The figures of README.md: ``python results/rag_cpu_gpu/page.py`` after ``mist sweep rag_cpu_gpu``.

Reads the latest run, serves every design once more at one rate for all, and writes summary.csv and ttft.svg here.
"""

import json
from pathlib import Path

import pandas as pd

from mist.compose import compose
from mist.simulate import simulate

HERE = Path(__file__).parent
RATE = 4.0  # requests/s: the LLM is far from full, so that what differs is where the stages run
STAGES = ("embed", "retrieve", "rerank", "prefill")
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")


def place(design: dict[str, str], station: str) -> str:
    """gpu, cpu fp32 or cpu bf16."""
    where = design[f"stations.{station}"].rpartition("_")[2]
    return f"{where} {design.get(f'stations.{station}.dtype', '')}".strip()


def row(line: dict, base: list[str]) -> dict[str, object]:
    """A design: its capacity within the SLO, and its latencies at RATE."""
    design, record = line["design"], line["record"]
    fixed = [text for text in base if not text.startswith("slo")]
    own = [f"{key}={value}" for key, value in design.items()]
    result = simulate(compose([*fixed, *own, "slo=none", f"workload.rate={RATE}"]))
    latency = {f"{m}_{p}": getattr(result.latency[m], p) for m in ("ttft", "tpot") for p in ("p50", "p99")}
    stages = {f"{s}_s": result.stages[s].wait.mean + result.stages[s].service.mean for s in STAGES}
    return {
        "llm": "chunked" if design["cluster"] == "rag" else "disaggregated",
        **{
            name: place(design, station)
            for name, station in (("embed", "embedder"), ("search", "index"), ("rerank", "reranker"))
        },
        "capacity": record["capacity"],
        "tokens_per_dollar": record["value"],
        "dollars_per_hour": result.dollars_per_hour,
        **({} if result.verdict == "unstable" else latency | stages),
        "verdict": result.verdict,
    }


def bars(table: pd.DataFrame) -> str:
    """Mean time to the first token by stage, one bar a design of the chunked LLM."""
    rows = table[(table.llm == "chunked") & (table.verdict == "ok")].sort_values("total")
    longest, high = rows.total.max(), 20
    scale = 480 / longest
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="860" height="{70 + high * len(rows)}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="18">Mean time to the first token at {RATE:g} requests/s, by stage</text>',
    ]
    for i, (stage, colour) in enumerate(zip(STAGES, COLOURS, strict=True)):
        out.append(
            f'<rect x="{270 + 100 * i}" y="28" width="12" height="12" fill="{colour}"/>'
            f'<text x="{286 + 100 * i}" y="39">{stage}</text>'
        )
    for number, design in enumerate(rows.to_dict("records")):
        x, y = 270.0, 50 + high * number
        label = f"embed {design['embed']}, search {design['search']}, rerank {design['rerank']}"
        out.append(f'<text x="262" y="{y + 12}" text-anchor="end">{label}</text>')
        for stage, colour in zip(STAGES, COLOURS, strict=True):
            width = design[f"{stage}_s"] * scale
            out.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="14" fill="{colour}"/>')
            x += width
        out.append(f'<text x="{x + 5:.1f}" y="{y + 12}">{design["total"] * 1e3:.0f} ms</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    run = HERE / "latest"
    lines = [json.loads(text) for text in (run / "trials.jsonl").read_text().splitlines()]
    searched = [line for line in lines if line["rung"] == "search" and line["record"]]
    designs = [set(line["overrides"]) for line in searched]
    base = [text for text in searched[0]["overrides"] if all(text in other for other in designs)]
    table = pd.DataFrame([row(line, base) for line in searched])
    table["total"] = table[[f"{stage}_s" for stage in STAGES]].sum(axis=1)
    table = table.sort_values(["tokens_per_dollar", "total"], ascending=[False, True])
    table.to_csv(HERE / "summary.csv", index=False, float_format="%.5g")
    (HERE / "ttft.svg").write_text(bars(table))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
