"""What each stage of a pipeline over windows costs, by formulas that are shown with their numbers.

The first run reads all events, a night what is new, as docs/rescoring.md says. FLOPs of a token are those of Kaplan et
al. (2020), table 1, and Hoffmann et al. (2022), appendix F: twice the weights that it passes through, and `2 · layers ·
width · span` for attention over what stands before it; learning takes three times reading, two times where the weights
are frozen but for adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ledgerlm.backbone.layout import StateLayout
from ledgerlm.planning.conf import BackboneConf, HardwareConf, Part, PlanConf
from ledgerlm.planning.figures import NOTHING, Figure, known, shown
from ledgerlm.planning.inputs import MONTHS, Inputs

TRAINING_BYTES = 16
"""Bytes of a weight that learns by Adam in mixed precision: weight, gradient, fp32 copy and two moments (Rajbhandari
et al. 2020, section 3.1); they can be spread over all accelerators."""
_SCANS = {"ingest": 2, "events": 2, "windows": 2, "texts": 2, "states": 1, "months": 1, "publish": 2}
"""Passes over whole tables that a night makes beside its work: `ingest` looks for clients' first events and for known
ids, `serialize` for changed clients' events, which it counts once more, and copies the files of windows that change,
`embed` looks for what is due and what was read, `aggregate` for the events of dirty months, `publish` compares the
scores with those of the night before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """What a stage costs; each number with its formula.

    Attributes:
        stage: verb.
        tokens: that the backbone reads.
        flops: of the backbone.
        accelerator_hours: during which an accelerator is held.
        executor_hours: during which an executor is held.
        stored_bytes: that are added to tables.
        shuffled_bytes: that go from task to task.
        wall_seconds: from its start to its end.
        cost: of accelerators and executors.
        limits: seconds by what takes them: `start`, `accelerators`, `executors`.
    """

    stage: str
    tokens: Figure
    flops: Figure
    accelerator_hours: Figure
    executor_hours: Figure
    stored_bytes: Figure
    shuffled_bytes: Figure
    wall_seconds: Figure
    cost: Figure
    limits: Mapping[str, float]


QUANTITIES = (
    "tokens",
    "flops",
    "accelerator_hours",
    "executor_hours",
    "stored_bytes",
    "shuffled_bytes",
    "wall_seconds",
    "cost",
)
"""The figures of a stage."""


