"""Looks at a page in headless Chromium.

``python -m tests.support.browser LOG PNG`` looks at the report of a log.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from llm_carbon_meter.cli import main
from tests.support.debian import provide

PACKAGES = {"chromium": ("chromium",)}
WINDOW = "1100,1790"


def look(page: Path, picture: Path) -> str:
    """Open a page without any network and save what is seen; the page as the browser has it."""
    provide(PACKAGES)
    with tempfile.TemporaryDirectory() as profile:
        command = [
            *("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--force-device-scale-factor=1", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *(f"--user-data-dir={profile}", f"--window-size={WINDOW}"),
        ]
        for wanted in (f"--screenshot={picture}", "--dump-dom"):
            done = subprocess.run(
                [*command, wanted, page.resolve().as_uri()],
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            )
    return done.stdout


if __name__ == "__main__":
    log, png = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "report.html"
        main(["report", str(log), "--html", str(made)])
        look(made, png)
