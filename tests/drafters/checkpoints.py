"""Checkpoints in the layouts of public drafters, random and small, and what such a drafter computes: a slow forward
written from the layouts' description, on the stored weights, in float64, without any code of ours.
"""

import json
import math

import torch
from safetensors.torch import save_file
from torch import Tensor

E, D, HEADS, INTERMEDIATE, THETA = 64, 16, 4, 96, 5000.0


def make(
    folder, kind: str, target, *, pickled=False, vocabulary=120, seed=0, change=None, config=None,
    sizes=(E, D, HEADS, 2, INTERMEDIATE),
) -> dict:  # fmt: skip
    """Writes a random checkpoint for the target (an adapter) and returns its weights.

    kind: "EAGLE" (no biases), "MSD", "ViSpec", "EAGLE-3" or "speculators"; change(weights) may alter them. sizes: of a
    state, a head, heads, kv heads, MLP.
    """
    E, D, HEADS, KV, INTERMEDIATE = sizes
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=g) * (1.2 / math.sqrt(shape[-1]))  # noqa: E731
    one = lambda n: 1 + 0.2 * torch.randn(n, generator=g)  # noqa: E731
    kv = HEADS if kind == "ViSpec" else KV
    third = kind in ("EAGLE-3", "speculators")
    prefix, width = ("midlayer" if kind == "EAGLE-3" else "layers.0"), E * (2 if third else 1)
    w = {
        f"{prefix}.self_attn.q_proj.weight": draw(HEADS * D, width),
        f"{prefix}.self_attn.k_proj.weight": draw(kv * D, width),
        f"{prefix}.self_attn.v_proj.weight": draw(kv * D, width),
        f"{prefix}.self_attn.o_proj.weight": draw(E, HEADS * D),
        f"{prefix}.post_attention_layernorm.weight": one(E),
        f"{prefix}.mlp.gate_proj.weight": draw(INTERMEDIATE, E),
        f"{prefix}.mlp.up_proj.weight": draw(INTERMEDIATE, E),
        f"{prefix}.mlp.down_proj.weight": draw(E, INTERMEDIATE),
        "fc.weight": draw(E, E * (3 if third else 2)),
    }
    if not third:
        w["embed_tokens.weight"] = target.embedding.detach().clone()
    if kind in ("MSD", "ViSpec"):
        w |= {
            f"{prefix}.self_attn.{n}_proj.bias": torch.randn(r * D, generator=g)
            for n, r in {"q": HEADS, "k": kv, "v": kv}.items()
        }
        w["fc.bias"] = torch.randn(E, generator=g)
    if kind == "ViSpec":
        w |= {"imadpt.q": torch.randn(2, HEADS, D, generator=g), "img_fc.bias": torch.randn(E, generator=g)}
        w |= {f"imadpt.{n}_proj.weight": draw(E, E) for n in "kvo"} | {"img_fc.weight": draw(E, 2 * E)}
    if third:
        ids = torch.randperm(target.vocab_size, generator=g)[:vocabulary].sort().values
        w |= {f"{prefix}.input_layernorm.weight": one(E), f"{prefix}.hidden_norm.weight": one(E)}
        w |= {"norm.weight": one(E), "lm_head.weight": draw(vocabulary, E), "d2t": ids - torch.arange(vocabulary)}
        w["t2d"] = torch.zeros(target.vocab_size, dtype=torch.bool).index_fill_(0, ids, True)
    if change is not None:
        change(w)
    about = {
        "model_type": "llama" if third else "qwen2", "hidden_size": E, "num_attention_heads": HEADS,
        "num_key_value_heads": KV, "intermediate_size": INTERMEDIATE, "num_hidden_layers": 1, "rms_norm_eps": 1e-5,
        "rope_theta": THETA, "hidden_act": "silu", "vocab_size": target.vocab_size, "head_dim": D,
        "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    about |= config or {}
    if kind == "EAGLE-3":
        about |= {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": vocabulary}
    if kind == "speculators":
        about = {
            "speculators_model_type": "eagle3", "architectures": ["Eagle3Speculator"], "draft_vocab_size": vocabulary,
            "norm_before_residual": True, "transformer_layer_config": about,
        }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(about))
    if pickled:
        torch.save(w, folder / "pytorch_model.bin")
    else:
        save_file(w, folder / "model.safetensors")
    return w


class Reference:
    """What the drafter of a checkpoint computes.

    Args:
        kind, w: of `make`.
        embedding, head: the target's, [V, E].
        taken: "text" = text rows only; "all" = the video as it was trained to be seen.
    """

    def __init__(self, kind: str, w: dict, embedding: Tensor, head: Tensor, taken: str):
        self.kind, self.taken = kind, taken
        self.w = {k: v.double() if v.is_floating_point() else v for k, v in w.items()}
        self.embedding, self.head = embedding.double(), head.double()
        self.third = kind in ("EAGLE-3", "speculators")
        self.p = "midlayer." if kind == "EAGLE-3" else "layers.0."

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return self.w[f"{name}.weight"] * x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    def state(self, h: Tensor) -> Tensor:
        """A target's state, joined of three layers' in EAGLE-3, as it is reused."""
        return self.linear("fc", h) if self.third else h

    def row(self, e: Tensor, h: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """What attention reads, and what it is added to."""
        if self.third:
            read = torch.cat([self.norm(f"{self.p}input_layernorm", e), self.norm(f"{self.p}hidden_norm", h)])
            return read, self.norm(f"{self.p}hidden_norm", h) if self.kind == "speculators" else h
        if self.kind == "ViSpec":
            h = self.linear("img_fc", torch.cat([h, g]))
        z = self.linear("fc", torch.cat([e, h]))
        return z, z

    def compress(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """The block's token and global vector of its projector embeddings [n, E]."""
        k, v = self.linear("imadpt.k_proj", block), self.linear("imadpt.v_proj", block)
        answers = []
        for query in self.w["imadpt.q"]:
            heads = []
            for at, q in enumerate(query):
                part = slice(at * D, at * D + D)
                heads.append((k[:, part] @ q / math.sqrt(D)).softmax(0) @ v[:, part])
            answers.append(self.linear("imadpt.o_proj", torch.cat(heads)))
        return answers[0], answers[1]

    def sequence(self, tokens, is_text, states, given):
        """[(place, read, residual)] of all places but the first, and g behind the last one.

        states: [N, E * layers], the target's; given: [N, E], projector embeddings at visual places.
        """
        rows, g, start = [], torch.zeros(E, dtype=torch.float64), 0
        states, given = states.double(), given.double()
        for t in range(len(tokens)):
            if is_text[t]:
                if t:
                    rows.append((t, *self.row(self.embedding[tokens[t]], self.state(states[t - 1]), g)))
                continue
            start = t if t == 0 or is_text[t - 1] else start
            if self.taken == "text":
                continue
            if self.third:
                rows.append((t, *self.row(given[t], self.state(states[t - 1]), g)))
            elif self.kind == "ViSpec":
                if is_text[t + 1]:
                    z, g = self.compress(given[start : t + 1])
                    rows.append((t, z, z))
            else:
                rows.append((t, given[t], given[t]))
        return rows, g

    def project(self, rows) -> tuple[Tensor, Tensor, Tensor]:
        """q, k (turned by place) and v, [n, heads, D]."""
        read = torch.stack([r for _, r, _ in rows])
        q, k, v = (self.linear(f"{self.p}self_attn.{n}_proj", read).view(len(rows), -1, D) for n in "qkv")
        place = torch.tensor([float(t) for t, _, _ in rows], dtype=torch.float64)
        angle = place[:, None] * THETA ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)

        def turn(x):
            low, high = x[..., : D // 2], x[..., D // 2 :]
            cos, sin = angle.cos()[:, None], angle.sin()[:, None]
            return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

        return turn(q), turn(k), v

    def last(self, rows) -> Tensor:
        """The last row's output, which sees all rows."""
        q, k, v = self.project(rows)
        out = []
        for head in range(HEADS):
            at = head * k.shape[1] // HEADS
            out.append(((k[:, at] @ q[-1, head]) / math.sqrt(D)).softmax(0) @ v[:, at])
        x = rows[-1][2] + self.linear(f"{self.p}self_attn.o_proj", torch.cat(out))
        y = self.norm(f"{self.p}post_attention_layernorm", x)
        gate = self.linear(f"{self.p}mlp.gate_proj", y)
        return x + self.linear(f"{self.p}mlp.down_proj", gate * gate.sigmoid() * self.linear(f"{self.p}mlp.up_proj", y))

    def log_probabilities(self, out: Tensor) -> Tensor:
        """Over the target's vocabulary, -inf where nothing can be proposed."""
        if not self.third:
            return (self.head @ out).log_softmax(0)
        logits = self.w["lm_head.weight"] @ self.norm("norm", out)
        ids = self.w["d2t"] + torch.arange(len(logits))
        return torch.full((len(self.embedding),), -math.inf, dtype=torch.float64).index_copy_(
            0, ids, logits.log_softmax(0)
        )

    def tree(self, rows, g, total: int, depth: int, width: int) -> set[tuple[int, ...]]:
        """The drafted paths below the last row's token: every level expands the best `width`, the best `total` stay."""
        place, found = rows[-1][0], {}
        level = [((), 0.0, [])]  # path, score, rows behind the sequence
        for _ in range(depth):
            children = []
            for path, score, own in level:
                out = self.last(rows + own)
                best = self.log_probabilities(out).topk(width)
                for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                    new = (place + len(path) + 1, *self.row(self.embedding[token], out, g))
                    children.append(((*path, token), score + value, [*own, new]))
                    found[(*path, token)] = score + value
            level = sorted(children, key=lambda c: -c[1])[:width]
        return set(sorted(found, key=lambda p: -found[p])[:total])
