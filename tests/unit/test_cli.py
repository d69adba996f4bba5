"""The command line: a dry run finds what is missing, and an error is one line that says what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

import ledgerlm.jobs.split
from ledgerlm.jobs.cli import main
from ledgerlm.runs.pipeline import load_pipeline

SPEC = """
name: tiny
fields: [{name: mcc}]
client: client
time: {column: time}
source:
  path: .
  needs: the bank sends events.csv every night
  files: [{glob: "events-[0-9].csv", format: csv}]
"""
PIPELINE = "pipeline: p\ndata: spec.yaml\nout: out\nstages: {split: {}}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline `p.yaml` and its spec, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC)
    Path("p.yaml").write_text(PIPELINE)
    Path("events-1.csv").write_text("client,time,mcc\n")
    return tmp_path


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command line, which must fail with one line, and gives the line."""

    def call(*argv: str, code: int = 2) -> str:
        assert main(list(argv)) == code
        said = capsys.readouterr().err
        assert "Traceback" not in said
        (line,) = said.splitlines()
        return line

    return call


@pytest.fixture
def missing(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Makes a dry run and gives its lines about what is missing."""

    def call(*argv: str, code: int = 2) -> list[str]:
        assert main(["run", "p.yaml", "--dry-run", *argv]) == code
        lines = capsys.readouterr().out.splitlines()
        return [line.removeprefix("missing ") for line in lines if line.startswith("missing ")]

    return call


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Lets the split stage fail as a full disk or a lost file would let it."""

    def run(ctx: object, conf: object) -> NoReturn:
        raise error

    monkeypatch.setattr(ledgerlm.jobs.split, "JOB", replace(ledgerlm.jobs.split.JOB, run=run))


class TestDryRun:
    def test_finds_nothing_where_all_is_there(self, missing: Callable[..., list[str]], folder: Path) -> None:
        stages = "stages: {ingest: {}, split: {}, finetune: {base: model}}\n"
        Path("p.yaml").write_text(PIPELINE.replace("stages: {split: {}}\n", stages))
        (folder / "model").mkdir()
        assert missing(code=0) == []
        assert not (folder / "out").exists()

    def test_says_which_packages_a_stage_needs_and_how_they_come(
        self, missing: Callable[..., list[str]], folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("p.yaml").write_text(PIPELINE.replace("{split: {}}", "{split: {}, finetune: {base: model}}"))
        (folder / "model").mkdir()
        monkeypatch.setattr("ledgerlm.engines.extras.find_spec", lambda name: None if name == "deepspeed" else name)
        assert missing() == [
            "stages.finetune: deepspeed is not installed here, which finetune needs: pip install 'ledgerlm[train]'"
        ]

    def test_says_where_a_source_is_not(self, missing: Callable[..., list[str]], folder: Path) -> None:
        Path("p.yaml").write_text(PIPELINE.replace("{split: {}}", "{ingest: {}}"))
        Path("events-1.csv").rename("events-x.csv")
        assert missing() == [
            f"stages.ingest: nothing at {folder}/events-[0-9].csv; the bank sends events.csv every night"
        ]

    def test_says_which_columns_the_files_lack(self, missing: Callable[..., list[str]], folder: Path) -> None:
        Path("p.yaml").write_text(PIPELINE.replace("{split: {}}", "{ingest: {}}"))
        book = "dictionary: {file: {glob: codes.json, format: json}, code: code, description: description}"
        Path("spec.yaml").write_text(
            SPEC.replace("{name: mcc}", f"{{name: mcc, {book}}}")
            + "clients: [{file: {glob: people.parquet, format: parquet}, id: who, attributes: {age: years}}]\n"
            "as_of: 2025-01-01\n"
            "labels: [{name: good, kind: binary, file: {glob: good.csv}, id: client, column: label}]\n"
        )
        Path("events-1.csv").write_text("client,day,mcc\nc1,2024-01-01,5411\n")
        Path("codes.json").write_text('{"code": "5411", "text": "Grocery"}\n')
        pq.write_table(pa.table({"who": ["c1"], "age": [4]}), "people.parquet")
        Path("good.csv").write_text("client,good\nc1,1\n")
        told = [line.removeprefix("stages.ingest: ").replace(f"{folder}/", "") for line in missing()]
        assert told == [
            "time.column: events-1.csv has no column 'time': known: client, day, mcc",
            "clients.0.attributes.age: people.parquet has no column 'years': known: age, who",
            "fields.0.dictionary.description: codes.json: no line of codes.json has a column 'description': known: "
            "code, text",
            "labels.0.column: good.csv has no column 'label': known: client, good",
        ]
        assert not (folder / "out").exists()

    def test_says_that_a_model_is_neither_a_stage_nor_a_folder(
        self, missing: Callable[..., list[str]], folder: Path
    ) -> None:
        Path("p.yaml").write_text(PIPELINE.replace("{split: {}}", "{split: {}, finetune: {base: models/none}}"))
        (line,) = missing()
        assert line.startswith("stages.finetune: model 'models/none' is no stage, and there is no folder ")
        assert f" {folder}/models/none;" in line

    def test_says_that_out_and_lake_cannot_be_written(self, missing: Callable[..., list[str]], folder: Path) -> None:
        lines = missing("--set", "out=events-1.csv/out", "--set", "lake=./p.yaml")
        assert [line.split(":")[0] for line in lines] == ["out", "lake"]
        assert "events-1.csv is a file; give another folder with --set out=FOLDER" in lines[0]
        assert "p.yaml is a file; give another folder with --set lake=FOLDER" in lines[1]

    @pytest.mark.skipif(
        os.geteuid() == 0,
        reason="permission bits do not bind root, who may write everywhere; run the tests as another user to see it",
    )
    def test_says_that_a_folder_is_somebody_elses(self, missing: Callable[..., list[str]], folder: Path) -> None:
        folder.chmod(0o500)
        assert "is not yours to write to" in missing()[0]

    def test_says_all_at_once(self, missing: Callable[..., list[str]]) -> None:
        Path("p.yaml").write_text(PIPELINE.replace("{split: {}}", "{ingest: {}, finetune: {base: none}}"))
        Path("events-1.csv").unlink()
        assert len(missing("--set", "out=p.yaml/out")) == 3


def test_missing_settings_file_names_stage_and_file(told: Callable[..., str]) -> None:
    Path("p.yaml").write_text(PIPELINE.replace("{split: {}}", "{finetune: {deepspeed: zero9.json}}"))
    line = told("run", "p.yaml", "--dry-run")
    assert "p.yaml: stages.finetune: no file zero9.json: looked at " in line


def test_out_that_is_no_folder(told: Callable[..., str]) -> None:
    line = told("run", "p.yaml", "--set", "out=events-1.csv/out")
    assert "out: nothing can be written to " in line
    assert "events-1.csv/out: Not a directory; give another folder with --set out=FOLDER" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pipeline: p\nstages: {split: {}}\n", "p.yaml: key 'data' is missing"),
        ("", "p.yaml: key 'pipeline' is missing; key 'data' is missing; key 'stages' is missing"),
        ("pipeline: p\ndata: spec.yaml\nstages: {fit: {}}\n", "stages.fit: key 'representation' is missing"),
        ("pipeline: [p\ndata: spec.yaml\n", "p.yaml: cannot be read as YAML"),
        ("- pipeline\n", "a mapping of keys to values is expected"),
        ("pipeline: p\ndata: ${nowhere}\nstages: {}\n", "p.yaml: cannot be read as YAML, or a --set key leads nowhere"),
    ],
)
def test_pipeline_that_cannot_be_read(told: Callable[..., str], text: str, message: str) -> None:
    Path("p.yaml").write_text(text)
    assert message in told("run", "p.yaml")


