"""The wheel where its users are: in empty environments, outside of the source tree, on each line of Spark."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable

from tests.e2e.conftest import Tiny, copied_to
from tests.e2e.environments import environment, interpreter
from tests.e2e.lakes import rows

CLIENTS, EVENTS = 40, 20
TOLD = [
    '{"time": "2024-01-01 10:00", "amount": 0.50, "shop": "travel"},',
    '{"time": "2024-01-02 11:00", "amount": -1.50, "shop": "grocer"},',
]
SPEC = """
name: bank
client: client
time: {column: time}
amount: {column: amount}
fields: [{name: shop}]
as_of: 2024-03-01
labels: [{name: loyal, kind: binary, file: {glob: loyal.csv}, id: client, column: loyal}]
source: {path: ., files: [{glob: events.csv}]}
"""
PIPELINE = """
pipeline: bank
data: bank.yaml
out: out
stages:
  ingest: {}
  serialize: {format: json}
  aggregate: {max_codes: 5}
  fit: {representation: agg, sources: [{table: features}], kind: logistic_regression}
  score: {}
"""


def write_bank(folder: Path, pipeline: str = PIPELINE) -> Path:
    """A bank of few clients, whose loyal ones only go to the grocer; and one row that is none."""
    lines, loyal = ["client,time,amount,shop"], ["client,loyal"]
    for client in range(CLIENTS):
        loyal.append(f"c{client:02d},{client % 2}")
        for n in range(EVENTS):
            shop = "grocer" if client % 2 or n % 4 else "travel"
            lines.append(
                f"c{client:02d},2024-{1 + n // 10:02d}-{1 + n % 10:02d} 1{n % 10}:00:00,{-client - n}.5,{shop}"
            )
    lines.append("c00,never,1.00,grocer")
    files = {"events.csv": "\n".join(lines), "loyal.csv": "\n".join(loyal), "bank.yaml": SPEC, "run.yaml": pipeline}
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text + "\n")
    return folder


def told(folder: Path) -> list[str]:
    """The first lines of the first client's document, the same on every line of Spark."""
    table = DeltaTable(str(folder / "out" / "lake" / "documents")).to_pyarrow_table(columns=["client_id", "text"])
    (text,) = [row["text"] for row in table.to_pylist() if row["client_id"] == "c00"]
    return str(text).splitlines()[1:3]


LEARNS = """
pipeline: bank
data: bank.yaml
out: out
stages:
  ingest: {}
  serialize: {format: compact, fields: [days, shop, amount]}
  finetune:
    shape: {width: 32, layers: 2, heads: 2, ffn: 64}
    context: 128
    batch_tokens: 512
    max_tokens: 6_000
    evaluations: 1
    precision: fp32
  embed: {}
  fit:
    representation: llm4es
    sources: [{table: embeddings, parts: [mean]}]
    lightgbm: {n_estimators: 20, min_data_in_leaf: 5}
  score: {}
"""
# The oldest that is allowed, as a platform of 2025 has it; the line between; and the newest.
LINES = [
    pytest.param("3.12", "4.0.1", "4.0.1", True, marks=pytest.mark.slow, id="spark-4.0"),
    pytest.param("3.12", "4.1.1", "4.3.1", False, marks=pytest.mark.slow, id="spark-4.1"),
    pytest.param("3.13", "4.2.0", "4.4.0", False, marks=pytest.mark.slow, id="spark-4.2"),
]


