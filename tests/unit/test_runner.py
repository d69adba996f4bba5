"""The runner: skips what stands, redoes what builds on a change, goes on after a failure, and never says done of a lie.

The lake here writes Delta's log as Delta does and no rows: what a stage is judged by lies in the log alone. The same
roads on a real lake are in tests/spark/test_records.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest
from filelock import FileLock

from ledgerlm import files
from ledgerlm.config import Conf, StageName
from ledgerlm.errors import ArtefactError, ConfigError, DataError, EngineError
from ledgerlm.events.spec import load_spec
from ledgerlm.lake.history import Author, History, State
from ledgerlm.lake.home import Home
from ledgerlm.lake.lake import Written
from ledgerlm.lake.slices import WHOLE, Slice
from ledgerlm.progress import Progress
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.runs.lock import held
from ledgerlm.runs.pipeline import EngineProfile, Pipeline, PipelineConf, load_pipeline
from ledgerlm.runs.plan import Stage, plan
from ledgerlm.runs.runner import Run, Runner

SPEC = """
name: tiny
fields: [{name: mcc}]
"""


class LogLake:
    """Commits without rows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.history = History(Home.parse(str(root)), self._no_spark)

    @staticmethod
    def _no_spark() -> Any:
        raise AssertionError("no stage here needs Spark")

    def path(self, table: str) -> str:
        return str(self.root / table)

    def read(self, table: str, version: int | None = None) -> Frame:
        return Frame(f"{table}@{version}")

    def write(self, table: str, frame: Any, *, by: Author, part: Slice = WHOLE) -> Written:
        done = self.history.by(table, by.attempt, part)
        if done is not None:
            return Written(version=done.version, rows=done.rows, state=done.state, repeated=True)
        version = commit(self.root / table, by.signature(part))
        return Written(version=version, rows=1, state=State(version=version, attempt=by.attempt))


@dataclass(frozen=True)
class Frame:
    """A frame that only knows where it came from."""

    origin: str

    def where(self, condition: str) -> Frame:
        return self


def commit(table: Path, signature: str = "") -> int:
    """The next commit of a table, as Delta's log tells it."""
    log = table / "_delta_log"
    log.mkdir(parents=True, exist_ok=True)
    version = len(list(log.glob("*.json")))
    info = {"operation": "WRITE", "userMetadata": signature, "operationMetrics": {"numOutputRows": "1"}}
    (log / f"{version:020d}.json").write_text(json.dumps({"commitInfo": info}, separators=(",", ":")) + "\n")
    return version


class Settings(Conf):
    value: int = 1
    on: StageName | None = None


@dataclass
class Wiring:
    reads: Sequence[str] = ()
    writes: Mapping[str, Slice] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    sources: Callable[..., Sequence[str]] | None = None
    on: str | None = None
    extras: tuple[str, ...] = ()


# a writes events, b reads them, c reads nothing of theirs, d uses what b left.
FOUR = {
    "a": Wiring(writes={"events": {}}),
    "b": Wiring(reads=("events",)),
    "c": Wiring(),
    "d": Wiring(needs=("b",)),
}


