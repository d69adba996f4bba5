"""The plan: formulas against numbers computed by hand, what is given, measured or assumed, and what is refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.config import shipped
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.jobs.cli import main
from ledgerlm.planning.conf import BackboneConf, PlanConf, load_plan
from ledgerlm.planning.estimate import QUANTITIES, Plan, StageCost, learn_flops, read_flops
from ledgerlm.planning.figures import Figure, known, shown
from ledgerlm.planning.inputs import Inputs, Point, expected_windows, fitted
from ledgerlm.planning.measured import Sample, backbone_of, cores_of
from ledgerlm.planning.plans import plans_of
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.text.windows import WindowConf

# 1,000 clients of 120 events in a year, ten a month, in windows of eight: two windows a month, 24 of them.
GIVEN: dict[str, Any] = {
    "population": {
        "clients": 1000,
        "events": 120,
        "months": 12,
        "tokens": 10,
        "frame_tokens": 5,
        "windows": 24,
        "cuts": 0,
        "active": 0.5,
        "night_events": 2,
        "training_rows": 100,
        "features": 20,
        "heads": 2,
    },
    "windows": {"period": "month", "events": 8},
    "definition": {"parts": ["mean", "std", "surprise"], "fields": ["days", "mcc"]},
    "training": {"tokens": 1000},
    "backbones": {"small": {"parameters": 2000, "width": 10, "layers": 3, "vocabulary": 100}},
    "hardware": {
        "accelerators": {
            "count": 2,
            "peak_flops": 1e9,
            "utilisation": 0.5,
            "training_utilisation": 0.25,
            "memory": 1e9,
            "hour_price": 36,
        },
        "executors": {"count": 3, "cores": 4, "hour_price": 12},
        "storage_price": 10,
        "currency": "EUR",
    },
    "speeds": {
        "ingest": {"start": 5, "rate": 100},
        "serialize": {"start": 1, "rate": 50},
        "fold": {"start": 2, "rate": 1000},
        "aggregate": {"start": 3, "rate": 200},
        "fit": {"start": 4, "rate": 100},
        "score": {"start": 1, "rate": 10},
        "publish": {"start": 2},
        "scan": {"rate": 1000},
    },
    "bytes": {"event": 40, "window_event": 20, "partial": 30, "features": 100, "score": 50, "keys": 16, "shuffled": 2},
    "folded": 0.25,
}


def planned(**changes: Any) -> tuple[Inputs, Plan]:
    inputs, (plan,) = plans_of(PlanConf.model_validate({**GIVEN, **changes}))
    return inputs, plan


def stage(plan: Plan, name: str, walk: str = "first") -> StageCost:
    return {one.stage: one for one in (plan.first if walk == "first" else plan.night).stages}[name]


def recomputed(formula: str) -> float:
    """What a reader gets who takes the numbers and the signs of a formula, and leaves the words."""
    formula, _, rest = formula.partition(", where core seconds = ")
    del rest
    kept = re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?|[·/+−()]", formula)
    return float(eval("".join(kept).replace(",", "").replace("·", "*").replace("−", "-")))


class TestFigures:
    def test_a_formula_holds_the_numbers_put_in_and_brackets_where_they_are_needed(self) -> None:
        a, b, c = known(2, "a"), known(3, "b"), known(4, "c")
        assert (2 * (a + b)).formula == "2 · (2 a + 3 b)"
        assert (a / (b * c)).formula == "2 a / (3 b · 4 c)"
        assert (a - (b - c)).value == 3
        assert (a - (b - c)).formula == "2 a − (3 b − 4 c)"
        assert (a + 0 * b).formula == "2 a"
        assert (a * (b + c)).named("d") == Figure(14, "14 d")

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0, "0"), (0.25, "0.25"), (12, "12"), (1500, "1,500"), (123456, "123,456"), (1.2358e9, "1.236e9"),
         (2e-5, "2e-5")],
    )  # fmt: skip
    def test_numbers_are_shown_to_four_digits(self, value: float, text: str) -> None:
        assert shown(value) == text

    def test_every_formula_of_a_plan_gives_its_number(self) -> None:
        _, plan = planned()
        figures = [
            getattr(one, name) for walk in (plan.first, plan.night) for one in walk.stages for name in QUANTITIES
        ]
        assert sum(bool(one.value) for one in figures) > 50
        for one in figures:
            if one.value:
                assert recomputed(one.formula) == pytest.approx(one.value, rel=2e-3), one.formula


class TestFormulas:
    def test_flops_of_a_token(self) -> None:
        backbone = BackboneConf(parameters=2000, width=10, layers=3, vocabulary=100)
        # 1,000 weights outside the embedding; attention 2 · 3 · 10 · 55.
        assert read_flops(backbone, 55, surprise=False).value == 2 * 1000 + 3300
        assert read_flops(backbone, 55, surprise=True).value == 2 * (1000 + 1000) + 3300
        assert learn_flops(backbone, 55, lora=False).value == 3 * 7300
        assert learn_flops(backbone, 55, lora=True).value == 2 * 7300
        untied = BackboneConf(parameters=3000, width=10, layers=3, vocabulary=100, tied=False)
        assert read_flops(untied, 0, surprise=False).value == 2 * 1000

    def test_the_first_run_reads_each_event_once(self) -> None:
        _, plan = planned()
        embed = stage(plan, "embed")
        tokens = 1000 * 120 * 10 + 1000 * 24 * 5
        assert embed.tokens.value == tokens
        assert embed.flops.value == tokens * (2 * 2000 + 2 * 3 * 10 * 55)
        # weight, sum, spread of ten; surprise: 2 fields · 4, and 8 events · 2 fields · 2.
        state = (1 + 10 + 10 + 8 + 32) * 4 + 16
        vector = (10 + 10 + 2 * 4) * 4 + 16
        assert embed.stored_bytes.value == 24_000 * state + 1000 * vector
        accelerators = embed.flops.value / (2 * 1e9 * 0.5)
        folding = 24_000 * state / 1000 / 12
        assert embed.wall_seconds.value == pytest.approx(2 + accelerators + folding)
        assert embed.limits == pytest.approx({"start": 2, "accelerators": accelerators, "executors": folding})
        assert embed.accelerator_hours.value == pytest.approx(2 * embed.wall_seconds.value / 3600)
        assert embed.executor_hours.value == pytest.approx(3 * embed.wall_seconds.value / 3600)
        assert embed.cost.value == pytest.approx(embed.wall_seconds.value * (2 * 36 + 3 * 12) / 3600)

    def test_stages_of_spark_take_what_their_speed_says(self) -> None:
        _, plan = planned()
        assert stage(plan, "ingest").wall_seconds.value == 5 + 120_000 / 100 / 12
        assert stage(plan, "ingest").stored_bytes.value == 120_000 * 40
        assert stage(plan, "ingest").shuffled_bytes.value == 120_000 * 40 * 2
        assert stage(plan, "serialize").wall_seconds.value == 1 + 120_000 / 50 / 12
        assert stage(plan, "aggregate").wall_seconds.value == 3 + 120_000 / 200 / 12
        assert stage(plan, "score").wall_seconds.value == pytest.approx(1 + 2000 / 10 / 12)
        # 100 rows of 28 numbers and 20 features for two heads, on the four cores of one executor.
        assert stage(plan, "fit").wall_seconds.value == 4 + 100 * 48 * 2 / 100 / 4
        assert stage(plan, "publish").wall_seconds.value == 2
        assert stage(plan, "finetune").wall_seconds.value == pytest.approx(1000 * 3 * 7300 / (2 * 1e9 * 0.25))
        assert stage(plan, "finetune").executor_hours.value == 0
        stored = sum(one.stored_bytes.value for one in plan.first.stages)
        assert plan.stored_month.value == pytest.approx(stored / 1e9 * 10)

    def test_a_night_reads_open_windows_and_new_events(self) -> None:
        _, plan = planned()
        # 500 active clients; windows of eight are full, so four events stand in the open one; two more come.
        dirty = 500 * (1 + 2 / 8)
        embed = stage(plan, "embed", "night")
        assert embed.tokens.value == 500 * (4 + 2) * 10 + dirty * 5
        state = 61 * 4 + 16
        assert embed.stored_bytes.value == dirty * state + 500 * (28 * 4 + 16)
        scans = (2 + 1) * 24_000 / 1000
        assert embed.limits["executors"] == pytest.approx((500 * 24 * state / 1000 + scans) / 12)
        ingest = stage(plan, "ingest", "night")
        assert ingest.limits["executors"] == pytest.approx((1000 / 100 + 2 * 120_000 / 1000) / 12)
        # All months are folded; of active clients the current one is added up again, half of which is over.
        aggregate, again = stage(plan, "aggregate", "night"), 500 * (10 / 2 + 2)
        work = (0.25 * 120_000 + 0.75 * again) / 200 + 120_000 / 1000
        assert aggregate.limits["executors"] == pytest.approx(work / 12)
        assert aggregate.stored_bytes.value == 1000 * 100 + again * 30
        assert {one.stage for one in plan.night.stages}.isdisjoint({"finetune", "fit"})

    def test_windows_that_a_month_does_not_fill_are_half_as_full(self) -> None:
        _, plan = planned(windows={"period": "month", "events": 40})
        dirty = 500 * (1 + 2 / 40)
        assert stage(plan, "embed", "night").tokens.value == 500 * (10 / 2 + 2) * 10 + dirty * 5
        _, plan = planned(windows={"period": "none", "events": 40})
        assert stage(plan, "embed", "night").tokens.value == 500 * (20 + 2) * 10 + dirty * 5

    def test_times_that_are_asked_cut_windows(self) -> None:
        _, plan = planned(population=GIVEN["population"] | {"cuts": 3})
        tokens = (1000 * 120 + 1000 * 3 * 4) * 10 + 1000 * (24 + 3) * 5
        assert stage(plan, "embed").tokens.value == tokens
        # Vectors, features and scores as of each of them, in the first run; a night's are as of tonight.
        assert stage(plan, "score").limits["executors"] == pytest.approx(1000 * 4 * 2 / 10 / 12)
        assert stage(plan, "aggregate").stored_bytes.value == 1000 * 4 * 100 + 120_000 * 30
        assert stage(plan, "score", "night").limits["executors"] == pytest.approx(1000 * 2 / 10 / 12)

    def test_without_accelerators_the_backbone_runs_on_cores(self) -> None:
        speeds = GIVEN["speeds"] | {"embed": {"start": 7, "rate": 1e6}, "finetune": {"start": 8, "rate": 1e5}}
        _, plan = planned(hardware=GIVEN["hardware"] | {"accelerators": None}, speeds=speeds)
        embed, finetune = stage(plan, "embed"), stage(plan, "finetune")
        assert embed.limits["executors"] == pytest.approx((embed.flops.value / 1e6 + 24_000 * 260 / 1000) / 12)
        assert embed.wall_seconds.value == pytest.approx(7 + 2 + embed.limits["executors"])
        assert finetune.wall_seconds.value == pytest.approx(8 + finetune.flops.value / 1e5 / 12)
        assert finetune.executor_hours.value == pytest.approx(3 * finetune.wall_seconds.value / 3600)
        assert embed.accelerator_hours.value == 0

    def test_expected_windows(self) -> None:
        """Against windows that were counted: one event a month on average, windows of one event are the events."""
        assert expected_windows(12, 12, WindowConf(period="month", events=1)) == pytest.approx(12)
        # P(N > 0) = 1 − e^-1 for each of twelve months.
        assert expected_windows(12, 12, WindowConf(period="month", events=100)) == pytest.approx(12 * 0.6321206)
        assert expected_windows(12, 12, WindowConf(period="year", events=100)) == pytest.approx(1, rel=1e-4)
        # Far above a window's length a period ends with half a window too many.
        assert expected_windows(1e6, 12, WindowConf(period="none", events=10)) == pytest.approx(1e5 + 0.45, abs=0.1)

    def test_the_bottleneck_is_what_takes_most_and_what_does_not_fit_is_told(self) -> None:
        _, plan = planned()
        assert (plan.first.bottleneck.stage, plan.first.bottleneck.limit) == ("embed", "executors")
        slow = GIVEN["hardware"] | {"accelerators": GIVEN["hardware"]["accelerators"] | {"peak_flops": 1e6}}
        _, plan = planned(hardware=slow)
        assert plan.first.bottleneck.word.startswith("embed, on accelerators (")
        assert "twice the accelerators would save" in plan.first.bottleneck.text
        assert plan.notes == ()
        tight = GIVEN["hardware"] | {"accelerators": GIVEN["hardware"]["accelerators"] | {"memory": 3000}}
        _, plan = planned(hardware=tight)
        assert "small: its weights take 4e-6 GB" in plan.notes[0]
        assert "more of them are needed" in plan.notes[1]


class TestInputs:
    def sample(self, **changes: Any) -> Sample:
        values: dict[str, Any] = {
            "name": "sample (10 clients, 900 events)",
            "events": 900.0,
            "population": {"clients": 10.0, "events": 90.0, "tokens": 8.0, "windows": 20.0},
            "bytes": {"event": 33.0},
            "parts": {"ingest": Point(units=900, seconds=20, cores=2)},
            "nights": {},
            "backbone": BackboneConf(parameters=2000, width=10, layers=3, vocabulary=100),
            "cores": 2.0,
            "windowing": WindowConf(period="quarter", events=16),
            "definition": EmbeddingDefinition(parts=("mean",), fields=("mcc",)),
            "training_tokens": 77.0,
        }
        return Sample(**values | changes)

    def test_what_is_given_wins_over_what_is_measured_and_the_plan_says_which_is_which(self) -> None:
        people = {name: one for name, one in GIVEN["population"].items() if name not in ("events", "cuts", "windows")}
        left = {name: one for name, one in GIVEN.items() if name not in ("windows", "definition", "training")}
        left["speeds"] = {name: one for name, one in GIVEN["speeds"].items() if name != "ingest"}
        conf = PlanConf.model_validate(left | {"population": people})
        inputs, _ = plans_of(conf, [self.sample(), self.sample(events=1.0, population={"events": 1.0})])
        told = {one.key: (one.value, one.origin) for one in inputs.told}
        assert told["population.events"] == (90, "measured")
        assert told["population.windows"] == (20, "measured")
        assert told["population.tokens"] == (10, "given")
        assert told["population.cuts"] == (0, "assumed")
        assert told["bytes.event"] == (40, "given")
        assert told["windows"] == ("quarter:16", "measured")
        assert told["definition"] == ("mean", "measured")
        assert told["training.tokens"] == (77, "measured")
        assert told["speeds.ingest.rate"][1] == "measured"
        assert told["speeds.score.rate"] == (10, "given")
        assert inputs.population.events == 90
        assert inputs.speeds["ingest"].rate == pytest.approx(22.5)

    def test_a_sample_that_was_rescored_tells_how_long_nights_take_to_start(self) -> None:
        left = GIVEN | {"speeds": {name: one for name, one in GIVEN["speeds"].items() if name != "ingest"}}
        conf = PlanConf.model_validate(left)
        (night,) = (
            {one.stage: one for one in plan.night.stages}
            for plan in plans_of(conf, [self.sample(nights={"ingest": 9.0})])[1]
        )
        # Ten clients of 120 events, of whom half have two new ones: 22.5 rows a second and core, 1,000 of a pass.
        work = (5 * 2 / 22.5 + 2 * 1200 / 1000) / 2
        assert night["ingest"].limits["start"] == pytest.approx(9 - work)
        assert night["serialize"].limits["start"] == 1, "what the plan file says of a stage wins"
        given = GIVEN | {"speeds": GIVEN["speeds"] | {"ingest": {"start": 5, "rate": 100, "night": 6}}}
        _, (plan,) = plans_of(PlanConf.model_validate(given), [self.sample(nights={"ingest": 9.0})])
        assert stage(plan, "ingest", "night").limits["start"] == 6
        assert stage(plan, "ingest").limits["start"] == 5

    def test_without_a_measure_windows_are_computed(self) -> None:
        people = {name: one for name, one in GIVEN["population"].items() if name != "windows"}
        inputs, _ = planned(population=people)
        assert inputs.population.windows == pytest.approx(
            expected_windows(120, 12, WindowConf(period="month", events=8))
        )
        assert next(one.origin for one in inputs.told if one.key == "population.windows") == "computed"

    def test_two_sizes_tell_start_from_work_and_one_does_not(self) -> None:
        runs = [Point(units=units, seconds=7 + units / 20 / 2, cores=2) for units in (100, 400)]
        speed = fitted(runs)
        assert (speed.start, speed.rate) == pytest.approx((7, 20))
        one = fitted(runs[:1])
        assert (one.start, one.rate) == pytest.approx((0, 100 / 2 / 9.5))
        falling = fitted([Point(units=100, seconds=9, cores=2), Point(units=400, seconds=5, cores=2)])
        assert (falling.start, falling.rate) == (0, 40), "runs that tell nothing do not make a large bank free"
        apart = fitted([Point(units=100, seconds=10, cores=2, start=30)])
        assert (apart.start, apart.rate) == (30, 5)
        assert fitted([Point(units=0, seconds=3, cores=2)]).start == 3

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"population": {"clients": 1}}, "population.events is neither given nor measured: set it in the plan"),
            ({"speeds": {}}, "speeds.ingest is neither given nor measured.*ledgerlm run FILE --fresh"),
            ({"bytes": {}}, "bytes.event is neither given nor measured"),
            ({"training": {}}, "training.tokens is neither given nor measured"),
        ],
    )
    def test_a_number_that_nobody_knows_is_asked_for(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            planned(**changes)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("population.active=1.5", r"key 'population.active': Input should be less than or equal to 1"),
            ("population.clients=[0]", r"key 'population.clients': numbers of clients must all be above 0"),
            ("population.client=5", r"unknown key 'population.client': did you mean 'clients'\?"),
            ("backbones.small.vocabulary=200", r"embeddings alone .* look at the model's config.json"),
            ("hardware.accelerators.utilisation=0", "key 'hardware.accelerators.utilisation'"),
            ("speeds.ingests.rate=1", "key 'speeds.ingests"),
            ("windows.events=0", "key 'windows.events'"),
        ],
    )
    def test_impossible_values_are_refused_with_their_key(self, tmp_path: Path, change: str, message: str) -> None:
        file = tmp_path / "plan.yaml"
        file.write_text(yaml.safe_dump(GIVEN))
        with pytest.raises(ConfigError, match=message) as refused:
            load_plan(file, (change,))
        assert str(file) in str(refused.value)


def test_the_size_of_a_backbone_is_read_from_its_folder(tmp_path: Path) -> None:
    save_file(
        {"embed": torch.zeros(100, 10), "layers.0.mlp": torch.zeros(30, 10), "norm": torch.zeros(10)},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = {"hidden_size": 10, "num_hidden_layers": 3, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = backbone_of(tmp_path)
    assert found == BackboneConf(parameters=1310, width=10, layers=3, vocabulary=100, tied=True, number_bytes=4)
    save_file({"lm_head.weight": torch.zeros(100, 10)}, tmp_path / "more.safetensors")
    assert (backbone_of(tmp_path).parameters, backbone_of(tmp_path).tied) == (2310, False)
    with pytest.raises(DataError, match="cannot be read as a backbone"):
        backbone_of(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("spark", "cores"),
    [("{master: 'local[3]'}", 3), ("{master: local}", 1), ("{master: 'local[*]'}", os.cpu_count()),
     ("{remote: 'local[2]'}", 2), ("{master: yarn}", None), ("{}", None)],
)  # fmt: skip
def test_cores_of_a_sample_are_those_of_its_engine(tmp_path: Path, spark: str, cores: float | None) -> None:
    (tmp_path / "engine.yaml").write_text(f"spark: {spark}\n")
    file = tmp_path / "run.yaml"
    file.write_text(
        f"pipeline: p\ndata: datasets/deliveries.yaml\nengine: {tmp_path}/engine.yaml\nstages: {{ingest: }}\n"
    )
    pipeline = load_pipeline(file)
    if cores is None:
        with pytest.raises(ConfigError, match=r"sample_cores: the engine .* is no local one"):
            cores_of(pipeline)
    else:
        assert cores_of(pipeline) == cores


class TestCommand:
    @pytest.fixture
    def said(self, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        def call(*argv: str) -> str:
            assert main(["plan", *argv]) == 0
            return capsys.readouterr().out

        return call

    def test_the_shipped_plan_is_a_table_of_clients_and_backbones(self, said: Callable[..., str]) -> None:
        text = said("conf/plan.yaml")
        for clients in ("1 M", "10 M", "100 M"):
            for backbone in ("0.1 B", "1 B", "8 B"):
                assert len(re.findall(rf"^{clients} +{backbone} +(?:first|night) ", text, flags=re.MULTILINE)) == 2
        assert re.search(r"^population.windows +[\d.]+ +computed ", text, flags=re.MULTILINE)
        conf = load_plan(shipped("plan.yaml"))
        assert [round(one.parameters / 1e9, 1) for one in conf.backbones.values()] == [0.1, 1.2, 8.0]

    def test_one_case_is_told_with_its_formulas(self, said: Callable[..., str], tmp_path: Path) -> None:
        file = tmp_path / "plan.yaml"
        file.write_text(yaml.safe_dump(GIVEN))
        text = said(str(file))
        assert "First run: most of the time is embed, on executors" in text
        assert "embed, tokens: 1.32 M = 120,000 events · 10 tokens an event + 24,000 windows · 5 tokens of its" in text
        assert "cost, EUR" in text
        page = said(str(file), "--form", "markdown")
        assert "| clients | backbone | run |" in page
        assert page.count("* embed, tokens: ") == 2

    def test_json_has_each_number_with_its_formula(self, said: Callable[..., str], tmp_path: Path) -> None:
        file = tmp_path / "plan.yaml"
        file.write_text(yaml.safe_dump(GIVEN))
        found = json.loads(said(str(file), "--form", "json"))
        assert set(found) == {"inputs", "hardware", "plans"}
        assert {tuple(one) for one in found["inputs"]} == {("key", "value", "origin", "how")}
        (plan,) = found["plans"]
        assert set(plan) == {"clients", "backbone", "first", "night", "stored_month", "notes"}
        for walk in (plan["first"], plan["night"]):
            assert set(walk) == {"stages", "total", "bottleneck"}
            for one in walk["stages"]:
                assert set(one) == {"stage", *QUANTITIES}
                assert all(set(one[name]) == {"value", "formula"} for name in QUANTITIES)
            for name in QUANTITIES:
                assert walk["total"][name] == pytest.approx(sum(one[name]["value"] for one in walk["stages"]))

    def test_one_backbone_can_be_chosen(self, said: Callable[..., str]) -> None:
        text = said("conf/plan.yaml", "--backbone", "1 B", "--set", "population.clients=10_000_000")
        assert "First run: most of the time" in text
        assert "8 B" not in text
        with pytest.raises(ConfigError, match=r"no backbone '2 B' in .*plan.yaml: "):
            from ledgerlm.jobs.plan import tell_plan

            tell_plan("conf/plan.yaml", backbone="2 B")

    def test_no_clients_are_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "plan.yaml"
        file.write_text(yaml.safe_dump(GIVEN | {"population": {}}))
        assert main(["plan", str(file)]) == 2
        assert "population.clients is empty; say how many there will be" in capsys.readouterr().err
