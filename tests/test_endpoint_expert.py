"""Experts behind OpenAI-compatible servers: `transformers serve` with models of the embedded pool,
and small servers that misbehave.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_server import SmallServer, completion

from backends.answer_store import AnswerStore, answer_key
from backends.endpoint import EndpointExpert
from backends.hf import HFExpert
from config import EndpointExpertConfig, HFExpertConfig
from evaluation.policies import FixedRoute
from experts import ExpertPool, Request, build_expert
from questions import Question
from rollout import NeverSatisfied, play
from runtime.command_line import load_config
from runtime.errors import ExpertError

KEY = "sk-of-nobody-1234567890"
START_S = 120  # a server imports torch and transformers first


class TransformersServer:
    """`transformers serve` in a process of its own; models are loaded when first asked for, by
    their folder.
    """

    def __init__(self, log_path: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.log_path = f"http://127.0.0.1:{self.port}/v1", log_path
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [
            Path(sys.executable).with_name("transformers"),
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--device",
            "cpu",
            "--dtype",
            "float32",
        ]
        env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def wait(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                return urllib.request.urlopen(
                    f"http://127.0.0.1:{self.port}/health", timeout=5
                ).close()
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None, self.log_path.read_text()[-2000:]
                assert time.monotonic() < deadline, f"no server after {START_S} s"
                time.sleep(0.2)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = TransformersServer(tmp_path_factory.mktemp("server") / "log.txt")
    server.start()
    server.wait()
    yield server
    server.kill()


@pytest.fixture
def small_server():
    """`small_server(behave, models)`: see SmallServer."""
    servers = []

    def make(behave, models=None):
        servers.append(SmallServer(behave, models))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("backends.endpoint.FIRST_WAIT_S", 0.05)
    monkeypatch.setattr("backends.endpoint.POLL_S", 0.005)


@pytest.fixture(scope="module")
def questions(project):
    """Two dozen short questions: they fit the models' context with an answer in them."""
    rows = map(
        json.loads, (project / "data/tiny_questions/validation.jsonl").read_text().splitlines()
    )
    return [row["text"] for row in rows if len(row["text"]) < 100][:24]


@pytest.fixture(scope="module")
def chat_model(tiny_pool_dir, tmp_path_factory):
    """A copy of an embedded model with a chat template that asks as the plain format does, after a
    system prompt if there is one.
    """
    folder = shutil.copytree(
        tiny_pool_dir / "llama-0.2m", tmp_path_factory.mktemp("chat") / "llama-0.2m"
    )
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt"
        " %}Answer:{% endif %}"
    )
    return folder


def endpoint(*urls, model="m", **more):
    values = {
        "params_b": 0.001,
        "prompt_format": "plain",
        "decoding": {"max_new_tokens": 40},
        "revision": "1",
        **more,
    }
    return EndpointExpert(
        EndpointExpertConfig(name="remote", kind="endpoint", model=str(model), urls=urls, **values)
    )


def local(folder, **more):
    values = {
        "params_b": 0.001,
        "prompt_format": "plain",
        "decoding": {"max_new_tokens": 40},
        **more,
    }
    return HFExpert(HFExpertConfig(name="local", source=str(folder), **values), torch.device("cpu"))


def ask(expert, prompts):
    answers = dict(pair for batch in expert.answer(prompts) for pair in batch)
    return [answers[index] for index in range(len(prompts))]


def without_time(answers):
    return [replace(answer, latency_s=0.0) for answer in answers]


def dead_url():
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


# --- transformers serve
# ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_gives_the_answers_and_counts_of_the_same_model_in_this_process(
    server, tiny_pool_dir, questions
):
    here, there = (
        local(tiny_pool_dir / "neox-0.4m"),
        endpoint(server.url, model=tiny_pool_dir / "neox-0.4m"),
    )
    prompts = [
        there.render(question, previous, "paper-v1")
        for question in questions
        for previous in (None, "tenalp")
    ]
    assert prompts[:2] == [
        here.render(questions[0], previous, "paper-v1") for previous in (None, "tenalp")
    ]
    answers = ask(there, prompts)
    assert without_time(answers) == without_time(ask(here, prompts))
    assert len({answer.text for answer in answers}) > 10
    assert all(answer.latency_s > 0 for answer in answers)


