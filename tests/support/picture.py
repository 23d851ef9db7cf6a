"""Make docs/page.png: the page of the demo's archive on a desktop, and on a phone in the dark.

`make picture` runs it.
"""

import base64
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from playwright.sync_api import Browser

from etl.cli.session import Wiring
from tests.support.browser import Scheme, chromium, opened
from tests.support.program import bare_program

TODAY = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
PICTURE = Path(__file__).parents[2] / "docs" / "page.png"
DESKTOP_PX = (1000, 1200)
PHONE_PX = (390, 1200)
FRAME = """
<!doctype html>
<style>
  body {{ margin: 0; padding: 24px; display: flex; gap: 24px; width: max-content }}
  body {{ background: #c9d2dc }}
  img {{ display: block; border-radius: 12px }}
</style>
<img src="data:image/png;base64,{}"><img src="data:image/png;base64,{}">
"""


def main() -> None:
    """Make the demo's archive on a fixed day, make its page, and take the picture."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        page = demo_page(Path(folder), TODAY)
        shots = [
            shot(browser, page, DESKTOP_PX, "light", "body"),
            shot(browser, page, PHONE_PX, "dark", "#flaky"),
        ]
        whole = browser.new_page()
        whole.set_content(FRAME.format(*(base64.b64encode(each).decode() for each in shots)))
        whole.locator("body").screenshot(path=PICTURE)


def demo_page(folder: Path, moment: datetime) -> Path:
    """Return the file of the page of a demo's archive that was made at `moment`."""
    archiver = bare_program(folder).wired(Wiring(lambda: moment))
    made = archiver.call("demo")
    reader = archiver.given(RESULT_ARCHIVER__DATABASE__URL=f"sqlite:///{folder}/demo.db")
    done = reader.call("report", "--format", "html", "--output", "page.html")
    if made.exit_code or done.exit_code:
        sys.exit(f"{made.stderr}{done.stderr}")
    return folder / "page.html"


def shot(
    browser: Browser, file: Path, size_px: tuple[int, int], scheme: Scheme, section: str
) -> bytes:
    """Return a picture of a page as PNG, from where `section` begins."""
    width, height = size_px
    with opened(browser, file, width, scheme) as page:
        page.set_viewport_size({"width": width, "height": height})
        page.locator(section).evaluate("each => each.scrollIntoView()")
        return page.screenshot()


if __name__ == "__main__":
    main()
