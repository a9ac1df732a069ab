"""What a drafter proposes from: the tables it shares with its target, its draft vocabulary, and its head."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparrow_ext
from sparrow.drafters.config import DrafterConfig
from sparrow.sampling import Noise


class Tables(NamedTuple):
    """What a drafter shares with its target; in a tuple none of it is registered as the drafter's own.

    Attributes:
        embedding: the target's table [V, E].
        head, norm: the target's LM head and final norm.
        draft_rows: the head's rows for the draft vocabulary [Vd, E]; None: no plain weight, or not used.
    """

    embedding: Tensor
    head: nn.Module
    norm: nn.Module
    draft_rows: Tensor | None


class Vocabulary(nn.Module):
    """From a drafter's output to tokens: norm, head, draft vocabulary.

    The head is the target's; or with config.own_head the drafter's own, one row per token of the draft vocabulary.
    """

    norm: nn.Module  # of its own, where it has one
    draft_vocab_ids: Tensor
    lm_head: nn.Linear

    def __init__(self, config: DrafterConfig):
        super().__init__()
        self.config = config
        if config.draft_vocab:
            self.register_buffer("draft_vocab_ids", torch.empty(0, dtype=torch.int64))
        self._tables: Tables | None = None

    def bind(self, embedding: Tensor, head: nn.Module, norm: nn.Module) -> None:
        """Shares a target's embedding table [V, E], LM head and final norm with the drafter.

        Raises:
            ValueError: the draft vocabulary or the drafter's own head does not fit them.
        """
        ids = self.draft_vocab_ids if self.config.draft_vocab else None
        if ids is not None and len(ids) and int(ids.max()) >= len(embedding):
            raise ValueError(f"draft vocabulary ids must be below the target's {len(embedding)}, got {int(ids.max())}")
        wanted = len(embedding) if ids is None else len(ids)
        if self.config.own_head and wanted and len(self.lm_head.weight) != wanted:
            raise ValueError(f"lm_head must have {wanted} rows, one per draft token, got {len(self.lm_head.weight)}")
        rows = getattr(head, "weight", None)
        if self.config.own_head or not isinstance(rows, Tensor) or getattr(head, "bias", None) is not None:
            rows = None  # no plain weight: `propose` goes through the module
        elif ids is not None:
            rows = self._rows(rows, ids)
        self._tables = Tables(embedding, head, norm, rows)

    @torch.no_grad()
    def _rows(self, head: Tensor, ids: Tensor) -> Tensor:
        """head[ids], in the memory they had before where they fit there: captured rounds know its address."""
        rows = None if self._tables is None else self._tables.draft_rows
        wanted = (len(ids), *head.shape[1:]), head.dtype, head.device
        if rows is None or rows.is_inference() or (tuple(rows.shape), rows.dtype, rows.device) != wanted:
            return head[ids]
        return torch.index_select(head, 0, ids, out=rows)

    @property
    def draft_rows(self) -> Tensor | None:
        """The head's rows for the draft vocabulary [Vd, E]; None where the head is no plain weight."""
        return self.lm_head.weight if self.config.own_head else self.tables.draft_rows

    @property
    def tables(self) -> Tables:
        """What `bind` was given. Raises RuntimeError before that."""
        if self._tables is None:
            raise RuntimeError("the drafter shares its target's embedding and head: call bind() first")
        return self._tables

    @property
    def embedding(self) -> Tensor:
        return self.tables.embedding

    @property
    def num_draft_tokens(self) -> int:
        """Size of the vocabulary it proposes from."""
        return len(self.draft_vocab_ids) if self.config.draft_vocab else self.embedding.shape[0]

    def head_input(self, out: Tensor) -> Tensor:
        """The drafter's output as the LM head reads it."""
        if self.config.output_norm == "own":
            return self.norm(out)
        return self.tables.norm(out) if self.config.output_norm == "target" else out

    def logits(self, out: Tensor) -> Tensor:
        """Logits over the draft vocabulary [..., Vd]; out [..., E]. For training and tests."""
        return self.logits_of(self.head_input(out))

    def logits_of(self, inputs: Tensor) -> Tensor:
        """As `logits`, of `head_input`'s result."""
        rows = self.draft_rows
        if rows is not None:
            return F.linear(inputs, rows)
        all_logits = self.tables.head(inputs)
        return all_logits[..., self.draft_vocab_ids] if self.config.draft_vocab else all_logits

    @property
    def id_map(self) -> Tensor | None:
        """int64 [Vd], the token of each row of the draft vocabulary; None where it is the target's vocabulary."""
        return self.draft_vocab_ids if self.config.draft_vocab else None

    def propose(self, out: Tensor, k: int, noise: Noise | None = None, level: int = 0) -> tuple[Tensor, Tensor]:
        """The k likeliest next tokens of each row: log-probabilities float32 [..., k] and ids int64 [..., k].

        With noise (of Vd columns; out [B, N, E]) the k largest of logits / temperature + noise of this level, and the
        log-softmax of these sums: how probable it is that the target draws the token with that noise, if its logits are
        the drafter's up to an error that is itself of Gumbel's kind.
        """
        inputs, rows = self.head_input(out), self.draft_rows
        if noise is None:
            bias = warm = None
        else:
            bias, warm = noise.at(level), noise.temperature[:, None, None].to(inputs.dtype)
        if rows is not None:
            inputs = inputs if warm is None else inputs / warm
            logp, ids, _ = sparrow_ext.lm_head_topk(inputs, rows, k, self.id_map, bias)
        else:
            logits = self.logits_of(inputs)
            logits = logits if warm is None else logits / warm
            logp, ids, _ = sparrow_ext.topk_lse(logits, k, self.id_map, bias)
        return logp, ids

    # ---- sizes known from the weights only ----
    def take_vocabulary(self, weights: Mapping[str, Tensor], where: str) -> None:
        """Makes room for the draft vocabulary and the head that stored weights have. Raises ValueError without them."""
        if self.config.draft_vocab and "draft_vocab_ids" in weights:
            self.set_draft_vocab(weights["draft_vocab_ids"])
        if self.config.own_head:
            if "lm_head.weight" not in weights:
                raise ValueError(f"the weights in {where} do not fit its config: own_head needs lm_head.weight")
            self.set_head(weights["lm_head.weight"])

    def set_head(self, rows: Tensor) -> None:
        """Gives the drafter with own_head its head: [Vd, E], one row per token of its draft vocabulary, in order."""
        if rows.dim() != 2 or rows.shape[1] != self.config.hidden_size:
            raise ValueError(f"lm_head must be [Vd, {self.config.hidden_size}], got {list(rows.shape)}")
        self.lm_head = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
        self.lm_head.weight = nn.Parameter(rows)

    def set_draft_vocab(self, ids: Tensor) -> None:
        """Sets the draft vocabulary: distinct target token ids, int64 [Vd]."""
        if ids.dtype != torch.int64 or ids.dim() != 1 or ids.numel() == 0:
            raise ValueError(f"draft vocabulary ids must be int64 [Vd], Vd >= 1; got {ids.dtype} {tuple(ids.shape)}")
        if ids.unique().numel() != ids.numel():
            raise ValueError("draft vocabulary ids must be distinct: each draft id maps to one token")
        self.draft_vocab_ids = ids
