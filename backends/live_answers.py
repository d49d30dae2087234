"""Answers while they grow: what of an unfinished completion may be shown already."""

from __future__ import annotations

import re
from collections.abc import Sequence

from backends.answer_store import Answer
from backends.dispatch import OnText
from config import ExpertConfig
from prompts import answer_of, before_stop


class LiveAnswers:
    """Says who may be told the answers of which expert while they grow.

    A thinking part that a server's template opens looks like an answer until it closes. So nobody
    is told before an expert has shown, by a whole completion, that it is not of this kind.
    """

    def __init__(self) -> None:
        # Name of an expert -> whether it has closed a thinking part that it had not opened
        self._closes_unopened: dict[str, bool] = {}

    def note(self, config: ExpertConfig, prompt: str, answer: Answer) -> None:
        """Learn from a whole completion how its expert thinks. One that was cut off may hide it."""
        is_unopened = closes_unopened(answer.text, config.thinking_tags, prompt)
        is_whole = bool(answer.text) and answer.finish != "length"
        if is_unopened or is_whole:
            was_unopened = self._closes_unopened.get(config.name, False)
            self._closes_unopened[config.name] = was_unopened or is_unopened

    def listener(self, config: ExpertConfig, prompt: str, on_text: OnText | None) -> OnText | None:
        """Who is told a completion as it grows, so that `on_text` is told its answer."""
        is_known = not config.thinking_tags or self._closes_unopened.get(config.name) is False
        if on_text is None or not is_known:
            return None
        stop = getattr(config, "stop", ())

        def pass_on(text: str) -> None:
            on_text(answer_so_far(text, stop, config.thinking_tags, prompt))

        return pass_on


def answer_so_far(text: str, stop: Sequence[str], tags: Sequence[str], prompt: str) -> str:
    """What the answer begins with whose completion has grown to `text`.

    The end is held back where it could become a tag, a stop string or another character.
    """
    said = answer_of(before_stop(text, stop), tags, prompt)
    for tag in tags:
        said = without_start_of(f"<{tag}>", said)
        said = without_start_of(f"</{tag}>", said)
    for end in stop:
        said = without_start_of(end, said)
    return said.rstrip("\ufffd").rstrip()


def without_start_of(sign: str, text: str) -> str:
    """A text without an end that `sign`, in any case of letters, could begin with."""
    for length in range(min(len(sign) - 1, len(text)), 0, -1):
        if sign[:length].lower() == text[-length:].lower():
            return text[:-length]
    return text


def closes_unopened(text: str, tags: Sequence[str], prompt: str) -> bool:
    """Whether a completion closes a thinking part that neither it nor its prompt has opened."""
    if not tags or "</" not in text:
        return False
    names = "|".join(map(re.escape, tags))
    first = re.search(f"(?i)<(/?)(?:{names})>", text)
    if first is None or not first.group(1):
        return False
    return re.search(f"(?i)<(?:{names})>\\s*$", prompt) is None
