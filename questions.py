"""Questions: read from JSONL or `datasets`, de-duplicated, split, sampled.

JSONL, one object a line: {"id", "text", "reference", "task"?, "metric"?,
"agreement"?}. `reference` is a string,
a list of accepted strings, or, for reasoning-gym's own scorers, the generated entry. Recorded
answers (backends/recorded.py) are read as questions too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from config import DataConfig, SourceConfig
from prompts import Message
from runtime.errors import DataError, ReferenceSealedError
from runtime.files import read_jsonl, shown, whole_text

Reference = str | list[str] | dict[str, Any]

RUNS_NO_CODE = ("bertscore", "bartscore", "bleurt", "reasoning_gym")  # KIND:NAME a row may name
RECORDED = "recorded"  # the metric of questions whose answers were scored before
SIMILARITY = 0.7  # ROUGE-L F1 from which free texts agree, where nobody has chosen another
RECORDED_FIELDS = {
    "id": "meta.id",
    "text": "question",
    "task": "meta.task",
    "metric": "meta.metric",
    "agreement": "meta.agreement",
    "split": "meta.split",
}


@dataclass(frozen=True)
class Question:
    """A question and how its answers are judged.

    Decisions are made on sealed copies, which hold neither reference nor scores. `context` is what
    was said before in a conversation: experts read it, the agent does not.
    """

    id: str
    text: str
    task: str = "default"
    metric: str = "exact_match"
    _reference: Reference | None = field(default=None, repr=False)
    _scores: dict[str, float] | None = field(default=None, repr=False)
    agreement: str | None = None  # the metric whose reading says which answers agree
    context: tuple[Message, ...] = ()
    similarity: float = SIMILARITY  # from which free texts agree

    @property
    def agreement_metric(self) -> str:
        """`agreement`, or the metric itself where none is given; `exact_match` where answers were
        scored before and so nothing else says how to read them.
        """
        own = "exact_match" if self.metric == RECORDED else self.metric
        return self.agreement or own

    @property
    def reference(self) -> Reference:
        """The reference answer. Raises ReferenceSealedError on a sealed question."""
        if self._reference is None:
            raise ReferenceSealedError(
                f"question {self.id}: the reference is not available where decisions are made"
            )
        return self._reference

    @property
    def scores(self) -> dict[str, float]:
        """Quality in [0, 1] of each expert's recorded answer (metric `recorded`).

        Raises ReferenceSealedError on a sealed question.
        """
        if self._scores is None:
            raise ReferenceSealedError(
                f"question {self.id}: recorded scores are not available where decisions are made"
            )
        return self._scores

    def sealed(self) -> Question:
        """The same question without its reference and scores."""
        return replace(self, _reference=None, _scores=None)


@dataclass(frozen=True)
class Splits:
    """Disjoint question lists, and how many repeats were merged or dropped to make them so."""

    train: list[Question]
    validation: list[Question]
    test: list[Question]
    num_merged: int

    def agreeing_from(self, similarity: float) -> Splits:
        """The same questions, whose answers in free text agree from this similarity on."""
        return replace(
            self,
            train=agreeing_from(self.train, similarity),
            validation=agreeing_from(self.validation, similarity),
            test=agreeing_from(self.test, similarity),
        )


def agreeing_from(questions: Sequence[Question], similarity: float) -> list[Question]:
    """The questions, whose answers in free text agree from this similarity on."""
    return [replace(question, similarity=similarity) for question in questions]


def _rows(source: SourceConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of a source; the place goes into error messages.

    Raises DataError for unreadable lines, naming the first three.
    """
    path = Path(source.path)
    return read_jsonl(path, DataError) if path.suffix == ".jsonl" else _dataset_rows(source)


