"""The pool on a real Ray, with engines that die, choke or can't be built."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ledgerlm.config import Conf
from ledgerlm.engines.ray import RayEngine
from ledgerlm.enrich.engine import Generation, Request
from ledgerlm.enrich.pool import Pool, PoolConf
from ledgerlm.enrich.rewrite import RewriteConf
from ledgerlm.enrich.shards import Shard, ShardStats
from ledgerlm.enrich.template import TemplateEngine, TemplateOptions
from ledgerlm.errors import EngineError
from ledgerlm.files import pull

SHARDS, ROWS, VARIANTS = 4, 6, 2
# The rows written, by client and variant.
Rewrites = dict[tuple[str, int], dict[str, Any]]


class DeadlyOptions(Conf):
    """Where and how to die: shops that kill at every sight, once ever, or that make the engine raise."""

    folder: str
    always: str = "-"
    once: str = "-"
    choke: str = "-"
    stillborn: bool = False


class Deadly:
    """The template engine with a weak heart."""

    Options: ClassVar[type[Conf]] = DeadlyOptions
    uses_prompt: ClassVar[bool] = False
    engine_id = "deadly-1"

    def __init__(self, options: DeadlyOptions) -> None:
        if options.stillborn:
            raise OSError("no model there")
        self._options = options
        self._template = TemplateEngine(TemplateOptions())

    def generate(self, requests: Sequence[Request]) -> Sequence[Generation]:
        shops = {event[1] for request in requests for event in request.source.events}
        died = Path(self._options.folder) / "died"
        if self._options.always in shops or (self._options.once in shops and not died.exists()):
            died.touch()
            os._exit(1)
        if self._options.choke in shops:
            raise ValueError("can't swallow that")
        return self._template.generate(requests)


def shards(folder: Path) -> list[Shard]:
    (folder / "out").mkdir(parents=True)
    made = []
    for number in range(SHARDS):
        source = folder / "in" / f"shard={number}"
        source.mkdir(parents=True)
        rows = [
            {
                "client_id": f"c{number}-{row}",
                "as_of_us": 0,
                "text": f"days|shop|amount\n+1d|shop{number}{row}|3.5\n+2d|shop{number}{row}|12",
                "input_hash": "h",
            }
            for row in range(ROWS)
        ]
        pq.write_table(pa.Table.from_pylist(rows), source / "part-0.parquet")
        made.append(Shard(number=number, source=source, target=folder / "out" / f"shard-{number:06d}.parquet"))
    return made


def enrich(folder: Path, work: list[Shard], **options: object) -> tuple[Rewrites, list[ShardStats], list[int]]:
    conf = RewriteConf.model_validate(
        {
            "engine": f"{__name__}:Deadly",
            "options": {"folder": str(folder), **options},
            "variants": VARIANTS,
            "batch_size": 4,
        }
    )
    told: list[int] = []
    stats = Pool(PoolConf(workers=2), conf, 11).run(work, lambda shard: told.append(shard.shard))
    rows = [row for shard in work for row in pq.read_table(shard.target).to_pylist()]
    keyed = {(row["client_id"], row["variant"]): row for row in rows}
    assert len(keyed) == len(rows) == SHARDS * ROWS * VARIANTS, "rows lost or doubled"
    return keyed, stats, told


@pytest.fixture(scope="module")
def clean(ray_engine: RayEngine, tmp_path_factory: pytest.TempPathFactory) -> Rewrites:
    folder = tmp_path_factory.mktemp("clean")
    return enrich(folder, shards(folder))[0]


def test_a_worker_that_dies_midway_loses_and_doubles_nothing(clean: Rewrites, tmp_path: Path) -> None:
    rows, stats, told = enrich(tmp_path, shards(tmp_path), once="shop13")
    assert (tmp_path / "died").exists()
    assert rows == clean
    assert sorted(told) == [shard.shard for shard in stats] == list(range(SHARDS))


def test_a_row_that_kills_every_worker_is_set_aside_alone(clean: Rewrites, tmp_path: Path) -> None:
    rows, stats, _ = enrich(tmp_path, shards(tmp_path), always="shop24", choke="shop01")
    refused = {key: row for key, row in rows.items() if row["reason"]}
    assert set(refused) == {(client, variant) for client in ("c2-4", "c0-1") for variant in range(VARIANTS)}
    assert {row["reason"] for row in refused.values()} == {"engine_error"}
    assert "died 2 times" in refused["c2-4", 0]["detail"] and "can't swallow" in refused["c0-1", 1]["detail"]
    assert {key: row for key, row in rows.items() if key not in refused} == {
        key: row for key, row in clean.items() if key not in refused
    }
    assert sum(shard.refused.get("engine_error", 0) for shard in stats) == 2 * VARIANTS


def test_a_rerun_does_only_what_is_unfinished(clean: Rewrites, tmp_path: Path) -> None:
    work = shards(tmp_path)
    enrich(tmp_path, work)
    work[2].record.unlink()
    untouched = [shard.target.stat().st_mtime_ns for shard in work if shard.number != 2]
    rows, stats, told = enrich(tmp_path, work)
    assert rows == clean
    assert [shard.resumed for shard in stats] == [True, True, False, True]
    assert untouched == [shard.target.stat().st_mtime_ns for shard in work if shard.number != 2]
    assert sorted(told) == list(range(SHARDS))


def test_an_engine_that_cannot_be_built_stops_the_stage_with_its_reason(ray_engine: RayEngine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no model there"):
        enrich(tmp_path, shards(tmp_path), stillborn=True)


def test_workers_that_see_no_folder_of_the_driver_fetch_and_push_shards(
    clean: Rewrites, place: Path, tmp_path: Path
) -> None:
    folder = place / "staging" / "enrich"
    work = shards(folder)
    conf = RewriteConf.model_validate({"engine": "template", "variants": VARIANTS, "batch_size": 4})
    Pool(PoolConf(workers=2), conf, 11).run(work, lambda _: None)
    assert not list((folder / "out").iterdir())
    assert len(list((tmp_path / "bucket").glob("out/staging/enrich/out/shard-*.parquet"))) == SHARDS
    rows = [row for shard in work for row in pq.read_table(pull(shard.target)).to_pylist()]
    assert {(row["client_id"], row["variant"]): row["text"] for row in rows} == {
        key: row["text"] for key, row in clean.items()
    }
