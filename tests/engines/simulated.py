"""An engine that batches continuously, without a model: block tables, prefix cache, chunked prefill, rejected drafts,
preemption. Its states are a function of the tokens before them alone, as a target's are.
"""

import hashlib
from dataclasses import dataclass, field

import torch
from torch import nn

from sparrow.drafters.config import DrafterConfig
from sparrow.drafters.network import SparrowDrafter
from sparrow.engines.chain import ChainDrafter
from sparrow.engines.rows import Step
from sparrow.engines.store import RowStore, columns_per_token

E, V, VIDEO = 24, 60, 7


def tiny_drafter(**overrides) -> SparrowDrafter:
    values = dict(
        target={"num_layers": 2}, hidden_size=E, num_heads=2, num_kv_heads=1, head_dim=8, intermediate_size=32,
        hidden_layer=2, hidden_norm=True,
    )  # fmt: skip
    torch.manual_seed(0)
    drafter = SparrowDrafter(DrafterConfig(**(values | overrides)))
    for parameter in drafter.parameters():
        nn.init.normal_(parameter, std=0.4)
    drafter.place(torch.device("cpu"), torch.float32)
    drafter.bind(torch.randn(V, E), nn.Linear(E, V, bias=False), nn.Identity())
    return drafter


def state_after(tokens) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(repr(list(tokens)).encode()).digest()[:7], "big")
    return torch.randn(E, generator=torch.Generator().manual_seed(seed))


def reference(drafter: SparrowDrafter, tokens: list[int], is_text: list[bool], length: int) -> list[int]:
    """The chain behind `tokens`, its last not run, from nothing and in plain PyTorch."""
    text = [p for p, one in enumerate(is_text) if one]
    hidden = [state_after(tokens[:p]) if p else None for p in text]
    rows = torch.stack([torch.zeros(E) if h is None else drafter.reuse(h) for h in hidden])
    ids = [tokens[p] for p in text]
    place = list(range(len(text))) if drafter.config.positions == "text" else text
    made: list[int] = []
    for _ in range(length):
        out = drafter(torch.tensor([ids]), rows[None], torch.tensor([place]))[0, -1]
        made.append(int(drafter.logits(out).argmax()))
        ids, place, rows = [*ids, made[-1]], [*place, place[-1] + 1], torch.cat([rows, drafter.reuse(out)[None]])
    return made


@dataclass
class Request:
    tokens: list[int]
    prompt: int
    is_text: list[bool]
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    drafts: list[int] = field(default_factory=list)


class Engine:
    """Runs steps of given requests and checks every draft against `reference`."""

    def __init__(self, drafter, *, slots=4, capacity=64, length=3, block=4, blocks=64, seed=0):
        c = drafter.config
        columns = columns_per_token(c.num_kv_heads, c.head_dim, c.hidden_size, block)
        self.drafter, self.block, self.length, self.slots_free = drafter, block, length, list(range(slots))
        self.chain = ChainDrafter(drafter, slots, 128, capacity, length, block)
        # Garbage where nobody wrote; the engine's own blocks are larger than those the cache is seen in.
        self.store = RowStore(torch.full((blocks * 2, 1, block // 2, columns), 1e3), block, 1, c.head_dim, E)
        self.random = torch.Generator().manual_seed(seed)
        self.free, self.cached = torch.randperm(blocks, generator=self.random).tolist(), {}
        self.slots: dict[int, int] = {}
        self.requests: dict[int, Request] = {}
        self.checked = 0

    def draw(self, high: int) -> int:
        return int(torch.randint(high, (1,), generator=self.random))

    def add(self, name: int, tokens: list[int]) -> None:
        self.requests[name] = Request(list(tokens), len(tokens), [t != VIDEO for t in tokens])

    def preempt(self, name: int, keeps_slot: bool = False) -> None:
        """Its blocks are gone, and its place unless nobody needs it; what is cached of it stays."""
        request = self.requests[name]
        request.blocks, request.computed, request.drafts = [], 0, []
        if not keeps_slot:
            self.slots_free.append(self.slots.pop(name))

    def _hit(self, request: Request) -> None:
        """As many whole cached blocks as leave one token to run."""
        while (end := request.computed + self.block) < len(request.tokens):
            block = self.cached.get(tuple(request.tokens[:end]))
            if block is None:
                break
            request.blocks.append(block)
            request.computed = end

    def _allocate(self, request: Request, stop: int) -> None:
        while len(request.blocks) * self.block < stop:
            request.blocks.append(self.free.pop())
        for end in range(self.block, min(stop, len(request.tokens)) + 1, self.block):  # before they are run, as vLLM
            self.cached.setdefault(tuple(request.tokens[:end]), request.blocks[end // self.block - 1])

    def step(self, share: dict[int, int]) -> None:
        """Runs share[name] prompt tokens at most of each request (new ones start here), and drafts behind others."""
        names, kv, states, columns = list(share), [], [], []
        table = torch.zeros(len(names), 130, dtype=torch.int32)
        for row, name in enumerate(names):
            request = self.requests[name]
            if not request.blocks:
                self._hit(request)
            if name not in self.slots:
                self.slots[name] = self.slots_free.pop(0)
                self.chain.book.open(self.slots[name], torch.tensor(request.is_text[: request.prompt]))
            start, known = request.computed, len(request.tokens)
            decodes = start == known - 1
            run = request.tokens[start:] + request.drafts if decodes else request.tokens[start:][: share[name]]
            self._allocate(request, start + len(run))
            seen = request.tokens[:start] + run
            states += [state_after(seen[: start + i + 1]) for i in range(len(run))]
            kv += [request.blocks[p // self.block] * self.block + p % self.block for p in range(start, len(seen))]
            sampled = start + len(run) >= known
            accepted = self.draw(len(request.drafts) + 1) if sampled and decodes else 0
            if sampled:
                drawn = [*request.drafts[:accepted], 8 + self.draw(V - 8)]
                request.tokens += drawn
                request.is_text += [True] * len(drawn)
            true = 1 + accepted if decodes else len(run)
            request.computed = start + true
            columns.append([self.slots[name], start, len(run), true, sampled])
            table[row, : len(request.tokens)] = torch.tensor(request.tokens)
        self._draft(names, torch.tensor(columns).T, table, torch.stack(states), torch.tensor(kv))

    def _draft(self, names, columns, table, states, kv) -> None:
        def kv_slots_of(request: int, positions):
            blocks = torch.tensor(self.requests[names[request]].blocks)
            return blocks[positions // self.block] * self.block + positions % self.block

        step = Step(*columns[:4], columns[4].bool())
        rubbish = torch.full((3, E), torch.nan)  # engines pad their batches
        who, drafts, confidence = self.chain.after(
            step,
            lambda request, position: table[request, position],
            torch.cat([states, rubbish]),
            self.store,
            kv,
            kv_slots_of,
            self.length,
        )
        assert confidence.shape == drafts.shape == (len(who), self.length)
        for name in names:
            self.requests[name].drafts = []
        for row, ids in zip(who.tolist(), drafts.tolist(), strict=True):
            request = self.requests[names[row]]
            assert ids == reference(self.drafter, request.tokens, request.is_text, self.length), names[row]
            request.drafts = ids
            self.checked += 1
