"""What the engines that hold a model share: options, chats as tokens, and what tells two models' texts apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.enrich.engine import Sampling
from ledgerlm.errors import EngineError

_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")


class ModelOptions(Conf):
    """Settings of an engine that loads a model itself."""

    model: str = Field(description="folder of an instruct model, or its name on the model hub")
    revision: str | None = Field(None, description="commit of a hub model; pin it, for a name alone may move")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="precision of the weights; auto: as they are stored"
    )
    sampling: Sampling = Field(Sampling(), description="temperature, top_p, max_tokens")
    chat: dict[str, Any] = Field(
        default_factory=dict, description="switches of the model's chat template, such as enable_thinking: false"
    )


class ChatTokenizer:
    """The model's tokenizer and chat template.

    Raises:
        EngineError: when the model has no chat template.
    """

    def __init__(self, options: ModelOptions) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(
            options.model, revision=options.revision, trust_remote_code=False, split_special_tokens=False
        )
        self._chat = options.chat
        if not self.tokenizer.chat_template:
            raise EngineError(f"{options.model} has no chat template; choose a model that is tuned for instructions")

    def ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Tokens of a chat up to where the model begins to answer.

        Control tokens are those of the template alone: what looks like one in a message is encoded as plain text.
        """
        ids: list[int] = self.tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            add_generation_prompt=True,
            sanitize_control_tokens=True,
            return_dict=False,
            **self._chat,
        )
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens; special tokens stay visible, so that the check sees them."""
        decoded: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return decoded


def engine_mark(name: str, version: int, options: ModelOptions) -> str:
    """An engine's id: its name and version, the model, and a hash of the model's files and all that shapes its texts.

    A hub model counts by its name and revision.
    """
    folder = Path(options.model)
    hashed = hashlib.sha256(options.model_dump_json(include={"dtype", "sampling", "chat"}).encode())
    if folder.is_dir():
        for file in sorted(path for path in folder.iterdir() if path.suffix in _MODEL_FILES):
            with file.open("rb") as content:
                hashed.update(hashlib.file_digest(content, "sha256").digest())
    else:
        hashed.update(f"{options.model}@{options.revision}".encode())
    return f"{name}-{version}-{folder.name}-{hashed.hexdigest()[:8]}"
