"""Take the screenshots of the documentation: of the terminal, and of the report where there is one and a Chromium.

Run after the demo, in whose folder they are taken: `make pictures`.
"""

import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from rich.console import Console
from rich.text import Text

OUTPUT = Path(__file__).parent / "_static"
SKYLEVEL = Path(sys.executable).with_name("skylevel")
COLUMNS = 100
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Whether this Chromium can be asked for a dark page differs by its age: what the page sees is set directly.
VIEWS = {
    "report": ("1280,1500",),
    "report-phone": ("390,844",),
    "report-dark": ("1280,1500", "--blink-settings=preferredColorScheme=0"),
}
# The page allows no script but its own. In the copy that is shown opened, one more presses a button.
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
_OPEN = '<script>addEventListener("load", () => document.querySelector("button.open").click())</script>'
QUIETLY = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=5000",
)  # fmt: skip

# As rich draws it, without the fonts that it would have a browser fetch.
_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def terminal(folder: Path) -> None:
    """Show a run of the demo's program, and its state, as a terminal shows them."""
    shutil.rmtree(folder / "levelled", ignore_errors=True)
    inputs = [str(path.relative_to(folder)) for path in sorted(folder.glob("program/*.*"))]
    shown = list(_session(folder, [
        (["run", *inputs, "--output", "levelled"], "skylevel run program/* --output levelled"),
        (["status", "levelled"], "skylevel status levelled"),
    ]))  # fmt: skip
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor")
    for text in shown:
        console.print(text, soft_wrap=False, highlight=False)
    svg = _FONTS.sub("", console.export_svg(title="skylevel", unique_id="terminal"))
    path = OUTPUT / "terminal.svg"
    path.write_text(svg, encoding="utf-8")
    print(f"{path}: {len(svg) / 1000:.0f} kB")


def _session(folder: Path, commands: Sequence[tuple[list[str], str]]) -> Iterator[Text]:
    """Run commands on a terminal that can do nothing but print: without the bar, which is gone in the end."""
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": str(COLUMNS), "LINES": "50"}
    for arguments, typed in commands:
        yield Text(f"$ {typed}", style="bold")
        ours, its = pty.openpty()
        with subprocess.Popen([SKYLEVEL, *arguments], cwd=folder, stdout=its, stderr=its, env=environment) as process:
            os.close(its)
            with suppress(OSError), os.fdopen(ours, encoding="utf-8") as screen:  # its end is an error
                for line in screen:
                    yield Text.from_ansi(line.rstrip())
        if process.returncode:
            raise SystemExit(f"{typed}: ended with status {process.returncode}")


def report(folder: Path) -> None:
    """Show the report as a browser does: on a desk, on a phone, in the dark."""
    page = folder / "levelled" / "report.html"
    if CHROMIUM is None or not page.exists():
        print("no report or no Chromium: its screenshots stay as they are")
        return
    for name, (size, *options) in VIEWS.items():
        _shoot(page, OUTPUT / f"{name}.webp", size, options)
    opened = page.with_name("report-opened.html")
    opened.write_text(_POLICY.sub("", page.read_text(encoding="utf-8")) + _OPEN, encoding="utf-8")
    _shoot(opened, OUTPUT / "report-exposure.webp", "1280,1000", ())
    opened.unlink()


def _shoot(page: Path, path: Path, size: str, options: Sequence[str]) -> None:
    with TemporaryDirectory(prefix="skylevel-") as place:
        png = Path(place, "page.png")
        subprocess.run(
            [str(CHROMIUM), *QUIETLY, *options, f"--user-data-dir={place}", f"--window-size={size}",
             f"--screenshot={png}", page.resolve().as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        Image.open(png).convert("RGB").save(path, "webp", quality=75, method=6)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    terminal(Path(sys.argv[1]))
    report(Path(sys.argv[1]))