def _dataset_rows(source: SourceConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets  # slow to import and not needed for JSONL

    try:  # a folder is streamed: datasets' cache would not notice that its rows have changed
        rows = datasets.load_dataset(
            source.path,
            source.subset,
            split=source.split,
            revision=source.revision,
            streaming=Path(source.path).is_dir(),
        )
    except (
        Exception
    ) as error:  # datasets raises many types; each means that this source is not to be had
        raise DataError(
            f"{source.path}: datasets could not load it ({error}). Is it a hub name that needs a"
            " network, or a path with a typo?"
        ) from error
    try:
        for index, row in enumerate(rows):
            yield f"{source.path}[{source.split}][{index}]", row
    except Exception as error:  # of as many types: a broken line shows as it is streamed
        raise DataError(f"{source.path}: datasets could not read all of it ({error})") from error


def _pick(row: dict[str, Any], name: str) -> Any:
    """Field `name` of a row; dots reach into nested fields. None where there is none."""
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is_recorded(row: dict[str, Any], source: SourceConfig) -> bool:
    """Whether a row is one of recorded answers (backends/recorded.py), which needs no mapping of
    fields.
    """
    return (
        "text" not in row
        and "text" not in source.fields
        and "question" in row
        and isinstance(row.get("answers"), dict)
    )


def _scores_of(row: dict[str, Any], source: SourceConfig, place: str) -> dict[str, float]:
    """The recorded scores of a row, mapped from `score_range` to [0, 1].

    Raises DataError for none and for one outside.
    """
    given, (low, high) = row.get("scores"), source.score_range
    if not isinstance(given, dict) or not given:
        raise DataError(
            f"{place}: metric recorded needs scores: {{expert: number}}, and this row has none"
        )
    for expert, score in given.items():
        if not isinstance(score, int | float) or not low <= score <= high:
            raise DataError(
                f"{place}: the score {shown(score)} of {expert} is not in [{low:g}, {high:g}]; say"
                " what range scores have with data.SPLIT.score_range: [lowest, highest]"
            )
    return {expert: (score - low) / (high - low) for expert, score in given.items()}


def _agreement_of(value: Any, source: SourceConfig, place: str) -> str | None:
    """The row's agreement metric, or the source's. Raises DataError for what names none."""
    if value is None:
        return source.agreement
    if not isinstance(value, str) or value == RECORDED:
        raise DataError(
            f"{place}: agreement {value!r}: expected the name of a metric that reads answers, such"
            " as numeric_match"
        )
    return value


def _reference_of(value: Any, place: str) -> Reference | None:
    """The reference with its numbers as texts.

    Raises DataError for what is neither text nor number.
    """
    if value is None or isinstance(value, dict):
        return value
    parts = value if isinstance(value, list) else [value]
    for part in parts:
        if not isinstance(part, str | int | float):
            raise DataError(
                f"{place}: the reference {shown(value)} holds {shown(part)}; expected text, a"
                " number, or a list of them"
            )
    texts = [whole_text(str(part)) for part in parts]
    return texts if isinstance(value, list) else texts[0]


def _is_blank(reference: Reference | None) -> bool:
    """Whether a reference has nothing an answer could be compared with: an empty answer would be
    right.
    """
    if isinstance(reference, str):
        return not reference.strip()
    if isinstance(reference, list):
        return not reference or not all(text.strip() for text in reference)
    return not reference


def _question_of(
    row: dict[str, Any], fields: Mapping[str, str], source: SourceConfig, place: str, number: int
) -> Question:
    """The question of a row. Raises DataError where it has no text, or no score it needs."""
    values = {}
    for ours in ("id", "text", "reference", "task", "metric", "agreement"):
        values[ours] = _pick(row, fields.get(ours, ours))
    text, metric = values["text"], str(values["metric"] or source.metric)
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            f"{place}: no text in field {fields.get('text', 'text')!r}; its fields are"
            f" {', '.join(row)}. Map yours with data.SPLIT.fields: {{text: yours}}"
        )
    reference = _reference_of(values["reference"], place)
    if reference is None and metric == RECORDED:
        reference = ""  # the scores stand for it
    name = values["id"]
    if name is None:
        name = f"{Path(source.path).stem}-{number:06d}"
    return Question(
        id=whole_text(str(name)),
        text=whole_text(text.strip()),
        task=whole_text(str(values["task"] or source.task)),
        metric=metric,
        _reference=reference,
        _scores=_scores_of(row, source, place) if metric == RECORDED else None,
        agreement=_agreement_of(values["agreement"], source, place),
    )


