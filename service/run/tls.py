"""TLS of the API: the certificate and its key, read and checked before anything listens."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.settings import Settings  # a health check imports this file, and nothing heavy


class InvalidCertificate(ValueError):
    """Certificate and key cannot be used. The message names the files."""


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """Return what a server needs to speak TLS 1.2 or newer; None: it speaks plain HTTP.

    Raises:
        InvalidCertificate: a file cannot be read, is no PEM, wants a password, or the key is another one's.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a password OpenSSL would ask for one, on a terminal that nobody may be looking at.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise InvalidCertificate(
            f"REBOUND_TLS_CERT {settings.tls_cert} and REBOUND_TLS_KEY {settings.tls_key} cannot be used: {why}"
        ) from error
    return context


def unverified() -> ssl.SSLContext:
    """Return what a client needs that asks this machine's own service whether it is ready, by address, not by name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
