"""Laws of what a host costs: a socket by the price list, nothing only where that is said."""

import pytest

from mist.build import build
from mist.compose import compose
from mist.errors import InputError
from mist.scenario import Scenario


def scenario(*overrides: str) -> Scenario:
    return build(Scenario, compose(list(overrides)))


@pytest.mark.parametrize("cluster", ["rag", "rag_disaggregated", "rag_iterative", "rag_kv"])
def test_a_host_costs_what_the_list_asks_unless_it_is_said_to_come_with_the_accelerators(cluster: str) -> None:
    paid = scenario("pipeline=rag", f"cluster={cluster}")
    free = scenario("pipeline=rag", f"cluster={cluster}", "hosts.cpu.price=0")
    listed = paid.price.of("sapphire-rapids")
    assert listed > 0
    assert paid.dollars_per_hour == pytest.approx(free.dollars_per_hour + listed)


def test_an_encoder_on_a_host_alone_costs_the_host() -> None:
    alone = scenario("pipeline=embedding", "cluster=encoder_cpu", "hosts.cpu.hardware=genoa")
    assert alone.dollars_per_hour == alone.price.of("genoa") > 0


def test_a_host_without_a_price_is_told_before_anything_is_simulated_and_both_ways_to_give_one() -> None:
    with pytest.raises(InputError, match=r"price\.hourly\.grace=.*hosts\.cpu\.price"):
        scenario("pipeline=embedding", "cluster=encoder_cpu", "hosts.cpu.hardware=grace", "hosts.cpu.cores=72")


def test_a_station_without_a_price_is_told_before_anything_is_simulated() -> None:
    with pytest.raises(InputError, match=r"price\.hourly\.l4="):
        scenario("pipeline=rag", "price=reserved", "hosts.cpu.price=0")