def test_file_that_is_no_text_and_folder_that_is_no_file(told: Callable[..., str], folder: Path) -> None:
    Path("p.yaml").write_bytes(b"pipeline: \xff\xfe\n")
    assert "p.yaml: cannot be read as YAML" in told("run", "p.yaml")
    (folder / "conf.yaml").mkdir()
    assert "conf.yaml: cannot be read as YAML" in told("run", "conf.yaml")


def test_damaged_record(told: Callable[..., str], folder: Path) -> None:
    record = folder / "out" / "runs" / "stages" / "split.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"form": 2, "name": "split"')
    line = told("run", "p.yaml")
    assert f"{record} is not a stage record" in line
    assert "delete it: the stage is then done again" in line


def test_damaged_commit_of_a_table(told: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = folder / "out" / "lake" / "clients" / "_delta_log"
    log.mkdir(parents=True)
    (log / f"{0:020d}.json").write_text('{"commitInfo":{"operation"')
    line = told("run", "p.yaml", code=3)
    assert f"{log}/{0:020d}.json is damaged" in line
    assert "restore the table from a copy" in line


def test_damaged_card_of_a_backbone(told: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ledgerlm.backbone.model import read_card

    (folder / "model").mkdir()
    (folder / "model" / "backbone.json").write_text('{"backbone_id": "a')

    def run(ctx: object, conf: object) -> NoReturn:
        read_card(folder / "model")
        pytest.fail("a damaged card was read")

    monkeypatch.setattr(ledgerlm.jobs.split, "JOB", replace(ledgerlm.jobs.split.JOB, run=run))
    line = told("run", "p.yaml")
    assert "model/backbone.json is damaged: " in line
    assert "run the finetune stage again" in line


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "stage split: the disk is full (/data/x.parquet); make room and run again"),
        (errno.EACCES, "stage split: /data/x.parquet cannot be written or read: Permission denied; change its rights"),
        (errno.ENOENT, "stage split: /data/x.parquet: No such file or directory; was it taken away"),
    ],
)
def test_error_of_the_machine_within_a_stage(
    told: Callable[..., str], monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    failing(monkeypatch, OSError(number, os.strerror(number), "/data/x.parquet"))
    assert message in told("run", "p.yaml", code=1)


def test_a_run_beside_another_says_so_to_a_scheduler(told: Callable[..., str], folder: Path) -> None:
    (folder / "out").mkdir()
    with FileLock(folder / "out" / "runs.lock"):
        assert "is in use by another run" in told("run", "p.yaml", code=75)


def test_disk_that_is_full_when_the_run_is_recorded(told: Callable[..., str], folder: Path) -> None:
    """A device that is always full stands where the record of the stage is written."""
    stages = folder / "out" / "runs" / "stages"
    stages.mkdir(parents=True)
    (stages / f"split.{os.getpid()}.tmp").symlink_to("/dev/full")
    line = told("run", "p.yaml")
    assert "No space left on device" in line
    assert "--set out=" in line


def test_error_that_only_a_developer_can_read_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["run", "p.yaml"])


