"""The report of an arena: every figure as JSON, charts as one HTML page and as a PNG, in a folder of its own."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import orjson

from simulator import charts
from simulator.figures import Figures


def new_folder(out: Path) -> Path:
    """`out`/<YYYYmmdd-HHMMSS>, made; a number is added where it is there already."""
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(1, 1000):
        folder = out / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{out / name} and a thousand like it are there already")


def write(folder: Path, report: Figures) -> list[Path]:
    """report.json, report.html and report.png in `folder`; their paths."""
    json, page, image = (folder / f"report.{ending}" for ending in ("json", "html", "png"))
    json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    page.write_text(charts.page(report))
    charts.image(report, image)
    return [json, page, image]
