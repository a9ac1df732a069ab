"""The tables of the comparison, as plain data: which arms, trees, visual lengths, temperatures and clips.

`sparrow eval --table NAME` measures one; how it is laid out is in render.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sparrow.evaluation.questions import form_of, sampling
from sparrow.evaluation.systems import CLOCKS, FASTEST, LOOKUP, PLAIN, SPECVLM, TRANSFORMERS, System

PAPER_TREE, DEEP_TREE, OWN = "25-5-8", "40-10-6", "own"
TREES = (PAPER_TREE, DEEP_TREE)
OTHERS = {"lookup": LOOKUP, "specvlm": SPECVLM}
LENGTHS = (64, 256, 1024, 2048, 4096)
WATCH = (64, 128, 256, 512, 1024, 2048, 4096)
Point = tuple[int, float]


@dataclass(frozen=True)
class Arm:
    """A drafter in a table.

    Attributes:
        label: in the table.
        drafter: "shipped", an arm's name or a folder (miniature.drafter_folder).
        overrides: fields of its DrafterConfig that are replaced.
        trees: it has them beside the table's.
    """

    label: str
    drafter: str
    overrides: dict[str, Any] = field(default_factory=dict)
    trees: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """What a table needs.

    Attributes:
        name: its name; names.py says what it shows.
        arms: drafters, each with every tree. others: keys of OTHERS.
        trees: "total-depth-width"; "fastest" = that of ten at each visual length, of each arm; "own" = the config's.
        points: (visual length, temperature).
        clips, live, live_others, timed, runs: see plan.Plan.
        visual: it is of the target alone (visual.py): what it gets right, teacher-forced, over `clips` clips.
        quick: what a small version has otherwise.
    """

    name: str
    arms: tuple[Arm, ...] = ()
    trees: tuple[str, ...] = TREES
    points: tuple[Point, ...] = ()
    others: tuple[str, ...] = ()
    clips: int = 100
    live: int = 5
    live_others: int | None = None
    timed: int = 0
    runs: int = 3
    visual: bool = False
    quick: dict[str, Any] = field(default_factory=dict)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(length for length, _ in self.points))

    @property
    def temperatures(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(temperature for _, temperature in self.points))

    def small(self) -> "Table":
        """The quick version."""
        return replace(self, **self.quick)


def grid(lengths: Sequence[int], *temperatures: float) -> tuple[Point, ...]:
    """All pairs."""
    return tuple((length, temperature) for length in lengths for temperature in temperatures)


SHIPPED, PAPER = Arm("Sparrow, shipped", "shipped"), Arm("Sparrow, the paper's recipe", "paper")
MSD, VATA = Arm("MSD", "msd"), Arm("MSD + VATA", "msd", {"visual": "none"})
VISPEC, VISPEC_VATA = Arm("ViSpec", "vispec"), Arm("ViSpec + VATA", "vispec", {"visual": "none"})
TEXT_ONLY = Arm("text-only", "text_only")
EAGLE3, EAGLE3_VATA = Arm("EAGLE-3", "eagle3"), Arm("EAGLE-3 + VATA", "eagle3", {"visual": "none"})
MAIN = (*(replace(arm, trees=(FASTEST,)) for arm in (SHIPPED, PAPER, MSD, VISPEC)), VATA, TEXT_ONLY)
RIVALS = (SHIPPED, PAPER, MSD, VATA, VISPEC, TEXT_ONLY)
IVSB_LAYER = 4  # half of the miniature's layers

# MTP and IVSB are matters of training; VATA of drafting: without it the drafter sees visual rows as it was trained to.
ABLATION = tuple(
    Arm(f"MTP{mtp} IVSB{ivsb} VATA{vata}", drafter, seen if vata == "-" else {"visual": "none"})
    for mtp, ivsb, drafter, seen in (
        ("-", "-", "msd", {"visual": "rows", "visual_layer": 0}),
        ("+", "-", "msd_mtp1", {"visual": "rows", "visual_layer": 0}),
        ("-", "+", "seq_mtp0", {"visual": "rows", "visual_layer": IVSB_LAYER}),
        ("+", "+", "seq_mtp1", {"visual": "rows", "visual_layer": IVSB_LAYER}),
    )
    for vata in "-+"
)

# The first is what the others are compared with.
OPTIONS = (
    PAPER,
    Arm("the paper's recipe, another seed", "paper_seed1"),
    Arm("Muon", "paper_muon"),
    Arm("acceptance loss", "paper_acceptance"),
    Arm("text only", "text_only"),
    Arm("3 passes, attention as in decoding", "mtp3_tree"),
    Arm("text only, 3 passes, attention as in decoding", "text_mtp3_tree"),
    Arm("the same and Muon (shipped)", "shipped"),
    Arm("shipped, another seed", "winner_seed1"),
)

TABLES = {
    table.name: table
    for table in (
        Table(
            "main", MAIN, (PAPER_TREE,),
            grid((64, 1024, 4096), 0.0, 1.0), ("specvlm", "lookup"), clips=40, live=4, timed=4, live_others=30,
            quick={"arms": (replace(SHIPPED, trees=(OWN,)), *RIVALS[1:]), "trees": (PAPER_TREE,),
                   "points": ((64, 0.0), (64, 1.0), (1024, 0.0)), "clips": 10, "live": 3, "live_others": 3, "timed": 3,
                   "runs": 2},
        ),
        Table(
            "length", RIVALS, TREES, grid(LENGTHS, 0.0), ("specvlm", "lookup"),
            live_others=30,
            quick={"trees": (PAPER_TREE,), "points": grid((64, 1024, 4096), 0.0), "clips": 8, "live": 1,
                   "live_others": 2},
        ),
        Table(
            "ablation", ABLATION, TREES, grid(LENGTHS, 0.0),
            quick={"trees": (PAPER_TREE,), "points": grid((64, 1024), 0.0), "clips": 10, "live": 1},
        ),
        Table(
            "stages",
            (replace(PAPER, trees=(PAPER_TREE,)), replace(SHIPPED, trees=(OWN,))), (),
            grid(LENGTHS, 0.0), clips=8, live=8, timed=8,
            quick={"points": grid((64, 1024), 0.0), "clips": 3, "live": 3, "timed": 3, "runs": 2},
        ),
        Table(
            "trees", (SHIPPED, PAPER, MSD, VISPEC),
            ("2-2-1", "4-4-1", "8-8-1", "16-16-1", "12-6-2", "30-4-8", PAPER_TREE, "48-5-10", DEEP_TREE),
            grid((256,), 0.0),
            quick={"trees": ("8-8-1", "12-6-2", PAPER_TREE, DEEP_TREE), "clips": 10, "live": 1},
        ),
        Table(
            "options", OPTIONS, TREES,
            (*grid((64, 256, 1024), 0.0), (256, 1.0)),
            quick={"points": ((64, 0.0), (256, 0.0), (256, 1.0)), "clips": 10, "live": 1},
        ),
        Table(
            "imported", (MSD, VATA, VISPEC, VISPEC_VATA, EAGLE3, EAGLE3_VATA), (PAPER_TREE,),
            grid((64, 256, 1024), 0.0), clips=40,
            quick={"points": grid((64, 1024), 0.0), "clips": 8, "live": 1},
        ),
        Table(
            "layer_cut", points=grid((256,), 0.0), clips=64,
            visual=True, quick={"clips": 8},
        ),
        Table(
            "watch", points=grid(WATCH, 0.0),
            clips=64, visual=True, quick={"points": grid((64, 1024), 0.0), "clips": 8},
        ),
    )
}  # fmt: skip


def table_of(name: str, quick: bool) -> Table:
    """The table. Raises ValueError where there is none of this name."""
    if name not in TABLES:
        raise ValueError(f"--table must be one of {', '.join(TABLES)}; got {name!r}")
    return TABLES[name].small() if quick else TABLES[name]


def systems(table: Table, own_tree: dict[str, str]) -> list[System]:
    """Every arm with every tree, then the others.

    Args:
        own_tree: of each arm, by its label: its config's tree.
    """
    made = []
    for arm in table.arms:
        trees = [own_tree[arm.label] if tree == OWN else tree for tree in (*table.trees, *arm.trees)]
        for tree in dict.fromkeys(trees):
            made.append(System(f"{arm.label} {tree}", "sparrow", arm.drafter, tree, arm.overrides, arm.label))
    return made + [OTHERS[name] for name in table.others]


BASELINES = (TRANSFORMERS, PLAIN)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        table: its name.
        systems: beside the two baselines, which are run where there are times.
        points: (visual length, temperature) pairs; temperature 0 = greedy.
        split: "test", or "dev" for choosing.
        clips: numbers 0 .. clips - 1 of the split; tau of drafters is over all of them, by replay.
        live: the first so many are decoded live by every system: losslessness, and the replay checked.
        live_others: the same for systems that cannot be replayed (SpecVLM, prompt lookup): their tau is over these;
            None = all clips.
        timed: the first so many of the live ones are run `runs` times; a time is the median. 0 = no times.
        seed: of the sampling noise; clip i draws with seed + i.
        max_new_tokens: per clip.
        clock: of the times, "wall" or "cpu".
    """

    table: str
    systems: tuple[System, ...]
    points: tuple[tuple[int, float], ...]
    split: str = "test"
    clips: int = 100
    live: int = 5
    live_others: int | None = None
    timed: int = 0
    runs: int = 3
    seed: int = 0
    max_new_tokens: int = 256
    clock: str = "wall"

    def __post_init__(self):
        if self.live_others is None:
            object.__setattr__(self, "live_others", self.clips)
        for name, least in (("clips", 1), ("live", 1), ("timed", 0), ("runs", 1), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.timed <= self.live <= self.others <= self.clips:
            raise ValueError(
                "timed <= live <= live_others <= clips must hold, "
                f"got {self.timed}, {self.live}, {self.others}, {self.clips}"
            )
        if self.clock not in CLOCKS:
            raise ValueError(f"clock must be one of {', '.join(CLOCKS)}, got {self.clock!r}")
        if not self.systems or not self.points:
            raise ValueError(f"table {self.table}: at least one system and one (length, temperature) are needed")
        for length, temperature in self.points:
            form_of(length, 0), sampling(temperature, self.max_new_tokens)  # raise
        names = [s.name for s in (*BASELINES, *self.systems)]
        if twice := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"systems need different names, got {sorted(twice)[0]!r} twice")

    @property
    def others(self) -> int:
        """live_others as a number."""
        assert self.live_others is not None
        return self.live_others

    @property
    def all_systems(self) -> tuple[System, ...]:
        """Those that get cells: a table without times has none of the baselines."""
        return (*BASELINES, *self.systems) if self.timed else self.systems

    def run_at(self, temperature: float) -> tuple[System, ...]:
        """Those that are run: also the one whose tokens the others must give."""
        return self.all_systems if self.timed else (reference(temperature), *self.systems)

    def operations(self, temperature: float, clip: int) -> int:
        """Runs and replays on one clip, runs that warm up included."""
        systems = self.run_at(temperature)
        live = sum(clip < self.live_clips(s) for s in systems)
        turns = (self.runs if clip < self.timed else 1) + (clip == 0 and self.timed > 0)
        return sum(s.kind == "sparrow" for s in systems) + live * turns

    def live_clips(self, system: System) -> int:
        """How many clips the system decodes live."""
        return self.others if system.kind in ("lookup", "specvlm") else self.live


def reference(temperature: float) -> System:
    """Whose tokens a system of ours must give: transformers' greedy ones, or our plain sampling with the seed."""
    return TRANSFORMERS if temperature == 0 else PLAIN
