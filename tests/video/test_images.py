"""Images and prompts with them: the bits of transformers' processors, reading, settings, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from sparrow.video import FAMILIES, load_settings, load_video, prepare
from tests.video.golden.cases import digest, tokenizer
from tests.video.golden.image_cases import IMAGE_CASES, MODES, PATCHES, ImageCase, in_mode

GOLDEN = json.loads((Path(__file__).parent / "golden" / "image.json").read_text())["cases"]


def settings_of(case: ImageCase, folder: Path) -> Any:
    """The family's defaults, or the case's configuration read from a checkpoint folder."""
    config = PATCHES.get(case.family, {}) | case.config
    if not case.config and not case.whole:
        return FAMILIES[case.family]
    (folder / "video_preprocessor_config.json").write_text('{"do_resize": true}')
    (folder / "preprocessor_config.json").write_text(json.dumps(config or {"do_resize": True}))
    (folder / "processor_config.json").write_text(json.dumps(case.whole_config))
    return load_settings(folder, case.family)


@pytest.mark.parametrize("case", IMAGE_CASES, ids=lambda case: case.name)
def test_bits_of_transformers(case: ImageCase, tmp_path: Path) -> None:
    settings = settings_of(case, tmp_path)
    clips = [load_video(array, settings) for array in case.clips]
    inputs = prepare(settings, tokenizer(case.family), case.prompt, clips, images=case.images)
    assert {name: digest(tensor) for name, tensor in inputs.items()} == GOLDEN[case.name]


@pytest.mark.parametrize("mode", MODES)
def test_images_that_pillow_has_open(mode: str) -> None:
    case = IMAGE_CASES[0]
    inputs = prepare(FAMILIES[case.family], tokenizer(case.family), case.prompt, images=in_mode(mode))
    assert {name: digest(tensor) for name, tensor in inputs.items()} == GOLDEN[mode]