def test_help_shows_settings_however_deep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "goals.rules.0.name the goal, also the text of its label (required)" in said
    assert "next_category.NAME.min_history" in said
    assert "goals.cuts.every_months months between sliding cuts (default: 1)" in said


class TestProtocolOfTheDataSet:
    """What a spec says under `protocol` holds in every pipeline over its data, but for what the pipeline says."""

    PROTOCOL = "protocol:\n  split: {share: 0.2, seed: 7}\n  aggregate: {calendar: false}\n"

    def test_keys_of_the_pipeline_win(self) -> None:
        Path("spec.yaml").write_text(SPEC + self.PROTOCOL)
        Path("p.yaml").write_text(PIPELINE.replace("{split: {}}", "{split: {seed: 8}, other: {job: split}}"))
        split, other = (stage.conf.model_dump() for stage in load_pipeline("p.yaml").stages)
        assert (split["share"], split["seed"]) == (0.2, 8)
        assert (other["share"], other["seed"]) == (0.3, 42), "a stage of another name"
        again, _ = load_pipeline("p.yaml", ["stages.split.share=0.1"]).stages
        assert again.conf.model_dump()["share"] == 0.1

    def test_a_misspelt_stage_or_key_is_refused(self, told: Callable[..., str]) -> None:
        Path("spec.yaml").write_text(SPEC + self.PROTOCOL.replace("aggregate", "agregate"))
        assert "protocol: no stage 'agregate': did you mean 'aggregate'" in told("run", "p.yaml", "--dry-run")
        Path("spec.yaml").write_text(SPEC + "protocol: {split: {shar: 0.2}}\n")
        assert "unknown key 'shar': did you mean 'share'" in told("run", "p.yaml", "--dry-run")
