"""Expert kind `recorded`: answers that exist already, replayed from JSONL, one object a line:

    {"question": str, "reference": str, "answers": {expert: str},
     "scores": {expert: float}?,
     "meta": {"split"?: str, "task"?: str, "tokens"?: {expert: int}, "finish"?: {expert: str},
              "logprob_mean"?: {expert: float}, "logprob_min"?: {expert: float}, ...}?}

`scores` are read with the questions (metric `recorded`); `meta.tokens` are the lengths of the
answers, 0 where not counted. `finish` and the log-probabilities are those of `Answer`. The same
files can serve as the first calls of an expert that can be asked (`first_answers`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from backends.answer_store import Answer, Finish
from backends.dispatch import Expert, Inbox
from backends.model_source import resolve_source, weights_fingerprint
from backends.replies import MAX_TOKENS
from config import TOKEN_UNITS, CostKind, PromptedExpertConfig, RecordedExpertConfig
from prompts import Message
from questions import Question, text_key
from runtime.errors import ExpertError, PromptError
from runtime.files import read_lines

BATCH = 1024  # answers tokenised and stored together
ROWS_KEPT = (
    2048  # parsed lines in memory: experts are asked one after the other, for the same questions
)


NumTokens = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
LogProbability = Annotated[float, Field(le=0, allow_inf_nan=False)]


class RowMeta(BaseModel):
    tokens: dict[str, NumTokens] = {}
    finish: dict[str, Finish] = {}
    logprob_mean: dict[str, LogProbability] = {}
    logprob_min: dict[str, LogProbability] = {}

    @property
    def experts(self) -> set[str]:
        """The experts that it tells something of."""
        every = (self.tokens, self.finish, self.logprob_mean, self.logprob_min)
        return set().union(*every)


class RecordedRow(BaseModel):
    """A line of recorded answers. Keys not named here are somebody else's."""

    model_config = ConfigDict(strict=True)

    question: str = Field(pattern=r"\S")
    answers: dict[str, str] = Field(min_length=1)
    scores: dict[str, float] | None = None
    meta: RowMeta | None = None

    @model_validator(mode="after")
    def _experts_have_answers(self) -> RecordedRow:
        told_of = self.meta.experts if self.meta else set()
        if unknown := ((self.scores or {}).keys() | told_of) - self.answers.keys():
            raise ValueError(
                f"scores or meta name {', '.join(sorted(unknown))}, which answers does not;"
                f" it has {', '.join(self.answers)}"
            )
        return self

    @property
    def tokens(self) -> dict[str, int]:
        return self.meta.tokens if self.meta else {}

    def answer_of(self, expert: str, prompt_tokens: int, completion_tokens: int) -> Answer:
        """An expert's recorded answer, with what the row tells of it."""
        meta = self.meta or RowMeta()
        return Answer(
            self.answers[expert],
            prompt_tokens,
            completion_tokens,
            latency_s=0.0,
            finish=meta.finish.get(expert, ""),
            logprob_mean=meta.logprob_mean.get(expert),
            logprob_min=meta.logprob_min.get(expert),
        )


def parse_row(line: bytes, place: str) -> RecordedRow:
    """Raises ExpertError naming the place and what is wrong there."""
    try:
        return RecordedRow.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise ExpertError(
            f"{place}:"
            f" {field + ': ' if field else ''}{problem['msg'].removeprefix('Value error, ')}"
        ) from error


