"""ALIMN's losses: cross-entropy, size of the parameters, auxiliary term, and distillation (sections 3.1.3, 3.5)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from ledgerlm.heads.alimn.network import Output
from ledgerlm.heads.alimn.settings import NetworkConf


def squared_size(parameters: Iterable[Tensor]) -> Tensor:
    """Sum of all squared numbers of the parameters, ||theta||^2 (section 3.5.2)."""
    return torch.stack([parameter.square().sum() for parameter in parameters]).sum()


def alimn_loss(output: Output, y: Tensor, parameters: Iterable[Tensor], conf: NetworkConf) -> Tensor:
    """L = BCE + lambda ||theta||^2 + weight x L_aux (section 3.5).

    Args:
        output: of the network, whose L_aux is sum_m mean((r_m - z)^2), r_m a branch before its residual.
        y: labels 0 and 1, `[B]`.
        parameters: all that are trained.
        conf: lambda (`l2`) and the weight (`auxiliary`), which the source does not give.
    """
    loss = functional.binary_cross_entropy_with_logits(output.logit, y)
    if conf.l2:
        loss = loss + conf.l2 * squared_size(parameters)
    return loss + conf.auxiliary * output.auxiliary if conf.auxiliary else loss


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over rows of KL(softmax(t / T) || softmax(s / T)) x T^2 (section 3.1.3; T^2 from Hinton et al. 2015).

    Args:
        teacher: `[N, K]`, numbers before the softmax: logits of tokens, or a representation.
        student: `[N, K]`.
        temperature: T; above 1 the small probabilities count more.
    """
    said = functional.log_softmax(student.float() / temperature, dim=-1)
    wanted = functional.log_softmax(teacher.float() / temperature, dim=-1)
    return functional.kl_div(said, wanted, reduction="batchmean", log_target=True) * temperature**2
