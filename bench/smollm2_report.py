"""What is known of SmolLM2 as a target: measurements into bench/results/smollm2, and the tables made of them.

python -m bench.smollm2_report watch|language|llama_cpp|layer_cut|samples ...   measure (a checkout, the fetched target)
python -m bench.smollm2_report render                                            write the Markdown again
"""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import torch

from sparrow.evaluation.cells import interval, quotient
from sparrow.files import read_json, write_json, write_text
from sparrow.miniature.world import FORMATS, Format, sample
from sparrow.provenance import provenance

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "smollm2"
PAGE = RESULTS / "smollm2.md"
CLIPS = {64: 24, 256: 24, 1024: 24}
CUT_CLIPS = 12
TEST_PROMPTS, ANSWER_TOKENS, CHUNK, CHUNKS = 32, 32, 384, 12
SAMPLES = 6
QUESTIONS = (
    "What do you see in this video?", "Which colors appear in the clip?", "Is there a circle? Where is it?",
    "Describe the video to someone who cannot see it.", "What happens first?", "Give the video a title.",
)  # fmt: skip


class Loaded:
    """The fetched target, and the parts that measuring needs."""

    def __init__(self) -> None:
        import transformers

        from sparrow.cli.loading import load_target
        from sparrow.miniature.batches import Collator
        from sparrow.miniature.training import Forward
        from sparrow.smollm2 import fetch
        from sparrow.video import load_settings

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(1)
        self.folder = fetch.fetch()
        self.about = read_json(self.folder / "origin.json")
        self.model, self.tokenizer = load_target(self.folder, "float32", torch.device("cpu"), False)
        self.settings = load_settings(self.folder)
        self.collator, self.forward = Collator(self.model, self.tokenizer, self.settings), Forward(self.model, False)


def shares(counts: dict[str, list[tuple[int, int]]]) -> dict[str, Any]:
    """The share right of each class and of the core classes, with its interval over clips and the number of words."""
    from sparrow.smollm2.watching import FIRST, core

    named = {"core": core(counts), "first": core(counts, FIRST), **counts}
    return {name: {**interval(rows, quotient), "words": sum(of for _, of in rows)} for name, rows in named.items()}


def watch() -> dict[str, Any]:
    """Right words on descriptions of the test split, by visual length and video."""
    from sparrow.miniature.model import trainable
    from sparrow.miniature.watching import VIDEOS
    from sparrow.smollm2.watching import hits

    target, rows = Loaded(), []
    with trainable(target.model):
        for length, clips in CLIPS.items():
            form = FORMATS[length][0]
            for video in VIDEOS:
                counts = hits(target.collator, target.forward, form, video=video, split="test", clips=clips)
                rows.append({"length": length, "frames": form.frames, "side": form.side, "clips": clips,
                             "video": video, "accuracy": shares(counts)})  # fmt: skip
                print(length, video, rows[-1]["accuracy"]["core"], flush=True)
    return {"target": target.about, "rows": rows}


def layer_cut() -> dict[str, Any]:
    """Right words where text rows see no video from a layer on, every third layer."""
    from sparrow.miniature.layer_cut import layer_cut as cut
    from sparrow.miniature.model import trainable
    from sparrow.smollm2.watching import hits

    target, rows = Loaded(), []
    with trainable(target.model):
        for first in range(0, 31, 3):
            with cut(target.model, first):
                counts = hits(
                    target.collator, target.forward, Format(8, 64), video="true", split="test", clips=CUT_CLIPS
                )
            rows.append({"first": first, "accuracy": shares(counts)})
            print(first, rows[-1]["accuracy"]["core"], flush=True)
    return {"target": target.about, "length": 64, "clips": CUT_CLIPS, "rows": rows}


