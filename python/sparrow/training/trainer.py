"""Training of a drafter: the target's answers, its states along them, then steps of `Passes`. Every stage resumes."""

import itertools
import pathlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.utils.data import DataLoader

from sparrow.decoding.generate import generate
from sparrow.drafters.network import SparrowDrafter
from sparrow.progress import console, track
from sparrow.targets.adapter import Target
from sparrow.training.answers import Answer, write_answers
from sparrow.training.clips import Clips
from sparrow.training.distributed import Ranks
from sparrow.training.passes import METRICS, Passes
from sparrow.training.recipe import DrafterTraining, Optimisation
from sparrow.training.run import Run, learning_rate
from sparrow.training.sequences import Batch, collate
from sparrow.training.states import CachedStates, LiveStates, Sequences, batches, sequence_rows

DRAFTER = "drafter"
# Settings of a run that may change with the folders' places; what is in them is compared by their own settings.json.
PLACES = ("run", "target", "data.clips", "answers.folder", "states.folder")
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def prepare_answers(target: Target, clips: Clips, config: DrafterTraining, ranks: Ranks) -> list[Answer]:
    """The target's answers to all clips, in <answers.folder>."""
    folder = pathlib.Path(config.answers.folder or pathlib.Path(config.run) / "answers")
    return write_answers(target, clips, config.answers, config.states.positions, _data(config), folder, ranks)


def train(target: Target, clips: Clips, config: DrafterTraining, ranks: Ranks | None = None) -> pathlib.Path:
    """Trains a drafter for the target and returns its folder, <run>/drafter.

    Args:
        target: frozen; evaluation mode.
        clips: what it is asked about.
        config: see DrafterTraining.
        ranks: this process; None = the only one.

    Raises:
        ValueError: settings that do not fit the target or each other, or a folder made with other settings.
    """
    ranks = ranks or Ranks()
    _check(target, clips, config)
    run = Run(config.run, config, main=ranks.main, places=PLACES)
    target.model.requires_grad_(False)
    answers = [a for a in prepare_answers(target, clips, config, ranks) if len(a.ids) > 1]  # one token drafts nothing
    held_out = range(len(clips) - config.data.validation, len(clips))
    training = [a for a in answers if a.clip not in held_out]
    validation = [a for a in answers if a.clip in held_out]
    if not training:
        raise ValueError("no clip is left to train on: each answer has fewer than two tokens, or is held out")
    states = _states(target, clips, config, answers, ranks)
    drafter = new_drafter(target, config, training)
    trainer = Trainer(drafter, config, ranks, run)
    if trainer.step == 0 and ranks.main:
        run.log(
            training=len(training), validation=len(validation), left_out=len(clips) - len({a.clip for a in answers})
        )
    trainer.run_to_the_end(
        Sequences(states, training, config), Sequences(states, validation, config), target, clips
    )  # fmt: skip
    return trainer.folder


def _check(target: Target, clips: Clips, config: DrafterTraining) -> None:
    """Raises ValueError where settings do not fit the target, the clips or each other."""
    o = config.optimisation
    if o.autocast == "none" and target.embedding.dtype != torch.float32:
        raise ValueError(f"optimisation.autocast must be bfloat16 for a target in {target.embedding.dtype}")
    if o.workers and not config.states.cache:
        raise ValueError(f"optimisation.workers must be 0 where states.cache is false, got {o.workers}")
    if config.data.validation >= len(clips):
        raise ValueError(
            f"data.validation must be below the number of clips ({len(clips)}), got {config.data.validation}"
        )
    layers(target, config)


def layers(target: Target, config: DrafterTraining) -> tuple[tuple[int, ...], int | None]:
    """The layers whose states are reused (hidden_layer, then fused_layers) and visual_layer, counted from 0."""
    number, asked = target.num_layers, (config.drafter.hidden_layer, *config.drafter.fused_layers)
    for layer in asked:
        if not -number - 1 <= layer <= number:
            raise ValueError(f"drafter.hidden_layer must lie in [{-number - 1}, {number}], got {layer}")
    visual = number // 2 if config.recipe.visual_layer is None else config.recipe.visual_layer
    if not 0 <= visual <= number:
        raise ValueError(f"recipe.visual_layer must lie in [0, {number}], got {visual}")
    return tuple(k + number + 1 if k < 0 else k for k in asked), visual if config.recipe.visual else None


def _data(config: DrafterTraining) -> dict[str, object]:
    """What a clip's number means; more clips may come, a file of them may move, and the split may change."""
    values = {k: v for k, v in asdict(config.data).items() if k != "validation"}
    names = ("num_frames", "fps") if config.data.clips else ("first", "kind", "frames", "side")
    return {name: values[name] for name in names}


