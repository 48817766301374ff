"""What can go wrong for the simulator; each message says what to do next.

SimulatorError
├── UnknownName          a policy, shock or world that cannot be read or does not exist
├── Unplayable           the service answers, but not so that an experiment would mean anything
└── ServiceError
    ├── Unreachable      nothing answers at the address
    ├── TooSlow          no answer in time
    ├── Refused          4xx: the service says why
    └── Failing          5xx, or an answer that is no JSON
"""

from __future__ import annotations


class SimulatorError(Exception):
    """Base of all errors that the simulator raises on purpose."""


class UnknownName(SimulatorError):
    """A name that stands for nothing here."""


class Unplayable(SimulatorError):
    """The figures of this run would not mean what they say."""


class ServiceError(SimulatorError):
    """A request that did not get what it asked for."""


class Unreachable(ServiceError):
    """No connection, or one that broke."""


class TooSlow(ServiceError):
    """No answer in time."""


class Refused(ServiceError):
    """The service understood and said no.

    Args:
        code: the problem's stable code.
        detail: what the service says about it.
    """

    def __init__(self, message: str, *, status: int, code: str, detail: str) -> None:
        super().__init__(message)
        self.status, self.code, self.detail = status, code, detail


class Failing(ServiceError):
    """The service is there but in trouble."""
