"""Training in bounded memory: the same numbers as without, and peaks that do not depend on rows times vocabulary."""

import re
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

import sparrow
from sparrow.targets.adapter import Target
from sparrow.training import losses, states
from sparrow.training.answers import Answer
from sparrow.training.distributed import Ranks
from sparrow.training.passes import Passes
from sparrow.training.recipe import Recipe, States
from sparrow.training.run import Run
from sparrow.training.sequences import collate, sequence, stored
from sparrow.training.trainer import Trainer
from tests.training.cases import settings
from tests.training.test_sequences import FAMILY, LAYER, VISUAL_LAYER, drafter_of, teacher

SETTINGS = {
    "all losses": {"cross_entropy": 0.9, "feature": 0.3, "acceptance": 0.4, "temperature": 1.3},
    "cross-entropy alone": {"feature": 0.0},
    "acceptance alone": {"cross_entropy": 0.0, "feature": 0.0, "acceptance": 1.0},
}


def unchunked(passes: Passes, batch, counts):
    """The total loss as one graph over all rows and the whole vocabulary."""
    d, r, rows, total = passes.drafter, passes.recipe, batch.loss_pass > 0, 0.0
    p = (d.tables.head(batch.final[rows]) / r.temperature).softmax(-1)
    p = p[:, d.draft_vocab_ids] if d.config.draft_vocab else p
    for k, out in enumerate(passes.outputs(batch)):
        log_q, used = d.logits(out[rows]).log_softmax(-1), batch.loss_pass[rows] > k
        loss = r.cross_entropy * losses.cross_entropy(p, log_q) + r.acceptance * losses.refusal(p, log_q)
        loss = loss + r.feature * losses.feature(out[rows], batch.state[rows])
        total = total + r.mtp_decay**k * (loss * used).sum() / counts[k]
    return total


def a_drafter(tiny, trimmed: bool, own: bool):
    """Its own head, where it has one, is not the target's."""
    target, ids = Target(tiny(FAMILY)), torch.arange(3, 280, 2)
    drafter = drafter_of(tiny, draft_vocab=trimmed, own_head=own)
    rows = drafter.lm_head.weight.data * 0.7 if own else None
    if trimmed:
        drafter.set_draft_vocab(ids)
    if rows is not None:
        drafter.set_head(rows[ids] if trimmed else rows)
    drafter.attach(target)
    return drafter.train().requires_grad_(True)


def a_batch(tiny, *seeds):
    made = [stored(teacher(tiny, seed), 9, [LAYER], VISUAL_LAYER) for seed in seeds]
    return collate([sequence(kept, "text", "before", None) for kept in made])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_are_those_of_one_graph(tiny, monkeypatch, name, trimmed, own, checkpointing):
    drafter = a_drafter(tiny, trimmed, own)
    recipe = Recipe(mtp_depth=2, mtp_attention="tree", mtp_decay=0.7, **SETTINGS[name])
    batch = a_batch(tiny, 0, 2)
    counts = batch.counts(3)
    want = torch.autograd.grad(unchunked(Passes(drafter, recipe), batch, counts), list(drafter.parameters()))
    for chunk in (1, 5 * drafter.num_draft_tokens, 2**24):  # of 1, 5 and all rows
        monkeypatch.setattr(losses, "CHUNK", chunk)
        total, metrics = Passes(drafter, recipe, checkpointing)(batch, counts)
        got = torch.autograd.grad(3 * total, list(drafter.parameters()))
        assert len(got) == len(want) and not metrics.requires_grad
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, 3 * other, atol=1e-5, rtol=1e-4)


def test_steps_on_parts_are_steps_on_the_whole(tiny, tmp_path):
    """Batches of different sizes, added up, move the weights as one batch of all does."""
    weights, drafter = [], a_drafter(tiny, True, True)
    before = {k: v.clone() for k, v in drafter.state_dict().items()}
    for name, parts in (("a", [(0, 1, 2)]), ("b", [(0, 1), (2,)])):
        drafter.load_state_dict(before)
        config = settings(tmp_path / name, optimisation={"clip_value": None, "accumulate": len(parts)})
        trainer = Trainer(drafter, config, Ranks(), Run(tmp_path / name / "run", config))
        trainer.optimisers = (torch.optim.SGD(drafter.parameters(), lr=0.1),)
        trainer._step([a_batch(tiny, *seeds) for seeds in parts])
        weights.append({k: v.clone() for k, v in drafter.state_dict().items()})
    moved = 0
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], atol=1e-5, rtol=1e-4)
        moved += int(not torch.equal(value, before[key]))
    assert moved >= 8


class Counted:
    """States of 10,000 answers; how many are in memory at once is counted."""

    config = States(check=0)

    def __init__(self):
        self.alive = self.most = self.loads = 0

    def load(self, answer):
        text = answer.text_tokens + len(answer.ids)
        hidden = torch.ones(text, 1, 4)
        self.alive += 1
        self.loads += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(hidden, self.gone)
        rows = torch.arange(text)
        return {"tokens": rows, "index": rows, "position": rows, "first": torch.tensor([answer.text_tokens]),
                "hidden": hidden}  # fmt: skip

    def gone(self) -> None:
        self.alive -= 1


def ten_thousand() -> list[Answer]:
    return [Answer(i, 0.0, (3,) * (2 + i % 7), 5 + i % 11, 0, {}) for i in range(10_000)]


