"""docs/report/*.png: the page of `sparrow demo --report page.html` in headless Chromium.

python tools/page_screenshots.py page.html     (needs playwright, and Chromium: Debian's package, or CHROMIUM)
"""

import io
import os
import pathlib
import shutil
import sys
import tempfile

from PIL import Image
from playwright.sync_api import sync_playwright

from sparrow.files import replacing

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "report"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
SHOTS = {"wide": (1200, "light"), "narrow": (400, "dark")}  # width and colour scheme
TOKEN = 60  # the one under the pointer


def main(file: pathlib.Path) -> None:
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program is None:
        raise SystemExit("no Chromium: install Debian's package chromium, or set CHROMIUM to a program")
    with sync_playwright() as play, tempfile.TemporaryDirectory() as profile:
        context = play.chromium.launch_persistent_context(profile, executable_path=program, args=list(FLAGS))
        for name, (width, scheme) in SHOTS.items():
            page = context.new_page()
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            page.goto(file.resolve().as_uri())
            page.locator("#answer .token").nth(TOKEN).hover()
            with Image.open(io.BytesIO(page.screenshot(full_page=True))) as image:
                small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
            with replacing(FOLDER / f"{name}.png") as new:
                small.save(new, optimize=True)
            print(f"docs/report/{name}.png: {width} pixels, {scheme}")
        context.close()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
