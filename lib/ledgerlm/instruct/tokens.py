"""The tokens around a prompt's body: the chat template's own, the instruction, the question, and the answers.

A template's markers may become special tokens; the body, the instruction and the names never do. Each piece is
tokenised alone, in training and in prediction alike, so what stands in a payment text cannot change the pieces
beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from ledgerlm.errors import ConfigError
from ledgerlm.instruct.prompts import PromptConf
from ledgerlm.text.tokenizer import window_start

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# For backbones without a chat template of their own.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] != 'user' %}{{ eos_token }}{% endif %}{% endfor %}"
)
_USER, _ANSWER = "\ue000", "\ue001"  # private use: no template holds them


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt but for its body; cheap to send to workers.

    Attributes:
        tokenizer: the tokenizer as JSON.
        head: ids before the body, the same in every prompt.
        tail: ids between body and answer.
        answers: for each class the ids of its name and, behind a question, of the token that ends an answer.
        limit: most ids of a body, so that the longest answer fits the context.
        preface_lines: lines of a body that are kept when the oldest events must go.
        closed: whether the answers alone compete, see `ledgerlm.backbone.choices`.
    """

    tokenizer: str
    head: tuple[int, ...]
    tail: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    limit: int
    preface_lines: int
    closed: bool = False


def prompt_tokens(
    tokenizer: PreTrainedTokenizerFast,
    prompt: PromptConf,
    names: Sequence[str],
    *,
    context: int,
    closed: bool = False,
) -> PromptTokens:
    """Tokenises all that does not depend on the client.

    Args:
        tokenizer: of the backbone; its chat template is used, or else `PLAIN_TEMPLATE`.
        prompt: instruction and question.
        names: of the classes, in the order of the probabilities; the instruction should list them.
        context: most tokens of a prompt with its answer.
        closed: whether the answers alone compete.

    Raises:
        ConfigError: the template loses the text, two names have the same tokens, or the context is too small.
    """
    messages = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}]
    template = None if tokenizer.chat_template else PLAIN_TEMPLATE
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template))
    if text.count(_USER) != 1 or text.count(_ANSWER) != 1:
        raise ConfigError(f"the chat template of {tokenizer.name_or_path} does not repeat each message once, as it is")
    before, rest = text.split(_USER)
    between, after = rest.split(_ANSWER)
    content = tokenizer.backend_tokenizer.to_str()
    markers, plain = Tokenizer.from_str(content), plain_tokenizer(content)

    def ids(text: str, backend: Tokenizer = plain) -> tuple[int, ...]:
        return tuple(backend.encode(text, add_special_tokens=False).ids)

    if unknown := set(prompt.answers) - set(names):
        raise ConfigError(f"prompt.answers: no class {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    words = [prompt.answers.get(name, name) for name in names]
    tail: tuple[int, ...] = ()
    if prompt.question is None:
        answers = _next_values(words, ids)
    else:
        end = ids(after, markers)[:1] or (_end(tokenizer),)
        question = f"\n{prompt.question}"
        # Without a marker between them the answer goes on the question's text, and is cut as its continuation.
        before_answer = () if between else ids(question)
        joined = [ids(one) if between else ids(question + one) for one in words]
        if any(one[: len(before_answer)] != before_answer for one in joined):
            raise ConfigError(f"the answers {words} merge with the end of prompt.question {prompt.question!r}")
        tail, answers = ids(question) + ids(between, markers), tuple(one[len(before_answer) :] + end for one in joined)
    if any(one == other[: len(one)] for one, other in permutations(answers, 2)):
        raise ConfigError(f"one of the answers {words} is the beginning of another in tokens; set prompt.answers")
    head = ids(before, markers) + (() if prompt.instruction is None else ids(f"{prompt.instruction}\n"))
    limit = context - len(head) - len(tail) - max(map(len, answers))
    if limit < 16:
        raise ConfigError(
            f"instruction, question and answers leave {limit} of {context} tokens to a client's events; "
            "shorten them, or raise instruct's context"
        )
    first = head or (window_start(tokenizer),)
    return PromptTokens(content, first, tail, answers, limit, prompt.preface_lines, closed)


def plain_tokenizer(content: str) -> Tokenizer:
    """A tokenizer from its JSON that no text can make special tokens with, and that cuts and pads nothing."""
    backend = Tokenizer.from_str(content)
    backend.encode_special_tokens = True  # not part of the JSON
    backend.no_truncation()
    backend.no_padding()
    return backend


def encode_bodies(texts: Sequence[str], backend: Tokenizer, tokens: PromptTokens) -> list[list[int]]:
    """Ids of bodies; where they are too many, the oldest events go, whole ones as long as there are two."""
    encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    return [
        encoding.ids if len(encoding.ids) <= tokens.limit else _shortened(text, backend, tokens)
        for text, encoding in zip(texts, encodings, strict=True)
    ]


def _shortened(text: str, backend: Tokenizer, tokens: PromptTokens) -> list[int]:
    lines = text.split("\n")
    preface, events = lines[: tokens.preface_lines], lines[tokens.preface_lines :]
    while True:
        ids: list[int] = backend.encode("\n".join([*preface, *events]), add_special_tokens=False).ids
        if len(ids) <= tokens.limit or len(events) < 2:
            return ids[-tokens.limit :]
        events = events[max(1, math.floor(len(events) * (1 - tokens.limit / len(ids)))) :]


def _next_values(words: Sequence[str], ids: Callable[[str], tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Answers as the first value of a compact line: cut as in a document, where `|` follows."""
    bar = ids("|")
    joined = [ids(f"\n{word}|") for word in words]
    if any(one[-len(bar) :] != bar for one in joined):
        raise ConfigError("prompt.question: null needs a tokenizer that cuts before '|'; put a question")
    return tuple(one[: -len(bar)] for one in joined)


def _end(tokenizer: PreTrainedTokenizerFast) -> int:
    end = tokenizer.eos_token_id
    return end if isinstance(end, int) else window_start(tokenizer)
