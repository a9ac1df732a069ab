"""Several prompts at once: every sequence is what it is alone, and what transformers' own batch makes of it."""

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

import sparrow
import sparrow.video
from sparrow.drafters.protocol import DecodeState, Drafter
from sparrow.drafters.text import TextDrafter
from sparrow.targets.adapter import MROPE_FAMILIES, Target
from sparrow.targets.positions import prompt_positions
from sparrow.targets.versions import cache_argument
from sparrow.tree import DraftTree, TreeConfig
from tests.decoding.scripted import ScriptedDrafter
from tests.videos import FAMILIES, sample_inputs

SHAPE = TreeConfig(15, 5, 3)
PAD = 2


def together(prompts):
    return sparrow.video.together(prompts, PAD)


NEW = 16


class Scripts(Drafter):
    """A ScriptedDrafter for each sequence; its state is who goes on."""

    takes_batches = True

    def __init__(self, truths, scripts):
        self.drafters = [ScriptedDrafter(t, s) for t, s in zip(truths, scripts, strict=True)]
        self.rows = []

    def begin(self, prompt):
        return list(range(len(prompt.root)))

    def draft(self, state, shape):
        self.rows.append(list(state.draft))
        trees = []
        for place, row in enumerate(state.draft):
            own = slice(place, place + 1)
            alone = DecodeState.after_prompt(
                None, state.root[own], state.length[own], state.position[..., own, :], None, None, state.error, shape,
                torch.empty(0),
            )  # fmt: skip
            trees.append(self.drafters[row].draft(alone, shape))
        return DraftTree(*(torch.cat(parts) for parts in zip(*(tree[:5] for tree in trees), strict=True)))

    def select(self, draft, order):
        return [draft[place] for place in order.tolist()]


def prompts_of(family, videos=(1, 0, 2, 1)):
    made = [sample_inputs(family, videos=n, seed=i, text=5 + 6 * i) for i, n in enumerate(videos)]
    if family in MROPE_FAMILIES:  # a prompt without a video has none of its arguments
        for one in made:
            one.setdefault("mm_token_type_ids", torch.zeros_like(one["input_ids"], dtype=torch.int32))
    return made


def alone(model, prompts, **options):
    return [sparrow.generate(model, None, **one, **options).sequences[0] for one in prompts]


