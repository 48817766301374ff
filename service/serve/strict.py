"""Refuses requests whose fields a declared schema cannot use, for loops that are `strict`."""

from __future__ import annotations

from collections.abc import Iterable

from service.decide.decision import Request
from service.errors import InvalidRequest
from service.represent.misfits import Misfits
from service.represent.schema import FeatureSchema
from service.represent.stored import AnyEncoder
from service.represent.user_state import USER

WHERE = {"context": "context", "item": "candidates.features"}
SENTENCES = {
    "overlong": "a text or a name has more than 256 characters",
    "too_many_values": "more than 100 values are not declared",
    "too_deep": "it is nested deeper than 5 levels",
    "wrong_type": "its type is not the declared one",
    "not_finite": "it is no finite number",
    "unknown_level": "it is none of the declared levels",
    "wrong_size": "the vector has not the declared size",
    "out_of_range": "it lies outside the declared min and max",
}


def refuse(request: Request, encoder: AnyEncoder, misfits: Misfits) -> None:
    """Raise where the schema cannot use a field of a request as it is.

    Args:
        encoder: of the policy that serves the request.
        misfits: what that encoder, and the funnel, could not use of this request, and of no other.

    Raises:
        InvalidRequest: names the first such field.
    """
    if not isinstance(encoder.schema, FeatureSchema):  # the service's own schema is no contract
        return
    for side, path, reason in misfits.counts:
        if path.startswith(USER):  # no word of the client's
            continue
        raise InvalidRequest(f"{WHERE[side]}.{path}", SENTENCES[reason] + "; this loop is strict")
    if encoder.schema.hash_dims == 0:  # what is not declared would be ignored
        _declared("context", request.context.keys() - {USER}, encoder.schema.context)
        for _, features in request.candidates or ():
            _declared("item", features or {}, encoder.schema.item)


def _declared(side: str, names: Iterable[str], declared: Iterable[str]) -> None:
    for name in names:
        if name not in declared:
            raise InvalidRequest(f"{WHERE[side]}.{name}", "it is not declared; this loop is strict")
