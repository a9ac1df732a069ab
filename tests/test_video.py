"""Video input: the bits of transformers' processors, decoding, sampling, checkpoint settings, hostile input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sparrow.video import FAMILIES, load_settings, load_video, prepare

from tests.golden.cases import CASES, Case, clip, digest, tokenizer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "video.json").read_text())["cases"]


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
