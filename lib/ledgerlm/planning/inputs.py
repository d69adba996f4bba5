"""What a plan is computed from: each number with where it comes from, given, measured on a sample, or assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import numpy as np

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.errors import ConfigError
from ledgerlm.planning.conf import PARTS, UNITS, Part, PlanConf
from ledgerlm.text.windows import WindowConf

if TYPE_CHECKING:
    from ledgerlm.planning.measured import Sample

Origin = Literal["given", "measured", "computed", "assumed"]
MONTHS: Mapping[str, int] = {"month": 1, "quarter": 3, "year": 12}
_ASSUMED: Mapping[str, tuple[float, str]] = {
    "cuts": (0, "nobody is asked as of a time inside a window but tonight"),
    "training_rows": (0, "heads are there already"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A number, and where it comes from."""

    key: str
    value: float | str
    origin: Origin
    how: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Population:
    """What is known of a client on average; as in `PopulationConf`."""

    events: float
    months: float
    tokens: float
    frame_tokens: float
    windows: float
    cuts: float
    active: float
    night_events: float
    training_rows: float
    features: float
    heads: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RowBytes:
    """Sizes of rows; as in `BytesConf`."""

    event: float
    window_event: float
    partial: float
    features: float
    score: float
    keys: float
    shuffled: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How fast a part of the work is.

    Attributes:
        start: seconds that a first run takes, whatever the size.
        rate: units a second and core; None: no time beside `start`.
        night: seconds that a night takes, whatever the size; None: nobody knows, and `start` stands in.
    """

    start: float
    rate: float | None
    night: float | None = None

    @property
    def night_start(self) -> float:
        """Seconds that a night takes, whatever the size."""
        return self.start if self.night is None else self.night


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A part of the work that was measured once.

    Attributes:
        units: done, as in `UNITS`.
        seconds: that it took.
        cores: that worked.
        start: seconds that came before these, where they are known apart.
    """

    units: float
    seconds: float
    cores: float
    start: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """All that a plan is computed from, but for clients, backbone and hardware.

    Attributes:
        population: of a client.
        windowing: how histories are cut.
        definition: of the embedding, with the fields of its texts.
        speeds: of each part.
        bytes: of rows.
        folded: share of a first run's work in `aggregate` that folds months.
        training_tokens: that the backbone learns from.
        told: every number with where it comes from.
    """

    population: Population
    windowing: WindowConf
    definition: EmbeddingDefinition
    speeds: Mapping[Part, Speed]
    bytes: RowBytes
    folded: float
    training_tokens: float
    told: tuple[Input, ...]


def inputs_of(conf: PlanConf, samples: Sequence[Sample] = (), *, on_accelerators: bool = False) -> Inputs:
    """Puts together what is given and what samples tell; what is given wins.

    Args:
        conf: settings.
        samples: measured; the one of most events tells of clients and bytes, all of them of speeds.
        on_accelerators: the backbone runs there, so no speed of it on cores is needed.

    Raises:
        ConfigError: a number that is neither given nor measured, and that nobody may assume.
    """
    largest = max(samples, key=lambda one: one.events, default=None)
    told: list[Input] = []
    windowing, definition = _texts(conf, largest, told)
    people = _population(conf, windowing, largest, told)
    rows = _row_bytes(conf, largest, told)
    tokens = None if largest is None else largest.training_tokens
    learnt = _needed("training.tokens", _found("training.tokens", conf.training.tokens, tokens, largest), told)
    speeds = _speeds(conf, samples, told, without={"embed", "finetune"} if on_accelerators else set())
    return Inputs(
        population=people,
        windowing=windowing,
        definition=definition,
        speeds=speeds,
        bytes=rows,
        folded=_folded(conf, told),
        training_tokens=float(learnt.value),
        told=tuple(told),
    )


def _texts(conf: PlanConf, sample: Sample | None, told: list[Input]) -> tuple[WindowConf, EmbeddingDefinition]:
    """How histories are cut, and what an embedding is."""
    windowing = conf.windows or (sample.windowing if sample else None)
    definition = conf.definition or (sample.definition if sample else None)
    measured: Origin = "assumed" if sample is None else "measured"
    origins: tuple[Origin, Origin] = (
        "given" if conf.windows is not None else measured,
        "given" if conf.definition is not None else measured,
    )
    windowing, definition = windowing or WindowConf(period="month", events=32), definition or EmbeddingDefinition()
    told.append(Input(key="windows", value=windowing.windowing, origin=origins[0]))
    told.append(Input(key="definition", value="+".join(definition.parts), origin=origins[1]))
    return windowing, definition


def _population(conf: PlanConf, windowing: WindowConf, sample: Sample | None, told: list[Input]) -> Population:
    people: dict[str, float] = {}
    for one in fields(Population):
        key, measured = f"population.{one.name}", None if sample is None else sample.population.get(one.name)
        found = _found(key, getattr(conf.population, one.name), measured, sample)
        if found is None and one.name == "windows":
            windows = expected_windows(people["events"], people["months"], windowing)
            found = Input(key=key, value=windows, origin="computed", how="events come at a steady rate")
        if found is None and one.name in _ASSUMED:
            value, why = _ASSUMED[one.name]
            found = Input(key=key, value=value, origin="assumed", how=why)
        people[one.name] = float(_needed(key, found, told).value)
    return Population(**people)