def _states(target: Target, clips: Clips, config: DrafterTraining, answers: list[Answer], ranks: Ranks):
    live = LiveStates(target, clips, config.states, *layers(target, config))
    if not config.states.cache:
        return live
    cached = CachedStates(pathlib.Path(config.states.folder or pathlib.Path(config.run) / "states"))
    settings: dict[str, object] = {
        "hidden_layers": live.hidden_layers,
        "visual_layer": live.visual_layer,
        "dtype": str(live.dtype),
    }
    settings |= {"positions": config.states.positions, "answers": asdict(config.answers) | {"folder": "", "batch": 0}}
    size = cached.fill(live, answers, settings | {"target": target.fingerprint(), "data": _data(config)}, ranks)
    if ranks.main:
        console.print(f"the target's states of {len(answers)} answers: {size / 2**20:.0f} MiB in {cached.folder}")
    return cached


def new_drafter(target: Target, config: DrafterTraining, answers: list[Answer]) -> SparrowDrafter:
    """A drafter to be trained: float32, its draft vocabulary taken from the answers."""
    shape, (reused, visual_layer) = config.drafter, layers(target, config)
    more: dict[str, object] = {} if shape.rope_theta is None else {"rope_theta": shape.rope_theta}
    more |= {} if shape.grouped_heads else {"num_kv_heads": int(target.config.num_attention_heads)}
    drafter = SparrowDrafter.from_target(
        target, seed=config.optimisation.seed, hidden_layer=reused[0], fused_layers=reused[1:],
        hidden_norm=shape.hidden_norm, output_norm=shape.output_norm, positions=shape.positions, visual=shape.visual,
        visual_layer=0 if shape.visual == "none" else visual_layer,
        draft_vocab=shape.draft_vocab > 0, tree=shape.tree, numbering=config.states.positions, **more,
    )  # fmt: skip
    drafter.place(target.device, torch.float32).train().requires_grad_(True)
    if shape.draft_vocab:
        ids = frequent_tokens(answers, shape.draft_vocab, target.vocab_size)
        drafter.set_draft_vocab(ids.to(target.device))
        drafter.attach(target)
    return drafter


def frequent_tokens(answers: list[Answer], size: int, vocab_size: int) -> Tensor:
    """The most frequent tokens of the answers in ascending order, int64 [<= size]; ties by lowest id."""
    counts = torch.bincount(torch.tensor([i for a in answers for i in a.ids]), minlength=vocab_size)
    kept = counts.argsort(descending=True, stable=True)[:size]
    return kept[counts[kept] > 0].sort().values


class Trainer:
    """Optimiser, steps, validation, checkpoints. A killed run goes on at its last checkpoint.

    Args:
        drafter: float32, bound to its target.
        config, ranks, run: of this run.
    """

    def __init__(self, drafter: SparrowDrafter, config: DrafterTraining, ranks: Ranks, run: Run):
        self.drafter, self.config, self.ranks, self.run = drafter, config, ranks, run
        self.folder = run.folder / DRAFTER
        self.o: Optimisation = config.optimisation
        self.device = drafter.embedding.device
        self.passes = ranks.parallel(Passes(drafter, config.recipe), self.o.sharding)
        self.optimisers = optimisers(drafter, self.o)
        self.step = 0
        state = run.load()
        ranks.wait()
        if state is not None:
            self.step = state["step"]
            set_model_state_dict(drafter, state["drafter"], options=WHOLE)
            set_optimizer_state_dict(drafter, self.optimisers, state["optimiser"], options=WHOLE)

    def run_to_the_end(self, training: Sequences, validation: Sequences, target: Target, clips: Clips) -> None:
        """All steps that are left."""
        keys: Any = self._keys(training)  # DataLoader takes any iterable of lists
        loader = iter(DataLoader(training, batch_sampler=keys, collate_fn=collate, num_workers=self.o.workers))
        left = range(self.step, self.o.steps)
        if not left:
            self.write_drafter()  # it may be lost or damaged; the checkpoint has it
        for _ in track(left, "training", "steps", quiet=not self.ranks.main):
            self._step(next(loader).to(self.device))
            last = self.step == self.o.steps
            if last or self.step % self.o.validate_every == 0:
                self._validate(validation, target, clips)
            if last or self.step % self.o.save_every == 0:
                self._save()

    def _keys(self, training: Sequences) -> Iterator[list[tuple[int, int, bool]]]:
        """This process' share of every batch from the present step on, as keys of `training`."""
        lengths = [sequence_rows(a, self.config.recipe.visual) for a in training.answers]
        steps = enumerate(batches(lengths, self.o.batch_rows, self.o.seed))
        for step, group in itertools.islice(steps, self.step, self.o.steps):
            mine = [(at, step, True) for at in group[self.ranks.rank :: self.ranks.world]]
            yield mine or [(group[0], step, False)]  # fewer sequences than processes: one that does not count

    def _forward(self, batch: Batch, counts: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.o.autocast == "bfloat16"):
            return self.passes(batch, counts)

    def _step(self, batch: Batch) -> None:
        start = time.perf_counter()
        rate = learning_rate(self.step, self.o.steps, self.o.learning_rate, self.o.warmup)
        for group in (g for optimiser in self.optimisers for g in optimiser.param_groups):
            group["lr"] = rate
        counts = self.ranks.total(batch.counts(1 + self.config.recipe.mtp_depth))
        loss, metrics = self._forward(batch, counts)
        (loss * self.ranks.world).backward()  # processes' gradients are averaged
        if self.o.clip_value is not None:
            nn.utils.clip_grad_value_(self.drafter.parameters(), self.o.clip_value)
        if self.o.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.drafter.parameters(), self.o.clip_norm)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        if self.step % self.o.log_every == 0 or self.step == self.o.steps:
            total, metrics = self.ranks.total(loss.detach()), self.ranks.total(metrics)
            if not torch.isfinite(total):
                raise FloatingPointError(f"the loss is {float(total)} at step {self.step}: a lower learning rate?")
            self.run.log(
                step=self.step, loss=float(total), learning_rate=rate, rows=int(counts[0]),
                seconds=time.perf_counter() - start, **by_pass(metrics, counts),
            )  # fmt: skip

    @torch.no_grad()
    def _validate(self, validation: Sequences, target: Target, clips: Clips) -> None:
        """Writes the drafter and the curves; on held-out clips, losses and tau in live decoding."""
        self.write_drafter()
        counts = torch.zeros(1 + self.config.recipe.mtp_depth, dtype=torch.int64, device=self.device)
        metrics = torch.zeros(len(counts), len(METRICS), device=self.device)
        for batch in validation.validation(self.o.batch_rows):  # every process all of them: no shares to add up
            own = batch.to(self.device).counts(len(counts))
            metrics += self._forward(batch.to(self.device), own)[1]
            counts += own
        if self.ranks.main:
            values = {f"validation_{k}": v for k, v in by_pass(metrics, counts).items()}
            tau = measure_tau(target, self.folder, clips, validation.answers, self.config)
            if validation.answers:
                self.run.log(step=self.step, tau=tau, **values)
            self.run.curves("loss", "agreement", "acceptance", "validation_agreement", "tau", "learning_rate")
        self.ranks.wait()

    def _save(self) -> None:
        state = {
            "drafter": get_model_state_dict(self.drafter, options=WHOLE),
            "optimiser": get_optimizer_state_dict(self.drafter, self.optimisers, options=WHOLE),
        }
        if self.ranks.main:
            self.run.save(step=self.step, **state)
        self.ranks.wait()

    def write_drafter(self) -> None:
        """<run>/drafter as it is now, in the target's dtype."""
        state: dict[str, Any] = get_model_state_dict(self.drafter, options=WHOLE)
        if self.ranks.main:
            copy = SparrowDrafter(self.drafter.config)
            if copy.config.draft_vocab:
                copy.set_draft_vocab(state["draft_vocab_ids"])
            copy.load_state_dict(state)
            copy.place(torch.device("cpu"), self.drafter.embedding.dtype).save_pretrained(self.folder)