@pytest.mark.slow
def test_a_server_asked_to_chat_renders_the_same_prompt_with_the_models_own_template(
    server, chat_model, questions
):
    chat = {"prompt_format": "chat", "system_prompt": "Hello."}
    here, there = local(chat_model, **chat), endpoint(server.url, model=chat_model, **chat)
    assert here.render(questions[0], None, "paper-v1") == f"Hello.\n{questions[0]}\nAnswer:"
    rendered = there.render(questions[0], None, "paper-v1")
    assert json.loads(rendered) == [
        {"role": "system", "content": "Hello."},
        {"role": "user", "content": questions[0]},
    ]
    answers = {
        kind: ask(expert, [expert.render(question, None, "paper-v1") for question in questions])
        for kind, expert in (("here", here), ("there", there))
    }
    assert without_time(answers["there"]) == without_time(answers["here"])


@pytest.mark.slow
def test_an_answer_ends_before_a_stop_string_on_a_server_too(server, tiny_pool_dir, questions):
    stop = {"stop": ["a", "1"]}  # the server includes the string it stops at
    here, there = (
        local(tiny_pool_dir / "neox-0.4m", **stop),
        endpoint(server.url, model=tiny_pool_dir / "neox-0.4m", **stop),
    )
    prompts = [there.render(question, None, "paper-v1") for question in questions]
    texts = [answer.text for answer in ask(there, prompts)]
    assert texts == [answer.text for answer in ask(here, prompts)]
    assert texts != [answer.text for answer in ask(local(tiny_pool_dir / "neox-0.4m"), prompts)]
    assert not any(re.search("[a1]", text) for text in texts)


@pytest.mark.slow
def test_requests_of_a_dead_replica_go_to_the_other(server, tiny_pool_dir, questions, caplog):
    dead = dead_url()
    expert = endpoint(
        dead, server.url, model=tiny_pool_dir / "neox-0.4m", concurrency=4, max_retries=1
    )
    prompts = [expert.render(question, None, "paper-v1") for question in questions]
    expected = ask(local(tiny_pool_dir / "neox-0.4m"), prompts)
    assert without_time(ask(expert, prompts)) == without_time(expected)
    assert f"expert remote: {dead} is set aside for 0.1 s: connection failed" in caplog.text
    assert server.url not in caplog.text
    assert [replica.num_failures > 0 for replica in expert.replicas] == [True, False]


@pytest.mark.slow
def test_a_server_killed_and_restarted_in_a_rollout_loses_nothing(
    server, tiny_pool_dir, questions, tmp_path, monkeypatch
):
    monkeypatch.setattr("backends.endpoint.FIRST_WAIT_S", 0.5)
    monkeypatch.setattr("backends.endpoint.MAX_DOUBLINGS", 0)
    models = [tiny_pool_dir / name for name in ("llama-0.2m", "neox-0.4m")]
    there = [
        endpoint(server.url, model=model, max_retries=2 * START_S, concurrency=2)
        for model in models
    ]
    pool = ExpertPool(there, AnswerStore(tmp_path / "there.sqlite"))
    before = []

    def kill_at_thirty(generated):  # all 24 first calls, and some of the second
        if generated >= 30 and not before:
            server.kill()
            before.extend(pool.store._run("SELECT key, text FROM answers"))
            server.start()

    pool.on_generated = kill_at_thirty
    asked = [Question(f"q{i}", text, _reference="") for i, text in enumerate(questions)]
    routes = play(asked, FixedRoute([0, 1]), pool, NeverSatisfied(), 2)
    here = ExpertPool([local(model) for model in models], AnswerStore(tmp_path / "here.sqlite"))
    expected = play(asked, FixedRoute([0, 1]), here, NeverSatisfied(), 2)
    assert [[step.answer.text for step in route.episode.steps] for route in routes] == [
        [step.answer.text for step in route.episode.steps] for route in expected
    ]
    assert len(before) >= 30
    assert set(before) <= set(pool.store._run("SELECT key, text FROM answers"))
    # Nothing twice, nothing missing
    assert pool.stats.generated == len(pool.store) == len(here.store)
    assert pool.stats.failed == 0


# --- what a server may do
# --------------------------------------------------------------------------------------------


def test_decoding_and_stop_strings_are_handed_on(small_server):
    server = small_server(lambda body, number: completion("yes"))
    decoding = {"max_new_tokens": 5, "temperature": 0.7, "top_p": 0.9, "seed": 11}
    ask(endpoint(server.url, decoding=decoding, stop=["\n", "Question:"]), ["Why?\nAnswer:"])
    ((path, body, headers, _),) = server.requests
    sent = {
        "max_tokens": 5,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 11,
        "stop": ["\n", "Question:"],
    }
    assert (path, body) == ("/v1/completions", {"model": "m", "prompt": "Why?\nAnswer:", **sent})
    chat = endpoint(server.url, prompt_format="chat")
    server = small_server(lambda body, number: completion("yes", is_chat=True))
    ask(endpoint(server.url, prompt_format="chat"), [chat.render("Why?", None, "paper-v1")])
    ((path, body, headers, _),) = server.requests
    assert (path, body["messages"]) == (
        "/v1/chat/completions",
        [{"role": "user", "content": "Why?"}],
    )
    assert "stop" not in body
    assert headers["authorization"] == "Bearer none"