def _row_bytes(conf: PlanConf, sample: Sample | None, told: list[Input]) -> RowBytes:
    rows: dict[str, float] = {}
    for one in fields(RowBytes):
        key, value = f"bytes.{one.name}", getattr(conf.bytes, one.name)
        given = value if one.name in conf.bytes.model_fields_set else None
        found = _found(key, given, None if sample is None else sample.bytes.get(one.name), sample)
        if found is None and value is not None:
            found = Input(key=key, value=value, origin="assumed")
        rows[one.name] = float(_needed(key, found, told).value)
    return RowBytes(**rows)


def _folded(conf: PlanConf, told: list[Input]) -> float:
    given = "folded" in conf.model_fields_set
    told.append(Input(key="folded", value=conf.folded, origin="given" if given else "assumed"))
    return conf.folded


def expected_windows(events: float, months: float, windowing: WindowConf) -> float:
    """Windows of a client whose events come at a steady rate (a Poisson process).

    The windows of a period of `n` events are `ceil(n / w)`, the number of `k >= 0` with `n > k w`; so the expectation
    is the sum of `P(N > k w)`.

    Args:
        events: of the history.
        months: that it covers.
        windowing: period, and events `w` of a window.
    """
    from scipy.special import pdtrc

    periods = 1.0 if windowing.period == "none" else months / MONTHS[windowing.period]
    each = events / periods
    starts = np.arange(0, each + 10 * np.sqrt(each) + 10, windowing.events)
    return float(periods * pdtrc(starts, each).sum())


def _found(key: str, given: float | None, measured: float | None, sample: Sample | None) -> Input | None:
    if given is not None:
        return Input(key=key, value=given, origin="given")
    if measured is None or sample is None:
        return None
    return Input(key=key, value=measured, origin="measured", how=sample.name)


def _needed(key: str, found: Input | None, told: list[Input]) -> Input:
    if found is None:
        raise ConfigError(
            f"{key} is neither given nor measured: set it in the plan file, or name with --pipeline a pipeline that "
            "ran on a sample of the data"
        )
    told.append(found)
    return found


def _speeds(conf: PlanConf, samples: Sequence[Sample], told: list[Input], *, without: set[str]) -> dict[Part, Speed]:
    speeds: dict[Part, Speed] = {}
    for part in PARTS:
        points = [one.parts[part] for one in samples if part in one.parts]
        how = f"{UNITS[part]} a second and core"
        origin: Origin = "given"
        if part in conf.speeds:
            own = conf.speeds[part]
            speed = Speed(start=own.start, rate=own.rate, night=own.night)
        elif points:
            speed, origin = fitted(points), "measured"
            how += "" if len(points) > 1 else "; of one sample, whose start counts as work"
        elif part in without:
            speed, origin = Speed(start=0, rate=None), "assumed"
        else:
            raise ConfigError(_unknown_speed(part, samples))
        speeds[part] = speed
        told.append(Input(key=f"speeds.{part}.start", value=speed.start, origin=origin, how="seconds"))
        if speed.night is not None:
            told.append(Input(key=f"speeds.{part}.night", value=speed.night, origin=origin, how="seconds"))
        if speed.rate is not None:
            told.append(Input(key=f"speeds.{part}.rate", value=speed.rate, origin=origin, how=how))
    return speeds


def _unknown_speed(part: Part, samples: Sequence[Sample]) -> str:
    known = sorted({name for one in samples for name in one.parts})
    return (
        f"speeds.{part} is neither given nor measured"
        + (f" (the samples tell {', '.join(known)})" if known else "")
        + "; give start and rate in the plan file, or name with --pipeline a pipeline whose stages ran from nothing on "
        "a sample: ledgerlm run FILE --fresh"
    )


def fitted(points: Sequence[Point]) -> Speed:
    """Start and rate from measured runs: the line through them, neither negative, by relative least squares.

    Args:
        points: the runs. Where their starts are not known, all seconds of a single one count as work; those of the
            largest one too, where seconds did not grow with the work: that a large bank costs nothing is not to be
            concluded from small ones.
    """
    from scipy.optimize import nnls

    work = np.array([one.units / one.cores for one in points])
    seconds = np.array([one.seconds for one in points])
    starts = [one.start for one in points if one.start is not None]
    if len(starts) == len(points):
        return Speed(start=sum(starts) / len(starts), rate=float(work.sum() / seconds.sum()))
    columns = work[:, None] if len(points) == 1 else np.stack([work, np.ones_like(work)], axis=1)
    if not work.any():
        return Speed(start=float(seconds.mean()), rate=None)
    # Scaled, so that each run's relative error counts and neither column drowns the other.
    scale = columns.max(axis=0)
    found, _ = nnls(columns / scale / seconds[:, None], np.ones_like(seconds))
    slope, start = [*(found / scale), 0.0][:2]
    if not slope > 0:
        largest = int(work.argmax())
        return Speed(start=0.0, rate=float(work[largest] / seconds[largest]))
    return Speed(start=float(start), rate=float(1 / slope))
