"""API keys: who calls, what he may do, and in which loops.

Keys come from two places. `REBOUND_CLIENT_KEYS` and `REBOUND_ADMIN_KEYS` hold them as they are, for all loops; they
are named by their place, `ADMIN_KEYS.1`. `REBOUND_KEYS_FILE` is a TOML file with a table a key, under its name. It
holds digests, so whoever reads it has no key:

    [shop-web]
    role = "client"
    sha256 = ["9f86d0…", "60303a…"]   # several, while an old one is replaced by a new one
    loops = ["shop"]                  # left out: all loops
    rate = 200                        # requests a second, of each worker; left out: no limit
    burst = 400                       # that come at once after a rest; left out: those of a second

In memory there are digests, too.
"""

from __future__ import annotations

import hmac
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from service.api.token_bucket import TokenBucket
from service.errors import Forbidden
from service.loop import LOOP_NAME
from service.settings import Settings

Role = Literal["client", "admin"]
Name = Annotated[str, Field(pattern=rf"^{LOOP_NAME.pattern}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class InvalidKeys(ValueError):
    """The keys cannot be used. The message names the file and the entry, and no key."""


class Entry(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    role: Role
    sha256: tuple[Digest, ...] = Field(min_length=1)
    loops: frozenset[Name] | None = Field(None, min_length=1)
    rate: float | None = Field(None, gt=0, le=1e6, strict=True)
    burst: int | None = Field(None, ge=1, le=10**6, strict=True)

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> Entry:
        if self.burst is not None and self.rate is None:
            raise ValueError("burst needs a rate")
        return self

    def bucket(self) -> TokenBucket | None:
        """Make what counts the calls; None: there is no limit."""
        if self.rate is None:
            return None
        return TokenBucket(self.rate, max(1.0, self.rate) if self.burst is None else self.burst)


ENTRIES: TypeAdapter[dict[Name, Entry]] = TypeAdapter(dict[Name, Entry])


@dataclass(frozen=True, slots=True)
class Key:
    """What a request may do, by the key that came with it.

    Attributes:
        name: for the log of changes; it is no secret.
        loops: the only ones that it may touch; None: all.
        bucket: how often it may call; None: as often as it likes.
    """

    name: str
    role: Role
    loops: frozenset[str] | None = None
    bucket: TokenBucket | None = field(default=None, compare=False, repr=False)

    def check(self, loop: str) -> None:
        """Refuse a loop that the key is not for, be there such a loop or not.

        Raises:
            Forbidden.
        """
        if self.loops is not None and loop not in self.loops:
            raise Forbidden(f"this key is for other loops than {loop!r}")

    def check_all_loops(self) -> None:
        """Refuse a key that is for some loops only.

        Raises:
            Forbidden.
        """
        if self.loops is not None:
            raise Forbidden("this is about all loops, and this key is for some of them")


ANYBODY = Key("anybody", "admin")  # where no keys are set, and for what needs none


@dataclass(frozen=True)
class KeyRing:
    """All keys of this service, each as (digest, what it may do)."""

    keys: tuple[tuple[bytes, Key], ...] = field(repr=False)

    @classmethod
    def of(cls, settings: Settings) -> KeyRing:
        """Collect the keys of the environment and of the file.

        Raises:
            InvalidKeys: the file cannot be read, holds no key, or a key stands twice.
        """
        found: dict[bytes, Key] = {}
        for digest, key in [*_of_environment(settings), *_of_file(settings.keys_file)]:
            if digest in found:
                raise InvalidKeys(f"the keys {found[digest].name} and {key.name} are the same; give each its own")
            found[digest] = key
        return cls(tuple(found.items()))

    def find(self, given: bytes) -> Key | None:
        """Return what a key may do; None: it is none of ours. ANYBODY where there are no keys."""
        if not self.keys:
            return ANYBODY
        digest = sha256(given).digest()
        found = None
        # Every key is compared, in constant time, so that the time taken tells nothing about which one came close.
        for stored, key in self.keys:
            if hmac.compare_digest(digest, stored):
                found = key
        return found


def _of_environment(settings: Settings) -> Iterator[tuple[bytes, Key]]:
    roles: Mapping[Role, Any] = {"client": settings.client_keys, "admin": settings.admin_keys}
    for role, secrets in roles.items():
        for number, secret in enumerate(secrets, 1):
            # Names in the file are lower-case: none can pass for one of these.
            yield sha256(secret.get_secret_value().encode()).digest(), Key(f"{role.upper()}_KEYS.{number}", role)


def _of_file(path: Path | None) -> Iterator[tuple[bytes, Key]]:
    if path is None:
        return
    try:
        entries = ENTRIES.validate_python(tomllib.loads(path.read_text()))
    except OSError as error:
        raise InvalidKeys(f"REBOUND_KEYS_FILE: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidKeys(f"REBOUND_KEYS_FILE: {path} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidKeys(f"REBOUND_KEYS_FILE: {path} is no TOML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidKeys(f"REBOUND_KEYS_FILE: {path}: {where}: {first['msg']}") from error
    if not entries:
        raise InvalidKeys(f"REBOUND_KEYS_FILE: {path} holds no key; `rebound key` makes one")
    for name, entry in entries.items():
        key = Key(name, entry.role, entry.loops, entry.bucket())
        for digest in entry.sha256:
            yield bytes.fromhex(digest), key
