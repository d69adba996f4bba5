"""The `transformers` engine: any causal language model with a chat template, on CPU or GPU.

Sampling is ours, so that a client's text does not hang on its neighbours in the batch: every rewrite draws one uniform
number a token from a generator of its own, seeded by the request, and takes the token at which the cumulated
probability passes that number. What is left of the neighbours is rounding: another batch pads differently and sums in
another order, so that two nearly equal probabilities may change places. With `rows: 1` nothing is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.enrich.engine import Generation, Request
from ledgerlm.enrich.engines.chat import ChatTokenizer, ModelOptions, engine_mark

if TYPE_CHECKING:
    import torch

VERSION = 1


class TransformersOptions(ModelOptions):
    """Settings of the transformers engine."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a GPU where there is one")
    rows: int = Field(8, ge=1, description="rewrites that grow side by side; bounds the memory of keys and values")


class TransformersEngine:
    """Loads safetensors weights, never code, and generates batch by batch with padding on the left."""

    Options: ClassVar[type[Conf]] = TransformersOptions
    uses_prompt: ClassVar[bool] = True

    def __init__(self, options: TransformersOptions) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        self._options = options
        self._chat = ChatTokenizer(options)
        device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
        self._model = AutoModelForCausalLM.from_pretrained(
            options.model,
            revision=options.revision,
            dtype=options.dtype,
            use_safetensors=True,
            trust_remote_code=False,
        ).to(device)
        self._model.eval()
        self._context = int(self._model.config.get_text_config().max_position_embeddings)
        self._ends = _end_tokens(self._model.generation_config.eos_token_id, self._chat.tokenizer.eos_token_id)
        pad = self._chat.tokenizer.pad_token_id
        self._pad = self._ends[0] if pad is None else pad
        # The model's own sampling settings would come on top of ours.
        self._model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self._ends, pad_token_id=self._pad, use_cache=True
        )
        self._mark = engine_mark("transformers", VERSION, options)

    @property
    def engine_id(self) -> str:
        """Name, version, model and a hash of weights and settings."""
        return self._mark

    def generate(self, requests: Sequence[Request]) -> Sequence[Generation]:
        """Rewrites each request's source; prompts of similar length go together."""
        prompts = [self._chat.ids(request.messages) for request in requests]
        answers = {place: self._too_long(prompt) for place, prompt in enumerate(prompts) if self._room(prompt) < 1}
        order = sorted((place for place in range(len(prompts)) if place not in answers), key=lambda p: len(prompts[p]))
        for first in range(0, len(order), self._options.rows):
            places = order[first : first + self._options.rows]
            seeds = [requests[place].seed for place in places]
            answers |= zip(places, self._answers([prompts[place] for place in places], seeds), strict=True)
        return [answers[place] for place in range(len(requests))]

    def _room(self, prompt: Sequence[int]) -> int:
        """Tokens that an answer may have."""
        return min(self._options.sampling.max_tokens, self._context - len(prompt))

    def _too_long(self, prompt: Sequence[int]) -> Generation:
        detail = f"the prompt has {len(prompt)} tokens, the model reads {self._context}; lower max_events"
        return Generation(text="", finish_reason="error", detail=detail, input_tokens=len(prompt))

    def _answers(self, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Generation]:
        import torch

        width, steps = max(map(len, prompts)), max(map(self._room, prompts))
        ids = torch.tensor([[self._pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            grown = self._model.generate(
                ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                max_new_tokens=steps,
                logits_processor=self._processors(seeds, steps),
            )
        return [self._generation(prompt, row[width:].tolist()) for prompt, row in zip(prompts, grown, strict=True)]

    def _processors(self, seeds: Sequence[int], steps: int) -> Any:
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        sampling = self._options.sampling
        if sampling.temperature == 0:
            return LogitsProcessorList()
        warped = [TemperatureLogitsWarper(sampling.temperature), TopPLogitsWarper(sampling.top_p)]
        return LogitsProcessorList([*warped, RowDraws(seeds, steps)])

    def _generation(self, prompt: Sequence[int], grown: list[int]) -> Generation:
        own = grown[: self._room(prompt)]
        end = next((place for place, token in enumerate(own) if token in self._ends), None)
        return Generation(
            text=self._chat.text(own[:end]),
            finish_reason="length" if end is None else "stop",
            input_tokens=len(prompt),
            output_tokens=len(own) if end is None else end + 1,
        )


class RowDraws:
    """Chooses a row's next token by the row's own random numbers, and leaves it as the only one that is possible.

    Args:
        seeds: one a row.
        steps: tokens that may be drawn.
    """

    def __init__(self, seeds: Sequence[int], steps: int) -> None:
        import torch

        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._numbers = torch.stack(
            [torch.rand(steps, dtype=torch.float64, generator=generator) for generator in generators]
        )
        self._step = 0

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] with one token a row above minus infinity."""
        import torch

        reached = scores.double().softmax(-1).cumsum(-1)
        marks = self._numbers[:, self._step : self._step + 1].to(scores.device) * reached[:, -1:]
        self._step += 1
        drawn = torch.searchsorted(reached, marks, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter(1, drawn, 0.0)


def _end_tokens(configured: int | list[int] | None, fallback: int) -> list[int]:
    if configured is None:
        return [fallback]
    return configured if isinstance(configured, list) else [configured]