def _check_answerable(
    question: Question, listed: Collection[str | None], place: str, fields: Mapping[str, str]
) -> None:
    """Raise DataError for a question without a reference, and for a metric whose code would be
    imported because a row asks for it.
    """
    for metric in (question.metric, question.agreement or ""):
        kind, colon, _ = metric.partition(":")
        if colon and kind not in RUNS_NO_CODE and metric not in listed:
            raise DataError(
                f"{place}: metric {shown(metric)} is code, and a row cannot have code run. If you"
                " trust it, list it in the configuration: data.metrics"
            )
    if question.metric != RECORDED and _is_blank(question._reference):
        field_name = fields.get("reference", "reference")
        raise DataError(f"{place}: no reference answer in field {field_name!r}")


def read_questions(
    source: SourceConfig, *, need_reference: bool = True, metrics: Sequence[str] = ()
) -> list[Question]:
    """All questions of a source, in order, repeats included.

    `metrics` are those with code of their own that rows may name. Raises DataError naming the row
    that lacks a text, reference or score, or names other code.
    """
    out: list[Question] = []
    other_splits: set[str] = set()
    listed = {source.metric, source.agreement, *metrics}
    for number, (place, row) in enumerate(_rows(source)):
        fields = {str(ours): theirs for ours, theirs in source.fields.items()}
        if _is_recorded(row, source):
            fields = RECORDED_FIELDS | fields
            split = _pick(row, fields["split"])
            if split not in (None, source.split):
                other_splits.add(str(split))
                continue
        question = _question_of(row, fields, source, place, number)
        if need_reference:
            _check_answerable(question, listed, place, fields)
        out.append(question)
        if source.limit is not None and len(out) >= source.limit:
            break
    if not out:
        found = " in it"
        if other_splits:
            found = f" of split {source.split!r}; it has {', '.join(sorted(other_splits))}"
        raise DataError(f"{source.path}: no questions{found}")
    return out


def text_key(text: str) -> str:
    """What makes two questions the same: their words, whatever the white space between them."""
    return " ".join(text.split())


def repeats_line(splits: Splits) -> str:
    """What to say of repeats."""
    return (
        f"{splits.num_merged} questions repeat others, within or across splits, and were left out"
    )


def merge_repeats(questions: Iterable[Question], taken: set[str]) -> list[Question]:
    """Questions whose text is not in `taken`, each text once; `taken` grows by them."""
    out = []
    for question in questions:
        key = text_key(question.text)
        if key not in taken:
            taken.add(key)
            out.append(question)
    return out


def load_splits(data: DataConfig) -> Splits:
    """The three splits, disjoint by question text. Test questions win over validation, validation
    over train.

    Raises DataError for unreadable sources, for ids that occur twice, and when nothing is left of a
    split.
    """
    taken: set[str] = set()
    kept = {}
    num_read = 0
    for name in ("test", "validation", "train"):
        read = read_questions(getattr(data, name), metrics=data.metrics)
        num_read += len(read)
        kept[name] = merge_repeats(read, taken)
    for name, questions in kept.items():
        if not questions:
            raise DataError(f"data.{name}: every question in it also occurs in another split")
        most_common = Counter(question.id for question in questions).most_common(1)
        if most_common[0][1] > 1:
            raise DataError(f"data.{name}: id {shown(most_common[0][0])} occurs twice")
    return Splits(**kept, num_merged=num_read - len(taken))


class QuestionSampler:
    """Draws question indices without replacement, pass after pass, from its own random stream.

    A question that was handed out but never acted on can be given back: Tianshou resets
    environments more often than it plays them.
    """

    def __init__(self, num_questions: int, rng: Any):
        self.num_questions = num_questions
        self.rng = rng  # numpy Generator
        self.waiting: list[int] = []

    def draw(self) -> int:
        if not self.waiting:
            self.waiting = self.rng.permutation(self.num_questions).tolist()
        return self.waiting.pop()

    def give_back(self, question_idx: int) -> None:
        self.waiting.append(question_idx)

    def state(self) -> dict[str, Any]:
        return {"waiting": list(self.waiting), "rng": self.rng.bit_generator.state}

    def load_state(self, state: dict[str, Any]) -> None:
        self.waiting = list(state["waiting"])
        self.rng.bit_generator.state = state["rng"]
