"""Drafting is left out where measured steps say that it costs more than it gives."""

import pytest

from sparrow.engines.pace import Pace


def served(pace: Pace, requests: int, steps: int, costs: dict[int, float], accepted: float = 2.0) -> list[int]:
    """The lengths of so many steps, each costing what `costs` says of its length."""
    chosen = []
    for _ in range(steps):
        length = pace.choose(requests)
        pace.observe(requests, length, costs[length], int(requests * (1 + accepted * bool(length))))
        chosen.append(length)
    return chosen


def test_drafts_where_it_pays_and_not_where_it_does_not():
    pace = Pace(4)
    few = served(pace, 2, 400, {4: 1.5, 0: 1.0})  # three tokens for half more
    many = served(pace, 30, 400, {4: 3.5, 0: 1.0})  # three tokens for more than three steps
    assert few[:32] == [4] * 16 + [0] * 16 and set(few[32:]) == {4}
    assert set(many[32:]) == {0}
    assert set(served(pace, 1, 100, {4: 1.5, 0: 1.0})[32:]) == {4}  # numbers of requests do not mix
    assert pace.choose(2) == 4 and pace.choose(32) == 0 and pace.choose(17) == 0


@pytest.mark.parametrize("first, then", [((1.5, 4), (4.0, 0)), ((4.0, 0), (1.5, 4))])
def test_changes_its_mind(first, then):
    pace = Pace(4, again=200)
    assert served(pace, 8, 150, {4: first[0], 0: 1.0})[-1] == first[1]
    late = served(pace, 8, 1200, {4: then[0], 0: 1.0})
    assert late[-150:].count(then[1]) >= 130


def test_trying_the_slower_one_costs_little():
    chosen = served(Pace(4), 16, 1024 * 20, {4: 4.0, 0: 1.0})
    assert chosen[1024:].count(4) <= 16 * 20


def test_steps_of_other_lengths_say_nothing():
    pace = Pace(4)
    pace.observe(3, 2, 1.0, 9)
    assert all(one.steps == 0 for one in pace.table[2].values())
