"""Policies, one a file: a new one is a new file here, found by its class's `kind`."""

from importlib import import_module
from pkgutil import iter_modules

from service.policies._base import Arrays, Batch, Candidates, NumericalError, Params, Policy, Scorer


def _discover() -> dict[str, type[Policy]]:
    found: dict[str, type[Policy]] = {}
    for module in iter_modules(__path__):
        if module.name.startswith("_"):
            continue
        for member in vars(import_module(f"{__name__}.{module.name}")).values():
            if isinstance(member, type) and issubclass(member, Policy) and member.__module__.endswith(module.name):
                found[member.kind] = member
    return found


KINDS: dict[str, type[Policy]] = _discover()

__all__ = ["KINDS", "Arrays", "Batch", "Candidates", "NumericalError", "Params", "Policy", "Scorer"]
