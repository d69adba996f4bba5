"""What language models put around the text that they were asked for, taken away before the text is judged."""

from __future__ import annotations

import re

_REASONING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[\w+.-]*[ \t]*\n?", re.MULTILINE)
_PREAMBLE = re.compile(
    r"\A\s*(?:here(?:'s|\u2019s| is| are)|sure|certainly|of course|okay|ok|below is|below are|absolutely)\b"
    r"[^\n]{0,200}[:.!][ \t*]*\n+(?=\s*\S)",
    re.IGNORECASE,
)
_COURTESY = re.compile(
    r"\n\s*(?:(?:please )?let me know|i hope|feel free|if you (?:need|want|would like)|would you like)\b[^\n]*\s*\Z",
    re.IGNORECASE,
)


def tidied(text: str) -> str:
    """A model's answer without its reasoning, code fences, opening phrase and closing courtesy.

    An unclosed reasoning block stays: its text is no rewrite, and the check refuses it for the token.
    """
    text = _REASONING.sub("", text)
    text = _PREAMBLE.sub("", text)
    text = _FENCE.sub("", text)
    return _COURTESY.sub("", text).strip()