@pytest.mark.parametrize("prompt_format", ["plain", "chat"])
def test_no_text_is_an_empty_answer_and_a_cut_one_is_an_answer(small_server, prompt_format):
    texts = [None, "", " long ans"]
    server = small_server(
        lambda body, number: completion(
            texts[number], is_chat=prompt_format == "chat", finish_reason="length"
        )
    )
    expert = endpoint(server.url, prompt_format=prompt_format, concurrency=1)
    prompts = [expert.render(question, None, "paper-v1") for question in "abc"]
    assert [(a.text, a.prompt_tokens, a.completion_tokens) for a in ask(expert, prompts)] == [
        ("", 7, 3),
        ("", 7, 3),
        ("long ans", 7, 3),
    ]


def test_where_a_server_does_not_count_four_characters_are_a_token_and_it_is_said_once(
    small_server, caplog
):
    server = small_server(lambda body, number: completion("12345", usage=False))
    answers = ask(endpoint(server.url), ["12345678", "123456789"])
    assert [(a.prompt_tokens, a.completion_tokens) for a in answers] == [(2, 2), (3, 2)]
    assert (
        caplog.text.count("the server does not count tokens; 4 characters are charged as one token")
        == 1
    )


def test_a_replica_never_holds_more_requests_than_its_concurrency(small_server):
    servers = [
        small_server(lambda body, number: time.sleep(0.02) or completion(body["prompt"]))
        for _ in range(2)
    ]
    answers = ask(
        endpoint(*(server.url for server in servers), concurrency=3), [str(i) for i in range(30)]
    )
    assert [answer.text for answer in answers] == [str(i) for i in range(30)]
    assert [server.most_at_once for server in servers] == [3, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    "failure",
    [
        (500, {"error": {"message": "out of memory"}}),
        (503, b"<html>no upstream</html>", {"content-type": "text/html"}),
        (429, {"error": {"message": "slow down"}}),
        (200, {"error": "busy"}),
        (200, b"<html>welcome</html>", {"content-type": "text/html"}),
        (200, b'{"choices": [{"text": "tru'),
        (200, b"{}", {"content-length": "100"}),
    ],
    ids=["500", "503", "429", "no choices", "a web page", "broken JSON", "cut off"],
)
def test_a_passing_failure_is_tried_again(small_server, failure, caplog):
    server = small_server(lambda body, number: failure if number < 2 else completion("at last"))
    (answer,) = ask(endpoint(server.url, max_retries=2, timeout_s=1.0), ["a"])
    assert answer.text == "at last"
    assert len(server.requests) == 3
    assert caplog.text.count("is set aside") == 2


def test_waits_grow_with_every_failure_in_a_row_and_start_anew_after_an_answer(small_server):
    fails = [True, True, True, False, True, False]
    server = small_server(lambda body, number: (500, {}) if fails[number] else completion("x"))
    expert = endpoint(server.url, concurrency=1)
    ask(expert, ["a"])
    ask(expert, ["b"])
    times = [arrival for *_, arrival in server.requests]
    waits = [later - sooner for sooner, later in itertools.pairwise(times)]
    for wait, least in zip([*waits[:3], waits[4]], [0.05, 0.1, 0.2, 0.05], strict=True):
        # Half as long again by chance, and what a busy machine takes
        assert least <= wait <= 1.5 * least + 0.1


def test_requests_that_fail_together_count_once_against_their_replica(small_server):
    barrier = threading.Barrier(8)

    def behave(body, number):
        if number < 8:
            barrier.wait(10)  # all eight are there
            return 500, {}
        return completion("x")

    server = small_server(behave)
    expert = endpoint(server.url, concurrency=8, max_retries=1)
    set_aside, waits = expert.replicas[0].set_aside, []
    expert.replicas[0].set_aside = lambda at_least_s: (
        waits.append(set_aside(at_least_s)) or waits[-1]
    )
    assert [answer.text for answer in ask(expert, list("abcdefgh"))] == ["x"] * 8
    assert len(waits) == 1


@pytest.mark.slow
def test_a_failing_replica_gets_one_request_at_a_time_while_another_works(small_server):
    held = []
    failing = small_server(
        lambda body, number: held.append(failing.num_held) or time.sleep(0.05) or (500, {})
    )
    working = small_server(lambda body, number: time.sleep(0.02) or completion("x"))
    answers = ask(
        endpoint(failing.url, working.url, concurrency=3, max_retries=1),
        [str(i) for i in range(60)],
    )
    assert [answer.text for answer in answers] == ["x"] * 60
    assert max(held[:3]) > 1
    assert len(held) > 4
    assert set(held[3:]) == {1}