def test_the_states_of_ten_thousand_clips_are_written_one_by_one(tmp_path, monkeypatch):
    live, folders = Counted(), set()

    def write(file, kept):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        folders.add(file.parent.name)

    monkeypatch.setattr(states, "write_tensors", write)
    cached = states.CachedStates(tmp_path)
    assert cached.fill(live, ten_thousand(), {}, Ranks()) == 0
    assert (live.loads, live.most, live.alive) == (10_000, 1, 0) and len(folders) == 10


def test_training_on_ten_thousand_clips_holds_a_step(tiny, tmp_path):
    """Whatever the number of clips: the batches of one step, and what one of them is collated from."""
    live, each, alive, held = Counted(), 2, weakref.WeakValueDictionary(), []
    more = {"batch_rows": 120, "steps": 300, "accumulate": each}
    config = settings(tmp_path, recipe={"visual": False, "noise": 0.0}, optimisation=more)
    trainer = Trainer(a_drafter(tiny, False, False), config, Ranks(), Run(tmp_path / "run", config))

    def step(parts):
        assert all(part.tokens.numel() <= 120 for part in parts) and len(parts) == each
        for part in parts:
            alive[id(part)] = part
        held.append(len(alive))
        trainer.step += 1

    trainer._step, trainer._validate, trainer._save = step, lambda *_: None, lambda: None
    trainer.run_to_the_end(states.Sequences(live, ten_thousand(), config), None, None, None)
    assert len(held) == 300 and live.loads > 4000
    assert max(held) == each and live.most <= 120 // 7  # the shortest sequence has 7 rows


PEAK = """
import resource, sys, types, torch
torch.set_num_threads(1)
from torch import nn
from sparrow.training.losses import distribution_losses
from sparrow.training.recipe import Recipe, States
rows, vocabulary, size, passes = map(int, sys.argv[1:])
g = torch.Generator().manual_seed(0)
head = nn.Linear(size, vocabulary, bias=False).requires_grad_(False)
config = types.SimpleNamespace(own_head=False, draft_vocab=False)
drafter = types.SimpleNamespace(config=config, num_draft_tokens=vocabulary, embedding=head.weight, logits_of=head,
                                tables=types.SimpleNamespace(head=head))
inputs = torch.randn(passes, rows, size, generator=g).requires_grad_()
final, weights = torch.randn(rows, size, generator=g), torch.ones(passes, rows) / rows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total, _ = distribution_losses(drafter, Recipe(acceptance=0.1), inputs, final, weights)
total.backward()
assert inputs.grad.abs().sum() > 0
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "KiB over", before)
"""


def peak(*sizes: int) -> tuple[float, float]:
    """GiB the losses took at most, and all of the process, for rows, vocabulary, width and passes."""
    done = subprocess.run([sys.executable, "-c", PEAK, *map(str, sizes)], capture_output=True, text=True, check=True)
    more, before = map(int, re.findall(r"\d+", done.stdout))
    print(f"{sizes}: {more / 2**20:.2f} GiB beside {before / 2**20:.2f} GiB")
    return more / 2**20, (more + before) / 2**20


def test_peak_does_not_grow_with_the_rows():
    """Logits of all rows would be 0.12 GiB and 0.57 GiB for each tensor of them."""
    few, many = peak(220, 152_000, 16, 1)[0], peak(1000, 152_000, 16, 1)[0]
    assert many < few + 0.2 and many < 0.7


@pytest.mark.slow
def test_peak_at_the_shape_of_a_7b():
    """8192 rows x 152k tokens: 4.6 GiB for each tensor of logits; all of the process stays below 3 GB but for the
    head itself.
    """
    assert peak(8192, 152_064, 64, 1)[1] < 3e9 / 2**30


def test_no_graph_for_a_loss_of_weight_0(tiny, monkeypatch):
    """Neither is its gradient computed: only losses with a weight see a tensor that wants one."""
    seen = {}
    for name in ("refusal", "cross_entropy", "feature"):
        real = getattr(losses, name)

        def watch(a, b, name=name, real=real):
            seen[name] = a.requires_grad or b.requires_grad
            return real(a, b)

        monkeypatch.setattr(losses, name, watch)
        monkeypatch.setattr("sparrow.training.passes.feature", losses.feature)
    drafter, batch = a_drafter(tiny, False, False), a_batch(tiny, 0)
    Passes(drafter, Recipe(feature=0.0))(batch, batch.counts(2))
    assert seen == {"cross_entropy": True, "refusal": False}
    seen.clear()
    Passes(drafter, Recipe(cross_entropy=0.0, acceptance=1.0))(batch, batch.counts(2))
    assert seen == {"refusal": True, "feature": True}


def test_a_head_that_is_no_plain_weight(tiny):
    """Rows go through the module, a chunk at a time."""
    drafter, batch = a_drafter(tiny, False, False), a_batch(tiny, 0)
    head = drafter.tables.head
    drafter.bind(drafter.embedding, nn.Sequential(head), drafter.tables.norm)
    assert isinstance(drafter, sparrow.SparrowDrafter) and drafter.draft_rows is None
    total, _ = Passes(drafter, Recipe())(batch, batch.counts(2))
    drafter.bind(drafter.embedding, head, drafter.tables.norm)
    torch.testing.assert_close(total, Passes(drafter, Recipe())(batch, batch.counts(2))[0])
