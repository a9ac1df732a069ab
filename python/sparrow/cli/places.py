"""Where targets and drafters are: folders, hub ids, and public checkpoints, which become drafters in the cache."""

import hashlib
import json
import pathlib
from collections.abc import Sequence

from sparrow.drafters.imported import import_drafter
from sparrow.drafters.storage import CONFIG_FILE
from sparrow.files import lock
from sparrow.progress import Progress, console
from sparrow.smollm2.package import cache_folder
from sparrow.targets.folder import TargetFolder

TARGET_FILES = ("*.json", "*.jinja", "*.txt", "*.safetensors")
DRAFTER_FILES = ("*.json", "*.safetensors")
PICKLE = "pytorch_model.bin"


def may_be_hub_id(name: str) -> bool:
    """Whether it is written "owner/name"."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def folder_of(name: str, option: str, files: Sequence[str]) -> pathlib.Path:
    """The local folder: the path itself, or what the hub has under an id ("owner/name").

    Args:
        name: path or id.
        option: what the user calls it.
        files: patterns of the hub's files that are wanted.

    Raises:
        FileNotFoundError: it is neither; what to do is said.
    """
    folder = pathlib.Path(name)
    if name and folder.is_dir():
        return folder
    kind = "drafter" if option == "--drafter" else "model"
    if folder.exists() or not may_be_hub_id(name):
        raise FileNotFoundError(f"{option}: no such {kind} folder: {name!r}")
    from huggingface_hub import snapshot_download

    try:
        return pathlib.Path(snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # many kinds, all meaning the same to the user
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{option}: {name} is no folder here and cannot be had from the hub: {reason}. Where there is a network: "
            f"`hf download {name}`; then copy its folder here, or the hub's cache (HF_HOME)"
        ) from error


def target_folder(name: str, option: str = "--target") -> pathlib.Path:
    """The local folder of a target, by path or hub id.

    Raises:
        FileNotFoundError: it is neither. ValueError: it is the folder of something else.
    """
    folder = folder_of(name, option, TARGET_FILES)
    _refuse_a_pair(folder, option, "target")
    if "format_version" in (config := _config(folder)) and "model_type" not in config:
        raise ValueError(f"{option}: {folder} is a drafter, not a target")
    return folder


def checkpoint_folder(name: str, option: str) -> pathlib.Path:
    """The local folder of a drafter, ours or somebody else's, by path or hub id."""
    folder = folder_of(name, option, DRAFTER_FILES)
    if not pathlib.Path(name).is_dir() and not any(folder.glob("*.safetensors")):
        folder = folder_of(name, option, (*DRAFTER_FILES, PICKLE))
    return folder


def drafter_folder(name: str, target: pathlib.Path | None, option: str = "--drafter") -> pathlib.Path:
    """The folder of a drafter in our format. A public checkpoint is imported for the target, once, into the cache.

    Args:
        name: path or hub id of either.
        target: the target's folder; None = a public checkpoint is refused.
        option: what the user calls it.

    Raises:
        FileNotFoundError: there is no such drafter. ValueError: the folder is a target's, or cannot be imported.
    """
    folder = checkpoint_folder(name, option)
    _refuse_a_pair(folder, option, "drafter")
    config = _config(folder)
    if "model_type" not in config and "transformer_layer_config" not in config:
        return folder  # ours; or damaged, as whoever reads it says
    if "format_version" in config:
        return folder
    if not is_public(config):
        raise ValueError(f"{option}: {folder} is a target, not a drafter")
    if target is None:
        raise ValueError(f"{option}: {folder} is a public checkpoint: `sparrow import` makes a drafter of it")
    return _imported(folder, TargetFolder(target), pathlib.Path(name).name)


def is_public(config: dict) -> bool:
    """Whether a config.json is of somebody else's drafter: a single layer, where every target has more."""
    inner = config.get("transformer_layer_config") or config.get("text_config") or config
    return isinstance(inner, dict) and inner.get("num_hidden_layers") == 1


def _imported(folder: pathlib.Path, target: TargetFolder, name: str) -> pathlib.Path:
    """The drafter in the cache made of this checkpoint for this target; made where it is not there."""
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.iterdir()) if f.is_file()]
    about = json.dumps([str(folder.resolve()), files, target.fingerprint()])
    place = cache_folder() / "drafters" / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"
    if not (place / CONFIG_FILE).is_file():
        with lock(place), Progress("importing the drafter"):
            kind, drafter = import_drafter(folder, target)
            drafter.save_pretrained(place)
        console.print(f"{folder}: {kind}, text rows only; the drafter is in {place}", markup=False, soft_wrap=True)
    return place


def _config(folder: pathlib.Path) -> dict:
    """What config.json holds; nothing where it cannot be read: whoever loads it says what is missing or damaged."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _refuse_a_pair(folder: pathlib.Path, option: str, wanted: str) -> None:
    """Raises ValueError where a folder that holds target/ and drafter/ is given for one of them."""
    if (folder / wanted / "config.json").is_file() and not (folder / "config.json").exists():
        raise ValueError(f"{option}: {folder} holds a {wanted} in a folder of its own: give {folder / wanted}")
