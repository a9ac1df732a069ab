"""Teaching SmolLM2 to watch, on the synthetic world: the tower alone, then the merger, then merger and LoRA."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from sparrow.miniature.batches import IGNORE, Batch, Collator, training_batch
from sparrow.miniature.training import Forward
from sparrow.miniature.world import Format
from sparrow.smollm2 import host, lora, texts, warm
from sparrow.smollm2.lessons import CUT, Lessons, Reader
from sparrow.smollm2.prompts import prompts
from sparrow.smollm2.recipe import SmolRecipe
from sparrow.smollm2.watching import classes_of, hits, shares
from sparrow.smollm2.words import Tagger
from sparrow.training.run import Run, learning_rate

Report = Callable[[str], None]
DEV_FORM, DEV_CLIPS = Format(8, 64), 16
STAGES = ("warm", "merger", "lora")
READER_LR = 3e-3


class Teacher:
    """A model in training.

    Args:
        model: from host.build, inside `trainable`; collator: of it.
        recipe: settings; run: its folder; report: called with a line of text now and then.
    """

    def __init__(self, model: Any, collator: Collator, recipe: SmolRecipe, run: Run, report: Report):
        self.model, self.collator, self.recipe, self.run, self.report = model, collator, recipe, run, report
        self.tokenizer = collator.tokenizer
        self.pad = int(self.tokenizer.pad_token_id)
        self.tagger = Tagger(self.tokenizer)
        self.lessons = Lessons(model, collator.tokenizer, collator.settings, recipe.cut)
        self.forward = Forward(model, recipe.bf16)
        self.words = warm.Words(model.model.language_model.embed_tokens.weight, self.tokenizer)
        self.rows: list[texts.Row] = []
        torch.manual_seed(recipe.seed)
        self.adapters = lora.add(model.model.language_model, recipe.rank)
        self.reader = Reader(int(model.config.get_text_config().hidden_size))

    def train(self) -> None:
        """All stages, from the run's last checkpoint where it has one.

        Raises:
            FloatingPointError: a loss is not finite.
            FileNotFoundError, ValueError: recipe.start is missing, or does not fit.
        """
        state, start = self.run.load(), 0
        if state is not None:
            start = state["step"]
            self.model.model.visual.load_state_dict(state["tower"])
            for adapter, saved in zip(self.adapters.values(), state["adapters"], strict=True):
                adapter.load_state_dict(saved, strict=False)
            self.reader.load_state_dict(state["reader"])
            self.rows = [(list(ids), begin) for ids, begin in state["rows"]]
            self.report(f"going on from step {start}")
        elif self.recipe.start is not None:
            self._begin_with(self.recipe.start)
        else:
            self._solve()
        began, optimizer, stage = time.monotonic(), None, ""
        for step in range(start, self.recipe.steps):
            now, within, of = self._stage(step)
            if now != stage:
                stage, optimizer = now, self._enter(now)
                if state is not None and state["stage"] == now:
                    optimizer.load_state_dict(state["optimizer"])
            assert optimizer is not None
            values = self._step(now, within, of, optimizer)
            self.run.log(step=step, stage=now, **values)
            done = step + 1
            if done % 10 == 0:
                pace = (time.monotonic() - began) / (done - start)
                self.report(f"step {done} of {self.recipe.steps}, {pace:.2f} s each: {now} {values}")
            last = done == self.recipe.steps
            if last or (now != "warm" and done % self.recipe.evaluate_every == 0):
                self.evaluate(step)
            if last or done % self.recipe.save_every == 0 or within + 1 == of:
                self._save(done, now, optimizer)

    def _solve(self) -> None:
        """The merger as far as least squares bring it, on batches of its own (those behind the stage's last)."""
        data = self.recipe.warm_data()
        numbers = range(data.steps, data.steps + warm.SOLVED)
        warm.solve(self.model, self.words, (training_batch(self.collator, data, number) for number in numbers))

    def _begin_with(self, file: str) -> None:
        state = load_file(file)
        host.load_tower(self.model, state)
        try:
            lora.begin_with(self.adapters, {n: value for n, value in state.items() if not n.startswith(host.TOWER)})
        except ValueError as error:
            raise ValueError(f"start: {file}: {error}") from error

    def _stage(self, step: int) -> tuple[str, int, int]:
        """(stage, step within it, its steps)."""
        for name in STAGES:
            of = getattr(self.recipe, f"{name}_steps")
            if step < of:
                return name, step, of
            step -= of
        raise AssertionError("a step beyond the last")

    def _enter(self, stage: str) -> torch.optim.Optimizer:
        """What the stage trains; the optimiser's groups keep their peak rate under "peak"."""
        self.model.requires_grad_(False)
        merger = list(self.model.model.visual.merger.parameters())
        groups = [(list(warm.parameters(self.model)), self.recipe.warm_lr)]
        if stage != "warm":
            groups = [(merger, self.recipe.merger_lr)]
        if stage == "lora":
            groups.append(([p for a in self.adapters.values() for p in (a.A, a.B)], self.recipe.lora_lr))
            if self.recipe.tower_lr:
                rest = [p for n, p in self.model.model.visual.named_parameters() if not n.startswith("merger.")]
                groups.append((rest, self.recipe.tower_lr))
            if self.recipe.dense:
                groups.append((list(self.reader.parameters()), READER_LR))
            if not self.rows:
                self.rows = self._texts()
        for parameters, _ in groups:
            for p in parameters:
                p.requires_grad_(True)
        settings = [{"params": parameters, "peak": peak} for parameters, peak in groups]
        return torch.optim.AdamW(settings, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)

    def _texts(self) -> list[texts.Row]:
        """What the model itself says, before it has learned anything, at temperature 1."""
        recipe = self.recipe
        began = time.monotonic()
        asked = prompts("train", recipe.text_prompts, recipe.seed)
        attention = self.model.config.get_text_config()._attn_implementation
        self.model.set_attn_implementation({"text_config": "sdpa"})  # that of `trainable` takes no cache
        try:
            with lora.without(self.adapters):
                rows = texts.answers(self.model, self.tokenizer, asked, recipe.text_tokens)
        finally:
            self.model.set_attn_implementation({"text_config": attention})
        self.report(f"{len(rows)} texts in {time.monotonic() - began:.0f} s")
        return rows

    def _step(self, stage: str, step: int, of: int, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        recipe = self.recipe
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, of, group["peak"], recipe.warmup, hold=recipe.hold)
        if stage == "warm":
            loss, values = self._warm(step)
        elif stage == "lora" and step % recipe.text_every == recipe.text_every - 1:
            loss, values = self._text(step)
        else:
            fade = recipe.dense * max(0.0, 1 - step / (recipe.dense_until * of)) if stage == "lora" else 0.0
            loss, values = self._watch(step + (recipe.merger_steps if stage == "lora" else 0), fade)
        loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} in stage {stage}, step {step}")
        return values | {"norm": round(float(norm), 3)}

    def _warm(self, step: int) -> tuple[Tensor, dict[str, Any]]:
        loss, on_shapes = warm.loss(
            self.model, self.words, training_batch(self.collator, self.recipe.warm_data(), step)
        )
        return loss, {"warm_loss": round(loss.item(), 4), "on_shapes": round(on_shapes, 4)}

    def _text(self, step: int) -> tuple[Tensor, dict[str, Any]]:
        recipe = self.recipe
        first = step // recipe.text_every * recipe.text_rows
        rows = [self.rows[(first + i) % len(self.rows)] for i in range(recipe.text_rows)]
        rows += texts.documents(self.tokenizer, recipe.document_rows, recipe.document_tokens, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            loss = texts.drift(self.model, self.adapters, rows, self.pad)
        return recipe.text_weight * loss, {"drift": round(loss.item(), 5)}

    def _watch(self, step: int, dense: float) -> tuple[Tensor, dict[str, Any]]:
        batch: Batch = training_batch(self.lessons, self.recipe.teach_data(), step)
        told = self._thinned(batch, step)
        logits, labels = self.forward(batch)
        each = F.cross_entropy(logits, labels, reduction="none")
        weight = torch.where(told, 1.0, self.recipe.other_words / self.recipe.other_share)
        right = (logits.detach().argmax(-1) == labels)[told].float().tolist()
        loss = (each * weight).sum() / weight.sum()
        values = {"loss": round(loss.item(), 4), "right": round(sum(right) / len(right), 3) if right else None,
                  "clips": len(batch.clips),
                  "visual": int((batch.input_ids[0] == self.collator.video_token).sum())}  # fmt: skip
        if dense:
            visual = batch.input_ids == self.collator.video_token
            story = self.reader.loss(self.forward.seen["middle"][visual], batch.looks)
            loss, values = loss + dense * story, values | {"dense": round(story.item(), 3)}
        return loss, values

    def _thinned(self, batch: Batch, step: int) -> Tensor:
        """Takes most words that need no video out of the batch's labels; of the others, which need the video, [n]."""
        told = classes_of(self.tagger, batch.clips) >= 0
        kept = told | (torch.rand(len(told), generator=torch.Generator().manual_seed(step)) < self.recipe.other_share)
        ends = torch.tensor([len(self.tokenizer(clip.answer)["input_ids"]) + 1 for clip in batch.clips]).cumsum(0) - 1
        kept[ends[torch.tensor([clip.kind == CUT for clip in batch.clips])]] = False
        if not kept.any():  # a batch of one short answer: a step with nothing in its loss has none
            kept[:] = True
        where = batch.labels != IGNORE
        batch.labels[where] = torch.where(kept, batch.labels[where], IGNORE)
        return told[kept]

    def evaluate(self, step: int) -> None:
        """Shares right on the dev split with the true and another clip's video, and the drift from the original."""
        scores: dict[str, Any] = {
            video: shares(hits(self.collator, self.forward, DEV_FORM, video=video, split="dev", clips=DEV_CLIPS))
            for video in ("true", "shuffled")
        }
        self.run.log(step=step, **scores)
        self.report(f"after step {step}: {scores}")

    def _save(self, done: int, stage: str, optimizer: torch.optim.Optimizer) -> None:
        self.run.save(
            step=done, stage=stage, tower=self.model.model.visual.state_dict(), optimizer=optimizer.state_dict(),
            adapters=[{"A": a.A.detach(), "B": a.B.detach()} for a in self.adapters.values()],
            reader=self.reader.state_dict(), rows=[[ids, begin] for ids, begin in self.rows],
        )  # fmt: skip

    def taught(self) -> dict[str, Tensor]:
        """What was trained: the tower ("visual.NAME") and the adapters ("layers.0.self_attn.q_proj.A"), float16."""
        tower = {f"visual.{name}": value.detach() for name, value in self.model.model.visual.state_dict().items()}
        return {name: value.half() for name, value in (tower | lora.weights(self.adapters)).items()}