_WHERE = {"start": "in starting up", "accelerators": "on accelerators", "executors": "on executors"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bottleneck:
    """What takes most of the time of a run.

    Attributes:
        stage: whose time it is.
        limit: what takes it: `start`, `accelerators` or `executors`.
        seconds: that it takes.
        share: of the whole run.
    """

    stage: str
    limit: str
    seconds: float
    share: float

    @property
    def word(self) -> str:
        """For a table."""
        return f"{self.stage}, {_WHERE[self.limit]} ({self.share:.0%})"

    @property
    def text(self) -> str:
        """In a sentence, with what more of it would bring."""
        half = "" if self.limit == "start" else f"; twice the {self.limit} would save {duration(self.seconds / 2)}"
        return f"most of the time is {self.word}: {duration(self.seconds)}{half}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """A run through all stages, the first one or a night's."""

    stages: tuple[StageCost, ...]

    def sum_of(self, quantity: str) -> float:
        """A figure over all stages."""
        return sum(float(getattr(stage, quantity).value) for stage in self.stages)

    @property
    def bottleneck(self) -> Bottleneck:
        """What takes most of the time."""
        all_of_it = self.sum_of("wall_seconds")
        found = (
            Bottleneck(stage=one.stage, limit=limit, seconds=seconds, share=seconds / all_of_it if all_of_it else 0.0)
            for one in self.stages
            for limit, seconds in one.limits.items()
        )
        return max(found, key=lambda one: one.seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A case: so many clients with such a backbone.

    Attributes:
        clients: how many.
        backbone: its name.
        first: the first run.
        night: each night after.
        stored_month: price of what the first run stored, for a month.
        notes: what does not fit.
    """

    clients: float
    backbone: str
    first: Walk
    night: Walk
    stored_month: Figure
    notes: tuple[str, ...]


def duration(seconds: float) -> str:
    """Seconds for people: `45 s`, `12 min`, `3.5 h`, `12 days`."""
    for most, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < most:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86400:,.3g} days"


def plan_of(clients: float, name: str, conf: PlanConf, inputs: Inputs) -> Plan:
    """Plans a case.

    Args:
        clients: how many.
        name: of the backbone.
        conf: settings, with the backbone's size, the hardware and its prices.
        inputs: what is known of a client, and how fast the work is.
    """
    backbone, hardware = conf.backbones[name], conf.hardware
    case = _Case(known(clients, "clients"), backbone, inputs, hardware)
    first = _first(case, lora=conf.training.lora)
    price = known(hardware.storage_price, f"{hardware.currency} a GB".replace("  ", " "))
    stored = known(first.sum_of("stored_bytes"), "bytes")
    return Plan(
        clients=clients,
        backbone=name,
        first=first,
        night=_night(replace(case, night=True)),
        stored_month=stored / known(1e9, "bytes a GB") * price,
        notes=_notes(name, conf, learns=inputs.training_tokens > 0),
    )


def read_flops(backbone: BackboneConf, span: float, *, surprise: bool) -> Figure:
    """FLOPs of reading one token.

    Args:
        backbone: its size.
        span: tokens of the window that it stands in; attention is causal, so on average half of it stands before.
        surprise: whether the next token is predicted as well, which takes the output embedding.
    """
    inner = known(backbone.parameters - backbone.embedding_parameters, "parameters without embeddings")
    head = known(backbone.width, "width") * known(backbone.vocabulary, "vocabulary") if surprise else NOTHING
    attention = 2 * known(backbone.layers, "layers") * known(backbone.width, "width") * known(span, "tokens a window")
    return 2 * (inner + head) + attention


def learn_flops(backbone: BackboneConf, span: float, *, lora: bool) -> Figure:
    """FLOPs of learning from one token: forward, backward to the states, and backward to the weights that learn."""
    each = read_flops(backbone, span, surprise=True).named("FLOPs of reading a token")
    return (2 if lora else 3) * each


@dataclass(frozen=True)
class _Case:
    """The inputs as named figures; at `night` stages start as those of a night do."""

    clients: Figure
    backbone: BackboneConf
    inputs: Inputs
    hardware: HardwareConf
    night: bool = False

    @cached_property
    def layout(self) -> StateLayout:
        """The numbers of a state."""
        definition = self.inputs.definition
        fields = definition.fields or ("text",)
        width = definition.axes or self.backbone.width
        return StateLayout(definition.model_copy(update={"fields": fields}), width)

    @property
    def state(self) -> Figure:
        """Bytes of a state: fp32 numbers, and its keys."""
        return known(self.layout.size, "numbers of a state") * known(4, "bytes") + self._keys

    @cached_property
    def width(self) -> int:
        """Numbers of an embedding, all parts together."""
        return sum(one.shape[1] for one in self.layout.parts(self.layout.nothing(1)).values())

    @property
    def vector(self) -> Figure:
        """Bytes of an embedding."""
        return known(self.width, "numbers of a vector") * known(4, "bytes") + self._keys

    @property
    def _keys(self) -> Figure:
        return known(self.inputs.bytes.keys, "bytes of keys")

    def each(self, key: str, name: str) -> Figure:
        """A number of the population."""
        return known(getattr(self.inputs.population, key), name)

    def bytes(self, key: str, name: str) -> Figure:
        """The bytes of a row."""
        return known(getattr(self.inputs.bytes, key), name)

    @property
    def events(self) -> Figure:
        """Of all histories."""
        return (self.clients * self.each("events", "events each")).named("events")

    @property
    def windows(self) -> Figure:
        """Texts that the first run reads: whole windows, and those cut at times that are asked."""
        each = self.each("windows", "windows each") + self.each("cuts", "cut windows each")
        return (self.clients * each).named("windows")

    @property
    def span(self) -> float:
        """Tokens of a window."""
        people = self.inputs.population
        return people.events * people.tokens / people.windows + people.frame_tokens

    @property
    def open_events(self) -> Figure:
        """Events that stand in the window that new ones fall into: on average it is half full."""
        people, windowing = self.inputs.population, self.inputs.windowing
        most: float = windowing.events
        if windowing.period != "none":
            most = min(most, people.events / people.months * MONTHS[windowing.period])
        return known(most, "events of a full window") / 2

    @property
    def month_events(self) -> Figure:
        """Events that a month holds on a night: on average half of it is over."""
        people = self.inputs.population
        return known(people.events / people.months, "events of a month") / 2

    def flops(self, tokens: Figure) -> Figure:
        """Of reading tokens."""
        each = read_flops(self.backbone, self.span, surprise="surprise" in self.inputs.definition.parts)
        return tokens.named("tokens") * each

    def core_seconds(self, part: Part, units: Figure) -> Figure:
        """Seconds that a part of the work takes one core, beside its start."""
        rate = self.inputs.speeds[part].rate
        return NOTHING if rate is None else units / known(rate, f"a second and core ({part})")

    def scan(self, table: str, rows: Figure) -> Figure:
        """Core seconds of a night's passes over a table."""
        passes = known(_SCANS[table], "passes")
        return self.core_seconds("scan", passes * rows)

    def stage(
        self,
        stage: str,
        *parts: Part,
        work: Figure = NOTHING,
        tokens: Figure = NOTHING,
        flops: Figure = NOTHING,
        stored: Figure = NOTHING,
        shuffled: Figure = NOTHING,
        cores: float | None = None,
    ) -> StageCost:
        """Puts a stage together.

        Args:
            stage: verb.
            *parts: whose starts it waits for.
            work: core seconds of executors.
            tokens: that the backbone reads.
            flops: that it takes.
            stored: bytes.
            shuffled: bytes.
            cores: that can work at once; left out, all.
        """
        executors, accelerators = self.hardware.executors, self.hardware.accelerators
        learns = stage == "finetune"
        in_accelerators, held = NOTHING, NOTHING
        if flops.value and accelerators is not None:
            share = accelerators.training_utilisation if learns else accelerators.utilisation
            count, peak = known(accelerators.count, "accelerators"), known(accelerators.peak_flops, "FLOPs a second")
            in_accelerators = flops.named("FLOPs") / (count * peak * known(share, "utilisation"))
            held = count
        elif flops.value:
            work = work + self.core_seconds("finetune" if learns else "embed", flops.named("FLOPs"))
        all_cores = known(cores or executors.count * executors.cores, "cores")
        in_executors = work.named("core seconds") / all_cores if work.value else NOTHING
        speeds = [self.inputs.speeds[part] for part in parts]
        start = known(sum(one.night_start if self.night else one.start for one in speeds), "s to start")
        wall = start + in_accelerators + in_executors
        seconds, hour = wall.named("s"), known(3600, "s an hour")
        alone = known(0 if learns and held.value else executors.count, "executors")
        accelerator_hours, executor_hours = held * seconds / hour, alone * seconds / hour
        paid = accelerator_hours.named("accelerator hours") * (accelerators.hour_price if accelerators else 0)
        return StageCost(
            stage=stage,
            tokens=tokens,
            flops=flops,
            accelerator_hours=accelerator_hours if accelerator_hours.value else NOTHING,
            executor_hours=executor_hours if executor_hours.value else NOTHING,
            stored_bytes=stored,
            shuffled_bytes=shuffled,
            wall_seconds=Figure(
                wall.value,
                wall.formula if not work.value else f"{wall.formula}, where core seconds = {work.formula}",
                wall.kind,
            ),
            cost=paid + executor_hours.named("executor hours") * executors.hour_price,
            limits={"start": start.value, "accelerators": in_accelerators.value, "executors": in_executors.value},
        )


def _first(case: _Case, *, lora: bool) -> Walk:
    events, windows, clients = case.events, case.windows, case.clients
    told = events * case.bytes("window_event", "bytes of text an event")
    wide = known(case.inputs.bytes.shuffled, "bytes shuffled for one stored")
    row, partial = case.bytes("event", "bytes an event"), case.bytes("partial", "bytes of partials an event")
    extra = case.each("cuts", "cut windows each") * case.open_events.named("events of a cut window")
    read = events + (clients * extra if extra.value else NOTHING)
    tokens = read * case.each("tokens", "tokens an event") + windows * case.each("frame_tokens", "tokens of its frame")
    states = (windows * case.state).named("bytes of states")
    asked = (clients * (1 + case.each("cuts", "further times"))).named("clients and times")
    learnt = known(case.inputs.training_tokens, "tokens")
    scored = asked * case.each("heads", "heads")
    return Walk(
        stages=(
            case.stage(
                "ingest",
                "ingest",
                work=case.core_seconds("ingest", events),
                stored=events * row,
                shuffled=events * row * wide,
            ),
            case.stage(
                "serialize",
                "serialize",
                work=case.core_seconds("serialize", events),
                stored=told,
                shuffled=2 * told * wide,
            ),
            case.stage(
                "finetune",
                "finetune",
                tokens=learnt,
                flops=learnt * learn_flops(case.backbone, case.span, lora=lora),
            ),
            case.stage(
                "embed",
                "embed",
                "fold",
                work=case.core_seconds("fold", states),
                tokens=tokens,
                flops=case.flops(tokens),
                stored=states + asked * case.vector,
                shuffled=2 * told * wide + 2 * states,
            ),
            case.stage(
                "aggregate",
                "aggregate",
                work=case.core_seconds("aggregate", events),
                stored=asked * case.bytes("features", "bytes of features") + events * partial,
                shuffled=events * row * wide,
            ),
            case.stage("fit", "fit", work=_fit(case), cores=case.hardware.executors.cores),
            case.stage(
                "score",
                "score",
                work=case.core_seconds("score", scored),
                stored=scored * case.bytes("score", "bytes a score"),
                shuffled=_joined(case, asked),
            ),
            case.stage("publish", "publish"),
        )
    )


def _fit(case: _Case) -> Figure:
    rows, heads = case.each("training_rows", "labelled rows"), case.each("heads", "heads")
    width = known(case.width, "numbers of a vector")
    return case.core_seconds("fit", rows * (width + case.each("features", "features")) * heads)


def _joined(case: _Case, asked: Figure) -> Figure:
    """What a score stage shuffles: vectors and features of each client and time, brought together."""
    return asked * (case.vector.named("bytes of a vector") + case.bytes("features", "bytes of features"))


def _night(case: _Case) -> Walk:
    clients, events, windows = case.clients, case.events, case.windows
    wide = known(case.inputs.bytes.shuffled, "bytes shuffled for one stored")
    row, text = case.bytes("event", "bytes an event"), case.bytes("window_event", "bytes of text an event")
    active = (clients * case.each("active", "active")).named("active clients")
    new_each = case.each("night_events", "new events each")
    new = (active * new_each).named("new events")
    touched = 1 + new_each / known(case.inputs.windowing.events, "events a window")
    dirty = (active * touched).named("windows that change")
    told = (active * (case.open_events + new_each)).named("events told again")
    tokens = told * case.each("tokens", "tokens an event") + dirty * case.each("frame_tokens", "tokens of its frame")
    of_active = (active * case.each("windows", "windows each")).named("windows of active clients")
    folded = (of_active * case.state).named("bytes of states")
    fresh = dirty * case.state
    partial = case.bytes("partial", "bytes of partials an event")
    summed = (active * (case.month_events + new_each)).named("events of dirty months")
    folds, sums = known(case.inputs.folded, "share that folds"), known(1 - case.inputs.folded, "share that adds up")
    monthly = folds * events + sums * summed
    scored = clients * case.each("heads", "heads")
    return Walk(
        stages=(
            case.stage(
                "ingest",
                "ingest",
                work=case.core_seconds("ingest", new) + case.scan("ingest", events),
                stored=new * row,
                shuffled=new * row * wide,
            ),
            case.stage(
                "serialize",
                "serialize",
                work=case.core_seconds("serialize", told) + case.scan("events", events) + case.scan("windows", windows),
                stored=new * text,
                shuffled=active * case.each("events", "events each") * text * wide,
            ),
            case.stage(
                "embed",
                "embed",
                "fold",
                work=case.core_seconds("fold", folded) + case.scan("texts", windows) + case.scan("states", windows),
                tokens=tokens,
                flops=case.flops(tokens),
                stored=fresh + active * case.vector,
                shuffled=2 * told * text * wide + 2 * folded,
            ),
            case.stage(
                "aggregate",
                "aggregate",
                work=case.core_seconds("aggregate", monthly) + case.scan("months", events),
                stored=clients * case.bytes("features", "bytes of features") + summed * partial,
                shuffled=events * partial * wide,
            ),
            case.stage(
                "score",
                "score",
                work=case.core_seconds("score", scored),
                stored=scored * case.bytes("score", "bytes a score"),
                shuffled=_joined(case, clients),
            ),
            case.stage("publish", "publish", work=case.scan("publish", scored)),
        )
    )


def night_work(clients: float, backbone: BackboneConf, inputs: Inputs) -> Mapping[str, float]:
    """Stage -> core seconds that a night works, its start apart, without accelerators."""
    one_core = {"executors": {"count": 1, "cores": 1, "hour_price": 0}, "storage_price": 0}
    hardware = HardwareConf.model_validate(one_core)
    case = _Case(known(clients, "clients"), backbone, inputs, hardware, night=True)
    return {one.stage: one.limits["executors"] for one in _night(case).stages}


def _notes(name: str, conf: PlanConf, *, learns: bool) -> tuple[str, ...]:
    """What does not fit into the memory of accelerators."""
    accelerators, backbone = conf.hardware.accelerators, conf.backbones[name]
    if accelerators is None:
        return ()
    notes, there = [], f"an accelerator has {shown(accelerators.memory / 1e9)}"
    weights = backbone.parameters * backbone.number_bytes
    if weights > accelerators.memory:
        notes.append(f"{name}: its weights take {shown(weights / 1e9)} GB, {there}")
    needed = weights if conf.training.lora else backbone.parameters * TRAINING_BYTES
    if learns and needed > accelerators.memory:
        enough = needed <= accelerators.memory * accelerators.count
        advice = "spread them by ZeRO 3" if enough else "more of them are needed, or adapters (training.lora)"
        notes.append(f"{name}: learning takes {shown(needed / 1e9)} GB beside activations, {there}: {advice}")
    return tuple(notes)
