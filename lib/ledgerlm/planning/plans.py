"""The cases of a plan file: each count of clients with each backbone."""

from __future__ import annotations

from collections.abc import Sequence

from ledgerlm.planning.conf import PlanConf
from ledgerlm.planning.estimate import Plan, plan_of
from ledgerlm.planning.inputs import Inputs, inputs_of
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
    cases = [(clients, name) for clients in conf.population.clients for name in conf.backbones]
    return inputs, [plan_of(clients, name, conf, inputs) for clients, name in cases]
