"""Clients that ask one after another, of a machine whose cores they share: exact for any distribution of work."""

from math import factorial


def answered(clients: int, alone: float, elsewhere: float, most: float) -> float:
    """Mean seconds from question to answer of each of ``clients``, who ask again at once.

    A question spends ``elsewhere`` seconds where nobody is in another's way, and ``alone`` on the machine if it has it
    to itself; the machine does the work of at most ``most`` such questions at a time, shared equally. A closed network
    of a delay and a processor-sharing centre has a product form that asks for the means only (Baskett, Chandy, Muntz
    and Palacios, J. ACM 22(2), 1975, section 4; mean time by Little's law).
    """
    return clients * _constant(clients, alone, elsewhere, most) / _constant(clients - 1, alone, elsewhere, most)


def _constant(clients: int, alone: float, elsewhere: float, most: float) -> float:
    """The network's normalising constant."""
    total, term = 0.0, 1.0
    for working in range(clients + 1):
        term *= alone / min(working, most) if working else 1.0
        away = clients - working
        total += term * elsewhere**away / factorial(away)
    return total
