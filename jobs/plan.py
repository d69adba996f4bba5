"""Says what a bank of some size will cost before it is run: each stage's tokens, FLOPs, hours, bytes and money."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Literal

from rich.console import Console

from ledgerlm.config import nearest
from ledgerlm.errors import ConfigError
from ledgerlm.planning import told
from ledgerlm.planning.conf import PlanConf, load_plan
from ledgerlm.planning.measured import Sample, sample_of
from ledgerlm.planning.plans import plans_of
from ledgerlm.runs.engines import at_lake
from ledgerlm.runs.pipeline import load_pipeline

Form = Literal["text", "json", "markdown"]


def tell_plan(
    file: str,
    overrides: Sequence[str] = (),
    *,
    pipelines: Sequence[str] = (),
    backbone: str | None = None,
    form: Form = "text",
) -> int:
    """Prints a plan: a table of all cases, and where there is one case alone each number with its formula.

    Args:
        file: plan file.
        overrides: `key.sub=value` items that win over the file.
        backbone: the one that is planned for; left out, all of the file.
        pipelines: pipelines that ran on samples, `FILE` or `FILE,key=value,…`; several sizes tell start from work.
        form: lines, JSON or Markdown.

    Returns:
        Exit code.

    Raises:
        ConfigError: there is no such backbone, or a number that is neither given nor measured.
    """
    conf = load_plan(file, tuple(overrides))
    if not conf.population.clients:
        raise ConfigError(f"{file}: population.clients is empty; say how many there will be: [1_000_000, 10_000_000]")
    if backbone is not None:
        if backbone not in conf.backbones:
            raise ConfigError(f"no backbone '{backbone}' in {file}: {nearest(backbone, conf.backbones)}")
        conf = conf.model_copy(update={"backbones": {backbone: conf.backbones[backbone]}})
    inputs, plans = plans_of(conf, [_sample(one, conf) for one in pipelines])
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if form == "json":
        console.print_json(json.dumps(told.as_json(plans, inputs, conf.hardware)))
    else:
        console.print((told.as_text if form == "text" else told.as_markdown)(plans, inputs, conf.hardware))
    return 0


def _sample(named: str, conf: PlanConf) -> Sample:
    file, *overrides = named.split(",")
    pipeline = load_pipeline(file, overrides)
    with at_lake(pipeline) as (_, records, lake):
        return sample_of(pipeline, records, lake, conf.sample_cores)


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["plan", *sys.argv[1:]]))
