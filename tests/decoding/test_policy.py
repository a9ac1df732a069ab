"""tree="auto" on tables: a world whose costs and chances are known, and what the policy makes of it."""

import functools
import random

import numpy as np
import pytest
import torch

import sparrow
from sparrow.decoding import costs as known
from sparrow.decoding import policy as module
from sparrow.decoding import runner
from sparrow.decoding.costs import PLAIN, SURE, UNTRIED, Costs, costs_of, expected
from sparrow.decoding.policy import ADDS, EVERY, LONGEST_WAIT, MENU, NEW, SELDOM, TRIES, Policy
from sparrow.drafters.protocol import Pending
from sparrow.drafters.text import TextDrafter
from sparrow.targets.adapter import Target
from sparrow.tree import TreeConfig
from tests.decoding.recorder import Emulated
from tests.decoding.scripted import ScriptedDrafter
from tests.videos import FAMILIES, sample_inputs


@functools.lru_cache
def candidates(said: float, shape: TreeConfig) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Scores of all candidates in the operators' order, and the ranks along each one's path."""
    share = [said * (1 - said) ** r for r in range(shape.width)]
    beam: list[tuple[float, tuple[int, ...]]] = [(1.0, ())]
    every: list[tuple[float, tuple[int, ...]]] = []
    for _ in range(shape.depth):
        level = [(p * share[r], (*path, r)) for p, path in beam for r in range(shape.width)]
        every += level
        beam = sorted(level, key=lambda node: -node[0])[: shape.width]
    return np.log(np.array([p for p, _ in every], np.float32)), [path for _, path in every]


class World:
    """A drafter that gives its rank-r child the chance a (1 - a)^r, and a target that takes it with b (1 - b)^r."""

    def __init__(self, row: float, level: float, said: float, true: float, seed: int = 0):
        self.row, self.level, self.said, self.true = row, level, said, true
        self.random = random.Random(seed)

    def seconds(self, shape: TreeConfig) -> tuple[float, float]:
        noise = self.random.uniform(0.97, 1.03)
        draft = 0.0 if shape.nodes == 1 else shape.depth * self.level
        return draft * noise, (1 + self.row * (shape.nodes - 1)) * noise

    def round(self, shape: TreeConfig) -> tuple[int, np.ndarray]:
        """Drafted tokens accepted, and the scores."""
        if shape.nodes == 1:
            return 0, np.zeros(0, np.float32)
        scores, paths = candidates(self.said, shape)
        kept = {paths[i] for i in np.argsort(-scores, kind="stable")[: shape.total]}
        path: tuple[int, ...] = ()
        while len(path) < shape.depth:
            rank = 0
            while self.random.random() > self.true and rank < 50:
                rank += 1
            if (*path, rank) not in kept:
                break
            path = (*path, rank)
        return len(path), scores

    def rate(self, rounds: int, shape: TreeConfig | None, policy: Policy | None = None) -> float:
        tokens = seconds = 0.0
        for _ in range(rounds):
            tree = policy.shape if policy else shape
            accepted, scores = self.round(tree)
            draft, rest = self.seconds(tree)
            tokens, seconds = tokens + accepted + 1, seconds + draft + rest
            if policy:
                policy.saw([accepted], draft, rest, scores[None])
        return tokens / seconds


WORLDS = {
    "rows and levels cheap, text easy": (0.002, 0.05, 0.9, 0.9),
    "rows dear": (0.05, 0.05, 0.7, 0.7),
    "levels dear": (0.005, 0.4, 0.7, 0.7),
    "the drafter is too sure": (0.03, 0.1, 0.9, 0.5),
    "the drafter is not sure enough": (0.01, 0.1, 0.5, 0.9),
    "nothing pays": (0.1, 0.5, 0.3, 0.3),
    "hard text": (0.03, 0.12, 0.45, 0.45),
}


@pytest.mark.parametrize("name", WORLDS)
def test_at_least_95_percent_of_the_best_tree_by_hindsight(name):
    """On the average of four generations of 400 rounds, each of which begins with no knowledge."""
    best = max(World(*WORLDS[name]).rate(2000, shape) for shape in (*MENU, PLAIN))
    rates = [World(*WORLDS[name], seed=seed).rate(400, None, Policy(Costs(MENU))) for seed in range(1, 5)]
    assert sum(rates) / len(rates) >= 0.95 * best, (rates, best)


@pytest.mark.parametrize(("said", "true"), [(0.5, 0.02), (0.9, 0.02), (0.3, 0.05)])
def test_at_most_three_percent_slower_than_plain_decoding(said, true):
    """On text of which the drafter knows nothing, and says otherwise; the model has decoded before."""
    costs = Costs(MENU)
    World(0.03, 0.12, said, true, seed=9).rate(200, None, Policy(costs))
    rates = [World(0.03, 0.12, said, true, seed).rate(400, None, Policy(costs)) for seed in range(4)]
    assert min(rates) >= 0.97 * World(0.03, 0.12, said, true).rate(2000, PLAIN), rates


def test_drafts_again_where_text_becomes_easy():
    policy, world = Policy(Costs(MENU)), World(0.03, 0.12, 0.3, 0.05)
    world.rate(100, None, policy)
    assert policy.shape == PLAIN
    world.said = world.true = 0.9
    world.rate(2 * LONGEST_WAIT, None, policy)
    assert policy.shape.nodes > 1


def test_a_few_poor_drafts_are_no_verdict():
    """At 0.85 of plain speed the first drafts of a generation go on, and later ones do not; at 0.5 none does."""
    for share, first in ((0.85, MENU[0]), (0.5, PLAIN)):
        costs = Costs(MENU[:1])
        costs.gains = told(MENU[:1], [0.3, 0.0])[0]
        for _ in range(SURE):
            costs.saw(PLAIN, 0.0, 1.0)
            costs.saw(MENU[0], 0.0, 1.3 / share)
        policy = Policy(costs, MENU[0])
        assert policy.best() == first
        policy._drafts = TRIES
        assert policy.best() == PLAIN


CHAIN, BUSH, WIDE = THREE = tuple(TreeConfig.parse(text) for text in ("3-3-1", "7-3-3", "15-4-6"))


def told(menu, *levels: list[float]) -> np.ndarray:
    """What one draft foretells of each tree of the menu: [1, M, D]."""
    deepest = max(shape.depth for shape in menu)
    return np.array([[each + [0.0] * (deepest - len(each)) for each in levels]])


def test_a_narrow_draft_says_nothing_against_wider_trees():
    """A chain shows its own nodes; what wider trees add to it is what they added when they were last drafted."""
    costs = Costs(THREE)
    costs.drafted(WIDE, told(THREE, [0.6, 0.4, 0.2], [0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.6]), [4], 1.0, 1.0)
    narrow = told(THREE, [0.4, 0.2, 0.0], [0.4, 0.2, 0.0], [0.4, 0.2, 0.0, 0.0])
    costs.drafted(CHAIN, narrow, [3], 1.0, 1.0)
    chain, bush, wide = costs.gains
    assert chain.tolist() == [0.4, 0.2, 0.0, 0.0]
    assert bush == pytest.approx([0.7, 0.6, 0.5, 0.0])  # 0.4 + 0.5 of 0.6, ...
    assert wide == pytest.approx([0.4 + 0.6 * 0.75, 0.2 + 0.8 * 2 / 3, 0.5 / 0.8, 0.5 / 0.9])
    costs.drafted(BUSH, narrow, [3], 1.0, 1.0)
    costs.drafted(CHAIN, narrow, [3], 1.0, 1.0)
    assert costs.gains[1].tolist() == [0.4, 0.2, 0.0, 0.0]  # it showed that it adds nothing here
    new = Costs(THREE)
    new.drafted(CHAIN, narrow, [3], 1.0, 1.0)  # nothing is known of wider ones: they have at least what the chain has
    assert new.gains[1].tolist() == [0.4, 0.2, 0.0, 0.0]


def test_it_does_not_stay_with_a_chain_where_a_bush_of_the_same_cost_gives_more():
    """The first drafts are wide; then the chain's are all that is seen."""
    costs = Costs(THREE)
    for shape, draft, rest in ((PLAIN, 0.0, 1.0), (CHAIN, 0.2, 1.3), (BUSH, 0.2, 1.4), (WIDE, 0.3, 2.5)):
        for _ in range(SURE):
            costs.saw(shape, draft, rest)
    costs.drafted(WIDE, told(THREE, [0.6, 0.4, 0.3], [0.8, 0.7, 0.6], [0.8, 0.7, 0.6, 0.5]), [3], 1.0, 1.0)
    policy = Policy(costs, CHAIN)
    assert policy.best() == BUSH
    narrow = told(THREE, [0.6, 0.4, 0.3], [0.6, 0.4, 0.3], [0.6, 0.4, 0.3, 0.2])
    for _ in range(20):
        costs.drafted(CHAIN, narrow, [1], NEW, ADDS)
    assert policy.best() == BUSH


