"""sparrow: fast, lossless decoding for video LLMs. `generate` is transformers' generate with a text-only drafter.

A name's module is imported when the name is first asked for: `import sparrow` and `sparrow --help` answer at once.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # what type checkers take for true; `typing` alone would double the time of this import
if TYPE_CHECKING:
    from sparrow.decoding.compare import Comparison, compare
    from sparrow.decoding.generate import GenerateOutput, generate
    from sparrow.decoding.prefixes import PrefixStore
    from sparrow.decoding.session import Session
    from sparrow.decoding.stats import DecodeStats
    from sparrow.drafters.config import DrafterConfig
    from sparrow.drafters.network import SparrowDrafter
    from sparrow.drafters.specvlm import SpecVLM
    from sparrow.targets.adapter import Target
    from sparrow.tree import PRESETS, TreeConfig

__version__ = "0.1.0"
__all__ = [
    "PRESETS", "Comparison", "DecodeStats", "DrafterConfig", "GenerateOutput", "PrefixStore", "Session",
    "SparrowDrafter", "SpecVLM", "Target", "TreeConfig", "compare", "generate",
]  # fmt: skip

_HOME = {
    "PRESETS": "tree", "Comparison": "decoding.compare", "DecodeStats": "decoding.stats",
    "DrafterConfig": "drafters.config", "GenerateOutput": "decoding.generate", "SparrowDrafter": "drafters.network",
    "SpecVLM": "drafters.specvlm", "Target": "targets.adapter", "TreeConfig": "tree", "compare": "decoding.compare",
    "generate": "decoding.generate", "PrefixStore": "decoding.prefixes", "Session": "decoding.session",
}  # fmt: skip


if not TYPE_CHECKING:  # a checker must still see which names there are not

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
