"""Metric `multiple_choice`: the letter, A to J, that an answer chooses (docs/metrics.md).

The order is that of MMLU-Pro's and lm-evaluation-harness' graders: an explicit phrase, then a
marked letter, then a letter that stands alone.
"""

from __future__ import annotations

import re

from metrics.marks import MARKS, before_next_question, marked_parts
from runtime.errors import MetricError

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

# Another letter beside the one before: "B and C", "(D) or (E)", "A, B", not "B, as A is too small"
BESIDE = re.compile(
    r"""[)\]]?\s*(?:[,/;&]\s*(?:(?:and|or)\s+)?|(?:and|or)\s+)(?:(?i:option|choice)\s+)?
    (?:[(\[][A-J][)\]](?!\s+(?:is|was)\b)|[A-J](?=\s*(?:[,.;)/&(]|$|(?:and|or)\b)))""",
    re.VERBOSE | re.MULTILINE,
)
GRADERS_PHRASE = re.compile(r"answer is [(]?([A-J])")
# A list goes on after the letter that opens its first item: "C. 5 cm\nH. 6 cm", "a) 5 cm, b) 6 cm"
IN_LINE = re.compile(r"[.)][^\n]*[\s;,][A-Ja-j]\)")
LIST_GOES_ON = re.compile(rf"{IN_LINE.pattern}|[.)](?s:.)*?\n\s*[(\[]?[A-Ja-j][.)]\s")
OTHER_MARKS = [mark for mark in MARKS if mark[0] != "phrase"]
# What was weighed before is withdrawn
NOTHING = re.compile(
    r"""\banswer\s*(?:is|:)[^\w\n]*(?:none\b|there\s+is\s+no\b)
    |\bclosest\b.{0,250}?\b(?:it|this|that)(?:\soption)?(?:'s|\sis)(?:\slikely\sthat\sthis\sis)?
    (?:\s(?:still|also))?\s(?:not\s(?:(?:the|a)\s)?(?:correct|right)|incorrect|wrong)\b""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)

# A line that a letter opens, or is all of: "(B)", "B.", "Option B:"
OPENING = re.compile(r"^\s*(?i:option\s+|choice\s+)?[(\[]?([A-J])(?:[.:)\]\u3002]|\s*$)")
# Not part of a word, a formula, a quantity or a table
ALONE = re.compile(
    r"(?<![\w'^+=|/\\\u00b0(\[-])"
    r"(?:(?P<bracket>[(\[])|(?<!\d\s)(?<![+*/=\u00d7-]\s))(?P<letter>[A-J])(?(bracket)[)\]])"
    r"(?![\w^/\\*(\[]|(?<![)\]])(?:['+=|-]|\s*[=+^|*/]))"
)
SAID = re.compile(  # what stands before a letter that is chosen, where a line is cut off
    r"(?:\b(?:is|are|was|be|its|as|options?|choice|answers?|letter|statement"
    r"|choose|select|pick|think)"
    r"|[:>\u2192])\s*[(\[]?$",
    re.IGNORECASE,
)
AFTER_IDEOGRAPH = re.compile(r"(?<=[\u3040-\u9fff])(?=[A-J])")
ENDS_LINE = re.compile(r"[\s.!?)\]*\"'\u3002]*$")
SENTENCE_END = re.compile(r"[.!?\u3002]\s+(?=\S)")
JOINED = re.compile(  # "(A), (C) and", "option A for one and option"
    r"[A-J][)\]]?\s*(?:,|/|&|and|or)[\s,]*(?:and|or)?\s*[(\[]?$"
    r"|\b(?i:option)\s+[(\[]?[A-J]\b[^.]*\b(?:and|or)\s+(?i:option)\s+[(\[]?$"
)
FINISHED = re.compile(r"[.!?)\]*\"'\u3002]\s*$")

MATHEMATICS = re.compile(  # the last one may be cut off
    r"\$[^$]*\$|\\\(.*?(?:\\\)|\Z)|\\\[.*?(?:\\\]|\Z)|\$[^$]*\\[A-Za-z][^$]*\Z", re.DOTALL
)
MARKUP = re.compile(r"\\(?:text|mathrm|mathbf|textbf)|\\(?=[()\[\]])|<[|/]?\w+\|?>|[*`${}\"']")


def choice_in(answer: str) -> str | None:
    """The letter an answer chooses, in upper case; None where it chooses none.

    Where "the answer is" stands more than once, the first counts, as it does for the graders.
    """
    text = before_next_question(answer)
    for pattern, which in COMPILED:
        found = _letters_after(pattern, text)
        if which == "first":
            text = NOTHING.split(text)[-1]
        if found and (which != "only" or len(set(found)) == 1):
            return found[0 if which == "first" else -1]
    says_answer = COMPILED[0][0].search(_without_markup(text)) is not None
    for part in marked_parts(text, OTHER_MARKS if says_answer else MARKS):
        letter = _opening_letter(MARKUP.sub("", part))
        if letter is not None:
            return letter
    return _letter_of_lines(text)


def _letters_after(phrase: re.Pattern[str], text: str) -> list[str]:
    """The letters that a phrase chooses, but for those that are one of several. Of several after
    the phrase that the graders look for the first counts, as it does for them.
    """
    plain = _without_markup(text)
    seen_by_graders = set(GRADERS_PHRASE.findall(text))
    letters = []
    for match in phrase.finditer(plain):
        group = 1 if match[1] else 2
        is_in_list = "\n" in match[0] and LIST_GOES_ON.match(plain, match.end(group))
        is_one_of_several = is_in_list or BESIDE.match(plain, match.end(group))
        if match[group] in seen_by_graders or not is_one_of_several:
            letters.append(match[group].upper())
    return letters


def _without_markup(text: str) -> str:
    """The text as its phrases are looked for; a box says what the answer is."""
    return MARKUP.sub("", text.replace(r"\boxed", "answer is "))


def _opening_letter(line: str) -> str | None:
    """The letter that opens a line and stands for one choice."""
    match = OPENING.match(line)
    if match is None or BESIDE.match(line, match.end(1)) or IN_LINE.match(line, match.end(1)):
        return None
    return match[1]


def _letter_of_lines(text: str) -> str | None:
    """The letter that opens the last or the first line, else the last one alone in the last line.

    Lines that open with different letters list the options: none of them is chosen so.
    """
    prose = MARKUP.sub("", MATHEMATICS.sub(" 0 ", text))  # "0 C": a formula with a unit
    lines = [line.strip() for line in prose.splitlines() if line.strip()]
    opened = [letter for letter in map(_opening_letter, lines) if letter]
    is_list = len(set(opened)) > 1
    for line in [*lines[-1:], *lines[:1]]:
        letter = _opening_letter(line)
        is_whole = re.fullmatch(r"\W*[A-J]\W*", line) is not None
        if letter and (not is_list or (is_whole and not _are_in_order(opened))):
            return letter
    if not lines:
        return None
    return _lone_letter(OPENING.sub("", lines[-1], count=1) if is_list else lines[-1])


def _are_in_order(letters: list[str]) -> bool:
    """Whether the last of the letters follows the one before in the alphabet, as in a list."""
    return ord(letters[-1]) - ord(letters[-2]) == 1


def _lone_letter(line: str) -> str | None:
    """The letter that stands alone in a line: the last one in brackets, or one without in the last
    sentence, if that comes later. In a line that is cut off only one that its last sentence says
    to be the answer.

    None where several are named together.
    """
    line = AFTER_IDEOGRAPH.sub(" ", line)
    last_sentence = max((match.end() for match in SENTENCE_END.finditer(line)), default=0)
    is_finished = FINISHED.search(line) is not None
    for match in reversed(list(ALONE.finditer(line))):
        is_last = match.start() >= last_sentence
        ends_line = ENDS_LINE.match(line, match.end()) is not None
        is_no_word = match["bracket"] or ends_line or match["letter"] not in "AI"
        is_said = is_last and SAID.search(line, 0, match.start()) is not None
        is_alone = match["bracket"] or ends_line or (is_last and _is_no_symbol(match, line))
        if is_last and not match["bracket"] and len(_bare_letters(line, last_sentence)) > 2:
            return None
        if is_no_word and (is_said or (is_finished and is_alone)):
            after = BESIDE.match(line, match.end("letter"))
            return None if after or JOINED.search(line, 0, match.start()) else match["letter"]
    return None


def _bare_letters(line: str, start: int) -> set[str]:
    """The letters without brackets from a place on."""
    return {match["letter"] for match in ALONE.finditer(line, start) if not match["bracket"]}


def _is_no_symbol(match: re.Match[str], line: str) -> bool:
    """Whether a letter without brackets is no variable of a formula and closes no brackets."""
    is_variable = re.search(rf"\b{match['letter']}\s*[=^*/+]", line) is not None
    return not is_variable and line[match.end() : match.end() + 1] not in (")", "]")


def multiple_choice(prediction: str, reference: str) -> float:
    """1 when the letter chosen is the reference's.

    Raises MetricError for a reference without one.
    """
    wanted = choice_in(reference.upper())
    if wanted is None:
        raise MetricError(f"multiple_choice: no letter A to J in the reference {reference!r}")
    return float(choice_in(prediction) == wanted)
