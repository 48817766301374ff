"""Settings: typed, from `REBOUND_*` variables and flags, unknown ones refused. Made once and passed in."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "REBOUND_"
SIMULATOR = "REBOUND_SIM_"  # the simulator's own variables, which are none of ours


class Settings(BaseSettings):
    """How a process runs. What may differ from loop to loop is in `loop.py`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        hide_input_in_errors=True,  # the input holds keys
    )

    # Not in the repr: it may hold a password.
    redis_url: str | None = Field(
        None, repr=False, description="where Redis is; without it `serve` starts one of its own"
    )
    host: str = Field("127.0.0.1", description="address to listen on; another than loopback needs keys")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0: any free one")
    workers: int = Field(1, ge=1, le=64, description="API worker processes of `serve`")
    data: Path = Field(Path(".rebound"), description="folder of the embedded Redis")
    fsync: Literal["everysec", "always"] = Field(
        "everysec", description="when the embedded Redis flushes its log to disk"
    )
    client_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field((), description="keys for /recommend and /feedback")
    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field((), description="keys for everything")
    keys_file: Path | None = Field(None, description="file of named keys, as digests; `rebound key` makes an entry")
    without_keys: bool = Field(False, description="no keys on any address: something else must keep others out")
    tls_cert: Path | None = Field(None, description="PEM file of the certificate and its chain: the API speaks TLS")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key, without a password")
    client_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="within which a client must have sent a request, and have taken the reply"
    )
    max_body_bytes: int = Field(8 * 2**20, ge=1024, le=2**30, description="largest request taken")
    max_candidates: int = Field(10_000, ge=1, le=1_000_000, description="most candidates of one decision")
    max_k: int = Field(100, ge=1, le=1000, description="longest slate")
    store_timeout_s: float = Field(2.0, gt=0, le=60, description="after which Redis counts as gone")
    buffer_decisions: int = Field(
        10_000, ge=0, le=1_000_000, description="decisions kept in memory while Redis is gone"
    )
    publish_period_ms: int = Field(100, ge=1, le=60_000, description="least time between two versions of a policy")
    snapshot_budget_mb: int = Field(64, ge=1, le=65_536, description="MiB for the kept versions of one policy")
    log_format: Literal["console", "json"] = Field("console", description="for people, or one JSON object a line")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")

    @field_validator("client_keys", "admin_keys", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(key.strip() for key in value.split(",") if key.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _keys_beyond_loopback(self) -> Settings:
        if not is_loopback(self.host) and not (self.admin_keys or self.keys_file or self.without_keys):
            raise ValueError(
                f"host {self.host} can be reached by others, and no keys are set: set REBOUND_ADMIN_KEYS (and "
                "REBOUND_CLIENT_KEYS) to secrets of yours, or REBOUND_KEYS_FILE, or listen on 127.0.0.1; "
                "REBOUND_WITHOUT_KEYS=true if something else keeps others out"
            )
        if self.without_keys and (self.admin_keys or self.client_keys or self.keys_file):
            raise ValueError("REBOUND_WITHOUT_KEYS is set, and so are keys: leave one of them out")
        return self

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("REBOUND_TLS_CERT and REBOUND_TLS_KEY go together: set both, or none")
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def without_password(url: str) -> str:
    """The URL of Redis as it may be shown: `***` in place of user and password."""
    return re.sub(r"(?<=//)[^/]*(?=@)|(?<=password=)[^&]*", "***", url)


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """One message for each `REBOUND_*` variable that is no setting."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    messages = []
    for name in sorted(set(environ) - known):
        if not name.startswith(PREFIX) or name.startswith(SIMULATOR):
            continue
        near = difflib.get_close_matches(name, known, n=1)
        messages.append(f"{name} is no setting" + (f"; did you mean {near[0]}?" if near else ""))
    return messages
