"""Training sequences, passes and losses against slow, literal computations."""

import pytest
import torch
import torch.nn.functional as F

import sparrow
from sparrow.targets.adapter import Target
from sparrow.targets.teacher import teacher_states
from sparrow.training import losses
from sparrow.training.passes import Passes
from sparrow.training.recipe import Recipe
from sparrow.training.sequences import collate, sequence, stored
from sparrow.training.states import batches, pack
from tests.drafters.test_draft_state import full_states
from tests.videos import FAMILIES, sample_inputs

FAMILY, LAYER, VISUAL_LAYER = "qwen2_5_vl", 3, 2


def answer(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 280, (length,), generator=torch.Generator().manual_seed(seed))


def teacher(tiny, seed: int, videos: int = 1, length: int = 9, family: str = FAMILY):
    inputs = sample_inputs(family, seed=seed, videos=videos, text=4 + seed)
    target = Target(tiny(family))
    return teacher_states(target, inputs, answer(length, seed), range(5))


def drafter_of(tiny, **options):
    drafter = sparrow.SparrowDrafter.from_target(Target(tiny(FAMILY)), hidden_norm=True, hidden_layer=LAYER, **options)
    with torch.no_grad():
        drafter.hidden_norm.weight.uniform_(0.5, 1.5)  # a norm that matters
    return drafter


