"""Steps of `Passes`, validation and checkpoints."""

import itertools
import pathlib
import time
from collections.abc import Iterator, Sequence
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
from sparrow.progress import track
from sparrow.targets.adapter import Target
from sparrow.training.answers import Answer
from sparrow.training.clips import Clips
from sparrow.training.distributed import Ranks
from sparrow.training.losses import METRICS
from sparrow.training.muon import Muon
from sparrow.training.passes import Passes
from sparrow.training.recipe import DrafterTraining, Optimisation
from sparrow.training.run import Run, learning_rate
from sparrow.training.sequences import Batch, collate
from sparrow.training.states import Sequences, batches, sequence_rows

DRAFTER = "drafter"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


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
        self.passes = ranks.parallel(Passes(drafter, config.recipe, self.o.checkpointing), self.o.sharding)
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
            self._step([next(loader) for _ in range(self.o.accumulate)])
            last = self.step == self.o.steps
            if last or self.step % self.o.validate_every == 0:
                self._validate(validation, target, clips)
            if last or self.step % self.o.save_every == 0:
                self._save()

    def _keys(self, training: Sequences) -> Iterator[list[tuple[int, int, bool]]]:
        """This process' share of every batch from the present step on, as keys of `training`."""
        lengths, each = [sequence_rows(a, self.config.recipe.visual) for a in training.answers], self.o.accumulate
        steps = enumerate(batches(lengths, self.o.batch_rows, self.o.seed))
        for step, group in itertools.islice(steps, self.step * each, self.o.steps * each):
            mine = [(at, step, True) for at in group[self.ranks.rank :: self.ranks.world]]
            yield mine or [(group[0], step, False)]  # fewer sequences than processes: one that does not count

    def _forward(self, batch: Batch, counts: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.o.autocast == "bfloat16"):
            return self.passes(batch, counts)

    def _step(self, parts: Sequence[Batch]) -> None:
        """One step on several batches, as if they were one."""
        start = time.perf_counter()
        rate = learning_rate(self.step, self.o.steps, self.o.learning_rate, self.o.warmup)
        for group in (g for optimiser in self.optimisers for g in optimiser.param_groups):
            group["lr"] = rate
        own = torch.stack([part.counts(1 + self.config.recipe.mtp_depth) for part in parts]).sum(0)
        counts = self.ranks.total(own.to(self.device))
        loss, metrics = torch.zeros((), device=self.device), torch.zeros(len(counts), len(METRICS), device=self.device)
        for part in parts:
            share, found = self._forward(part.to(self.device), counts)
            (share * self.ranks.world).backward()  # processes' gradients are averaged
            loss, metrics = loss + share.detach(), metrics + found
        if self.o.clip_value is not None:
            nn.utils.clip_grad_value_(self.drafter.parameters(), self.o.clip_value)
        if self.o.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.drafter.parameters(), self.o.clip_norm)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        if self.step % self.o.log_every == 0 or self.step == self.o.steps:
            total, metrics = self.ranks.total(loss), self.ranks.total(metrics)
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
            copy = SparrowDrafter.of(self.drafter.config, {name: value.clone() for name, value in state.items()})
            copy.place(torch.device("cpu"), self.drafter.embedding.dtype).save_pretrained(self.folder)


def optimisers(drafter: SparrowDrafter, o: Optimisation) -> tuple[torch.optim.Optimizer, ...]:
    """AdamW of everything; or Muon of the matrices but the head, and AdamW of the rest."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in drafter.named_parameters():
        by_muon = o.optimiser == "muon" and p.ndim == 2 and name != "lm_head.weight"
        (matrices if by_muon else rest).append(p)
    adamw = torch.optim.AdamW(rest, lr=o.learning_rate, betas=(o.beta1, o.beta2), weight_decay=o.weight_decay)
    if not matrices:
        return (adamw,)
    return Muon(matrices, o.learning_rate, o.weight_decay), adamw


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
            max_new_tokens=config.answers.max_new_tokens, tree="own",
        )  # fmt: skip
        found.setdefault(f"t{answer.temperature:g}", []).extend(out.stats.emitted)
    return {name: sum(rounds) / len(rounds) for name, rounds in found.items() if rounds}
