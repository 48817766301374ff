"""Every Redis key, once.

What a loop has once lies at its home, under the hash tag `{loop}`. What grows with its traffic lies in its partitions,
under `{loop:0}`, `{loop:1}`, ..., so that a Redis Cluster spreads it over nodes. A script touches one tag only. There
is one partition as yet.

Every key of a loop but `record` also holds the loop's id: a loop that is deleted and made again shares no key with the
one before.
"""

from __future__ import annotations

from dataclasses import dataclass

FORMAT = "rebound:format"  # string: the version of the layout of these keys (`upgrade.py`)
STORE = "rebound:store"  # string: the identity of this data; gone or changed = the data was lost
LOOPS = "rebound:loops"  # set: names of the loops; a name may stand here without a loop, never the other way round
DELETED = "rebound:deleted"  # sorted set: `loop/id` of deleted loops -> when, in unix seconds; their keys go for good
LEARNER = "rebound:learner"  # string with a time to live: a learner is at work
WORKERS = "rebound:workers"  # sorted set: API worker -> time of its last heartbeat, in unix seconds
EVALUATIONS = "rebound:evaluations"  # sorted set: `loop/id/evaluation` of those that have not ended -> when made
ERASURES = "rebound:erasures"  # sorted set: `loop/id/erasure` of those that have not ended -> when asked for
OF_LOOPS = "rebound:changes-of-loops"  # stream: who deleted or restored which loop. Bounded (`change_log.py`)
OPEN = "rebound:{rebound:workers}:open"  # hash: beat, closed, outages; the tag puts it beside WORKERS (`open_time.py`)
OUTAGES = "rebound:{rebound:workers}:outages"  # list: `from to` in ms, the newest first; at most 100 (`beat.lua`)
CHANGES = "rebound:changes"  # channel: the name of a loop in which something changed
USED = "rebound:used"  # channel: the name of a loop that is used: somebody decides, or its log grows


def loop_record(loop: str) -> str:
    """Hash: id, settings, schema, d, encoder, epoch, catalogue, traffic, pins, newest, activity, edges, ..."""
    return f"rebound:{{{loop}}}:loop"


