"""What an answer itself marks as its result: a box, "####", "the answer is", a bold line.

A mark goes before whatever merely comes last. Marks count in the order of `MARKS`; of one kind the
last counts.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Sequence

MOST_MARKS = 50  # of a kind, the last ones: an answer may repeat itself thousands of times
LONGEST_BOX = 2_000  # characters; a box that is not closed by then ends with its line

Mark = tuple[str, re.Pattern[str], str]

ANSWER_IS = (
    r"(?i:\banswer\b(?:\s+(?:to|for|of)\b[^.:\n]{0,80}?)?"  # "the answer to the question is"
    r"(?:\s+(?:is|would\s+be|should\s+be|must\s+be)\b\s*:?|\s*:|\s*=))"
)

# (name, pattern of the mark and of what it marks as group 1, an example)
MARKS: tuple[Mark, ...] = (
    ("box", re.compile(r"(?:\\|\b)(?:boxed|fbox)\s*\{"), r"\boxed{72}"),
    (
        "hashes",  # not a heading such as "#### Step 2" or "#### 2. Add"
        re.compile(r"####\s*(?!\d+[.)]\s)((?:[^\sA-Za-z#]|[A-J]\s*$)[^\n]*)", re.MULTILINE),
        "#### 72",
    ),
    (
        "phrase",
        re.compile(rf"{ANSWER_IS}[\s*_`]*(\S[^\n]*)"),
        "The answer is 72, as 8 x 9 shows",
    ),
    (
        "bold line",  # not a heading such as "**2. Add**" or "**Step 2:**"
        re.compile(r"^\s*\*\*(?!\d+[.)]\s|(?i:step|part|case)\b)([^*\n]+)(?<!:)\*\*[\s.]*$", re.M),
        "**72**",
    ),
    ("bold in the last line", re.compile(r"\*\*([^*\n]+)\*\*(?=[^\n]*\s*\Z)"), "It is **72** km."),
)

STRICT_MARKS = MARKS[:-1]  # without what may only stress a word

# A base model goes on with a question of its own making; its answer has ended there.
NEXT_QUESTION = re.compile(r"(?<=\S)\s*\n\s*(?:\*\*)?(?:Question|Problem|Q|Human|User)\s*\d*\s*:")


def before_next_question(text: str) -> str:
    """The text up to where it goes on with another question."""
    return NEXT_QUESTION.split(text, maxsplit=1)[0]


def last_line(text: str) -> str:
    """The last line that is not blank."""
    return text.strip().rpartition("\n")[2]


def marked_parts(text: str, marks: Sequence[Mark] = MARKS) -> Iterator[str]:
    """What each kind of mark marks, the strongest kind first; of one kind the last mark first."""
    for name, pattern, _ in marks:
        last = collections.deque(pattern.finditer(text), maxlen=MOST_MARKS)
        for match in reversed(last):
            part = _in_braces(text, match.end()) if name == "box" else match[1]
            if part.strip():
                yield part.strip()


def _in_braces(text: str, start: int) -> str:
    """From `start`, inside a brace, to the brace that closes it; to the line's end where none
    does.
    """
    depth = 1
    for position in range(start, min(start + LONGEST_BOX, len(text))):
        character = text[position]
        if text[position - 1] == "\\" and character in "{}":
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start:position]
    return text[start:].partition("\n")[0]
