"""Write the report of an arena into a folder of its own: JSON, an HTML page, and a PNG."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import orjson

from simulator.report_image import save_image
from simulator.report_page import page
from simulator.summary import Report


def new_folder(out: Path) -> Path:
    """Make the folder `out`/<YYYYmmdd-HHMMSS>; add a number where it exists already."""
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(1, 1000):
        folder = out / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{out / name} and 998 folders like it exist already")


def write(folder: Path, report: Report) -> list[Path]:
    """Write report.json, report.html and report.png; return their paths."""
    json, html, png = (folder / f"report.{ending}" for ending in ("json", "html", "png"))
    json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    html.write_text(page(report), encoding="utf-8")
    save_image(report, png)
    return [json, html, png]
