"""Special and chat tokens as text: what they look like, and how they lose their force."""

from __future__ import annotations

import re

SPECIAL_TOKENS = re.compile(
    r"<[|\uFF5C][^<>\n]{0,60}[|\uFF5C]>|</?s>|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]"
    r"|<</?SYS>>|<(?:bos|eos|pad|unk|mask)>|\[(?:PAD|CLS|SEP|MASK|UNK)\]"
    r"|</?(?:start_of_turn|end_of_turn|think|tool_call|tool_response)>",
    re.IGNORECASE,
)
_BRACKETS = re.compile(r"[<>\[\]|\uFF5C]+")


def defused(text: str) -> str:
    """The text with special tokens of the usual model families in round brackets: `<|im_start|>` as `(im_start)`.

    Serialised documents hold none; this is for texts that come from elsewhere, and for servers whose tokenizer is out
    of reach.
    """
    return SPECIAL_TOKENS.sub(lambda token: f"({_BRACKETS.sub('', token.group())})", text)
