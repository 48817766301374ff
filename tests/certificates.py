"""Certificates of the tests' own authority."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certified:
    """A certificate for 127.0.0.1 and localhost, and what clients need who trust its authority."""

    cert: Path
    key: Path
    authority: Path

    def trust(self) -> ssl.SSLContext:
        """Return what a client verifies with."""
        return ssl.create_default_context(cafile=str(self.authority))


def certify(folder: Path) -> Certified:
    """Make an authority and a certificate, as files in a folder."""
    made = Certified(folder / "cert.pem", folder / "key.pem", folder / "authority.pem")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    made.cert.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(made.key)
    authority.cert_pem.write_to_path(made.authority)
    return made
