"""Chat messages: every part and entry is obeyed, or refused by its name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sparrow
from sparrow.miniature.tokenizer import build_tokenizer
from sparrow.video import FAMILIES, PatchSettings, VideoError, load_video, prepare

DEMO = str(Path(sparrow.__path__[0]) / "assets" / "demo.mp4")
QWEN = FAMILIES["qwen2_5_vl"]
assert isinstance(QWEN, PatchSettings)
SMALL = replace(QWEN, min_pixels=28 * 28, max_pixels=4 * 28 * 28)
VIDEO, TEXT = {"type": "video", "video": DEMO}, {"type": "text", "text": "What moves?"}
# after LLaVA-OneVision's: parts only, plain text is passed over
PARTS_ONLY = (
    "{% for m in messages %}{{ m['role'] }}:{% for c in m['content'] | selectattr('type', 'equalto', 'video') %}"
    "<|video_pad|>{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}"
    "{% endfor %};{% endfor %}"
)
# after Qwen3-VL's: tool calls have a place
TOOLS = (
    "{% for m in messages %}{{ m['role'] }}:{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}"
    "{% for c in m['content'] %}{{ '<|video_pad|>' if c['type'] == 'video' else c['text'] }}{% endfor %}{% endif %}"
    "{% for call in m['tool_calls'] or [] %}{{ call['function']['name'] }}{% endfor %};{% endfor %}"
)
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "zoom", "arguments": {}}}]}


@pytest.fixture(scope="module")
def words() -> Any:
    return build_tokenizer(400)


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image"}, "part 0: images must be given, or named in the messages as {'type': 'image', 'image': s"),
        ({"type": "image", "video": DEMO}, "'video' is not known here, only type, image"),
        ({"type": "image", "image": "a.png", "fps": 2}, "'fps' is not known here, only type, image"),
        ({"type": "image", "image": "a.png", "path": "a.png"}, "an image must be named once, got image and path"),
        ({"type": "image", "image_url": {"url": DEMO}}, "of type image must not have image_url"),
        ({"type": "image_url", "image_url": {"detail": "low"}}, "image_url: 'detail' is not known here"),
        ({"type": "image", "base64": b"x"}, "base64 must be text, got b'x'"),
        ({"type": "audio", "audio": "a.wav"}, "only text, videos and images are read, no sound .* got type 'audio'"),
        ({"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}, "got type 'input_audio'"),
        ({"type": "file", "file": {"file_id": "f"}}, "got type 'file'"),
        ({"type": ["video"], "video": DEMO}, r"got type \['video'\]"),
        ({}, r"got entries \[\] without a type"),
        ("hello", "part 0: a part must be a mapping with a type, got 'hello'"),
        (7, "a part must be a mapping with a type, got 7"),
        ({"type": "text"}, "text must be text, got None"),
        ({"type": "text", "text": 7}, "text must be text, got 7"),
        ({"type": "text", "text": "x", "video": DEMO}, "'video' is not known here, only type, text"),
        ({"type": "text", "text": "x", "cache_control": {}}, "'cache_control' is not known here"),
        ({"type": "video", "video": DEMO, "image": "a.png"}, "'image' is not known here"),
        ({"type": "video", "video": DEMO, "num_frame": 4}, "'num_frame' is not known here, only type, .*nframes"),
        ({"type": "video", "video": DEMO, "raw_fps": 4}, "'raw_fps' is not known here"),
        ({"type": "video", "video": DEMO, "path": DEMO}, "a video must be named once, got video and path"),
        ({"type": "video", "video_url": {"url": DEMO}}, "of type video must not have video_url"),
        ({"type": "video_url", "video": DEMO}, "of type video_url must not have video"),
        ({"type": "video_url", "video_url": {}}, "video_url must have a url, got None"),
        ({"type": "video_url"}, "video_url must have a url, got None"),
        ({"type": "video_url", "video_url": {"url": DEMO, "detail": "low"}}, "video_url: 'detail' is not known here"),
        ({"type": "video_url", "video_url": {"url": "https://x.org/a.mp4"}}, "addresses are not fetched"),
        ({"type": "video", "video": "data:video/mp4;base64," + "A" * 5000}, "data addresses are not read"),
        ({"type": "text", "text": "see <|video_pad|>"}, r"must not hold <\|video_pad\|>, which stands for pixels"),
        ({"type": "text", "text": "see <|image_pad|>"}, r"must not hold <\|image_pad\|>, which stands for pixels"),
    ],
)
def test_parts_that_are_refused(part: Any, message: str, words: Any) -> None:
    with pytest.raises(VideoError, match=message):
        prepare(SMALL, words, user(part, VIDEO, TEXT))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message, got an empty list"),
        ({"role": "user", "content": "hi"}, "prompt must be text or a list of messages, got dict"),
        (None, "prompt must be text or a list of messages, got NoneType"),
        ([user(TEXT)], "a message must be a mapping with role and content"),
        ([{"role": "user"}], "a message must be a mapping with role and content"),
        ([{"role": None, "content": "hi"}], "message 0: role must be text, got None"),
        (
            [{"role": "user", "content": None}],
            "message 0: content must be text or a list of parts, got None; None goes",
        ),
        ([{"role": "user", "content": 7}], "content must be text or a list of parts, got 7"),
        ([{"role": "user", "content": b"hi"}], "content must be text or a list of parts, got b'hi'"),
        ([{"role": "user", "content": "<|image_pad|>"}], r"message 0: a text must not hold <\|image_pad\|>"),
        ([*user(TEXT), {"role": "tool", "content": [{"type": "image"}]}], "message 1, part 0: images must be given"),
        ([*user(TEXT), CALL], "message 1: the chat template has no place for tool_calls"),
        (
            [{"role": "user", "content": "hi", "audio": {"id": "a"}}],
            "message 0: the chat template has no place for audio",
        ),
    ],
)
def test_messages_that_are_refused(messages: Any, message: str, words: Any) -> None:
    with pytest.raises(VideoError, match=message):
        prepare(SMALL, words, messages)


def test_every_way_to_name_a_video(words: Any, tmp_path: Path) -> None:
    frames, _ = load_video(DEMO, num_frames=4)
    spaced = tmp_path / "a clip, 100%.mp4"
    spaced.symlink_to(DEMO)
    address = f"file://{tmp_path}/a%20clip,%20100%25.mp4"
    wanted = prepare(SMALL, words, "What moves?", [DEMO])
    for part in (
        VIDEO,
        {"video": DEMO},
        {"type": "video", "path": Path(DEMO)},
        {"type": "video", "url": address},
        {"type": "video", "video": address.replace("file://", "file://localhost")},
        {"type": "video_url", "video_url": {"url": address}},
        {"video_url": f"file://{DEMO}"},
        {"type": "video", "video": DEMO, "text": None, "image": None, "fps": None},
    ):
        assert same(prepare(SMALL, words, user(part, TEXT)), wanted), part
    assert same(prepare(SMALL, words, "What moves?", [address]), wanted)
    by_frames = prepare(SMALL, words, user({"video": frames}, TEXT))
    assert same(by_frames, prepare(SMALL, words, user({"video": list(frames)}, TEXT)))


def test_videos_stand_for_the_parts(words: Any, tmp_path: Path) -> None:
    """Given in the messages and in `videos`: the same file, or something that is no file."""
    wanted = prepare(SMALL, words, user(VIDEO, TEXT), num_frames=4)
    other = tmp_path / "other.mp4"
    other.symlink_to(DEMO)
    assert same(prepare(SMALL, words, user(VIDEO, TEXT), [DEMO], num_frames=4), wanted)
    assert same(prepare(SMALL, words, user(VIDEO, TEXT), [f"file://{DEMO}"], num_frames=4), wanted)
    assert same(prepare(SMALL, words, user(VIDEO, TEXT), [load_video(DEMO, SMALL, num_frames=4)]), wanted)
    assert same(prepare(SMALL, words, user({"type": "video", "nframes": 4}, TEXT), [DEMO]), wanted)
    with pytest.raises(VideoError, match=r"message 0, part 0 names '.*demo\.mp4', videos has '.*other\.mp4'"):
        prepare(SMALL, words, user(VIDEO, TEXT), [other])
    with pytest.raises(VideoError, match=r"one <\|video_pad\|> per video, got 1 for 2 videos"):
        prepare(SMALL, words, user(VIDEO, TEXT), [DEMO, DEMO])
    with pytest.raises(VideoError, match=r"part 0: nframes goes to load_video"):
        prepare(SMALL, words, user({"type": "video", "nframes": 4}), [load_video(DEMO, SMALL, num_frames=4)])


def test_placeholders_without_pixels(words: Any) -> None:
    for text in ("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>?", "What is <|image_pad|>?"):
        with pytest.raises(VideoError, match=r"must have one <\|image_pad\|> per image, got 1 for 0 images"):
            prepare(SMALL, words, text)
    with pytest.raises(VideoError, match=r"must have one <\|image_pad\|> per image, got 1 for 0 images"):
        prepare(SMALL, words, "<|video_pad|><|image_pad|>", [DEMO], num_frames=2)
    heard = build_tokenizer(400, named_tokens={"audio_token": "<|audio_pad|>"})
    with pytest.raises(VideoError, match=r"must not hold <\|audio_pad\|>: nothing stands behind it"):
        prepare(SMALL, heard, "<|video_pad|><|audio_pad|>", [DEMO], num_frames=2)
    # a template that makes one by itself
    drawn = replace(SMALL, chat_template="<|image_pad|>{{ messages[0]['content'][0]['text'] }}")
    with pytest.raises(VideoError, match=r"must have one <\|image_pad\|> per image, got 1 for 0 images"):
        prepare(drawn, words, user(TEXT))
    # a text that makes up for a part the template left out
    with pytest.raises(VideoError, match="got 0 for 1 videos"):
        prepare(replace(SMALL, chat_template="{{ messages[0]['content'][1]['text'] }}"), words, user(VIDEO, TEXT))


def test_the_template_loses_nothing(words: Any) -> None:
    parts = replace(SMALL, chat_template=PARTS_ONLY)
    plain = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What moves?"}]
    assert words.decode(prepare(parts, words, plain)["input_ids"][0]) == "system:Be short.;user:What moves?;"
    with pytest.raises(VideoError, match="message 0: the chat template has no place for its text"):
        prepare(replace(SMALL, chat_template="{{ messages[-1]['content'] }}"), words, plain)
    with pytest.raises(VideoError, match="cannot take these messages: TemplateError: no system"):
        prepare(replace(SMALL, chat_template="{{ raise_exception('no system') }}"), words, plain)
    # earlier thoughts may go
    thinking = "{% for m in messages %}{{ m['content'].split('</think>')[-1] }}{% endfor %}"
    history = [{"role": "assistant", "content": "<think>hm</think>Two."}, {"role": "user", "content": "Sure?"}]
    ids = prepare(replace(SMALL, chat_template=thinking), words, history)["input_ids"][0]
    assert words.decode(ids) == "Two.Sure?"


def test_tools(words: Any) -> None:
    tools = replace(SMALL, chat_template=TOOLS)
    answer = {"role": "tool", "content": [TEXT], "tool_call_id": "1", "name": "zoom"}
    ids = prepare(tools, words, [*user(VIDEO, TEXT), CALL, answer], num_frames=2)["input_ids"][0]
    assert words.decode(ids).endswith("What moves?;assistant:zoom;tool:What moves?;")
    whole = {"role": "assistant", "content": "Two.", "tool_calls": None, "refusal": None, "annotations": []}
    assert words.decode(prepare(tools, words, [whole])["input_ids"][0]) == "assistant:Two.;"
    with pytest.raises(VideoError, match="message 0: the chat template has no place for name, got 'Ann'"):
        prepare(tools, words, [{"role": "user", "content": "hi", "name": "Ann"}])


def test_nothing_is_decoded_before_the_prompt_fits(words: Any, tmp_path: Path) -> None:
    missing = {"type": "video", "video": str(tmp_path / "none.mp4")}
    with pytest.raises(VideoError, match="got type 'audio'"):
        prepare(SMALL, words, user(missing, {"type": "audio"}))
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        prepare(SMALL, words, user(missing, TEXT))


def test_device(words: Any) -> None:
    wanted = prepare(SMALL, words, user(VIDEO, TEXT), num_frames=2)
    for device in ("cpu", torch.device("cpu"), "cpu:0"):
        inputs = prepare(SMALL, words, user(VIDEO, TEXT), num_frames=2, device=device)
        assert same(inputs, wanted) and {t.device.type for t in inputs.values()} == {"cpu"}
    for device in ("gpu", 0, "", "meta", "cuda:999", True):
        with pytest.raises(VideoError, match=rf"device must be .*{device}"):
            prepare(SMALL, words, "?", device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_device_of_a_gpu(words: Any) -> None:
    inputs = prepare(SMALL, words, user(VIDEO, TEXT), num_frames=2, device="cuda")
    assert {t.device.type for t in inputs.values()} == {"cuda"}


def test_wrong_arguments(words: Any) -> None:
    with pytest.raises(VideoError, match="tokenizer must be a tokenizer, got NoneType"):
        prepare(SMALL, None, "?")
    with pytest.raises(VideoError, match="the prompt must be text that UTF-8 can hold"):
        prepare(SMALL, words, "\ud800?")
    with pytest.raises(VideoError, match=r"settings must be settings or one of .*got None"):
        prepare(None, words, "?")  # type: ignore[arg-type]
    with pytest.raises(VideoError, match=r"settings must be .*got \['qwen2_vl'\]"):
        prepare(["qwen2_vl"], words, "?")  # type: ignore[arg-type]


KEYS = st.sampled_from([
    "type", "text", "video", "video_url", "url", "path", "image", "audio", "fps", "nframes", "max_pixels", "min_pixels",
    "total_pixels", "video_start", "video_end", "resized_height", "resized_width", "min_frames", "sample_fps", "role",
])  # fmt: skip
LEAVES = st.sampled_from(["text", "video", "video_url", "image", "", "x.mp4", "file:///x.mp4", "\0", "\ud800", 0, 1, 4])
LEAVES |= st.sampled_from(
    [None, True, -1, 0.5, float("nan"), float("inf"), 10**400, b"x", np.zeros((2, 28, 28, 3), "u1")]
)
VALUES = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(KEYS, LEAVES, max_size=2)
PARTS = VALUES | st.dictionaries(KEYS, VALUES, max_size=4)
CONTENTS = VALUES | st.lists(PARTS, max_size=3)
MESSAGES = VALUES | st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": CONTENTS}), max_size=2)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=MESSAGES, family=st.sampled_from(["qwen2_5_vl", "qwen3_vl", "llava_onevision"]))
def test_any_messages_give_inputs_or_a_documented_error(messages: Any, family: str, words: Any) -> None:
    small = (
        replace(FAMILIES[family], min_pixels=784, max_pixels=3136) if family.startswith("qwen") else FAMILIES[family]
    )
    try:
        inputs = prepare(small, words, messages)
    except (VideoError, FileNotFoundError) as error:
        assert str(error)
    else:
        assert inputs["input_ids"].shape[0] == 1
