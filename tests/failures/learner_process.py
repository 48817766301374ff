"""A learner in a process of its own, forked from one that has imported all it needs: it may be killed often."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.process import BaseProcess

from service.learn import learner
from service.settings import Settings

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.failures.learner_process"])


def learn(redis_url: str) -> None:
    """Learn until killed."""
    asyncio.run(learner.run(Settings(redis_url=redis_url, publish_period_ms=20, log_level="error")))


def start_learner(redis_url: str) -> BaseProcess:
    """Start a learner on a Redis."""
    process = FORKS.Process(target=learn, args=(redis_url,), daemon=True)
    process.start()
    return process