class Recording:
    """Files of recorded answers, read once and checked whole, however many experts they hold.

    Texts stay on disk: a recording knows where each question's line begins and parses it again when
    it is asked for. Raises ExpertError naming file and line for a line that is broken, and for a
    question that was answered before in other words.
    """

    def __init__(self, paths: Sequence[str]):
        self.paths = list(paths)
        self.row = functools.lru_cache(maxsize=ROWS_KEPT)(self._row)
        self._places: dict[
            str, tuple[int, int, int]
        ] = {}  # question -> file, line, byte offset of the line
        self._first_with: dict[
            frozenset[str], str
        ] = {}  # experts that answered -> first line where just these did
        self._first_uncounted: dict[str, str] = {}  # expert -> first line without meta.tokens of it
        self._first_uncountable: dict[
            str, str
        ] = {}  # expert -> first of these without a text to count either
        digest = hashlib.sha256()
        for file_idx, path in enumerate(self.paths):
            for line in read_lines(Path(path), ExpertError, digest.update):
                self._add(parse_row(line.data, line.place), (file_idx, line.number, line.offset))
        self.fingerprint = digest.hexdigest()[:16]
        if not self._places:
            raise ExpertError(f"{', '.join(self.paths)}: no recorded answers in it")

    def __contains__(self, question: str) -> bool:
        return text_key(question) in self._places

    def __len__(self) -> int:
        return len(self._places)

    def _add(self, row: RecordedRow, place: tuple[int, int, int]) -> None:
        key, line = text_key(row.question), self._line(place)
        if key in self._places:
            before = self.row(row.question)
            if (before.answers, before.scores) != (row.answers, row.scores):
                raise ExpertError(
                    f"{line}: the same question as in {self._line(self._places[key])}, with other"
                    " answers or scores"
                )
            return
        self._places[key] = place
        self._first_with.setdefault(frozenset(row.answers), line)
        for expert, text in row.answers.items():
            if not row.tokens.get(expert):
                self._first_uncounted.setdefault(expert, line)
                if not text.strip():
                    self._first_uncountable.setdefault(expert, line)

    def _line(self, place: tuple[int, int, int]) -> str:
        return f"{self.paths[place[0]]}:{place[1]}"

    def _row(self, question: str) -> RecordedRow:
        """The line of a question. Raises KeyError for a question that is not there."""
        place = self._places[text_key(question)]
        with Path(self.paths[place[0]]).open("rb") as file:
            file.seek(place[2])
            return parse_row(file.readline(), self._line(place))

    def questions(self) -> Iterator[str]:
        """Every question as written, in order."""
        for key in self._places:
            yield self.row(key).question

    def require(self, expert: str) -> None:
        """Raise ExpertError unless every line has an answer of this expert."""
        lacking = [line for experts, line in self._first_with.items() if expert not in experts]
        if len(lacking) == len(self._first_with):
            known = sorted(frozenset().union(*self._first_with))
            raise ExpertError(
                f"{', '.join(self.paths)}: no line has an answer of expert {expert}; answers are of"
                f" {', '.join(known)}"
            )
        if lacking:
            raise ExpertError(f"{lacking[0]}: no answer of expert {expert}, which the pool names")

    def uncounted(self, expert: str, *, by_text: bool) -> str | None:
        """The first line that does not tell how long this expert's answer is: by `meta.tokens`, or
        with `by_text` by its text.
        """
        return (self._first_uncountable if by_text else self._first_uncounted).get(expert)


def read_recording(paths: str | Sequence[str]) -> Recording:
    """The recording of one or several files, read once as long as they do not change.

    Raises ExpertError as `Recording` does.
    """
    paths = (paths,) if isinstance(paths, str) else tuple(paths)
    try:
        return _recording(paths, tuple(Path(path).stat().st_mtime_ns for path in paths))
    except OSError as error:
        raise ExpertError(f"recorded answers: {error.filename}: {error.strerror}") from error


@functools.cache
def _recording(paths: tuple[str, ...], modified_ns: tuple[int, ...]) -> Recording:
    del modified_ns  # part of the cache's key only
    return Recording(paths)


