"""Training runs: they learn, decode as they were trained, resume exactly, and split over processes."""

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import random
import resource
import signal
import socket
import time
from concurrent.futures import Future

import pytest
import torch

import sparrow
from sparrow.drafters.network import SparrowDrafter
from sparrow.targets.adapter import Target
from sparrow.training import asking, trainer
from sparrow.training import stages as training
from sparrow.training.answers import read_answers
from sparrow.training.distributed import ranks
from sparrow.training.initial import frequent_tokens, new_drafter
from sparrow.training.passes import Passes
from sparrow.training.recipe import Optimisation
from sparrow.training.run import Run
from sparrow.training.sequences import collate, sequence
from sparrow.tree import TreeConfig
from tests.training.cases import RandomClips, log, settings


def weights(run) -> dict[str, torch.Tensor]:
    return sparrow.SparrowDrafter.from_pretrained(pathlib.Path(run) / "drafter").state_dict()


def tau(model, drafter, clips) -> float:
    rounds = []
    for clip in range(3):
        out = sparrow.generate(model, drafter, **clips.inputs(clip), max_new_tokens=16, tree=TreeConfig.chain(4))
        rounds += out.stats.emitted
    return sum(rounds) / len(rounds)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """trained(family, visual, trimmed, fused, ...) -> (model, clips, config) of a run on three clips."""
    runs = {}

    def run(family, visual=True, trimmed=False, fused=False, layer="eagle", num_layers=1):
        key = (family, visual, trimmed, fused, layer, num_layers)
        if key not in runs:
            config = settings(
                tmp_path_factory.mktemp("trained"),
                recipe={
                    "mtp_depth": 2,
                    "mtp_attention": "tree",
                    "visual": visual,
                    "noise": 0.05,
                    "feature": 0.0 if fused else 0.1,
                },
                drafter={
                    "draft_vocab": 40 if trimmed else 0,
                    "fused_layers": [1, -3] if fused else [],
                    "layer": layer,
                    "num_layers": num_layers,
                    "own_head": layer == "eagle3",
                    "positions": "target" if fused else "text",
                },
                optimisation={
                    "steps": 150,
                    "save_every": 100,
                    "batch_rows": 200,
                    "learning_rate": 5e-3,
                    "clip_value": None,
                },
            )
            clips = RandomClips(family, 4)
            training.train(Target(tiny(family)), clips, config)
            runs[key] = tiny(family), clips, config
        return runs[key]

    return run


CASES = [  # family, visual, trimmed, fused, layer, num_layers
    ("qwen2_5_vl", True, False, False),
    ("llava_onevision", False, True, False),
    ("qwen2_5_vl", False, False, True),
    ("qwen2_5_vl", False, True, True, "eagle3"),
    ("llava_onevision", False, False, True, "eagle3"),
    ("llava_onevision", False, True, False, "eagle", 2),
    ("qwen2_5_vl", False, False, True, "eagle", 3),
]


