"""Answers while they grow: what may be shown, and what is held back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from small_server import SmallServer, completion, streamed

from backends.answer_store import Answer
from backends.dispatch import Inbox
from backends.endpoint import EndpointExpert
from backends.hf import HFExpert
from backends.live_answers import LiveAnswers, answer_so_far, closes_unopened
from config import EndpointExpertConfig, HFExpertConfig
from prompts import THINKING_TAGS, answer_of, before_stop
from runtime.errors import ExpertError

CHAT_PROMPT = '[{"role": "user", "content": "Why?"}]'
OPENED = "Question: Why?\nAnswer: <think>\n"


@pytest.mark.parametrize(
    ("text", "stop", "prompt"),
    [
        ("Four, since 2 + 2 is 4.", (), ""),
        ("<think>It is 3. No.</think>\n\nIt is 4.", (), ""),
        ("<THINK>Hm </thin no</Think> It is 4.", (), ""),
        ("It is 3. No.</think>It is 4.", (), OPENED),
        ("It is 4.\n\nQuestion: What is 5?", ("\n\nQuestion:", "###"), ""),
        ("a < b and a <thing> and \\frac{1}{2}", (), ""),
        ("<think>It never ends, and says 3", (), ""),
    ],
)
def test_what_is_shown_of_a_growing_completion_is_what_its_answer_begins_with(
    text: str, stop: Sequence[str], prompt: str
) -> None:
    answer = answer_of(before_stop(text, stop), THINKING_TAGS, prompt)
    shown = ""
    for length in range(len(text) + 1):
        grown = answer_so_far(text[:length], stop, THINKING_TAGS, prompt)
        assert answer.startswith(grown)
        assert grown.startswith(shown)
        shown = grown
    assert answer.startswith(shown)
    assert len(answer) - len(shown) < len("\n\nQuestion:")  # nothing else is held back


def test_half_a_character_is_held_back() -> None:
    assert answer_so_far("caf\ufffd", (), (), "") == "caf"


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("thoughts</think>answer", CHAT_PROMPT, True),  # a server's template has opened it
        ("thoughts</think>answer", OPENED, False),
        ("<think>thoughts</think>answer", CHAT_PROMPT, False),
        ("no thoughts </b>", CHAT_PROMPT, False),
    ],
)
def test_a_thinking_part_that_nobody_was_seen_to_open(
    text: str, prompt: str, expected: bool
) -> None:
    assert closes_unopened(text, THINKING_TAGS, prompt) is expected


def endpoint_config(url: str, **settings: object) -> EndpointExpertConfig:
    return EndpointExpertConfig(
        name="far", kind="endpoint", model="m", urls=[url], params_b=1.0, **settings
    )


def test_nobody_hears_an_expert_before_it_has_shown_how_it_thinks() -> None:
    config = endpoint_config("http://localhost/v1")
    live = LiveAnswers()
    heard: list[str] = []
    assert live.listener(config, CHAT_PROMPT, heard.append) is None
    live.note(config, CHAT_PROMPT, Answer("It was cut", 1, 1, 0.0, finish="length"))
    assert live.listener(config, CHAT_PROMPT, heard.append) is None
    live.note(config, CHAT_PROMPT, Answer("Whole.", 1, 1, 0.0, finish="stop"))
    listener = live.listener(config, CHAT_PROMPT, heard.append)
    assert listener is not None
    listener("It is <thi")
    assert heard == ["It is"]
    live.note(config, CHAT_PROMPT, Answer("Hm.</think>Yes.", 1, 1, 0.0, finish="stop"))
    live.note(config, CHAT_PROMPT, Answer("Whole.", 1, 1, 0.0, finish="stop"))
    assert live.listener(config, CHAT_PROMPT, heard.append) is None


# --- experts ---


def test_a_local_model_tells_its_completion_after_every_round(
    tiny_pool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = HFExpertConfig(
        name="llama",
        source=str(tiny_pool_dir / "llama-0.2m"),
        params_b=0.1,
        prompt_format="plain",
        decoding={"max_new_tokens": 64},
    )
    expert = HFExpert(config, torch.device("cpu"))
    monkeypatch.setattr(HFExpert, "_end_ids", {expert.tokenizer.pad_token_id})  # it never ends
    prompt = expert.render("Spell this word backward (example: sun -> nus): planet", None, "")
    inbox = Inbox()
    told: list[str] = []
    inbox.put(prompt, told.append)
    inbox.put(prompt)
    answers = dict(pair for batch in expert.answer(inbox) for pair in batch)
    assert len(told) == 3  # after 17, 33 and 49 of 64 tokens
    assert told == sorted(told, key=len)
    for text in told:
        assert answers[0].text.startswith(text.strip())
    assert answers[0] == answers[1]


def ask_endpoint(
    server: SmallServer, on_text: object, **settings: object
) -> tuple[Answer, list[str]]:
    """An answer of a server, and the completions told on the way."""
    config = endpoint_config(server.url, max_retries=0, **settings)
    inbox = Inbox()
    told: list[str] = []

    def listen(text: str) -> None:
        told.append(text)
        on_text(text)

    inbox.put(CHAT_PROMPT, listen)
    [(_, answer)] = [pair for batch in EndpointExpert(config).answer(inbox) for pair in batch]
    return answer, told


def test_a_server_is_heard_while_it_generates() -> None:
    gate = threading.Event()
    deltas = [{"role": "assistant", "content": "It is"}, {"content": " four."}]
    server = SmallServer(lambda body, number: streamed(deltas, gate=gate))
    answer, told = ask_endpoint(server, lambda text: gate.set())  # the gate opens when it is heard
    server.close()
    assert told[:2] == ["It is", "It is four."]
    assert answer == Answer("It is four.", 7, 3, answer.latency_s, finish="stop")
    assert server.requests[0][1]["stream_options"] == {"include_usage": True}


def test_what_a_server_sends_as_reasoning_is_told_in_tags() -> None:
    deltas = [{"reasoning_content": "Two"}, {"reasoning_content": " twos."}, {"content": "Four."}]
    server = SmallServer(lambda body, number: streamed(deltas))
    answer, told = ask_endpoint(server, lambda text: None)
    server.close()
    assert told[1] == "<think>Two twos."
    assert answer.text == "<think>Two twos.</think>\nFour."


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    server = SmallServer(lambda body, number: streamed([{"content": "It is"}], is_whole=False))
    with pytest.raises(ExpertError, match="the stream ended before the answer"):
        ask_endpoint(server, lambda text: None)
    server.close()


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, completion("Four.", is_chat=True)[1]), (400, {"error": {"message": "no streaming"}})],
)
def test_a_server_that_does_not_stream_is_asked_for_the_whole(
    status: int, body: dict[str, object]
) -> None:
    def behave(asked, number):
        return (status, body) if asked.get("stream") else completion("Four.", is_chat=True)

    server = SmallServer(behave)
    answer, told = ask_endpoint(server, lambda text: None)
    server.close()
    assert (answer.text, told) == ("Four.", [])


def test_a_key_that_a_server_repeats_is_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", "sk-secret")
    deltas = [{"content": "Key: sk-s"}, {"content": "ecret."}]
    server = SmallServer(lambda body, number: streamed(deltas))
    answer, told = ask_endpoint(server, lambda text: None, api_key_env="FAR_KEY")
    server.close()
    assert told[:2] == ["Key: ", "Key: [key]."]
    assert answer.text == "Key: [key]."