def optimisers(drafter: SparrowDrafter, o: Optimisation) -> tuple[torch.optim.Optimizer, ...]:
    """AdamW of everything; or Muon of the matrices and AdamW of the rest."""
    matrices = [p for p in drafter.parameters() if p.ndim == 2 and o.optimiser == "muon"]
    rest = [p for p in drafter.parameters() if p.ndim != 2 or o.optimiser == "adamw"]
    adamw = torch.optim.AdamW(rest, lr=o.learning_rate, betas=(o.beta1, o.beta2), weight_decay=o.weight_decay)
    if not matrices:
        return (adamw,)
    muon = torch.optim.Muon(matrices, lr=o.learning_rate, weight_decay=o.weight_decay, adjust_lr_fn="match_rms_adamw")
    return muon, adamw


def by_pass(sums: Tensor, counts: Tensor) -> dict[str, dict[str, float]]:
    """Means over rows: {metric: {"0": of the first pass, "1": ...}}; passes without rows are left out."""
    means = (sums / counts[:, None].clamp(min=1)).T.tolist()
    used = [k for k, n in enumerate(counts.tolist()) if n]
    return {
        f"pass_{n}" if n == "loss" else n: {str(k): row[k] for k in used} for n, row in zip(METRICS, means, strict=True)
    }


def measure_tau(
    target: Target, folder: pathlib.Path, clips: Clips, answers: Sequence[Answer], config: DrafterTraining
) -> dict[str, float]:
    """Tokens per round of live decoding on the answers' clips, by temperature {"t0": ...}."""
    drafter = SparrowDrafter.from_pretrained(folder).place(target.device, target.embedding.dtype)
    found: dict[str, list[int]] = {}
    for answer in answers:
        options: dict[str, Any] = {"do_sample": False}
        if answer.temperature > 0:
            options = {"do_sample": True, "temperature": answer.temperature, "top_k": 0, "top_p": 1.0, "seed": 0}
        options |= target.inputs(clips.inputs(answer.clip))
        out = generate(
            target.model, drafter, **options, positions=config.states.positions,
            max_new_tokens=config.answers.max_new_tokens,
        )  # fmt: skip
        found.setdefault(f"t{answer.temperature:g}", []).extend(out.stats.emitted)
    return {name: sum(rounds) / len(rounds) for name, rounds in found.items() if rounds}
