"""One adapter over the unmodified video LLMs of transformers (see FAMILIES)."""

import contextlib
import hashlib
import weakref
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparrow.targets.attention import NAME, RANKING, attention_in
from sparrow.targets.blocks import Blocks, runs_through_blocks
from sparrow.targets.cache import TargetCache
from sparrow.targets.linear import DTYPES, skinny_linear_in, untouched
from sparrow.targets.prefilling import WHOLE, Portions, Prefill, PromptPass
from sparrow.targets.versions import cache_argument, warn_outside_tested

warn_outside_tested()

FAMILIES = {
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "llava_onevision": "LLaVA-OneVision",
    "internvl": "InternVL",
    "llava_next_video": "LLaVA-NeXT-Video",
}
Layers: TypeAlias = int | tuple[int, ...] | None  # whose states are wanted
_in_use: "weakref.WeakKeyDictionary[nn.Module, Blocks]" = weakref.WeakKeyDictionary()  # see Target.verifying
MROPE_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def head_rows(head: Tensor) -> Tensor:
    """64 or more of an LM head's rows [V, E]: what tells a target from others of its sizes."""
    return head[:: max(1, head.shape[0] // 64)].detach()


class Target:
    """A transformers video LLM as the decode loop sees it: prefill, verify, and the weights a drafter shares.

    Args:
        model: one of FAMILIES, eager PyTorch, all of it on one device.

    Attributes:
        cache_argument: the name under which this release's model takes its KV cache.

    Raises:
        ValueError: an unsupported family, or a decoder with a feature tree_attention does not model.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.config = model.config.get_text_config()
        self.family = str(model.config.model_type)
        _refuse_what_is_not_modelled(model, self.family)
        self.decoder = model.model.language_model
        self.cache_argument = cache_argument(model)
        self.num_layers = int(self.config.num_hidden_layers)
        self.vocab_size = int(self.embedding.shape[0])

    @property
    def _blocks(self) -> Blocks | None:
        """What verify passes of this model run through now, whichever Target is `verifying`."""
        return _in_use.get(self.model)

    @property
    def embedding(self) -> Tensor:
        """The token embedding table, [V, E]."""
        return self.model.get_input_embeddings().weight

    @property
    def head(self) -> nn.Module:
        """The LM head module."""
        return self.model.get_output_embeddings()

    @property
    def norm(self) -> nn.Module:
        """The decoder's final norm."""
        return self.decoder.norm

    @property
    def deepstack_layers(self) -> int:
        """How many of the first layers add the vision tower's features to visual rows (Qwen3-VL)."""
        return len(getattr(self.model.config.vision_config, "deepstack_visual_indexes", None) or ())

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def placeholders(self, kind: str) -> list[int]:
        """The token ids that the model replaces by features of a "video" or an "image"."""
        names = (f"{kind}_token_id", f"{kind}_token_index")
        return [int(found) for name in names if (found := getattr(self.model.config, name, None)) is not None]

    def visual_tokens(self) -> set[int]:
        """The placeholder ids that the model replaces by image or video features."""
        return {*self.placeholders("image"), *self.placeholders("video")}

    def is_text(self, input_ids: Tensor) -> Tensor:
        """bool, shaped as input_ids: which tokens of a prompt are text. (A generated one is text, whatever its id.)"""
        return ~torch.isin(input_ids, torch.tensor(sorted(self.visual_tokens()), device=input_ids.device))

    def inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What a processor made, on the model's device; pixels in its dtype, all else (times, ids) as it is."""
        return {
            name: value.to(self.device, self.model.dtype if name.startswith("pixel") else value.dtype)
            if isinstance(value, Tensor)
            else value
            for name, value in inputs.items()
        }

    def keep_offset(self, next_position: Tensor, length: int) -> None:
        """Leaves M-RoPE's offset behind that continues a prompt of `length` tokens whose position ids were given.

        next_position: int64 [..., B, 1], of the token after it. transformers sets the offset where it numbers the
        prompt itself, and reads it when it continues from a cache.
        """
        if self.family in MROPE_FAMILIES:
            self.model.model.rope_deltas = (next_position[-1] if next_position.dim() == 3 else next_position) - length

    def fingerprint(self) -> dict[str, object]:
        """What a drafter must have been made for: family, sizes, and a hash of the signs of some LM-head rows, which
        are the same in whatever dtype the model is loaded.
        """
        weight = getattr(self.head, "weight", None)
        head = self.embedding if weight is None else weight
        return fingerprint_of(self.family, self.config, self.vocab_size, head_rows(head))

    def identity(self) -> Hashable | None:
        """What a captured verify pass holds of the model: where its weights are.

        None where the pass is more than operators: modules with hooks or a forward of their own, autocast, rotary
        frequencies that depend on the positions. Ask outside `verifying`.
        """
        modules = (self.model, self.model.model, *self.decoder.modules(), self.head)
        rope = (getattr(self.config, "rope_parameters", None) or {}).get("rope_type", "default")
        if (
            not all(map(untouched, modules))
            or rope in ("dynamic", "longrope")
            or torch.is_autocast_enabled(self.device.type)
        ):
            return None
        tensors = [t for m in (self.decoder, self.head) for t in (*m.parameters(), *m.buffers())]
        return str(self.embedding.dtype), *(t.data_ptr() for t in tensors)

    def new_cache(self, capacity: int, storage: tuple[Tensor, Tensor] | None = None) -> TargetCache:
        """An empty cache of `capacity` rows per sequence; storage: buffer and lengths of an earlier one, to be used."""
        return TargetCache(self.num_layers, capacity, storage)

    def prefill(
        self,
        input_ids: Tensor,
        model_kwargs: Mapping[str, object],
        hidden_layer: Layers,
        visual_layer: int | None = None,
        first: int = 0,
        portions: Portions = WHOLE,
    ) -> Prefill:
        """Runs the prompt with the attention the user loaded the model with.

        Args:
            input_ids: int64 [B, P].
            model_kwargs: what transformers' generate() prepared: the cache as `cache_argument`, position_ids, pixel
                values, ...
            hidden_layer: index into transformers' hidden_states (0 = embeddings, num_layers = after the final norm);
                None = no states wanted; several are joined along the last axis.
            visual_layer: the layer of Prefill.visual; None = not wanted.
            first: places before it are in the cache already, and model_kwargs has the pixels of later ones only; the
                result is of places `first` to P - 1.
            portions: what of it is run, and how much at a time; visual_layer must be None where it is not all.
        """
        position_ids = model_kwargs["position_ids"]
        assert isinstance(position_ids, Tensor)
        position_ids = position_ids.to(input_ids.device)
        if first:
            input_ids, position_ids = input_ids[:, first:], position_ids[..., first:]
            of_tokens = {
                n: t for n, t in model_kwargs.items() if n.endswith("token_type_ids") and isinstance(t, Tensor)
            }
            types = {name: value[:, first:] for name, value in of_tokens.items()}
            model_kwargs = {**model_kwargs, **types, "position_ids": position_ids, "attention_mask": None}
        inputs = self.model.prepare_inputs_for_generation(
            input_ids, is_first_iteration=True, **{**model_kwargs, "logits_to_keep": 1}
        )
        b, p = input_ids.shape
        rows = None if visual_layer is not None else portions.rows(self.is_text(input_ids))
        attention = self.config._attn_implementation
        run = PromptPass(self.decoder, self.cache_argument, portions, rows, first, attention)
        with run.running(), self._states(hidden_layer, run) as states, self._states_of(visual_layer) as visual:
            out = self.model(**inputs, return_dict=True)
        places = torch.arange(p, device=input_ids.device) if rows is None else rows.nonzero()[:, 0]
        flat = position_ids if position_ids.dim() == 2 else position_ids[-1]
        return Prefill(
            logits=out.logits[:, -1].float(),
            hidden=states[0] if states else out.logits.new_empty(b, len(places), 0),
            places=first + places,
            next_position=position_ids[..., -1:] + 1,
            text_position=flat[:, -p:].expand(b, p),  # a mask of another width gives other ids than one per token
            visual=torch.cat(visual, dim=1) if visual else None,
        )

    def verify(
        self,
        tokens: Tensor,
        anc: Tensor,
        position_ids: Tensor,
        cache: TargetCache,
        hidden_layer: Layers,
        error: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One forward pass over the root and the drafted nodes; call it inside `verifying`.

        It reads nothing on the host, and repeats the same operators whatever the cache holds.

        Args:
            tokens: int64 [B, N]; anc: int64 [B, N, W], see tree_mask; position_ids: int64 [..., B, N].
            cache: its rows behind the committed ones receive the nodes' keys and values, uncommitted.
            hidden_layer: as in prefill.
            error: the operators' error word; rows beyond the cache set a bit of it.

        Returns:
            logits float32 [B, N, V] and that layer's states [B, N, E].
        """
        if self._blocks is None:
            return self._by_modules(tokens, anc, position_ids, cache, hidden_layer, error)
        layers = () if hidden_layer is None else hidden_layer if isinstance(hidden_layer, tuple) else (hidden_layer,)
        with cache.appending(tokens.shape[1], error):
            logits, states = self._blocks(tokens, anc, position_ids, cache, error, layers)
        return logits.float(), torch.cat(states, dim=-1) if states else logits.new_empty(*tokens.shape, 0)

    def _by_modules(
        self, tokens: Tensor, anc: Tensor, position_ids: Tensor, cache: TargetCache, hidden_layer: Layers,
        error: Tensor | None = None, **attention: object,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `verify`, through the model's own modules; attention: more arguments for the decoder's attention."""
        with cache.appending(tokens.shape[1], error), self._states(hidden_layer) as states:
            out = self.model(
                input_ids=tokens,
                attention_mask=anc.unsqueeze(1),
                position_ids=position_ids,
                use_cache=True,
                return_dict=True,
                sparrow_lengths=cache.layer_lengths,
                sparrow_error=error,
                **{self.cache_argument: cache, **attention},
            )
        return out.logits.float(), states[0] if states else out.logits.new_empty(*tokens.shape, 0)

    @contextlib.contextmanager
    def verifying(self) -> Iterator[None]:
        """Verify passes run inside: through Blocks, where the model is one of those that they know as it is; else
        through its modules, the decoder's attention being tree_attention, its plain linear layers and the head
        skinny_linear. Callbacks may run other prompts through an untouched model: M-RoPE's offset is put back.
        """
        before, inner = self._blocks, self.model.model
        offset = getattr(inner, "rope_deltas", None)
        with contextlib.ExitStack() as stack:
            if before is None and runs_through_blocks(self.model, self.device):
                _in_use[self.model] = Blocks(self.model)
            elif before is None:
                modules = dict.fromkeys([*self.decoder.modules(), self.head])
                stack.enter_context(attention_in(self.model, NAME))
                stack.enter_context(skinny_linear_in(modules, self.device))
            try:
                yield
            finally:
                if before is None:
                    _in_use.pop(self.model, None)
                if offset is not None:
                    inner.rope_deltas = offset

    def attention_from(self, prompt: Tensor, first: int, prefill: Prefill, cache: TargetCache) -> Tensor:
        """How much the prompt's rows from place `first` on attend to each of its rows: float32 [B, P], summed over
        layers, heads and rows.

        These rows are run once more over the prompt's cache, a few at a time; the cache is left as it is.
        """
        b, p = prompt.shape
        sums = torch.zeros(b, p, dtype=torch.float32, device=prompt.device)
        with attention_in(self.model, RANKING):
            for start in range(first, p, step := min(64, cache.capacity - p)):
                rows = slice(start, min(start + step, p))
                tokens, position = prompt[:, rows], prefill.text_position[:, rows]
                position = position.expand(*prefill.next_position.shape[:-1], -1)
                anc = torch.zeros(b, tokens.shape[1], 1, dtype=torch.int64, device=prompt.device)
                self._by_modules(tokens, anc, position, cache, None, sparrow_first=start, sparrow_sums=sums)
        return sums

    @contextlib.contextmanager
    def _states(self, hidden_layer: Layers, run: PromptPass | None = None) -> Iterator[list[Tensor]]:
        """As _states_of, of several layers [..., E * layers]; the list is filled when the context ends."""
        layers = hidden_layer if isinstance(hidden_layer, tuple) else (hidden_layer,)
        states: list[Tensor] = []
        with contextlib.ExitStack() as hooks:
            caught = [hooks.enter_context(self._states_of(layer, run)) for layer in layers]
            yield states
        if all(caught):
            found = [torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0] for pieces in caught]
            states.append(torch.cat(found, dim=-1) if len(found) > 1 else found[0])

    @contextlib.contextmanager
    def _states_of(self, hidden_layer: int | None, run: PromptPass | None = None) -> Iterator[list[Tensor]]:
        """Yields a list that receives transformers' hidden_states[hidden_layer] of each forward pass inside, if any; of
        a PromptPass the rows that it wants.

        A hook, not output_hidden_states=: all of a 7B model's states would be 5 GB at 25k tokens, and a list of layers
        counts from the embeddings from transformers 5.23 on, from the first layer's output before.
        """
        states: list[Tensor] = []
        if hidden_layer is None:
            yield states
            return

        def see(found: Tensor) -> None:
            states.append(found if run is None else run.chosen(found))

        layers = self.decoder.layers
        if hidden_layer == 0:
            hook = layers[0].register_forward_pre_hook(lambda module, args: see(args[0]))
        else:
            module = self.norm if hidden_layer == len(layers) else layers[hidden_layer - 1]
            hook = module.register_forward_hook(
                lambda module, args, out: see(out[0] if isinstance(out, tuple) else out)
            )
        try:
            yield states
        finally:
            hook.remove()


def fingerprint_of(family: str, text: Any, vocab_size: int, sample: Tensor) -> dict[str, object]:
    """See Target.fingerprint; text: the decoder's config, sample: head_rows of its head."""
    digest = hashlib.sha256(torch.signbit(sample).to("cpu", torch.uint8).numpy().tobytes())
    return {
        "family": family,
        "hidden_size": int(text.hidden_size),
        "num_layers": int(text.num_hidden_layers),
        "vocab_size": vocab_size,
        "head_signs": digest.hexdigest()[:16],
    }


def _refuse_what_is_not_modelled(model: PreTrainedModel, family: str) -> None:
    """Raises ValueError naming what tree_attention does not compute."""
    if family not in FAMILIES:
        raise ValueError(f"model must be one of {', '.join(FAMILIES.values())}; got model_type={family!r}")
    text = model.config.get_text_config()
    other = {t for t in getattr(text, "layer_types", None) or [] if t != "full_attention"}
    if other:
        raise ValueError(f"tree_attention models full attention only; {family} has layers of type {sorted(other)}")
    if getattr(text, "sliding_window", None) and not getattr(text, "layer_types", None):  # Mistral's: of every layer
        raise ValueError(
            f"tree_attention models full attention only; this {family} config has sliding_window={text.sliding_window}"
        )
    for name in ("attn_logit_softcapping", "final_logit_softcapping", "attention_sinks", "attention_chunk_size"):
        if getattr(text, name, None):
            raise ValueError(f"tree_attention does not model {name}={getattr(text, name)!r} of this {family} config")
    if (dtype := model.get_input_embeddings().weight.dtype) not in DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
        raise ValueError(f"model must be in {names}; this one is in {str(dtype).removeprefix('torch.')}")
    devices = {str(p.device) for p in model.parameters()}
    if len(devices) > 1:
        raise ValueError(f"model must live on one device; its parameters are on {sorted(devices)}")
