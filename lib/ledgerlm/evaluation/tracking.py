"""What a run found, told to MLflow: its settings, the figures of its leaderboards, its report."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.errors import EngineError

_PARAMETERS, _METRICS = 100, 1000  # that MLflow takes at once
_LONGEST = 6000  # characters of a parameter that it takes
_FIGURES = {"mean": "", "low": " low", "high": " high"}
_CONTENT = "ledgerlm.content"
T = TypeVar("T")


class MlflowConf(Conf):
    """Where runs are told to MLflow."""

    experiment: str = Field(description="name of the experiment; on Databricks a path, such as /Shared/ledgerlm")
    tracking_uri: str | None = Field(
        None, description="server or folder; left out, MLFLOW_TRACKING_URI of the environment, on Databricks its own"
    )


def track(facts: Mapping[str, Any], conf: MlflowConf, files: Sequence[Path]) -> str:
    """Tells MLflow of a run, once; the metrics are `TASK/METHOD/METRIC`, of test clients below `test/`, with bounds.

    A run that finds all stages finished has nothing new to tell: it is known by its settings, figures and times.

    Args:
        facts: of the report (`runs.report.collect`), without secrets.
        conf: where to.
        files: report and leaderboards, kept as artefacts of the run.

    Returns:
        MLflow's id of the run, or of the one that told the same.

    Raises:
        EngineError: MLflow does not take it.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    started, ended = (_milliseconds(str(facts[name])) for name in ("started_at", "finished_at"))
    tags = {
        "mlflow.runName": f"{facts['pipeline']} {facts['run_id']}",
        "ledgerlm.run_id": str(facts["run_id"]),
        "ledgerlm.commit": str(facts["commit"] or "none"),
        _CONTENT: _content(facts),
    }
    # MLflow's own seven retries keep a run that has ended waiting for more than four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    try:
        client = MlflowClient(conf.tracking_uri)
        known = client.get_experiment_by_name(conf.experiment)
        experiment = client.create_experiment(conf.experiment) if known is None else known.experiment_id
        told = client.search_runs([experiment], f"tags.`{_CONTENT}` = '{tags[_CONTENT]}' AND status = 'FINISHED'")
        if told:
            return str(told[0].info.run_id)
        run = client.create_run(experiment, start_time=started, tags=tags).info.run_id
        for settings in _some(_parameters(facts["configuration"]), _PARAMETERS):
            client.log_batch(run, params=[Param(name, value[:_LONGEST]) for name, value in settings])
        for figures in _some(_metrics(facts), _METRICS):
            client.log_batch(run, metrics=[Metric(name, value, ended, 0) for name, value in figures])
        for file in files:
            client.log_artifact(run, str(file))
        client.set_terminated(run, end_time=ended)
    except (MlflowException, OSError) as error:
        raise EngineError(
            f"mlflow: experiment {conf.experiment}: {error}; the report is written, and the same command again tells "
            "it without doing a stage again"
        ) from error
    return str(run)


def _content(facts: Mapping[str, Any]) -> str:
    seconds = {stage["name"]: stage["seconds"] for stage in facts["stages"]}
    told = [facts["configuration"], facts["leaderboard"], facts["leaderboard_test"], seconds]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _some(items: Iterable[T], most: int) -> Iterator[list[T]]:
    left = iter(items)
    while some := list(islice(left, most)):
        yield some


def _parameters(settings: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key -> value of a configuration, as text."""
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            yield from _parameters(value, f"{path}.{key}" if path else str(key))
    else:
        yield _name(path), str(settings)


def _metrics(facts: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Name -> figure: of the leaderboards, and how long each stage took."""
    for board, prefix in (("leaderboard", ""), ("leaderboard_test", "test/")):
        for row in facts[board]:
            name = f"{prefix}{row['task']}/{row['method']}/{row['metric']}"
            for figure, suffix in _FIGURES.items():
                if row.get(figure) is not None:
                    yield _name(name + suffix), float(row[figure])
    for stage in facts["stages"]:
        yield _name(f"seconds/{stage['name']}"), float(stage["seconds"])


def _name(text: str) -> str:
    """As MLflow takes names: letters, digits, blanks and a few signs."""
    return re.sub(r"[^\w\-. :/]", "_", text.replace("+", " and "))


def _milliseconds(time: str) -> int:
    return int(dt.datetime.fromisoformat(time).timestamp() * 1000)
