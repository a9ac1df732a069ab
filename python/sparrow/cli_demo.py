"""`sparrow demo`: the whole path, from mp4 to verified text, on a small target built on the spot."""

import argparse
import pathlib
import sys
import tempfile

import torch
import transformers

from sparrow.cli_generate import run as run_generate
from sparrow.drafter import SparrowDrafter
from sparrow.targets.adapter import Target
from sparrow.targets.tiny import TinySize, tiny_target
from sparrow.targets.tokenizer import build_tokenizer
from sparrow.tree import TreeConfig
from sparrow.video import FAMILIES, save_settings

CLIP = pathlib.Path(__file__).parent / "assets" / "demo.mp4"
FAMILY = "qwen2_5_vl"


def run(arguments: argparse.Namespace) -> int:
    """Writes a random target and drafter to a folder and answers a question about the clip with them."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # the matrices are too small to share
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(arguments.folder or temporary)
        write_target(folder / "target")
        write_drafter(folder)
        print(
            "The target and the drafter have random weights: the text is noise and the drafter guesses nothing, so\n"
            "there is no speed-up to see. What the demo shows is the path - video, prefill, drafting, verification -\n"
            "and that its output is exact.\n",
            file=sys.stderr,
        )
        return run_generate(
            argparse.Namespace(
                target=str(folder / "target"), drafter=str(folder / "drafter"), video=[str(CLIP)],
                prompt="Describe the video.", num_frames=8, fps=None, max_new_tokens=arguments.max_new_tokens,
                tree=TreeConfig.parse("25-5-8"), temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=None, seed=0,
                positions="hf", dtype="float32", device="cpu", compare=True, json=None, trust_remote_code=False,
            )
        )  # fmt: skip


def write_target(folder: pathlib.Path) -> None:
    """A random Qwen2.5-VL with tokenizer and preprocessing settings, as a checkpoint folder."""
    tokenizer = build_tokenizer()
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("im_end", "endoftext", "image_pad", "video_pad")
    }
    vision = [tokenizer.convert_tokens_to_ids(f"<|vision_{side}|>") for side in ("start", "end")]
    size = TinySize(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, eos_token_id=ids["im_end"],
        pad_token_id=ids["endoftext"], image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=vision[0], vision_end_token_id=vision[1],
    )  # fmt: skip
    tiny_target(FAMILY, seed=0, size=size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_settings(FAMILIES[FAMILY], folder)


def write_drafter(folder: pathlib.Path) -> None:
    """A random drafter for the target in folder / "target"."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder / "target").eval()
    SparrowDrafter.from_target(Target(model)).save_pretrained(folder / "drafter")
