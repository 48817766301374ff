"""Vowpal Wabbit learns the pet shop from DSJSON: its progressive loss, beside what was served and what is possible.

make bench ARGS=tests/benchmarks/test_vw_learns_from_export.py
"""

from __future__ import annotations

import numpy as np
from vowpalwabbit import Workspace

from service.exchange.dsjson import write_line
from service.records import Event
from simulator.world.petshop import Petshop
from tests.benchmarks.in_process import oracle, run_in_process


def test_vowpal_wabbit_learns(quick: bool) -> None:
    world, steps = Petshop(3), 1000 if quick else 20_000
    run = run_in_process("random", {}, world=world, steps=steps, snapshot_period=100, reward_delay=0, floor=1.0)
    items = list(world.catalogue(0).items)
    candidates = [(item.id, item.features) for item in items]
    vw = Workspace("--cb_explore_adf --epsilon 0.05 --dsjson -q :: --quiet")
    losses = []
    for event in run.log:
        assert isinstance(event, Event)
        examples = vw.parse(write_line(event, candidates).decode())
        vw.learn(examples)
        vw.finish_example(examples)
        losses.append(vw.get_sum_loss())
    vw.finish()
    served, possible = float(run.expected.mean()), float(oracle(world, steps).mean())
    last = (losses[-1] - losses[len(losses) // 2]) / (len(losses) - len(losses) // 2)
    print(f"{len(losses)} events of uniform choices among {len(items)} items; clicks a decision: {served:.4f} served,")
    print(f"{possible:.4f} possible; Vowpal Wabbit's progressive loss {losses[-1] / len(losses):.4f}, {last:.4f} in")
    print("the second half (IPS: minus the clicks that it would have had)")
    assert np.isfinite(losses).all()
    assert -last > served
