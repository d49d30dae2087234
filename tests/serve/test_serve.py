"""The server, asked by the official client over loopback: answers, errors, experts that fail."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
import torch
from served import (
    LoopbackExpert,
    ask,
    serving,
    wait_until,
)

from config import RewardConfig
from der_env import Episode
from questions import Question, load_splits
from runtime.command_line import load_config
from runtime.errors import DataError, RunError
from scripts import learn_from_log, load_test
from serving.feedback import Skill
from serving.policy import Limits, ServingPolicy
from serving.route_log import read_records
from serving.served_run import Exploration
from terminator import EstimateTerminator, load_terminator, save_terminator
from training.promise import fitted_on


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "routes.jsonl"


@pytest.fixture(scope="module")
def place(run: Path, log: Path) -> Iterator[tuple[str, Any]]:
    """One server for the tests that leave it as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backends.endpoint.FIRST_WAIT_S", 0.05)
        patch.setattr("serving.app.KEEP_ALIVE_S", 0.1)
        patch.setattr("serving.app.LOOK_S", 0.05)
        with serving(run, log, max_characters=2000) as running:
            yield running


@pytest.fixture
def client(place: tuple[str, Any]) -> openai.OpenAI:
    return openai.OpenAI(base_url=place[0], api_key="none", max_retries=0)


# --- answers ---


def test_a_plain_request_is_answered_and_its_route_is_told(client: openai.OpenAI) -> None:
    reply = ask(client, "What is new here?")
    route = reply.x_der
    assert reply.choices[0].message.content.endswith("heard: What is new here?")
    assert reply.choices[0].message.content.startswith(route["expert"])
    # Every call of a loopback server takes 7 and 3 tokens
    assert reply.usage.total_tokens == 10 * len(route["steps"])
    assert route["cost"] == sum({"cheap": 1, "dear": 8}[s["expert"]] for s in route["steps"])
    assert 0 <= route["estimate"] <= 1
    assert route["stop_reason"] in ("stopped", "t_max")


def test_the_headers_name_route_and_cost(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="der", messages=[{"role": "user", "content": "Which headers?"}]
    )
    reply = raw.parse()
    route = [step["expert"] for step in reply.x_der["steps"]]
    assert json.loads(raw.headers["x-der-route"]) == route
    assert float(raw.headers["x-der-cost"]) == reply.x_der["cost"]


def test_a_streamed_answer_is_the_plain_one(client: openai.OpenAI) -> None:
    text = "Say something long: " + "word " * 60
    plain = ask(client, text)
    stream = ask(client, text, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == plain.choices[0].message.content
    assert len(pieces) > 4
    assert chunks[-1].usage.total_tokens == plain.usage.total_tokens
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].x_der["cost"] == plain.x_der["cost"]


def test_sixty_four_requests_at_once_share_passes_and_cross_no_answer(
    client: openai.OpenAI, place: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    act = ServingPolicy.act

    def counted(policy, episodes):
        sizes.append(len(episodes))
        return act(policy, episodes)

    monkeypatch.setattr(ServingPolicy, "act", counted)
    texts = [f"Question number {number}?" for number in range(64)]
    with ThreadPoolExecutor(64) as threads:
        replies = list(threads.map(lambda text: ask(client, text), texts))
    for text, reply in zip(texts, replies, strict=True):
        assert reply.choices[0].message.content.endswith(f"heard: {text}")
    assert len({reply.id for reply in replies}) == 64
    assert max(sizes) > 4


def test_a_known_answer_comes_from_the_store(client: openai.OpenAI, place: tuple[str, Any]) -> None:
    first = ask(client, "Known before?")
    stats = place[1].run.pool.stats
    generated = stats.generated
    again = ask(client, "Known before?")
    assert stats.generated == generated
    assert again.choices[0].message.content == first.choices[0].message.content


def test_the_conversation_reaches_the_expert(
    client: openai.OpenAI, experts: dict[str, LoopbackExpert]
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is one?"}]},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "And after it?"},
    ]
    reply = ask(client, "", messages=messages)
    expert = experts[reply.x_der["steps"][0]["expert"]]
    assert expert.server is not None
    sent = expert.server.requests[-1][1]["messages"]
    assert sent[:3] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is one?"},
        {"role": "assistant", "content": "1"},
    ]
    assert sent[3]["content"].startswith("And after it?")


