"""LightGBM heads: published settings, training, raw scores and what each feature contributed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ledgerlm.config import Conf, load_yaml, shipped
from ledgerlm.errors import ConfigError
from ledgerlm.heads.tasks import Floats, Task, counts_by_class, refuse_one_class

if TYPE_CHECKING:
    import lightgbm as lgb
    from scipy import sparse

Scale = NDArray[np.float32]

# Rows are made dense for so many numbers at a time when a head is read, which bounds memory to some ten megabytes.
_NUMBERS_AT_ONCE = 4_000_000
_OBJECTIVE = {"binary": "binary", "multiclass": "multiclass", "regression": "regression"}


class LightGBMConf(Conf):
    """Settings of LightGBM by their own names; the defaults are pytorch-lifestream's for Rosbank."""

    preset: str = Field("rosbank", description="file of conf/heads/ with the settings of a data set; keys here win")
    n_estimators: int = Field(500, ge=1, description="trees (for each class)")
    learning_rate: float = Field(0.02, gt=0, description="shrinkage of each tree")
    num_leaves: int = Field(31, ge=2, description="leaves of a tree")
    max_depth: int = Field(6, description="depth of a tree; -1 for no bound")
    min_data_in_leaf: int = Field(50, ge=1, description="clients in a leaf")
    subsample: float = Field(0.5, gt=0, le=1, description="share of the clients that a tree sees")
    subsample_freq: int = Field(1, ge=0, description="trees between two draws of clients; 0 draws none")
    feature_fraction: float = Field(0.75, gt=0, le=1, description="share of the features that a tree sees")
    lambda_l1: float = Field(1.0, ge=0, description="L1 penalty of leaf values")
    lambda_l2: float = Field(1.0, ge=0, description="L2 penalty of leaf values")
    max_bin: int = Field(255, ge=2, description="bins of a feature")
    scale: bool = Field(True, description="divide each feature by its largest absolute value (MaxAbsScaler)")

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        name = content.get("preset", "rosbank")
        file = shipped(f"heads/{name}.yaml")
        if not file.exists():
            known = ", ".join(sorted(path.stem for path in shipped("heads").glob("*.yaml")))
            raise ValueError(f"no settings '{name}' in conf/heads; known: {known}")
        return {**load_yaml(file), **content}

    def params(self, task: Task, *, seed: int, threads: int) -> dict[str, Any]:
        """Parameters for `lightgbm.train`; the same seed gives the same trees."""
        settings = self.model_dump(exclude={"preset", "n_estimators", "scale"})
        params = {
            **settings,
            "objective": _OBJECTIVE[task.kind],
            "metric": "None",
            "seed": seed,
            "num_threads": threads,
            "deterministic": True,
            "force_col_wise": True,
            "verbosity": -1,
        }
        return params | ({"num_class": task.outputs} if task.kind == "multiclass" else {})


