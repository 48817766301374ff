"""A supervisor whose children are stand-ins, to be run in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from service.run.embedded import EmbeddedRedis
from service.run.supervisor import Child, Supervisor

NAMES = ("learner", "api-0", "api-1")

FROZEN_S = 1.0  # of api-1, which shows that it lives

# Appends its process id to a file of its name; on SIGTERM appends its name to the file `ended` and exits.
CHILD = """
import os, signal, sys, time
folder, name, *pulse = sys.argv[1:]
def append(file, line):
    with open(folder + "/" + file, "a") as out:
        out.write(line + "\\n")
def end(number, frame):
    append("ended", name)
    sys.exit()
signal.signal(signal.SIGTERM, end)
append(name, str(os.getpid()))
while True:
    if pulse:
        os.write(int(pulse[1]), b"x")
        time.sleep(0.05)
    else:
        signal.pause()
"""


def supervise(folder: Path, *, redis: bool) -> None:
    """Run a learner and two workers until SIGINT or SIGTERM.

    Makes the file `announced` when all run. Appends the process id of each child that dies to the file `died`.
    """

    def child(name: str) -> Child:
        frozen_s = FROZEN_S if name == "api-1" else None
        return Child(name, [sys.executable, "-I", "-S", "-c", CHILD, str(folder), name], {}, frozen_s=frozen_s)

    def record_death(pid: int) -> None:
        with (folder / "died").open("a") as died:
            died.write(f"{pid}\n")

    supervisor = Supervisor(
        [[child("learner")], [child("api-0"), child("api-1")]],
        redis=EmbeddedRedis(folder / "data", fsync="always") if redis else None,
        on_death=record_death,
    )
    supervisor.run(lambda: all((folder / name).exists() for name in NAMES), (folder / "announced").touch)
