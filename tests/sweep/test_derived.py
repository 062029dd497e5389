"""Derived values: keys of a design that follow from others."""

import numpy as np
import pytest

from mist.errors import InputError
from mist.sweep.formula import formula
from mist.sweep.grammar import parse
from mist.sweep.question import sweep
from mist.sweep.search import Search

TEXTS = {
    "cluster": "choice(one, two)",
    "tp": "choice(1, 2, 4)",
    "prefill.tp": "choice(1, 2)",
    "decode.tp": "choice(1, 2)",
    "prefill.replicas": "range(1, 7)",
}
WHEN = {
    "tp": "cluster in (one)",
    "prefill.tp": "cluster in (two)",
    "decode.tp": "cluster in (two)",
    "prefill.replicas": "cluster in (two)",
}
DERIVED = {"replicas": "8 / tp", "decode.replicas": "(8 - prefill.tp * prefill.replicas) / decode.tp"}


def space(**fixed):
    return parse(TEXTS, WHEN, fixed, DERIVED)


def test_every_design_uses_all_eight_devices_and_none_that_could_is_left_out():
    designs = list(space().designs())
    for d in designs:
        if d["cluster"] == "one":
            assert d["tp"] * d["replicas"] == 8 and "decode.replicas" not in d
        else:
            assert d["prefill.tp"] * d["prefill.replicas"] + d["decode.tp"] * d["decode.replicas"] == 8
    splits = sum((8 - p * n) % d == 0 for p in (1, 2) for d in (1, 2) for n in range(1, 8) if p * n < 8)
    assert len(designs) == space().size == 3 + splits


def test_a_base_override_is_read_by_formulas_and_takes_derived_keys_out():
    assert [d["replicas"] for d in space(cluster="one", tp=2).designs()] == [4]
    assert list(space(cluster="one", tp=2, replicas=3).designs()) == [{}]


def test_probes_are_designs_of_the_space_for_every_value():
    designs = list(space().designs())
    labels = []
    for label, both in space().probes():
        labels.append(label)
        assert all(one in designs for one in both)
    assert "prefill.replicas=7" in labels and "tp=4" in labels


def test_a_value_that_no_design_can_have_is_refused_by_its_key():
    with pytest.raises(InputError, match="no design has it") as caught:
        list(parse({"tp": "choice(2, 3)"}, {}, {}, {"replicas": "8 / tp"}).probes())
    assert caught.value.field == "space.tp" and caught.value.value == 3


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "nsga2"])
def test_samplers_propose_designs_of_the_space_only_and_at_last_all_of_them(sampler):
    texts = {key: text for key, text in TEXTS.items() if key != "cluster"}
    data = {
        "question": "?",
        "space": texts,
        "derived": DERIVED,
        "search": {"sampler": sampler},
        "budget": {"designs": 30},
    }
    asked = sweep(data)
    assert asked.designs.size == 3 * 16 and not asked.exhaustive
    designs, search, seen = list(asked.designs.designs()), Search(asked), []
    while len(seen) < 30:
        proposal = search.propose()
        assert proposal.design in designs
        if proposal.design in seen:
            search.repeated()
        else:
            seen.append(proposal.design)
        record = {"value": 1.0, "constraints": {}, "verdict": "ok"}
        search.tell(proposal, {"record": record})


def test_a_point_without_a_design_is_none():
    drawn = np.random.default_rng(0)
    points = [space().point(drawn.random(5)) for _ in range(200)]
    assert None in points
    assert all(point in list(space().designs()) for point in points if point is not None)


def test_formulas_are_exact():
    assert formula("f", "8 / tp").of({"tp": 4}) == 2
    assert formula("f", "8 / tp").of({"tp": 3}) is None
    assert formula("f", "1 / 3 * tp").of({"tp": 3}) == 1
    assert formula("f", "2 - a.b").of({"a.b": 2}) is None
    assert formula("f", "8 / (a - 1)").of({"a": 1}) is None


@pytest.mark.parametrize(
    "text", ["8", "tp +", "tp ** 2", "len(tp)", "tp % 2", "1.5 * tp", "-tp", "'a' * tp", "a[0]", ""]
)
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(InputError) as caught:
        formula("derived.replicas", text)
    assert caught.value.field == "derived.replicas"


@pytest.mark.parametrize(
    ("derived", "field"),
    [({"tp": "8 / replicas"}, "derived.tp"), ({"replicas": "8 / pp"}, "derived.replicas"),
     ({"replicas": "replicas + tp"}, "derived.replicas"), ({"replicas": "8 / hardware"}, "hardware")],
)  # fmt: skip
def test_a_wrong_derivation_is_refused_by_its_key(derived, field):
    with pytest.raises(InputError) as caught:
        list(parse({"tp": "choice(1, 2)", "hardware": "choice(h100, a100)"}, {}, {}, derived).designs())
    assert caught.value.field == field
