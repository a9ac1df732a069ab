"""Where sequences end: as transformers' stopping criteria say, whichever of them are looked up and which are called."""

import pytest
import torch
from transformers import MaxLengthCriteria, StoppingCriteria, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria

from sparrow.decoding.emitted import Emitted


class Sum(StoppingCriteria):
    """Ends where a prompt's tokens and all new ones come to so much."""

    def __init__(self, most: int):
        self.most, self.seen = most, list[int]()

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append(input_ids.shape[1])
        return input_ids.sum(1) >= self.most


class Odd(EosTokenCriteria):
    """Not what its base class is."""

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] % 2 == 1


CRITERIA = {
    "none": [],
    "length": [MaxLengthCriteria(9)],
    "two lengths": [MaxLengthCriteria(12), MaxLengthCriteria(8, 8)],
    "one end": [EosTokenCriteria(7)],
    "several ends": [EosTokenCriteria([7, 11]), EosTokenCriteria(torch.tensor([3]))],
    "a user's": [MaxLengthCriteria(30), EosTokenCriteria(7), Sum(60)],
    "a subclass": [Odd(0), MaxLengthCriteria(20)],
    "already long enough": [MaxLengthCriteria(2)],
}


@pytest.mark.parametrize("name", CRITERIA)
def test_a_sequence_ends_where_the_criteria_say(name):
    criteria = StoppingCriteriaList(CRITERIA[name])
    for seed in range(20):
        drawn = torch.randint(0, 40, (25,), generator=torch.Generator().manual_seed(seed)).tolist()
        prompt = torch.tensor([[1, 2, 1]])
        ids = torch.cat([prompt, torch.tensor([drawn])], dim=1)
        ends = [bool(criteria(ids[:, : 4 + at], None).all()) for at in range(25)]
        want = drawn[: ends.index(True) + 1] if True in ends else drawn
        one, got = Emitted(prompt, criteria), []
        for first in range(0, 25, 4):
            if not one.done:
                got += one.emit(drawn[first : first + 4])
        assert got == want and one.done == (True in ends) and one.count == len(want)
        assert one.ids.dtype == torch.int64 and torch.equal(one.ids, ids[:, : 3 + len(want)])


def test_a_users_criterion_sees_each_token_once():
    own = Sum(10**9)
    one = Emitted(torch.zeros(1, 5, dtype=torch.int64), StoppingCriteriaList([MaxLengthCriteria(99), own]))
    assert not one.stops(4) and not one.stops(6)  # asked before they are emitted
    assert one.emit([4, 6, 8]) == [4, 6, 8] and own.seen == [6, 7, 8]


def test_a_model_that_goes_on_beyond_its_positions_is_warned_of():
    """transformers' own warning: that criterion is called."""
    one = Emitted(torch.zeros(1, 5, dtype=torch.int64), StoppingCriteriaList([MaxLengthCriteria(9, 6)]))
    assert one.ends.others and one.emit([1, 2, 3, 4, 5]) == [1, 2, 3, 4]
