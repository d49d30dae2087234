"""Metric `multiple_choice`: the letter, A to J, that an answer chooses (docs/metrics.md).

The order is that of MMLU-Pro's and lm-evaluation-harness' graders: an explicit phrase, then a
marked letter, then a letter that stands alone.
"""

from __future__ import annotations

import re

from metrics.marks import before_next_question, marked_parts
from runtime.errors import MetricError

SEVERAL = r"(?!\s*[)\]]?\s*(?:,|&|and)\s*(?:and\s*)?[(\[]?[A-J]\b)"  # "B and C" opens no line
# A capital letter on its own, or a small one that a mark closes: not the words "a" and "I"
LETTER = r"[(\[]?(?:([A-HJ])(?![A-Za-z0-9_(\[^]|\s*=)|([A-Ja-j])(?=[.,:)\]\u3002]|\s*$))"
IS = r"\s*(?:is\s*:?|:)\s*"
MUST_BE = r"\s+(?:is|would\s+be|should\s+be|must\s+be)\s*:?\s*"
NAMED = r"(?:(?:the\s+)?(?:option|choice|letter)\s+)?"

# (pattern, which of its letters counts, an example); small letters are as good as capital ones
PHRASES = (
    (rf"(?i:\banswer{IS}{NAMED}){LETTER}", "first", "The answer is (B)."),
    (
        rf"(?:\u7b54\u6848|\u7b54\u3048)\s*[\u662f\u4e3a\u70ba\u306f:\uff1a]*\s*{LETTER}",
        "last",
        "\u7b54\u6848\u662fB",
    ),
    (
        rf"(?i:\b(?:answer|choice|option)(?:{MUST_BE}|[ \t]*:[ \t]*){NAMED}){LETTER}",
        "last",
        "The best choice would be (D).",
    ),
    (
        r"(?<![A-Za-z0-9_])[(\[]?([A-J])()[)\]]?\s+"
        r"(?i:is\s+(?:the\s+)?(?:most\s+)?(?:correct|right|best)\b|is\s+the\s+(?:answer|one)\b)",
        "only",  # several say what is right of each option
        "B is correct.",
    ),
)
COMPILED = tuple((re.compile(pattern, re.MULTILINE), which) for pattern, which, _ in PHRASES)

# A line that a letter opens, or is all of: "(B)", "B.", "Option B:"
OPENING = re.compile(r"^\s*(?i:option\s+|choice\s+)?[(\[]?([A-J])(?:[.:)\]\u3002]|\s*$)" + SEVERAL)
# Not part of a word, a formula, a quantity or a table
ALONE = re.compile(
    r"(?<![\w'^+=|/\\°-])(?<!\d\s)"
    r"(?P<bracket>[(\[])?(?P<letter>[A-J])"
    r"(?![\w'^+=|/\\(\[-]|\s*[=+^|])[)\]]?"
)
AFTER_IDEOGRAPH = re.compile(r"(?<=[\u3040-\u9fff])(?=[A-J])")
ENDS_LINE = re.compile(r"[\s.!?)\]*\"'\u3002]*$")
SENTENCE_END = re.compile(r"[.!?\u3002]\s+(?=\S)")
JOINED = re.compile(r"[A-J][)\]]?\s*(?:,|/|&|and|or)[\s,]*(?:and|or)?\s*[(\[]?$")  # "(A), (C) and"
FINISHED = re.compile(r"[.!?)\]*\"'\u3002]\s*$")

MATHEMATICS = re.compile(r"\$[^$]*\$|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
MARKUP = re.compile(r"\\(?:text|mathrm|mathbf|textbf)|\\(?=[()\[\]])|[*`${}\"']")


def choice_in(answer: str) -> str | None:
    """The letter an answer chooses, in upper case; None where it chooses none.

    Of several after "the answer is" the first counts, as it does for the graders.
    """
    text = before_next_question(answer)
    plain = MARKUP.sub("", text.replace(r"\boxed", "answer is "))
    for pattern, which in COMPILED:
        found = ["".join(groups).upper() for groups in pattern.findall(plain)]
        if found and (which != "only" or len(set(found)) == 1):
            return found[0 if which == "first" else -1]
    for part in marked_parts(text):
        match = OPENING.match(MARKUP.sub("", part))
        if match:
            return match[1]
    return _letter_of_lines(text)


def _letter_of_lines(text: str) -> str | None:
    """The letter that opens the last or the first line, else the last one alone in the last line.

    Lines that open with different letters list the options: none of them is chosen so.
    """
    prose = MARKUP.sub("", MATHEMATICS.sub(" ", text))
    lines = [line.strip() for line in prose.splitlines() if line.strip()]
    opened = [match[1] for match in map(OPENING.match, lines) if match]
    is_list = len(set(opened)) > 1
    for line in [*lines[-1:], *lines[:1]]:
        match = OPENING.match(line)
        if match and (not is_list or match[0] == line):
            return match[1]
    if not lines:
        return None
    return _lone_letter(OPENING.sub("", lines[-1], count=1) if is_list else lines[-1])


def _lone_letter(line: str) -> str | None:
    """The letter that stands alone in a line: the last one in brackets, or one without in the last
    sentence, if that comes later.

    None where several are named together, and where the line is cut off after a bare letter.
    """
    line = AFTER_IDEOGRAPH.sub(" ", line)
    last_sentence = max((match.end() for match in SENTENCE_END.finditer(line)), default=0)
    is_finished = FINISHED.search(line) is not None
    for match in reversed(list(ALONE.finditer(line))):
        letter, ends_line = match["letter"], ENDS_LINE.match(line, match.end()) is not None
        is_word = letter in "AI" and not ends_line  # the article, the pronoun
        counts = is_finished and match.start() >= last_sentence and not is_word
        if match["bracket"] or ends_line or counts:
            return None if JOINED.search(line, 0, match.start()) else letter
    return None


def multiple_choice(prediction: str, reference: str) -> float:
    """1 when the letter chosen is the reference's.

    Raises MetricError for a reference without one.
    """
    wanted = choice_in(reference.upper())
    if wanted is None:
        raise MetricError(f"multiple_choice: no letter A to J in the reference {reference!r}")
    return float(choice_in(prediction) == wanted)
