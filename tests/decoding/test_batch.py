"""The loop's state and operators carry a batch: every row of a ragged batch goes as it goes alone."""

import pytest
import torch

import sparrow_ext
from sparrow.decoding.loop import decode_round
from sparrow.decoding.stats import Clock
from sparrow.drafters.network import SparrowDrafter
from sparrow.drafters.protocol import DecodeState, Drafter, Pending
from sparrow.drafters.text import DraftCache, catch_up, grow
from sparrow.sampling import Sampler, SamplingRules
from sparrow.targets.adapter import Target
from sparrow.tree import DraftTree, TreeConfig
from tests.decoding.scripted import ScriptedDrafter

SHAPE = TreeConfig(15, 5, 3)
LENGTH = 40


class Together(Drafter):
    """One scripted drafter per row; keeps what is accepted."""

    def __init__(self, drafters):
        self.drafters = drafters

    def draft(self, state, shape):
        trees = []
        for row, drafter in enumerate(self.drafters):
            alone = DecodeState.after_prompt(
                None, state.root[row : row + 1], state.length[row : row + 1], state.position[row : row + 1],
                None, None, state.error, shape,
                torch.empty(0),
            )  # fmt: skip
            trees.append(drafter.draft(alone, shape))
        return DraftTree(*(torch.cat(parts) for parts in zip(*(tree[:5] for tree in trees), strict=True)))

    def accept(self, draft, accepted):
        self.tokens = accepted.tokens.clone()


def test_ragged_rounds(tiny, greedy):
    """Three prompts of one length, accepted paths of different lengths: each row's tokens are its own greedy output."""
    model = tiny("llava_onevision")
    target = Target(model)
    prompts = torch.randint(3, 280, (3, 11), generator=torch.Generator().manual_seed(0))
    truth = [
        greedy(model, {"input_ids": p[None], "attention_mask": torch.ones(1, 11, dtype=torch.int64)}, LENGTH + 8)[0]
        for p in prompts
    ]
    scripts = [lambda r: r % 6, lambda r: 5 - r % 6, lambda r: 0]
    cache = target.new_cache(11 + 2 * LENGTH + SHAPE.nodes)
    positions = torch.arange(11).expand(3, 11)
    with torch.no_grad():
        prefill = target.prefill(
            prompts, {target.cache_argument: cache, "position_ids": positions, "use_cache": True}, 0
        )
    sampler = Sampler(SamplingRules(), prompts, target.vocab_size)
    state = DecodeState.after_prompt(
        cache, sampler.first(prefill.logits, prompts), torch.full((3,), 12), prefill.next_position,
        sampler, None, sparrow_ext.error_word(prompts.device), SHAPE, torch.empty(0),
    )  # fmt: skip
    rows = [[int(t)] for t in state.root]
    drafter, clock = (
        Together([ScriptedDrafter(t, s) for t, s in zip(truth, scripts, strict=True)]),
        Clock(prompts.device),
    )
    with target.verifying():
        for _ in range(8):
            before = state.length.clone()
            counts = [len(new) for new in decode_round(target, drafter, state, SHAPE, clock, lambda row, token: False)]
            assert torch.equal(state.length - before, torch.tensor(counts))
            for row, n in enumerate(counts):
                rows[row] += drafter.tokens[row, :n].tolist()
    assert [len(r) for r in rows] == [1 + 8 + 1 + 2 + 3 + 4 + 5 + 1, 1 + 8 + 5 + 4 + 3 + 2 + 1 + 5 + 4, 9]
    for row, tokens in enumerate(rows):
        assert tokens == truth[row][11 : 11 + len(tokens)].tolist()
    assert state.cache.lengths.tolist() == [11 + len(r) - 1 for r in rows]


def test_ragged_drafting(tiny):
    """Catch-up rows beyond num_rows are nothing: trees and cache rows are bit-equal to those of each row alone."""
    drafter = SparrowDrafter.from_target(Target(tiny("qwen2_5_vl")))
    g = torch.Generator().manual_seed(3)
    tokens, hidden = torch.randint(3, 280, (3, 6), generator=g), torch.randn(3, 6, 64, generator=g)
    counts = torch.tensor([6, 1, 3], dtype=torch.int32)

    def run(rows: slice):
        b = tokens[rows].shape[0]
        index = (torch.arange(6) + 6 * torch.arange(b)[:, None]).int()
        pending = Pending(tokens[rows], index, hidden[rows].flatten(0, 1), torch.zeros(b, 6).long(), counts[rows])
        cache = DraftCache.empty(drafter, b, 8)
        cache.keys.zero_(), cache.values.zero_()
        out, position = catch_up(drafter, pending, cache)
        roots = tokens[rows].gather(1, (counts[rows] - 1).long()[:, None])[:, 0]
        return grow(drafter, roots, out, position, cache, TreeConfig(20, 3, 4)), cache

    tree, cache = run(slice(None))
    for row in range(3):
        alone_tree, alone = run(slice(row, row + 1))
        for a, b in zip(tree, alone_tree, strict=True):
            assert torch.equal(a[row : row + 1], b)
        n = int(counts[row])
        assert torch.equal(cache.keys[row, :n], alone.keys[0, :n]) and cache.lengths[row] == n


def test_text_rows_of_a_ragged_batch():
    """Prompts with different numbers of text tokens: alignment of tokens, previous states and the root."""
    from sparrow.drafters.text import text_rows

    ids = torch.tensor([[5, 9, 9, 6, 7], [9, 9, 9, 9, 8]])
    hidden, positions = torch.zeros(2, 5, 4), torch.arange(5).expand(2, 5)
    pending = text_rows(ids, ids != 9, hidden, positions, torch.tensor([70, 80]))
    assert pending.num_rows.tolist() == [4, 2]
    assert pending.tokens[0].tolist() == [5, 6, 7, 70] and pending.tokens[1, :2].tolist() == [8, 80]
    assert pending.row_index[0].tolist() == [-1, 2, 3, 4] and pending.row_index[1, :2].tolist() == [5 + 3, 5 + 4]
    assert pending.positions[0].tolist() == [0, 3, 4, 5] and pending.positions[1, :2].tolist() == [4, 5]


@pytest.mark.parametrize("seed", [0, 3])
def test_each_row_has_its_own_seed(seed):
    prompt = torch.tensor([[1, 2], [1, 2], [1, 2]])
    sampler = Sampler(SamplingRules(temperature=1.0, seed=seed), prompt, 50)
    logits = torch.zeros(3, 50)
    assert sampler.first(logits, prompt).unique().numel() > 1
