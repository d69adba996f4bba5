"""What a plan is computed from: each number with where it comes from, given, measured on a sample, or assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import numpy as np

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.errors import ConfigError
from ledgerlm.planning.conf import PARTS, UNITS, BytesConf, Part, PlanConf
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
    features: float
    score: float
    keys: float
    shuffled: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How fast a part of the work is: `start` seconds, and units a second and core; no rate: no time beside it."""

    start: float
    rate: float | None


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
        training_tokens: that the backbone learns from.
        told: every number with where it comes from.
    """

    population: Population
    windowing: WindowConf
    definition: EmbeddingDefinition
    speeds: Mapping[Part, Speed]
    bytes: RowBytes
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
    windowing = conf.windows or (largest.windowing if largest else None) or WindowConf(period="month", events=32)
    definition = conf.definition or (largest.definition if largest else None) or EmbeddingDefinition()
    told = [
        Input(key="windows", value=windowing.windowing, origin=_from(conf.windows, largest and largest.windowing)),
        Input(
            key="definition",
            value="+".join(definition.parts),
            origin=_from(conf.definition, largest and largest.definition),
        ),
    ]
    measured = {} if largest is None else largest.population
    sizes = {} if largest is None else largest.bytes
    people: dict[str, float] = {}
    for one in fields(Population):
        found = _found(f"population.{one.name}", getattr(conf.population, one.name), measured.get(one.name), largest)
        if found is None and one.name == "windows":
            found = _windows(people, windowing)
        if found is None and one.name in _ASSUMED:
            value, why = _ASSUMED[one.name]
            found = Input(key=f"population.{one.name}", value=value, origin="assumed", how=why)
        people[one.name] = float(_needed(f"population.{one.name}", found, told).value)
    rows: dict[str, float] = {}
    for one in fields(RowBytes):
        key, given = f"bytes.{one.name}", getattr(conf.bytes, one.name)
        found = _found(key, given, sizes.get(one.name), largest)
        if one.name in BytesConf.model_fields and one.name not in conf.bytes.model_fields_set and given is not None:
            found = Input(key=key, value=given, origin="assumed")
        rows[one.name] = float(_needed(key, found, told).value)
    tokens = None if largest is None else largest.training_tokens
    learnt = _needed("training.tokens", _found("training.tokens", conf.training.tokens, tokens, largest), told)
    speeds, of_speeds = _speeds(conf, samples, without={"embed", "finetune"} if on_accelerators else set())
    return Inputs(
        population=Population(**people),
        windowing=windowing,
        definition=definition,
        speeds=speeds,
        bytes=RowBytes(**rows),
        training_tokens=float(learnt.value),
        told=(*told, *of_speeds),
    )


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


def _windows(people: Mapping[str, float], windowing: WindowConf) -> Input:
    value = expected_windows(people["events"], people["months"], windowing)
    return Input(key="population.windows", value=value, origin="computed", how="events come at a steady rate")


def _from(given: object, measured: object) -> Origin:
    return "given" if given is not None else "measured" if measured is not None else "assumed"


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


def _speeds(conf: PlanConf, samples: Sequence[Sample], without: set[str]) -> tuple[dict[Part, Speed], list[Input]]:
    speeds: dict[Part, Speed] = {}
    told: list[Input] = []
    for part in PARTS:
        points = [one.parts[part] for one in samples if part in one.parts]
        key, how = f"speeds.{part}", f"{UNITS[part]} a second and core"
        if part in conf.speeds:
            speeds[part] = Speed(start=conf.speeds[part].start, rate=conf.speeds[part].rate)
            origin: Origin = "given"
        elif points:
            speeds[part], origin = fitted(points), "measured"
            how += "" if len(points) > 1 else "; of one sample, whose start counts as work"
        elif part in without:
            speeds[part], origin, how = Speed(start=0, rate=None), "assumed", "seconds of start"
        else:
            known = sorted({name for one in samples for name in one.parts})
            raise ConfigError(
                f"speeds.{part} is neither given nor measured"
                + (f" (the samples tell {', '.join(known)})" if known else "")
                + "; give start and rate in the plan file, or name with --pipeline a pipeline whose stages ran from "
                "nothing on a sample: ledgerlm run FILE --fresh"
            )
        told.append(Input(key=f"{key}.start", value=speeds[part].start, origin=origin, how="seconds"))
        rate = speeds[part].rate
        if rate is not None:
            told.append(Input(key=f"{key}.rate", value=rate, origin=origin, how=how))
    return speeds, told


def fitted(points: Sequence[Point]) -> Speed:
    """Start and rate from measured runs: the line through them, neither negative, by relative least squares.

    Args:
        points: the runs. Where their starts are not known, all seconds of a single one count as work.
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
    return Speed(start=float(start), rate=float(1 / slope) if slope > 0 else None)
