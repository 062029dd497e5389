import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mist.errors import InputError
from mist.sweep.domain import Choice, Interval, Range, domain
from mist.sweep.grammar import parse
from mist.sweep.question import override, sweep
from mist.sweep.search import Search, distribution, parameter

TEXTS = {
    "hardware": "choice(h100, a100)",
    "scheduler": "choice(static, chunked)",
    "token_budget": "choice(2048, 512, 1024)",
    "replicas": "range(1, 4)",
}
WHEN = {"token_budget": "scheduler in (chunked)"}


def test_every_design_is_listed_once_and_counted():
    space = parse(TEXTS, WHEN, {})
    designs = list(space.designs())
    assert len(designs) == len({str(design) for design in designs}) == space.size == 2 * (1 + 3) * 4


def test_a_key_is_part_of_a_design_only_where_its_condition_holds():
    for design in parse(TEXTS, WHEN, {}).designs():
        assert ("token_budget" in design) == (design["scheduler"] == "chunked")


def test_a_condition_reads_the_base_too():
    assert parse(TEXTS, WHEN, {"scheduler": "static"}).size == 2 * 4
    assert parse(TEXTS, WHEN, {"scheduler": "chunked"}).size == 2 * 3 * 4


def test_conditions_come_after_what_they_read_in_whatever_order_they_are_written():
    backwards = dict(reversed(TEXTS.items()))
    assert parse(backwards, WHEN, {}).size == 32


@given(st.integers(0, 2**32 - 1))
def test_a_point_of_the_cube_is_a_design_of_the_space(seed):
    space = parse(TEXTS, WHEN, {})
    assert space.point(np.random.default_rng(seed).random(4)) in list(space.designs())


def test_numbers_are_searched_in_order_and_names_are_not():
    assert domain("tp", "choice(4, 1, 2)") == Choice((1, 2, 4))
    assert parameter(Choice((1, 2, 4)), 4) == 2
    assert type(distribution(Choice((1, 2, 4)))).__name__ == "IntDistribution"
    assert type(distribution(Choice(("b", "a")))).__name__ == "CategoricalDistribution"


def test_sets_of_values_read_as_written():
    assert domain("x", "range(1, 8)") == Range(1, 8)
    assert domain("x", "range(0, 65, 8)") == Range(0, 64, 8)
    assert domain("x", "interval(0.8, 0.95)") == Interval(0.8, 0.95)
    assert domain("x", "log_range(1, 256)") == Range(1, 256, log=True)
    assert domain("x", "log_interval(0.001, 1)") == Interval(0.001, 1.0, log=True)


@pytest.mark.parametrize(
    "text",
    ["choice()", "choice(1, 1)", "range(8, 1)", "range(1)", "range(1, 2.5)", "interval(1, 1)", "log_interval(0, 1)",
     "log_range(0, 8)", "any(1, 2)", "h100", "range(1, 8, 0)", "interval(a, b)"],
)  # fmt: skip
def test_a_wrong_set_of_values_is_refused_by_its_key(text):
    with pytest.raises(InputError) as caught:
        domain("space.tp", text)
    assert caught.value.field == "space.tp" and text in str(caught.value)


@pytest.mark.parametrize(
    ("when", "field"),
    [({"nothing": "hardware in (h100)"}, "when.nothing"), ({"hardware": "h100"}, "when.hardware"),
     ({"hardware": "engine in (a)"}, "when.hardware"), ({"hardware": "scheduler in (greedy)"}, "when.hardware"),
     ({"hardware": "scheduler in (static)", "scheduler": "hardware in (h100)"}, "when.hardware")],
)  # fmt: skip
def test_a_wrong_condition_is_refused_by_its_key(when, field):
    with pytest.raises(InputError) as caught:
        parse(TEXTS, when, {})
    assert caught.value.field == field


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "qmc", "random", "grid"])
def test_every_sampler_finds_the_whole_of_a_small_space_and_then_says_so(sampler):
    asked = sweep(
        {"question": "?", "space": TEXTS, "when": WHEN, "search": {"sampler": sampler}, "budget": {"designs": 32}}
    )
    search = Search(asked)
    designs = []
    while (proposal := search.propose()) is not None:
        designs.append(str(proposal.design))
    assert len(designs) == len(set(designs)) == 32


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "qmc", "random"])
def test_a_sampler_that_repeats_itself_is_given_unseen_designs_until_none_is_left(sampler):
    space = {"tp": "range(1, 12)", "replicas": "choice(1, 2)", "unused": "interval(0, 1)"}
    asked = sweep(
        {
            "question": "?",
            "space": space,
            "base": {"unused": 0.5},
            "search": {"sampler": sampler},
            "budget": {"designs": 23},
        }
    )
    search, seen = Search(asked), set()
    while (proposal := search.propose()) is not None:
        if (key := str(proposal.design)) in seen:
            search.repeated()
        seen.add(key)
        search.tell(proposal, {"record": {"value": 1.0, "verdict": "ok", "constraints": {}}})
    assert len(seen) == 24


@given(st.one_of(st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False)))
def test_an_override_of_a_number_reads_back_as_that_number(value):
    from omegaconf import OmegaConf

    assert OmegaConf.from_dotlist([override("a.b", value)]).a.b == value


def test_tpe_opens_with_every_branch():
    space = {"kind": "choice(a, b, c)", "x": "interval(0, 1)", "y": "choice(1, 2)", "z": "interval(0, 1)"}
    when = {"x": "kind in (a)", "y": "kind in (b)", "z": "y in (2)"}
    assert len(list(parse(space, when, {}).branches())) == 4
    search = Search(sweep({"question": "?", "space": space, "when": when, "search": {"sampler": "tpe"}}))
    seen = [search.propose().design for _ in range(10)]
    branches = [(design["kind"], design.get("y")) for design in seen]
    assert all(branches.count(branch) >= 2 for branch in [("a", None), ("b", 1), ("b", 2), ("c", None)])
