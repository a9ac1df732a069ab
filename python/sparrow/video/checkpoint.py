"""Reading and writing preprocessing settings as transformers keeps them in a checkpoint folder."""

import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sparrow.files import write_json, write_text
from sparrow.video.image_checkpoint import image_settings, raw_images
from sparrow.video.info import VideoError
from sparrow.video.paths import shown
from sparrow.video.settings import FAMILIES, FrameSettings, PatchSettings, VideoSettings

# Settings that leave a video's tensors as they are, or that concern still images only.
HARMLESS = frozenset(
    [
        "_valid_processor_keys",
        "auto_map",
        "crop_to_patches",
        "data_format",
        "default_to_square",
        "device",
        "do_convert_rgb",
        "do_pad",
        "do_sample_frames",
        "feature_extractor_type",
        "image_grid_pinpoints",
        "image_processor_type",
        "input_data_format",
        "max_dynamic_patch",
        "max_patches",
        "min_dynamic_patch",
        "min_patches",
        "model_input_names",
        "pad_size",
        "processor_class",
        "return_metadata",
        "return_tensors",
        "video_metadata",
        "video_processor_type",
        "vision_feature_select_strategy",
    ]
)
# Under which class transformers' AutoVideoProcessor reads the folder.
PROCESSORS = {
    "qwen2_vl": "Qwen2VLVideoProcessor",
    "qwen2_5_vl": "Qwen2VLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "llava_next_video": "LlavaNextVideoVideoProcessor",
    "internvl": "InternVLVideoProcessor",
}
# Settings with one supported value: the processors' steps and their bicubic filter (3).
FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
# Settings of the same name and form here and there.
COPIED = frozenset(["rescale_factor", "num_frames", "fps"])
COPIED_PATCH = COPIED | frozenset(
    [
        "patch_size",
        "merge_size",
        "temporal_patch_size",
        "min_frames",
        "max_frames",
        "min_pixels",
        "max_pixels",
        "max_video_tokens",
        "cap_pixels_per_frame",
    ]
)
COPIED_FRAME = COPIED | frozenset(["initial_shift", "tokens_per_frame"])


def load_settings(folder: str | Path, family: str | None = None) -> PatchSettings | FrameSettings:
    """Reads a checkpoint's settings from the file transformers would use; what it leaves out is the family's default.

    Args:
        folder: checkpoint folder on disk.
        family: key of FAMILIES; None = `model_type` of the folder's config.json.

    Raises:
        FileNotFoundError: no such folder, or nothing in it names the family or the settings.
        VideoError: unknown family, or a setting that would change the tensors in an unsupported way.
    """
    if not isinstance(folder, (str, Path)) or not str(folder):
        raise VideoError(f"folder must be the path of a checkpoint folder, got {folder!r}")
    # os.path, because a name that no file can have is an error of its own to pathlib
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"folder must be a checkpoint folder on disk, got {shown(folder)}")
    folder = Path(folder)
    config, processor = _read(folder / "config.json"), _read(folder / "processor_config.json")
    if family is None and "model_type" not in config:
        raise FileNotFoundError(f"family must be given: {folder / 'config.json'} is missing or has no model_type")
    family = family if family is not None else config["model_type"]
    if not isinstance(family, str) or family not in FAMILIES:
        raise VideoError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    candidates = (
        processor.get("video_processor"),
        _read(folder / "video_preprocessor_config.json"),
        _read(folder / "preprocessor_config.json"),
    )
    raw = next((c for c in candidates if c), None)
    if raw is None:
        raise FileNotFoundError(f"{folder} must hold video_preprocessor_config.json or preprocessor_config.json")
    if not isinstance(raw, dict):
        raise VideoError(f"video_processor in {folder / 'processor_config.json'} must be an object, got {raw!r}")
    defaults = FAMILIES[family]
    if isinstance(defaults, FrameSettings):
        tokens = _tokens_per_frame(family, raw, processor, config)
        defaults = defaults if tokens is None else replace(defaults, tokens_per_frame=tokens)
    settings = _apply(defaults, raw)
    images = processor.get("image_processor") or _read(folder / "preprocessor_config.json") or None
    return replace(
        settings,
        chat_template=_chat_template(folder, processor),
        image=image_settings(family, images, processor, config),
    )


def save_settings(settings: VideoSettings, folder: str | Path) -> None:
    """Writes `video_preprocessor_config.json`, and `preprocessor_config.json` and `chat_template.jinja` where the
    settings have such, for load_settings to read back.
    """
    raw = {key: value for key, value in asdict(settings).items() if value is not None}
    template, _ = raw.pop("chat_template", None), (raw.pop("family"), raw.pop("image"))
    if isinstance(settings, PatchSettings):
        raw["size"] = {"shortest_edge": raw.pop("min_pixels"), "longest_edge": raw.pop("max_pixels")}
    else:
        edge, size, crop = raw.pop("shortest_edge", None), raw.pop("size", None), raw.pop("crop", None)
        raw["size"] = {"shortest_edge": edge} if edge else {"height": size[0], "width": size[1]}
        raw["do_center_crop"] = crop is not None
        if crop is not None:
            raw["crop_size"] = {"height": crop[0], "width": crop[1]}
    raw = FIXED | raw | {"video_processor_type": PROCESSORS[settings.family]}
    write_json(Path(folder, "video_preprocessor_config.json"), raw)
    if not isinstance(settings.image, str):
        write_json(Path(folder, "preprocessor_config.json"), raw_images(settings.image))
    if template is not None:
        write_text(Path(folder, "chat_template.jinja"), template)


