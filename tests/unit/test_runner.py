"""The runner: skips what is finished and unchanged, redoes what builds on a change, goes on after a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from ledgerlm.errors import ConfigError, DataError
from ledgerlm.progress import Progress
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, JobConf, StageResult
from ledgerlm.runs.pipeline import EngineProfile, Pipeline, PipelineConf, Stage, load_pipeline
from ledgerlm.runs.runner import Run, Runner

SPEC = """
name: tiny
fields: [{name: mcc}]
"""


class Settings(JobConf):
    value: int = 1


class Bench:
    """A pipeline of three small jobs that note when they work: a writes x, b reads x, c reads nothing of theirs."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.worked: list[tuple[str, int]] = []
        self.fail_in: str | None = None
        self.spec = out / "spec.yaml"
        self.spec.write_text(SPEC)

    def run(self, only: str | None = None, **values: int) -> Run:
        wiring: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
            "a": ((), ("events",), ()),
            "b": (("events",), (), ()),
            "c": ((), (), ()),
            "d": ((), (), ("b",)),
        }
        stages = tuple(
            Stage(
                name=name,
                job=Job(name=name, engine="none", conf=Settings, run=self._work(name), reads=r, writes=w, needs=n),
                conf=Settings(value=values.get(name, 1)),
            )
            for name, (r, w, n) in wiring.items()
        )
        conf = PipelineConf(pipeline="tiny", data="spec.yaml", stages={})
        pipeline = Pipeline(
            conf=conf, file=self.spec, data_file=self.spec, out=self.out, engine=EngineProfile(), stages=stages
        )
        return Runner(pipeline, Progress()).run(only=only)

    def _work(self, name: str) -> Callable[[Context, Any], StageResult]:
        def work(ctx: Context, conf: Settings) -> StageResult:
            self.worked.append((name, ctx.record.attempt))
            if self.fail_in == name:
                (ctx.staging / "half.txt").write_text("half")
                raise DataError("broken")
            artefact = ctx.artefacts / name
            artefact.mkdir(exist_ok=True)
            return StageResult(rows_in=1, rows_out=1, artefacts=[str(artefact)], facts={"value": conf.value})

        return work


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_second_run_skips_everything(bench: Bench) -> None:
    bench.run()
    again = bench.run()
    assert [name for name, _ in bench.worked] == ["a", "b", "c", "d"]
    assert all(stage.skipped for stage in again.stages)


def test_stage_whose_artefact_is_gone_is_done_again(bench: Bench) -> None:
    bench.run()
    bench.worked.clear()
    (bench.out / "artefacts" / "c").rmdir()
    bench.run()
    assert bench.worked == [("c", 2)]


def test_change_redoes_the_stage_and_what_builds_on_it(bench: Bench) -> None:
    bench.run()
    bench.worked.clear()
    bench.run(a=2)
    assert bench.worked == [("a", 2), ("b", 2), ("d", 2)]


def test_many_stages_that_build_on_each_other_are_each_looked_at_once(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    looked: list[int] = []

    def nothing(ctx: Context, conf: Any) -> StageResult:
        raise AssertionError("no stage runs here")

    def stage(number: int) -> Stage:
        # Reads the table that every stage writes, so it builds on all before it, over 2 ** number paths.
        job = Job(
            name=f"s{number}",
            engine="none",
            conf=Settings,
            run=nothing,
            reads=("events",),
            writes=("events",),
            sources=lambda spec: looked.append(number),
        )
        return Stage(name=job.name, job=job, conf=Settings())

    stages = tuple(stage(number) for number in range(14))
    conf = PipelineConf(pipeline="tiny", data="spec.yaml", stages={})
    pipeline = Pipeline(conf=conf, file=spec, data_file=spec, out=tmp_path, engine=EngineProfile(), stages=stages)
    runner = Runner(pipeline, Progress())
    assert len({runner.fingerprint(one) for one in reversed(stages)}) == len(stages)
    assert sorted(looked) == list(range(len(stages)))


def test_failed_stage_goes_on_under_its_attempt_and_keeps_its_staging(bench: Bench) -> None:
    bench.fail_in = "b"
    with pytest.raises(DataError):
        bench.run()
    assert list(bench.out.glob("staging/b/*/half.txt"))
    bench.fail_in = None
    bench.run()
    assert bench.worked == [("a", 1), ("b", 1), ("b", 1), ("c", 1), ("d", 1)]
    assert not (bench.out / "staging" / "b").exists()


def test_single_job_runs_its_stages_alone(bench: Bench) -> None:
    run = bench.run(only="c")
    assert [stage.record.name for stage in run.stages] == ["c"]


def test_what_a_run_set_out_to_do_is_written_before_work(bench: Bench) -> None:
    bench.fail_in = "a"
    with pytest.raises(DataError):
        bench.run()
    (file,) = bench.out.glob("runs/2*/run.json")
    content = json.loads(file.read_text())
    assert content["pipeline"]["stages"]["a"] == {"job": "a", "value": 1}
    assert content["versions"]["pyspark"] == "4.2.0"


def test_two_runs_of_one_pipeline_exclude_each_other(bench: Bench) -> None:
    with FileLock(bench.out / "runs.lock"), pytest.raises(ConfigError, match="in use by another run"):
        bench.run()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pipeline: p\ndata: spec.yaml\nstages: {ingst: {}}", r"no job 'ingst': did you mean 'ingest'"),
        ("pipeline: p\ndata: spec.yaml\nstage: {}", r"unknown key 'stage': did you mean 'stages'"),
        ("pipeline: p\ndata: nowhere.yaml\nstages: {}", r"no file nowhere\.yaml"),
        ("pipeline: a/b\ndata: spec.yaml\nstages: {}", r"key 'pipeline'.*becomes a folder"),
        ("pipeline: p\ndata: spec.yaml\nengine: lapto\nstages: {}", r"no file engines/lapto\.yaml"),
    ],
)
def test_pipeline_errors_name_what_was_meant(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_pipeline(tmp_path / "p.yaml")