class Bench:
    """A pipeline of small jobs that note when they work."""

    def __init__(self, out: Path, wiring: Mapping[str, Wiring] = FOUR, lake: Path | None = None) -> None:
        self.out, self.wiring, self.lake = out, wiring, lake or out / "lake"
        self.worked: list[str] = []
        self.attempts: dict[str, list[str]] = {}
        self.fail_in: str | None = None
        out.mkdir(exist_ok=True)
        self.spec = out / "spec.yaml"
        self.spec.write_text(SPEC)

    def runner(self, **values: int) -> Runner:
        stages = [self._stage(name, one, values.get(name, 1)) for name, one in self.wiring.items()]
        spec = load_spec(self.spec)
        pipeline = Pipeline(
            conf=PipelineConf(pipeline="tiny", data="spec.yaml", lake=str(self.lake), stages={}),
            file=self.spec,
            spec=spec,
            out=self.out,
            engine=EngineProfile(),
            plans=plan(stages, spec, self.spec),
        )
        runner = Runner(pipeline, Progress())
        runner.lake = lambda: LogLake(self.lake)  # type: ignore[method-assign,assignment,return-value]
        return runner

    def run(self, only: str | None = None, *, fresh: bool = False, **values: int) -> list[str]:
        """The stages that worked."""
        self.worked.clear()
        self.last: Run = self.runner(**values).run(only=only, fresh=fresh)
        return list(self.worked)

    def _stage(self, name: str, one: Wiring, value: int) -> Stage:
        job = Job(
            name=name,
            engine="none",
            conf=Settings,
            run=self._work(one),
            reads=one.reads,
            writes=lambda _: one.writes,
            needs=one.needs,
            sources=one.sources,
            extras=one.extras,
        )
        return Stage(name=name, job=job, conf=Settings(value=value, on=one.on))

    def _work(self, one: Wiring) -> Callable[[Context, Any], StageResult]:
        def work(ctx: Context, conf: Settings) -> StageResult:
            self.worked.append(ctx.stage)
            self.attempts.setdefault(ctx.stage, []).append(ctx.record.attempt)
            for table in one.reads:
                ctx.maybe(table.removesuffix("?"))
            for name in one.needs:
                ctx.facts(name)
            for table, part in one.writes.items():
                ctx.write(table, Frame("new"), part)  # type: ignore[arg-type]
            if self.fail_in == ctx.stage:
                (ctx.staging / "half.txt").write_text("half")
                raise DataError("broken")
            artefact = ctx.artefacts / ctx.stage
            artefact.mkdir(exist_ok=True)
            return StageResult(rows_in=1, rows_out=1, artefacts=[str(artefact)], facts={"value": conf.value})

        return work


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_second_run_skips_everything(bench: Bench) -> None:
    assert bench.run() == ["a", "b", "c", "d"]
    assert bench.run() == []
    assert all(stage.skipped for stage in bench.last.stages)


def test_stage_whose_artefact_is_gone_is_done_again(bench: Bench) -> None:
    bench.run()
    (bench.out / "artefacts" / "c").rmdir()
    assert bench.run() == ["c"]


def test_change_redoes_the_stage_and_what_builds_on_it(bench: Bench) -> None:
    bench.run()
    assert bench.run(a=2) == ["a", "b", "d"]


def test_a_single_job_on_old_tables_is_done_again_when_they_are_new(tmp_path: Path) -> None:
    """Only b runs after the settings of a have changed: it has read a's old rows, whatever a should write by now."""
    bench = Bench(tmp_path)
    bench.run()
    bench.run(only="b", fresh=True, a=2)
    assert bench.run(a=2) == ["a", "b", "d"]


def test_source_that_changes_is_read_again_and_time_alone_is_no_change(tmp_path: Path) -> None:
    source = tmp_path / "source.csv"
    source.write_text("1\n")
    bench = Bench(tmp_path, FOUR | {"a": Wiring(writes={"events": {}}, sources=lambda _: [str(source)])})
    bench.run()
    source.touch()
    assert bench.run() == []
    source.write_text("2\n")  # as long as before
    assert bench.run() == ["a", "b", "d"]


def test_lost_records_write_again_and_nothing_is_taken_for_a_repeat(bench: Bench) -> None:
    bench.run()
    for record in (bench.out / "runs" / "stages").glob("*.json"):
        record.unlink()
    bench.run()
    signatures = [one.attempt for one in LogLake(bench.lake).history.commits("events")]
    assert signatures == list(reversed(bench.attempts["a"]))
    assert len(set(signatures)) == 2


def test_two_pipelines_of_one_name_see_that_the_other_wrote_their_rows(tmp_path: Path) -> None:
    one = Bench(tmp_path / "one", lake=tmp_path / "lake")
    other = Bench(tmp_path / "other", lake=tmp_path / "lake")
    one.run()
    assert other.run() == ["a", "b", "c", "d"]
    assert one.run() == ["a", "b", "d"]


def test_commit_of_somebody_else_is_no_stage_of_ours(bench: Bench) -> None:
    bench.run()
    commit(bench.lake / "events")
    assert bench.run() == ["a", "b", "d"]


def test_compaction_changes_no_row(bench: Bench) -> None:
    bench.run()
    log = bench.lake / "events" / "_delta_log" / f"{1:020d}.json"
    log.write_text('{"commitInfo":{"operation":"OPTIMIZE","operationMetrics":{}}}\n')
    assert bench.run() == []


