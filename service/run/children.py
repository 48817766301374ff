"""End child processes together with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = (
    ctypes.CDLL(None) if sys.platform == "linux" else None
)  # loaded here: nothing may be loaded between fork and exec


def end_with_parent(parent: int) -> None:
    """Ask the kernel to send this process SIGTERM when its parent ends. To be called between fork and exec.

    Works on Linux only: on other systems the children of a parent that was killed with SIGKILL stay.
    For the kernel, the parent is the thread that started the child.

    Args:
        parent: the parent's process id. The child exits with code 1 if that process has ended already.
    """
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)
