"""Holds the version of this release: the build and the API read it here, and nothing else states it."""

from typing import Final

VERSION: Final = "0.2.0.dev0"
