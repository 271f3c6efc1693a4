"""Refuse an environment in which some dependency is newer than the lowest version that pyproject.toml declares.

A floor below what another dependency asks for is never installed, so nothing would test it.
"""

import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version


def untested_floors() -> Iterator[str]:
    """Say which floors are not installed."""
    for requirement in map(Requirement, metadata.requires("skylevel") or []):
        if 'extra == "jwst"' in str(requirement.marker):
            # `make test-jwst` has an environment of its own.
            continue
        installed = Version(metadata.version(requirement.name))
        floors = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
        if requirement.name != "skylevel" and floors != [installed]:
            yield f"{requirement}: {installed} is installed"


sys.exit("\n".join(untested_floors()) or None)
