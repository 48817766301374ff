"""The errors of the simulator. Each message says what to do next.

SimulatorError
├── UsageError           an option, a file or a name that cannot be used
├── InvalidExperiment    the service answers, but the figures of the run would be wrong
└── ServiceError
    ├── Unreachable      nothing answers at the address
    ├── TooSlow          no answer in time
    ├── Refused          4xx: the service says why
    └── Failing          5xx, or a reply that cannot be read
"""

from __future__ import annotations


class SimulatorError(Exception):
    """Base of all errors that the simulator raises on purpose."""


class UsageError(SimulatorError):
    """An option, a file or a name cannot be used."""


class InvalidExperiment(SimulatorError):
    """The run cannot give valid figures."""


class ServiceError(SimulatorError):
    """A request failed."""


class Unreachable(ServiceError):
    """No connection could be made, or it broke."""


class TooSlow(ServiceError):
    """No answer came in time."""


class Refused(ServiceError):
    """The service refused a request.

    Args:
        status: HTTP status, 400 to 499.
        code: stable code of the problem.
        detail: the service's explanation.
    """

    def __init__(self, message: str, *, status: int, code: str, detail: str) -> None:
        super().__init__(message)
        self.status, self.code, self.detail = status, code, detail


class Failing(ServiceError):
    """The service answered with a 5xx, or with a reply that cannot be read."""
