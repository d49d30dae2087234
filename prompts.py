"""Every text a model is shown: the agent's state text, the Knowledge Transfer Prompt, the formats
that LLMs want to be asked in.

A call becomes a prompt in two steps: what to say (the bare question, or the Knowledge Transfer
Prompt once there is a previous answer), then how this expert wants to be asked
(`PromptFormat.render`). What the agent reads becomes one row of token ids (`StateTokenizer`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import TemplateError

from config import THINKING_TAGS, PromptedExpertConfig
from runtime.errors import PromptError
from runtime.files import read_jsonl, whole_text

KTP_TEMPLATES: dict[str, str] = {
    # After the paper (section 3 and figure 2): one other student, whose answer is advice.
    "paper-v1": (
        "{question}\n\nThere is an answer from another student: {answer}\n\nUsing it as additional"
        " advice, give a more satisfactory answer directly. Do not mention other students."
    ),
    # After the authors' code: the plural, though a single answer is passed on.
    "code-v1": (
        "{question}\n\nThere are answers from other students: {answer}\n\nUsing them as additional"
        " advice, give a more satisfactory answer directly. Do not mention other students."
    ),
    # All different answers so far, the latest last, instead of the latest alone.
    "all-v1": (
        "{question}\n\nThere are answers from other students:\n\n{answer}\n\n"
        "Using them as additional advice, give a more satisfactory answer directly. Do not mention"
        " other students."
    ),
    # Ablation: the previous answer is paid for and thrown away.
    "none-v1": "{question}",
}
NO_ANSWER = "(no answer)"  # stands for an empty previous answer
MAX_REMEMBERED = 500_000  # tokenised texts; some 100 MB


class Message(NamedTuple):
    """What was said before the question in a conversation."""

    role: str  # system, user or assistant
    text: str


SPEAKERS = {"user": "User: ", "assistant": "Assistant: ", "system": ""}


def transcript(context: Sequence[Message]) -> str:
    """Earlier messages as plain text, for formats without roles; nothing where there are none."""
    lines = []
    for message in context:
        lines.append(f"{SPEAKERS[message.role]}{message.text}\n\n")
    return "".join(lines)


def knowledge_transfer_prompt(
    question: str, previous_answer: str, version: str = "paper-v1"
) -> str:
    """What every call after the first says (paper section 3, "Knowledge Transfer Prompt").

    Braces in a question or an answer are plain text. Raises PromptError for an unknown version.
    """
    if version not in KTP_TEMPLATES:
        raise PromptError(f"unknown KTP version {version!r}; known: {', '.join(KTP_TEMPLATES)}")
    before, slot, after = KTP_TEMPLATES[version].partition("{answer}")
    filled = before.replace("{question}", question)
    return (
        filled + (previous_answer if previous_answer.strip() else NO_ANSWER) + after
        if slot
        else filled
    )


def handed_on(previous_answer: str | None, earlier: Sequence[str], version: str) -> str | None:
    """What a call is handed of the answers so far: the previous one, or with all-v1 every one.

    earlier: the answers before the previous one, in order. Equal answers are told once, where they
    were given last. None before the first call.
    """
    if version != "all-v1" or previous_answer is None:
        return previous_answer
    answers = [answer.strip() or NO_ANSWER for answer in (*earlier, previous_answer)]
    different = list(dict.fromkeys(reversed(answers)))
    if len(different) == 1:
        return different[0]
    return "\n\n".join(f"Answer {i}: {text}" for i, text in enumerate(reversed(different), 1))


def content(question: str, previous_answer: str | None, version: str) -> str:
    """The bare question on the first call, the Knowledge Transfer Prompt afterwards."""
    return (
        question
        if previous_answer is None
        else knowledge_transfer_prompt(question, previous_answer, version)
    )


def ktp_hash(version: str) -> str:
    """Short hash of a template's wording, kept beside trained agents."""
    return hashlib.sha256(KTP_TEMPLATES[version].encode()).hexdigest()[:12]


@dataclass(frozen=True)
class FewShot:
    """A worked example for base models.

    The previous answer is shown in the Knowledge Transfer Prompt form only.
    """

    question: str
    previous_answer: str
    answer: str


def read_few_shot(path: Path) -> tuple[FewShot, ...]:
    """Examples from JSONL {question, previous_answer, answer}.

    Raises PromptError naming file and line.
    """
    if not path.is_file():
        raise PromptError(f"{path}: no such few-shot file")
    out = []
    for place, row in read_jsonl(path, PromptError):
        try:
            texts = {name: whole_text(text) for name, text in row.items()}
            out.append(FewShot(**texts))
        except TypeError as error:
            raise PromptError(
                f"{place}: expected {{question, previous_answer, answer}} ({error})"
            ) from error
    if not out:
        raise PromptError(f"{path}: no examples in it")
    return tuple(out)


