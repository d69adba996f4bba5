"""`python -m tests.benchmarks.reach --clients 20000`: how near `reachable` comes, by clients to learn from and history.

It is asked of the drawn labels of another 2,000 clients of the simulated bank: ROC-AUC, and the log loss that is
expected over labels drawn with the truth, beside the class shares and `bayes`.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from sklearn.metrics import roc_auc_score

from ledgerlm.evaluation.reachable import ReachConf, reach
from ledgerlm.events.simulator import (
    SimulatorConf,
    known_attributes,
    simulate_clients,
    simulate_events,
    simulate_labels,
    true_probabilities,
)
from ledgerlm.heads.soft import cross_entropy
from ledgerlm.heads.tasks import Floats
from ledgerlm.notebook import session

TASKS = ("churn", "default", "age_group", "campaign_response")


def probabilities(rows: pd.DataFrame, task: str) -> pd.Series:
    """client_id -> probabilities of a task."""
    return rows[rows["task"] == task].set_index("client_id")["probabilities"]


def auc(labels: pd.DataFrame, said: pd.Series) -> float:
    """ROC-AUC of drawn labels; of three classes and more the mean of one against the rest."""
    p: Floats = np.stack(said[labels["client_id"]].tolist())
    y = labels["label"].to_numpy().astype(int)
    asked = [1] if p.shape[1] == 2 else range(p.shape[1])
    return float(np.mean([roc_auc_score(y == one, p[:, one]) for one in asked]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=20_000)
    parser.add_argument("--purchases", type=float, default=45)
    parser.add_argument("--months", type=int, default=6)
    told = parser.parse_args()
    bank = SimulatorConf(clients=2_000, purchases=told.purchases, months=told.months)
    people = simulate_clients(session(), bank)
    events: DataFrame = simulate_events(people, bank)
    made = reach(events, known_attributes(people), [bank], ReachConf(clients=told.clients, tasks=TASKS))
    reachable, truth = made.tables["reachable"].frame.toPandas(), true_probabilities(people, bank).toPandas()
    labels = simulate_labels(people, bank).toPandas()
    for task in TASKS:
        known, said, drawn = probabilities(truth, task), probabilities(reachable, task), labels[labels["task"] == task]
        p, q = (np.stack(one[known.index].tolist()) for one in (known, said))
        shares = np.tile(p.mean(axis=0), (len(p), 1))
        print(
            f"{task}: reachable {auc(drawn, said):.3f} ({cross_entropy(p, q):.4f}), bayes {auc(drawn, known):.3f} "
            f"({cross_entropy(p, p):.4f}), class shares ({cross_entropy(p, shares):.4f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