def test_limits_are_kept(client: openai.OpenAI) -> None:
    one = ask(client, "One call?", max_calls=1, alpha=0)
    assert len(one.x_der["steps"]) == 1
    cheap = ask(client, "Only the cheap one?", max_cost=1.5, alpha=0)
    assert [step["expert"] for step in cheap.x_der["steps"]] == ["cheap"]
    assert cheap.x_der["stop_reason"] == "max_cost"


def test_a_model_name_carries_the_weight_of_cost(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["der", "der-0", "der-0.02", "der-0.1"]
    assert ask(client, "Which weight?", model="der-0.05").x_der["alpha"] == 0.05
    assert ask(client, "Which weight?").x_der["alpha"] == 0.02


def test_settings_that_the_experts_have_themselves_are_named(client: openai.OpenAI) -> None:
    reply = ask(client, "How hot?", temperature=0.5, max_tokens=3)
    assert reply.x_der["ignored"] == ["max_tokens", "temperature"]


def test_a_broken_character_in_a_task_is_refused(place: tuple[str, Any]) -> None:
    """Half a surrogate pair cannot be logged: it would have ended everybody's requests."""
    url = urlsplit(place[0])
    body = {"model": "der", "messages": [{"role": "user", "content": "Why?"}], "task": "\ud800"}
    connection = http.client.HTTPConnection(url.hostname or "", url.port)
    connection.request("POST", f"{url.path}/chat/completions", json.dumps(body))
    reply = connection.getresponse()
    said = reply.read()
    assert reply.status == 400, said
    assert json.loads(said)["error"]["param"] == "task"


def test_a_route_that_cannot_be_noted_is_answered(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError("no log today")

    monkeypatch.setattr("serving.route_log.RouteLog.add_route", fail)
    with serving(run, tmp_path / "log.jsonl") as (url, _):
        assert ask(openai.OpenAI(base_url=url, api_key="none"), "Noted?").choices


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"model": "gpt-4o"}, 404, "model_not_found"),
        ({"model": "der-5"}, 404, "model_not_found"),
        ({"alpha": 5}, 400, "invalid_value"),
        ({"model": "der-0.05", "alpha": 0.1}, 400, "invalid_value"),
        ({"max_cost": 0.5}, 400, "invalid_value"),
        ({"max_calls": 0}, 400, "invalid_value"),
        ({"task": "t" * 201}, 400, "invalid_value"),
        ({"n": 2}, 400, "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "unsupported_value"),
        ({"response_format": {"type": "json_object"}}, 400, "unsupported_value"),
        ({"messages": []}, 400, "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "Hello"}]}, 400, "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 2001}]}, 400, "context_length_exceeded"),
        (
            {"messages": [{"role": "user", "content": "x" * 200_000}]},
            400,
            "context_length_exceeded",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}
                ]
            },
            400,
            "unsupported_value",
        ),
    ],
)
def test_what_cannot_be_answered_gets_an_error_object(
    client: openai.OpenAI, options: dict[str, Any], status: int, code: str
) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        ask(client, "Why?", **options)
    assert raised.value.status_code == status
    assert raised.value.code == code
    assert raised.value.body is not None  # the client has found the object


