"""A synthetic video world: seeded clips of moving shapes, and language whose content words depend on them."""

from sparrow.miniature.world.clips import FORMATS, Clip, Format, sample, visual_tokens, write_video
from sparrow.miniature.world.language import caption, converse, vocabulary_texts
from sparrow.miniature.world.render import render
from sparrow.miniature.world.scene import Scene, Shape, sample_scene

__all__ = [
    "FORMATS",
    "Clip",
    "Format",
    "Scene",
    "Shape",
    "caption",
    "converse",
    "render",
    "sample",
    "sample_scene",
    "visual_tokens",
    "vocabulary_texts",
    "write_video",
]
