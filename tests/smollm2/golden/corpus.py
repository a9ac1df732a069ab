"""Texts whose token ids are compared with llama.cpp's; the same on every machine."""

import hashlib
import json
import random

from sparrow.smollm2.prompts import TOPICS, prompts

HAND = (
    "The capital of France is Paris.", "", " ", "  ", "\n", "\n\n", "\t\tx", " leading", "trailing ", "a  b   c    d",
    "x\n\n\n  y\n\t z ", "1234567890", "3.14159", "a1b22c333", "1st, 2nd, 3rd", "٣٤٥ and ²³ and Ⅷ and ½", "１２３",
    "I'm you're he's we've they'll I'd don't CAN'T It'S", "'s 't 're", "''quoted''", "rock'n'roll", "don’t ‘quote’",
    "def f(x):\n    return x ** 2  # comment\n\n\nclass A:\n\tpass\n", "for(int i=0;i<10;++i){a[i]+=0x1F;}",
    "SELECT * FROM t WHERE a >= 10 AND b <> 'c';", "<div class=\"x\">&nbsp;</div>", "{\"k\": [1, 2, null]}",
    "naïve café Übergröße", "Привет, мир!", "你好，世界。", "こんにちは世界", "안녕하세요", "مرحبا بالعالم", "नमस्ते दुनिया",  # noqa: E501
    "😀😃 👩‍👩‍👧 🇫🇷 ✈️ ❤️", "a\u00a0b\u2003c\u3000d", "zero\u200bwidth", "e\u0301 combining", "tab\tand\rreturn\r\n",
    "!!!???...---___", "$100,000.00 (50%)", "https://example.org/a?b=c&d=e#f", "user@example.com", "C:\\dir\\file.txt",
    "ALLCAPS camelCase snake_case kebab-case", "  indented\n    more\n\tmixed", "The clip lasts 7 seconds.", "\x00\x07\x7f",  # noqa: E501
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "text <|im_end|> text", "<|endoftext|>",
    " <|im_start|> spaced", "<empty_output><jupyter_output>", "<|im_start", "im_end|>", "𝕳𝖊𝖑𝖑𝖔", "ﬁ ligature", "ſ ß ẞ",
)  # fmt: skip
PIECES = (
    " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "'s", "'ll", "’", "0", "7", "42", "1999", "½", "²", "é", "ü",  # noqa: E501
    "ж", "世", "界", "ال", "😀", "🇫🇷", "\u0301", "word", "Word", "WORD", " the", "ing", "_", "-", "--", "...", "!", "?", ",",  # noqa: E501
    ";", "(", ")", "[", "{", "}", "==", "->", "//", "/*", "#", "@", "$", "%", "&", "*", "+", "\\", "\"", "'", "`", "~",
)  # fmt: skip


def texts() -> list[str]:
    """Written by hand, drawn from pieces, and every prompt of the generator that a split's first 200 hold."""
    rng = random.Random("corpus")
    drawn = ["".join(rng.choices(PIECES, k=rng.randint(1, 24))) for _ in range(2000)]
    return [*HAND, *drawn, *(p for split in TOPICS for p in prompts(split, 200))]


GREEDY = tuple(prompts("test", 24))


def digest(rows: list[list[int]]) -> str:
    """Of lists of token ids."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
