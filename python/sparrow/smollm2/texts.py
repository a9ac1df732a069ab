"""Text rows: what the model itself says to text prompts, so that teaching it to watch leaves its language alone."""

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparrow.smollm2 import lora

Row = tuple[list[int], int]  # tokens of prompt and answer, tokens of the prompt


def chat(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a prompt with the system message, up to where the answer begins."""
    said = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    return tokenizer(text)["input_ids"]


@torch.no_grad()
def answers(model: Any, tokenizer: Any, prompts: list[str], tokens: int, temperature: float = 1.0) -> list[Row]:
    """Answers of at most `tokens` tokens, by batched generation; temperature 0 = greedy."""
    end, pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
    draw = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    rows: list[Row] = []
    for first in range(0, len(prompts), 16):
        asked = [chat(tokenizer, prompt) for prompt in prompts[first : first + 16]]
        longest = max(map(len, asked))
        ids = torch.tensor([[pad] * (longest - len(a)) + a for a in asked])
        mask = torch.tensor([[0] * (longest - len(a)) + [1] * len(a) for a in asked])
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens, **{"do_sample": False, **draw})
        for prompt, row in zip(asked, out[:, longest:].tolist(), strict=True):
            stop = row.index(end) + 1 if end in row else len(row)
            rows.append((prompt + row[:stop], len(prompt)))
    return rows


def documents(tokenizer: Any, count: int, tokens: int, seed: int) -> list[Row]:
    """Pieces of `tokens` tokens of Python's own reference, which every Python carries (pydoc_data; not a chat)."""
    from pydoc_data.topics import topics

    rng = random.Random(f"documents {seed}")
    names = sorted(name for name, text in topics.items() if len(text) > 8 * tokens)
    rows: list[Row] = []
    for _ in range(count):
        text = topics[rng.choice(names)]
        begin = rng.randrange(len(text) - 8 * tokens + 1)
        rows.append((tokenizer(text[begin : begin + 8 * tokens])["input_ids"][:tokens], 1))
    return rows


def padded(rows: list[Row], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids [B, S], whether a row has the token [B, S], whether it is the answer's [B, S]); padding comes last."""
    size = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [pad] * (size - len(row)) for row, _ in rows])
    at = torch.arange(size)[None]
    there = at < torch.tensor([[len(row)] for row, _ in rows])
    return ids, there, there & (at >= torch.tensor([[start] for _, start in rows]))


def states(model: Any, ids: Tensor) -> Tensor:
    """The decoder's last states of text rows without padding before them, [B, S, E]."""
    positions = torch.arange(ids.shape[1]).expand(3, *ids.shape)
    return model.model.language_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state


def drift(model: Any, adapters: dict[str, lora.Lora], rows: list[Row], pad: int) -> Tensor:
    """Mean KL divergence from the model without adapters, over all tokens of prompts and answers."""
    ids, there, _ = padded(rows, pad)
    with torch.no_grad(), lora.without(adapters):
        before = F.log_softmax(model.lm_head(states(model, ids)[there]).float(), -1)
    now = F.log_softmax(model.lm_head(states(model, ids)[there]).float(), -1)
    return F.kl_div(now, before, log_target=True, reduction="batchmean")


@torch.no_grad()
def surprise(model: Any, rows: list[Row], pad: int, batch: int = 8) -> tuple[float, int]:
    """(sum of -ln p of the answers' tokens, their number): exp of the quotient is the perplexity."""
    total, count = 0.0, 0
    for first in range(0, len(rows), batch):
        ids, _, said = padded(rows[first : first + batch], pad)
        wanted = said[:, 1:]
        logits = model.lm_head(states(model, ids)[:, :-1][wanted]).float()
        total += float(F.cross_entropy(logits, ids[:, 1:][wanted], reduction="sum"))
        count += int(wanted.sum())
    return total, count
