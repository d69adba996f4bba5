"""The cases of a plan file: each count of clients with each backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from ledgerlm.planning.conf import Part, PlanConf
from ledgerlm.planning.estimate import Plan, night_work, plan_of
from ledgerlm.planning.inputs import Input, Inputs, inputs_of
from ledgerlm.planning.measured import Sample


def plans_of(conf: PlanConf, samples: Sequence[Sample] = ()) -> tuple[Inputs, list[Plan]]:
    """Plans every case.

    Args:
        conf: settings.
        samples: pipelines that ran; what the settings give wins.

    Returns:
        What the plans were computed from, and the plans.

    Raises:
        ConfigError: a number that is neither given nor measured.
    """
    inputs = inputs_of(conf, samples, on_accelerators=conf.hardware.accelerators is not None)
    inputs = _with_nights(inputs, conf, samples)
    cases = [(clients, name) for clients in conf.population.clients for name in conf.backbones]
    return inputs, [plan_of(clients, name, conf, inputs) for clients, name in cases]


def _with_nights(inputs: Inputs, conf: PlanConf, samples: Sequence[Sample]) -> Inputs:
    """What a night takes whatever the size, of samples that were rescored: its seconds less those of its work."""
    speeds, told = dict(inputs.speeds), list(inputs.told)
    starts: dict[Part, list[float]] = {}
    for one in (one for one in samples if one.nights):
        work = night_work(one.population["clients"], one.backbone, inputs)
        for stage, seconds in one.nights.items():
            starts.setdefault(stage, []).append(max(seconds - work[stage] / one.cores, 0.0))
    for stage in starts.keys() - conf.speeds.keys():
        start = fmean(starts[stage])
        speeds[stage] = replace(speeds[stage], night=start)
        how = "seconds of a night, less those of its work"
        told.append(Input(key=f"speeds.{stage}.night", value=start, origin="measured", how=how))
    if speeds["embed"].night is not None and "fold" not in conf.speeds:
        # That of the whole stage, the fold's with it.
        speeds["fold"] = replace(speeds["fold"], night=0.0)
    return replace(inputs, speeds=speeds, told=tuple(told))