def test_a_size_that_has_hardly_run_is_given_the_benefit_of_the_doubt():
    costs = Costs(MENU)
    costs.saw(PLAIN, 0.0, 1.0)
    costs.saw(BUSH, 0.3, 1.7)
    costs.saw(BUSH, 0.3, 1.7)
    assert costs.seconds([BUSH])[0] == pytest.approx(2.0)
    between = TreeConfig.parse("3-3-1")  # four rows, between one and eight
    assert costs.seconds([between])[0] == pytest.approx(UNTRIED * (1.3 + 0.3))
    for _ in range(SURE):
        costs.saw(between, 0.3, 1.3)
    assert costs.seconds([between])[0] == pytest.approx(1.6)


def test_a_choice_is_a_function_of_the_numbers():
    runs = []
    for _ in range(2):
        policy, world, shapes = Policy(Costs(MENU)), World(*WORLDS["hard text"]), []
        for _ in range(50):
            shapes.append(policy.shape)
            accepted, scores = world.round(policy.shape)
            policy.saw([accepted], *world.seconds(policy.shape), scores[None])
        runs.append(shapes)
    assert runs[0] == runs[1] and len(set(runs[0])) > 1


def test_expected_counts_what_a_tree_would_hold():
    shape = TreeConfig(6, 2, 2)
    scores = np.log([[0.6, 0.3, 0.36, 0.18, 0.2, 0.05], [0.5, 0.5, 0.1, 0.1, 0.4, 0.3]])
    got = expected(scores, shape, (TreeConfig(6, 2, 2), TreeConfig(3, 2, 2), TreeConfig(2, 2, 1), PLAIN))
    want = [[[0.9, 0.79], [0.9, 0.36], [0.6, 0.36], [0, 0]], [[1.0, 0.9], [1.0, 0.4], [0.5, 0.1], [0, 0]]]
    np.testing.assert_allclose(got, want)


