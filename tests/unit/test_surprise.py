import pytest
import torch
from torch.nn import functional

from ledgerlm.backbone import surprise
from ledgerlm.backbone.surprise import SurpriseSums, token_surprise


def test_surprise_is_the_negative_log_softmax_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    states, head, targets = torch.randn(37, 8), torch.randn(50, 8), torch.randint(0, 50, (37,))
    expected = -torch.log_softmax(states.double() @ head.double().T, dim=1).gather(1, targets[:, None])[:, 0]
    for logits in (1, 50 * 5, 1 << 20):
        monkeypatch.setattr(surprise, "CPU_LOGITS", logits)
        torch.testing.assert_close(token_surprise(states, targets, head), expected.float(), rtol=1e-5, atol=1e-5)


def test_logits_of_the_whole_pack_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    product = functional.linear

    def watched(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        out: torch.Tensor = product(rows, weight)
        largest = max(largest, out.numel())
        return out

    monkeypatch.setattr(surprise, "CPU_LOGITS", 1000)
    monkeypatch.setattr(functional, "linear", watched)
    token_surprise(torch.randn(500, 4), torch.zeros(500, dtype=torch.long), torch.randn(100, 4))
    assert largest == 1000


def test_profile_per_field() -> None:
    values = torch.tensor([1.0, 3.0, 2.0, 6.0, 4.0])
    fields = torch.tensor([0, 0, 1, 1, 7])  # 7 lies beyond the last field and counts as the last
    age = torch.tensor([5, 1, 2, 0, 1])
    sums = SurpriseSums(2, 3, 2, torch.device("cpu"))
    for part in (slice(3, 5), slice(0, 3)):
        rows = len(values[part])
        sums.add(values[part], torch.ones(rows, dtype=torch.long), fields[part], age[part])
    profile = sums.profile()
    assert torch.equal(profile[0], torch.zeros(12))
    torch.testing.assert_close(profile[1], torch.tensor([2.0, 1.0, 3.0, 1.0, 4.0, 2.0, 6.0, 2.0, 4.0, 0.0, 4.0, 0.0]))
