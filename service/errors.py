"""Every error that a client can meet.

ReboundError
├── InvalidRequest        422  a field is wrong; names it
│   └── NoCandidates      422  nothing was eligible
├── MalformedJson         400
├── PayloadTooLarge       413
├── Unauthorized          401  no key, or an unknown one
├── Forbidden             403  the key's role does not allow this
├── RateLimited           429  the key calls more often than it may; try again later
├── NotFound              404  loop, item, policy, version or decision
├── UnsupportedEncoding   415  a compressed body
├── Conflict              409  it exists, differs, or is in use
│   ├── StaleEpoch        409  somebody else changed it at the same moment
│   ├── UnreadableRecord  409  what is stored under this name cannot be read
│   └── NewerFormat       409  a newer version wrote it (`store/codec.py`)
├── ExplainerBusy         503  explanations take too long now; try again
└── StoreUnavailable      503  Redis does not answer; try again

Each carries its status and a stable `code`; `api/problems.py` renders them as RFC 9457 problem details.
"""

from __future__ import annotations

import math
from typing import Any


class ReboundError(Exception):
    """The root: `detail` says what happened and what to do next."""

    status: int = 500
    code: str = "internal"
    title: str = "Something went wrong"
    retry_after: int | None = None  # seconds after which the same request may succeed

    def __init__(self, detail: str, *, code: str | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail, self.extra = detail, extra
        self.code = code or type(self).code


class InvalidRequest(ReboundError):
    """422: `errors` lists {"field", "message"}."""

    status, code, title = 422, "invalid_request", "The request is not valid"

    def __init__(self, field: str, message: str, **extra: Any) -> None:
        super().__init__(f"{field}: {message}", errors=[{"field": field, "message": message}], **extra)


class NoCandidates(InvalidRequest):
    """422: after exclusions nothing is left to recommend."""

    code, title = "no_candidates", "No candidate is eligible"


class MalformedJson(ReboundError):
    status, code, title = 400, "malformed_json", "The body is not JSON"


class PayloadTooLarge(ReboundError):
    status, code, title = 413, "payload_too_large", "The body is too large"


class Unauthorized(ReboundError):
    status, code, title = 401, "unauthorized", "An API key is needed"


class Forbidden(ReboundError):
    status, code, title = 403, "forbidden", "This key may not do this"


class RateLimited(ReboundError):
    """429 with Retry-After: nothing was done."""

    status, code, title = 429, "rate_limited", "Too many requests with this key"
    retry_after = 1  # or more: as the instance says

    def __init__(self, key: str, wait_s: float) -> None:
        self.retry_after = math.ceil(wait_s)
        super().__init__(f"the key {key} may not call so often; send it again in {self.retry_after} s")


class NotFound(ReboundError):
    status, code, title = 404, "not_found", "Not found"


class Conflict(ReboundError):
    status, code, title = 409, "conflict", "This conflicts with what is there"


class StaleEpoch(Conflict):
    code, title = "changed_meanwhile", "Somebody else changed this at the same moment"


class UnreadableRecord(Conflict, ValueError):
    """409: `detail` says how to remove it."""

    code, title = "unreadable", "The record cannot be read"


class UnsupportedEncoding(ReboundError):
    status, code, title = 415, "unsupported_encoding", "The body's encoding is not taken"


class StoreUnavailable(ReboundError):
    """503 with Retry-After: nothing was acknowledged, so the client may send it again."""

    status, code, title = 503, "store_unavailable", "The store does not answer"
    retry_after = 1


class ExplainerBusy(ReboundError):
    """503 with Retry-After: a worker makes one explanation at a time, and gives up one that takes too long."""

    status, code, title = 503, "explainer_busy", "Explanations take too long at the moment"
    retry_after = 2
