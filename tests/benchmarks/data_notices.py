"""What the profile says of every world: the kinds of its fields, its notices, what an event costs.

    python -m tests.benchmarks.data_notices [--steps 3000] [--seeds 1,2,3] [--worlds noise-15,kinds]

Items are shown at random. No world but those that a notice is made for should raise one that needs a person. CPU time
is of one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from service.represent.notices import notices_of
from service.represent.profile import Profile
from simulator.world.shapes import SHAPES, ShapedWorld, make


def events(world: ShapedWorld[Any, Any], steps: int) -> Iterator[dict[str, Any]]:
    """Yield `steps` uniformly random impressions, ten seconds apart, as `Profile.add` takes them."""
    rng = np.random.default_rng(world.seed)
    for step in range(steps):
        moment = world.at(step)
        item = moment.catalogue.items[int(rng.integers(len(moment.catalogue.items)))]
        yield {
            "context": moment.visit.context,
            "item": item.id,
            "features": item.features,
            "user": moment.visit.user_id,
            "reward": moment.outcome(item.id)[1],
            "at": 1.7e9 + 10.0 * step,
            "request": f"d{step}",
        }


def main() -> None:
    """Print a line for each world and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--worlds", default=",".join(SHAPES))
    chosen = parser.parse_args()
    print("| world | seed | µs an event | state, kB | at the end | only on the way | left out |")
    print("|---|---|---|---|---|---|---|")
    for name in chosen.worlds.split(","):
        for seed in map(int, chosen.seeds.split(",")):
            world = make(name, seed)
            profile, took, on_the_way = Profile(), 0.0, set()
            for number, event in enumerate(events(world, chosen.steps)):
                started = time.process_time()
                profile.add(**event)
                took += time.process_time() - started
                if number % 100 == 99:
                    on_the_way |= said(profile, world.reward_range)
            at_end = said(profile, world.reward_range)
            left_out = sorted(
                f"{path} ({kind.reason})"
                for side, fields in profile.fields.items()
                for path in fields
                if (kind := profile.kind_of(side, path)).type == "left_out"
            )
            size = sum(array.nbytes for array in profile.state().values())
            cells = (", ".join(sorted(part)) for part in (at_end, on_the_way - at_end, left_out))
            print(
                f"| {name} | {seed} | {1e6 * took / chosen.steps:.0f} | {size / 1000:.0f} | {' | '.join(cells)} |",
                flush=True,
            )


def said(profile: Profile, reward_range: tuple[float, float]) -> set[str]:
    """Return the notices that need a person as `code path`, others in brackets."""
    found = set()
    for notice in notices_of(profile, reward_range=reward_range):
        text = f"{notice.code} {notice.path}" if notice.path else notice.code
        found.add(text if notice.needs_person else f"({text})")
    return found


if __name__ == "__main__":
    main()