def test_log_that_forgot_old_commits_is_no_change(bench: Bench) -> None:
    bench.run()
    log = bench.lake / "events" / "_delta_log"
    (log / f"{1:020d}.json").write_text('{"commitInfo":{"operation":"OPTIMIZE","operationMetrics":{}}}\n')
    (log / f"{0:020d}.json").unlink()
    assert bench.run() == []


SLICES = {
    "a": Wiring(writes={"labels": {"task": ("one",)}}),
    "b": Wiring(writes={"labels": {"task": ("two",)}}),
    "c": Wiring(reads=("labels",)),
}


def test_stage_done_again_leaves_the_slices_of_others_standing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SLICES)
    bench.run()
    assert bench.run(a=2) == ["a", "c"]


def test_rows_written_over_by_another_stage_are_made_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SLICES)
    bench.run()
    author = Author(attempt="other", stage="else/b", run_id="r")
    commit(bench.lake / "labels", author.signature({"task": ("two", "three")}))
    assert bench.run() == ["b", "c"]


def test_an_optional_table_that_comes_later_is_a_change(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"a": Wiring(reads=("dictionaries?",))})
    bench.run()
    assert bench.run() == []
    commit(bench.lake / "dictionaries")
    assert bench.run() == ["a"]


def test_failed_stage_goes_on_under_its_attempt_and_keeps_its_staging(bench: Bench) -> None:
    bench.fail_in = "b"
    with pytest.raises(DataError):
        bench.run()
    assert list(bench.out.glob("staging/b/*/half.txt"))
    bench.fail_in = None
    assert bench.run() == ["b", "c", "d"]
    first, second = bench.attempts["b"]
    assert first == second
    assert not (bench.out / "staging" / "b").exists()


def test_what_a_cut_off_attempt_committed_is_not_committed_again(bench: Bench) -> None:
    bench.fail_in = "a"
    with pytest.raises(DataError):
        bench.run()
    bench.fail_in = None
    bench.run()
    assert len(list((bench.lake / "events" / "_delta_log").glob("*.json"))) == 1


def test_cut_off_attempt_whose_inputs_changed_starts_anew(tmp_path: Path) -> None:
    """Else what it had committed of the old inputs would stand beside what it makes of the new ones."""
    source = tmp_path / "source.csv"
    source.write_text("1\n")
    bench = Bench(tmp_path, {"a": Wiring(writes={"events": {}}, sources=lambda _: [str(source)])})
    bench.fail_in = "a"
    with pytest.raises(DataError):
        bench.run()
    source.write_text("2\n")
    bench.fail_in = None
    bench.run()
    first, second = bench.attempts["a"]
    assert first != second
    assert len(list((bench.lake / "events" / "_delta_log").glob("*.json"))) == 2


def test_single_job_runs_its_stages_alone(bench: Bench) -> None:
    assert bench.run(only="c") == ["c"]
    with pytest.raises(ConfigError, match="no stage of job score"):
        bench.run(only="score")


def test_undeclared_reads_and_writes_are_refused(tmp_path: Path) -> None:
    def strays(ctx: Context, conf: Settings) -> StageResult:
        ctx.read("labels")
        raise AssertionError("not reached")

    bench = Bench(tmp_path, {"a": Wiring()})
    bench._work = lambda one: strays  # type: ignore[method-assign]
    with pytest.raises(DataError, match="reads table labels without declaring it"):
        bench.run()


def test_outlook_tells_what_a_run_would_do(bench: Bench) -> None:
    bench.run()
    told = {plan.stage.name: stands for plan, stands in bench.runner(a=2).outlook(None)}
    assert told == {"a": False, "b": False, "c": True, "d": False}
    assert bench.run(a=2) == ["a", "b", "d"]


def test_a_stage_without_its_packages_stops_the_run_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, {"a": Wiring(), "b": Wiring(extras=("ray", "embed")), "c": Wiring()})
    monkeypatch.setattr("ledgerlm.engines.extras.find_spec", lambda package: None if package == "ray" else package)
    with pytest.raises(EngineError, match=r"^stages\.b: ray is not installed here.*: pip install 'ledgerlm\[ray\]'$"):
        bench.run()
    assert bench.worked == []
    assert bench.run(only="a") == ["a"], "what needs no more than is there runs"