@pytest.mark.parametrize("case", CASES)
def test_learns_a_few_clips_by_heart(trained, case):
    """The loss falls, and in live decoding more is accepted than of an untrained drafter."""
    model, clips, config = trained(*case)
    losses = [loss for (loss,) in log(config.run, "loss")]
    drafter = sparrow.SparrowDrafter.from_pretrained(pathlib.Path(config.run) / "drafter")
    untrained = sparrow.SparrowDrafter.from_target(Target(model))
    before, after = tau(model, untrained, clips), tau(model, drafter, clips)
    print(f"loss {losses[0]:.2f} to {losses[-1]:.2f}, tau {before:.2f} to {after:.2f}")
    assert losses[-1] < losses[0] - 0.5 and after > before + 1.5 and after > 2.5
    assert (pathlib.Path(config.run) / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize("case", CASES)
def test_decoding_gives_the_logits_of_training(trained, case, monkeypatch):
    """Every level of a live chain along the answer has the outputs of the training pass of that depth."""
    model, clips, config = trained(*case)
    target = Target(model)
    drafter = sparrow.SparrowDrafter.from_pretrained(pathlib.Path(config.run) / "drafter")
    drafter.attach(target)
    states = training.states_of(target, clips, config, [], training.Ranks())
    compared = [0, 0, 0]
    for answer in read_answers(pathlib.Path(config.answers.folder))[:3]:
        kept = states.load(answer)
        batch = collate([sequence(kept, config.drafter.positions, "before", None)])
        with torch.no_grad():
            # Training sees visual rows, decoding does not (VATA): compared without.
            batch.visual, batch.visual_positions = batch.visual[:, :0], batch.visual_positions[:, :0]
            batch.visual_before *= 0
            want = [drafter.logits(out)[0] for out in Passes(drafter, config.recipe).outputs(batch)]
        live, root = [], int(kept["first"]) - 1
        propose = drafter.propose

        def record(out, k, noise, level, live=live, propose=propose):
            live.append(out)
            return propose(out, k, noise, level)

        monkeypatch.setattr(drafter, "propose", record)
        done = sparrow.generate(
            model, drafter, **clips.inputs(answer.clip), max_new_tokens=16, tree=TreeConfig.chain(3)
        )
        monkeypatch.undo()
        assert done.sequences[0, -len(answer.ids) :].tolist() == list(answer.ids)
        for i, emitted in enumerate(done.stats.emitted):
            root += 1
            for level in range(min(3, 1 + done.stats.accepted[i], len(kept["tokens"]) - root)):
                got = drafter.logits(live[3 * i + level])[0, 0]
                torch.testing.assert_close(got, want[level][root + level], atol=2e-3, rtol=1e-3)
                compared[level] += 1
            root += emitted - 1
    assert min(compared) >= 3, compared


def test_draft_vocabulary_is_the_most_frequent_of_the_answers(trained):
    _, _, config = trained("llava_onevision", False, True, False)
    ids = weights(config.run)["draft_vocab_ids"]
    answers = read_answers(pathlib.Path(config.answers.folder))[:3]  # the fourth is held out
    counts = torch.bincount(torch.tensor([i for a in answers for i in a.ids]), minlength=300)
    assert (
        len(ids) <= 40
        and bool((counts[ids] > 0).all())
        and counts[ids].min() >= counts.clone().index_fill(0, ids, 0).max()
    )
    assert frequent_tokens(answers, 3, 300).numel() == 3


@pytest.mark.parametrize(
    ("recipe", "optimiser"),
    [({"mtp_depth": 1}, "muon"), ({"mtp_depth": 2, "mtp_attention": "tree", "visual": False}, "adamw")],
)
def test_a_killed_run_goes_on_exactly(tiny, tmp_path, monkeypatch, recipe, optimiser):
    target, clips = Target(tiny("qwen2_5_vl")), RandomClips("qwen2_5_vl", 4)
    sections = {"recipe": recipe, "optimisation": {"optimiser": optimiser}}
    training.train(target, clips, settings(tmp_path / "a", **sections))
    config = settings(tmp_path / "b", **sections)
    plain = Run.log

    def dies(self, **values):
        plain(self, **values)
        if values.get("step") == 5:  # one step behind the checkpoint
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "log", dies)
    with pytest.raises(KeyboardInterrupt):
        training.train(target, clips, config)
    monkeypatch.undo()
    torch.manual_seed(123)  # another process
    training.train(target, clips, config)
    names = ("step", "loss", "learning_rate", "rows", "agreement")
    assert (
        log(tmp_path / "a/run", *names) == log(tmp_path / "b/run", *names) and len(log(tmp_path / "b/run", "loss")) == 6
    )
    first, second = weights(tmp_path / "a/run"), weights(tmp_path / "b/run")
    assert all(torch.equal(first[k], second[k]) for k in first)
    with pytest.raises(ValueError, match="holds a run with other settings"):
        training.train(
            target, clips, settings(tmp_path / "b", recipe=recipe, optimisation={"optimiser": optimiser, "steps": 7})
        )


KILLS = 5


