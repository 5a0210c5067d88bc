"""Text from data, made harmless."""

from __future__ import annotations

import html
import re

#: Characters that HTML does not allow, and halves of characters, which no file can hold.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def escaped(text: str) -> str:
    """The text as HTML shows it unchanged, between tags and in quoted attributes."""
    return html.escape(_NOT_TEXT.sub("\ufffd", text), quote=True)
