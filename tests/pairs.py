"""Small pairs of target and drafter in folders, as checkpoints: random weights, real code paths."""

import pathlib

import torch
import transformers

from sparrow.drafters.network import SparrowDrafter
from sparrow.miniature.model import SETTINGS, MiniatureSize, build_miniature, miniature_tokenizer
from sparrow.miniature.tokenizer import build_tokenizer
from sparrow.miniature.world import vocabulary_texts
from sparrow.targets.adapter import Target
from sparrow.targets.tiny import TinySize, tiny_target
from sparrow.video import FAMILIES, save_settings

SIZE = MiniatureSize(
    hidden=64, layers=3, heads=1, kv_heads=1, intermediate=96, vision_hidden=32, vision_layers=1, vision_heads=1,
    vision_intermediate=32,
)  # fmt: skip


def write_tiny_pair(folder: pathlib.Path) -> None:
    """A random Qwen2.5-VL with 28-pixel tokens and a random drafter: target/ and drafter/."""
    tokenizer = build_tokenizer()
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("im_end", "endoftext", "image_pad", "video_pad", "vision_start", "vision_end")
    }
    size = TinySize(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, eos_token_id=ids["im_end"],
        pad_token_id=ids["endoftext"], image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
    )  # fmt: skip
    model = tiny_target("qwen2_5_vl", seed=0, size=size)
    model.save_pretrained(folder / "target")
    tokenizer.save_pretrained(folder / "target")
    save_settings(FAMILIES["qwen2_5_vl"], folder / "target")
    SparrowDrafter.from_target(Target(model)).save_pretrained(folder / "drafter")


def miniature_pair(seed: int = 0):
    """(model, tokenizer, drafter): a random miniature that is nearly a bigram model, and a drafter that is one.

    The drafter guesses often and not always: paths of every length come up. States, positions and cache count in it.
    """
    tokenizer = miniature_tokenizer(vocabulary_texts(60))
    model = build_miniature(tokenizer, SIZE, seed).eval()
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        shape = model.lm_head.weight.shape
        model.model.language_model.embed_tokens.weight.copy_(torch.randn(shape, generator=generator))
        model.lm_head.weight = torch.nn.Parameter(0.6 * torch.randn(shape, generator=generator))
        for layer in model.model.language_model.layers:
            for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                matrix.mul_(12)
    drafter = SparrowDrafter.from_target(Target(model))
    with torch.no_grad():
        drafter.fc.weight.copy_(torch.cat([torch.eye(SIZE.hidden), 0.4 * torch.eye(SIZE.hidden)], dim=1))
        drafter.decoder_layer.self_attn.o_proj.weight.mul_(6)
    return model, tokenizer, drafter


def write_miniature_pair(folder: pathlib.Path, seed: int = 0) -> None:
    """target/ and drafter/ of miniature_pair."""
    transformers.utils.logging.disable_progress_bar()
    model, tokenizer, drafter = miniature_pair(seed)
    model.save_pretrained(folder / "target")
    tokenizer.save_pretrained(folder / "target")
    save_settings(SETTINGS, folder / "target")
    drafter.save_pretrained(folder / "drafter")
