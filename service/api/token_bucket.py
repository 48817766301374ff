"""How often a key may call."""

from __future__ import annotations


class TokenBucket:
    """Holds up to `burst` tokens, gains `rate` a second, and gives one a request; a batch owes the others.

    It knows no clock: whoever asks says what time it is. It belongs to one worker (docs/decisions/0052 says why).

    Args:
        rate: tokens a second, over 0.
        burst: tokens that a rest gathers, 1 or more; so many are there at first.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst, self._tokens = rate, burst, burst
        self._at: float | None = None

    def take(self, now: float) -> float:
        """Take a token; return 0, or the seconds until there is one where there is none.

        Args:
            now: in seconds of a clock that never goes back.
        """
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self._rate
        self._tokens -= 1.0
        return 0.0

    def owe(self, tokens: int) -> None:
        """Take further tokens for a call that was let in and holds many, be they there or not.

        What is not there is owed: nothing is let in until it has been gained.
        """
        self._tokens -= tokens