def test_a_server_that_stays_away_stops_the_run_after_the_waits_of_one_request():
    expert, start = endpoint(dead_url(), concurrency=8, max_retries=3), time.monotonic()
    with pytest.raises(ExpertError, match=r"connection failed \(.+\) \(tries: 4, replicas: 1\)"):
        ask(expert, [str(i) for i in range(100)])
    assert (
        0.35 <= time.monotonic() - start < 4.0
        # .05 + .1 + .2, and half as much again, and what a busy machine takes (eight after
        # eight would
        # take 4.5)
    )


@pytest.mark.slow
def test_a_server_that_asks_for_time_gets_it(small_server):
    server = small_server(
        lambda body, number: (429, {}, {"retry-after": "1"}) if number == 0 else completion("x")
    )
    ask(endpoint(server.url), ["a"])
    first, second = (arrival for *_, arrival in server.requests)
    assert second - first >= 1.0


def test_a_server_that_asks_for_a_day_does_not_get_it(small_server, monkeypatch):
    monkeypatch.setattr("backends.endpoint.MAX_RETRY_AFTER_S", 0.5)
    server = small_server(
        lambda body, number: (429, {"error": {"message": "daily quota"}}, {"retry-after": "86400"})
    )
    with pytest.raises(ExpertError, match=r"status 429, .*daily quota.* \(tries: 2, replicas: 1\)"):
        ask(endpoint(server.url, max_retries=1), ["a"])
    first, second = (arrival for *_, arrival in server.requests)
    assert second - first >= 0.5


@pytest.mark.slow
def test_a_slow_replica_is_reported_and_its_requests_go_to_the_other(small_server, caplog):
    slow = small_server(lambda body, number: time.sleep(8) or completion("late"))
    quick = small_server(lambda body, number: completion("quick"))
    start = time.monotonic()
    answers = ask(
        endpoint(slow.url, quick.url, timeout_s=1.0, concurrency=2, max_retries=1), list("abcdef")
    )
    assert [answer.text for answer in answers] == ["quick"] * 6
    assert time.monotonic() - start < 6
    assert f"{slow.url} is set aside for 0.1 s: no answer within 1 s" in caplog.text


# --- failing for good
# ------------------------------------------------------------------------------------------------


def pool_of(tmp_path, *experts):
    return ExpertPool(experts, AnswerStore(tmp_path / "answers.sqlite"))


def fails_at(letter, failure=(500, {"error": {"message": "out of memory"}})):
    return lambda body, number: (
        failure
        if body["prompt"].startswith(letter)
        else completion(f"{body['prompt'][0]} answered")
    )


def test_a_request_that_fails_for_good_stops_the_run_with_everything_answered_stored(
    small_server, tmp_path
):
    server = small_server(fails_at("c"))
    pool = pool_of(tmp_path, endpoint(server.url, max_retries=2, concurrency=2))
    message = (
        rf"expert remote: {server.url}: status 500, .*out of memory.* \(tries: 3, replicas: 1\)\."
        r" What was answered is stored: .* --resume"
    )
    with pytest.raises(ExpertError, match=message):
        pool.answer([Request(0, letter) for letter in "abcdefgh"])
    assert [body["prompt"][0] for _, body, *_ in server.requests].count("c") == 3
    stored = [row[0] for row in pool.store._run("SELECT text FROM answers")]
    assert {"a answered", "b answered"} <= set(stored)
    assert len(stored) == len(server.requests) - 3  # every answer that was given
    healed = small_server(fails_at("z"))
    again = pool_of(tmp_path, endpoint(healed.url))  # another address, the same answers
    assert [
        answer.text for answer in again.answer([Request(0, letter) for letter in "abcdefgh"])
    ] == [f"{letter} answered" for letter in "abcdefgh"]
    assert len(healed.requests) == 8 - len(stored)


def test_where_the_run_goes_on_a_failed_request_is_an_empty_answer_that_is_counted_and_not_stored(
    small_server, tmp_path, caplog
):
    server = small_server(fails_at("c"))
    pool = pool_of(tmp_path, endpoint(server.url, max_retries=1, on_failure="empty"))
    assert [answer.text for answer in pool.answer([Request(0, letter) for letter in "abcd"])] == [
        "a answered",
        "b answered",
        "",
        "d answered",
    ]
    assert (pool.stats.failed, pool.stats.generated, len(pool.store)) == (1, 3, 3)
    assert (
        "(tries: 2, replicas: 1); going on with an empty answer that is not stored" in caplog.text
    )
    mended = pool_of(tmp_path, endpoint(small_server(fails_at("z")).url))
    assert mended.answer([Request(0, "c")])[0].text == "c answered"  # asked anew