def test_drafts_read_together_teach_what_they_teach_one_by_one():
    """However many rounds lie between two choices."""
    world, taught = World(*WORLDS["hard text"]), []
    rounds = [world.round(MENU[2]) for _ in range(7)]
    for each in (1, 7):
        policy = Policy(Costs(MENU))
        for number, (accepted, scores) in enumerate(rounds):
            policy.costs.unread.append((policy.shape, [accepted], scores[None]))
            if (number + 1) % each == 0:
                policy._learn()
        assert not policy.costs.unread
        taught.append((policy.costs.said, policy.costs.kept, policy.costs.gains, policy.costs.shown))
    for one_by_one, together in zip(*taught, strict=True):
        np.testing.assert_allclose(together, one_by_one, rtol=1e-12)


def test_what_is_not_yet_read_is_learned_before_sequences_leave(tiny):
    model = tiny("qwen2_5_vl")
    policy = Policy(Costs(MENU))
    policy.costs.unread.append((MENU[2], [1], candidates(0.5, MENU[2])[0][None]))
    drafter = sparrow.SparrowDrafter.from_target(Target(model)).in_loop(Target(model), None)[0]
    policy.batch(model, drafter, 1)
    assert policy.costs.gains is not None and not policy.costs.unread


def choices(world: str, scale: float, rounds: int) -> int:
    """Of a generation whose model has decoded before, with rounds of about `scale` seconds."""
    costs = Costs(MENU)
    for number in (64, rounds):
        policy, made, one = Policy(costs), 0, World(*WORLDS[world])
        for _ in range(number):
            before = policy._choice
            accepted, scores = one.round(policy.shape)
            draft, rest = one.seconds(policy.shape)
            policy.saw([accepted], scale * draft, scale * rest, scores[None])
            made += policy._choice != before
    return made


def test_choices_take_a_small_share_of_the_time():
    """Rounds of seconds choose often, those of milliseconds seldom, but for drafts that hardly pay."""
    easy = "rows and levels cheap, text easy"
    assert choices(easy, 1.0, 200) >= 200 // EVERY - 1
    assert choices(easy, 1e-3, 200) <= 200 // SELDOM + 1
    assert choices(easy, 1e-9, 200) >= 200 // SELDOM - 1  # and not never
    assert choices("nothing pays", 1e-3, 16) >= 2