def language() -> dict[str, Any]:
    """Perplexity, before and after it learned to watch."""
    from sparrow.smollm2 import convert, host, package, texts
    from sparrow.smollm2.prompts import prompts

    target = Loaded()
    read = convert.read(package.gguf(package.cache_folder()))
    original, tokenizer, pad = host.build(read), read.tokenizer, int(read.tokenizer.pad_token_id)
    torch.manual_seed(0)
    said = texts.answers(original, tokenizer, prompts("test", TEST_PROMPTS), ANSWER_TOKENS)
    files = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
    prose = []
    for file in files:
        ids = tokenizer(file.read_text())["input_ids"]
        prose += [(ids[i : i + CHUNK], 1) for i in range(0, len(ids) - 1, CHUNK)]
    prose = prose[:: -(-len(prose) // CHUNKS)]
    rows = []
    for name, of in (("the original's answers to test prompts (T = 1)", said), ("this repository's documents", prose)):
        row: dict[str, Any] = {"text": name}
        for which, model in (("original", original), ("taught", target.model)):
            total, count = texts.surprise(model, of, pad)
            row |= {which: float(torch.tensor(total / count).exp()), "tokens": count}
        rows.append(row)
        print(row, flush=True)
    return {"target": target.about, "documents": [f.name for f in files], "rows": rows}


def llama_cpp() -> dict[str, Any]:
    """Where our greedy text leaves llama.cpp's, and how near the two tokens then were."""
    from sparrow.smollm2 import convert, host, package, texts

    golden = read_json(ROOT / "tests" / "smollm2" / "golden" / "llama_cpp.json")
    read = convert.read(package.gguf(package.cache_folder()))
    model, rows = host.build(read), []
    for case in golden["greedy"]:
        asked = texts.chat(read.tokenizer, case["prompt"])
        ids = torch.tensor([asked + case["tokens"]])
        with torch.no_grad():
            logits = model.lm_head(texts.states(model, ids)[0, len(asked) - 1 : -1])
        ours = logits.argmax(-1).tolist()
        first = next((i for i, (a, b) in enumerate(zip(ours, case["tokens"], strict=True)) if a != b), None)
        row: dict[str, Any] = {"prompt": case["prompt"], "tokens": len(ours), "first": first}
        if first is not None:
            row["gap"] = float(logits[first, ours[first]] - logits[first, case["tokens"][first]])
        row["others"] = sum(a != b for a, b in zip(ours, case["tokens"], strict=True))
        rows.append(row)
        print(row, flush=True)
    return {"xllamacpp": golden["xllamacpp"], "texts": golden["texts"], "rows": rows}


def samples() -> dict[str, Any]:
    """Greedy answers about the first clips of the test split; none left out."""
    import random
    import tempfile

    from sparrow.miniature.world import caption, write_video
    from sparrow.smollm2 import texts
    from sparrow.smollm2.prompts import prompts
    from sparrow.video import prepare

    target, rows = Loaded(), []

    def said(inputs: dict[str, Any], tokens: int) -> str:
        out = target.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return target.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    with tempfile.TemporaryDirectory() as folder:
        for number in range(SAMPLES):
            clip = sample(number, Format(8, 64), split="test", kind=None if number % 2 else "describe")
            file = pathlib.Path(folder) / f"{number}.mp4"
            write_video(file, clip.frames, clip.fps)
            for question in (clip.prompt, QUESTIONS[number % len(QUESTIONS)]):
                inputs = prepare(target.settings, target.tokenizer, question, [file], num_frames=8)
                rows.append({"clip": number, "question": question, "answer": said(inputs, 48),
                             "truth": caption(clip.scene, random.Random(number))})  # fmt: skip
                print(rows[-1]["answer"][:70].replace("\n", " "), flush=True)
    for prompt in prompts("test", 4):
        ids = torch.tensor([texts.chat(target.tokenizer, prompt)])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        rows.append({"clip": None, "question": prompt, "answer": said(inputs, 48), "truth": None})
        print(rows[-1]["answer"][:70].replace("\n", " "), flush=True)
    return {"target": target.about, "rows": rows}


MEASURES: dict[str, Callable[[], dict[str, Any]]] = {
    "watch": watch, "language": language, "llama_cpp": llama_cpp, "layer_cut": layer_cut, "samples": samples,
}  # fmt: skip


# ---- Markdown ----

FIRST = ("first", "first colour", "first kind", "first size", "first place")
WATCHED = ("core", "colour", "kind", "size", "place", "way", "count", "second", "order")


def _percent(figure: dict[str, Any] | None) -> str:
    return "-" if figure is None or figure["value"] is None else f"{figure['value']:.0%}"


def _table(names: list[str], rows: list[list[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def watch_table(result: dict[str, Any]) -> str:
    """One row per visual length and video."""

    def table(names: tuple[str, ...], shown: tuple[str, ...]) -> str:
        rows = [[str(r["length"]), r["video"], *(_percent(r["accuracy"].get(name)) for name in names)]
                for r in result["rows"]]  # fmt: skip
        return _table(["visual tokens", "video", *shown], rows)

    first = table(FIRST, WATCHED[:5])
    return f"At their first mention, before the closing that names shapes again:\n\n{first}\nAll:\n\n" + table(
        WATCHED, WATCHED
    )


def cut_table(result: dict[str, Any]) -> str:
    """One row per layer."""
    names = WATCHED[:5]
    rows = [[str(r["first"]), *(_percent(r["accuracy"].get(name)) for name in names)] for r in result["rows"]]
    return _table(["no video from layer", *names], rows)


def language_table(result: dict[str, Any]) -> str:
    """One row per kind of text."""
    rows = [[r["text"], str(r["tokens"]), f"{r['original']:.2f}", f"{r['taught']:.2f}",
             f"{r['taught'] / r['original'] - 1:+.1%}"] for r in result["rows"]]  # fmt: skip
    return _table(["text", "tokens", "perplexity before", "after", "change"], rows)


def llama_line(result: dict[str, Any]) -> str:
    """How far greedy text is llama.cpp's."""
    rows = result["rows"]
    whole = sum(row["first"] is None for row in rows)
    same = sorted(row["tokens"] if row["first"] is None else row["first"] for row in rows)
    gaps = sorted(row["gap"] for row in rows if row["first"] is not None)
    others, tokens = sum(row["others"] for row in rows), sum(row["tokens"] for row in rows)
    return (
        f"Token ids: equal on all {result['texts']} texts of the corpus. Greedy text: {whole} of {len(rows)} answers"
        f" are equal to their end (at most 64 tokens), the median answer for {same[len(same) // 2]} tokens. Where the"
        f" two first part, our logits of the two tokens differ by {gaps[len(gaps) // 2]:.2f} (median; at most"
        f" {gaps[-1]:.2f}). Given llama.cpp's own text, {1 - others / tokens:.1%} of its {tokens} tokens are also ours."
        if gaps else f"Token ids and greedy text: equal on all {result['texts']} texts and {len(rows)} answers."
    )  # fmt: skip


def samples_page(result: dict[str, Any]) -> str:
    """Questions and answers, all that were asked."""
    about = f"Greedy answers of the target (commit {result['provenance']['commit'][:9]}), the first {SAMPLES} clips of"
    parts = [f"# Samples\n\n{about} the test split, two questions each, then prompts without a video. None left out.\n"]
    for row in result["rows"]:
        where = "no video" if row["clip"] is None else f"clip {row['clip']}"
        parts.append(f"**{where}: {row['question']}**\n")
        parts.append("\n".join(f"> {line}" for line in row["answer"].splitlines() or [""]) + "\n")
        if row["truth"]:
            parts.append(f"What is in it: {row['truth']}\n")
    return "\n".join(parts)


def page() -> str:
    """Tables of all that was measured."""
    known = {name: read_json(RESULTS / f"{name}.json") for name in MEASURES if (RESULTS / f"{name}.json").is_file()}
    parts = ["# SmolLM2: measurements\n"]
    if "watch" in known:
        parts += [
            "Share of words right on descriptions of the test split, teacher-forced.\n",
            watch_table(known["watch"]),
        ]
    if "layer_cut" in known:
        parts += ["Text rows see no video from a layer on (64 visual tokens).\n", cut_table(known["layer_cut"])]
    if "language" in known:
        parts += ["Perplexity on held-out text.\n", language_table(known["language"])]
    if "llama_cpp" in known:
        parts += [llama_line(known["llama_cpp"]) + "\n"]
    return "\n".join(parts)


def render() -> None:
    """Writes the Markdown of what is in RESULTS."""
    write_text(PAGE, page())
    if (RESULTS / "samples.json").is_file():
        write_text(RESULTS / "samples.md", samples_page(read_json(RESULTS / "samples.json")))


def main(names: list[str]) -> None:
    """Measures what is named, then renders."""
    for name in names:
        if name != "render":
            made = {"provenance": provenance(f"python -m bench.smollm2_report {name}")}
            write_json(RESULTS / f"{name}.json", made | MEASURES[name](), indent=1)
    render()


if __name__ == "__main__":
    main(sys.argv[1:] or ["render"])