@dataclass(frozen=True)
class PromptFormat:
    """How one expert wants to be asked.

    chat: the tokenizer's own template. plain: the text and "Answer:". few_shot: "Question: ...
    Answer: ..." examples in the form of the call, then the question; a base model that never saw
    the Knowledge Transfer Prompt form answers it badly. template: the text in the place of
    {prompt}.
    """

    kind: str
    system_prompt: str | None = None
    examples: tuple[FewShot, ...] = ()
    template: str | None = None
    system_role: str = "auto"
    chat_template_kwargs: Mapping[str, Any] | None = None  # such as {"enable_thinking": False}

    @classmethod
    def of(cls, expert: PromptedExpertConfig) -> PromptFormat:
        """The format an expert is configured with.

        Raises PromptError for an unreadable few-shot file.
        """
        examples = read_few_shot(Path(expert.few_shot)) if expert.few_shot else ()
        return cls(
            expert.prompt_format,
            expert.system_prompt,
            examples,
            expert.prompt_template,
            expert.system_role,
            expert.chat_template_kwargs,
        )

    def render(
        self,
        question: str,
        previous_answer: str | None,
        version: str,
        apply_chat_template: Callable[..., str] | None = None,
        context: Sequence[Message] = (),
    ) -> str:
        """The prompt exactly as sent. `context` is what was said before the question.

        Formats without roles get the context as a transcript before the question.

        Raises PromptError when a chat template is wanted and the tokenizer has none.
        """
        text = content(question, previous_answer, version)
        if self.kind != "chat":
            text = transcript(context) + text
        if self.kind == "plain":
            return f"{text}\nAnswer:"
        if self.kind == "few_shot":
            parts = []
            for example in self.examples:
                given = None if previous_answer is None else example.previous_answer
                asked = content(example.question, given, version)
                parts.append(f"Question: {asked}\nAnswer: {example.answer}\n\n")
            parts.append(f"Question: {text}\nAnswer:")
            return "".join(parts)
        if self.kind == "template":
            return text.join((self.template or "").split("{prompt}"))
        if apply_chat_template is None:
            raise PromptError(
                "prompt_format chat, but the tokenizer has no chat template: a base model wants"
                " prompt_format plain or few_shot"
            )
        return self._render_chat(text, apply_chat_template, context)

    def _render_chat(
        self, text: str, apply_chat_template: Callable[..., str], context: Sequence[Message]
    ) -> str:
        """The prompt by a chat template, the system prompt where the template takes it.

        Raises PromptError with the template's own message where it takes none of the forms.
        """
        reason = ""
        system_text = self._system_text(context)
        for messages in self._conversations(text, context):
            try:
                prompt = apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=True,
                    **(self.chat_template_kwargs or {}),
                )
            except TemplateError as error:
                reason = f"the chat template refuses the messages: {error}"
                continue
            if system_text is None or self.system_role != "auto":
                return prompt
            if (
                _says(prompt, system_text.strip(), in_json=bool(context))
                or messages[0]["role"] == "user"
            ):
                return prompt
            reason = "the chat template drops the system prompt"
        raise PromptError(f"{reason}. Try system_role: user, or another prompt_format")

    def _system_text(self, context: Sequence[Message]) -> str | None:
        """The expert's own system prompt, then those of the conversation; None without any."""
        texts = [] if self.system_prompt is None else [self.system_prompt]
        texts += [message.text for message in context if message.role == "system"]
        return "\n\n".join(texts) if texts else None

    def _conversations(self, text: str, context: Sequence[Message]) -> list[list[dict[str, str]]]:
        """The message lists to try, in order."""
        turns = []
        for message in (*context, Message("user", text)):
            if message.role != "system":
                turns.append({"role": message.role, "content": message.text})
        system_text = self._system_text(context)
        if system_text is None:
            return [turns]
        apart = [{"role": "system", "content": system_text}, *turns]
        first = {**turns[0], "content": f"{system_text}\n\n{turns[0]['content']}"}
        together = [first, *turns[1:]]
        if self.system_role == "system":
            return [apart]
        if self.system_role == "user":
            return [together]
        return [apart, together]

    def identity(self) -> dict[str, object]:
        """What of the format decides the answers; part of every answer's key."""
        identity: dict[str, object] = {
            "kind": self.kind,
            "system_prompt": self.system_prompt,
            "examples": [[e.question, e.answer, e.previous_answer] for e in self.examples],
        }
        # Absent where not set: answers stored before these were known keep their keys
        if self.template is not None:
            identity["template"] = self.template
        if self.chat_template_kwargs:
            identity["chat_template_kwargs"] = dict(self.chat_template_kwargs)
        return identity


