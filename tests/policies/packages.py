"""Makes packages that bring policies, as if they were installed: their files, and the metadata of an installer."""

from __future__ import annotations

import sys
import tomllib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from service.policies import PolicyClass
from service.policies.kinds import GROUP, discover

EXAMPLE = Path(__file__).parent / "example_package"


def write_metadata(folder: Path, name: str, entry_points: dict[str, str]) -> None:
    """Write the .dist-info of a package into a folder of the import path."""
    info = folder / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    lines = [f"{kind} = {value}\n" for kind, value in entry_points.items()]
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{''.join(lines)}")


def install_example(folder: Path) -> list[str]:
    """Write the example package's metadata. Return the folders that make it importable."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    write_metadata(folder, project["name"], project["entry-points"][GROUP])
    return [str(folder), str(EXAMPLE)]


@cache
def kinds_with_example() -> dict[str, PolicyClass]:
    """Find all kinds, with the example package installed for as long as that takes."""
    before = list(sys.path)
    with TemporaryDirectory() as folder:
        sys.path[:0] = install_example(Path(folder))
        try:
            return discover()
        finally:
            sys.path[:] = before
