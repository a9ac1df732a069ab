"""Writes video.json and image.json of tests/video/golden from transformers' own processors.

Run from the repository's root, with Pillow installed: python -m tests.video.golden.make_golden

Where torchvision is missing, a stand-in of the few functions the processors call takes its place; the file says which
it was. Its compiled operators are not needed: a build of torchvision for another machine serves as well.
"""

import copy
import json
import platform
import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from tests.video.golden.cases import CASES, Case, clip, digest, tokenizer
from tests.video.golden.image_cases import CHATS, IMAGE_CASES, MODES, PATCHES, ImageCase, in_mode

FOLDER = Path(__file__).parent


def use_torchvision() -> str:
    """Makes `torchvision` importable and returns its version, or "stand-in"."""
    with suppress(ImportError):
        return _real_torchvision()
    from enum import Enum

    class InterpolationMode(Enum):
        NEAREST = "nearest"
        NEAREST_EXACT = "nearest-exact"
        BILINEAR = "bilinear"
        BICUBIC = "bicubic"
        BOX = "box"
        HAMMING = "hamming"
        LANCZOS = "lanczos"

    names = ["", ".io", ".transforms", ".transforms.functional", ".transforms.v2", ".transforms.v2.functional"]
    modules = {name: ModuleType("torchvision" + name) for name in names}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec("torchvision" + name, None, is_package=True)
        module.__path__ = []
        module.__file__ = __file__
        sys.modules["torchvision" + name] = module
        if name:
            parent, _, child = name.rpartition(".")
            setattr(modules[parent], child, module)
    vars(modules[""])["__version__"] = "0.28.0"
    functional = vars(modules[".transforms.v2.functional"])
    functional.update(
        InterpolationMode=InterpolationMode,
        resize=_resize,
        normalize=_normalize,
        pad=_pad,
        crop=_crop,
        grayscale_to_rgb=_rgb,
    )
    vars(modules[".transforms.functional"])["pil_to_tensor"] = None
    vars(modules[".io"]).update(ImageReadMode=None, decode_image=None)  # imported by transformers 5.18, not called
    for name in (".transforms", ".transforms.functional", ".transforms.v2"):
        vars(modules[name])["InterpolationMode"] = InterpolationMode
    return "stand-in"


def _real_torchvision() -> str:
    register = torch.library.register_fake

    def skip(name: Any, *args: Any, **kwargs: Any) -> Any:
        # without the compiled operators their fakes cannot be registered
        return (lambda function: function) if str(name).startswith("torchvision::") else register(name, *args, **kwargs)

    torch.library.register_fake = skip
    try:
        import torchvision
    finally:
        torch.library.register_fake = register
    return str(torchvision.__version__)


def _resize(image: torch.Tensor, size: Any, interpolation: Any, antialias: bool) -> torch.Tensor:
    assert interpolation.value == "bicubic" and image.dtype is torch.uint8
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    flat = image.reshape(-1, *image.shape[-3:])
    flat = F.interpolate(flat, size=list(size), mode="bicubic", align_corners=False, antialias=antialias)
    return flat.reshape(*image.shape[:-2], *size)


def _normalize(image: torch.Tensor, mean: Any, std: Any, inplace: bool = False) -> torch.Tensor:
    mean, std = (torch.as_tensor(v, dtype=image.dtype).view(-1, 1, 1) for v in (mean, std))
    return (image.sub_(mean) if inplace else image.sub(mean)).div_(std)


def _pad(image: torch.Tensor, padding: list[int], fill: int = 0) -> torch.Tensor:
    left, top, right, bottom = padding
    return F.pad(image, (left, right, top, bottom), value=fill)


def _crop(image: torch.Tensor, top: int, left: int, height: int, width: int) -> torch.Tensor:
    return image[..., top : top + height, left : left + width]


def _rgb(image: torch.Tensor) -> torch.Tensor:
    assert image.shape[-3] == 3
    return image


def processor(case: Case) -> Any:
    """The family's transformers processor around our tokenizer."""
    import transformers as hf

    words = tokenizer(case.family)
    if case.family.startswith("qwen"):
        video = {"qwen3_vl": hf.Qwen3VLVideoProcessor}.get(case.family, hf.Qwen2VLVideoProcessor)
        whole = {"qwen2_vl": hf.Qwen2VLProcessor, "qwen2_5_vl": hf.Qwen2_5_VLProcessor, "qwen3_vl": hf.Qwen3VLProcessor}
        return whole[case.family](hf.Qwen2VLImageProcessor(), words, video(**case.config))
    if case.family == "llava_onevision":
        video = hf.LlavaOnevisionVideoProcessor(**case.config)
        image = hf.LlavaOnevisionImageProcessor()
        return hf.LlavaOnevisionProcessor(
            image, words, video, num_image_tokens=729, vision_feature_select_strategy="full"
        )
    if case.family == "llava_next_video":
        video = hf.LlavaNextVideoVideoProcessor(**case.config)
        image = hf.LlavaNextImageProcessor()
        return hf.LlavaNextVideoProcessor(video, image, words, **case.whole_config)
    video = hf.InternVLVideoProcessor(**case.config)
    return hf.InternVLProcessor(hf.GotOcr2ImageProcessor(), words, video, **case.whole_config)


