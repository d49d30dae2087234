"""Streams of the server: the tokens of a call that is sure to be the last come as they are made."""

from __future__ import annotations

import gc
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
import torch
import yaml
from served import (
    PATIENCE_S,
    LoopbackExpert,
    serving,
    wait_until,
)

import train_ppo_multi
from backends.generation import RunningBatch
from backends.hf import HFExpert
from config import RewardConfig
from der_env import Episode
from questions import Question
from serving.policy import Limits, ServingPolicy


@pytest.fixture(scope="module")
def place(
    run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, Any]]:
    """A server of an agent over beliefs, whose experts have been heard once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backends.endpoint.FIRST_WAIT_S", 0.05)
        with serving(run, tmp_path_factory.mktemp("streams") / "log.jsonl") as running:
            client = openai.OpenAI(base_url=running[0], api_key="none")
            for alpha in (0, 0.1):  # asks both experts
                begin(client, "What do you sound like?", alpha=alpha, max_calls=2).read()
            yield running


@pytest.fixture
def client(place: tuple[str, Any]) -> openai.OpenAI:
    return openai.OpenAI(base_url=place[0], api_key="none", max_retries=0, timeout=PATIENCE_S)


class Reading:
    """A stream that is read piece by piece."""

    def __init__(self, stream: Any):
        self._chunks = iter(stream)
        self.text = ""
        self.route: dict[str, Any] = {}

    def read_some(self) -> str:
        """On to the first piece with text in it."""
        while not self.text:
            self._take(next(self._chunks))
        return self.text

    def read(self) -> str:
        """On to the end."""
        for chunk in self._chunks:
            self._take(chunk)
        return self.text

    def _take(self, chunk: Any) -> None:
        for choice in chunk.choices:
            self.text += choice.delta.content or ""
        self.route = (chunk.model_extra or {}).get("x_der") or self.route


def begin(client: openai.OpenAI, text: str, **options: Any) -> Reading:
    messages: Any = [{"role": "user", "content": text}]
    return Reading(
        client.chat.completions.create(
            model="der", messages=messages, stream=True, extra_body=options
        )
    )


def closed(experts: dict[str, LoopbackExpert]) -> None:
    for expert in experts.values():
        expert.gate.clear()


def opened(experts: dict[str, LoopbackExpert]) -> None:
    for expert in experts.values():
        expert.gate.set()
        expert.breaks_off = False
        expert.thinks = ""


@pytest.fixture(autouse=True)
def open_at_last(experts: dict[str, LoopbackExpert]) -> Iterator[None]:
    yield
    opened(experts)


def test_a_last_call_is_streamed_while_its_server_generates(
    client: openai.OpenAI, experts: dict[str, LoopbackExpert]
) -> None:
    closed(experts)  # after the first word
    reading = begin(client, "What do you say live?", max_calls=1)
    first = reading.read_some()
    assert first in ("cheap", "dear")
    opened(experts)
    assert reading.read() == f"{first} heard: What do you say live?"
    assert [step["expert"] for step in reading.route["steps"]] == [first]


def test_a_budget_that_allows_one_call_says_that_it_is_the_last(
    client: openai.OpenAI, experts: dict[str, LoopbackExpert]
) -> None:
    closed(experts)
    reading = begin(client, "What is cheap and live?", max_cost=1.5)
    assert reading.read_some() == "cheap"
    opened(experts)
    assert reading.read() == "cheap heard: What is cheap and live?"


def test_a_call_that_another_may_follow_is_not_streamed(
    client: openai.OpenAI, experts: dict[str, LoopbackExpert]
) -> None:
    assert begin(client, "Who speaks first?").read()
    for expert in experts.values():
        assert expert.server is not None
        for _, body, *_ in expert.server.requests:
            if body["messages"][-1]["content"] == "Who speaks first?":
                assert "stream" not in body


def test_thinking_is_not_shown(client: openai.OpenAI, experts: dict[str, LoopbackExpert]) -> None:
    cheap = experts["cheap"]
    cheap.thinks = "I had better say that I heard it."
    assert begin(client, "Apart?", max_cost=1.5).read() == "cheap heard: Apart?"
    cheap.thinks = ""
    cheap.answers["In tags?"] = "<think>Two twos, so</think>\nIt is 4, <b>surely</b>."
    assert begin(client, "In tags?", max_cost=1.5).read() == "It is 4, <b>surely</b>."


def test_a_stream_that_breaks_off_is_gone_on_with_where_the_second_try_says_the_same(
    client: openai.OpenAI, experts: dict[str, LoopbackExpert]
) -> None:
    cheap = experts["cheap"]
    cheap.breaks_off = True
    reading = begin(client, "Is it broken?", max_cost=1.5)
    assert reading.read_some() == "cheap"
    cheap.breaks_off = False
    assert reading.read() == "cheap heard: Is it broken?"


def test_an_answer_that_changes_in_a_second_try_is_an_error(
    client: openai.OpenAI, experts: dict[str, LoopbackExpert]
) -> None:
    cheap = experts["cheap"]
    cheap.breaks_off = True
    reading = begin(client, "Is it another?", max_cost=1.5)
    assert reading.read_some() == "cheap"
    cheap.answers["Is it another?"] = "Something else."
    cheap.breaks_off = False
    with pytest.raises(openai.APIError, match="not the one that was begun"):
        reading.read()
    assert begin(client, "Is it another?", max_cost=1.5).read() == "Something else."


def test_a_client_that_goes_in_the_middle_leaves_nothing_behind(
    place: tuple[str, Any], client: openai.OpenAI, experts: dict[str, LoopbackExpert]
) -> None:
    url, service = place
    closed(experts)
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    messages = [{"role": "user", "content": "Who has gone?"}]
    body = {"model": "der", "stream": True, "messages": messages, "max_cost": 1.5}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    reply = connection.getresponse()
    while b"cheap" not in reply.readline():
        pass
    reply.close()
    connection.close()
    opened(experts)
    wait_until(lambda: service.worker.num_open == 0 and service.run.pool.is_idle)
    assert service.served == {}
    assert service.run.limits == {}
    generated = service.run.pool.stats.generated
    assert begin(client, "Who has gone?", max_cost=1.5).read() == "cheap heard: Who has gone?"
    assert service.run.pool.stats.generated == generated  # what was paid for is kept


# --- a local model ---


def test_a_local_models_tokens_are_streamed_round_by_round(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = yaml.safe_load(config_path.read_text())
    for expert in settings["pool"]["experts"]:
        expert["decoding"] = {"max_new_tokens": 40}
        expert["thinking_tags"] = []  # it has nothing to show first
    settings["pool"]["store"] = str(tmp_path / "answers.sqlite")
    settings["train"] |= {"epochs": 1, "updates_per_epoch": 1}
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    run = train_ppo_multi.main(["--config", "long.yaml", "--name", "long"])
    gc.collect()
    gate = threading.Event()
    advance = RunningBatch.advance

    def gated(batch: RunningBatch) -> Any:
        if batch.rows and len(batch.rows[0].completion) > 1:
            assert gate.wait(PATIENCE_S), "nobody has read the first round"
        return advance(batch)

    monkeypatch.setattr(RunningBatch, "advance", gated)
    monkeypatch.setattr(HFExpert, "_end_ids", {0})
    with serving(tmp_path / run, tmp_path / "log.jsonl") as (url, _):
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE_S)
        reading = begin(client, "spell it out at length", max_calls=1)
        first = reading.read_some()
        gate.set()
        answer = reading.read()
        assert len(answer) > len(first)
        assert begin(client, "spell it out at length", max_calls=1).read() == answer  # the store's


# --- which call is the last ---


class FixedScores:
    """Two experts of equal score, and no action that stops."""

    num_experts = 2

    def scores(self, episodes: list[Episode]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([[1.0, 0.0]] * len(episodes)), torch.zeros(len(episodes))


@pytest.mark.parametrize(
    ("t_max", "max_cost", "unit", "is_last"),
    [
        (1, None, "billion parameters", True),
        (2, None, "billion parameters", False),
        (2, 1.5, "billion parameters", True),  # prices 1 and 3: .5 is left
        (2, 2.5, "billion parameters", False),  # enough for the cheaper one again
        (2, 1.5, "tokens", False),  # the call may take fewer than expected
    ],
)
def test_a_call_is_the_last_where_none_can_follow(
    t_max: int, max_cost: float | None, unit: str, is_last: bool
) -> None:
    limits = {"q": Limits(max_cost=max_cost)}
    policy = ServingPolicy(
        FixedScores(), np.array([1.0, 3.0]), RewardConfig(cost_unit=unit), limits
    )
    [decision] = policy.act([Episode(Question("q", "?"), t_max)])
    assert decision.expert_idx == 0
    assert limits["q"].is_last_call is is_last