def test_an_unknown_address_gets_an_error_object(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.embeddings.create(model="der", input="x")
    assert raised.value.code == "not_found"


def test_a_key_is_asked_for(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path / "log.jsonl", key="secret") as (url, _):
        with pytest.raises(openai.AuthenticationError):
            ask(openai.OpenAI(base_url=url, api_key="wrong", max_retries=0), "Who?")
        assert ask(openai.OpenAI(base_url=url, api_key="secret"), "Who?").choices
        assert get(url, "/health")[0] == 200  # a load balancer has no key


def get(url: str, path: str) -> tuple[int, str]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    connection.request("GET", path)
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, text


# --- what may go wrong ---


def test_an_expert_that_is_down_fails_its_requests_alone_and_comes_back(
    client: openai.OpenAI, place: tuple[str, Any], experts: dict[str, LoopbackExpert]
) -> None:
    dear = experts["dear"]
    assert ask(client, "Up?", alpha=0).x_der["steps"][-1]["expert"] == "dear"
    dear.close()
    with ThreadPoolExecutor(8) as threads:
        down = [threads.submit(ask, client, f"Down {i}?", alpha=0) for i in range(4)]
        others = [threads.submit(ask, client, f"Others {i}?", max_cost=1.5) for i in range(4)]
    for future in down:
        error = future.exception()
        assert isinstance(error, openai.InternalServerError)
        assert error.status_code == 503
        assert error.code == "expert_unavailable"
    assert [future.result().x_der["expert"] for future in others] == ["cheap"] * 4
    dear.start(dear.port)
    assert ask(client, "Back again?", alpha=0).x_der["steps"][-1]["expert"] == "dear"


def test_a_stream_is_kept_alive_and_survives_a_client_that_goes(
    client: openai.OpenAI, place: tuple[str, Any], experts: dict[str, LoopbackExpert]
) -> None:
    url, service = place
    for expert in experts.values():
        expert.hold.clear()
    try:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        body = {"model": "der", "stream": True, "messages": [{"role": "user", "content": "Slow?"}]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        reply = connection.getresponse()
        assert reply.readline() == b": waiting for experts\n"
    finally:
        reply.close()
        connection.close()
        wait_until(lambda: service.worker.num_open == 0)
        for expert in experts.values():
            expert.hold.set()
    assert ask(client, "Still there?").choices


def test_a_locked_store_delays_and_does_not_fail(
    client: openai.OpenAI, place: tuple[str, Any]
) -> None:
    service = place[1]
    other = sqlite3.connect(service.run.pool.store.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ask, client, "Is it locked?")
        time.sleep(1)
        assert not waiting.done()
        other.execute("ROLLBACK")
        assert waiting.result(10).choices
    other.close()


# --- log, feedback, figures ---


def test_a_route_is_logged_without_texts_and_a_judgement_joins_it(
    client: openai.OpenAI, log: Path
) -> None:
    reply = ask(client, "A secret question?")
    told = client.post(
        "/feedback", body={"id": reply.id, "quality": 1.0}, cast_to=dict[str, object]
    )
    assert told == {"id": reply.id, "quality": 1.0, "can_be_learned_from": False}
    assert "secret" not in log.read_text()
    route, feedback = [record for record in read_records(log) if record["id"] == reply.id]
    assert [step["probability"] for step in route["steps"]] == [1.0] * len(route["steps"])
    assert (feedback["kind"], feedback["quality"]) == ("feedback", 1.0)


def test_a_judgement_of_an_unknown_route_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.post("/feedback", body={"id": "none", "quality": 1}, cast_to=dict[str, object])
    with pytest.raises(openai.BadRequestError):
        client.post("/feedback", body={"id": "none", "quality": 2}, cast_to=dict[str, object])


def test_an_exploring_policy_logs_the_probability_of_its_softmax(run: Path, tmp_path: Path) -> None:
    exploration = Exploration(temperature=50.0, seed=1)  # nearly even
    with serving(run, tmp_path / "log.jsonl", exploration=exploration) as (url, _):
        client = openai.OpenAI(base_url=url, api_key="none")
        replies = [ask(client, f"Explore {number}?") for number in range(20)]
    first = [reply.x_der["steps"][0] for reply in replies]
    assert {step["expert"] for step in first} == {"cheap", "dear"}
    assert all(0 < step["probability"] < 1 for step in first)


def test_the_softmax_is_taken_over_what_is_affordable() -> None:
    """Two experts of prices 1 and 3 with scores 1 and 0, and stopping, which is forbidden."""

    class FixedScores:
        num_experts = 2

        def scores(self, episodes):
            return torch.tensor([[1.0, 0.0, -1e9]] * len(episodes)), torch.zeros(len(episodes))

    limits = {"rich": Limits(max_cost=5.0), "poor": Limits(max_cost=2.0)}
    prices = np.array([1.0, 3.0])
    policy = ServingPolicy(FixedScores(), prices, RewardConfig(), limits, temperature=0.5)
    rich = Episode(Question("rich", "?"), 2)
    chosen = [policy.act([rich])[0].expert_idx for _ in range(400)]
    # e^2 / (e^2 + 1) = 0.8808; two standard deviations of 400 draws are 0.032
    assert sum(expert_idx == 0 for expert_idx in chosen) / 400 == pytest.approx(0.8808, abs=0.04)
    expected = [0.8808 if expert_idx == 0 else 0.1192 for expert_idx in chosen]
    assert limits["rich"].probabilities == pytest.approx(expected, abs=1e-4)
    policy.act([Episode(Question("poor", "?"), 2)])
    assert limits["poor"].probabilities == [1.0]


def test_metrics_and_health_are_shown(client: openai.OpenAI, place: tuple[str, Any]) -> None:
    ask(client, "Counted?")
    status, text = get(place[0], "/metrics")
    assert status == 200
    assert re.search(r'^der_requests_total\{status="200"\} [1-9]', text, re.MULTILINE)
    assert re.search(r"^der_pool_generated [1-9]", text, re.MULTILINE)
    status, text = get(place[0], "/health")
    assert (status, json.loads(text)["status"]) == (200, "ok")


def test_a_log_that_was_cut_off_is_gone_on_with(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "route", "id": "old"}\n{"kind": "route", "id": "to')
    with serving(run, path) as (url, _):
        reply = ask(openai.OpenAI(base_url=url, api_key="none"), "After a crash?")
    assert [record["id"] for record in read_records(path)] == ["old", reply.id]


def test_judged_answers_teach_the_outcome_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever asks about colours finds every answer right, and wrong about sounds.

    Training has not met such questions, so its model cannot tell; held-out judgements can.
    """
    shutil.copytree(run, tmp_path / "run")
    log = tmp_path / "log.jsonl"
    with serving(tmp_path / "run", log, logs_texts=True) as (url, _):
        client = openai.OpenAI(base_url=url, api_key="none")
        for number in range(24):
            for quality, kind in enumerate(("sound, is it loud, low or deep", "colour")):
                reply = ask(client, f"Which {kind} has object {number}?")
                judgement = {"id": reply.id, "quality": quality}
                client.post("/feedback", body=judgement, cast_to=dict[str, object])
    arguments = ["--run", str(tmp_path / "run"), "--log", str(log)]
    before, after = learn_from_log.main(arguments).after_call
    assert after.log_loss < before.log_loss
    assert after.auroc is not None
    assert after.auroc > 0.9
    assert "nothing is changed" in capsys.readouterr().out
    weights = (tmp_path / "run" / "agent" / "model.safetensors").read_bytes()
    learn_from_log.main([*arguments, "--write"])
    assert (tmp_path / "run" / "agent" / "model.safetensors").read_bytes() != weights
    kept = tmp_path / "run" / "agent_before-1" / "model.safetensors"
    assert kept.read_bytes() == weights
    settings = json.loads((tmp_path / "run" / "agent" / "config.json").read_text())["settings"]
    assert settings["spent"] == []  # found with the model before
    assert "--budget needs training again" in capsys.readouterr().out
    with serving(tmp_path / "run", log) as (url, _):  # the agent still loads
        assert ask(openai.OpenAI(base_url=url, api_key="none"), "Learned?").choices


def test_a_promise_made_with_the_model_before_goes_and_its_threshold_stays(tmp_path: Path) -> None:
    save_terminator(EstimateTerminator(0.75, {"max_loss": 0.1}), tmp_path)
    learn_from_log.drop_promise(tmp_path)
    kept = load_terminator(tmp_path, torch.device("cpu"))
    assert isinstance(kept, EstimateTerminator)
    assert (kept.threshold, kept.promise) == (0.75, None)


def test_what_calibrates_a_promise_is_not_learned_from(run: Path) -> None:
    config = load_config(run / "config.yaml")
    splits = load_splits(config.data)
    known = len(splits.train) + len(splits.validation)
    assert len(fitted_on(config)) == known
    promising = config.terminator.model_copy(update={"max_loss": 0.1})
    config = config.model_copy(update={"terminator": promising})
    assert len(fitted_on(config)) == known - len(splits.validation) // 2


def test_log_loss_and_auroc_are_those_of_the_definitions() -> None:
    """Probabilities 0.5, 0.8 and 0.2 of outcomes 1, 1 and 0.

    -(ln 0.5 + ln 0.8 + ln 0.8) / 3 = 0.37981; both right answers stand above the wrong one.
    """
    odds = np.log(np.array([1.0, 4.0, 0.25]))
    skill = Skill.of(odds, np.array([True, True, False]))
    assert skill.log_loss == pytest.approx(0.37981, abs=1e-5)
    assert skill.auroc == 1.0
    assert Skill.of(odds, np.array([True, True, True])).auroc is None


def test_a_log_without_texts_cannot_be_learned_from(run: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"kind": "route", "id": "a"}\n{"kind": "feedback", "id": "a", "quality": 1}\n')
    with pytest.raises(DataError, match=r"0 judged answers with their texts \(1 without\)"):
        learn_from_log.main(["--run", str(run), "--log", str(log)])


def test_a_load_test_without_a_run_says_so_before_it_starts_a_server(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run there"):
        load_test.main(["--run", str(tmp_path / "nowhere")])


@pytest.mark.slow
def test_a_load_with_failing_experts_loses_and_crosses_no_answer(run: Path) -> None:
    figures = load_test.main(["--run", str(run), "--requests", "100", "--at_once", "16"])
    assert figures["16"]["requests_per_s"] > 0
