"""Prompt and video to model inputs: the bits of transformers' processors, sampling rules, checkpoint settings."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparrow.video import (
    FAMILIES,
    FrameSettings,
    PatchSettings,
    VideoError,
    load_settings,
    load_video,
    prepare,
    save_settings,
)
from sparrow.video.sampling import sample_indices
from tests.video.golden.cases import CASES, Case, clip, digest, tokenizer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "video.json").read_text())["cases"]
DEMO = Path(__file__).parents[2] / "python" / "sparrow" / "assets" / "demo.mp4"
SMALL_QWEN = replace(FAMILIES["qwen2_5_vl"], min_pixels=28 * 28, max_pixels=4 * 28 * 28)
SMALL_LLAVA = replace(FAMILIES["llava_onevision"], size=(56, 56), tokens_per_frame=4)


def settings_of(case: Case, folder: Path) -> Any:
    """The family's defaults, or the case's configuration read from a checkpoint folder."""
    if not case.config:
        return FAMILIES[case.family]
    (folder / "video_preprocessor_config.json").write_text(json.dumps(case.config))
    (folder / "processor_config.json").write_text(json.dumps(case.whole_config))
    return load_settings(folder, case.family)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bits_of_transformers(case: Case, tmp_path: Path) -> None:
    settings = settings_of(case, tmp_path)
    arrays = [clip(shape, seed) for seed, shape in enumerate(case.clips)]
    if not arrays:
        # without a placeholder a text counts as a question, for the chat template
        settings = replace(settings, chat_template="{{ messages[0]['content'][0]['text'] }}")
    clips = [load_video(array, settings, source_fps=case.fps, **case.sample) for array in arrays]
    inputs = prepare(settings, tokenizer(case.family), case.prompt, clips)
    ours: dict[str, Any] = {name: digest(tensor) for name, tensor in inputs.items()}
    if clips:
        ours["indices"] = [" ".join(map(str, info.indices)) for _, info in clips]
    assert ours == GOLDEN[case.name]


def test_imports_nothing_heavy() -> None:
    """The subpackage alone: `import sparrow` itself brings transformers."""
    folder = str(Path(__file__).parents[2] / "python" / "sparrow")
    code = f"""
