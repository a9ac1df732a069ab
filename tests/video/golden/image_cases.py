"""What tests/video/golden/image.json covers: families, sizes and modes of images, prompts with videos between them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.video.golden.cases import CROP, LARGE, ODD, SMALL, TALL, WHOLE_CONFIG, WIDE, clip

# "image" or "video", and (height, width) or (frames, height, width)
Medium = tuple[str, tuple[int, ...]]
MARKS = {
    "qwen": ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"),
    "internvl": ("<IMG_CONTEXT>\n", "<video>\n"),
    "llava": ("<image>\n", "<video>\n"),
}
HUGE, POINT, LINE, STRIP = (3000, 4000), (1, 1), (1, 64), (2, 400)
LLAVA = {"num_image_tokens": 729, "vision_feature_select_strategy": "full"}
NEXT = {"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}


@dataclass(frozen=True)
class ImageCase:
    """One prompt; `config` is what the checkpoint's image processor says, `whole` what its processor does."""

    name: str
    family: str
    media: tuple[Medium, ...]
    config: dict[str, Any] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)

    @property
    def whole_config(self) -> dict[str, Any]:
        """What the checkpoint's processor_config.json says."""
        return WHOLE_CONFIG.get(self.family, {}) | self.whole

    @property
    def prompt(self) -> str:
        """Text with one placeholder per medium."""
        image, video = next(marks for start, marks in MARKS.items() if self.family.startswith(start))
        placed = "?".join(image if kind == "image" else video for kind, _ in self.media)
        return f"USER: {placed}Was sieht man? 何が見えますか。 ASSISTANT:"

    @property
    def template(self) -> str:
        """A chat template for any messages, with this family's placeholders."""
        image, video = next(marks for start, marks in MARKS.items() if self.family.startswith(start))
        return (
            "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
            "{% if p['type'] == 'image' %}"
            + image
            + "{% elif p['type'] == 'video' %}"
            + video
            + "{% else %}{{ p['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
            "{% if add_generation_prompt %}it: {% endif %}"
        )

    @property
    def chat(self) -> list[dict[str, Any]]:
        """The media in a conversation: one in its first turn, the others around the question of its third."""
        from PIL import Image

        pictures, clips = map(Image.fromarray, self.images), iter(self.clips)
        parts = [{"type": kind, kind: next(pictures if kind == "image" else clips)} for kind, _ in self.media]
        said = [{"type": "text", "text": text} for text in ("Was sieht man?", "Einen Ball.", "何が見えますか。")]
        return [
            {"role": "user", "content": [parts[0], said[0]]},
            {"role": "assistant", "content": [said[1]]},
            {"role": "user", "content": [*parts[1:2], said[2], *parts[2:]]},
        ]

    @property
    def images(self) -> list[np.ndarray]:
        """uint8 [H, W, 3] each."""
        return [clip((1, *size), seed)[0] for seed, (kind, size) in enumerate(self.media) if kind == "image"]

    @property
    def clips(self) -> list[np.ndarray]:
        """uint8 [T, H, W, 3] each."""
        return [clip(size, seed) for seed, (kind, size) in enumerate(self.media) if kind == "video"]  # type: ignore[arg-type]


def _every_family(family: str) -> list[ImageCase]:
    def case(name: str, *media: Medium) -> ImageCase:
        return ImageCase(f"{family}/{name}", family, media)

    sizes = {"odd": ODD, "wide": WIDE, "tall": TALL, "large": LARGE, "point": POINT, "line": LINE}
    sizes |= {"strip": STRIP, "line_down": (64, 1), "square": (384, 384), "half": (500, 250)}
    if family in ("qwen2_5_vl", "llava_onevision", "internvl"):
        sizes["huge"] = HUGE
    cases = [case(name, ("image", size)) for name, size in sizes.items()]
    if not family.startswith("qwen"):
        # no bound of the aspect ratio
        cases.append(case("thread", ("image", (1, 3000))))
    return [
        *cases,
        case("two", ("image", ODD), ("image", SMALL)),
        case("three", ("image", WIDE), ("image", POINT), ("image", TALL)),
        case("between", ("image", SMALL), ("video", (4, *ODD)), ("image", TALL)),
        case("after", ("video", (4, *SMALL)), ("video", (4, *ODD)), ("image", ODD)),
    ]


def _configured(family: str) -> list[ImageCase]:
    def case(name: str, *sizes: tuple[int, int], **rest: Any) -> ImageCase:
        return ImageCase(f"{family}/{name}", family, tuple(("image", size) for size in sizes), **rest)

    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.4, 0.3]}
    if family.startswith("qwen"):
        budget = {"patch_size": 8, "merge_size": 3, "temporal_patch_size": 3, "rescale_factor": 1 / 127.5, **half}
        return [
            case("budget", ODD, LARGE, config=budget | {"size": {"shortest_edge": 9216, "longest_edge": 40000}}),
            case("old_budget", ODD, SMALL, config={"min_pixels": 50176, "max_pixels": 100352}),
        ]
    if family == "llava_onevision":
        small = {"size": {"height": 56, "width": 56}, "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]}
        return [
            case("published", LARGE, config=half, whole=LLAVA),
            case("default_strategy", ODD, SMALL, whole=LLAVA | {"vision_feature_select_strategy": "default"}),
            case("small", TALL, config=half | small, whole=LLAVA | {"num_image_tokens": 16}),
            case("area_1", LARGE, whole=LLAVA | {"vision_aspect_ratio": "anyres_max_1"}),
        ]
    if family == "llava_next_video":
        large = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
        crop = CROP | {"image_grid_pinpoints": [[64, 128], [128, 64]]}
        return [
            case("published", LARGE, ODD, config=large, whole=NEXT),
            case("published_tall", TALL, config=large, whole=NEXT),
            case("crop", ODD, config=crop),
        ]
    size = {"size": {"height": 448, "width": 448}}
    return [
        case("published", LARGE, TALL, config=half | size | {"crop_to_patches": False}),
        case("few", LARGE, ODD, config={"max_patches": 4, "min_patches": 3}),
        case("one", WIDE, config={"max_patches": 1}),
        case("tokens_64", ODD, config={"size": {"height": 56, "width": 70}}, whole={"image_seq_length": 64}),
    ]


FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "llava_next_video", "internvl")
# Qwen3-VL's image processor is Qwen2-VL's, whose default patches are not this model's
PATCHES = {
    "qwen3_vl": {
        "patch_size": 16, "size": {"shortest_edge": 256**2, "longest_edge": 4096**2},
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }
}  # fmt: skip
IMAGE_CASES = [case for family in FAMILIES for case in (*_every_family(family), *_configured(family))]
CHATS = [case for case in IMAGE_CASES if case.name.endswith("/between")]
MODES = ("L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr")


def in_mode(mode: str) -> Any:
    """A PIL image of the mode, half of it see-through where it can be."""
    from PIL import Image

    image = Image.fromarray(clip((1, *ODD), 3)[0])
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(clip((1, *ODD), 5)[0, :, :, 0]))
        return image
    # no dithering, no choice of colours: those may change with Pillow's version
    image = image.quantize(8, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) if mode == "P" else image
    if mode == "P":
        image.info["transparency"] = 3
    return image if mode == "P" else image.convert(mode, dither=Image.Dither.NONE)
