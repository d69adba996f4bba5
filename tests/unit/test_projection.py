"""Projections: what is laid on fewer axes folds as the whole does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.embedder import Embedder
from ledgerlm.backbone.projecting import ProjectConf
from ledgerlm.backbone.projection import Projected, Projection, principal_axes
from ledgerlm.errors import ArtefactError, ConfigError, DataError
from tests.unit.test_embedder import TEXTS, make_backbone, resolved
from tests.unit.test_states import Stream, cut, history


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_backbone(tmp_path_factory.mktemp("one"), LlamaConfig)


def axes(folder: Path, home: Path, size: int) -> Path:
    """Axes through the mean states of some histories."""
    means = Embedder(folder, resolved(parts=("mean",))).embed([history(9, seed) for seed in range(80)]).parts["mean"]
    return principal_axes(means, size)[0].save(home)


def test_axes_are_those_along_which_texts_differ_most() -> None:
    draw = np.random.default_rng(1)
    directions = np.linalg.qr(draw.normal(size=(12, 12)))[0]
    spread = np.array([9.0, 4.0, 2.0, *np.full(9, 0.01)])
    means = draw.normal(size=(500, 12)) * spread @ directions.T + 7.0
    found, explained = principal_axes(means, 3)
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(found.center, means.mean(axis=0), rtol=1e-5)
    # They span what the three large directions span.
    np.testing.assert_allclose(np.linalg.norm(found.axes @ directions[:, :3], axis=1), 1.0, atol=1e-4)
    assert 0.999 < explained <= 1.0
    with pytest.raises(DataError, match=r"2 texts of training clients tell no 3 axes; give a smaller `size`"):
        principal_axes(means[:2], 3)


def test_a_mean_of_projected_states_is_the_projection_of_the_mean(llama: Path, tmp_path: Path) -> None:
    folder = axes(llama, tmp_path, 5)
    plain = Embedder(llama, resolved(parts=("mean", "last_event"))).embed(TEXTS)
    definition = resolved(parts=("mean", "last_event"), projection=folder.name)
    small = Embedder(llama, definition, projection=folder).embed(TEXTS)
    found = Projection.load(folder)
    for part in ("mean", "last_event"):
        assert small.parts[part].shape == (len(TEXTS), 5)
        expected = (plain.parts[part] - found.center) @ found.axes.T
        np.testing.assert_allclose(small.parts[part], expected, rtol=0, atol=1e-5 * np.abs(plain.parts[part]).max())


def test_a_deviation_is_that_of_the_tokens_along_the_axes(llama: Path, tmp_path: Path) -> None:
    """All axes turn a state without stretching it, so the squares of the deviations add up to the same."""
    width = Embedder(llama, resolved()).width
    folder = axes(llama, tmp_path, width)
    plain = Embedder(llama, resolved(parts=("std",))).embed(TEXTS).parts["std"]
    turned = Embedder(llama, resolved(parts=("std",), projection=folder.name), projection=folder).embed(TEXTS)
    assert not np.allclose(turned.parts["std"], plain, rtol=0.1)
    np.testing.assert_allclose((turned.parts["std"] ** 2).sum(1), (plain**2).sum(1), rtol=1e-4)


def test_projected_states_fold_to_the_projected_vector(llama: Path, tmp_path: Path) -> None:
    folder = axes(llama, tmp_path, 4)
    definition = resolved(header=True, projection=folder.name)
    embedder = Embedder(llama, definition, projection=folder, pack_tokens=200)
    text, stream = history(60, 3), Stream()
    stream.windows("c", embedder.states(cut(text, llama, 48)))
    stream.ask("c")
    [row] = stream.fold(definition)
    direct = embedder.embed([text])
    for part, vector in row["parts"].items():
        expected = direct.parts[part][0]
        np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=part)


def test_a_projection_is_part_of_the_definition_and_only_where_there_is_one(llama: Path, tmp_path: Path) -> None:
    folder = axes(llama, tmp_path, 4)
    assert "projection" not in resolved().json_text
    assert resolved(projection=folder.name).definition_id != resolved().definition_id
    again = EmbeddingDefinition.model_validate_json(resolved(projection=folder.name).json_text)
    assert again == resolved(projection=folder.name)
    with pytest.raises(ArtefactError, match=f"the definition names projection '{folder.name}', but None is given"):
        Embedder(llama, resolved(projection=folder.name))
    (folder / "projection.safetensors").write_bytes(b"other")
    with pytest.raises(ArtefactError, match="its files hash to"):
        Embedder(llama, resolved(projection=folder.name), projection=folder)


def test_axes_of_other_states_are_refused() -> None:
    own = Projected(folder=Path("0123"), backbone_id="b1", norm="hf", layers=(1, 2, 3), size=4)
    assert own.named(resolved(), "b1").projection == "0123"
    with pytest.raises(ConfigError, match=r"of other states: backbone b1, not b2; norm hf, not pre; layers"):
        own.named(resolved(norm="pre", last_k=2), "b2")


def test_windows_are_named_only_where_they_are_read() -> None:
    with pytest.raises(ValueError, match="serialize names whose windows are read, but source is documents"):
        ProjectConf(serialize="serialize")  # type: ignore[arg-type]
