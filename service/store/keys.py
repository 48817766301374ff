"""Every Redis key, once.

A loop's keys share the hash tag `{loop:partition}`, so that a Redis Cluster keeps them on one node and a script may
touch them together. There is one partition, 0, as yet.
"""

from __future__ import annotations

LOOPS = "rebound:loops"  # set: names of the loops
STORE = "rebound:store"  # string: the identity of this data; gone or changed = the data was lost
LEARNER = "rebound:learner"  # string with a time to live: a learner is at work
WORKERS = "rebound:workers"  # sorted set: API worker -> time of its last heartbeat, ms
CHANGES = "rebound:changes"  # channel: the name of a loop in which something changed


class Keys:
    """The keys of one loop."""

    def __init__(self, loop: str) -> None:
        self.prefix = f"rebound:{{{loop}:0}}:"
        self.loop = self.prefix + "loop"  # hash: settings, schema, d, encoder, epoch, catalogue, traffic, pins
        self.adopted = self.prefix + "adopted"  # hash: API worker -> epoch that it serves
        self.items = self.prefix + "items"  # hash: item id -> features
        self.item_log = self.prefix + "item-log"  # stream: changes of the catalogue, with what was there before
        self.pending = self.prefix + "pending"  # sorted set: decision id -> deadline, ms
        self.events = self.prefix + "events"  # stream: the log
        self.imported = self.prefix + "imported"  # set: event ids of imports
        self.dead = self.prefix + "dead"  # hash: position of an undecodable entry -> why
        self.stats = self.prefix + "stats"  # hash: counters
        self.policies = self.prefix + "policies"  # set: names of the policies

    def decision(self, decision_id: str) -> str:
        """Hash: the record, what each event will carry, the feedback seen."""
        return f"{self.prefix}decision:{decision_id}"

    def policy(self, name: str) -> str:
        """Hash: kind, params, version, position, events, ..."""
        return f"{self.prefix}policy:{name}"

    def state(self, name: str) -> str:
        """String: the learned state at the policy's position."""
        return f"{self.prefix}state:{name}"

    def snapshots(self, name: str) -> str:
        """Prefix of the strings that hold a policy's kept versions."""
        return f"{self.prefix}snapshot:{name}:"

    def versions(self, name: str) -> str:
        """Sorted set: `version:bytes` of the kept versions, by version."""
        return f"{self.prefix}versions:{name}"

    def history(self, name: str) -> str:
        """Stream, ids `version-0`: the position in the log that a version had learned to, to rebuild it from."""
        return f"{self.prefix}history:{name}"

    def lease(self, name: str) -> str:
        """String: the fencing token of the learner that may write this policy."""
        return f"{self.prefix}lease:{name}"

    def fence(self, name: str) -> str:
        """Integer: the last fencing token given out."""
        return f"{self.prefix}fence:{name}"
