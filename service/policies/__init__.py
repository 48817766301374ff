"""Holds the policies, one per file. A new file here is a new kind, found by its class's `kind`.

An installed package adds kinds by entry points of the group `rebound.policies`.
"""

from service.policies.base import (
    Array,
    Arrays,
    Batch,
    Bounds,
    Candidates,
    LinearScore,
    NumericalError,
    Params,
    Policy,
    Ranked,
    Scorer,
    expect,
    finite_batch,
    greedy_pmf,
    part,
    same_arrays,
)
from service.policies.fold import Fold
from service.policies.item_index import Ids, ItemIndex
from service.policies.kinds import KINDS, KindInfo, PolicyClass, columns_for, describe_kinds, new_policy, new_scorer

__all__ = [
    "KINDS",
    "Array",
    "Arrays",
    "Batch",
    "Bounds",
    "Candidates",
    "Fold",
    "Ids",
    "ItemIndex",
    "KindInfo",
    "LinearScore",
    "NumericalError",
    "Params",
    "Policy",
    "PolicyClass",
    "Ranked",
    "Scorer",
    "columns_for",
    "describe_kinds",
    "expect",
    "finite_batch",
    "greedy_pmf",
    "new_policy",
    "new_scorer",
    "part",
    "same_arrays",
]
