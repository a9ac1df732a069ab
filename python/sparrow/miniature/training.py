"""Training the miniature target on the synthetic world, from nothing.

Three things make it learn to watch within an hour on one core: a small rotary base, dense auxiliary losses (what covers
this visual token?) on the vision tower's output and on the middle layer, and a curriculum from one shape to four and
from short clips to long ones.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparrow.miniature.batches import IGNORE, LOOKS, STORY, Batch, Collator, training_batch
from sparrow.miniature.recipe import TargetRecipe
from sparrow.miniature.watching import watch
from sparrow.progress import track
from sparrow.training.muon import Muon
from sparrow.training.run import Run, learning_rate

Report = Callable[[str], None]


class Probes(nn.Module):
    """Linear readers of the dense labels: looks from the vision tower, the story from a middle layer. Training only."""

    def __init__(self, hidden: int):
        super().__init__()
        self.looks = nn.Linear(hidden, sum(n + 1 for n in LOOKS.values()))
        self.story = nn.Linear(hidden, sum(n + 1 for n in STORY.values()))

    def loss(self, tower: Tensor, middle: Tensor, labels: Tensor) -> Tensor:
        """Sum of cross-entropies; tower, middle [tokens, E]; the ground counts a tenth."""
        return dense_loss_of(self.looks(tower), LOOKS, labels) + dense_loss_of(self.story(middle), STORY, labels)


def dense_loss_of(logits: Tensor, classes: dict[str, int], labels: Tensor) -> Tensor:
    total = logits.new_zeros(())
    for i, part in enumerate(logits.float().split([n + 1 for n in classes.values()], dim=-1)):
        weight = torch.ones(part.shape[-1])
        weight[0] = 0.1
        total = total + F.cross_entropy(part, labels[:, i], weight)
    return total


class Forward:
    """One pass of the model over a batch, with the states the probes read."""

    def __init__(self, model: Any, bf16: bool):
        self.model, self.bf16 = model, bf16
        self.seen: dict[str, Tensor] = {}
        layers = model.model.language_model.layers
        model.model.visual.register_forward_hook(lambda m, a, out: self._see("tower", out.pooler_output))
        layers[len(layers) // 2 - 1].register_forward_hook(
            lambda m, a, out: self._see("middle", out[0] if isinstance(out, tuple) else out)
        )

    def _see(self, name: str, value: Tensor) -> None:
        self.seen[name] = value

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(float32 logits [n, V] of the answers' tokens, their labels [n])."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            states = self.model.model(
                input_ids=batch.input_ids, pixel_values_videos=batch.pixels, video_grid_thw=batch.grid,
                position_ids=batch.positions, use_cache=False,
            ).last_hidden_state  # fmt: skip
            wanted = batch.labels[:, 1:] != IGNORE
            logits = self.model.lm_head(states[:, :-1][wanted])
        return logits.float(), batch.labels[:, 1:][wanted]

    def dense_loss(self, probes: Probes, batch: Batch) -> Tensor:
        visual = batch.input_ids == int(self.model.config.video_token_id)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return probes.loss(self.seen["tower"], self.seen["middle"][visual], batch.looks)


def optimizers(model: Any, probes: Probes, recipe: TargetRecipe) -> list[torch.optim.Optimizer]:
    """One for the matrices, one for everything else; each group keeps its peak rate under "peak"."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = list(probes.parameters())
    for name, p in model.named_parameters():
        inner = p.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if inner else rest).append(p)
    if recipe.optimizer == "muon":
        first: torch.optim.Optimizer = Muon(matrices, recipe.lr, recipe.weight_decay)
    else:
        first = torch.optim.AdamW(matrices, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=recipe.weight_decay)
    second = torch.optim.AdamW(rest, lr=recipe.embed_lr, betas=(0.9, 0.95), weight_decay=0.0)
    for group, peak in ((first.param_groups[0], recipe.lr), (second.param_groups[0], recipe.embed_lr)):
        group["peak"] = peak
    return [first, second]


def train_target(model: Any, collator: Collator, recipe: TargetRecipe, run: Run, report: Report) -> None:
    """Trains until recipe.steps, from the run's last checkpoint where it has one.

    Args:
        model: built by targets.miniature, inside `trainable`.
        collator: of the same model.
        run: its folder; gets log lines, curves and checkpoints.
        report: called with a line of text now and then.
    """
    torch.manual_seed(recipe.seed)
    probes = Probes(int(model.config.get_text_config().hidden_size))
    steppers, forward = optimizers(model, probes, recipe), Forward(model, recipe.bf16)
    parameters = [*model.parameters(), *probes.parameters()]
    start = 0
    if (state := run.load()) is not None:
        start = state["step"]
        model.load_state_dict(state["model"])
        probes.load_state_dict(state["probes"])
        for optimizer, saved in zip(steppers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        report(f"going on from step {start}")
    model.train()
    began = time.monotonic()
    for step in track(range(start, recipe.steps), "training the target", "steps"):
        values = _step(model, collator, recipe, step, probes, steppers, forward, parameters)
        run.log(step=step, **values)
        done = step + 1
        if done % 50 == 0:
            pace = (time.monotonic() - began) / (done - start)
            report(f"step {done} of {recipe.steps}, {pace:.2f} s each: {values}")
        if done % recipe.evaluate_every == 0 or done == recipe.steps:
            scores = watch(collator, forward)
            run.log(step=step, **scores)
            report(f"step {done}: {scores}")
            run.curves("loss", "dense_loss", "true", "shuffled")
        if done % recipe.save_every == 0 or done == recipe.steps:
            run.save(
                step=done, model=model.state_dict(), probes=probes.state_dict(),
                optimizers=[o.state_dict() for o in steppers],
            )  # fmt: skip
    model.eval()


def _step(model: Any, collator, recipe, step, probes, steppers, forward, parameters) -> dict[str, float]:
    batch = training_batch(collator, recipe, step)
    rate = learning_rate(step, recipe.steps, 1.0, recipe.warmup, hold=recipe.hold)
    for optimizer in steppers:
        optimizer.param_groups[0]["lr"] = rate * optimizer.param_groups[0]["peak"]
    logits, labels = forward(batch)
    loss = F.cross_entropy(logits, labels)
    fade = recipe.auxiliary * max(0.0, 1 - step / (recipe.auxiliary_until * recipe.steps))
    dense = forward.dense_loss(probes, batch) if fade else torch.zeros(())
    (loss + fade * dense).backward()
    norm = nn.utils.clip_grad_norm_(parameters, recipe.clip)
    for optimizer in steppers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
    return {
        "loss": round(loss.item(), 4), "dense_loss": round(dense.item(), 4), "norm": round(float(norm), 3),
        "visual": int((batch.input_ids[0] == collator.video_token).sum()), "clips": len(batch.clips),
    }  # fmt: skip
