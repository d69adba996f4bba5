"""The road with `out` at a URL: an S3 server (moto), a driver that loses its disk, executors that share no folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyspark
import pytest
import yaml
from moto.server import ThreadedMotoServer
from upath import UPath

from ledgerlm.backbone.model import backbone_id
from tests.e2e.conftest import STAGES, Tiny, write_tiny
from tests.e2e.lakes import KEYS

URL = "s3a://bank/tiny"
CHOSEN = ("ingest", "serialize", "finetune", "embed", "fit", "score")
TABLES = ("clients", "events", "labels", "documents", "embeddings", "scores")
_WORK = Path(os.environ.get("SPARK_HOME") or pyspark.__path__[0]) / "work"


@dataclass(frozen=True)
class Remote:
    """A pipeline whose `out` is a URL, run by two executor processes."""

    tiny: Tiny
    cache: Path

    def run(self, *arguments: str, expect: int = 0, **environment: str) -> tuple[str, str]:
        """What the command printed: to stdout, and to stderr."""
        done = self.tiny.command(
            "run", str(self.tiny.file), *arguments, expect=expect, LEDGERLM_CACHE=str(self.cache), **environment
        )
        return done.stdout, done.stderr

    def lose_the_disk(self) -> None:
        """The next run is on a machine that has nothing."""
        shutil.rmtree(self.cache)

    def json(self, name: str) -> dict[str, Any]:
        # As it is now: what this process has listed before was written by others since.
        file = UPath(f"{URL}/{name}", use_listings_cache=False)
        content: dict[str, Any] = json.loads(file.fs.cat_file(file.path))
        return content


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """A server with an empty bucket `bank`; its address and credentials are in the environment."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key-of-the-test",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patched:
        for key, value in given.items():
            patched.setenv(key, value)
        boto3.client("s3").create_bucket(Bucket="bank")
        yield given
    server.stop()


@pytest.fixture(scope="module")
def remote(s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """The pipeline, not yet run; the executors' folders are taken away in the end."""
    folder = tmp_path_factory.mktemp("remote")
    tiny = write_tiny(folder)
    content = yaml.safe_load(tiny.file.read_text())
    content["stages"] = {name: STAGES[name] for name in CHOSEN}
    content["stages"]["embed"] = {"partitions": 4}
    content["stages"]["fit"] |= {"representation": "llm4es", "sources": [{"table": "embeddings", "parts": ["mean"]}]}
    # A relative cache lies in the executor's own working folder: the two have nothing in common.
    conf = {"spark.hadoop.fs.s3a.path.style.access": True, "spark.executorEnv.LEDGERLM_CACHE": "cache"}
    content |= {"out": URL, "engine": "local_cluster", "spark": conf}
    tiny.file.write_text(yaml.safe_dump(content, sort_keys=False))
    before = applications()
    yield Remote(tiny, folder / "cache")
    for one in applications() - before:
        shutil.rmtree(one)


def applications() -> set[Path]:
    """Working folders of applications whose executors know S3; those of others are not ours to take away."""
    return {jar.parents[1] for jar in _WORK.glob("app-*/*/*hadoop-aws*.jar")}


def executor_caches() -> list[Path]:
    """Those of executors that were told of a relative cache: no others than this test's."""
    return sorted(_WORK.glob("app-*/*/cache"))


def rows(lake: str, table: str, columns: tuple[str, ...]) -> list[str]:
    """Rows of a Delta table as another engine reads them."""
    from deltalake import DeltaTable

    options = {"allow_http": "true"} if lake.startswith("s3") else None
    found = DeltaTable(f"{lake.replace('s3a:', 's3:')}/{table}", storage_options=options)
    return sorted(str(tuple(row.values())) for row in found.to_pyarrow_table(columns=list(columns)).to_pylist())


@pytest.mark.slow  # four commands, three with sessions of their own
@pytest.mark.timeout(3600)
def test_an_out_at_a_url_gives_the_same_rows_and_any_machine_goes_on(remote: Remote, finished: Tiny) -> None:
    # Killed when the training has ended, on a machine whose disk is lost with it.
    first = {"expect": -9, "LEDGERLM_FAILPOINT": "finetune:after_training"}
    try:
        remote.run(**first)  # type: ignore[arg-type]
    except AssertionError as error:
        fetched = any(Path.home().glob(".ivy2*/cache/org.apache.hadoop/hadoop-aws"))
        if fetched or "cannot start Spark" not in str(error):
            raise
        pytest.skip("Spark has never fetched the jars of s3a:// here and could not now: connect to a repository once")
    (ended,) = UPath(f"{URL}/staging/finetune").glob("*/train/training.json")
    trained = json.loads(ended.read_text())
    remote.lose_the_disk()

    # Nobody knows that it is dead: its lock stands until somebody says so.
    _, said = remote.run(expect=75)
    assert f"delete {URL}/runs.lock" in said
    UPath(f"{URL}/runs.lock").unlink()

    remote.run()
    report = remote.json("report.json")
    assert [stage["name"] for stage in report["stages"] if stage["skipped"]] == ["ingest", "serialize"]
    told = report["details"]["finetune"]
    assert told["training_seconds"] == trained["training_seconds"]  # not trained a second time
    assert told["backbone"] == f"{URL}/artefacts/backbones/{told['backbone_id']}"

    # Each executor fetched the backbone and the head for itself.
    caches = executor_caches()
    assert len(caches) == 2
    for cache in caches:
        (backbone,) = cache.glob(f"content/*/{told['backbone_id']}")
        assert backbone_id(backbone) == told["backbone_id"]
        (head,) = report["details"]["fit"]["heads"]
        assert list(cache.glob(f"content/*/{head['head_id']}/model.txt"))

    # The rows are those of a run in a folder.
    for table in TABLES:
        assert rows(f"{URL}/lake", table, KEYS[table]) == rows(str(finished.out / "lake"), table, KEYS[table])
    text = ("client_id", "as_of", "text", "input_hash")
    assert rows(f"{URL}/lake", "documents", text) == rows(str(finished.out / "lake"), "documents", text)

    # Nothing of this machine stands in what was written, and no secret.
    names = [one for one in UPath(URL).rglob("*") if one.suffix in (".json", ".html") and "_delta_log" not in one.parts]
    assert {"report.html", "report.json", "run.json", "finetune.json"} <= {one.name for one in names}
    for one in names:
        assert str(remote.cache) not in (content := one.read_text()), one
        assert "secret-of-the-test" not in content, one
    there = UPath(URL)
    there.fs.invalidate_cache()
    left = [name for name in there.fs.find(there.path) if "/staging/" in name or name.endswith("runs.lock")]
    assert left == []

    remote.lose_the_disk()
    remote.run()
    assert all(stage["skipped"] for stage in remote.json("report.json")["stages"])