@dataclass(frozen=True, slots=True)
class Partition:
    """The keys of one partition of a loop: all that grows with its traffic."""

    prefix: str

    def decision(self, decision_id: str) -> str:
        """Hash: the record, what each event will carry, the feedback seen."""
        return f"{self.prefix}decision:{decision_id}"

    def early(self, decision_id: str) -> str:
        """List: reports that came before this decision, oldest first. Bounded, over all decisions (`ledger.lua`)."""
        return f"{self.prefix}early:{decision_id}"

    @property
    def early_due(self) -> str:
        """Sorted set: decision id -> when the oldest of its early reports is given up, ms."""
        return self.prefix + "early-due"

    def activity(self, user: str) -> str:
        """List with a time to live: the user's activity that is kept, in the order of acceptance (`activity.py`)."""
        return f"{self.prefix}activity:{user}"

    def activity_ids(self, user: str) -> str:
        """String with a time to live: digests of the ids of the user's activity. Bounded (`activity.py`)."""
        return f"{self.prefix}activity-ids:{user}"

    @property
    def activity_users(self) -> str:
        """Sorted set: user whose activity is kept -> when its time is over, ms."""
        return self.prefix + "activity-users"

    def shown(self, user: str) -> str:
        """Hash with a time to live: item -> ms of its impressions for the user, newest last. Bounded (`limits.lua`)."""
        return f"{self.prefix}shown:{user}"

    def taken(self, user: str) -> str:
        """Sorted set with a time to live: item that the user took -> when, ms. Bounded (`mark_taken.lua`)."""
        return f"{self.prefix}taken:{user}"

    @property
    def capped_users(self) -> str:
        """Sorted set: user for whom something is counted -> when its time is over, ms."""
        return self.prefix + "capped-users"

    @property
    def budgets(self) -> str:
        """Hash: item -> period, granted, returned, used, last: its budget as far as it is here (`budget.lua`)."""
        return self.prefix + "budgets"

    @property
    def rewarded(self) -> str:
        """Hash: user -> his rewarded items that are yet to be taken up as activity. Bounded (`ledger.lua`)."""
        return self.prefix + "rewarded"

    @property
    def activity_log(self) -> str:
        """Stream: the activity of all users. Bounded by the loop's retention (`activity_log.py`)."""
        return self.prefix + "activity-log"

    @property
    def activity_log_kept(self) -> str:
        """Stream: that log without a user, while it is copied (`erase_activity.lua`)."""
        return self.prefix + "activity-log-kept"

    def edges(self, user: str) -> str:
        """Hash: the user's edges, by the digest of whom and of what kind. Bounded by the loop (`edges.py`)."""
        return f"{self.prefix}edges:{user}"

    @property
    def edges_pending(self) -> str:
        """Sorted set: user whose edges have changed -> number of the change, until its second step is taken."""
        return self.prefix + "edges-pending"

    def linked(self, user: str) -> str:
        """Set: users at whom there may be a reverse entry of this user's edges. Bounded as these."""
        return f"{self.prefix}linked:{user}"

    def known_by(self, user: str) -> str:
        """Hash: user whose edges name this one -> `number id`, number of the change. Bounded (`edges.py`)."""
        return f"{self.prefix}known-by:{user}"

    @property
    def acted(self) -> str:
        """Sorted set: user who has acted -> number of the mark, until those who know him are marked."""
        return self.prefix + "acted"

    def took(self, user: str) -> str:
        """Sorted set with a time to live: items that the user rewarded -> when, ms. Bounded (`graph_store.py`)."""
        return f"{self.prefix}took:{user}"

    def graph(self, user: str) -> str:
        """String: the fields of the user's neighbourhood. Bounded (`represent/graph.py`)."""
        return f"{self.prefix}graph:{user}"

    @property
    def graph_stale(self) -> str:
        """Sorted set: user whose neighbourhood has changed -> number of the mark, until his fields are computed."""
        return self.prefix + "graph-stale"

    @property
    def pending(self) -> str:
        """Sorted set: decision id -> deadline of its feedback, or of its display, ms."""
        return self.prefix + "pending"

    @property
    def events(self) -> str:
        """Stream: the event log."""
        return self.prefix + "events"

    @property
    def events_kept(self) -> str:
        """Stream: the log without the events of a user, while it is copied (`erase_events.lua`)."""
        return self.prefix + "events-kept"

    @property
    def erasure(self) -> str:
        """Hash: newest (position of the newest erasure in the log), and what each that goes on has done here."""
        return self.prefix + "erasure"

    @property
    def imported(self) -> str:
        """Sorted set: event id of an import -> its number. Bounded by the loop's retention."""
        return self.prefix + "imported"

    @property
    def dead(self) -> str:
        """Hash: position of an entry that some policy could not learn -> why. Kept for as long as the entry is."""
        return self.prefix + "dead"

    @property
    def stats(self) -> str:
        """Hash: counters."""
        return self.prefix + "stats"

    @property
    def successor(self) -> str:
        """Hash: encoder, events, declared, fixed, position of the newest successor in the log."""
        return self.prefix + "successor"

    @property
    def misfits(self) -> str:
        """Hash: `side/field/reason` of values that the encoder could not use -> how often. Bounded by the encoder."""
        return self.prefix + "misfits"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one loop, by its name and id."""

    loop: str
    id: str

    @property
    def record(self) -> str:
        return loop_record(self.loop)

    @property
    def home(self) -> str:
        """Prefix of all that the loop has once."""
        return f"rebound:{{{self.loop}}}:{self.id}:"

    def partition(self, number: int = 0) -> Partition:
        """Raises nothing for a partition that is not there: its keys are empty."""
        return Partition(f"rebound:{{{self.loop}:{number}}}:{self.id}:")

    @property
    def adopted(self) -> str:
        """Hash: API worker -> epoch that it serves."""
        return self.home + "adopted"

    @property
    def items(self) -> str:
        """Hash: item id -> features."""
        return self.home + "items"

    @property
    def granted(self) -> str:
        """Hash: `partition/item` -> period, granted, returned, last: where its budget went (`budget.lua`)."""
        return self.home + "granted"

    @property
    def item_log(self) -> str:
        """Stream: changes of the catalogue, with what was there before."""
        return self.home + "item-log"

    @property
    def change_log(self) -> str:
        """Stream: administrative changes of settings, policies and traffic. Bounded (`change_log.py`)."""
        return self.home + "change-log"

    @property
    def data_changes(self) -> str:
        """Stream: the same of items and imports, which come more often. Bounded alike."""
        return self.home + "data-changes"

    @property
    def policies(self) -> str:
        """Set: names of the policies."""
        return self.home + "policies"

    @property
    def encoders(self) -> str:
        """Hash: version -> schema, of the encoders that came after the first. Bounded (`publish.lua`)."""
        return self.home + "encoders"

    @property
    def alarms(self) -> str:
        """Stream: changes of the world that policies noticed. Bounded (`publish.lua`)."""
        return self.home + "alarms"

    @property
    def profile(self) -> str:
        """Hash: v, position, events, state, notices. Bounded by the profile (`service/represent/profile.py`)."""
        return self.home + "profile"

    @property
    def bins(self) -> str:
        """Hash: v, position, and `step:number` of each bin of the history. Bounded (`service/evaluate/history.py`)."""
        return self.home + "bins"

    @property
    def marks(self) -> str:
        """Stream: what people noted beside the history. Bounded (`history_store.py`)."""
        return self.home + "marks"

    @property
    def retrieval(self) -> str:
        """Hash: v, version, position, catalogue, activity, events, digest, state, ... Bounded by the counts."""
        return self.home + "retrieval"

    @property
    def embedding(self) -> str:
        """Hash: v, version, position, events, rewarded, digest, state, judged, published. Bounded by the towers."""
        return self.home + "embedding"

    @property
    def shadows(self) -> str:
        """Hash: v, position, state, said of the policies in the shadow. Bounded (`service/evaluate/shadow.py`)."""
        return self.home + "shadows"

    @property
    def graph(self) -> str:
        """Hash: v, position: how far the keeper of the graph has read the log."""
        return self.home + "graph"

    @property
    def evaluations(self) -> str:
        """Sorted set: evaluation -> when it was made, in unix seconds. Bounded (`evaluation_store.py`)."""
        return self.home + "evaluations"

    def evaluation(self, name: str) -> str:
        """Hash: v, request, created, status, started, ended, done, total, tries, result, error."""
        return f"{self.home}evaluation:{name}"

    def evaluation_lease(self, name: str) -> str:
        """String with a time to live: the token of the process that works on it."""
        return f"{self.home}lease:evaluation:{name}"

    def experiment_sums(self, experiment: str, version: int) -> str:
        """Hash: v, positions, moments, events, left_out, first, last, whole. By the experiment's id."""
        return f"{self.home}experiment-sums:{experiment}:{version}"

    def experiment_units(self, experiment: str, version: int) -> str:
        """Hash: digest of a unit -> its arm and sums. Bounded (`service/evaluate/units.py`), and gone at its end."""
        return f"{self.home}experiment-units:{experiment}:{version}"

    @property
    def erasures(self) -> str:
        """Sorted set: erasure -> when it was asked for, in unix seconds. Bounded (`erasure_store.py`)."""
        return self.home + "erasures"

    def erasure(self, name: str) -> str:
        """Hash: v, user (until it has ended), digest, by, created, step, ended, counts, remains."""
        return f"{self.home}erasure:{name}"

    def policy(self, name: str) -> str:
        """Hash: id, kind, params, version, position, events, erased, ..."""
        return f"{self.home}policy:{name}"

    def state(self, name: str) -> str:
        """String: the learned state at the policy's position."""
        return f"{self.home}state:{name}"

    def letters(self, name: str) -> str:
        """String: the dead letters of the policy, as JSON. Bounded (`trainer.py`)."""
        return f"{self.home}letters:{name}"

    def snapshots(self, name: str) -> str:
        """Hash: version -> snapshot, of the kept versions."""
        return f"{self.home}snapshots:{name}"

    def versions(self, name: str) -> str:
        """Sorted set: `version:bytes[:encoder]` of the kept versions, by version. The first encoder is not named."""
        return f"{self.home}versions:{name}"

    def history(self, name: str) -> str:
        """Stream, ids `version-0`: the position in the log that a version had learned to, to make it again from."""
        return f"{self.home}history:{name}"

    def release(self, name: str) -> str:
        """Hash: v, id, revision, said, sums of the newest release of a policy. Bounded (`release_store.py`)."""
        return f"{self.home}release:{name}"

    def release_served(self, name: str) -> str:
        """Hash with a time to live: `id:decisions`, `id:slow`, `id:degraded` of what a policy served in releases."""
        return f"{self.home}release-served:{name}"

    def lease(self, name: str) -> str:
        """String: the fencing token of the learner that may write this policy."""
        return f"{self.home}lease:{name}"

    def fence(self, name: str) -> str:
        """Integer: the last fencing token given out."""
        return f"{self.home}fence:{name}"