@pytest.mark.parametrize("images", [0, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_states_are_those_of_one_forward(tiny, family, images):
    model, inputs, ids = tiny(family), sample_inputs(family, videos=2, images=images), answer(7)
    got = teacher_states(Target(model), inputs, ids, [0, 2, 4])
    whole = torch.cat([inputs["input_ids"], ids[None]], dim=1)
    for layer in (0, 2, 4):
        torch.testing.assert_close(got.states[layer], full_states(model, inputs, whole, layer)[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(got.tokens, whole[0])
    assert torch.equal(got.is_text, (whole[0] != 291) & (whole[0] != 290))
    assert torch.equal(got.position[-8:].diff(), torch.ones(7, dtype=torch.int64))


def test_teacher_states_refuse(tiny):
    target, inputs = Target(tiny(FAMILY)), sample_inputs(FAMILY)
    with pytest.raises(ValueError, match=r"layers must lie in \[0, 4\], got 5"):
        teacher_states(target, inputs, answer(3), [5])
    with pytest.raises(ValueError, match=r"answer must be \[A\], A >= 1"):
        teacher_states(target, inputs, answer(0), [1])


def literal_rows(t, length):
    """(token, h row, previous place is text, is text, layer-m* row) of every place of the whole sequence, by loops."""
    rows = []
    for at in range(len(t.tokens)):
        h = t.states[LAYER][at - 1] if at else torch.zeros(64)
        rows.append((int(t.tokens[at]), h, at > 0 and bool(t.is_text[at - 1]), bool(t.is_text[at]), t.states[2][at]))
    return rows


def literal_positions(t, rule, numbers):
    """Text rows count text rows (or are the target's); visual rows follow the rule, by loops."""
    places, n = [], 0
    for at in range(len(t.tokens)):
        if t.is_text[at]:
            places.append(n if numbers == "text" else int(t.position[at]))
            n += 1
        else:
            places.append(None)
    for at in reversed(range(len(t.tokens))):
        if places[at] is None:
            if rule == "target":
                places[at] = int(t.position[at])
            elif t.is_text[at + 1]:
                places[at] = places[at + 1] - 1
            else:
                places[at] = places[at + 1] - (1 if rule == "before" else 0)
    return torch.tensor(places)


@pytest.mark.parametrize(("rule", "numbers"), [("before", "text"), ("same", "text"), ("target", "target")])
@pytest.mark.parametrize("videos", [0, 1, 2])
def test_paper_passes_equal_the_literal_sequence(tiny, videos, rule, numbers):
    """IVSB and MTP on the interleaved sequence, causal attention over all of it, as the paper writes it."""
    drafter, recipe = drafter_of(tiny), Recipe(mtp_depth=2, visual_positions=rule)
    teachers = [teacher(tiny, seed, videos, length) for seed, length in ((0, 9), (3, 5))]
    batch = collate([sequence(stored(t, n, [LAYER], VISUAL_LAYER), numbers, rule, None) for t, n in
                     zip(teachers, (9, 5), strict=True)])  # fmt: skip
    with torch.no_grad():
        got = list(Passes(drafter, recipe).outputs(batch))
        assert len(got) == 3
        for b, t in enumerate(teachers):
            rows, positions = literal_rows(t, 9), literal_positions(t, rule, numbers)
            out = None
            for k in range(3):
                x = torch.empty(len(rows), 64)
                for at, (token, h, follows_text, is_text, visual) in enumerate(rows):
                    reused = drafter.reuse(out[at - 1] if k and follows_text else h)
                    x[at] = drafter.fc(torch.cat([drafter.embedding[token], reused])) if is_text else visual
                out = drafter.layer(x[None], positions[None])[0]
                n = int(t.is_text.sum())
                torch.testing.assert_close(got[k][b, :n], out[t.is_text], atol=1e-4, rtol=1e-4)


def test_text_only_sequences_hold_no_visual_rows(tiny):
    drafter, t = drafter_of(tiny), teacher(tiny, 0)
    batch = collate([sequence(stored(t, 9, [LAYER], None), "text", "before", None)])
    assert batch.visual.shape == (1, 0, 64) and batch.visual_positions.shape == (1, 0)
    with torch.no_grad():
        (got,) = Passes(drafter, Recipe(mtp_depth=0)).outputs(batch)
        want = drafter(batch.tokens, drafter.reuse(batch.hidden), torch.arange(batch.tokens.shape[1])[None])
    torch.testing.assert_close(got, want)
    first_after_video = int((~t.is_text).nonzero()[-1]) + 1
    row = int(t.is_text[:first_after_video].sum())
    assert torch.equal(batch.hidden[0, row], t.states[LAYER][first_after_video - 1])  # the last visual row's state


def test_fused_states(tiny):
    """Several layers' states are joined in the order asked for, mapped, normed; own outputs are not mapped."""
    drafter, t = drafter_of(tiny, fused_layers=(1, 4)), teacher(tiny, 0)
    kept = stored(t, 9, drafter.config.state_layers, None)
    batch = collate([sequence(kept, "text", "before", None)])
    text, out = t.is_text.nonzero()[:, 0], torch.randn(2, 64)
    with torch.no_grad():
        for row in (1, 7, len(text) - 1):
            joined = torch.cat([t.states[k][text[row] - 1] for k in (LAYER, 1, 4)])
            assert torch.equal(batch.hidden[0, row], joined)
            torch.testing.assert_close(drafter.reuse(joined), drafter.hidden_norm(drafter.fuse.weight @ joined))
        assert torch.equal(drafter.reuse(out), drafter.hidden_norm(out))
        assert not batch.hidden[0, 0].any() and not drafter.reuse(batch.hidden[0, 0]).any()
    inputs, target = sample_inputs(FAMILY), Target(tiny(FAMILY))
    with torch.no_grad(), target._states((LAYER, 1, 4)) as states:
        whole = target.model(**inputs, output_hidden_states=True).hidden_states
    assert torch.equal(states[0], torch.cat([whole[k] for k in (LAYER, 1, 4)], dim=-1))


@pytest.mark.parametrize(("visual", "num_layers"), [(True, 1), (False, 1), (False, 2)])
def test_tree_passes_equal_growing_a_chain(tiny, visual, num_layers):
    """A row of pass k = the k-th node of a chain drafted behind true rows, one by one."""
    drafter, depth, length = drafter_of(tiny, num_layers=num_layers), 3, 7
    t = teacher(tiny, 1, 1, length)
    kept = stored(t, length, [LAYER], VISUAL_LAYER if visual else None)
    batch = collate([sequence(kept, "text", "before", None)])
    tokens, hidden, first = batch.tokens[0], batch.hidden[0], int(kept["first"])
    with torch.no_grad():
        got = list(Passes(drafter, Recipe(mtp_depth=depth, mtp_attention="tree")).outputs(batch))
        for root in range(first, len(tokens)):
            past = [drafter.fc(torch.cat([drafter.embedding[tokens[s]], drafter.reuse(hidden[s])])) for s in
                    range(root + 1)]  # fmt: skip
            for k in range(min(depth + 1, len(tokens) - root)):
                x = torch.stack([*batch.visual[0], *past])
                numbers = torch.cat([batch.visual_positions[0], torch.arange(root + k + 1)])
                out = _attend_in_order(drafter, x, numbers, batch, len(past))
                torch.testing.assert_close(got[k][0, root + k], out, atol=1e-4, rtol=1e-4)
                if root + k + 1 < len(tokens):
                    embedded = drafter.embedding[tokens[root + k + 1]]
                    past.append(drafter.fc(torch.cat([embedded, drafter.reuse(out)])))


def _attend_in_order(drafter, x, numbers, batch, text):
    """The last row's output; it sees everything (all visual rows lie before the answer), and others what they saw."""
    visible = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    return drafter.layer(x[None], numbers[None], visible[None, None])[0, -1]


def test_rows_with_a_loss(tiny):
    """From the first answer token on, and n passes at the n-th; the last row foresees nothing."""
    t = teacher(tiny, 0, 1, 5)
    kept = stored(t, 5, [LAYER], None)
    s = sequence(kept, "text", "before", None)
    prompt = int(t.is_text.sum()) - 5
    assert s.loss_pass.tolist() == [0] * prompt + [1, 2, 3, 4, 0]
    assert collate([s, s]).counts(3).tolist() == [8, 6, 4]
    for row in range(prompt, prompt + 4):  # what the output stands for: the target's states at the same place
        place = int(kept["index"][row])
        assert torch.equal(s.state[row], t.states[LAYER][place])
        assert torch.equal(s.final[row], t.states[4][place])


def test_one_text_token_parts_two_blocks():
    index = torch.tensor([0, 3, 6, 7, 8])  # places 1, 2 and 4, 5 are visual
    kept = {"tokens": index, "index": index, "position": torch.arange(9), "first": torch.tensor([3])}
    kept |= {"hidden": torch.zeros(5, 1, 2), "visual": torch.zeros(4, 2)}
    s = sequence(kept, "text", "before", None)
    assert s.visual_block.tolist() == [1, 1, 2, 2] and s.visual_before.tolist() == [0, 2, 4, 4, 4]
    assert s.follows_text.tolist() == [False, False, False, True, True]


def test_noise_is_uniform_and_relative_to_each_row(tiny):
    kept = stored(teacher(tiny, 0), 9, [LAYER], VISUAL_LAYER)
    noise = torch.rand(kept["hidden"].shape) - 0.5
    plain, noisy = (sequence(kept, "text", "before", n) for n in (None, noise * 0.2))
    rms = plain.hidden.pow(2).mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(noisy.hidden - plain.hidden, noise[:, 0] * 0.2 * rms, atol=1e-5, rtol=1e-4)
    assert torch.equal(noisy.state, plain.state) and torch.equal(noisy.visual, plain.visual)


def test_losses_by_formula():
    g = torch.Generator().manual_seed(0)
    p, log_q = torch.randn(4, 7, generator=g).softmax(-1), torch.randn(4, 7, generator=g).log_softmax(-1)
    out, state = torch.randn(4, 5, generator=g) * 2, torch.randn(4, 5, generator=g)
    for r in range(4):
        want = -sum(float(p[r, x]) * float(log_q[r, x]) for x in range(7))
        assert float(losses.cross_entropy(p, log_q)[r]) == pytest.approx(want, rel=1e-5)
        overlap = sum(min(float(p[r, x]), float(log_q[r, x].exp())) for x in range(7))
        assert float(losses.refusal(p, log_q)[r]) == pytest.approx(1 - overlap, abs=1e-6)
        errors = [abs(float(out[r, e] - state[r, e])) for e in range(5)]
        want = sum(0.5 * d * d if d < 1 else d - 0.5 for d in errors) / 5
        assert float(losses.feature(out, state)[r]) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("trimmed", [False, True])
def test_total_loss_and_metrics(tiny, trimmed):
    """The weighted sum over passes, each averaged over its rows, from logits computed apart."""
    target, ids = Target(tiny(FAMILY)), torch.arange(3, 280, 2)
    drafter = drafter_of(tiny, draft_vocab=trimmed)
    if trimmed:
        drafter.set_draft_vocab(ids)
        drafter.attach(target)
    recipe = Recipe(mtp_depth=1, mtp_decay=0.7, cross_entropy=0.9, feature=0.3, acceptance=0.4, temperature=1.3)
    t = teacher(tiny, 2)
    batch = collate([sequence(stored(t, 9, [LAYER], VISUAL_LAYER), "text", "before", None)])
    with torch.no_grad():
        total, metrics = Passes(drafter, recipe)(batch, batch.counts(2))
        outs = list(Passes(drafter, recipe).outputs(batch))
        text, want = t.is_text.nonzero()[:, 0], 0.0
        first = len(text) - 9
        for k in range(2):
            terms, agreed, accepted = [], 0, 0.0
            for row in range(first + k, len(text) - 1):
                logits = target.head(t.states[4][text[row]])
                mine = target.head(drafter.norm(outs[k][0, row]))
                p, names = (logits / 1.3).softmax(-1), torch.arange(300)
                if trimmed:
                    p, mine, names = p[ids], mine[ids], ids
                log_q = mine.log_softmax(-1)
                overlap = torch.minimum(p, log_q.exp()).sum()
                regression = F.smooth_l1_loss(outs[k][0, row], t.states[LAYER][text[row]])
                terms.append(-0.9 * (p * log_q).sum() + 0.4 * (1 - overlap) + 0.3 * regression)
                agreed += int(names[log_q.argmax()] == logits.argmax())
                accepted += float(overlap)
            want += 0.7**k * float(sum(terms)) / len(terms)
            assert metrics[k].tolist() == pytest.approx([float(sum(terms)), agreed, accepted], rel=1e-3)
    assert float(total) == pytest.approx(want, rel=1e-4)


def test_padding_changes_nothing(tiny):
    """Losses of a padded batch are those of its sequences alone."""
    drafter, recipe = drafter_of(tiny), Recipe(mtp_depth=2, mtp_attention="tree")
    parts = [sequence(stored(teacher(tiny, seed, videos, n), n, [LAYER], VISUAL_LAYER), "text", "before", None)
             for seed, videos, n in ((0, 2, 9), (3, 0, 4), (1, 1, 6))]  # fmt: skip
    with torch.no_grad():
        _, together = Passes(drafter, recipe)(collate(parts), torch.ones(3))
        alone = [Passes(drafter, recipe)(collate([part]), torch.ones(3))[1] for part in parts]
    torch.testing.assert_close(together, sum(alone), atol=1e-3, rtol=1e-4)


def test_batches_hold_everything_once_an_epoch_and_keep_the_budget():
    lengths = [(5 + i % 7, 3 * (i % 4)) for i in range(40)]
    stream = batches(lengths, 60, seed=1)
    seen = []
    while len(seen) < 40:
        group = next(stream)
        assert len(group) * (max(lengths[i][0] for i in group) + max(lengths[i][1] for i in group)) <= 60
        seen += group
    assert sorted(seen) == list(range(40)) and seen != list(range(40))
    with pytest.raises(ValueError, match=r"longest sequence \(20 rows\), got 10"):
        list(pack(range(40), lengths, 10))
