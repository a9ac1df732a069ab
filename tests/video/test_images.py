"""Images and prompts with them: the bits of transformers' processors, messages, settings of a checkpoint."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sparrow.miniature.tokenizer import build_tokenizer
from sparrow.video import (
    FAMILIES,
    PatchImages,
    TileImages,
    VideoError,
    load_settings,
    load_video,
    prepare,
    save_settings,
)
from tests.video.golden.cases import clip, digest, tokenizer
from tests.video.golden.image_cases import CHATS, IMAGE_CASES, MODES, PATCHES, ImageCase, in_mode

GOLDEN = json.loads((Path(__file__).parent / "golden" / "image.json").read_text())["cases"]
DEMO = Path(__file__).parents[2] / "python" / "sparrow" / "assets" / "demo.mp4"
QWEN = FAMILIES["qwen2_5_vl"]
SMALL = replace(
    QWEN, min_pixels=28 * 28, max_pixels=4 * 28 * 28, image=PatchImages(family="qwen2_5_vl", max_pixels=9408)
)
PICTURE = clip((1, 60, 80), 1)[0]
TEXT = {"type": "text", "text": "What moves?"}


@pytest.fixture(scope="module")
def words() -> Any:
    return build_tokenizer(400)


def settings_of(case: ImageCase, folder: Path) -> Any:
    """The family's defaults, or the case's configuration read from a checkpoint folder."""
    if not case.config and not case.whole:
        return FAMILIES[case.family]
    config = PATCHES.get(case.family, {}) | case.config
    (folder / "video_preprocessor_config.json").write_text('{"do_resize": true}')
    (folder / "preprocessor_config.json").write_text(json.dumps(config or {"do_resize": True}))
    (folder / "processor_config.json").write_text(json.dumps(case.whole_config))
    return load_settings(folder, case.family)


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("case", IMAGE_CASES, ids=lambda case: case.name)
def test_bits_of_transformers(case: ImageCase, tmp_path: Path) -> None:
    settings = settings_of(case, tmp_path)
    clips = [load_video(array, settings) for array in case.clips]
    inputs = prepare(settings, tokenizer(case.family), case.prompt, clips, images=case.images)
    assert {name: digest(tensor) for name, tensor in inputs.items()} == GOLDEN[case.name]


@pytest.mark.parametrize("case", CHATS, ids=lambda case: case.name)
def test_conversations(case: ImageCase) -> None:
    """Three turns, images and a video in two of them: what apply_chat_template makes of them, tensors and all."""
    settings = replace(FAMILIES[case.family], chat_template=case.template)
    inputs = prepare(settings, tokenizer(case.family), case.chat)
    assert {name: digest(tensor) for name, tensor in inputs.items()} == GOLDEN[f"{case.name}/chat"]


@pytest.mark.parametrize("mode", MODES)
def test_images_that_pillow_has_open(mode: str) -> None:
    case = IMAGE_CASES[0]
    inputs = prepare(FAMILIES[case.family], tokenizer(case.family), case.prompt, images=in_mode(mode))
    assert {name: digest(tensor) for name, tensor in inputs.items()} == GOLDEN[mode]


# ---- prompts and messages


def test_every_way_to_name_an_image(words: Any, tmp_path: Path) -> None:
    file = tmp_path / "an image, 100%.png"
    Image.fromarray(PICTURE).save(file)
    address, encoded = f"file://{tmp_path}/an%20image,%20100%25.png", base64.b64encode(file.read_bytes()).decode()
    wanted = prepare(SMALL, words, user({"type": "image", "image": PICTURE}, TEXT))
    assert wanted["image_grid_thw"].tolist() == [[1, 4, 6]] and wanted["mm_token_type_ids"].sum() == 6
    for part in (
        {"type": "image", "image": str(file)},
        {"image": file},
        {"type": "image", "path": file},
        {"type": "image", "url": address},
        {"type": "image_url", "image_url": {"url": address}},
        {"image_url": f"data:image/png;base64,{encoded}"},
        {"type": "image", "base64": encoded},
        {"type": "image", "image": Image.fromarray(PICTURE)},
        {"type": "image", "image": torch.from_numpy(PICTURE)},
        {"type": "image", "image": file, "video": None, "min_pixels": None},
    ):
        assert same(prepare(SMALL, words, user(part, TEXT)), wanted), part
    for images in (file, str(file), [file], PICTURE, [PICTURE], Image.open(file), (address,)):
        assert same(prepare(SMALL, words, "What moves?", images=images), wanted)
        assert same(prepare(SMALL, words, user({"type": "image"}, TEXT), images=images), wanted)
    text = words.apply_chat_template(user({"type": "image"}, TEXT), tokenize=False, add_generation_prompt=True)
    assert same(prepare(SMALL, words, text, images=file), wanted)


def test_images_and_videos_each_go_in_order(words: Any) -> None:
    """A question is put after the images, these after nothing; in messages each part stays at its place."""
    other, video = clip((1, 90, 60), 2)[0], {"type": "video", "video": DEMO}
    parts = [{"type": "image", "image": PICTURE}, {"type": "image", "image": other}, video, TEXT]
    question = prepare(SMALL, words, "What moves?", DEMO, images=[PICTURE, other], num_frames=2)
    assert same(question, prepare(SMALL, words, user(*parts), num_frames=2))
    mixed = user(parts[1], video, TEXT, parts[0])
    inputs = prepare(SMALL, words, mixed, num_frames=2)
    assert inputs["image_grid_thw"].tolist() == question["image_grid_thw"].flip(0).tolist()
    kinds = torch.unique_consecutive(inputs["mm_token_type_ids"][0]).tolist()
    assert kinds == [0, 1, 0, 2, 0, 1, 0]
    bare = user({"type": "image"}, {"type": "video"}, TEXT, {"type": "image"})
    assert same(inputs, prepare(SMALL, words, bare, DEMO, images=[other, PICTURE], num_frames=2))


@pytest.mark.parametrize(
    ("prompt", "given", "message"),
    [
        ("<|image_pad|>", {"images": [PICTURE, PICTURE]}, r"one <\|image_pad\|> per image, got 1 for 2 images"),
        ("<|video_pad|>", {"images": PICTURE}, r"one <\|image_pad\|> per image, got 0 for 1 images"),
        (user(TEXT), {"images": PICTURE}, r"one <\|image_pad\|> per image, got 0 for 1 images"),
        (user({"type": "image", "image": PICTURE}), {"images": []}, "got 1 for 0 images"),
        (user({"type": "image", "image": "x.png"}, {"type": "audio"}), {}, "part 1: only text, videos and images"),
        ("?", {"images": 7}, "images must be a sequence of sources, got int"),
        ("?", {"images": [7]}, "image 0 must be a path, a PIL image or an array, got int"),
        ("?", {"images": np.zeros((2, 2), "u1")}, r"shape \[height, width, 3\], got \[2, 2\]: grayscale is not taken"),
        ("?", {"images": [np.zeros((2, 2, 4), "u1")]}, "image 0 must have shape"),
        ("?", {"images": [np.zeros((2, 2, 3), "f4")]}, "image 0 must be uint8 with values 0..255, got dtype float32"),
        ("?", {"images": [np.zeros((0, 2, 3), "u1")]}, "image 0 must have at least one"),
        ("?", {"images": np.zeros((1, 201, 3), "u1")}, "aspect ratio must be at most 200, got height 1 and width 201"),
        (user({"type": "image", "image": PICTURE, "min_pixels": 0}), {}, "part 0: min_pixels must be a positive"),
        (user({"type": "image", "image": PICTURE, "resized_height": 28}), {}, "must be given together"),
        (user({"type": "image", "base64": "%"}), {}, "part 0: a data address must hold base64"),
        (user({"type": "image", "image": "data:image/png,x"}), {}, "must read data:image/...;base64,"),
        (user({"type": "image", "image": "https://x.org/a.png"}), {}, "addresses are not fetched"),
    ],
)
def test_what_does_not_fit(prompt: Any, given: dict[str, Any], message: str, words: Any) -> None:
    with pytest.raises(VideoError, match=message):
        prepare(SMALL, words, prompt, **given)


def test_images_stand_for_the_parts(words: Any, tmp_path: Path) -> None:
    """Given in the messages and in `images`: the same file, or something that is no file."""
    for name in ("a.png", "b.png"):
        Image.fromarray(PICTURE).save(tmp_path / name)
    part = {"type": "image", "image": str(tmp_path / "a.png")}
    wanted = prepare(SMALL, words, user(part, TEXT))
    assert same(prepare(SMALL, words, user(part, TEXT), images=[tmp_path / "a.png"]), wanted)
    assert same(prepare(SMALL, words, user(part, TEXT), images=PICTURE), wanted)
    with pytest.raises(VideoError, match=r"part 0 names '.*a\.png', images has '.*b\.png' in its place"):
        prepare(SMALL, words, user(part, TEXT), images=[tmp_path / "b.png"])


def test_options_of_an_image(words: Any) -> None:
    def grid(settings: Any = SMALL, **options: Any) -> list[int]:
        part = {"type": "image", "image": PICTURE, **options}
        return prepare(settings, words, user(part, TEXT))["image_grid_thw"][0].tolist()

    # 60 x 80 pixels: 2 x 3 tokens of 28 x 28
    assert grid() == [1, 4, 6]
    assert grid(resized_height=29, resized_width=115) == [1, 2, 8]
    assert grid(max_pixels=28 * 28) == [1, 2, 2]
    assert grid(min_pixels=150 * 150) == [1, 10, 14]
    with pytest.raises(VideoError, match="part 0: min_pixels must not exceed max_pixels"):
        grid(min_pixels=10, max_pixels=9)
    with pytest.raises(VideoError, match="llava_onevision has no max_pixels"):
        prepare("llava_onevision", words, user({"type": "image", "image": PICTURE, "max_pixels": 9}, TEXT))


# ---- settings


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_survive_saving(family: str, tmp_path: Path) -> None:
    save_settings(FAMILIES[family], tmp_path)
    assert load_settings(tmp_path, family).image == FAMILIES[family].image


PUBLISHED = {
    "llava_next_video": (
        {
            "aspect_ratio_setting": "anyres", "crop_size": {"height": 336, "width": 336}, "do_center_crop": True,
            "do_convert_rgb": True, "do_pad": True, "image_grid_pinpoints": [[336, 672], [672, 336]],
            "size": {"shortest_edge": 336}, "_valid_processor_keys": ["images"],
        },
        {"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
        TileImages(
            family="llava_next_video", size=None, shortest_edge=336, crop=(336, 336), tokens=576, grid=(24, 24),
            pinpoints=((336, 672), (672, 336)),
        ),
    ),
    "internvl": (
        {"crop_to_patches": False, "crop_size": None, "max_patches": 6, "size": {"height": 448, "width": 448}},
        {"image_seq_length": 64},
        TileImages(family="internvl", size=(448, 448), max_tiles=6, tokens=64),
    ),
    "qwen3_vl": (
        {"patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 16777216}, "image_mean": 0.5},
        {},
        replace(FAMILIES["qwen3_vl"].image, image_std=(0.26862954, 0.26130258, 0.27577711)),  # type: ignore[type-var]
    ),
}  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("family", PUBLISHED)
def test_settings_of_a_checkpoint(family: str, nested: bool, tmp_path: Path) -> None:
    """From preprocessor_config.json, or from inside processor_config.json, as transformers writes it now."""
    raw, whole, wanted = PUBLISHED[family]
    (tmp_path / "video_preprocessor_config.json").write_text('{"do_resize": true}')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"tint": 1} if nested else raw))
    (tmp_path / "processor_config.json").write_text(json.dumps(whole | ({"image_processor": raw} if nested else {})))
    assert load_settings(tmp_path, family).image == wanted


@pytest.mark.parametrize(
    ("family", "raw", "whole", "message"),
    [
        ("qwen2_vl", None, {}, "the checkpoint has no preprocessor_config.json"),
        ("qwen2_vl", {"tint": 3}, {}, "unsupported settings for qwen2_vl: tint=3"),
        ("qwen2_vl", {"resample": 1}, {}, "setting resample must be 3"),
        ("qwen2_vl", {"size": {"height": 3, "width": 3}}, {}, "size must have shortest_edge and longest_edge"),
        ("qwen2_vl", {"patch_size": 0}, {}, "patch_size must be a positive integer, got 0"),
        ("qwen2_vl", {"image_std": [1, 0, 1]}, {}, "image_std must not contain 0"),
        ("qwen2_vl", {"min_pixels": 10**9}, {}, "min_pixels must not exceed max_pixels"),
        ("internvl", {"size": {"shortest_edge": 3}}, {}, "size must be a pair|crop must be set"),
        ("internvl", {"min_patches": 13}, {}, "min_patches must not exceed max_patches"),
        ("llava_onevision", {"image_grid_pinpoints": []}, {}, "pinpoints must be at least one pair"),
        ("llava_onevision", {"image_grid_pinpoints": [3]}, {}, "pinpoints must be pairs of positive integers"),
        ("llava_onevision", {}, {"vision_aspect_ratio": "pad"}, "vision_aspect_ratio must be anyres_max_N"),
        ("llava_next_video", {"do_center_crop": False}, {}, "do_center_crop must be True beside crop_size"),
        ("llava_next_video", {"do_pad": False}, {}, "setting do_pad must be True"),
    ],
)
def test_settings_that_are_refused(
    family: str, raw: Any, whole: dict[str, Any], message: str, words: Any, tmp_path: Path
) -> None:
    """Only where a prompt has an image: videos are read all the same."""
    (tmp_path / "video_preprocessor_config.json").write_text('{"do_resize": true}')
    if raw is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw or {"do_resize": True}))
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))
    settings = load_settings(tmp_path, family)
    assert isinstance(settings.image, str) and re.search(message, settings.image)
    if family != "internvl":
        assert "input_ids" in prepare(settings, words, "What moves?")
        with pytest.raises(VideoError, match=f"^image 0: no images can be read: .*{message}"):
            prepare(settings, words, "What moves?", images=PICTURE)
