"""Laws of clients that ask one after another of a shared machine."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mist.clients.host import Shared
from mist.kernel import Kernel
from mist.validation.closed import answered

SECONDS = st.floats(1e-4, 10.0)


@given(clients=st.integers(1, 20), alone=SECONDS, elsewhere=SECONDS, spare=st.floats(1.0, 5.0))
def test_clients_with_a_core_each_wait_for_nobody(clients: int, alone: float, elsewhere: float, spare: float) -> None:
    assert answered(clients, alone, elsewhere, clients * spare) == pytest.approx(alone + elsewhere)


@given(clients=st.integers(1, 20), alone=SECONDS, most=st.floats(1.0, 8.0))
def test_clients_who_are_always_on_the_machine_share_it(clients: int, alone: float, most: float) -> None:
    assert answered(clients, alone, 0.0, most) == pytest.approx(alone * max(1.0, clients / most))


@given(clients=st.integers(1, 20), alone=SECONDS, elsewhere=SECONDS, most=st.floats(1.0, 8.0))
def test_nobody_beats_the_bounds_of_a_closed_network(clients: int, alone: float, elsewhere: float, most: float) -> None:
    mean = answered(clients, alone, elsewhere, most)
    assert mean >= max(alone + elsewhere, clients * alone / most) * (1 - 1e-9)
    assert mean <= (elsewhere + alone * max(1.0, clients / most)) * (1 + 1e-9)
    assert answered(clients + 1, alone, elsewhere, most) >= mean * (1 - 1e-9)


@pytest.mark.parametrize("most", [1.0, 1.7, 3.0])
@pytest.mark.parametrize("exponential", [True, False])
def test_the_formula_is_what_the_event_loop_makes_of_it(most: float, exponential: bool) -> None:
    """Whatever the distribution of the work: its mean decides."""
    clients, alone, elsewhere, rounds = 4, 1.0, 0.8, 20_000
    kernel, draws = Kernel(), random.Random(3)
    machine, answers = Shared(kernel, most), [0]

    def asks() -> None:
        machine.use(draws.expovariate(1 / alone) if exponential else draws.uniform(0, 2 * alone), 1.0, leaves)

    def leaves() -> None:
        answers[0] += 1
        if answers[0] < rounds:
            kernel.after(draws.expovariate(1 / elsewhere), asks)

    for _ in range(clients):
        asks()
    kernel.run()
    assert clients * kernel.now / answers[0] == pytest.approx(answered(clients, alone, elsewhere, most), rel=0.03)
