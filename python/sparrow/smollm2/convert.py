"""GGUF to what transformers reads: weights by name, and a tokenizer that gives llama.cpp's token ids."""

import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

# Special tokens of the model that chats do not use: the vocabulary stays as it is.
VIDEO, IMAGE, VISION_START, VISION_END = "<empty_output>", "<jupyter_output>", "<jupyter_start>", "<jupyter_script>"
PARTS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
NAMES = {"token_embd": "embed_tokens", "output_norm": "norm"}
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# The model's own template, for contents of parts as well; the tests compare them on texts.
TEMPLATE = f"""\
{{%- if messages[0]['role'] != 'system' -%}}
<|im_start|>system
{SYSTEM}<|im_end|>
{{% endif -%}}
{{%- for message in messages -%}}
<|im_start|>{{{{ message['role'] }}}}
{{% if message['content'] is string -%}}
{{{{ message['content'] }}}}
{{%- else -%}}
{{%- for part in message['content'] -%}}
{{%- if part['type'] == 'video' or 'video' in part -%}}
{VISION_START}{VIDEO}{VISION_END}
{{%- elif part['type'] == 'image' or 'image' in part -%}}
{VISION_START}{IMAGE}{VISION_END}
{{%- elif 'text' in part -%}}
{{{{ part['text'] }}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- endif -%}}
<|im_end|>
{{% endfor -%}}
{{%- if add_generation_prompt -%}}
<|im_start|>assistant
{{% endif -%}}
"""


@dataclass
class Language:
    """What the file holds.

    Attributes:
        text: fields of a decoder's config (transformers' names).
        state: float32 weights by the names within a Llama decoder ("layers.0.mlp.up_proj.weight").
        tokenizer: with the chat template TEMPLATE.
        template: the model's own one.
    """

    text: dict[str, Any]
    state: dict[str, Tensor]
    tokenizer: PreTrainedTokenizerFast
    template: str


def read(file: pathlib.Path) -> Language:
    """Reads a Llama model from GGUF; quantised weights become the float32 numbers they stand for.

    Raises:
        ModuleNotFoundError: gguf is not installed.
    """
    try:
        from gguf import GGUFReader, dequantize
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("gguf is needed to read the model: pip install 'sparrow-decoding[real]'") from error
    reader = GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    text = {
        "vocab_size": fields["llama.vocab_size"], "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"], "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": 1e-5,  # the file has it as a float32
        "rope_theta": fields["llama.rope.freq_base"], "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }  # fmt: skip
    heads = {"attn_q": text["num_attention_heads"], "attn_k": text["num_key_value_heads"]}
    state = {}
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        base, _, part = tensor.name.removesuffix(".weight").rpartition(".")
        if part in heads:
            weights = _half_rotation(weights, heads[part])
        name = NAMES[part] if not base else f"layers.{base.removeprefix('blk.')}.{PARTS[part]}"
        state[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(weights))
    return Language(text, state, _tokenizer(fields), fields["tokenizer.chat_template"])


def _half_rotation(weights: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp turns neighbouring rows of a head, transformers rows half a head apart."""
    return weights.reshape(heads, -1, 2, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # llama.cpp's pre-tokenizer "smollm": every number alone, then GPT-2's pattern
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    control = 3
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == control]
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>",
        unk_token="<|endoftext|>", video_token=VIDEO, image_token=IMAGE, vision_start_token=VISION_START,
        vision_end_token=VISION_END, padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer
