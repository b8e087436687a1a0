"""Makes the pictures of docs/report.md: a small merge of made-up models, its report, and what a browser shows of it.

`make report-pictures`; needs Chromium.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.browser import Browser
from tests.report_models import write_models

HERE = Path(__file__).parent
VIEWS = {
    "report-light.png": (1280, "light", ("density", "overlap")),
    "report-phone-dark.png": (390, "dark", ("norms", "energy")),
}
"""Width, colours, and the figures from whose top to whose end the picture goes."""


def main() -> None:
    """Write the pictures beside the documents."""
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        place = Path(folder)
        write_models(place)
        merge = ["merge", "recipe.yml", "out", "--report", "report.html"]
        subprocess.run([Path(sys.executable).with_name("anabranch"), *merge], cwd=place, check=True)
        for name, (width, scheme, (first, last)) in VIEWS.items():
            browser.look(width, 900, scheme)
            browser.open(place / "report.html")
            browser.wait_for("document.readyState == 'complete' && document.body.dataset.drawn != '0'")
            top, _ = browser.place_of(f"#{first}")
            begin, height = browser.place_of(f"#{last}")
            (HERE / "images").mkdir(exist_ok=True)
            (HERE / "images" / name).write_bytes(browser.picture(0, top, width, begin + height - top))


if __name__ == "__main__":
    main()
