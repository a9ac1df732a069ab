"""The offline tokenizer: exact size, round trips of any text and of saving, Qwen's special tokens and template."""

import random
import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sparrow.miniature.tokenizer import BYTES, NAMED_TOKENS, SENTENCES, SPECIAL_TOKENS, build_tokenizer

TEXTS = [
    "",
    " ",
    "\n\n  leading and trailing  \t\r\n",
    "A plain sentence, with 12345 digits.",
    "naïve café — “quotes” … £€¥",
    "日本語のテキスト、한국어, العربية, हिन्दी",
    "emoji 🙂👩‍👩‍👧‍👦🏳️‍🌈 and combining é e\u0301",
    "\x00\x01\x7f\ufeff\u200b\U0010ffff",
    "don't they're WE'VE",
]


def test_any_text_survives() -> None:
    rng = random.Random(0)
    noise = [
        "".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(40))
        for _ in range(60)
    ]
    for size in (BYTES + len(SPECIAL_TOKENS), 512):
        tokenizer = build_tokenizer(size)
        for text in [*TEXTS, *SENTENCES, *noise]:
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert all(0 <= i < size for i in ids)


def test_size_speed_and_determinism() -> None:
    start = time.perf_counter()
    tokenizer = build_tokenizer(512)
    assert time.perf_counter() - start < 1.0
    assert len(tokenizer) == 512 and tokenizer.get_vocab() == build_tokenizer(512).get_vocab()
    # merges were learned: a sentence of its training text takes far fewer tokens than bytes
    assert len(tokenizer(SENTENCES[6])["input_ids"]) < len(SENTENCES[6]) / 2
    least = BYTES + len(SPECIAL_TOKENS)
    with pytest.raises(ValueError, match=f"vocab_size must be at least {least}"):
        build_tokenizer(least - 1)
    with pytest.raises(ValueError, match="texts must be varied enough for vocab_size=600"):
        build_tokenizer(600, texts=["one"])
    assert len(build_tokenizer(270, texts=["videos about videos of videos " * 9])("videos")["input_ids"]) == 1


def test_saving(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(400, named_tokens={"video_token": "<video>", "context_image_token": "<IMG_CONTEXT>"})
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.chat_template == tokenizer.chat_template
    assert (loaded.eos_token, loaded.pad_token, loaded.padding_side) == ("<|im_end|>", "<|endoftext|>", "left")
    assert (loaded.video_token, loaded.context_image_token, loaded.image_token) == (
        "<video>",
        "<IMG_CONTEXT>",
        "<|image_pad|>",
    )
    for text in [*TEXTS, "<|im_start|>user\n<video><IMG_CONTEXT>hi<|im_end|>"]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_special_tokens() -> None:
    tokenizer = build_tokenizer(400)
    for i, token in enumerate(SPECIAL_TOKENS):
        assert tokenizer(f"a{token}b")["input_ids"][1:-1] == [i] == [tokenizer.convert_tokens_to_ids(token)]
    for name, token in NAMED_TOKENS.items():
        assert getattr(tokenizer, name) == token
    ids = tokenizer("a<|video_pad|>b<|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"


def test_chat_template() -> None:
    tokenizer = build_tokenizer(400)
    content = [{"type": "video"}, {"type": "video", "video": "b.mp4"}, {"type": "text", "text": "What?\n"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A ball."}]
    vision = "<|vision_start|><|video_pad|><|vision_end|>"
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{vision}{vision}What?\n<|im_end|>\n<|im_start|>assistant\nA ball.<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(messages, tokenize=False) == expected
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked == expected + "<|im_start|>assistant\n"
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "image"}]}]
    assert tokenizer.apply_chat_template(own, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
    )
