"""Prompts: questions, messages, templated text; what does not fit together; the models take the result."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparrow.miniature.tokenizer import build_tokenizer
from sparrow.video import FAMILIES, FrameSettings, PatchSettings, VideoError, load_video, prepare
from tests.video.golden.cases import clip

DEMO = Path(__file__).parents[2] / "python" / "sparrow" / "assets" / "demo.mp4"
QWEN, LLAVA = FAMILIES["qwen2_5_vl"], FAMILIES["llava_onevision"]
assert isinstance(QWEN, PatchSettings) and isinstance(LLAVA, FrameSettings)
SMALL_QWEN = replace(QWEN, min_pixels=28 * 28, max_pixels=4 * 28 * 28)
SMALL_LLAVA = replace(LLAVA, size=(56, 56), tokens_per_frame=4)


@pytest.fixture(scope="module")
def words() -> Any:
    return build_tokenizer(400)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_question_messages_and_text_agree(words: Any) -> None:
    question = prepare(SMALL_QWEN, words, "What moves?", [DEMO], num_frames=4)
    content = [{"type": "video", "video": str(DEMO)}, {"type": "text", "text": "What moves?"}]
    messages = [{"role": "user", "content": content}]
    text = words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert same(question, prepare(SMALL_QWEN, words, messages, num_frames=4))
    assert same(question, prepare(SMALL_QWEN, words, text, DEMO, num_frames=4))
    assert same(question, prepare(SMALL_QWEN, words, text, load_video(DEMO, SMALL_QWEN, num_frames=4)))
    template = replace(SMALL_QWEN, chat_template="<|video_pad|>{{ messages[0]['content'][1]['text'] }}")
    own = prepare(template, words, "What moves?", [DEMO], num_frames=4)
    tokens = int(question["video_grid_thw"].prod()) // 4
    assert words.decode(own["input_ids"][0]) == "<|video_pad|>" * tokens + "What moves?"
    assert own["mm_token_type_ids"].tolist() == [[2] * tokens + [0] * (own["input_ids"].shape[1] - tokens)]


def test_beginning_of_text_is_not_doubled() -> None:
    class Words:
        bos_token, video_token = "<s>", "<video>"

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            ids = [1] * add_special_tokens
            while text:
                token = next((t for t in ("<s>", "<video>") if text.startswith(t)), text[0])
                ids.append({"<s>": 1, "<video>": 2}.get(token, ord(token[0])))
                text = text[len(token) :]
            return {"input_ids": ids}

    for text in ("<s>A<video>", "A<video>"):
        ids = prepare(SMALL_LLAVA, Words(), text, [DEMO], num_frames=1)["input_ids"]
        assert ids.tolist() == [[1, ord("A"), 2, 2, 2, 2, 2]]


def test_single_frame_of_every_family(words: Any) -> None:
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        small = replace(FAMILIES[family], min_pixels=32 * 32, max_pixels=64 * 64)
        inputs = prepare(small, words, "?", [clip((1, 30, 40), 0)])
        assert inputs["video_grid_thw"][0, 0] == 1 and inputs["pixel_values_videos"].isfinite().all()


@pytest.mark.parametrize(
    ("settings", "prompt", "videos", "message"),
    [
        (SMALL_QWEN, "<|video_pad|> and <|video_pad|>", [DEMO], r"one <\|video_pad\|> per video, got 2 for 1"),
        (SMALL_QWEN, "<|video_pad|>", None, r"one <\|video_pad\|> per video, got 1 for 0"),
        (SMALL_QWEN, [{"role": "user", "content": "hi"}], [DEMO], "got 0 for 1"),
        (SMALL_QWEN, [{"role": "user", "content": [{"type": "video"}]}], None, "videos must be given, or named"),
        (SMALL_QWEN, ["hi"], None, "a message must be a mapping with role and content"),
        (SMALL_QWEN, "?", ["https://example.com/a.mp4"], "addresses are not fetched"),
        (SMALL_QWEN, "?", 7, "videos must be a sequence of sources, got int"),
        (SMALL_QWEN, "?", [clip((2, 2, 401), 0)], "aspect ratio must be at most 200, got height 2 and width 401"),
        (SMALL_LLAVA, "?", [clip((2, 8, 8), 0), clip((3, 8, 8), 0)], r"equal frame count in one prompt, got \[2, 3\]"),
        ("gpt", "?", None, "settings must be settings or one of qwen2_vl"),
    ],
)
def test_what_does_not_fit(settings: Any, prompt: Any, videos: Any, message: str, words: Any) -> None:
    with pytest.raises(VideoError, match=message):
        prepare(settings, words, prompt, videos)


def test_wrong_clips_and_tokenizers(words: Any) -> None:
    frames, info = load_video(DEMO, num_frames=4)
    with pytest.raises(VideoError, match="got 4 for 3 frames"):
        prepare(SMALL_QWEN, words, "?", [(frames[:3], info)])
    with pytest.raises(VideoError, match="frames must be uint8"):
        prepare(SMALL_QWEN, words, "?", [(frames.astype(np.float64), info)])
    with pytest.raises(VideoError, match="num_frames and fps go to load_video"):
        prepare(SMALL_QWEN, words, "?", [(frames, info)], num_frames=2)
    with pytest.raises(VideoError, match=r"must know <video> as one token, it makes \d of it"):
        del_video = build_tokenizer(400, named_tokens={"video_token": "<|video_pad|>"})
        del_video.video_token = "<video>"
        prepare(SMALL_LLAVA, del_video, "<video> ?", [(frames, info)])


def test_models_generate_from_it(words: Any) -> None:
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ids = {
        name: words.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("video_pad", "image_pad", "vision_start", "vision_end")
    }
    text = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "eos_token_id": 2}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    vision = {"hidden_size": 32, "intermediate_size": 32}
    qwen = hf.Qwen2_5_VLForConditionalGeneration(
        hf.Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": rope | {"mrope_section": [2, 3, 3]}, "pad_token_id": 0},
            vision_config=vision | {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
            video_token_id=ids["video_pad"],
            image_token_id=ids["image_pad"],
            vision_start_token_id=ids["vision_start"],
            vision_end_token_id=ids["vision_end"],
        )
    )
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    llava = hf.LlavaOnevisionForConditionalGeneration(
        hf.LlavaOnevisionConfig(
            text_config=text | {"model_type": "qwen2", "rope_parameters": rope, "pad_token_id": 0},
            vision_config=vision | {"model_type": "siglip_vision_model", "vision_use_head": False},
            video_token_index=ids["video_pad"],
            image_token_index=ids["image_pad"],
            vision_feature_layer=-1,
        )
    )
    for model, settings in ((qwen, SMALL_QWEN), (llava, SMALL_LLAVA)):
        for videos in ([], [DEMO], [DEMO, DEMO]):
            inputs = prepare(settings, words, "What moves?", videos, num_frames=4 if videos else None)
            output = model.eval().generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
            assert output.shape[1] == inputs["input_ids"].shape[1] + 2
