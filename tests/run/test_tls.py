"""TLS: the API's own, and the connection to Redis."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from service.errors import StoreUnavailable
from service.run.tls import InvalidCertificate, server_context
from service.run.worker import make_server
from service.settings import Settings
from service.store.connection import connect, now
from tests.certificates import Certified, certify
from tests.run.test_worker import hello
from tests.waiting import until


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    return certify(tmp_path_factory.mktemp("tls"))


@contextmanager
def serving(settings: Settings) -> Iterator[int]:
    """The port of a worker that says hello."""
    server = make_server(settings, hello)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, "the worker listens")
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_a_client_that_trusts_the_authority_gets_an_answer_and_others_none(certified: Certified) -> None:
    with serving(Settings(port=0, tls_cert=certified.cert, tls_key=certified.key)) as port:
        with httpx.Client(verify=certified.trust()) as client:
            assert client.get(f"https://127.0.0.1:{port}/").text == "hello"
            assert client.get(f"https://localhost:{port}/").text == "hello"
        for url, verify in (
            (f"https://127.0.0.1:{port}/", ssl.create_default_context()),  # whose authorities did not sign it
            (f"https://127.0.0.2:{port}/", certified.trust()),  # a name that it does not have
            (f"http://127.0.0.1:{port}/", certified.trust()),
        ):
            with pytest.raises(httpx.TransportError):
                httpx.get(url, verify=verify)


def test_what_cannot_be_used_is_told_with_its_file(certified: Certified, tmp_path: Path) -> None:
    other = certify(tmp_path)
    locked, garbled = tmp_path / "locked.pem", tmp_path / "garbled.pem"
    key = load_pem_private_key(certified.key.read_bytes(), None)
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a password")))
    garbled.write_text("-----BEGIN PRIVATE KEY-----\nzz\n-----END PRIVATE KEY-----\n")
    for cert, secret in (
        (certified.cert, other.key),
        (certified.cert, locked),
        (certified.cert, garbled),
        (certified.cert, tmp_path / "nowhere.pem"),
        (tmp_path, certified.key),
    ):
        with pytest.raises(InvalidCertificate, match=str(secret.name)):
            server_context(Settings(tls_cert=cert, tls_key=secret))
    with pytest.raises(ValidationError, match="REBOUND_TLS_KEY go together"):
        Settings(tls_cert=certified.cert)
    assert server_context(Settings()) is None
    context = server_context(Settings(tls_cert=certified.cert, tls_key=certified.key))
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@asynccontextmanager
async def tls_before(socket: str, certified: Certified) -> AsyncIterator[int]:
    """The port of a server that speaks TLS and passes what it reads on to a unix socket, as stunnel does.

    The redis-server of the tests may be built without TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certified.cert, certified.key)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(65536):
            writer.write(part)
            await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inside, outside = await asyncio.open_unix_connection(socket)
        await asyncio.gather(pump(reader, outside), pump(inside, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.anyio
async def test_redis_is_spoken_to_over_tls_and_its_certificate_is_checked(redis_url: str, certified: Certified) -> None:
    async with tls_before(redis_url.removeprefix("unix://"), certified) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certified.authority}"
        async with connect(url, name="test", timeout_s=5) as redis:
            assert await now(redis) > 1e9
        for wrong in (
            f"rediss://127.0.0.1:{port}/0",  # another authority
            f"rediss://127.0.0.2:{port}/0?ssl_ca_certs={certified.authority}",  # another name
            f"redis://127.0.0.1:{port}/0",
        ):
            async with connect(wrong, name="test", timeout_s=5) as redis:
                with pytest.raises(StoreUnavailable):
                    await now(redis)
