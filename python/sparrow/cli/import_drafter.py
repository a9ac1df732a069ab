"""`sparrow import`: a public drafter's checkpoint as a drafter's folder."""

import pathlib

from sparrow.cli.arguments import Import
from sparrow.cli.loading import quiet
from sparrow.cli.places import checkpoint_folder, target_folder
from sparrow.drafters.imported import import_drafter
from sparrow.progress import Progress
from sparrow.targets.folder import TargetFolder


def run(arguments: Import) -> int:
    """Writes the folder --out and says what is in it."""
    quiet()
    if pathlib.Path(arguments.out).is_file():
        raise ValueError(f"--out must be a folder, {arguments.out} is a file")
    folder = checkpoint_folder(arguments.checkpoint, "CHECKPOINT")
    target = TargetFolder(target_folder(arguments.target))
    tree = None if arguments.tree is None else str(arguments.tree)
    with Progress("importing the drafter"):
        kind, drafter = import_drafter(
            folder, target, vata=not arguments.no_vata, positions=arguments.positions, tree=tree
        )  # fmt: skip
        drafter.save_pretrained(arguments.out)
    c = drafter.config
    size = sum(p.numel() for p in drafter.parameters()) / 1e6
    seen = "text rows only" if c.visual == "none" else f"sees the video ({c.visual})"
    print(f"{kind}, {size:.1f} million weights, {seen}, positions {c.positions}, tree {c.tree}: {arguments.out}")
    print(f"Next: sparrow generate --target {arguments.target} --drafter {arguments.out} \\")
    print("    --video clip.mp4 --prompt 'What happens?' --compare")
    return 0
