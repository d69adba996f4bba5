"""The `vllm` engine: vLLM's offline `LLM` class, for GPUs.

vLLM is not among ledgerlm's dependencies and is imported when the engine is built. Its continuous batching keeps a
random generator for each request, so texts hang on their neighbours by rounding alone. Prompts are handed over as
tokens, made by the same chat template code as in the `transformers` engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.enrich.engine import FinishReason, Generation, Request
from ledgerlm.enrich.engines.chat import ChatTokenizer, ModelOptions, engine_mark
from ledgerlm.errors import EngineError

VERSION = 1


class VllmOptions(ModelOptions):
    """Settings of the vllm engine."""

    tensor_parallel: int = Field(1, ge=1, description="GPUs that share the model; pool.gpus is to be the same number")
    memory_share: float = Field(0.9, gt=0, le=1, description="share of a GPU's memory for weights, keys and values")
    context: int | None = Field(None, ge=16, description="tokens of prompt and answer; left out, the model's own")
    prefix_caching: bool = Field(True, description="keep keys and values of the prompt's common beginning")


class VllmEngine:
    """Hands whole batches to vLLM, which schedules them itself; `batch_size` of the stage can be in the hundreds."""

    Options: ClassVar[type[Conf]] = VllmOptions
    uses_prompt: ClassVar[bool] = True

    def __init__(self, options: VllmOptions) -> None:
        try:
            import vllm  # type: ignore[import-not-found]
        except ImportError as error:
            raise EngineError(
                "enrichment engine 'vllm' needs the package vllm on every machine with a GPU; install it there, or "
                "choose engine: transformers"
            ) from error

        self._options = options
        self._library = vllm
        self._chat = ChatTokenizer(options)
        self._model = vllm.LLM(
            model=options.model,
            revision=options.revision,
            tokenizer_revision=options.revision,
            dtype=options.dtype,
            load_format="safetensors",
            trust_remote_code=False,
            tensor_parallel_size=options.tensor_parallel,
            gpu_memory_utilization=options.memory_share,
            max_model_len=options.context,
            enable_prefix_caching=options.prefix_caching,
            seed=0,
        )
        self._mark = engine_mark("vllm", VERSION, options)

    @property
    def engine_id(self) -> str:
        """Name, version, model and a hash of weights and settings."""
        return self._mark

    def generate(self, requests: Sequence[Request]) -> Sequence[Generation]:
        """Rewrites each request's source."""
        prompts = [{"prompt_token_ids": self._chat.ids(request.messages)} for request in requests]
        sampling = [self._sampling(request.seed) for request in requests]
        return [_generation(output) for output in self._model.generate(prompts, sampling, use_tqdm=False)]

    def _sampling(self, seed: int) -> Any:
        chosen = self._options.sampling
        # Special tokens stay visible in the text, so that the check sees them.
        return self._library.SamplingParams(
            temperature=chosen.temperature,
            top_p=chosen.top_p,
            max_tokens=chosen.max_tokens,
            seed=seed,
            skip_special_tokens=False,
        )


def _generation(output: Any) -> Generation:
    made = output.outputs[0]
    finish: FinishReason = made.finish_reason if made.finish_reason in ("stop", "length") else "error"
    return Generation(
        text=made.text,
        finish_reason=finish,
        detail="" if finish != "error" else f"vLLM ended the text with {made.finish_reason!r}",
        input_tokens=len(output.prompt_token_ids),
        output_tokens=len(made.token_ids),
    )
