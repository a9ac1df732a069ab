"""Drafting is left out where measured steps say that it costs more than it gives."""

import itertools

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
    assert few[:32] == many[:32] == [4] * 16 + [0] * 16
    assert few[32:].count(0) == 10 and many[32:].count(4) == 2  # 2 % of the time
    assert served(pace, 1, 50, {4: 1.5, 0: 1.0})[:32] == few[:32]  # numbers of requests do not mix
    assert pace.choose(2) == 4 and pace.choose(32) == 0 and pace.choose(17) == 0


@pytest.mark.parametrize("first, then", [((1.5, 4), (4.0, 0)), ((4.0, 0), (1.5, 4))])
def test_changes_its_mind(first, then):
    pace = Pace(4, share=0.1)
    assert served(pace, 8, 150, {4: first[0], 0: 1.0})[-1] == first[1]
    late = served(pace, 8, 3000, {4: then[0], 0: 1.0})
    assert late[-150:].count(then[1]) >= 130


@pytest.mark.parametrize("costs", [{4: 6.0, 0: 1.0}, {4: 1.0, 0: 1.0}])
def test_trying_the_slower_one_costs_two_percent_of_the_time(costs):
    """Whichever way it is, and however much slower."""
    chosen = served(Pace(4), 16, 20_000, costs)
    slower, after = 4 if costs[4] > 3 else 0, chosen[32:]
    spent = sum(costs[length] for length in after if length == slower)
    total = sum(costs[length] for length in after)
    assert 0.015 * total < spent <= 0.02 * total
    assert after.count(slower) == sum(a != b for a, b in itertools.pairwise(after)) // 2  # a step at a time


def test_one_step_that_hung_is_not_paid_for_again():
    """The machine stood still while the slower way was tried: it is not tried for so long."""
    pace = Pace(4)
    served(pace, 1, 200, {4: 4.0, 0: 1.0})
    pace.observe(1, 4, 100.0, 3)
    assert set(served(pace, 1, 4800, {4: 4.0, 0: 1.0})) == {0}


def test_steps_of_other_lengths_say_nothing():
    pace = Pace(4)
    pace.observe(3, 2, 1.0, 9)
    assert all(one.steps == 0 for one in pace.table[2].lengths.values())
