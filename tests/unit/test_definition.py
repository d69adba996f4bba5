from typing import Any

import pytest

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.config import parse
from ledgerlm.errors import ConfigError

FIELDS = ("days", "amount")


def resolve(layer_count: int = 4, **settings: object) -> EmbeddingDefinition:
    definition = parse(EmbeddingDefinition, settings, source="test")
    return definition.resolve(layer_count=layer_count, context=256, dtype="fp32", text_format="compact", fields=FIELDS)


def test_k_is_capped_at_the_layers_and_the_indices_are_kept() -> None:
    assert resolve(4, last_k=8).layers == (1, 2, 3, 4)
    assert resolve(28, last_k=8).layers == (21, 22, 23, 24, 25, 26, 27, 28)
    assert resolve(4, last_k=8).definition_id == resolve(4, last_k=4).definition_id


def test_context_is_capped_at_the_backbone() -> None:
    assert resolve().context == 256
    assert resolve(context=64).context == 64
    assert resolve(context=1024).context == 256


def test_every_setting_that_changes_the_vector_changes_the_id() -> None:
    base = resolve().definition_id
    changes: list[dict[str, Any]] = [
        {"last_k": 1},
        {"norm": "pre"},
        {"norm": "scaled"},
        {"special_tokens": True},
        {"header": True},
        {"context": 64},
        {"max_tokens": 64},
        {"windows": "equal"},
        {"dtype": "bf16"},
        {"parts": ("mean",)},
        {"recent_half_life": 3.0},
        {"surprise_events": 3},
        {"fields": ("one",)},
    ]
    ids = [resolve(**change).definition_id for change in changes]
    assert len({base, *ids}) == len(changes) + 1
    assert resolve().definition_id == base


def test_json_restores_the_definition() -> None:
    definition = resolve(parts=("mean", "surprise"))
    assert EmbeddingDefinition.model_validate_json(definition.json_text) == definition


def test_every_component_has_a_name() -> None:
    names = resolve(parts=("mean", "surprise")).component_names({"mean": 3, "surprise": 8})
    assert names["mean"] == ["mean:0", "mean:1", "mean:2"]
    assert names["surprise"] == [
        f"surprise:{field}:{statistic}" for field in FIELDS for statistic in ("mean", "std", "max", "recent")
    ]


@pytest.mark.parametrize("settings", [{"parts": ()}, {"parts": ("mean", "mean")}, {"last_k": 0}, {"layres": 3}])
def test_unusable_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        parse(EmbeddingDefinition, settings, source="test")