def test_a_request_that_no_server_could_answer_is_not_tried_again(small_server, tmp_path, caplog):
    too_long = fails_at("c", (400, {"error": {"message": "maximum context length is 256 tokens"}}))
    server = small_server(
        lambda body, number: (
            too_long(body, number)
            if body["prompt"][0] == "c"
            else time.sleep(0.3) or too_long(body, number)
        )
    )
    pool = pool_of(tmp_path, endpoint(server.url, concurrency=4))
    with pytest.raises(
        ExpertError, match=r"status 400, .*maximum context length.*\(tries: 1, replicas: 1\)"
    ):
        pool.answer([Request(0, letter) for letter in "abcdefgh"])
    # Nothing was begun after that
    assert sorted(body["prompt"][0] for _, body, *_ in server.requests) == [
        "a",
        "b",
        "c",
        "d",
    ]
    # What was begun was ended
    assert sorted(row[0] for row in pool.store._run("SELECT text FROM answers")) == [
        "a answered",
        "b answered",
        "d answered",
    ]
    assert ask(endpoint(server.url, on_failure="empty"), ["c"]) == [None]
    assert "set aside" not in caplog.text


def test_a_run_that_stops_does_not_wait_for_requests_that_were_to_be_tried_again(
    small_server, monkeypatch
):
    monkeypatch.setattr("backends.endpoint.FIRST_WAIT_S", 20.0)
    server = small_server(
        lambda body, number: (500, {}) if body["prompt"] == "a" else time.sleep(0.2) or (400, {})
    )
    start = time.monotonic()
    with pytest.raises(ExpertError, match="status 400"):
        ask(endpoint(server.url), ["a", "c"])
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_the_run_even_where_failures_are_let_pass(small_server, status):
    server = small_server(lambda body, number: (status, {"error": {"message": "no"}}))
    with pytest.raises(ExpertError, match=f"status {status}"):
        ask(endpoint(server.url, on_failure="empty", concurrency=1), list("abc"))
    assert len(server.requests) == 1


def test_remote_experts_are_asked_at_the_same_time_and_stored_in_the_calling_thread(
    small_server, tmp_path
):
    both = threading.Barrier(2)

    def behave(body, number):
        if number == 0:
            both.wait(10)  # passes only while the other server is being asked too
        return completion(f"{body['model']} {body['prompt'][0]}")

    pool = pool_of(
        tmp_path,
        *(endpoint(small_server(behave).url, model=model, max_retries=0) for model in "mn"),
    )
    answers = pool.answer([Request(i % 2, letter) for i, letter in enumerate("abcdef")])
    assert [answer.text for answer in answers] == ["m a", "n b", "m c", "n d", "m e", "n f"]


def test_when_one_remote_expert_fails_the_answers_of_the_other_are_stored(small_server, tmp_path):
    broken = small_server(lambda body, number: (404, {}))
    sound = small_server(lambda body, number: time.sleep(0.05) or completion("fine"))
    pool = pool_of(
        tmp_path, endpoint(broken.url, model="m"), endpoint(sound.url, model="n", concurrency=2)
    )
    with pytest.raises(ExpertError, match="status 404"):
        pool.answer([Request(i % 2, str(i)) for i in range(12)])
    assert [row[0] for row in pool.store._run("SELECT text FROM answers")] == ["fine"] * 6


# --- keys and identity
# -----------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_shows_up_nowhere_else(small_server, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEST_KEY", KEY)
    # Some servers repeat it
    server = small_server(fails_at("c", (401, {"error": {"message": f"no such key: {KEY}"}})))
    pool = pool_of(tmp_path, endpoint(server.url, api_key_env="TEST_KEY"))
    pool.answer([Request(0, "a")])
    assert server.requests[0][2]["authorization"] == f"Bearer {KEY}"
    with pytest.raises(ExpertError, match=r"no such key: \[key\]") as caught:
        pool.answer([Request(0, "c")])
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    expert = pool.experts[0]
    shown = [
        caplog.text,
        repr(expert),
        repr(vars(expert)),
        repr([vars(r) for r in expert.replicas]),
        expert.config.model_dump_json(),
        json.dumps(pool.fingerprint()),
    ]
    assert not any(KEY in text for text in shown)
    pool.store.close()
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_a_key_that_is_not_set_or_stands_in_the_address_is_refused(monkeypatch):
    monkeypatch.delenv("TEST_KEY", raising=False)
    with pytest.raises(
        ExpertError,
        match=r"expert remote: the environment variable TEST_KEY \(api_key_env\) is not set",
    ):
        endpoint("http://localhost:1/v1", api_key_env="TEST_KEY").load()
    for url in (
        f"http://user:{KEY}@localhost/v1",
        f"http://localhost/v1?key={KEY}",
        "localhost:8000/v1",
    ):
        with pytest.raises(
            ExpertError,
            match=(
                r"expert remote: urls are http\(s\)://host:port/v1, .* keys belong in api_key_env"
            ),
        ) as caught:
            endpoint(url)
        assert KEY not in str(caught.value)