def _apply(settings: PatchSettings | FrameSettings, raw: dict[str, Any]) -> PatchSettings | FrameSettings:
    """`settings` changed by the non-null entries of a transformers processor configuration."""
    # transformers reads null as "the class default"
    raw = {key: value for key, value in raw.items() if value is not None and key not in HARMLESS}
    for key, wanted in FIXED.items():
        if raw.pop(key, wanted) != wanted:
            raise VideoError(f"setting {key} must be {wanted}, other values are not supported")
    if settings.family == "qwen3_vl":
        # its processor takes the budget from `size` alone and drops these two
        raw = {key: value for key, value in raw.items() if key not in ("min_pixels", "max_pixels")}
    copied = COPIED_PATCH if isinstance(settings, PatchSettings) else COPIED_FRAME
    changes: dict[str, Any] = {key: raw.pop(key) for key in copied if key in raw}
    changes |= {key: _triple(raw.pop(key)) for key in ("image_mean", "image_std") if key in raw}
    if "num_frames" in changes or "fps" in changes:
        changes = {"num_frames": None, "fps": None} | changes
    if "size" in raw:
        changes = _size(settings, raw.pop("size")) | changes
    cropped, crop = raw.pop("do_center_crop", None), raw.pop("crop_size", None)
    # Qwen's processors never crop
    if isinstance(settings, FrameSettings):
        if cropped is False:
            changes["crop"] = None
        elif crop is not None and (cropped or settings.crop is not None):
            changes["crop"] = _pair("crop_size", crop)
    if raw:
        names = ", ".join(f"{key}={value!r}" for key, value in sorted(raw.items()))
        raise VideoError(f"unsupported settings for {settings.family}: {names}")
    return replace(settings, **changes)


def _size(settings: PatchSettings | FrameSettings, size: Any) -> dict[str, Any]:
    if isinstance(settings, PatchSettings):
        # min_pixels/max_pixels written inside `size` are leftovers that transformers drops as well
        if not isinstance(size, dict) or not {"shortest_edge", "longest_edge"} <= size.keys():
            raise VideoError(f"size must have shortest_edge and longest_edge for {settings.family}, got {size!r}")
        return {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return {"size": None, "shortest_edge": size["shortest_edge"]}
    return {"size": _pair("size", size), "shortest_edge": None}


def _pair(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, dict) or set(value) != {"height", "width"}:
        raise VideoError(f"{name} must have height and width, got {value!r}")
    return value["height"], value["width"]


def _triple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3


def _tokens_per_frame(
    family: str, raw: dict[str, Any], processor: dict[str, Any], config: dict[str, Any]
) -> int | None:
    """Placeholder tokens per frame as the family's processor counts them; None where the folder does not say."""
    if "tokens_per_frame" in raw:
        return raw["tokens_per_frame"]
    if family == "internvl":
        return processor.get("image_seq_length", config.get("image_seq_length"))
    vision = config.get("vision_config") or {}
    if not isinstance(vision, dict):
        raise VideoError(f"vision_config must be an object, got {vision!r}")
    patch = _size_entry(vision, "patch_size")
    if family == "llava_onevision":
        patches, side = _size_entry(processor, "num_image_tokens"), _size_entry(vision, "image_size")
        if patches is None and patch and side:
            patches = (side // patch) ** 2
        return None if patches is None else math.ceil(math.isqrt(patches) / 2) ** 2
    patch = _size_entry(processor, "patch_size") or patch
    if patch is None:
        return None
    frame = _apply(FAMILIES[family], raw)
    assert isinstance(frame, FrameSettings)
    height, width = frame.crop or frame.size or (0, 0)
    return (height // patch) * (width // patch) // 4


def _size_entry(config: dict[str, Any], name: str) -> int | None:
    """A positive integer, or None where there is none."""
    value = config.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise VideoError(f"{name} must be a positive integer, got {value!r}")
    return value


def _chat_template(folder: Path, processor: dict[str, Any]) -> str | None:
    """The processor's chat template, which goes before the tokenizer's."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return _text(path)
    template = _read(folder / "chat_template.json").get("chat_template", processor.get("chat_template"))
    if template is not None and not isinstance(template, str):
        raise VideoError(f"chat_template in {folder} must be text, got {type(template).__name__}")
    return template


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise VideoError(f"{path} must be a text file that can be read: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise VideoError(f"{path} must hold JSON: {error}") from error
    if not isinstance(value, dict):
        raise VideoError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
