"""sparrow: fast, lossless decoding for video LLMs. `generate` is transformers' generate with a text-only drafter."""

from sparrow.comparison import Comparison, compare
from sparrow.drafter import SparrowDrafter
from sparrow.drafter_config import DrafterConfig
from sparrow.generation import GenerateOutput, generate
from sparrow.specvlm import SpecVLM
from sparrow.stats import DecodeStats
from sparrow.targets.adapter import Target
from sparrow.tree import PRESETS, TreeConfig

__version__ = "0.1.0"
__all__ = [
    "PRESETS", "Comparison", "DecodeStats", "DrafterConfig", "GenerateOutput", "SparrowDrafter", "SpecVLM", "Target",
    "TreeConfig", "compare", "generate",
]  # fmt: skip