def test_answers_belong_to_a_model_and_its_revision_wherever_it_is_served():
    def key(url="http://a/v1", **more):
        expert = endpoint(url, **more)
        return answer_key(expert.identity(), "prompt", expert.decoding())

    same = [
        key(),
        key("http://b/v1"),
        key(
            concurrency=3,
            timeout_s=9.0,
            max_retries=0,
            on_failure="empty",
            api_key_env="HOME",
            params_b=7.0,
        ),
    ]
    assert len(set(same)) == 1
    others = [
        key(model="n"),
        key(revision="2"),
        key(prompt_format="chat"),
        key(prompt_format="chat", system_prompt="Hi."),
        key(stop=["\n"]),
        key(decoding={"seed": 1}),
    ]
    assert len({same[0], *others}) == 7


def test_the_example_configuration_makes_a_pool_without_asking_a_server(project):
    config = load_config(project / "configs/endpoints.yaml")
    experts = [
        build_expert(expert, config.pool, torch.device("cpu")) for expert in config.pool.experts
    ]
    assert all(isinstance(expert, EndpointExpert) for expert in experts)
    assert len({answer_key(expert.identity(), "", {}) for expert in experts}) == len(experts) >= 3


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"total_tokens": 9},
        {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": "7", "completion_tokens": "x"},
    ],
)
def test_counts_that_a_server_leaves_out_are_estimated_and_no_answer_is_lost(
    small_server, tmp_path, usage
):
    status, reply = completion("12345")
    server = small_server(lambda body, number: (status, reply | {"usage": usage}))
    pool = ExpertPool([endpoint(server.url)], AnswerStore(tmp_path / "answers.sqlite"))
    (answer,) = pool.answer([Request(0, "q")])
    assert (answer.text, answer.completion_tokens) == ("12345", 2) and answer.prompt_tokens > 0
    assert len(pool.store) == 1


def test_half_a_character_is_replaced_and_text_that_is_none_is_no_completion(
    small_server, tmp_path
):
    texts = iter(["half \ud83d", [{"type": "text", "text": "hi"}], 5])
    server = small_server(lambda body, number: completion(next(texts)))
    pool = ExpertPool(
        [endpoint(server.url, max_retries=0)], AnswerStore(tmp_path / "answers.sqlite")
    )
    assert pool.answer([Request(0, "q")])[0].text == "half \ufffd"
    for question in ("list", "number"):
        with pytest.raises(ExpertError, match="the reply is not a completion"):
            pool.answer([Request(0, question)])


# --- servers of today ---


def refusal(message, status=400):
    return status, {"error": {"message": message, "type": "invalid_request_error"}}


def test_the_newer_name_of_the_token_limit_is_learned_from_the_servers_error(small_server):
    def behave(body, number):
        if "max_tokens" in body:
            return refusal(
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
                " 'max_completion_tokens' instead."
            )
        return completion("yes", is_chat=True)

    server = small_server(behave)
    expert = endpoint(server.url, prompt_format="chat", concurrency=1)
    prompts = [expert.render(text, None, "paper-v1") for text in "ab"]
    assert [answer.text for answer in ask(expert, prompts)] == ["yes", "yes"]
    names = ["max_tokens", "max_completion_tokens"]
    limits = [[name for name in names if name in body] for _, body, *_ in server.requests]
    assert limits == [["max_tokens"], ["max_completion_tokens"], ["max_completion_tokens"]]