class RecordedExpert:
    """One expert of a recording. It does not react to the prompt: every call, first or not, gets
    the answer to the bare question.

    With `first_of`, these are the first calls of that expert: its tokenizer counts them, prompts as
    it would have been sent them.
    """

    memory_gb = 0.0
    is_remote = False

    def __init__(self, config: RecordedExpertConfig, first_of: Expert | None = None):
        self.config, self.first_of = config, first_of
        self.recording = read_recording(config.path)
        self.recording.require(config.name)

    def __contains__(self, question: str) -> bool:
        return question in self.recording

    def identity(self) -> dict[str, Any]:
        """Data set and revision: the files' content, the expert's key in it, and what its tokens
        were counted with.
        """
        return {
            "kind": "recorded",
            "file": self.recording.fingerprint,
            "expert": self.config.name,
            "tokens": self._counter_identity(),
        }

    def _counter_identity(self) -> Any:
        if self.first_of is not None:
            return self.first_of.identity()
        if self.config.tokenizer is None:
            return None
        source = resolve_source(self.config.tokenizer)
        return (
            weights_fingerprint(source)
            if Path(source).is_dir()
            else f"{source}@{self.config.revision or 'unpinned'}"
        )

    def decoding(self) -> dict[str, Any]:
        return {}

    def render(
        self,
        question: str,
        previous_answer: str | None,
        ktp: str,
        context: Sequence[Message] = (),
    ) -> str:
        if context:
            raise PromptError(
                f"expert {self.config.name} is recorded: it has answers to bare questions, and none"
                " in a conversation"
            )
        return question

    def load(self) -> None:
        pass

    def unload(self) -> None:
        pass

    def check_questions(self, questions: Sequence[Question]) -> None:
        """Raise ExpertError for a question without a recorded answer."""
        for question in questions:
            if question.text not in self:
                raise self._has_no_answer(question.text)

    def _has_no_answer(self, question: str) -> ExpertError:
        return ExpertError(
            f"expert {self.config.name}: {', '.join(self.recording.paths)} holds no answer to"
            f" {question[:80]!r}, and a recorded expert cannot be asked anything else"
        )

    @property
    def _can_count(self) -> bool:
        return (
            self.config.tokenizer is not None
            if self.first_of is None
            else hasattr(type(self.first_of), "tokenizer")
        )

    def check_charge(self, unit: CostKind) -> None:
        """Raise ExpertError where `unit` charges for tokens that nobody has counted."""
        if unit not in TOKEN_UNITS:
            return
        if line := self.recording.uncounted(self.config.name, by_text=self._can_count):
            remedy = (
                "there is no text to count"
                if self._can_count
                else "no tokenizer is named to count them"
            )
            raise ExpertError(
                f"{line}: reward.cost_unit charges {unit}, but meta.tokens has no count of"
                f" {self.config.name}'s answer, and {remedy}"
            )
        if self.first_of is not None and not self._can_count:
            raise ExpertError(
                f"expert {self.config.name}: reward.cost_unit charges {unit}, but nothing counts"
                " the prompts of its first_answers; charge parameters, or leave them out"
            )

    @functools.cached_property
    def _tokenizer(self) -> Any:
        if not self._can_count:
            return None
        if self.first_of is not None:
            model: Any = self.first_of  # of a kind that has a tokenizer, says `_can_count`
            return model.tokenizer
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                resolve_source(self.config.tokenizer or ""), revision=self.config.revision or "main"
            )
        except (OSError, ValueError) as error:
            raise ExpertError(
                f"expert {self.config.name}: cannot load the tokenizer {self.config.tokenizer!r}:"
                f" {str(error).splitlines()[0]}"
            ) from error

    def _count(self, texts: Sequence[str], *, special: bool = False) -> list[int]:
        """Tokens of each text; 0 without a tokenizer."""
        if self._tokenizer is None or not texts:
            return [0] * len(texts)
        rows = self._tokenizer(list(texts), add_special_tokens=special)["input_ids"]
        return list(map(len, rows))

    def _count_prompts(self, questions: Sequence[str]) -> list[int]:
        if self.first_of is None or not self._can_count:
            return self._count(questions)
        config = self.first_of.config
        is_chat = isinstance(config, PromptedExpertConfig) and config.prompt_format == "chat"
        prompts = [self.first_of.render(question, None, "paper-v1") for question in questions]
        return self._count(prompts, special=not is_chat)

    def _count_answers(self, texts: Sequence[str]) -> list[int]:
        if self.first_of is None or not self._can_count:
            return self._count(texts)
        return [count + 1 for count in self._count(texts)]  # a model generates an end token too

    def answer(self, prompts: Sequence[str] | Inbox) -> Iterator[list[tuple[int, Answer]]]:
        """Recorded answers to bare questions, batch by batch.

        Raises ExpertError for a question that is not in the recording.
        """
        inbox = Inbox.of(prompts)
        while inbox:
            numbers, questions = zip(*inbox.take(BATCH), strict=True)
            rows = []
            texts = []
            for question in questions:
                if question not in self:
                    raise self._has_no_answer(question)
                rows.append(self.recording.row(question))
                texts.append(rows[-1].answers[self.config.name])
            prompt_tokens = self._count_prompts(questions)
            answer_tokens = self._answer_tokens(questions, texts)
            batch = []
            for place, number in enumerate(numbers):
                counts = (prompt_tokens[place], answer_tokens[place])
                batch.append((number, rows[place].answer_of(self.config.name, *counts)))
            yield batch

    def _answer_tokens(self, questions: Sequence[str], texts: Sequence[str]) -> list[int]:
        """Tokens of each answer: as recorded, else as counted."""
        tokens = []
        uncounted = []
        for row, question in enumerate(questions):
            tokens.append(self.recording.row(question).tokens.get(self.config.name, 0))
            if not tokens[row]:
                uncounted.append(row)
        counts = self._count_answers([texts[row] for row in uncounted])
        for row, count in zip(uncounted, counts, strict=True):
            tokens[row] = count
        return tokens


def first_answers_of(expert: Expert, config: PromptedExpertConfig) -> RecordedExpert:
    """The first calls of an expert of this configuration, recorded in its `first_answers`."""
    recorded = RecordedExpertConfig(
        kind="recorded",
        name=config.name,
        params_b=config.params_b,
        path=config.first_answers or (),
        thinking_tags=config.thinking_tags,
    )
    return RecordedExpert(recorded, first_of=expert)