import sys, types
package = sys.modules["sparrow"] = types.ModuleType("sparrow")
package.__path__ = [{folder!r}]
import sparrow.video
print(sorted({{'transformers', 'torchvision', 'PIL'}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_frames_that_are_there_need_no_pyav(tmp_path: Path) -> None:
    """The GPU check, training on prepared data and decoding run where PyAV is not; only a file's frames need it."""
    np.save(tmp_path / "clip.npy", np.zeros((2, 56, 56, 3), np.uint8))
    code = f"""
import sys
sys.modules["av"] = None
import bench.gpu_decode, bench.gpu_loop_cases, sparrow.decoding.session, sparrow.training.trainer
from sparrow.video import load_video
print(load_video({str(tmp_path / "clip.npy")!r}, source_fps=1.0)[0].shape)
load_video({str(DEMO)!r})
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.stdout == "(2, 56, 56, 3)\n" and done.returncode == 1
    assert "ModuleNotFoundError: import of av halted" in done.stderr


# ---- sampling


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_indices_lie_in_the_clip(family: str) -> None:
    settings, rng = FAMILIES[family], np.random.default_rng(0)
    # 5400 frames by 336: one index too many comes out of a float32 range
    sizes = [
        (1, 1),
        (2, 1),
        (3, 3),
        (5400, 336),
        *((int(t), int(rng.integers(1, t + 1))) for t in rng.integers(1, 6000, 150)),
    ]
    for total, count in sizes:
        by_number = sample_indices(total, None, settings, num_frames=count)
        by_rate = sample_indices(total, 29.97, settings, fps=float(rng.uniform(0.01, 40)))
        for indices in (by_number, by_rate):
            assert 1 <= len(indices) <= total and indices[0] >= 0 and indices[-1] < total
            assert list(indices) == sorted(indices)
        assert abs(len(by_number) - count) < 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "num_frames must be a positive integer, got 0"),
        ({"num_frames": -3}, "num_frames must be a positive integer"),
        ({"num_frames": 2.5}, "num_frames must be a positive integer"),
        ({"num_frames": True}, "num_frames must be a positive integer"),
        ({"num_frames": 97}, "num_frames must not exceed the 96 frames of the video, got 97"),
        ({"fps": 0}, "fps must be a positive finite number, got 0"),
        ({"fps": float("nan")}, "fps must be a positive finite number"),
        ({"fps": float("inf")}, "fps must be a positive finite number"),
        ({"fps": "2"}, "fps must be a positive finite number"),
        ({"num_frames": 4, "fps": 2.0}, "at most one of num_frames and fps"),
        ({"source_fps": -1}, "source_fps must be a positive finite number"),
    ],
)
def test_wrong_sampling(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(VideoError, match=message):
        load_video(DEMO, FAMILIES["qwen2_5_vl"], **arguments)


def test_default_sampling() -> None:
    counts = {family: len(load_video(DEMO, settings)[0]) for family, settings in FAMILIES.items()}
    assert counts == {
        "qwen2_vl": 16,
        "qwen2_5_vl": 16,
        "qwen3_vl": 16,
        "llava_onevision": 32,
        "llava_next_video": 8,
        "internvl": 8,
    }
    assert len(load_video(DEMO)[0]) == 96
    with pytest.raises(VideoError, match="needs a frame rate"):
        load_video(clip((9, 8, 8), 0), fps=2.0)


# ---- checkpoint settings

CHECKPOINTS: dict[str, tuple[dict[str, Any], PatchSettings | FrameSettings]] = {
    # as published: the image processor's file serves the videos too
    "qwen2_5_vl": (
        {
            "preprocessor_config.json": {
                "min_pixels": 3136,
                "max_pixels": 12845056,
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2_5_VLProcessor",
            },
            "chat_template.json": {"chat_template": "from json"},
        },
        replace(FAMILIES["qwen2_5_vl"], min_pixels=3136, max_pixels=12845056, chat_template="from json"),
    ),
    "qwen3_vl": (
        {
            "video_preprocessor_config.json": {
                "size": {"longest_edge": 25165824, "shortest_edge": 4096},
                "fps": 2,
                "max_pixels": 1,
                "do_sample_frames": True,
                "num_frames": None,
                "resample": 3,
                "video_processor_type": "Qwen3VLVideoProcessor",
            },
            "preprocessor_config.json": {"patch_size": 99},
        },
        replace(FAMILIES["qwen3_vl"], min_pixels=4096, max_pixels=25165824, fps=2),
    ),
    "llava_onevision": (
        {
            "preprocessor_config.json": {"patch_size": 99},
            "processor_config.json": {
                "num_image_tokens": 256,
                "chat_template": "from processor",
                "video_processor": {
                    "do_center_crop": None,
                    "size": {"height": 224, "width": 224},
                    "crop_size": None,
                    "do_pad": True,
                    "num_frames": 16,
                    "image_mean": 0.5,
                },
            },
        },
        replace(
            FAMILIES["llava_onevision"],
            size=(224, 224),
            num_frames=16,
            tokens_per_frame=64,
            image_mean=(0.5, 0.5, 0.5),
            chat_template="from processor",
        ),
    ),
    "llava_next_video": (
        {
            "preprocessor_config.json": {
                "crop_size": {"height": 336, "width": 336},
                "size": {"shortest_edge": 336},
                "do_center_crop": True,
                "image_grid_pinpoints": [[336, 672]],
            },
            "config.json": {"model_type": "llava_next_video", "vision_config": {"patch_size": 14}},
            "chat_template.jinja": "from file",
        },
        replace(
            FAMILIES["llava_next_video"],
            shortest_edge=336,
            crop=(336, 336),
            tokens_per_frame=144,
            chat_template="from file",
        ),
    ),
    "internvl": (
        {
            "video_preprocessor_config.json": {"size": {"height": 448, "width": 448}, "initial_shift": True},
            "processor_config.json": {"image_seq_length": 64},
        },
        replace(FAMILIES["internvl"], size=(448, 448), tokens_per_frame=64),
    ),
}


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_settings_of_a_checkpoint(family: str, tmp_path: Path) -> None:
    files, expected = CHECKPOINTS[family]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    settings = load_settings(tmp_path)
    assert settings == replace(expected, image=settings.image)
    copy = tmp_path / "copy"
    copy.mkdir()
    save_settings(settings, copy)
    again = load_settings(copy, family)
    assert again == replace(expected, image=again.image)
    assert isinstance(settings.image, str) == isinstance(again.image, str)


@pytest.mark.parametrize("family", FAMILIES)
def test_default_settings_survive_saving(family: str, tmp_path: Path) -> None:
    save_settings(FAMILIES[family], tmp_path)
    assert load_settings(tmp_path, family) == FAMILIES[family]


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("qwen2_5_vl", {"sharpen": 3, "tint": 1}, "unsupported settings for qwen2_5_vl: sharpen=3, tint=1"),
        ("qwen2_5_vl", {"resample": 2}, "resample must be 3"),
        ("qwen2_5_vl", {"do_normalize": False}, "do_normalize must be True"),
        ("qwen2_5_vl", {"size": {"height": 2, "width": 2}}, "size must have shortest_edge and longest_edge"),
        ("qwen2_5_vl", {"patch_size": "14"}, "patch_size must be a positive integer, got '14'"),
        ("qwen2_5_vl", {"min_pixels": 10**9}, "min_pixels must not exceed max_pixels"),
        ("qwen2_5_vl", {"image_std": [1, 0, 1]}, "image_std must not contain 0"),
        ("qwen2_5_vl", {"image_mean": [1, 2]}, "image_mean must be three finite numbers"),
        ("qwen2_5_vl", {"fps": 2, "num_frames": 8}, "at most one of num_frames and fps"),
        ("llava_onevision", {"patch_size": 14}, "unsupported settings for llava_onevision: patch_size=14"),
        ("llava_onevision", {"size": {"longest_edge": 2}}, "size must have height and width"),
        ("llava_next_video", {"do_center_crop": False}, "crop must be set with shortest_edge"),
        ("internvl", {"initial_shift": -1}, "initial_shift must be"),
    ],
)
def test_settings_that_are_refused(family: str, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(VideoError, match=message):
        load_settings(tmp_path, family)


def test_folders_without_settings(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="folder must be a checkpoint folder"):
        load_settings(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="family must be given"):
        load_settings(tmp_path)
    with pytest.raises(FileNotFoundError, match="must hold video_preprocessor_config"):
        load_settings(tmp_path, "internvl")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(VideoError, match=r"family must be one of qwen2_vl, .*, got 'bert'"):
        load_settings(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(VideoError, match="must hold JSON"):
        load_settings(tmp_path)