@pytest.mark.parametrize("prompt_format", ["plain", "chat"])
def test_a_prompt_over_the_servers_context_loses_its_middle(small_server, prompt_format):
    """A server of 100 tokens, a character each, 40 of them for the answer: 60 characters fit."""

    def behave(body, number):
        text = body["messages"][-1]["content"] if prompt_format == "chat" else body["prompt"]
        if len(text) + 40 > 100:
            return refusal(
                f"This model's maximum context length is 100 tokens. However, you requested"
                f" {len(text) + 40} tokens ({len(text)} in the messages, 40 in the completion)."
            )
        return completion("yes", is_chat=prompt_format == "chat")

    server = small_server(behave)
    expert = endpoint(server.url, prompt_format=prompt_format)
    prompt = expert.render("start " + "x" * 300 + " end", None, "paper-v1")
    (answer,) = ask(expert, [prompt])
    assert (answer.text, answer.prompt_cut) == ("yes", True)
    body = server.requests[-1][1]
    text = body["messages"][-1]["content"] if prompt_format == "chat" else body["prompt"]
    assert text.startswith("start") and "end" in text[-12:]
    assert len(server.requests) == 2  # the server said how long it is: one cut is enough


def test_a_server_is_told_what_its_chat_template_wants(small_server):
    server = small_server(lambda body, number: completion("yes", is_chat=True))
    expert = endpoint(
        server.url, prompt_format="chat", chat_template_kwargs={"enable_thinking": False}
    )
    ask(expert, [expert.render("Why?", None, "paper-v1")])
    assert server.requests[-1][1]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_context_that_never_fits_fails_that_one_question(small_server):
    server = small_server(
        lambda body, number: (
            refusal("max_tokens must be at least 1, got -186.")
            if "long" in body["prompt"]
            else completion("yes")
        )
    )
    expert = endpoint(server.url, on_failure="empty", concurrency=1)
    long = "long" * 4000
    answers = ask(expert, ["a", long, "b"])
    assert [None if a is None else a.text for a in answers] == ["yes", None, "yes"]


def test_thinking_and_refusals_are_kept_with_the_answer(small_server):
    replies = [
        {"content": "4", "reasoning_content": "2 + 2"},
        {"content": None, "refusal": "I cannot help."},
    ]

    def behave(body, number):
        status, reply = completion("", is_chat=True)
        reply["choices"][0]["message"] |= replies[number]
        return status, reply

    expert = endpoint(small_server(behave).url, prompt_format="chat", concurrency=1)
    prompts = [expert.render(text, None, "paper-v1") for text in "ab"]
    texts = [answer.text for answer in ask(expert, prompts)]
    assert texts == ["<think>2 + 2</think>\n4", "I cannot help."]


def test_an_absurd_count_of_tokens_is_no_reply(small_server):
    def behave(body, number):
        status, reply = completion("yes")
        reply["usage"]["prompt_tokens"] = 10**30
        return status, reply

    expert = endpoint(small_server(behave).url, max_retries=1)
    with pytest.raises(ExpertError, match=r"the server counts 1e\+30 prompt tokens"):
        ask(expert, ["a"])


def test_a_key_in_an_answer_is_not_stored(small_server, monkeypatch):
    monkeypatch.setenv("DER_TEST_KEY", KEY)
    server = small_server(lambda body, number: completion(f"your key is {KEY}."))
    (answer,) = ask(endpoint(server.url, api_key_env="DER_TEST_KEY"), ["a"])
    assert answer.text == "your key is [key]."


# --- why an answer ended, how sure the model was, and how much the server holds ---


def certain(text, logprobs, *, is_chat, **more):
    """A completion with the log-probabilities of its tokens, as servers write them."""
    status, reply = completion(text, is_chat=is_chat, **more)
    content = [{"token": "x", "logprob": logprob, "top_logprobs": []} for logprob in logprobs]
    listed = {"content": content} if is_chat else {"token_logprobs": logprobs}
    reply["choices"][0]["logprobs"] = listed
    return status, reply


@pytest.mark.parametrize("prompt_format", ["chat", "plain"])
def test_log_probabilities_are_asked_for_where_the_setting_says_so(small_server, prompt_format):
    is_chat = prompt_format == "chat"
    logprobs = [-0.5, -0.25, -1.5]
    server = small_server(lambda body, number: certain("yes", logprobs, is_chat=is_chat))
    silent = endpoint(server.url, prompt_format=prompt_format)
    ask(silent, [silent.render("Why?", None, "paper-v1")])
    assert "logprobs" not in server.requests[-1][1]
    expert = endpoint(server.url, prompt_format=prompt_format, logprobs=True)
    (answer,) = ask(expert, [expert.render("Why?", None, "paper-v1")])
    assert server.requests[-1][1]["logprobs"] == (True if is_chat else 1)
    assert (answer.logprob_mean, answer.logprob_min) == (-0.75, -1.5)  # (.5 + .25 + 1.5) / 3
    assert expert.identity() == silent.identity()


