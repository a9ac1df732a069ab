"""Settings of a checkpoint folder that is damaged or written by another hand: a VideoError that names what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparrow.video import PatchSettings, VideoError, load_settings

SIZE = {"shortest_edge": 3136, "longest_edge": 12544}


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b"\xff{}"}, r"config\.json must be a text file that can be read"),
        ({"config.json": b"[" * 100000}, r"config\.json must hold JSON"),
        ({"config.json": [1]}, r"config\.json must hold a JSON object, got list"),
        ({"config.json": {"model_type": ["qwen2_vl"]}}, r"family must be one of .*got \['qwen2_vl'\]"),
        ({"processor_config.json": {"video_processor": "x"}}, r"video_processor in .* must be an object, got 'x'"),
        ({"video_preprocessor_config.json": {"fps": 10**400}}, "fps must be a positive number"),
        ({"video_preprocessor_config.json": {"fps": True}}, "fps must be a positive number or None, got True"),
        ({"video_preprocessor_config.json": {"size": SIZE | {"shortest_edge": "x"}}}, "min_pixels must be a positive"),
        ({"chat_template.json": {"chat_template": [{"name": "a"}]}}, "chat_template in .* must be text, got list"),
        ({"chat_template.jinja": b"\xff"}, r"chat_template\.jinja must be a text file that can be read"),
    ],
)
def test_damaged_folders(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"model_type": "qwen2_5_vl"})
    write(tmp_path, "video_preprocessor_config.json", {"size": SIZE})
    assert isinstance(load_settings(tmp_path), PatchSettings)
    for name, value in files.items():
        write(tmp_path, name, value)
    with pytest.raises(VideoError, match=message):
        load_settings(tmp_path)


@pytest.mark.parametrize("vision", [None, 7, {"image_size": "384", "patch_size": 14}, {"patch_size": 0}])
def test_damaged_vision_config(vision: Any, tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"model_type": "llava_onevision", "vision_config": vision})
    write(tmp_path, "video_preprocessor_config.json", {"size": {"height": 384, "width": 384}})
    if vision is None:
        assert load_settings(tmp_path).tokens_per_frame == 196
    else:
        with pytest.raises(VideoError, match=r"vision_config must be an object|must be a positive integer"):
            load_settings(tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
ENTRIES = st.sampled_from(
    ["size", "crop_size", "image_mean", "rescale_factor", "fps", "num_frames", "patch_size", "merge_size", "min_pixels"]
)
FAMILY = st.sampled_from(["qwen2_vl", "qwen3_vl", "llava_onevision", "llava_next_video", "internvl"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    family=FAMILY,
    raw=st.dictionaries(ENTRIES, VALUES, min_size=1, max_size=3),
    vision=st.dictionaries(st.sampled_from(["patch_size", "image_size"]), VALUES, max_size=2) | VALUES,
)
def test_any_entries_give_settings_or_a_documented_error(family: str, raw: Any, vision: Any, tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"model_type": family, "vision_config": vision})
    write(tmp_path, "video_preprocessor_config.json", raw)
    try:
        assert load_settings(tmp_path).family == family
    except VideoError as error:
        assert str(error)
