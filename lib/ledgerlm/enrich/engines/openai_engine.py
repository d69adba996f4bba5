"""The `openai` engine: an OpenAI-compatible server that the user runs or rents. Its client is the extra `endpoint`.

Histories leave this machine: choose a server that may see them. The key comes from an environment variable, is in no
configuration and in no message. The client's own retries and timeouts bridge short failures; when they do not suffice,
the stage stops, and the same command goes on at the shards that are unfinished.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.enrich.engine import FinishReason, Generation, Request, Sampling
from ledgerlm.errors import EngineError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

VERSION = 1
_SEEDS = 2**31  # servers differ in the seeds that they take
_DETAIL = 300  # characters of a server's message that are kept
_ROW_FAULTS = (400, 413, 422)  # statuses that say that this request cannot be served; others concern the server


class OpenAiOptions(Conf):
    """Settings of the openai engine."""

    base_url: str = Field(description="address of the server up to /v1", pattern=r"^https?://")
    model: str = Field(description="name of the model on that server")
    key_variable: str = Field("LEDGERLM_ENDPOINT_KEY", description="environment variable with the key; may be unset")
    sampling: Sampling = Field(Sampling(), description="temperature, top_p, max_tokens")
    chat: dict[str, Any] = Field(
        default_factory=dict, description="switches of the chat template, for servers that take chat_template_kwargs"
    )
    concurrency: int = Field(8, ge=1, le=512, description="requests of one worker that are under way at once")
    timeout_s: float = Field(300.0, gt=0, description="seconds that one answer may take")
    retries: int = Field(4, ge=0, description="repetitions after a refused connection, a timeout, 429 or 5xx")


class OpenAiEngine:
    """Sends each request as one chat completion."""

    Options: ClassVar[type[Conf]] = OpenAiOptions
    uses_prompt: ClassVar[bool] = True

    def __init__(self, options: OpenAiOptions) -> None:
        try:
            import openai
        except ImportError as error:
            raise EngineError(
                "enrichment engine 'openai' needs the client library: pip install 'ledgerlm[endpoint]'"
            ) from error

        self._options = options
        self._library = openai
        self._client = openai.OpenAI(
            base_url=options.base_url,
            api_key=os.environ.get(options.key_variable) or "none",
            timeout=options.timeout_s,
            max_retries=options.retries,
        )
        self._threads = ThreadPoolExecutor(options.concurrency, thread_name_prefix="endpoint")
        shaped = options.model_dump_json(include={"base_url", "sampling", "chat"})
        self._mark = f"openai-{VERSION}-{options.model}-{hashlib.sha256(shaped.encode()).hexdigest()[:8]}"

    @property
    def engine_id(self) -> str:
        """Name, version, model and a hash of address and settings; which weights answer, only the server knows."""
        return self._mark

    def generate(self, requests: Sequence[Request]) -> Sequence[Generation]:
        """Rewrites each request's source, `concurrency` at once.

        Raises:
            EngineError: when the server refuses the key, cannot be reached, or fails after all retries.
        """
        return list(self._threads.map(self._answer, requests))

    def _answer(self, request: Request) -> Generation:
        try:
            return _generation(self._ask(request))
        except self._library.APIStatusError as error:
            if error.status_code in _ROW_FAULTS:
                return Generation(text="", finish_reason="error", detail=self._without_key(error))
            raise EngineError(self._out_of_order(f"answers with status {error.status_code}")) from None
        except self._library.APIConnectionError as error:
            raise EngineError(self._out_of_order(f"does not answer ({type(error).__name__})")) from None
        except (self._library.APIResponseValidationError, ValueError) as error:
            return _unreadable(f"the server's answer is no JSON of a chat completion ({type(error).__name__})")

    def _ask(self, request: Request) -> ChatCompletion:
        messages: Any = [{"role": role, "content": content} for role, content in request.messages]
        sampling = self._options.sampling
        return self._client.chat.completions.create(
            model=self._options.model,
            messages=messages,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=request.seed % _SEEDS,
            extra_body={"chat_template_kwargs": self._options.chat} if self._options.chat else None,
        )

    def _out_of_order(self, what: str) -> str:
        # Neither the server's own words nor the chained error: either may repeat the key.
        return (
            f"{self._options.base_url} {what} for model '{self._options.model}' after {self._options.retries} retries; "
            f"look at the server, at base_url and model, and at the key in ${self._options.key_variable}"
        )

    def _without_key(self, error: Exception) -> str:
        key = os.environ.get(self._options.key_variable)
        text = str(error)
        return (text.replace(key, "***") if key else text)[:_DETAIL]


def _generation(answer: ChatCompletion) -> Generation:
    # A server, or a gateway before it, may answer 200 with a page of HTML (which the client hands over as text), with
    # an error object, or with nothing chosen: this document has no rewrite then, and the others go on.
    choices: list[Any] = getattr(answer, "choices", None) or []
    message = getattr(choices[0], "message", None) if choices else None
    if message is None:
        return _unreadable(f"the server's answer holds no choice: {answer!s:.{_DETAIL}}")
    known: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
    finish, usage = known.get(choices[0].finish_reason, "error"), answer.usage
    return Generation(
        text=message.content or "",
        finish_reason=finish,
        detail="" if finish != "error" else f"the server ended the text with {choices[0].finish_reason!r}",
        input_tokens=usage.prompt_tokens if usage else 0,
        output_tokens=usage.completion_tokens if usage else 0,
    )


def _unreadable(detail: str) -> Generation:
    return Generation(text="", finish_reason="error", detail=detail)