@pytest.mark.parametrize("logprobs", [[], [-0.5, None], [-0.5, float("nan")], ["much"], [0.5]])
def test_log_probabilities_that_are_none_leave_them_unknown(small_server, logprobs):
    server = small_server(lambda body, number: certain("yes", logprobs, is_chat=True))
    expert = endpoint(server.url, prompt_format="chat", logprobs=True)
    (answer,) = ask(expert, [expert.render("Why?", None, "paper-v1")])
    assert (answer.text, answer.logprob_mean, answer.logprob_min) == ("yes", None, None)


@pytest.mark.parametrize(
    ("reason", "refused", "finish"),
    [
        ("stop", None, "stop"),
        ("eos_token", None, "stop"),
        ("length", None, "length"),
        ("content_filter", "I cannot.", "content_filter"),
        ("stop", "I cannot.", "refusal"),
        ("tool_calls", None, ""),
        (None, None, ""),
        (7, None, ""),
    ],
)
def test_why_an_answer_ended_is_what_the_server_says(small_server, reason, refused, finish):
    def behave(body, number):
        status, reply = completion("yes", is_chat=True, finish_reason=reason)
        reply["choices"][0]["message"]["refusal"] = refused
        return status, reply

    expert = endpoint(small_server(behave).url, prompt_format="chat")
    (answer,) = ask(expert, [expert.render("Why?", None, "paper-v1")])
    assert answer.finish == finish


def test_an_answer_that_a_stop_text_ends_has_not_run_out_of_tokens(small_server):
    server = small_server(lambda body, number: completion("72\nQ: more", finish_reason="length"))
    (answer,) = ask(endpoint(server.url, stop=("\nQ:",)), ["a"])
    assert (answer.text, answer.finish) == ("72", "stop")


def models(*lengths):
    """What vLLM lists: entries with `max_model_len`; None: without."""
    entries = []
    for name, length in zip("nm", lengths, strict=True):
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "vllm"}
        entries.append(entry if length is None else entry | {"max_model_len": length})
    return entries


def test_the_context_is_learned_once_and_a_prompt_far_over_it_is_cut_before_it_is_sent(
    small_server,
):
    server = small_server(lambda body, number: completion("yes"), models(9000, 140))
    expert = endpoint(server.url)
    long = "start " + "x" * 1500 + " end"
    (short_answer, long_answer) = ask(expert, ["x" * 790, long])
    ask(expert, ["a"])
    assert server.num_gets == 1
    assert (short_answer.prompt_cut, long_answer.prompt_cut) == (False, True)
    sent = max((body["prompt"] for _, body, *_ in server.requests[:2]), key=len)
    assert len(sent) == 790  # 8 characters a token: 100 tokens, 5% less, are 760 for the other
    texts = [body["prompt"] for _, body, *_ in server.requests if "start" in body["prompt"]]
    assert [len(text) for text in texts] == [760]
    assert texts[0].endswith(" end")


def test_a_learned_context_says_how_much_to_cut_where_the_error_does_not(small_server):
    def behave(body, number):
        if len(body["prompt"]) > 400:
            return refusal("This request exceeds the context window.")
        return completion("yes")

    server = small_server(behave, models(None, 140))
    (answer,) = ask(endpoint(server.url), ["x" * 800])
    assert answer.prompt_cut
    lengths = [len(body["prompt"]) for _, body, *_ in server.requests]
    assert lengths == [800, 400]  # 100 tokens of room, 4 characters each


@pytest.mark.parametrize(
    "listed",
    [None, [], models(None, None), models(100, None), [{"id": "m", "max_model_len": "many"}], [7]],
    ids=["404", "empty", "no lengths", "another model's", "a text", "no models"],
)
def test_a_server_that_does_not_tell_its_context_is_asked_as_before(small_server, listed, caplog):
    server = small_server(lambda body, number: completion("yes"), listed)
    (answer,) = ask(endpoint(server.url), ["x" * 5000])
    assert (answer.text, answer.prompt_cut, server.num_gets) == ("yes", False, 1)
    assert caplog.text == ""


def test_a_server_that_is_slow_to_list_its_models_is_not_waited_for(small_server, monkeypatch):
    monkeypatch.setattr("backends.endpoint.CONTEXT_S", 0.1)
    server = small_server(lambda body, number: completion("yes"), 3.0)
    start = time.monotonic()
    (answer,) = ask(endpoint(server.url), ["a"])
    assert answer.text == "yes"
    assert time.monotonic() - start < 2.0


def test_a_context_that_the_answer_alone_would_fill_is_refused_before_a_request(small_server):
    server = small_server(lambda body, number: completion("yes"), models(None, 40))
    with pytest.raises(ExpertError, match="max_new_tokens 40 leaves no room in the server's"):
        ask(endpoint(server.url), ["a"])
    assert server.requests == []
