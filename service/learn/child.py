"""Has a command of this service done in a process of its own, for what would hold up a learner (record 0050)."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from service.settings import Settings

GRACE_S = 5.0  # from SIGTERM to SIGKILL
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


async def have_done(settings: Settings, command: Sequence[str], stop: asyncio.Event) -> int:
    """Run `python -m service` with a command; return its exit code, negative if a signal ended it.

    Args:
        stop: when it is set, the process is ended, too.
    """
    environment = {**os.environ, **ONE_THREAD, "REBOUND_REDIS_URL": str(settings.redis_url)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "service", *command, env=environment)
    ended, stopped = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        if process.returncode is None:
            process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(ended), GRACE_S)
        if process.returncode is None:
            process.kill()
    return await ended