def new_tokens(sequences, prompts, n=None):
    """What each sequence says behind its prompt, in a batch or in a list of single ones."""
    width = max(one["input_ids"].shape[1] for one in prompts)
    if isinstance(sequences, torch.Tensor):
        return [row[width:].tolist() for row in sequences]
    return [s[one["input_ids"].shape[1] :].tolist() for s, one in zip(sequences, prompts, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_images_in_a_batch(tiny, family):
    """Some prompts with images, of one number or several, some with a video among them, one of text alone."""
    model, counts = tiny(family), ((0, 1), (1, 2), (0, 0))
    prompts = [sample_inputs(family, videos=v, images=n, seed=i, text=5 + i) for i, (v, n) in enumerate(counts)]
    options = {"max_new_tokens": 8, "eos_token_id": None}
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    out = sparrow.generate(model, drafter, **together(prompts), **options)
    assert new_tokens(out.sequences, prompts) == new_tokens(alone(model, prompts, **options), prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_is_what_it_is_alone(tiny, greedy, family):
    """Mixed lengths and numbers of videos; plain, drafted, and drafted with paths of every length."""
    model, prompts = tiny(family), prompts_of(family)
    batch = together(prompts)
    truth = alone(model, prompts, max_new_tokens=NEW + 8, eos_token_id=None)  # paths go on behind the end
    want = [tokens[:NEW] for tokens in new_tokens(truth, prompts)]
    assert new_tokens(greedy(model, batch, NEW), prompts) == want
    scripts = [lambda r: r % 6, lambda r: 0, lambda r: 5, lambda r: 5 - r % 6]
    scripted = Scripts(truth, scripts)
    for drafter, tree in ((None, None), (sparrow.SparrowDrafter.from_target(Target(model)), None), (scripted, SHAPE)):
        out = sparrow.generate(model, drafter, **batch, max_new_tokens=NEW, eos_token_id=None, tree=tree)
        assert torch.equal(out.sequences[:, :-NEW], batch["input_ids"])
        assert new_tokens(out.sequences, prompts) == want
        assert out.stats.new_tokens == 4 * NEW and out.stats.sequences == 4
    assert [len(rows) for rows in scripted.rows] == sorted((len(rows) for rows in scripted.rows), reverse=True)
    assert len(scripted.rows[0]) == 4 and scripted.rows[-1] == [1]  # who has ended costs nothing more
    assert max(out.stats.accepted) == 5 and 0 in out.stats.accepted


DRAFTERS = {
    "text": {},
    "two layers": {"num_layers": 2},
    "target positions": {"positions": "target", "hidden_norm": True},
    "sequence positions": {"positions": "sequence"},
    "no first row": {"positions": "sequence", "first_row": False},
    "rows": {"positions": "sequence", "visual": "rows"},
    "states": {
        "positions": "sequence",
        "visual": "states",
        "layer": "eagle3",
        "fused_layers": [0, 2],
        "hidden_layer": 3,
    },
    "compressed": {"positions": "sequence", "visual": "compressed"},
}


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_drafts_are_those_of_each_alone(tiny, family, kind, monkeypatch):
    """Every tree of every round, by sequence (its seed tells which), also after some have ended."""
    model, prompts = tiny(family), prompts_of(family)
    drafter, drafts, draft = sparrow.SparrowDrafter.from_target(Target(model), **DRAFTERS[kind]), [], TextDrafter.draft
    said = new_tokens(alone(model, prompts, max_new_tokens=NEW, eos_token_id=None), prompts)
    options = {"max_new_tokens": NEW, "eos_token_id": [said[0][3], said[2][9]], "pad_token_id": PAD, "tree": SHAPE}

    def recorded(self, state, shape):
        tree = draft(self, state, shape)
        for place, seed in enumerate(state.sampler.seed.tolist()):
            key = seed, int(state.length[place])
            drafts.append((key, tree.tokens[place].tolist(), tree.scores[place].clone()))
        return tree

    monkeypatch.setattr(TextDrafter, "draft", recorded)
    for row, one in enumerate(prompts):
        sparrow.generate(model, drafter, **one, **options, seed=row)
    want = {key: rest for key, *rest in drafts}
    drafts.clear()
    sparrow.generate(model, drafter, **together(prompts), **options, seed=0)
    got = {key: rest for key, *rest in drafts}
    assert got.keys() == want.keys() and len(got) > 30
    for key, (tokens, scores) in got.items():
        assert tokens == want[key][0]
        torch.testing.assert_close(scores, want[key][1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_ends_of_their_own(tiny, greedy, family):
    """Ends of sequence at different lengths, in the middle of paths; padding behind them, as transformers has it."""
    model, prompts = tiny(family), prompts_of(family)
    batch = together(prompts)
    truth = alone(model, prompts, max_new_tokens=NEW, eos_token_id=None)
    said = new_tokens(truth, prompts)
    ends = [said[0][0], said[1][5], said[2][9]]
    drafter = Scripts(truth, [lambda r: 4] * 4)
    out = sparrow.generate(model, drafter, **batch, max_new_tokens=NEW, eos_token_id=ends, pad_token_id=PAD, tree=SHAPE)
    assert torch.equal(out.sequences, greedy(model, batch, NEW, eos_token_id=ends, pad_token_id=PAD))
    lengths = [next((i + 1 for i, t in enumerate(s) if t in ends), NEW) for s in said]
    assert len(set(lengths)) > 2 and out.stats.new_tokens == sum(lengths) == sum(out.stats.emitted) + 4


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_the_cache_goes_on(tiny, greedy, family):
    """In transformers, as its own batch's: padding in the prompts, and behind those that ended early."""
    model, prompts = tiny(family), prompts_of(family)
    batch = together(prompts)
    said = new_tokens(alone(model, prompts, max_new_tokens=NEW, eos_token_id=None), prompts)
    ends = [said[0][3], said[2][9]]
    out = sparrow.generate(model, None, **batch, max_new_tokens=NEW, eos_token_id=ends, pad_token_id=PAD)
    (b, length), p = out.sequences.shape, batch["input_ids"].shape[1]
    own = [next((i + 1 for i, t in enumerate(s) if t in ends), NEW) for s in said]
    shown = torch.arange(length - p) < torch.tensor(own)[:, None]
    question = torch.tensor([[17, 18, 19, 20]]).expand(b, -1)
    mask = torch.cat([batch["attention_mask"], shown.long(), torch.ones_like(question)], dim=1)
    ids = torch.cat([out.sequences, question], dim=1)
    whole = dict(batch, input_ids=ids, attention_mask=mask)
    if "mm_token_type_ids" in whole:
        whole["mm_token_type_ids"] = torch.nn.functional.pad(whole["mm_token_type_ids"], (0, length - p + 4))
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    went_on = model.generate(
        input_ids=ids, attention_mask=mask, **options, **{cache_argument(model): out.past_key_values}
    )
    rows = [i for i, n in enumerate(own) if n == max(own)] if family in MROPE_FAMILIES else range(b)
    want = greedy(model, whole, 8)  # M-RoPE's offset of one that ended early is numbered as if its padding were text
    assert all(torch.equal(went_on[i], want[i]) for i in rows)


@pytest.mark.parametrize("name", ["temperature", "penalty", "other processor", "processor with a state"])
def test_sampling_by_seed(tiny, name):
    """Seeds count on from the first, or are given; a penalty does not see the padding."""
    model, prompts = tiny("qwen2_5_vl"), prompts_of("qwen2_5_vl")
    rules = {
        "temperature": {"temperature": 0.7},
        "penalty": {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.5},
        "other processor": {"temperature": 0.8, "min_p": 0.05},
        "processor with a state": {},
    }[name]
    options = {"do_sample": True, "max_new_tokens": NEW, "eos_token_id": None, **rules}

    def processors():
        return {"logits_processor": LogitsProcessorList([Counting()])} if name.endswith("state") else {}

    def single(seeds):
        return [
            sparrow.generate(model, None, **one, **options, **processors(), seed=seed).sequences[0]
            for one, seed in zip(prompts, seeds, strict=True)
        ]

    for seed, seeds in ((3, [3, 4, 5, 6]), ([2**62, 0, -5, 0], [2**62, 0, -5, 0])):
        truth = single(seeds)
        drafter = Scripts(truth, [lambda r: r % 6, lambda r: 0, lambda r: 5, lambda r: 2])
        for given, tree in ((None, None), (drafter, SHAPE)):
            out = sparrow.generate(model, given, **together(prompts), **options, **processors(), seed=seed, tree=tree)
            assert new_tokens(out.sequences, prompts) == new_tokens(truth, prompts)


class Counting(LogitsProcessor):
    """Forbids, at its n-th call, the tokens whose remainder by 7 is n's."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        assert input_ids.shape[0] == 1 and not (input_ids == PAD).any()
        self.calls += 1
        return scores.masked_fill(torch.arange(scores.shape[1]) % 7 == self.calls % 7, -torch.inf)


def test_trees_chosen_while_decoding(tiny):
    model, prompts = tiny("qwen2_5_vl"), prompts_of("qwen2_5_vl")
    truth = alone(model, prompts, max_new_tokens=40, eos_token_id=None)
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    stops = [new_tokens(truth, prompts)[0][11]]
    want = [s[: s.index(stops[0]) + 1] if stops[0] in s else s for s in new_tokens(truth, prompts)]
    out = sparrow.generate(
        model, drafter, **together(prompts), max_new_tokens=40, eos_token_id=stops, pad_token_id=PAD, tree="auto"
    )
    assert [s[: len(w)] for s, w in zip(new_tokens(out.sequences, prompts), want, strict=True)] == want
    assert len(out.stats.trees) > 1


def test_reference_positions(tiny):
    model, prompts = tiny("qwen2_5_vl"), prompts_of("qwen2_5_vl")
    options = {"max_new_tokens": NEW, "eos_token_id": None, "positions": "reference"}
    out = sparrow.generate(model, None, **together(prompts), **options)
    assert new_tokens(out.sequences, prompts) == new_tokens(alone(model, prompts, **options), prompts)
    ids = prompt_positions(Target(model), together(prompts), "reference")
    for row, one in enumerate(prompts):
        own = prompt_positions(Target(model), one, "reference")[:, 0]
        assert torch.equal(ids[:, row, -own.shape[1] :], own) and (ids[:, row, : -own.shape[1]] == 1).all()


def test_padding_of_a_single_prompt(tiny, greedy):
    for family in FAMILIES:
        model, one = tiny(family), sample_inputs(family, videos=1)
        padded = {**one, **{n: torch.nn.functional.pad(one[n], (3, 0)) for n in one if n in
                            ("input_ids", "attention_mask", "mm_token_type_ids")}}  # fmt: skip
        padded["input_ids"][:, :3] = PAD
        out = sparrow.generate(model, None, **padded, max_new_tokens=NEW, eos_token_id=None)
        assert torch.equal(out.sequences[:, 3:], greedy(model, one, NEW))


def test_rounds_are_told_of_each(tiny):
    model, prompts = tiny("qwen2_5_vl"), prompts_of("qwen2_5_vl")
    truth = alone(model, prompts, max_new_tokens=NEW, eos_token_id=None)
    told = []
    drafter = Scripts(truth, [lambda r: 5, lambda r: 0, lambda r: 2, lambda r: 1])
    sparrow.generate(
        model, drafter, **together(prompts), max_new_tokens=NEW, eos_token_id=None, tree=SHAPE,
        on_round=lambda tokens, accepted, seconds: told.append((tokens, accepted)),
    )  # fmt: skip
    said = new_tokens(truth, prompts)
    for row in range(4):
        assert [t for tokens, _ in told for t in tokens[row]] == said[row][1:]
    assert told[-1][0][0] == [] and told[-1][1][0] == 0 and told[0][1] == [5, 0, 2, 1]


def test_what_is_refused(tiny):
    model, prompts = tiny("qwen2_5_vl"), prompts_of("qwen2_5_vl", (0, 0))
    batch, ids = together(prompts), together(prompts)["input_ids"]
    right = batch["attention_mask"].flip(1)

    def refused(message, drafter=None, **changed):
        with pytest.raises(ValueError, match=message):
            sparrow.generate(model, drafter, **{**batch, "max_new_tokens": 4, **changed})

    refused(r"attention_mask may hide tokens at the left of a prompt only \(padding\), got .* for sequence 0",
            attention_mask=right)  # fmt: skip
    refused(r"attention_mask must be a tensor of shape \[2, 16\]", attention_mask=torch.ones(1, ids.shape[1]).long())
    refused("attention_mask must hold zeros and ones, got 32 other values", attention_mask=torch.full_like(ids, 2))
    refused(r"attention_mask may hide tokens at the left", attention_mask=torch.zeros_like(ids))
    refused(r"seed must be an integer, or one for each of the 2 prompts, got \[1, 2, 3\]", seed=[1, 2, 3])
    refused("seed must be an integer of 64 bits, got 'ab'", seed="ab")
    refused("seed must be an integer of 64 bits, got 2.5", seed=[1, 2.5])
    refused("this drafter takes one sequence, got a batch of 2", sparrow.SpecVLM())
    refused("a streamer takes one sequence, got a batch of 2", streamer=Streamer())


class Streamer:
    def put(self, value):
        pass

    def end(self):
        pass
