"""Compares the bonus of NeuralUCB in closed form with the ways that compute the Jacobian.

make bench ARGS=tests/benchmarks/test_kpass.py
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.policies.network import Layers, count, forward, initial, layers_of
from service.policies.neural_ucb import ROWS, Bounds
from tests.policies import jacobians

Array = NDArray[Any]

D = 32
HIDDEN, SIZES = (100, 100), (50, 200, 1_000, 10_000)
QUICK_HIDDEN, QUICK_SIZES = (20, 20), (50, 200)
CLOSED, BARE, BLOCKED = "closed form", "forward pass", "forward pass, in blocks"
PASSES, VECTORISED, FULL = "K passes", "Jacobian", "full matrix"


def test_kpass(quick: bool) -> None:
    """Float32 on one thread (NumPy's by `make bench`). Its CPU time is measured, so other work on the machine does not
    count. The ways take turns, and the ratios are those of their medians.
    """
    hidden, sizes = (QUICK_HIDDEN, QUICK_SIZES) if quick else (HIDDEN, SIZES)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    theta, scale = (array.astype(np.float32) for array in initial(D, hidden, 0))
    p = count(D, hidden)
    variance = (scale**2 * rng.uniform(0.1, 1.0, p)).astype(np.float32)
    layers, of_variance = layers_of(theta, D, hidden), layers_of(variance, D, hidden)
    net, closed = jacobians.network(layers), Bounds(layers, of_variance)
    started = time.thread_time()
    with peak() as grown:
        inverse = torch.linalg.inv(torch.diag(torch.from_numpy(1.0 / variance)))
    print(
        f"\np = {p}: one inverse of Z (p, p) takes {time.thread_time() - started:.1f} s and {grown[0]:.0f} MB;"
        " for a new Z it is due again, and is not in the times below\n"
        f"\n| n | way | ms | forward passes | against closed form | MB | off by |\n|---|---|---|---|---|---|---|"
    )
    ways: dict[str, Callable[[Array], Array]] = {
        CLOSED: lambda x: closed(x)[1],
        BARE: lambda x: forward(layers, x)[1],
        BLOCKED: lambda x: forward_in_blocks(layers, x),
        PASSES: lambda x: jacobians.k_passes(net, x, variance),
        VECTORISED: lambda x: jacobians.vectorised(net, x, variance),
        FULL: lambda x: jacobians.full_matrix(net, x, inverse),
    }
    ratios = {}
    for n in sizes:
        x = rng.normal(size=(n, D)).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        if n == 10_000:
            print(f"| {n} | {FULL} | not run: (n, p) by (p, p) takes a minute and 2 GB | | | | |")
            del ways[FULL]
        seconds = in_turns(ways, x)
        bonus = ways[CLOSED](x)
        for way, run in ways.items():
            with peak() as grown:
                answer = run(x)
            off = "" if way in (BARE, BLOCKED) else f"{np.abs(answer / bonus - 1).max():.0e}"
            print(
                f"| {n} | {way} | {1000 * seconds[way]:.2f} | {seconds[way] / seconds[BARE]:.1f}"
                f" | {seconds[way] / seconds[CLOSED]:.1f} | {grown[0]:.1f} | {off} |"
            )
            if way not in (BARE, BLOCKED):
                np.testing.assert_allclose(answer, bonus, rtol=1e-5)
        ratios[n] = seconds[CLOSED] / seconds[BARE], seconds[PASSES] / seconds[CLOSED]
    if not quick:
        assert ratios[1000][0] <= 2.6
        assert ratios[1000][1] >= 300


def forward_in_blocks(layers: Layers, x: Array) -> Array:
    """Compute f (n,) in blocks that fit the cache, as the closed form does with 2.75 times as many multiplications."""
    return np.concatenate([forward(layers, x[start : start + ROWS])[1] for start in range(0, len(x), ROWS)])


def in_turns(ways: dict[str, Callable[[Array], Array]], x: Array) -> dict[str, float]:
    """Measure the median seconds of each way, over up to 100 turns but about one second.

    A way runs once more before it is timed, because the way before it has filled the cache; slow ways do not.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(100):
        for way, run in ways.items():
            past = seconds[way]
            if sum(past) < 1.0:
                if not past or past[0] < 0.1:
                    run(x)
                started = time.thread_time()
                run(x)
                past.append(time.thread_time() - started)
    return {way: statistics.median(past) for way, past in seconds.items()}


@contextmanager
def peak() -> Iterator[list[float]]:
    """Measure by how many MB the process grew at most: NumPy by `tracemalloc`, PyTorch by a look every half ms."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # returns free memory to the system, so that its next use counts
    grown, stop = [0.0], Event()
    before, highest = resident(), [0.0]

    def watch() -> None:
        while not stop.wait(0.0005):
            highest[0] = max(highest[0], resident())

    watcher = Thread(target=watch)
    tracemalloc.start()
    watcher.start()
    try:
        yield grown
    finally:
        stop.set()
        watcher.join()
        numpy_peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        grown[0] = max(numpy_peak, highest[0] - before)


def resident() -> float:
    """Return the MB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6
