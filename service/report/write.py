"""Writes a report where a person asked for it."""

from __future__ import annotations

from pathlib import Path

from service.report.content import Report
from service.report.image import save_image
from service.report.page import page

ENDINGS = (".html", ".png")


def write(report: Report, path: Path) -> None:
    """Write HTML or a PNG, by the ending of the name.

    Raises:
        ReboundError: a PNG needs what is not installed.
        OSError: the file cannot be written.
    """
    if path.suffix == ".png":
        save_image(report, path)
    else:
        path.write_text(page(report), encoding="utf-8")
