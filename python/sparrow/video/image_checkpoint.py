"""Reading and writing the settings of still images as transformers keeps them in a checkpoint folder."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from sparrow.video.image_settings import IMAGES, ImageSettings, PatchImages, TileImages
from sparrow.video.info import VideoError
from sparrow.video.pixel_settings import Pair, is_count

# Settings that leave an image's tensors as they are, or that concern videos only. InternVL's processor always cuts
# images into tiles, whatever crop_to_patches says.
HARMLESS = frozenset(
    [
        "_valid_processor_keys",
        "aspect_ratio_setting",
        "auto_map",
        "cap_pixels_per_frame",
        "crop_to_patches",
        "data_format",
        "default_to_square",
        "device",
        "do_convert_rgb",
        "do_sample_frames",
        "feature_extractor_type",
        "fps",
        "image_processor_type",
        "image_seq_length",
        "initial_shift",
        "input_data_format",
        "max_frames",
        "min_frames",
        "model_input_names",
        "num_frames",
        "pad_size",
        "processor_class",
        "return_metadata",
        "return_tensors",
        "tokens_per_frame",
        "video_metadata",
        "video_processor_type",
    ]
)
# Settings with one supported value: the processors' steps and their bicubic filter (3).
FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_pad": True, "resample": 3}
PATCH = ("rescale_factor", "patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels")
NAMES = {"min_patches": "min_tiles", "max_patches": "max_tiles", "rescale_factor": "rescale_factor"}
PROCESSORS = {
    "qwen2_vl": "Qwen2VLImageProcessor",
    "qwen2_5_vl": "Qwen2VLImageProcessor",
    "qwen3_vl": "Qwen2VLImageProcessor",
    "llava_onevision": "LlavaOnevisionImageProcessor",
    "llava_next_video": "LlavaNextImageProcessor",
    "internvl": "GotOcr2ImageProcessor",
}


def image_settings(
    family: str, raw: Any, processor: Mapping[str, Any], config: Mapping[str, Any]
) -> ImageSettings | str:
    """The defaults of the family's class changed by a checkpoint's files; a text that says why where that cannot be.

    Args:
        family: key of IMAGES.
        raw: the image processor's configuration; None = the folder has none.
        processor: processor_config.json.
        config: config.json.
    """
    if raw is None:
        return "the checkpoint has no preprocessor_config.json"
    try:
        if not isinstance(raw, dict):
            raise VideoError(f"image_processor must be an object, got {raw!r}")
        # transformers reads null as "the class default"
        raw = {key: value for key, value in raw.items() if value is not None and key not in HARMLESS}
        for key, wanted in FIXED.items():
            if raw.pop(key, wanted) != wanted:
                raise VideoError(f"setting {key} must be {wanted}, other values are not supported")
        changes: dict[str, Any] = {key: _triple(raw.pop(key)) for key in ("image_mean", "image_std") if key in raw}
        # Qwen3-VL's class is Qwen2-VL's, with its defaults
        settings = IMAGES["qwen2_vl"] if family == "qwen3_vl" else IMAGES[family]
        settings = replace(settings, family=family, **changes)
        changed = _patches(settings, raw) if isinstance(settings, PatchImages) else _tiled(settings, raw)
        if raw:
            names = ", ".join(f"{key}={value!r}" for key, value in sorted(raw.items()))
            raise VideoError(f"unsupported settings for {family}: {names}")
        return changed if isinstance(changed, PatchImages) else _with_tokens(changed, processor, config)
    except VideoError as error:
        return f"preprocessor_config.json: {error}"


def raw_images(settings: ImageSettings) -> dict[str, Any]:
    """What a preprocessor_config.json says, for image_settings to read back."""
    raw = {key: value for key, value in asdict(settings).items() if value is not None}
    raw = {"image_processor_type": PROCESSORS[raw.pop("family")]} | FIXED | raw
    if isinstance(settings, PatchImages):
        del raw["do_pad"]
        return raw | {"size": {"shortest_edge": raw.pop("min_pixels"), "longest_edge": raw.pop("max_pixels")}}
    edge, size, crop = raw.pop("shortest_edge", None), raw.pop("size", None), raw.pop("crop", None)
    raw["size"] = {"shortest_edge": edge} if edge else {"height": size[0], "width": size[1]}
    if crop is not None:
        raw |= {"do_center_crop": True, "crop_size": {"height": crop[0], "width": crop[1]}}
    raw["image_grid_pinpoints"] = raw.pop("pinpoints")
    return raw | {"min_patches": raw.pop("min_tiles"), "max_patches": raw.pop("max_tiles")}


def _patches(settings: PatchImages, raw: dict[str, Any]) -> PatchImages:
    changes = {}
    if (size := raw.pop("size", None)) is not None:
        if not isinstance(size, dict) or not {"shortest_edge", "longest_edge"} <= size.keys():
            raise VideoError(f"size must have shortest_edge and longest_edge for {settings.family}, got {size!r}")
        changes = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    # these go before it, as there
    return replace(settings, **changes | {name: raw.pop(name) for name in PATCH if name in raw})


def _tiled(settings: TileImages, raw: dict[str, Any]) -> TileImages:
    changes = {NAMES[name]: raw.pop(name) for name in NAMES if name in raw}
    if (size := raw.pop("size", None)) is not None:
        if isinstance(size, dict) and set(size) == {"shortest_edge"}:
            changes |= {"size": None, "shortest_edge": size["shortest_edge"]}
        else:
            changes |= {"size": _pair("size", size), "shortest_edge": None}
    cropped, crop = raw.pop("do_center_crop", settings.crop is not None), raw.pop("crop_size", None)
    if settings.family != "internvl":
        # its processor never crops
        pair = settings.crop if crop is None else _pair("crop_size", crop)
        if not cropped and pair is not None:
            raise VideoError(f"do_center_crop must be True beside crop_size, got {cropped!r}")
        changes["crop"] = pair
    if (pinpoints := raw.pop("image_grid_pinpoints", None)) is not None:
        pairs = isinstance(pinpoints, (list, tuple)) and all(isinstance(p, (list, tuple)) for p in pinpoints)
        changes["pinpoints"] = tuple(map(tuple, pinpoints)) if pairs else pinpoints
    if "grid" in raw:
        changes["grid"] = tuple(raw.pop("grid"))
    return replace(settings, **changes | {name: raw.pop(name) for name in ("tokens", "max_area") if name in raw})


def _with_tokens(settings: TileImages, processor: Mapping[str, Any], config: Mapping[str, Any]) -> TileImages:
    """The settings with the tokens as the family's processor counts them; the default where the folder does not say."""
    vision = config.get("vision_config")
    vision = vision if isinstance(vision, dict) else {}
    if settings.family == "internvl":
        tokens = processor.get("image_seq_length", config.get("image_seq_length"))
        return settings if tokens is None else replace(settings, tokens=tokens)
    # without the class token
    fewer = processor.get("vision_feature_select_strategy") == "default"
    if settings.family == "llava_onevision":
        patches, side, patch = processor.get("num_image_tokens"), vision.get("image_size"), vision.get("patch_size")
        if patches is None and side is not None and patch is not None:
            patches = (_count("image_size", side) // _count("patch_size", patch)) ** 2
        patches = _count("num_image_tokens", settings.tokens if patches is None else patches)
        aspect = processor.get("vision_aspect_ratio", "anyres_max_9")
        area = re.fullmatch(r"anyres_max_(\d+)", str(aspect))
        if area is None:
            raise VideoError(f"vision_aspect_ratio must be anyres_max_N, got {aspect!r}")
        grid = math.isqrt(patches), math.isqrt(patches)
        return replace(settings, grid=grid, tokens=patches - fewer, max_area=int(area[1]))
    patch = processor.get("patch_size") or vision.get("patch_size")
    height, width = settings.crop or settings.size or (0, 0)
    if patch is not None:
        patch = _count("patch_size", patch)
        settings = replace(settings, grid=(height // patch, width // patch))
    more = processor.get("num_additional_image_tokens", 0)
    return replace(settings, tokens=math.prod(settings.grid) + (more if is_count(more) else 0) - fewer)


def _pair(name: str, value: Any) -> Pair:
    if not isinstance(value, dict) or not {"height", "width"} <= value.keys():
        raise VideoError(f"{name} must have height and width, got {value!r}")
    return value["height"], value["width"]


def _count(name: str, value: Any) -> int:
    if not is_count(value):
        raise VideoError(f"{name} must be a positive integer, got {value!r}")
    return value


def _triple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3
