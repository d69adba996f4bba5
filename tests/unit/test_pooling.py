import torch

from ledgerlm.backbone.pooling import DocumentSums

PARTS = ("mean", "std", "max", "last_token", "last_event", "recent")
CPU = torch.device("cpu")
AGES = torch.tensor([2, 2, 1, 1, 0, 0, 0])
LAST = torch.tensor([False] * 6 + [True])


def pooled(states: torch.Tensor, parts: tuple[str, ...], chunks: list[list[int]]) -> dict[str, torch.Tensor]:
    """Pools one document among three (row 1), its tokens added in the given chunks."""
    sums = DocumentSums(3, states.shape[1], parts, 2.0, CPU)
    for chunk in chunks:
        at = torch.tensor(chunk)
        sums.add(states[at], torch.ones_like(at), AGES[at], LAST[at], torch.ones(len(at)))
    return {part: value[1] for part, value in sums.result().items()}


def test_parts_are_what_their_names_say() -> None:
    x = torch.randn(7, 5)
    result = pooled(x, PARTS, [list(range(7))])
    weights = torch.tensor([0.5, 0.5, 0.5**0.5, 0.5**0.5, 1.0, 1.0, 1.0])
    torch.testing.assert_close(result["mean"], x.mean(0))
    torch.testing.assert_close(result["std"], x.std(0, correction=0))
    torch.testing.assert_close(result["max"], x.amax(0))
    torch.testing.assert_close(result["last_token"], x[6])
    torch.testing.assert_close(result["last_event"], x[4:].mean(0))
    torch.testing.assert_close(result["recent"], (weights[:, None] * x).sum(0) / weights.sum())


def test_windows_in_any_order_give_the_same_vector() -> None:
    x = torch.randn(7, 5)
    whole = pooled(x, PARTS, [list(range(7))])
    for chunks in ([[4, 5, 6], [0, 1, 2, 3]], [[6], [2, 3], [0], [5, 4], [1]]):
        torch.testing.assert_close(pooled(x, PARTS, chunks), whole, rtol=0, atol=1e-7)


def test_std_survives_a_mean_much_larger_than_the_spread() -> None:
    x = 1e4 + torch.randn(7, 5)
    torch.testing.assert_close(pooled(x, ("std",), [list(range(7))])["std"], x.double().std(0, correction=0).float())


def test_one_token_has_no_spread_and_only_wanted_parts_are_returned() -> None:
    assert pooled(torch.randn(7, 5), ("std",), [[6]]).keys() == {"std"}
    assert torch.equal(pooled(torch.randn(7, 5), ("std",), [[6]])["std"], torch.zeros(5))
