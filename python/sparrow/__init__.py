"""sparrow: fast, lossless decoding for video LLMs. `generate` is transformers' generate with a text-only drafter."""

from sparrow.decoding.compare import Comparison, compare
from sparrow.decoding.generate import GenerateOutput, generate
from sparrow.decoding.stats import DecodeStats
from sparrow.drafters.config import DrafterConfig
from sparrow.drafters.network import SparrowDrafter
from sparrow.drafters.specvlm import SpecVLM
from sparrow.targets.adapter import Target
from sparrow.tree import PRESETS, TreeConfig

__version__ = "0.1.0"
__all__ = [
    "PRESETS", "Comparison", "DecodeStats", "DrafterConfig", "GenerateOutput", "SparrowDrafter", "SpecVLM", "Target",
    "TreeConfig", "compare", "generate",
]  # fmt: skip
