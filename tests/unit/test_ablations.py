"""The shipped ablations: valid, and what they have in common is done once."""

from __future__ import annotations

import pytest

from ledgerlm.backbone.preparing import FinetuneConf
from ledgerlm.config import load_yaml, shipped
from ledgerlm.instruct.tuning import InstructConf
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner

NAMES = sorted(path.stem for path in shipped("ablations").glob("*.yaml"))


def test_the_promised_ablations_are_there() -> None:
    assert set(NAMES) == {
        "components",
        "formats",
        "volume",
        "backbone",
        "layers",
        "low_data",
        "ensembles",
        "recipes",
        "projection",
        "windows",
        "small_backbone",
    }


def test_a_stage_of_one_name_is_the_same_in_every_ablation() -> None:
    marks: dict[str, dict[str, str]] = {}
    for name in NAMES:
        runner = Runner(load_pipeline(f"ablations/{name}.yaml"), Progress())
        assert runner.pipeline.out.name == "ablations"
        for plan in runner.pipeline.plans:
            marks.setdefault(plan.stage.name, {})[name] = runner.definition(plan)
    for stage, found in marks.items():
        assert len(set(found.values())) == 1, f"{stage} would be done again: {found}"
    assert set(marks["finetune_raw"]) == set(NAMES)
    assert len(marks["embed_raw"]) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_methods_read_stages_that_stand_before_them(name: str) -> None:
    stages = load_pipeline(f"ablations/{name}.yaml").stages
    names = [stage.name for stage in stages]
    for place, stage in enumerate(stages):
        for method, sources in getattr(stage.conf, "representations", {}).items():
            for source in sources:
                assert source.table == "features" or source.stage in names[:place], f"{method}: {source}"


PIPELINES = sorted(
    str(path.relative_to(shipped(".")))
    for pattern in ("*.yaml", "ablations/*.yaml", "leaderboards/*.yaml", "pretrained/*.yaml")
    for path in shipped(".").glob(pattern)
    if load_yaml(path).get("stages")  # the others are no pipelines
    and path.name != "demo.yaml"  # it is waited for, so it takes the type that is fast here, and says which
)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_whose_figures_are_told_trains_in_a_stated_precision(name: str) -> None:
    """What is measured (auto) depends on the machine, and so would the figures."""
    confs = {s.name: s.conf for s in load_pipeline(name).stages if isinstance(s.conf, FinetuneConf | InstructConf)}
    measured = {stage for stage, conf in confs.items() if conf.precision == "auto"}
    trained = {stage for stage, conf in confs.items() if (conf.train if isinstance(conf, FinetuneConf) else conf.tune)}
    assert not measured & trained


def test_workers_are_no_part_of_what_is_made() -> None:
    marks = [
        Runner(load_pipeline("ablations/layers.yaml", overrides), Progress())
        for overrides in ([], ["stages.finetune_raw.workers.ranks=1"], ["stages.finetune_raw.epochs=9"])
    ]
    finetune = [
        runner.definition(next(p for p in runner.pipeline.plans if p.stage.name == "finetune_raw")) for runner in marks
    ]
    assert finetune[0] == finetune[1] != finetune[2]
