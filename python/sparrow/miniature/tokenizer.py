"""A small byte-level BPE tokenizer trained offline, with Qwen's special tokens and chat template.

For targets that are built and trained here, which need no download. Any UTF-8 text survives a round trip.
"""

from collections.abc import Iterable, Mapping

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# attributes under which processors look their marks up
NAMED_TOKENS = {
    "video_token": "<|video_pad|>",
    "image_token": "<|image_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
BYTES = 256

# Qwen's rule for what a token may span: a contraction; a word with one character before it; one digit; punctuation with
# a space before it; line ends; blanks.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

# Turns between <|im_start|> and <|im_end|>, a default system turn, one placeholder between vision marks per picture.
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif part['type'] == 'image' or 'image' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

SENTENCES = (
    "Describe the video in detail.",
    "What happens in the video? Answer in one sentence.",
    "How many objects are there, and which one comes first?",
    "Which color is the large circle in the middle of the frame?",
    "Where is the small square at the end of the clip?",
    "In what direction does the triangle move?",
    "The video shows a large red circle on a dark background.",
    "First, a small blue square appears in the upper left corner and moves to the right.",
    "Then a yellow triangle comes into view near the bottom and moves slowly up.",
    "After that, a green cross enters from the right side and stays where it is.",
    "Finally, a white circle appears in the center, and the other shapes leave the scene.",
    "There are two objects in this clip: a purple square and a small red triangle.",
    "There are three objects in the video, and they enter one after another.",
    "There is only one object; it does not move.",
    "The second object is larger than the first one, and it is moving down.",
    "The third shape starts at the lower left and travels across the whole frame.",
    "At the beginning nothing can be seen; a moment later the first shape fades in.",
    "A person walks along a street, stops in front of a shop and looks through the window.",
    "A woman in a black coat opens the door, while a man with a dog waits outside.",
    "The camera pans from the left to the right and then zooms in on the table.",
    "Two children are playing with a ball in the garden behind the house.",
    "A car drives past the building, turns left at the corner and disappears from view.",
    "Someone is cutting vegetables on a wooden board, then puts them into a pot of boiling water.",
    "The scene changes: we now see the same room at night, with the lights switched off.",
    "Text on the screen says that the next train leaves in ten minutes.",
    "The player in the blue shirt passes the ball, and his team scores just before the time runs out.",
    "It was filmed from above, probably with a drone, on a bright and sunny day.",
    "Between the fifth and the eighth second, the bird spreads its wings and flies away.",
    "He picks up the cup with his right hand, drinks from it and puts it back on the shelf.",
    "Yes, the object that appeared first is still visible in the last frame.",
    "No, I cannot see any animal in this video; there are only people and boats near the water.",
    "The speed of the two shapes is the same, but they are moving in opposite directions.",
)


def build_tokenizer(
    vocab_size: int = 512,
    texts: Iterable[str] | None = None,
    named_tokens: Mapping[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer of exactly `vocab_size` entries; a few hundred take well under a second.

    Args:
        vocab_size: entries in all: special tokens, the 256 bytes, then learned merges.
        texts: training text; None = the built-in sentences about videos.
        named_tokens: attribute -> special token where they differ from NAMED_TOKENS; unknown ones follow Qwen's.

    Returns:
        The tokenizer, with chat template. `AutoTokenizer.from_pretrained` reads what its `save_pretrained` writes.

    Raises:
        ValueError: no room for bytes and special tokens, or not enough different text for so many merges.
    """
    named = NAMED_TOKENS | dict(named_tokens or {})
    special = [*SPECIAL_TOKENS, *(token for token in dict.fromkeys(named.values()) if token not in SPECIAL_TOKENS)]
    least = BYTES + len(special)
    if vocab_size < least:
        raise ValueError(f"vocab_size must be at least {least} (bytes and special tokens), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES if texts is None else texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"texts must be varied enough for vocab_size={vocab_size}, they give {tokenizer.get_vocab_size()} entries"
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=named,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
