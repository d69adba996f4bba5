"""What a run would stumble over, as far as it is seen without work: places that are not there, or not to be written.

The heads of a data set's files are looked at, too, where they are on this machine: whether they have the columns; and
whether the packages are installed that a stage imports.
"""

from __future__ import annotations

import os
from pathlib import Path

from ledgerlm.engines.extras import install, lacking
from ledgerlm.events.columns_there import column_faults
from ledgerlm.events.sources import source_places
from ledgerlm.runs.hashes import matches
from ledgerlm.runs.job import Scope
from ledgerlm.runs.keys import key_of
from ledgerlm.runs.pipeline import Pipeline
from ledgerlm.runs.plan import StagePlan


def unwritable(pipeline: Pipeline) -> list[str]:
    """A line for each of the run's own folders on this machine that nothing can be written to."""
    places = {"out": pipeline.out, "lake": pipeline.home.folder}
    if places["lake"] is not None and places["lake"].is_relative_to(pipeline.out):
        del places["lake"]
    return [
        f"{key}: nothing can be written to {place}: {why}; give another folder with --set {key}=FOLDER"
        for key, place in places.items()
        if place is not None and (why := _refused(place))
    ]


def _refused(place: Path) -> str | None:
    """Why nothing can be written to a folder, which need not be there yet."""
    there = next(one for one in (place, *place.parents) if one.exists())
    if not there.is_dir():
        return f"{there} is a file"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} is not yours to write to"


def untold(pipeline: Pipeline) -> list[str]:
    """A line where runs are to be told to MLflow, which is not installed here."""
    if pipeline.conf.mlflow is None or not lacking(["mlflow"]):
        return []
    return [f"mlflow is not installed here, which the pipeline's mlflow needs: {install(['mlflow'])}"]


def unequipped(plan: StagePlan, pipeline: Pipeline) -> list[str]:
    """A line where a stage's work imports packages that are not installed here; none of them is imported."""
    stage = plan.stage
    extras = stage.job.extras_of(Scope(name=stage.name, conf=stage.conf, spec=pipeline.spec))
    packages = lacking(extras)
    if not packages:
        return []
    what, are = ", ".join(packages), "is" if len(packages) == 1 else "are"
    needed = [extra for extra in extras if lacking([extra])]
    return [f"stages.{stage.name}: {what} {are} not installed here, which {stage.job.name} needs: {install(needed)}"]


def missing(plan: StagePlan, pipeline: Pipeline) -> list[str]:
    """A line for each package, source, column, key and model folder that a stage lacks; no other machine is asked."""
    stage, source, pseudonyms = plan.stage, pipeline.spec.source, pipeline.spec.pseudonymise
    scope = Scope(name=stage.name, conf=stage.conf, spec=pipeline.spec)
    lines = []
    places = stage.job.sources(scope) if stage.job.sources else ()
    for place in places:
        if matches(place) == []:
            hint = source.needs if source and source.path and place.startswith(source.path) else ""
            lines.append(f"stages.{stage.name}: nothing at {place}; {hint or 'give the path of files that are there'}")
    if not lines and {*places} & {*source_places(pipeline.spec)}:
        lines += [f"stages.{stage.name}: {fault}" for fault in column_faults(pipeline.spec)]
    if places and pseudonyms is not None and key_of(pipeline.spec) is None:
        lines.append(
            f"stages.{stage.name}: pseudonymise.key_env: the environment variable {pseudonyms.key_env} is not set; put "
            "the secret key there"
        )
    lines += unequipped(plan, pipeline)
    for name, folder in plan.folders.items():
        if not folder.is_dir():
            lines.append(
                f"stages.{stage.name}: model '{name}' is no stage, and there is no folder {folder}; give a model's "
                "folder, or a stage before it that makes one"
            )
    return lines
