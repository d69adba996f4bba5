"""Fewer numbers a token: axes on which each token's state is laid before anything is added up.

A sum of projected states is the projection of their sum, so states fold as they did and only their width is another.
Deviations and maxima are then those along the axes. The axes are the principal components of the mean states of
training clients' texts (Pearson, 1901): orthonormal, so distances between clients keep their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.training.artefacts import aside, check, keep

_FILE = "projection.safetensors"


@dataclass(frozen=True, slots=True)
class Projection:
    """Axes for the states of tokens.

    Attributes:
        center: what is taken from a state before, fp32 `[d]`.
        axes: orthonormal, fp32 `[size, d]`, the one along which texts differ most first.
    """

    center: NDArray[np.float32]
    axes: NDArray[np.float32]

    @classmethod
    def load(cls, folder: Path) -> Projection:
        """Opens a folder that bears its id.

        Raises:
            ArtefactError: it is not there, or its files were changed.
        """
        from safetensors.numpy import load_file

        check(folder, made_by="project")
        found = load_file(folder / _FILE)
        return cls(found["center"], found["axes"])

    def save(self, home: Path) -> Path:
        """Writes a folder below `home`, named after its content; returns it."""
        from safetensors.numpy import save_file

        draft = aside(home / "projection")
        save_file({"center": self.center, "axes": self.axes}, draft / _FILE)
        return home / keep(draft, home)


def principal_axes(means: NDArray[np.floating[Any]], size: int) -> tuple[Projection, float]:
    """The axes along which mean states differ most.

    Args:
        means: `[N, d]`.
        size: axes.

    Returns:
        The projection, and the share of the variance of `means` that lies along its axes.

    Raises:
        DataError: fewer texts than axes.
    """
    from sklearn.decomposition import PCA

    if len(means) < size:
        raise DataError(f"project: {len(means):,} texts of training clients tell no {size} axes; give a smaller `size`")
    found = PCA(n_components=size, svd_solver="full").fit(means.astype(np.float64))
    projection = Projection(found.mean_.astype(np.float32), found.components_.astype(np.float32))
    return projection, float(found.explained_variance_ratio_.sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class Projected:
    """A projection as a stage left it.

    Attributes:
        folder: bears its id.
        backbone_id: whose states.
        norm: of the definition.
        layers: hidden states averaged.
        size: axes.
    """

    folder: Path
    backbone_id: str
    norm: str
    layers: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Projected:
        """From the facts of a project stage."""
        return cls(
            folder=Path(facts["projection"]),
            backbone_id=facts["backbone_id"],
            norm=facts["norm"],
            layers=tuple(facts["layers"]),
            size=facts["size"],
        )

    def named(self, definition: EmbeddingDefinition, backbone_id: str) -> EmbeddingDefinition:
        """A resolved definition that names the projection.

        Raises:
            ConfigError: the axes are of other states than the definition's.
        """
        pairs = {
            "backbone": (self.backbone_id, backbone_id),
            "norm": (self.norm, definition.norm),
            "layers": (list(self.layers), list(definition.layers)),
        }
        other = [f"{name} {own}, not {asked}" for name, (own, asked) in pairs.items() if own != asked]
        if other:
            raise ConfigError(
                f"embed: projection: its axes are of other states: {'; '.join(other)}; give the project stage the same "
                "backbone and definition"
            )
        return definition.model_copy(update={"projection": self.folder.name, "axes": self.size})