def test_the_last_drafts_of_a_generation_teach_the_next():
    costs, world = Costs(MENU), World(*WORLDS["hard text"])
    first = Policy(costs)
    for _ in range(3):  # the first is not measured, the other two each choose
        accepted, scores = world.round(MENU[2])
        first.shape = MENU[2]
        first.saw([accepted], *world.seconds(MENU[2]), scores[None])
    first._choice = 99
    accepted, scores = world.round(MENU[2])
    first.shape = MENU[2]
    first.saw([accepted], *world.seconds(MENU[2]), scores[None])
    assert len(costs.unread) == 1 and costs.gains is not None
    before = costs.said.copy()
    Policy(costs)
    assert not costs.unread and not np.array_equal(before, costs.said)


def test_a_level_not_drafted_goes_on_as_the_last_two():
    ((levels,),) = expected(np.log([[0.8, 0.4]]), TreeConfig(2, 2, 1), (TreeConfig(4, 4, 1),))
    assert levels == pytest.approx([0.8, 0.4, 0.2, 0.1])


def test_minus_infinity_is_no_chance():
    ((levels,),) = expected(np.array([[0.0, -np.inf]]), TreeConfig(2, 1, 2), (TreeConfig(2, 1, 2),))
    assert levels == [1.0]


def test_costs_between_and_beyond_what_ran():
    costs = Costs(MENU)
    for _ in range(SURE):
        costs.saw(PLAIN, 0.0, 1.0)
    assert costs.seconds([TreeConfig(10, 2, 4)])[0] == pytest.approx(UNTRIED * (1.3 + 2 * 0.12))
    for _ in range(SURE):
        costs.saw(TreeConfig(20, 4, 5), 2.0, 2.0)
    assert costs.seconds([TreeConfig(10, 2, 5)])[0] == pytest.approx(UNTRIED * (1.5 + 2 * 0.5))
    assert costs.seconds([TreeConfig(40, 4, 5)])[0] == pytest.approx(UNTRIED * (3.0 + 2.0))
    assert costs.seconds([PLAIN])[0] == 1.0


def test_one_slow_round_changes_nothing():
    costs = Costs(MENU)
    for seconds in (1.0, 1.1, 30.0, 1.2, 1.0):
        costs.saw(PLAIN, 0.0, seconds)
    assert costs.seconds([PLAIN])[0] == 1.0


def test_a_smaller_tree_costs_no_more_than_a_larger_one():
    """A round that others' work made slow, of a tree that is not chosen again, is not believed for good."""
    costs = Costs(MENU)
    for _ in range(SURE):
        costs.saw(TreeConfig(15, 4, 6), 9.0, 9.0)
        costs.saw(TreeConfig(25, 5, 8), 5.0, 3.0)
    assert costs.seconds([TreeConfig(15, 4, 6)])[0] == pytest.approx(3.0 + 4 * 1.0)


def test_what_few_rounds_say_is_tried_again():
    """One slow round of a large tree: it is taken for what smaller ones let expect, until a few rounds agree."""
    costs, large = Costs(MENU), TreeConfig(40, 4, 6)
    for _ in range(SURE):
        costs.saw(TreeConfig(15, 4, 6), 4.0, 3.0)
    costs.saw(large, 40.0, 50.0)
    assert costs.seconds([large])[0] < 4.0 + 10.0
    for _ in range(SURE):
        costs.saw(large, 4.0, 50.0)
    assert costs.seconds([large])[0] == pytest.approx(54.0)


def test_old_rounds_are_forgotten():
    costs = Costs(MENU)
    for seconds in [1.0] + [2.0] * 9:
        costs.saw(PLAIN, 0.0, seconds)
    assert costs.seconds([PLAIN])[0] == 2.0


def test_the_first_round_costs_what_the_prompt_costs_and_is_not_measured():
    policy = Policy(Costs(MENU))
    world = World(*WORLDS["hard text"])
    accepted, scores = world.round(policy.shape)
    policy.saw([accepted], 100.0, 1.0, scores[None])
    for _ in range(2 * EVERY):
        accepted, scores = world.round(policy.shape)
        policy.saw([accepted], *world.seconds(policy.shape), scores[None])
    assert policy.costs.seconds([policy.shape])[0] < 5


def test_a_round_before_its_capture_is_not_measured():
    policy, world = Policy(Costs(MENU)), World(*WORLDS["hard text"])
    start = policy.shape
    for _ in range(3):
        accepted, scores = world.round(policy.shape)
        policy.saw([accepted], 100.0, 100.0, scores[None], settled=False)
    assert policy.shape == start and not policy.costs.measured
    policy.saw([accepted], *world.seconds(policy.shape), scores[None])
    assert policy.costs.seconds([start])[0] < 5