def test_a_stage_that_stands_needs_no_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, {"a": Wiring(), "b": Wiring(needs=("a",), extras=("train",))})
    assert bench.run() == ["a", "b"]
    monkeypatch.setattr("ledgerlm.engines.extras.find_spec", lambda package: None)
    assert bench.run() == []
    with pytest.raises(EngineError, match=r"stages\.b: "):
        bench.run(a=2)
    assert bench.worked == ["a"], "only when the stage before it had worked was it seen that b must, too"


def test_what_a_run_set_out_to_do_is_written_before_work(bench: Bench) -> None:
    bench.fail_in = "a"
    with pytest.raises(DataError):
        bench.run()
    (file,) = bench.out.glob("runs/2*/run.json")
    content = json.loads(file.read_text())
    assert content["pipeline"]["stages"]["a"] == {"job": "a", "value": 1, "on": None}
    assert content["versions"]["pyspark"] == "4.2.0"


def test_spoilt_record_says_what_to_do_and_that_is_safe(bench: Bench) -> None:
    bench.run()
    record = bench.out / "runs" / "stages" / "a.json"
    record.write_text('{"name": "a"')
    with pytest.raises(ArtefactError, match="delete it"):
        bench.run()
    record.unlink()
    assert bench.run() == ["a", "b", "d"]


def test_moved_folder_keeps_its_records(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "old")
    bench.run()
    (tmp_path / "old").rename(tmp_path / "new")
    assert Bench(tmp_path / "new").run() == []


def test_two_runs_of_one_pipeline_exclude_each_other(bench: Bench) -> None:
    with FileLock(bench.out / "runs.lock"), pytest.raises(ConfigError, match="in use by another run"):
        bench.run()


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (tmp_path / "file").write_text("")
    bench.out = tmp_path / "file" / "out"
    with pytest.raises(ConfigError, match=r"file/out.*--set out=FOLDER"):
        bench.run()


@pytest.mark.parametrize(
    ("wiring", "message"),
    [
        ({}, "stages: is empty"),
        ({"../lake": Wiring()}, "a stage's name begins with a letter"),
        (
            {
                "a": Wiring(writes={"documents": {"format": ("x",)}}),
                "b": Wiring(writes={"documents": {"format": ("x",)}}),
            },
            r"stages\.a and stages\.b write the same rows of table documents \(format x\)",
        ),
        (
            {"a": Wiring(writes={"events": {}}), "b": Wiring(writes={"events": {"x": ("y",)}})},
            "the same rows of table events",
        ),
        ({"a": Wiring(reads=("events",)), "b": Wiring(writes={"events": {}})}, "put b before a"),
        ({"a": Wiring(on="b"), "b": Wiring()}, r"stages\.a: names stage 'b', which stands after it"),
        ({"a": Wiring(), "b": Wiring(on="aa")}, "is not in the pipeline: did you mean 'a'"),
    ],
)
def test_plans_that_cannot_be_right_are_refused(tmp_path: Path, wiring: dict[str, Wiring], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bench(tmp_path, wiring).runner()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pipeline: p\ndata: spec.yaml\nstages: {ingst: {}}", r"no job 'ingst': did you mean 'ingest'"),
        ("pipeline: p\ndata: spec.yaml\nstage: {}", r"unknown key 'stage': did you mean 'stages'"),
        ("pipeline: p\ndata: nowhere.yaml\nstages: {}", r"no file nowhere\.yaml"),
        ("pipeline: a/b\ndata: spec.yaml\nstages: {}", r"key 'pipeline'.*becomes a folder"),
        ("pipeline: p\ndata: spec.yaml\nengine: lapto\nstages: {}", r"no file engines/lapto\.yaml"),
        (
            "pipeline: p\ndata: spec.yaml\nout: nowhere://x\nstages: {serialize: {}}",
            r"out: nowhere://x: fsspec has no driver for nowhere here",
        ),
        (
            "pipeline: p\ndata: spec.yaml\nstages: {finetune: {deepspeed: nowhere.json}}",
            r"no file nowhere\.json",
        ),
    ],
)
def test_pipeline_errors_name_what_was_meant(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_pipeline(tmp_path / "p.yaml")


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "p.yaml").write_text("pipeline: p\ndata: spec.yaml\nout: ~/out\nlake: ~/lake\nstages: {serialize: {}}")
    pipeline = load_pipeline(tmp_path / "p.yaml")
    assert pipeline.out == tmp_path / "out"
    assert pipeline.home.folder == tmp_path / "lake"