def run(case: Case) -> dict[str, Any]:
    """Hashes of everything the processor returns, and the frames it sampled."""
    whole = processor(case)
    clips = [clip(shape, seed) for seed, shape in enumerate(case.clips)]
    if not clips:
        return {name: digest(tensor) for name, tensor in whole(text=[case.prompt], return_tensors="pt").items()}
    # an explicit None keeps the processor's own default rate from clashing with num_frames
    options: dict[str, Any] = {"do_sample_frames": bool(case.sample), "num_frames": None, "fps": None, **case.sample}

    def metadata() -> list[dict[str, Any]]:
        # made anew for each call: processors write into it
        return [{"total_num_frames": len(c), "fps": case.fps, "frames_indices": list(range(len(c)))} for c in clips]

    found = whole.video_processor(clips, video_metadata=metadata(), return_metadata=True, **options)["video_metadata"]
    indices = [" ".join(str(int(i)) for i in m.frames_indices) for m in found]
    outputs = whole(text=[case.prompt], videos=clips, video_metadata=metadata(), return_tensors="pt", **options)
    return {name: digest(tensor) for name, tensor in sorted(outputs.items())} | {"indices": indices}


def image_processor(case: ImageCase) -> Any:
    """The family's transformers processor around our tokenizer, with the case's image processor."""
    import transformers as hf

    # a copy: the processors write into it
    words, config = tokenizer(case.family), copy.deepcopy(PATCHES.get(case.family, {}) | case.config)
    if case.family.startswith("qwen"):
        video = {"qwen3_vl": hf.Qwen3VLVideoProcessor}.get(case.family, hf.Qwen2VLVideoProcessor)
        whole = {"qwen2_vl": hf.Qwen2VLProcessor, "qwen2_5_vl": hf.Qwen2_5_VLProcessor, "qwen3_vl": hf.Qwen3VLProcessor}
        return whole[case.family](hf.Qwen2VLImageProcessor(**config), words, video())
    if case.family == "llava_onevision":
        image, video = hf.LlavaOnevisionImageProcessor(**config), hf.LlavaOnevisionVideoProcessor()
        return hf.LlavaOnevisionProcessor(image, words, video, **case.whole_config)
    if case.family == "llava_next_video":
        image, video = hf.LlavaNextImageProcessor(**config), hf.LlavaNextVideoVideoProcessor()
        return hf.LlavaNextVideoProcessor(video, image, words, **case.whole_config)
    image, video = hf.GotOcr2ImageProcessor(**config), hf.InternVLVideoProcessor()
    return hf.InternVLProcessor(image, words, video, **case.whole_config)


def run_images(case: ImageCase, images: list[Any] | None = None) -> dict[str, Any]:
    """Hashes of everything the processor returns, given the images as apply_chat_template gives them."""
    from PIL import Image

    images = [Image.fromarray(image) for image in case.images] if images is None else images
    videos: dict[str, Any] = {}
    if clips := case.clips:
        metadata = [{"total_num_frames": len(c), "fps": None, "frames_indices": list(range(len(c)))} for c in clips]
        videos = {"videos": clips, "video_metadata": metadata, "do_sample_frames": False}
    outputs = image_processor(case)(text=[case.prompt], images=[images], **videos, return_tensors="pt")
    return {name: digest(tensor) for name, tensor in sorted(outputs.items())}


def run_chat(case: ImageCase) -> dict[str, Any]:
    """Hashes of what the processor makes of a conversation."""
    whole = image_processor(case)
    options = {"do_sample_frames": False, "return_metadata": True}
    outputs = whole.apply_chat_template(
        case.chat, case.template, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        processor_kwargs=options,
    )  # fmt: skip
    return {name: digest(tensor) for name, tensor in sorted(outputs.items()) if isinstance(tensor, torch.Tensor)}


def main() -> None:
    """Runs every case and writes the files."""
    torchvision = use_torchvision()
    import transformers

    cases = {case.name: run(case) for case in CASES}
    images = {case.name: run_images(case) for case in IMAGE_CASES}
    images |= {f"{case.name}/chat": run_chat(case) for case in CHATS}
    images |= {mode: run_images(IMAGE_CASES[0], [in_mode(mode)]) for mode in MODES}
    versions = {"transformers": transformers.__version__, "torch": torch.__version__, "torchvision": torchvision}
    header = versions | {"machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}
    for name, made in (("video.json", cases), ("image.json", images)):
        (FOLDER / name).write_text(json.dumps({"made_with": header, "cases": made}, indent=1) + "\n")
        print(f"{FOLDER / name}: {len(made)} cases, {header}")


if __name__ == "__main__":
    main()
