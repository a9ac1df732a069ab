"""docs/demo.svg, README's picture: the race of `sparrow demo`, replayed at the speed it was measured.

    sparrow demo --report page.html && python tools/demo_picture.py page.html

takes the run into bench/results/demo.json and draws it; without a page the JSON is drawn again. The picture moves three
times and stays as it ends; where nothing moves, the end is what is seen.
"""

import json
import pathlib
import re
import sys
from typing import Any
from xml.sax.saxutils import escape

from sparrow.files import read_json, write_json, write_text

ROOT = pathlib.Path(__file__).parents[1]
RESULT, PICTURE = ROOT / "bench" / "results" / "demo.json", ROOT / "docs" / "demo.svg"
DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
SPECIAL = re.compile(r"<\|.*\|>")  # a token that ends the answer
WIDTH, CHARACTER, LINE, COLUMNS, TOP = 880, 7.8, 19, 50, 96  # pixels, and characters of a lane
PAUSE, TIMES = 4.0, 3  # seconds of the whole text, and how often it comes
LANES = ("transformers", "sparrow")
LOOKS = {"accepted": ' fill="#7ee2a8"', "bonus": ' fill="#ffb454" font-weight="700" text-decoration="underline"'}
STYLE = 'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="13"'


def result_of(page: pathlib.Path) -> dict[str, Any]:
    """What a page shows, without the pictures of its clips.

    Raises ValueError where the file is no page of --report, or has no race of three.
    """
    found = DATA.search(page.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{page} is no page of --report")
    data = json.loads(found.group(1))
    if not all(lane["arrivals"] for lane in data["race"]):
        raise ValueError(f"{page} has lanes that were not run: use `sparrow demo --report`")
    return {"provenance": data.pop("made"), **{name: value for name, value in data.items() if name != "clips"}}


def placed(texts: list[str]) -> list[list[tuple[int, int, str]]]:
    """Of each token the parts to draw: (line, column, text); lines end between words."""
    owner = [at for at, text in enumerate(texts) for _ in text]
    parts: list[list[tuple[int, int, str]]] = [[] for _ in texts]
    line = column = start = 0
    for word in re.findall(r"\s*\S+|\s+$", "".join(texts)):
        skipped = 0
        if column and column + len(word) > COLUMNS:
            line, column, skipped = line + 1, 0, len(word) - len(word.lstrip())
        for place, character in enumerate(word[skipped:], start + skipped):
            own = parts[owner[place]]
            if own and own[-1][0] == line and own[-1][1] + len(own[-1][2]) == column:
                own[-1] = (*own[-1][:2], own[-1][2] + character)
            else:
                own.append((line, column, character))
            column += 1
        start += len(word)
    return parts


def lane(data: dict[str, Any], name: str, left: float, period: float) -> tuple[list[str], int]:
    """The lane's text, each arrival hidden until its time, and how many lines it has."""
    own = next(x for x in data["race"] if x["name"] == name)
    tokens = data["tokens"]
    texts = [SPECIAL.sub("", text) for text in own.get("texts") or [token["text"] for token in tokens]]
    parts, drawn, at = placed(texts), [], 0
    for seconds, count in own["arrivals"]:
        words = []
        for token in range(at, at + count):
            look = LOOKS.get(tokens[token]["kind"], "") if own["ours"] else ""
            for line, column, text in parts[token]:
                shown = text.strip()  # blanks at its ends are places, not text: a picture may collapse them
                x, wide = left + (column + text.find(shown)) * CHARACTER, len(shown) * CHARACTER
                where = f'x="{x:.1f}" y="{TOP + line * LINE}" textLength="{wide:.1f}"'
                words += [f"<text {where}{look}>{escape(shown)}</text>"] if shown else []
        drawn.append(f"<g>{hidden(seconds, period)}{''.join(words)}</g>")
        at += count
    return drawn, 1 + max(line for part in parts for line, *_ in part)


def hidden(seconds: float, period: float) -> str:
    """Hides its parent until so many seconds of each period."""
    begins = ";".join(f"{period * turn:.2f}s" for turn in range(TIMES))
    return f'<set attributeName="visibility" to="hidden" begin="{begins}" dur="{seconds:.3f}s"/>'


def picture(data: dict[str, Any]) -> str:
    """The SVG."""
    race = {x["name"]: x for x in data["race"]}
    ends = {name: race[name]["arrivals"][-1][0] for name in LANES}
    period = max(ends.values()) + PAUSE
    lefts = dict(zip(LANES, (24.0, 24.0 + WIDTH / 2), strict=True))
    body, lines = [], 0
    for name, left in lefts.items():
        drawn, own = lane(data, name, left, period)
        body, lines = [*body, *drawn], max(lines, own)
    foot = TOP + lines * LINE + 14
    for name, left in lefts.items():
        count = sum(n for _, n in race[name]["arrivals"])
        said = f"{count} tokens in {ends[name]:.2f} s, prompt included"
        body.append(f'<text x="{left}" y="{TOP - 28}" fill="#9fb3c8" font-weight="700">{name}</text>')
        body.append(f'<g>{hidden(ends[name], period)}<text x="{left}" y="{foot}" fill="#ffffff">{said}</text></g>')
    made = data["provenance"]
    about = f"replayed at the speed it was measured ({made['cpu']}, {made['threads']} thread)"
    legend = (
        f"<tspan{LOOKS['accepted']}>drafted and accepted</tspan>, <tspan{LOOKS['bonus']}>bonus: the target's "
        f"own</tspan>. {escape(data['verdict'].partition(' (')[0])}"
    )
    height = foot + 52
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="sparrow demo, {escape(about)}" fill="#e6edf3" {STYLE}>',
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#161b22"/>',
        '<circle cx="22" cy="20" r="6" fill="#f25f58"/><circle cx="42" cy="20" r="6" fill="#fbbe3c"/>'
        '<circle cx="62" cy="20" r="6" fill="#58cb42"/>',
        f'<text x="86" y="25">$ sparrow demo</text>'
        f'<text x="{WIDTH - 24}" y="25" text-anchor="end" fill="#9fb3c8">{escape(about)}</text>',
        f'<path d="M{WIDTH / 2} 50V{foot + 6}" stroke="#30363d"/>',
        *body,
        f'<text x="24" y="{height - 14}" fill="#9fb3c8">{legend}</text>',
        "</svg>\n",
    ])  # fmt: skip


def main(arguments: list[str]) -> None:
    if arguments:
        write_json(RESULT, result_of(pathlib.Path(arguments[0])), indent=None)
    write_text(PICTURE, picture(read_json(RESULT)))
    print(f"{PICTURE.relative_to(ROOT)} of {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
