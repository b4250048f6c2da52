"""The page as PDF, printed by a browser of the Chromium family that is installed; there is none in the package.

Not here: how it looks on paper (`@media print` in `page.css`).
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from triptych.errors import MissingInputError, OutputError

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "microsoft-edge-stable",
    "msedge",
    "brave-browser",
)
"""Names on the PATH, in the order of trying."""
SECONDS = 180.0
"""After which a browser that does not answer is ended."""


def find_browser() -> str:
    """The first of `BROWSERS` that is installed."""
    found = next((path for name in BROWSERS if (path := shutil.which(name)) is not None), None)
    if found is None:
        raise MissingInputError(
            "no Chromium, Chrome or Edge is on the PATH to print with; install one, or print report.html by any browser"
        )
    return found


def print_pdf(page: Path, browser: str) -> bytes:
    """A page of this package as PDF; nothing is fetched for it, and no profile of the user's is touched."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "report.pdf"
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            # As root and in containers a sandbox cannot be had; the page runs nothing that it could hold.
            "--no-sandbox",
            "--no-first-run",
            "--disable-extensions",
            f"--user-data-dir={folder}/profile",
            "--no-pdf-header-footer",
            f"--print-to-pdf={target}",
            page.resolve().as_uri(),
        ]
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OutputError(f"{browser} could not print {page} ({error}); print it by hand") from None
        if not target.is_file():
            said = " ".join(done.stderr.decode(errors="replace").split()[-20:])
            raise OutputError(
                f"{browser} printed no PDF of {page} (exit code {done.returncode}: {said}); print it by hand"
            )
        return target.read_bytes()
