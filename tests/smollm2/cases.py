"""What these tests share: a small language model of SmolLM2's form, and the real one where it can be had."""

import functools
import os

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparrow.miniature.world import vocabulary_texts
from sparrow.miniature.world.language import BIG, COUNTS
from sparrow.miniature.world.scene import COLOURS, KINDS
from sparrow.smollm2.convert import IMAGE, TEMPLATE, VIDEO, VISION_END, VISION_START, Language

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", VIDEO, IMAGE, VISION_START, VISION_END]


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, digits, and whole words of the world: built as SmolLM2's, a thousandth of its size."""
    words = {word for text in vocabulary_texts(50) for word in text.replace(".", " ").replace(",", " ").split()}
    words |= {*COLOURS, *KINDS, *COUNTS, *(w for pair in BIG.values() for w in pair), "upper", "lower", "top", "bottom",
              "left", "right", "center", "middle", "up", "down", "before", "after", "background"}  # fmt: skip
    plain = sorted(word for word in words if word.isalpha() and word.isascii())
    vocabulary = {token: i for i, token in enumerate(SPECIAL)}
    merges: list[tuple[str, str]] = []
    for piece in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[piece] = len(vocabulary)
    for word in plain:
        made = "Ġ"
        for letter in word:
            if made + letter not in vocabulary:
                vocabulary[made + letter] = len(vocabulary)
                merges.append((made, letter))
            made += letter
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made_of = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>",
        video_token=VIDEO, image_token=IMAGE, vision_start_token=VISION_START, vision_end_token=VISION_END,
        padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made_of.chat_template = TEMPLATE
    return made_of


def llama() -> LlamaForCausalLM:
    """A random Llama, two layers, with the heads' proportions of SmolLM2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer()),
                hidden_size=192,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=3,
                num_key_value_heads=1,
                max_position_embeddings=8192,
                tie_word_embeddings=True,
                rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=2,
            )
        ).eval()


def language() -> Language:
    """As convert.read would give it for `llama`."""
    model = llama()
    config = model.config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id",
             "pad_token_id")  # fmt: skip
    text = {name: getattr(config, name) for name in names} | {"rope_theta": 100000.0}
    state = {n.removeprefix("model."): v.clone() for n, v in model.state_dict().items() if n.startswith("model.")}
    return Language(text, state, tokenizer(), "")


def real_asked() -> bool:
    """Whether `make test-real` runs: the tests with the real model must then run, or fail."""
    return os.environ.get("SPARROW_REAL") == "1"
