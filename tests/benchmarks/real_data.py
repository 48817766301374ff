"""Makes bandit worlds of real tables by revealing the label, and plays policies in them, in one process.

The context of a visit is a row without its label: numbers as numbers, words as text, null where a value is missing.
The items are the labels, which have ids and no features. An item pays 1 if it is the row's label, else 0. Rows are
drawn uniformly, with replacement; each visit has a user id of its own.

The tables come out of packages: scikit-learn, river and scikit-lego (`pip install 'rebound[tables]'`), whose files are
read where they lie. None is downloaded.

Batches of 25 decisions; snapshots and rewards are 25 decisions late; exploration floor .01.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from simulator.measures import gain, last_fifth
from simulator.world import World
from simulator.world._base import HISTORY, USERS, Catalogue, Item, Moment, Visit, uniforms
from tests.benchmarks.in_process import run_in_process

BATCH = 25  # decisions from one snapshot to the next, and from a decision to its reward
STEPS = 3000  # decisions of a run
MISSING = {"", "NA"}

Array = NDArray[Any]


@dataclass(frozen=True)
class Table:
    """Rows of a table, each with its label.

    Args:
        contexts: JSON objects, all with the same names.
        labels: of the rows, in the same order.
    """

    name: str
    contexts: Sequence[Mapping[str, Any]]
    labels: Sequence[str]

    @property
    def classes(self) -> list[str]:
        """The different labels, sorted."""
        return sorted(set(self.labels))

    def __str__(self) -> str:
        return f"{self.name} ({len(self.labels)} rows, {len(self.contexts[0])} columns, {len(self.classes)} classes)"


@dataclass(frozen=True)
class Source:
    """Where a table comes from.

    Args:
        package: as it is imported.
        file: in the package; for scikit-learn the name of the set.
        label: the column of the label; unused for scikit-learn.
        without: columns that are left away, since they say the label in another form.
    """

    package: str
    file: str
    label: str = ""
    without: tuple[str, ...] = ()


SOURCES: Mapping[str, Source] = {
    "iris": Source("sklearn", "iris"),
    "wine": Source("sklearn", "wine"),
    "breast-cancer": Source("sklearn", "breast_cancer"),
    "segments": Source("river", "datasets/segment.csv.zip", "category"),
    "phishing": Source("river", "datasets/phishing.csv.gz", "is_phishing"),
    "solar-flare": Source("river", "datasets/solar-flare.csv.zip", "zurich-class"),
    "penguins": Source("sklego", "data/penguins.zip", "species"),
    "hearts": Source("sklego", "data/hearts.zip", "target"),
    "arrests": Source("sklego", "data/arrests.zip", "released"),
    "abalone": Source("sklego", "data/abalone.zip", "rings"),
}


class NoTable(Exception):
    """The package that holds the table is not installed."""


@lru_cache(maxsize=len(SOURCES))
def table(name: str) -> Table:
    """Read a table.

    Raises:
        NoTable: its package is not installed.
    """
    source = SOURCES[name]
    spec = find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        raise NoTable(f"{name} comes from the package {source.package}: pip install 'rebound[tables]'")
    if source.package == "sklearn":
        return _of_sklearn(name, source.file)
    with _opened(Path(spec.submodule_search_locations[0]) / source.file) as lines:
        records = list(csv.DictReader(lines))
    labels = [record[source.label] for record in records]
    names = [of for of in records[0] if of not in {source.label, *source.without}]
    columns = [_values([record[of] for record in records]) for of in names]
    return Table(name, [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)], labels)


def _of_sklearn(name: str, file: str) -> Table:
    from sklearn import datasets  # takes a second

    found = getattr(datasets, f"load_{file}")()
    contexts = [dict(zip(map(str, found.feature_names), row, strict=True)) for row in found.data.tolist()]
    return Table(name, contexts, [str(found.target_names[label]) for label in found.target])


def _opened(file: Path) -> TextIO:
    """Open a compressed text file; of a zip file the one that it holds."""
    if file.suffix == ".gz":
        return TextIOWrapper(gzip.open(file))
    archive = ZipFile(file)
    [name] = archive.namelist()
    return TextIOWrapper(archive.open(name))


def _values(texts: Sequence[str]) -> list[Any]:
    """Return the JSON values of a column: numbers if all that is there are numbers, else text; None: missing."""
    try:
        return [None if text in MISSING else _number(text) for text in texts]
    except ValueError:
        return [None if text in MISSING else text for text in texts]


def _number(text: str) -> int | float:
    """Read a number; an integer if it is written as one."""
    return int(text) if text.lstrip("-").isdigit() else float(text)


class TableWorld(World[None]):
    """Each step shows one row, drawn uniformly. Its label pays 1, all other items 0."""

    name = "table"
    schema: Mapping[str, Any] = {}

    def __init__(self, of: Table, seed: int) -> None:
        super().__init__(seed)
        self._table = of
        self._on_offer = Catalogue(tuple(Item(label, slot, {}) for slot, label in enumerate(of.classes)))
        self._rates = np.eye(len(of.classes))  # (n, n): of each label
        self._draws = np.full(len(of.classes), 0.5)  # (n,): luck plays no part

    def initial(self) -> None:
        return None

    def catalogue(self, step: int) -> Catalogue:
        return self._on_offer

    def at(self, step: int) -> Moment:
        return self._moment(step, float(uniforms(self.seed, USERS, step, 1)[0]))

    def _moment(self, step: int, drawn: float) -> Moment:
        row = int(drawn * len(self._table.labels))
        visit = Visit(f"visitor-{step}", self._table.contexts[row])
        right = self._on_offer.row[self._table.labels[row]]
        return Moment(step, visit, self._on_offer, self._rates[right], self._draws)

    def bots(self, step: int) -> list[Visit]:
        return []

    def history(self, rows: int) -> Iterator[dict[str, Any]]:
        items = self._on_offer.items
        for row in range(rows):
            drawn, choice = uniforms(self.seed, HISTORY, row, 2).tolist()
            moment, shown = self._moment(row, drawn), items[int(choice * len(items))].id
            yield {
                "event_id": f"history-{self.seed}-{row}",
                "user_id": moment.visit.user_id,
                "context": moment.visit.context,
                "item_id": shown,
                "reward": moment.outcome(shown)[1],
                "propensity": 1 / len(items),
            }


def gain_with_labels(of: Table) -> float:
    """Return the gain of a multinomial logistic regression that knew all labels, on the rows that it was fitted to.

    It is no upper bound, but says about how much a model without products of columns can find in the table.
    """
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = [{name: value for name, value in row.items() if value is not None} for row in of.contexts]
    model = make_pipeline(DictVectorizer(sparse=False), StandardScaler(), LogisticRegression(max_iter=10_000))
    right = (model.fit(rows, of.labels).predict(rows) == np.array(of.labels)).astype(np.float64)
    return gain(right, np.ones_like(right), np.full_like(right, 1.0 / len(of.classes)))


@dataclass(frozen=True)
class Setting:
    """A policy with parameters and columns.

    Args:
        fits: whether the columns are fitted to the log; else they are hashed, with the items' ids.
    """

    policy: str
    params: Mapping[str, Any] = field(default_factory=dict)
    fits: bool = False

    def __str__(self) -> str:
        said = " ".join(f"{name} {value}" for name, value in self.params.items())
        return f"{said or 'default'}, {'fitted' if self.fits else 'hashed'}"


def _settings(policy: str, params: Sequence[Mapping[str, Any]], columns: Sequence[bool]) -> tuple[Setting, ...]:
    return tuple(Setting(policy, of, fits) for fits in columns for of in params)


HASHED, BOTH = (False,), (False, True)
DEFAULT = "adaptive"  # plays one setting, its own
# Each rival has three settings. LinUCB, which keeps a model for each item, plays them with hashed and with fitted
# columns. The others have one model for all items. What is fitted where items have no features does not tell items
# apart in it, so they play hashed columns, which hold the items' ids. Popularity sees no columns.
SETTINGS: Mapping[str, tuple[Setting, ...]] = {
    DEFAULT: (Setting("adaptive", fits=True),),
    "linucb": _settings("linucb", [{}, {"alpha": 1.0, "ridge": 1.0}, {"alpha": 2.0, "ridge": 1.0}], BOTH),
    "lin_ts": _settings("lin_ts", [{}, {"v": 0.5}, {"v": 1.0}], HASHED),
    "squarecb": _settings("squarecb", [{"gamma": 3.0}, {"gamma": 10.0}, {}], HASHED),
    "vw": _settings("vw", [{}, {"explore": "squarecb"}, {"explore": "softmax"}], HASHED),
    "popularity": _settings("popularity", [{"epsilon": 0.0}, {"epsilon": 0.05}, {}], HASHED),
}


@dataclass(frozen=True)
class Job:
    """One run: the setting is SETTINGS[policy][setting]."""

    table: str
    policy: str
    setting: int
    seed: int
    steps: int = STEPS


@dataclass(frozen=True)
class Outcome:
    """Gains of the last fifth and of the whole run."""

    last: float
    whole: float


def play(job: Job) -> Outcome:
    """Play one run."""
    of, setting = table(job.table), SETTINGS[job.policy][job.setting]
    run = run_in_process(
        setting.policy,
        setting.params,
        world=TableWorld(of, job.seed),
        steps=job.steps,
        snapshot_period=BATCH,
        reward_delay=BATCH,
        fits=setting.fits,
    )
    best, chance = np.ones(job.steps), np.full(job.steps, 1.0 / len(of.classes))
    return Outcome(last=gain(*map(last_fifth, (run.expected, best, chance))), whole=gain(run.expected, best, chance))


@dataclass(frozen=True)
class Best:
    """One table, one policy and one measure, with the setting that is best by it, over the seeds.

    Args:
        gains: (seeds,) in the order of the seeds.
    """

    setting: Setting
    gains: Array

    @property
    def mean(self) -> float:
        return float(self.gains.mean())

    def ahead_of(self, other: Best) -> tuple[float, float]:
        """Return the mean of the differences, seed by seed, and its standard error, 0 for one seed."""
        return float((self.gains - other.gains).mean()), error_of(self.gains - other.gains)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ±{error_of(self.gains):.3f}"


def error_of(values: Array) -> float:
    """Return the standard error of a mean of values (seeds,), 0 for one seed."""
    return float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0


def best_of(outcomes: Mapping[Job, Outcome], measure: str) -> dict[str, dict[str, Best]]:
    """Choose the best setting of each policy by the mean of a measure, `last` or `whole`: table → policy → it."""
    gains: dict[tuple[str, str], dict[int, dict[int, float]]] = {}
    for job, outcome in outcomes.items():
        of_setting = gains.setdefault((job.table, job.policy), {}).setdefault(job.setting, {})
        of_setting[job.seed] = getattr(outcome, measure)
    found: dict[str, dict[str, Best]] = {}
    for (of, policy), of_settings in gains.items():
        tried = [
            Best(SETTINGS[policy][setting], np.array([by_seed[seed] for seed in sorted(by_seed)]))
            for setting, by_seed in sorted(of_settings.items())
        ]
        found.setdefault(of, {})[policy] = max(tried, key=lambda best: best.mean)
    return found


def as_json(outcomes: Mapping[Job, Outcome]) -> list[dict[str, Any]]:
    """Return one record for each run."""
    return [
        {**asdict(job), "setting": str(SETTINGS[job.policy][job.setting]), **asdict(outcome)}
        for job, outcome in outcomes.items()
    ]