def _says(prompt: str, text: str, *, in_json: bool) -> bool:
    """Whether a prompt has a text in it.

    `in_json`: also as JSON writes it, which is how endpoints render. Prompts without a conversation
    do without: stored answers have their keys.
    """
    if text in prompt:
        return True
    return in_json and json.dumps(text, ensure_ascii=False)[1:-1] in prompt


def answer_of(text: str, tags: Sequence[str] = THINKING_TAGS, prompt: str = "") -> str:
    """What follows the thinking part of a completion; a text without such a part as it is.

    The part opens with <TAG>, or where the prompt ends in it, and closes with the last </TAG>. One
    that never closes, because tokens ran out, leaves what comes before it: mostly nothing.
    """
    if not tags:
        return text
    names = "|".join(map(re.escape, tags))
    opening, closing = re.compile(f"(?i)<(?:{names})>"), re.compile(f"(?i)</(?:{names})>")
    ends = [match.end() for match in closing.finditer(text)]
    if not ends and re.search(f"(?i)<(?:{names})>\\s*$", prompt):
        return ""
    answer = text[ends[-1] :] if ends else text
    unclosed = opening.search(answer)
    if unclosed:
        answer = answer[: unclosed.start()]
    return answer.strip() if ends or unclosed else text


def before_stop(text: str, stop: Sequence[str]) -> str:
    """A completion as an answer: stripped, and ended before any of the stop strings."""
    text = text.strip()
    for end in stop:
        text = text.partition(end)[0]
    return text.strip()


def cut_middle(ids: list[int], room: int) -> list[int]:
    """At most `room` token ids: a longer list loses its middle, since a task opens and an answer
    closes with what matters.
    """
    if len(ids) <= room:
        return ids
    head = (room + 1) // 2
    return ids[:head] + ids[len(ids) - (room - head) :]


class StateTokenizer:
    """The state s_t = [Q: question, A: answer so far] (paper section 3) as one row of an encoder's
    token ids.

    A row is int32 [calls left, start of the second segment, ids ..., padding] of length 2 +
    max_tokens. Question and answer are the encoder's sentence pair, the answer empty before the
    first call. When the pair is too long the question is cut, and the answer only beyond half the
    budget. Text that looks like a special token is read as plain text.
    """

    HEADER = 2  # entries before the token ids

    def __init__(self, tokenizer: Any, max_tokens: int):
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.pad_id = tokenizer.pad_token_id
        self._ids: dict[str, list[int]] = {}
        first, second = self._plain(["a"])[0], self._plain(["b"])[0]
        pair = tokenizer("a", "b")["input_ids"]
        at_first, at_second = pair.index(first[0]), len(pair) - 1 - pair[::-1].index(second[-1])
        self._open = pair[:at_first]  # [CLS] for BERT
        # [SEP]; </s></s> for RoBERTa
        between = pair[at_first + len(first) : at_second - len(second) + 1]
        # Decoders' tokenizers put nothing there
        self._between = between or self._plain(["\n"])[0] or self._plain([" "])[0]
        self._close = pair[at_second + 1 :]
        self.budget = max_tokens - len(self._open) - len(self._between) - len(self._close)

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; a text met again is not tokenised again."""
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        if len(self._ids) + len(new) > MAX_REMEMBERED:
            self._ids, new = {}, list(dict.fromkeys(texts))
        if new:
            read = self.tokenizer(
                new,
                add_special_tokens=False,
                split_special_tokens=True,
                verbose=False,  # else it warns of texts that are too long, which `encode` cuts
            )
            self._ids.update(zip(new, read["input_ids"], strict=True))
        return [self._ids[text] for text in texts]

    def encode(
        self, questions: Sequence[str], answers: Sequence[str | None], calls_left: Sequence[int]
    ) -> np.ndarray:
        """Rows (N, 2 + max_tokens) of int32, tokenised in one batch."""
        ids = self._plain([*questions, *(answer or "" for answer in answers)])
        rows = np.full((len(questions), self.HEADER + self.max_tokens), self.pad_id, dtype=np.int32)
        for row, question, answer, left in zip(
            rows, ids[: len(questions)], ids[len(questions) :], calls_left, strict=True
        ):
            answer = cut_middle(answer, max(self.budget - len(question), self.budget // 2))
            question = cut_middle(question, self.budget - len(answer))
            first = self._open + question + self._between
            text = first + answer + self._close
            row[: self.HEADER] = left, len(first)
            row[self.HEADER : self.HEADER + len(text)] = text
        return rows
