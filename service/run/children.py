"""Child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here, not between fork and exec


def die_with(parent: int) -> None:
    """For `preexec_fn`, with the parent's process id: SIGTERM when the parent ends, however it ends.

    Linux only; elsewhere children of a parent killed with SIGKILL stay. "Parent" is the thread that starts the child.
    """
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before we could ask
            os._exit(1)