@dataclass(frozen=True, kw_only=True)
class Boosted:
    """Trained trees with the scale of their features.

    Attributes:
        booster: LightGBM's model.
        scale: divisor of each feature.
        outputs: raw scores of a row: 1, or one for each of three classes and more.
    """

    booster: lgb.Booster
    scale: Scale
    outputs: int

    @classmethod
    def from_text(cls, text: str, scale: Sequence[float] | Scale, outputs: int) -> Boosted:
        """Reads LightGBM's own text format, which holds numbers only and runs no code."""
        import lightgbm as lgb

        booster = lgb.Booster(model_str=text)
        if booster.num_feature() != len(scale):
            raise ConfigError(f"the trees read {booster.num_feature()} features, but {len(scale)} scales are given")
        return cls(booster=booster, scale=np.asarray(scale, np.float32), outputs=outputs)

    @property
    def text(self) -> str:
        """LightGBM's text format."""
        return str(self.booster.model_to_string())

    @property
    def gains(self) -> Floats:
        """Loss that the splits on each feature saved in training."""
        return np.asarray(self.booster.feature_importance(importance_type="gain"), np.float64)

    def raw(self, x: sparse.csr_matrix, *, threads: int = 1) -> Floats:
        """Raw scores: log-odds, one column of logits for each class, or values; rows x outputs."""
        chunks = [self._predict(dense, threads) for dense in _chunks(x, self.scale)]
        return np.concatenate([chunk.reshape(-1, self.outputs) for chunk in chunks]) if chunks else self._none(x)

    def contributions(self, x: sparse.csr_matrix, output: NDArray[np.int64], *, threads: int = 1) -> Floats:
        """What each feature added to one raw score (SHAP values of the trees, Lundberg et al. 2018).

        Args:
            x: rows x features.
            output: for each row the number of the raw score that is explained.
            threads: of LightGBM.

        Returns:
            Rows x (features + 1); the last column is the expected score, and a row sums up to its raw score.
        """
        width = x.shape[1] + 1
        explained = []
        start = 0
        for dense in _chunks(x, self.scale):
            found = self._predict(dense, threads, pred_contrib=True).reshape(len(dense), self.outputs, width)
            explained.append(found[np.arange(len(dense)), output[start : start + len(dense)]])
            start += len(dense)
        return np.concatenate(explained) if explained else np.zeros((0, width))

    def _predict(self, dense: NDArray[np.float32], threads: int, **options: bool) -> Floats:
        options = options or {"raw_score": True}
        return np.asarray(self.booster.predict(dense, num_threads=threads, **options), np.float64)

    def _none(self, x: sparse.csr_matrix) -> Floats:
        return np.zeros((x.shape[0], self.outputs))


def _chunks(x: sparse.csr_matrix, scale: Scale) -> Iterator[NDArray[np.float32]]:
    step = max(1, _NUMBERS_AT_ONCE // max(1, x.shape[1]))
    return (x[start : start + step].toarray() / scale for start in range(0, x.shape[0], step))


def fit_scale(x: sparse.csr_matrix, *, scale: bool = True) -> Scale:
    """Largest absolute value of each feature, 1 for a feature that is always zero."""
    from sklearn.preprocessing import MaxAbsScaler

    if not scale:
        return np.ones(x.shape[1], np.float32)
    return np.asarray(MaxAbsScaler().fit(x).scale_, np.float32)


def scaled(x: sparse.csr_matrix, scale: Scale) -> sparse.csr_matrix:
    """Divides each feature by its scale."""
    divided = x.tocsr(copy=True)
    divided.data = divided.data / scale[divided.indices]
    return divided


def raw_outputs(task: Task) -> int:
    """Raw scores of a row: one for two classes and for a regression, else one for each class."""
    return task.outputs if task.kind == "multiclass" else 1


def train(x: sparse.csr_matrix, y: Floats, task: Task, conf: LightGBMConf, *, seed: int, threads: int = 1) -> Boosted:
    """Trains trees on this process's cores.

    Args:
        x: rows x features.
        y: from `Task.encode`.
        task: what is predicted.
        conf: settings.
        seed: of the draws of clients and features.
        threads: of LightGBM.

    Raises:
        DataError: all rows are of one class.
    """
    import lightgbm as lgb

    if task.kind != "regression":
        refuse_one_class(task, counts_by_class(task, y))
    scale = fit_scale(x, scale=conf.scale)
    data = lgb.Dataset(scaled(x, scale), y, free_raw_data=True)
    booster = lgb.train(conf.params(task, seed=seed, threads=threads), data, num_boost_round=conf.n_estimators)
    return Boosted(booster=booster, scale=scale, outputs=raw_outputs(task))


def to_probabilities(raw: Floats, task: Task) -> Floats:
    """Raw scores as probabilities, rows x classes; the values themselves, rows x 1, for a regression."""
    if task.kind == "regression":
        return raw
    if task.kind == "binary":
        from scipy.special import expit

        positive = expit(raw[:, 0])  # no overflow, however sure the head is
        return np.stack([1 - positive, positive], axis=1)
    grown = np.exp(raw - raw.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))