# --- in generate ---


class Restless(Policy):
    """Goes through the menu, and through drafting nothing, a round or a few each."""

    def best(self, drafts: bool = False) -> TreeConfig:
        turn = (*self.menu, PLAIN, *[self.menu[0]] * 4, *[self.menu[-1]] * 4, *[PLAIN] * 4)
        return turn[self._rounds % len(turn)]

    def _choose(self, seconds: float) -> None:
        self.shape = self.best()


@pytest.fixture
def restless(monkeypatch):
    """Every generation changes its tree as often as it can."""
    monkeypatch.setattr(module, "EVERY", 1)
    monkeypatch.setattr("sparrow.decoding.generate.Policy", Restless)


def auto(model, inputs, drafter=None, **options):
    drafter = drafter or sparrow.SparrowDrafter.from_target(Target(model))
    return sparrow.generate(model, drafter, **inputs, max_new_tokens=40, eos_token_id=None, tree="auto", **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_is_chosen_the_tokens_are_the_same(tiny, greedy, restless, family):
    model, inputs = tiny(family), sample_inputs(family)
    out = auto(model, inputs)
    assert torch.equal(out.sequences, greedy(model, inputs, 40))
    assert "none" in out.stats.trees and len(out.stats.trees) > 4 and sum(out.stats.trees.values()) == out.stats.rounds


def test_sampled_tokens_are_the_same(tiny, restless):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    options = {"do_sample": True, "seed": 5, "top_p": 0.9, "repetition_penalty": 1.2}
    plain = sparrow.generate(model, None, **inputs, max_new_tokens=40, eos_token_id=None, **options)
    assert torch.equal(auto(model, inputs, **options).sequences, plain.sequences)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_captured_rounds_change_their_trees_too(tiny, greedy, restless, monkeypatch, num_layers):
    """Each shape has a graph of its own, in calls that follow as well."""
    monkeypatch.setitem(runner.GRAPHS, "cpu", Emulated)
    Emulated.made.clear()
    runner._rooms.clear()
    model = tiny("qwen2_5_vl")
    drafter = sparrow.SparrowDrafter.from_target(Target(model), num_layers=num_layers)
    for seed in range(3):
        inputs = sample_inputs("qwen2_5_vl", seed=seed)
        out = auto(model, inputs, drafter)
        assert torch.equal(out.sequences, greedy(model, inputs, 40))
        del out
    replays = [graph.replays for graph in Emulated.made]  # one a shape, for all calls; first the drafter's own
    assert len(replays) == 4 and replays[0] >= 1 and min(replays[1:]) >= 3
    runner._rooms.clear()


@pytest.mark.parametrize("captured", [False, True])
def test_scores_are_not_written_over(tiny, monkeypatch, captured):
    """They are read rounds later; a captured round writes each time to the same memory."""
    noted = []

    class Noting(Restless):
        def saw(self, accepted, draft, rest, scores, settled=True):
            noted.append((scores, scores.clone()))
            super().saw(accepted, draft, rest, scores, settled)

    if captured:
        monkeypatch.setitem(runner.GRAPHS, "cpu", Emulated)
    monkeypatch.setattr("sparrow.decoding.generate.Policy", Noting)
    runner._rooms.clear()
    out = auto(tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl"))
    assert ("replay" in out.stats.seconds) == captured and len(noted) > 10
    assert all(torch.equal(scores, then) for scores, then in noted)
    del out
    runner._rooms.clear()


class Kept(TextDrafter):
    """Keeps its last state, and how much ever waited."""

    most = 0

    def draft(self, state, shape):
        tree = super().draft(state, shape)
        self.state, self.most = state, max(self.most, len(state.draft.waiting))
        return tree


def test_tokens_of_rounds_that_drafted_nothing_are_written_later_as_at_once(tiny, restless):
    """By a draft that follows, or at the end by what keeps them for a next generation."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    drafter, at_the_end = sparrow.SparrowDrafter.from_target(Target(model)), []
    for new in (32, 35, 38, 41):
        kept, waited = [], []
        for tree in ("8-3-4", "auto"):
            own = Kept(drafter)
            sparrow.generate(model, own, **inputs, max_new_tokens=new, eos_token_id=None, tree=tree)
            waited.append(own.most)
            at_the_end.append(len(own.state.draft.waiting))
            kept.append(own.keep(own.state.draft, own.state.error))
        assert waited[0] == 0 and waited[1] > 1
        for name in ("keys", "values"):
            torch.testing.assert_close(kept[1][name], kept[0][name], atol=1e-4, rtol=1e-3)
    assert max(at_the_end) > 0 and 0 in at_the_end[1::2]


def test_what_waits_is_joined_sequence_by_sequence():
    b, parts = 3, []
    for t in (1, 1, 4):
        rows = torch.arange(b * t, dtype=torch.int32).view(b, t)
        rows[1, 0] = -1
        count = torch.tensor([t, t, t], dtype=torch.int32)
        parts.append(Pending(torch.randint(9, (b, t)), rows, torch.randn(b * t, 2), torch.randint(9, (b, t)), count))
    order = torch.tensor([2, 0])
    for joined, which in (
        (Pending.joined(parts), [0, 1, 2]),
        (Pending.joined(parts).select(order), [2, 0]),
        (Pending.joined([part.select(order) for part in parts]), [2, 0]),
    ):
        for place, own in enumerate(which):
            for name in ("tokens", "positions"):
                assert torch.equal(getattr(joined, name)[place], torch.cat([getattr(p, name)[own] for p in parts]))
            assert joined.num_rows[place] == 6
            states = torch.cat([part.hidden[part.row_index[own]] for part in parts])
            true = torch.cat([part.row_index[own] for part in parts]) >= 0
            assert torch.equal(joined.row_index[place] >= 0, true)
            assert torch.equal(joined.hidden[joined.row_index[place]][true], states[true])


def test_a_token_alone_has_its_own_states_only():
    rows = torch.tensor([[4], [-1], [0]], dtype=torch.int32)
    whole = Pending(
        torch.tensor([[7], [8], [9]]), rows, torch.randn(6, 2), torch.tensor([[1], [2], [3]]), torch.ones(3)
    )
    alone = whole.alone()
    assert torch.equal(alone.tokens, whole.tokens) and alone.hidden.shape == (3, 2)
    assert alone.row_index.tolist() == [[0], [-1], [2]]
    assert torch.equal(alone.hidden[0], whole.hidden[4]) and torch.equal(alone.hidden[2], whole.hidden[0])


def test_what_is_known_of_a_model_serves_the_next_call(tiny):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    auto(model, inputs, drafter)
    (costs,) = [
        costs
        for key, costs in known._costs[model].items()
        if key[0] == drafter.in_loop(Target(model), None)[0].identity()
    ]
    assert costs.gains is not None and costs.seconds([PLAIN])[0] > 0


def test_a_new_length_begins_with_what_the_nearest_one_knows_of_the_drafter(tiny):
    """What verifying costs there is to be seen: of another context it would be too little, or too much."""
    model, tree = tiny("qwen2_5_vl"), MENU[2]
    for context, said, drafter in ((100, 0.25, "a"), (1000, 0.5, "a"), (60, 1.0, "b")):
        costs = costs_of(model, drafter, (tree,), context)
        costs.saw(tree, 3.0 * said, 1.0)
        costs.drafted(tree, told((tree,), [said] * 3), [1], 1.0, 1.0)
    new = costs_of(model, "a", (tree,), 60)
    assert new.gains[0].tolist() == [0.25] * 3 and not new.measured
    new.saw(tree, 9.0, 9.0)
    assert costs_of(model, "a", (tree,), 100).seconds([tree])[0] < 2.0


def test_it_is_the_default_where_the_drafter_can_change_its_tree(tiny):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    text = sparrow.SparrowDrafter.from_target(Target(model))
    seen = sparrow.SparrowDrafter.from_target(Target(model), positions="sequence")
    for drafter, tree, used in (
        (text, None, "auto"),
        (seen, None, "auto"),
        (text, "own", text.config.tree),
        (text, "3-2-2", "3-2-2"),
        (None, None, "none"),
        (None, "own", "none"),
        (ScriptedDrafter(inputs["input_ids"][0], lambda r: 0), None, str(TreeConfig())),
    ):
        assert sparrow.generate(model, drafter, **inputs, max_new_tokens=4, tree=tree).stats.tree == used


def test_a_drafter_without_scores_is_refused(tiny):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    for drafter in (None, sparrow.SpecVLM(), ScriptedDrafter(inputs["input_ids"][0], lambda r: 0)):
        with pytest.raises(ValueError, match='tree="auto" needs a drafter that scores its candidates'):
            sparrow.generate(model, drafter, **inputs, max_new_tokens=4, tree="auto")
