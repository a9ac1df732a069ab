"""The page in headless Chromium: `make test-page` runs these, and fails where there is no browser."""

import itertools
import os
import shutil

import pytest

from sparrow.cli.page import write_page
from tests.page.cases import NEW, PROMPT, Nasty, browsers, shown

pytestmark = pytest.mark.skipif(not browsers(), reason="needs Chromium and playwright: `make test-page`")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
CONTRAST = """() => {
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = colour => {
    probe.fillStyle = colour; probe.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...probe.getImageData(0, 0, 1, 1).data].map(x => x / 255)
      .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = it => { const c = getComputedStyle(it).backgroundColor;
    return c === "rgba(0, 0, 0, 0)" && it.parentElement ? behind(it.parentElement) : c; };
  const bad = [];
  for (const it of document.querySelectorAll("p, span, td, th, h1, h2, h3, button, .said, .chance")) {
    if (!it.textContent.trim() || it.closest("svg")) continue;
    const [a, b] = [light(getComputedStyle(it).color), light(behind(it))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(it.className + " " + it.textContent.slice(0, 30));
  }
  return bad;
}"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "no Chromium: install Debian's package chromium, or set CHROMIUM to a program"
    folder = tmp_path_factory.mktemp("profile")  # new and empty
    with sync_playwright() as play:
        context = play.chromium.launch_persistent_context(folder, executable_path=program, args=list(FLAGS))
        yield context
        context.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pages: of a drafted answer with three lanes, of one without a drafter, of a single token."""
    folder = tmp_path_factory.mktemp("pages")
    about = {
        "drafted": shown(), "plain": shown(drafts=False, lanes=False), "token": shown(lanes=False, max_new_tokens=1)
    }  # fmt: skip
    for name, one in about.items():
        write_page(folder / f"{name}.html", one, Nasty(), "pytest")
    return folder


@pytest.fixture
def opened(chromium, files):
    """opened(name, width=1200, scheme="light") -> the page; what it complains about or asks for fails the test."""
    faults, pages = [], []

    def go(name: str, width: int = 1200, scheme: str = "light"):
        page = chromium.new_page()
        pages.append(page)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        own = f"file://{files}/{name}.html"
        page.on("request", lambda r: None if r.url == own or r.url.startswith("data:") else faults.append(r.url))
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.goto(own)
        return page

    yield go
    for page in pages:
        page.close()
    assert not faults


@pytest.mark.parametrize("name", ["drafted", "plain", "token"])
@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_renders(opened, name, width, scheme):
    page = opened(name, width, scheme)
    assert page.locator("h1").inner_text() == PROMPT
    assert page.locator("#answer .token").count() == (1 if name == "token" else NEW)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert width != 400 or page.evaluate("$('tree').scrollWidth <= $('tree').clientWidth")
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, shade[4:-1].split(","))) < 200) == (scheme == "dark")
    assert page.evaluate(CONTRAST) == []
    assert page.locator("img").evaluate_all("all => all.every(it => it.complete && it.naturalWidth > 0)")


def test_texts_are_texts(opened):
    page = opened("drafted")
    said = page.locator("#answer").evaluate("it => it.textContent")
    assert said.count("<img src=x onerror=alert(3)>") > 1 and page.locator("#answer *:not(span)").count() == 0
    assert page.locator("#race img, #race script, #tree script").count() == 0


def rounds(page) -> list[int]:
    return page.evaluate("data.tokens.map(token => token.round)")


def test_pointing_shows_the_round(opened):
    page = opened("drafted")
    of, tokens = rounds(page), page.locator("#answer .token")
    for at in (len(of) - 1, of.index(2), 1):
        tokens.nth(at).hover()
        assert page.locator("#tree-about").inner_text().startswith(f"Round {of[at] + 1} of ")
        made = page.evaluate(f"data.rounds[{of[at]}]")
        bonus = made["bonus"] is not None
        assert page.locator("#tree .node").count() == len(made["texts"]) + bonus
        assert page.locator("#tree .node.taken").count() == len(made["path"])
        assert page.locator("#tree .node.bonus").count() == bonus
        assert page.locator("#answer .token.chosen").count() == of.count(of[at])
    tokens.nth(0).hover()
    assert "no round" in page.locator("#tree-about").inner_text() and page.locator("#tree svg").count() == 0


