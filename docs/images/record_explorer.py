"""Record README's looping picture of the explorer: python docs/images/record_explorer.py (needs `make browser`).

The embedded model answers about one validation scene; the page is clicked through in a real browser, and each picture
is a frame.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import chromium, open_page  # noqa: E402

from analysis.explorer.explorer import Explorer  # noqa: E402
from analysis.settings import Settings  # noqa: E402

SCENE, WIDTH, HEIGHT = 8, 1180, 760
LOOK = 1500  # milliseconds that a picture stands


def main() -> None:
    """Record and write `explorer.webp`."""
    frames: list[tuple[Image.Image, int]] = []
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        pictures = Settings(output_dir=folder, n_images=SCENE + 1).open_pictures()
        explorer = Explorer("embedded", pictures=pictures)
        found = explorer.ask(list(pictures.values())[SCENE])
        explorer.compare("no_normalization")
        page, _ = open_page(
            browser,
            explorer.save_html(Path(folder, "page.html"), heads=True).as_uri(),
            viewport={"width": WIDTH, "height": HEIGHT},
            color_scheme="light",
        )
        page.wait_for_selector('.explorer[data-ready="yes"]')

        def keep(milliseconds: int = LOOK) -> None:
            page.wait_for_timeout(250)
            frames.append((Image.open(io.BytesIO(page.screenshot())).convert("RGB"), milliseconds))

        keep()
        objects = [phrase for phrase in found.phrases if phrase.root not in ("image", "scene", "background")]
        for phrase in objects[:4]:
            page.locator(f'[data-token="{phrase.tokens[0]}"]').click()
            keep()
        x, y = found.points[list(found.phrases).index(objects[0])].tolist()
        canvas = page.locator("canvas").first
        box = canvas.bounding_box()
        width, height = explorer.told.image.size
        canvas.click(position={"x": x * box["width"] / width, "y": y * box["height"] / height})
        keep(2000)
        page.locator(f'[data-token="{objects[1].tokens[0]}"]').click()
        page.locator("summary").click()
        page.locator("canvas.gallery").scroll_into_view_if_needed()
        keep(2000)
    first, *rest = [frame for frame, _ in frames]
    durations = [duration for _, duration in frames]
    path = HERE / "explorer.webp"
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, quality=80, method=6)
    print(f"{path}: {len(frames)} frames, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