class Inline(contextlib.AbstractContextManager):
    """In a thread pool's place: a forked process cannot start torch in new threads."""

    def __init__(self, workers):
        pass

    def __exit__(self, *error):
        pass

    def shutdown(self, **how):
        pass

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done


def _train_until_killed(folder: pathlib.Path, model, at_sync: int | None, counted=None) -> None:
    """A run in a process of its own; at the given call of fsync, in the middle of writing a file, it kills itself."""
    calls, real = itertools.count(1), os.fsync

    def sync(descriptor):
        real(descriptor)
        call = next(calls)
        if counted is not None:
            counted.value = call
        if call == at_sync:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync, asking.ThreadPoolExecutor = sync, Inline
    training.train(Target(model), RandomClips("qwen2_5_vl", 4), settings(folder))


@pytest.mark.parametrize("moment", ["while a file is written", "at any time"])
def test_a_run_killed_again_and_again_ends_as_if_it_never_was(tiny, tmp_path, moment):
    model, context, rng = tiny("qwen2_5_vl"), multiprocessing.get_context("fork"), random.Random(moment)
    counted, kills, began = context.Value("i", 0), 0, time.monotonic()

    def start(*arguments):
        child = context.Process(target=_train_until_killed, args=arguments)
        child.start()
        return child

    whole = start(tmp_path / "whole", model, None, counted)
    whole.join()
    seconds, syncs = time.monotonic() - began, counted.value
    assert whole.exitcode == 0 and syncs > 20
    for _ in range(KILLS):
        if moment == "at any time":
            child = start(tmp_path / "killed", model, None)
            child.join(rng.uniform(0.1, 0.5) * seconds)
            child.kill()
        else:
            child = start(tmp_path / "killed", model, rng.randint(1, syncs // 2))
        child.join()
        assert child.exitcode in (-signal.SIGKILL, 0)  # never an error
        kills += child.exitcode != 0
    last = start(tmp_path / "killed", model, None)
    last.join()
    assert last.exitcode == 0 and kills >= 1
    names = ("step", "loss", "learning_rate", "rows", "agreement")
    assert log(tmp_path / "whole/run", *names) == log(tmp_path / "killed/run", *names)
    found = [{str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
             for name in ("whole", "killed")]  # fmt: skip
    for files in found:  # times and places differ, and the archive's
        for name in ("run/log.jsonl", "run/config.yaml", "run/curves.png", "run/checkpoint.pt"):
            assert files.pop(name)
        for name in [name for name in files if name.endswith(".lock")]:
            del files[name]
    assert found[0] == found[1]


def test_two_processes_on_one_run(tiny, tmp_path):
    """The second is refused while the first is at work, with its number, and disturbs nothing."""
    model, context = tiny("qwen2_5_vl"), multiprocessing.get_context("fork")
    ready, ours, theirs = context.Event(), *context.Pipe()

    def first():
        plain = Run.log

        def waits(self, **values):
            plain(self, **values)
            if values.get("step") == 3:
                ready.set()
                theirs.recv()

        Run.log, asking.ThreadPoolExecutor = waits, Inline
        training.train(Target(model), RandomClips("qwen2_5_vl", 4), settings(tmp_path))

    child = context.Process(target=first)
    child.start()
    assert ready.wait(120)
    with pytest.raises(BlockingIOError, match=rf"^{tmp_path}/run is in use by process {child.pid} on .+: wait for it"):
        training.train(Target(model), RandomClips("qwen2_5_vl", 4), settings(tmp_path))
    ours.send("go on")
    child.join()
    assert child.exitcode == 0
    assert [step for step, _ in log(tmp_path / "run", "step", "loss")] == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_is_named_and_the_run_goes_on_later(tiny, tmp_path):
    """Whichever file no longer fits is named, older ones are whole; in the end all is as if there had been room."""
    model, context = tiny("qwen2_5_vl"), multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    target, clips = Target(model), RandomClips("qwen2_5_vl", 4)

    def full(limit, work):
        asking.ThreadPoolExecutor = Inline
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            work()
        except OSError as error:
            theirs.send(str(error))
        else:
            theirs.send("")

    training.train(target, clips, settings(tmp_path / "a"))
    config, ranks = settings(tmp_path / "b"), training.Ranks()
    answer = lambda: training.prepare_answers(target, clips, config, ranks)  # noqa: E731
    train = lambda: training.train(target, clips, config)  # noqa: E731
    for name, work in (
        ("answers/settings.json", answer), ("answers/answers-0.jsonl", answer), ("run/config.yaml", train),
        ("states/0000/0000000-t0.safetensors", train), ("run/checkpoint.pt", train),
    ):  # fmt: skip
        child = context.Process(target=full, args=((tmp_path / "a" / name).stat().st_size * 9 // 10, work))
        child.start()
        said = ours.recv()
        child.join()
        assert str(tmp_path / "b" / name) in said and "File too large" in said
    train()
    names = ("step", "loss", "learning_rate", "rows", "agreement")
    assert log(tmp_path / "a/run", *names) == log(tmp_path / "b/run", *names)
    first, second = weights(tmp_path / "a/run"), weights(tmp_path / "b/run")
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"validation": 4}}, r"data.validation must be below the number of clips \(4\), got 4"),
        ({"drafter": {"hidden_layer": 5}}, r"drafter.hidden_layer must lie in \[-5, 4\], got 5"),
        ({"drafter": {"fused_layers": [-6]}, "recipe": {"feature": 0}}, r"must lie in \[-5, 4\], got -6"),
        ({"recipe": {"visual_layer": 9}}, r"recipe.visual_layer must lie in \[0, 4\], got 9"),
        ({"states": {"cache": False}, "optimisation": {"workers": 2}}, "workers must be 0 where states.cache is false"),
        ({"optimisation": {"batch_rows": 9}}, r"batch_rows must hold the longest sequence \(\d+ rows\), got 9"),
        ({"optimisation": {"sharding": "fsdp"}}, "fsdp needs several processes"),
        ({"drafter": {"num_layers": 2}}, "drafter.num_layers=2 needs recipe.visual=false"),
        (
            {"drafter": {"visual": "states"}, "recipe": {"visual": True}},
            "drafter.layer=eagle3 and drafter.visual=states need each other",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny, tmp_path, sections, message):
    with pytest.raises(ValueError, match=message):
        training.train(Target(tiny("qwen2_5_vl")), RandomClips("qwen2_5_vl", 4), settings(tmp_path, **sections))


def test_low_precision_targets_need_autocast(tiny, tmp_path):
    target, clips = Target(tiny("qwen2_5_vl", 0, None, torch.bfloat16)), RandomClips("qwen2_5_vl", 3)
    with pytest.raises(ValueError, match=r"autocast must be bfloat16 for a target in torch.bfloat16"):
        training.train(target, clips, settings(tmp_path / "a"))
    folder = training.train(target, clips, settings(tmp_path / "b", optimisation={"autocast": "bfloat16"}))
    assert weights(folder.parent)["fc.weight"].dtype == torch.bfloat16
    losses = [loss for (loss,) in log(folder.parent, "loss")]
    assert losses[-1] < losses[0]


def _process(rank: int, world: int, port: int, folder: str, sharding: str, model, last: int) -> None:
    """One of `world` processes on the run in the folder; killed behind step `last`, if it is not 0."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    plain = Run.log

    def dies(self, **values):
        plain(self, **values)
        if values.get("step") == last:
            raise InterruptedError

    Run.log = dies
    with ranks(torch.device("cpu")) as here:
        clips, config = RandomClips("qwen2_5_vl", 7), _two(pathlib.Path(folder), sharding)
        with pytest.raises(InterruptedError) if last else contextlib.nullcontext():
            training.train(Target(model), clips, config, here)


def _two(folder, sharding):
    more = {"sharding": sharding, "clip_norm": 1.0, "accumulate": 2, "batch_rows": 80}
    return settings(folder, drafter={"draft_vocab": 60}, optimisation=more)


def _processes(world: int, *arguments) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    method = "spawn" if torch.cuda.is_initialized() else "fork"  # fork is quick, and not for CUDA
    torch.multiprocessing.start_processes(_process, (world, port, *arguments), nprocs=world, start_method=method)


@pytest.mark.parametrize(("sharding", "first", "then"), [("ddp", 2, 1), ("ddp", 1, 2), ("fsdp", 2, 3)])
def test_several_processes_train_as_one(tiny, tmp_path, sharding, first, then):
    """Each with its share of every stage, steps of two batches; killed on the way, it goes on with another number of
    processes: the same losses, the same drafter.
    """
    model = tiny("qwen2_5_vl")
    training.train(Target(model), RandomClips("qwen2_5_vl", 7), _two(tmp_path / "one", "ddp"))
    for world, last in ((first, 5), (then, 0)):
        _processes(world, str(tmp_path / "two"), sharding, model, last)
    a, b = (log(tmp_path / name / "run", "step", "loss", "rows") for name in ("one", "two"))
    assert [x[0::2] for x in a] == [x[0::2] for x in b] and len(a) == 6
    assert [x[1] for x in b] == pytest.approx([x[1] for x in a], rel=1e-4)
    one, several = weights(tmp_path / "one/run"), weights(tmp_path / "two/run")
    for name in one:
        torch.testing.assert_close(one[name], several[name], atol=1e-4, rtol=1e-3)
    assert len(list((tmp_path / "two/answers").glob("answers-*.jsonl"))) == first
    assert json.loads((tmp_path / "two/run/log.jsonl").read_text().splitlines()[0])["training"] == 6


def test_muon_takes_the_matrices(tiny):
    drafter = sparrow.SparrowDrafter.from_target(Target(tiny("qwen2_5_vl")))
    muon, adamw = trainer.optimisers(drafter, Optimisation(optimiser="muon", weight_decay=0.1))
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    parts = [[p for g in o.param_groups for p in g["params"]] for o in (muon, adamw)]
    assert {p.ndim for p in parts[0]} == {2} and {p.ndim for p in parts[1]} == {1}
    assert len(parts[0]) + len(parts[1]) == len(list(drafter.parameters()))
    with pytest.raises(ValueError, match=r"optimiser=muon needs optimisation\.sharding=ddp"):
        Optimisation(optimiser="muon", sharding="fsdp")


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_the_schedule_is_every_optimisers(tiny, tmp_path, monkeypatch, optimiser):
    """At a rate of 0 no weight moves, whatever the peak."""
    monkeypatch.setattr(trainer, "learning_rate", lambda *_: 0.0)
    target, config = Target(tiny("qwen2_5_vl")), settings(tmp_path, optimisation={"optimiser": optimiser, "steps": 2})
    training.train(target, RandomClips("qwen2_5_vl", 3), config)
    start = new_drafter(target, config, []).state_dict()
    assert all(torch.equal(value, start[name]) for name, value in weights(config.run).items())


def test_a_larger_draft_vocabulary_is_chosen_anew(trained):
    """The rest is the earlier drafter's; asked for as many as it has, its own tokens stay."""
    model, _, config = trained("llava_onevision", False, True, False)
    target, answers = Target(model), read_answers(pathlib.Path(config.answers.folder))
    before, own = weights(config.run), len(weights(config.run)["draft_vocab_ids"])
    for size in (own, own + 1):
        shape = dataclasses.replace(config.drafter, start=f"{config.run}/drafter", draft_vocab=size)
        after = new_drafter(target, dataclasses.replace(config, drafter=shape), answers).state_dict()
        ids = before["draft_vocab_ids"] if size == own else frequent_tokens(answers, size, 300)
        assert after.pop("draft_vocab_ids").tolist() == ids.tolist()
        assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_tau_is_of_the_drafters_own_tree(trained, monkeypatch):
    """A tree chosen by the clock would make it another number each time."""
    model, clips, config = trained("llava_onevision", False, True, False)
    plain, trees = trainer.generate, []

    def heard(*args, **options):
        trees.append((out := plain(*args, **options)).stats.tree)
        return out

    monkeypatch.setattr(trainer, "generate", heard)
    answers = read_answers(pathlib.Path(config.answers.folder))
    found = trainer.measure_tau(Target(model), pathlib.Path(config.run) / "drafter", clips, answers, config)
    assert trees == [config.drafter.tree] * len(answers) and found["t0"] > 1


def test_goes_on_from_a_drafter(tiny, tmp_path, monkeypatch):
    """Its weights, under the new run's numbering; of another shape or target it is refused by name."""
    target, clips = Target(tiny("qwen2_5_vl")), RandomClips("qwen2_5_vl", 3)
    first = training.train(target, clips, settings(tmp_path / "first"))
    monkeypatch.setattr(trainer, "learning_rate", lambda *_: 0.0)
    changed = {"drafter": {"start": str(first)}, "states": {"positions": "reference"}, "optimisation": {"steps": 2}}
    second = training.train(target, clips, settings(tmp_path / "second", **changed))
    old, new = SparrowDrafter.from_pretrained(first), SparrowDrafter.from_pretrained(second)
    assert (old.config.numbering, new.config.numbering) == ("hf", "reference")
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in new.state_dict().items())
    with pytest.raises(ValueError, match=r"drafter\.start has positions='text', this run asks for 'sequence'"):
        new_drafter(target, settings(tmp_path, drafter={"start": str(first), "positions": "sequence"}), [])
    with pytest.raises(ValueError, match="made for a target with family='qwen2_5_vl'"):
        new_drafter(Target(tiny("qwen2_vl")), settings(tmp_path, drafter={"start": str(first)}), [])


def test_a_drafter_grows(tiny, tmp_path):
    """With further layers and further states it drafts at first what it drafted, and its new weights can be trained."""
    target, clips = Target(tiny("qwen2_5_vl")), RandomClips("qwen2_5_vl", 3)
    small = {"drafter": {"draft_vocab": 10}, "recipe": {"visual": False}}
    first = training.train(target, clips, settings(tmp_path / "first", **small))
    large = {"start": str(first), "draft_vocab": 10, "num_layers": 3, "fused_layers": [1, 2]}
    config = settings(tmp_path, drafter=large, recipe={"visual": False, "feature": 0.0})
    old, new = (
        SparrowDrafter.from_pretrained(first).place(target.device, torch.float32),
        new_drafter(target, config, []),
    )
    old.attach(target)
    tokens, states, positions = torch.randint(3, 280, (1, 20)), torch.randn(1, 20, 64), torch.arange(20)[None]
    joined = torch.cat([states, torch.randn(1, 20, 128)], dim=-1)
    want = old.logits(old(tokens, old.reuse(states), positions))
    got = new.logits(new(tokens, new.reuse(joined), positions))
    torch.testing.assert_close(got, want)
    got.logsumexp(-1).sum().backward()
    for name in ("fuse.weight", "layers.1.self_attn.o_proj.weight", "layers.2.mlp.down_proj.weight"):
        assert new.get_parameter(name).grad.abs().max() > 0
    with pytest.raises(
        ValueError, match=r"drafter\.start has (num_layers=3|fused_layers=\(1, 2\)), this run asks for "
    ):
        new.save_pretrained(tmp_path / "other")
        other = {**large, "start": str(tmp_path / "other"), "num_layers": 4, "fused_layers": [1]}
        new_drafter(target, settings(tmp_path, drafter=other, recipe={"visual": False, "feature": 0.0}), [])
    with pytest.raises(ValueError, match=r"drafter\.start has num_layers=3, this run asks for 1"):
        new.save_pretrained(tmp_path / "new")
        new_drafter(
            target,
            settings(
                tmp_path,
                drafter={**large, "start": str(tmp_path / "new"), "num_layers": 1},
                recipe={"visual": False, "feature": 0.0},
            ),
            [],
        )