@pytest.mark.parametrize(("python", "spark", "delta", "lowest"), LINES)
def test_from_files_to_scores_without_a_model_library(
    wheel: Path, tmp_path: Path, python: str, spark: str, delta: str, lowest: bool
) -> None:
    pins = {"pyspark": spark, "delta_spark": delta}
    made = environment(tmp_path / "env", interpreter(python), wheel, extras="spark", lowest=lowest, **pins)
    bank = write_bank(tmp_path / "bank")
    made.run("ledgerlm", "run", "run.yaml", at=bank)

    (run,) = (bank / "out" / "runs").glob("*/run.json")
    versions = json.loads(run.read_text())["versions"]
    assert (versions["pyspark"], versions["delta-spark"]) == (spark, delta)
    assert not {"torch", "transformers", "ray", "deepspeed", "peft"} & set(versions)
    report = json.loads((bank / "out" / "report.json").read_text())
    counts = {one["name"]: (one["rows_in"], one["rows_out"], one["quarantined"]) for one in report["stages"]}
    assert counts["ingest"] == (CLIENTS * EVENTS + 1, CLIENTS * EVENTS, 1)
    assert (bank / "out" / "report.html").stat().st_size > 10_000
    assert told(bank) == TOLD
    scores = DeltaTable(str(bank / "out" / "lake" / "scores")).to_pyarrow_table().to_pylist()
    right = [row["prediction"] == int(row["client_id"][1:]) % 2 for row in scores]
    assert len(right) == CLIENTS and all(right)

    again = made.run("ledgerlm", "run", "run.yaml", at=bank)
    assert again.stdout.count("skipped") == len(report["stages"])
    # A stage for which nothing is installed stops the run before anything is started.
    added = made.run("ledgerlm", "run", "run.yaml", "--set", "stages.finetune.context=64", at=bank, expect=1)
    (line,) = added.stderr.splitlines()
    assert "deepspeed" in line and "pip install 'ledgerlm[train]'" in line


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.12", "3.13"])
def test_all_of_it_learns_on_other_pythons(wheel: Path, tmp_path: Path, python: str) -> None:
    """Ray, two DeepSpeed ranks and LightGBM from the wheel's extras; this tree's own environment is 3.11."""
    made = environment(tmp_path / "env", interpreter(python), wheel, extras="spark,train")
    bank = write_bank(tmp_path / "bank", LEARNS)
    made.run("ledgerlm", "run", "run.yaml", at=bank)
    report = json.loads((bank / "out" / "report.json").read_text())
    assert [one["name"] for one in report["stages"]][2:] == ["finetune", "embed", "fit", "score"]
    (run,) = (bank / "out" / "runs").glob("*/run.json")
    assert json.loads(run.read_text())["versions"]["python"].startswith(python)
    scores = DeltaTable(str(bank / "out" / "lake" / "scores")).to_pyarrow_table().to_pylist()
    assert len({row["client_id"] for row in scores}) == CLIENTS


@pytest.mark.slow
def test_executors_that_have_no_more_than_embed_embed(finished: Tiny, wheel: Path, tmp_path: Path) -> None:
    """A driver without Ray and DeepSpeed; executors without a Spark of their own, which the cluster gives them."""
    here = Path(sys.executable)  # both sides of a Spark job have one Python
    driver = environment(tmp_path / "driver", here, wheel, extras="spark,embed")
    executor = environment(tmp_path / "executor", here, wheel, extras="embed")
    listed = executor.run("python", "-c", _LISTED, at=tmp_path).stdout.split()
    assert "torch" in listed and not {"pyspark", "ray", "deepspeed"} & set(listed)

    tiny = copied_to(finished, tmp_path / "tiny")
    command = ("ledgerlm", "embed", "--conf", str(tiny.file), "--set", "engine=local_cluster", "--fresh")
    driver.run(*command, at=tmp_path, PYSPARK_PYTHON=str(executor.python))
    columns = ["client_id", "as_of", "parts"]
    found, wanted = (rows(one.out / "lake" / "embeddings", columns) for one in (tiny, finished))
    assert found.keys() == wanted.keys() and found
    for key, numbers in found.items():
        assert numbers == pytest.approx(wanted[key], rel=1e-5, abs=1e-6), key


_LISTED = "import importlib.metadata as m; print(*(one.name for one in m.distributions()))"

# Whatever a stage on Spark does, it does without these.
_BLOCKED = """
import sys
from importlib.machinery import ModuleSpec

class Blocked:
    # Whoever only asks whether a package is there, as PySpark does, gets an answer.
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.split(".")[0] in {names!r} else None

    def create_module(self, spec):
        raise ModuleNotFoundError("No module named " + repr(spec.name), name=spec.name)

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Blocked())
from ledgerlm.jobs.cli import main
sys.exit(main({argv!r}))
"""
_HEAVY = {"torch", "transformers", "tokenizers", "peft", "accelerate", "ray", "deepspeed", "lightgbm", "openai"}


@pytest.mark.slow  # tests/unit/test_extras.py holds the imports of each stage
def test_tables_and_texts_import_no_model_library(tmp_path: Path) -> None:
    bank = write_bank(tmp_path / "bank", "\n".join(PIPELINE.splitlines()[:-2]))
    code = _BLOCKED.format(names=_HEAVY, argv=["run", str(bank / "run.yaml")])
    done = subprocess.run([sys.executable, "-c", code], cwd=bank, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    assert told(bank) == TOLD
    assert len(DeltaTable(str(bank / "out" / "lake" / "features")).to_pyarrow_table()) == CLIENTS