def test_a_named_stage_does_not_hide_what_else_is_needed(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "p.yaml").write_text(
        "pipeline: p\ndata: spec.yaml\nstages: {serialize: {}, enrich: {engine: template}, finetune: {}, "
        "embed: {enrich: enrich}}"
    )
    assert load_pipeline(tmp_path / "p.yaml").plans[-1].stages == ("enrich", "finetune")


URL = "memory://bank/tiny"


class Anywhere:
    """Machines that run one pipeline whose `out` is a URL; each has a cache of its own, empty at first."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch

    def machine(self, name: str, wiring: Mapping[str, Wiring] = FOUR) -> Bench:
        """A bench on a machine; from here on this process is that machine."""
        self._monkeypatch.setenv("LEDGERLM_CACHE", str(self.folder / name))
        return Bench(files.working_copy(URL).folder, wiring, lake=self.folder / "lake")


@pytest.fixture
def anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Anywhere]:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield Anywhere(tmp_path, monkeypatch)
    memory.store.clear()


def test_a_machine_with_an_empty_disk_goes_on_where_another_stopped(anywhere: Anywhere) -> None:
    first = anywhere.machine("one")
    first.fail_in = "c"
    with pytest.raises(DataError):
        first.run()
    second = anywhere.machine("two")
    assert second.run() == ["c", "d"]
    assert second.attempts["c"] == first.attempts["c"]  # under its identity
    assert anywhere.machine("three").run() == []
    first = anywhere.machine("one")
    assert first.run() == []
    assert first.run(a=2) == ["a", "b", "d"]
    assert anywhere.machine("two").run(a=2) == []


def test_what_an_earlier_stage_left_is_fetched_where_it_is_used(anywhere: Anywhere) -> None:
    anywhere.machine("one").run()
    second = anywhere.machine("two")
    assert second.run(d=2) == ["d"]
    there = sorted(one.name for one in (second.out / "artefacts").iterdir() if one.is_dir())
    assert there == ["b", "d"]  # d uses b, and nothing needs a and c


def test_records_at_a_url_hold_no_path_of_a_machine(anywhere: Anywhere) -> None:
    bench = anywhere.machine("one")
    bench.run()
    memory = fsspec.filesystem("memory")
    found = {name: memory.cat(name).decode() for name in memory.find("/bank/tiny/runs")}
    assert [name for name in found if name.endswith("run.json")]
    records = [name for name in found if "/stages/" in name]
    assert len([name for name in records if "/finished/" in name]) * 2 == len(records) == 2 * len(FOUR)
    assert [name for name, text in found.items() if str(anywhere.folder / "one") in text] == []


def test_runs_of_two_machines_exclude_each_other_at_a_url(anywhere: Anywhere) -> None:
    first = anywhere.machine("one")
    with held(first.out, "tiny"):
        second = anywhere.machine("two")
        with pytest.raises(
            ConfigError, match=r"in use by a run .* on .* since .* delete memory://bank/tiny/runs\.lock"
        ):
            second.run()
    assert second.run() == ["a", "b", "c", "d"]


def test_the_lock_of_a_killed_run_is_taken_over_on_its_own_machine(anywhere: Anywhere) -> None:
    first = anywhere.machine("one")
    killed = {"copy": files.working_copy(URL).copy, "host": "one", "pid": 1, "since": "2026-01-01T00:00:00+00:00"}
    fsspec.filesystem("memory").pipe("/bank/tiny/runs.lock", json.dumps(killed).encode())
    with pytest.raises(ConfigError, match=r"on one \(process 1\) since 2026-01-01"):
        anywhere.machine("two").run()
    anywhere.machine("one")
    assert first.run() == ["a", "b", "c", "d"]
