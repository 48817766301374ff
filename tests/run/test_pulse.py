"""Signs of life through a pipe."""

from __future__ import annotations

import asyncio
import os

import pytest

from service.run.pulse import BOOT_S, Watched, beating


@pytest.mark.anyio
async def test_work_is_watched_as_long_as_the_event_loop_runs() -> None:
    watched = Watched(0.0)
    work = asyncio.Event()
    running = asyncio.create_task(beating(work.wait(), watched.fd))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert watched.silence(100.0) == 0.0
    work.set()
    assert await running is True
    assert watched.silence(107.5) == 7.5
    watched.started()
    watched.close()


@pytest.mark.anyio
async def test_nobody_needs_to_watch() -> None:
    read, write = os.pipe()
    os.close(read)
    assert await beating(asyncio.sleep(0, "done"), write) == "done"
    assert await beating(asyncio.sleep(0, "done"), None) == "done"
    os.close(write)


def test_a_child_that_never_showed_life_has_time_to_start() -> None:
    watched = Watched(10.0)
    assert watched.silence(10.0 + BOOT_S) == 0.0
    assert watched.silence(13.0 + BOOT_S) == 3.0
    watched.started()
    assert watched.silence(14.0 + BOOT_S) == 4.0, "a pipe that was closed shows no life"
    watched.close()
