"""`python -m tests.studies.campaign build/campaign`: what the notes and the history of a simulated campaign can tell.

The traits behind the answers are hidden, and the notes show them with noise. An ideal reader knows how notes come about
(the world file) and works out what each client's notes say of the text's part in the answer: the posterior mean given
which kind of contact happened in which month. What his reading adds to the structured side is what any text side can
add. The embedding of the history is held against the hidden trait `plan`, which only the order of purchases shows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from deltalake import DeltaTable
from numpy.typing import NDArray
from rich.console import Console
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ledgerlm.config import load_yaml, shipped
from ledgerlm.engines.settings import SparkConf
from ledgerlm.engines.spark import start
from ledgerlm.events.simulator import SimulatorConf, World, load_world, simulate_clients
from ledgerlm.events.simulator.account import TREND_FROM

Floats = NDArray[np.float64]
TASK = "campaign_response"
GRID = np.linspace(-4, 4, 61)  # deviations of a trait


def main(folder: Path) -> int:
    """Prints ROC-AUC on the test clients, and how far the embeddings know the trait."""
    conf = _simulated(folder)
    world = load_world(conf.world)
    labels = _frame(folder, "labels").query("task == @TASK").set_index("client_id")
    train = (_frame(folder, "clients").set_index("client_id").split == "train").loc[labels.index].to_numpy()
    y, ideal = labels.label.to_numpy(), read_ideally(_contacts(folder, world, conf, labels.index), world, conf.months)
    structured, text = (_features(folder, name, labels.index) for name in ("structured", "text"))
    console = Console(highlight=False, soft_wrap=True)
    console.print("ROC-AUC of a logistic regression on the test clients")
    sides = {
        "structured": (structured, 0),
        "text": (text, 0),
        "ideal reading": (ideal[:, None], 0),
        "structured and text": (np.hstack([structured, text]), 0),
        "structured and ideal reading": (np.hstack([structured, ideal[:, None]]), 1),
    }
    for name, (x, favoured) in sides.items():
        console.print(f"  {name:30} {_auc(x, y, train, favoured):.3f}")
    console.print("correlation of a ridge regression of the embedding with the trait plan, test clients")
    for name, value in _history(folder, conf).items():
        console.print(f"  {name:30} {value:.2f}")
    return 0


def read_ideally(contacts: NDArray[np.bool_], world: World, months: int) -> Floats:
    """Posterior mean of the text's part for each client.

    Args:
        contacts: whether each kind of contact happened in each month, [clients, months, kinds].
        world: what decides it.
        months: length of the histories.
    """
    names = list(world.tasks.campaign.parts["text"].loadings)
    axes = dict(zip(names, np.meshgrid(GRID, GRID, indexing="ij"), strict=True))
    weights = world.tasks.campaign.parts["text"].loadings
    nothing = np.zeros((len(GRID), len(GRID)))
    part = sum((weights[name] * axes[name] for name in names), nothing)
    log_prior = -sum((axis**2 for axis in axes.values()), nothing) / 2
    growth = np.clip((np.arange(months) + 1 - months * TREND_FROM) / (months * (1 - TREND_FROM)), 0, 1)
    log_posterior = np.tile(log_prior.ravel(), (len(contacts), 1))
    for place, item in enumerate(_kinds(world)):
        logit = item.monthly.bias + sum(w * axes[name] for name, w in item.monthly.loadings.items())
        slope = sum((w * axes[name] for name, w in item.monthly.trend.items()), nothing)
        z = (logit[None] + growth[:, None, None] * slope[None]).reshape(months, -1)
        happened = contacts[:, :, place].astype(float)
        log_posterior += happened @ -np.logaddexp(0, -z) + (1 - happened) @ -np.logaddexp(0, z)
    density = np.exp(log_posterior - log_posterior.max(1, keepdims=True))
    return np.asarray(density @ part.ravel() / density.sum(1))


def _kinds(world: World) -> list[Any]:
    """The kinds of contact that a client begins."""
    return [item for item in world.items if item.type == "contact"]


def _contacts(folder: Path, world: World, conf: SimulatorConf, clients: pd.Index) -> NDArray[np.bool_]:
    kinds = _kinds(world)
    kind = {note: place for place, item in enumerate(kinds) for note in item.notes}
    events = _frame(folder, "events", ["client_id", "event_time", "note"])
    events = events[events.note.isin(kind) & events.client_id.isin(clients)]
    time = events.event_time.dt.tz_convert("UTC")
    month = conf.months - 1 - ((conf.as_of.year - time.dt.year) * 12 + conf.as_of.month - time.dt.month - 1)
    kept = ((month >= 0) & (month < conf.months)).to_numpy()
    found = np.zeros((len(clients), conf.months, len(kinds)), dtype=bool)
    found[clients.get_indexer(pd.Index(events.client_id))[kept], month[kept], events.note.map(kind)[kept]] = True
    return found


def _features(folder: Path, feature_set: str, clients: pd.Index) -> Floats:
    table = _frame(folder, "features").query("feature_set == @feature_set").set_index("client_id")
    rows = [dict(pairs) for pairs in table.features.loc[clients]]
    return np.asarray(DictVectorizer(sparse=False).fit_transform(rows))


def _auc(x: Floats, y: Floats, train: NDArray[np.bool_], favoured: int) -> float:
    """Of a ridge-like logistic regression; the last `favoured` columns bear a 25th of the penalty of the others."""
    scaled = StandardScaler().fit(x[train]).transform(x)
    scaled[:, len(scaled[0]) - favoured :] *= 5
    model = LogisticRegression(C=0.003, max_iter=300).fit(scaled[train], y[train])
    return float(roc_auc_score(y[~train], model.decision_function(scaled[~train])))


def _history(folder: Path, conf: SimulatorConf) -> dict[str, float]:
    profile = load_yaml(shipped("engines/laptop.yaml"))["spark"]
    spark = start(SparkConf(**profile), log=folder / "logs" / "study.log")
    traits = simulate_clients(spark, conf).select("client_id", "trait_plan").toPandas().set_index("client_id")
    spark.stop()
    table = _frame(folder, "embeddings")
    ways = {}
    for stage in ("embed", "embed_last"):
        facts = json.loads((folder / "runs" / "stages" / f"{stage}.json").read_text())["facts"]
        rows = table[table.definition_id == facts["definition_id"]]
        vectors = [np.concatenate([vector for _, vector in parts]) for parts in rows.parts]
        ways[stage] = pd.DataFrame(vectors, index=rows.client_id)
    return _correlations(ways, traits, _frame(folder, "clients").set_index("client_id").split)


def _correlations(ways: dict[str, pd.DataFrame], traits: pd.DataFrame, split: pd.Series) -> dict[str, float]:
    index = traits.index.intersection(next(iter(ways.values())).index)
    train, y = (split.loc[index] == "train").to_numpy(), traits.trait_plan.loc[index].to_numpy()
    found = {}
    for name, x in {**ways, "both": pd.concat(ways.values(), axis=1)}.items():
        values = x.loc[index].to_numpy()
        model = make_pipeline(StandardScaler(), RidgeCV(alphas=[1, 10, 100, 1000])).fit(values[train], y[train])
        found[name] = float(np.corrcoef(model.predict(values[~train]), y[~train])[0, 1])
    return found


def _frame(folder: Path, table: str, columns: list[str] | None = None) -> pd.DataFrame:
    frame: pd.DataFrame = DeltaTable(str(folder / "lake" / table)).to_pyarrow_table(columns=columns).to_pandas()
    return frame


def _simulated(folder: Path) -> SimulatorConf:
    newest = max((folder / "runs").glob("2*/run.json"))
    (bank,) = json.loads(newest.read_text())["pipeline"]["stages"]["simulate"]["banks"]
    return SimulatorConf.model_validate(bank)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