def test_the_keyboard_does_the_same(opened):
    """One stop of Tab for all tokens; arrows go by tokens and rounds."""
    page = opened("drafted")
    of = rounds(page)
    assert page.locator("#answer [tabindex='0']").count() == 1
    page.locator("#answer [tabindex='0']").focus()

    def now() -> int:
        return page.evaluate("spans.indexOf(document.activeElement)")

    page.keyboard.press("End")
    assert now() == len(of) - 1
    page.keyboard.press("Home")
    for key, place in (
        ("ArrowRight", 1),
        ("ArrowDown", of.index(1)),
        ("ArrowDown", of.index(2)),
        ("ArrowUp", of.index(1)),
    ):
        page.keyboard.press(key)
        assert now() == place
        assert page.locator("#tree-about").inner_text().startswith(f"Round {of[place] + 1} of ")
    assert page.locator("#answer [aria-selected='true']").count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "tree"


def test_looks_differ_without_colour(opened):
    """Accepted and bonus tokens, and nodes, differ in weight and line; every node says what it is."""
    page = opened("drafted")
    style = "it => { const s = getComputedStyle(it); return [s.fontWeight, s.borderBottomStyle].join() }"
    kinds = [page.locator(f"#answer .token.{kind}").first.evaluate(style) for kind in ("accepted", "bonus", "first")]
    assert len(set(kinds)) == 3
    page.locator("#answer .token.bonus").nth(1).hover()
    titles = page.locator("#tree .node title").evaluate_all("all => all.map(it => it.textContent)")
    assert any(": not accepted; " in t for t in titles) and any(t.endswith("the target's bonus token") for t in titles)
    dashes = "it => getComputedStyle(it).strokeDasharray"
    taken = page.locator("#tree .node.taken rect")
    if taken.count():
        assert taken.first.evaluate(dashes) != page.locator("#tree .node:not([class*=' t']) rect").last.evaluate(dashes)


def test_the_race_is_run_at_its_speed(opened):
    """0.8 s of transformers and 0.2 s of sparrow: counts grow, the faster one is done first, and it ends."""
    page = opened("drafted")
    bars = "[...document.querySelectorAll('#race progress')].map(it => it.value)"
    assert page.evaluate(bars) == [NEW] * 3
    seen = page.evaluate(f"""() => new Promise(done => {{
      const seen = [], look = () => {{
        seen.push([performance.now(), ...{bars}]);
        seen[seen.length - 1][1] < {NEW} || seen.length < 2 ? requestAnimationFrame(look) : done(seen);
      }};
      document.getElementById("play").click();
      requestAnimationFrame(look);
    }})""")
    assert 0.7 < (seen[-1][0] - seen[0][0]) / 1000 < 1.5
    assert all(a <= b for one, two in itertools.pairwise(seen) for a, b in zip(one, two, strict=True))
    assert any(s[3] == NEW > s[1] > 0 for s in seen) and all(s[3] >= s[1] for s in seen)
    page.wait_for_function("document.getElementById('play').textContent.includes('Again')", timeout=5000)
    assert page.evaluate(bars) == [NEW] * 3 and page.locator(".place").all_inner_texts()[2].startswith(
        "done after 0.20"
    )


def test_pause_and_speed(opened):
    page = opened("drafted")
    page.locator("#speed").select_option("0.25")
    page.locator("#play").click()
    page.wait_for_timeout(400)
    page.locator("#play").click()
    held = page.locator("#clock").inner_text()
    assert 0.02 < float(held.removesuffix(" s")) < 0.5 and page.locator("#play").inner_text() == "▶ Go on"
    page.wait_for_timeout(200)
    assert page.locator("#clock").inner_text() == held


def test_the_clip_plays(opened):
    page = opened("drafted")
    still, image = page.locator(".clip img").all()
    bars = page.locator(".clip .bar").all()
    assert still.get_attribute("alt") == "<image>.png" and [bar.is_visible() for bar in bars] == [False, True]
    first = image.get_attribute("src")
    bars[1].locator("button").click()
    page.wait_for_function("was => document.querySelectorAll('.clip img')[1].src !== was", arg=first, timeout=5000)
    bars[1].locator("button").click()
    bars[1].locator("input").fill("3")
    assert "frame 4 of 32" in str(image.get_attribute("alt"))
