"""A served run over two loopback experts, whose answers show which question they are of."""

from __future__ import annotations

import contextlib
import functools
import gc
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
import yaml
from recordings import CHEAP_AND_DEAR, make_rows, write_rows
from small_server import Reply, SmallServer, completion, streamed

import train_ppo_multi
from scripts.serve import Server
from serving.app import build_app
from serving.served_run import Exploration, ServedRun
from serving.service import Service, ServiceOptions

GREEDY = Exploration()
PATIENCE_S = 20
PARAMS_B = {"cheap": 1.0, "dear": 8.0}  # which is also what a call costs


@dataclass
class LoopbackExpert:
    """A server that knows recorded answers, and says its name and the prompt to anything else.

    `hold` is waited for before each answer, and `gate` after the first word of a streamed one.
    `fails(number)` says which requests get status 500, `thinks` what is said as reasoning.
    """

    name: str
    answers: dict[str, str]
    hold: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)
    fails: Callable[[int], bool] = lambda number: False
    breaks_off: bool = False  # a streamed answer, after its first word
    thinks: str = ""
    server: SmallServer | None = None

    def __post_init__(self) -> None:
        self.hold.set()
        self.gate.set()
        self.start()

    def start(self, port: int = 0) -> None:
        self.server = SmallServer(self.behave, port=port)
        self.port = self.server.port

    def behave(self, body: dict[str, Any], number: int) -> Reply:
        self.hold.wait(30)
        if self.fails(number):
            return 500, {"error": {"message": "out of luck"}}
        said = body["messages"][-1]["content"]
        question = said.partition("\n\nThere is an answer")[0]
        text = self.answers.get(question, f"{self.name} heard: {question}")
        if not body.get("stream"):
            return completion(text, is_chat=True)
        deltas = [{"reasoning_content": self.thinks}] if self.thinks else []
        for word in re.findall(r"\S+\s*", text):
            deltas.append({"content": word})
        if self.breaks_off:
            return streamed(deltas[:1], gate=self.gate, is_whole=False)
        return streamed(deltas, gate=self.gate)

    @property
    def num_requests(self) -> int:
        assert self.server is not None
        return len(self.server.requests)

    def close(self) -> None:
        assert self.server is not None
        self.server.close()


def start_experts(rows: list[dict[str, Any]]) -> dict[str, LoopbackExpert]:
    experts = {}
    for name in PARAMS_B:
        answers = {row["question"]: row["answers"][name] for row in rows}
        experts[name] = LoopbackExpert(name, answers)
    return experts


def write_config(root: Path, encoder: Path, experts: dict[str, LoopbackExpert]) -> Path:
    """A configuration of an agent over beliefs that asks the loopback experts."""
    rows = make_rows(120, skills=CHEAP_AND_DEAR)
    path = write_rows(root / "questions.jsonl", rows)
    pool = []
    for name, expert in experts.items():
        assert expert.server is not None
        pool.append(
            {
                "name": name,
                "kind": "endpoint",
                "model": name,
                "urls": [expert.server.url],
                "params_b": PARAMS_B[name],
                "prompt_format": "chat",
            }
        )
    data = {}
    for split in ("train", "validation", "test"):
        data[split] = {"path": path, "split": split}
    settings = {
        "threads": 1,
        "device": "cpu",
        "data": data,
        "pool": {"experts": pool, "store": str(root / "answers.sqlite")},
        "env": {"t_max": 2, "submits": "best", "stop": "action", "continue_past_p0": 0},
        "reward": {"alpha": 0.02, "alphas": [0, 0.02, 0.1]},
        "agent": {"reads": "belief", "max_tokens": 32, "encoder": str(encoder)},
        "ppo": {"lr": 1e-4, "batch_size": 16, "repeats": 1},
        "train": {"epochs": 1, "updates_per_epoch": 1, "episodes_per_update": 16, "num_envs": 8},
    }
    (root / "served.yaml").write_text(yaml.safe_dump(settings))
    return root / "served.yaml"


def running_experts() -> Iterator[dict[str, LoopbackExpert]]:
    """For a fixture: the experts that `train_run` asks, until the tests have ended."""
    experts = start_experts(make_rows(120, skills=CHEAP_AND_DEAR))
    yield experts
    for expert in experts.values():
        expert.close()


def train_run(root: Path, encoder: Path, experts: dict[str, LoopbackExpert]) -> Path:
    """The folder of a trained agent over beliefs."""
    config_path = write_config(root, encoder, experts)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        path = train_ppo_multi.main(["--config", str(config_path), "--name", "served"])
    gc.collect()
    return root / path


@contextlib.contextmanager
def serving(
    run: Path,
    log: Path,
    *,
    overrides: tuple[str, ...] = (),
    exploration: Exploration = GREEDY,
    budget: float | None = None,
    **options: Any,
) -> Iterator[tuple[str, Service]]:
    """A server of a run in this process: its base URL and its service."""
    load = functools.partial(ServedRun, run, overrides, exploration, budget)
    service = Service(load, log, ServiceOptions(**options))
    config = uvicorn.Config(build_app(service), port=0, log_level="warning", access_log=False)
    server = Server(config, service)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1", service
    finally:
        server.should_exit = True
        thread.join(10)
        service.close()


def ask(client: openai.OpenAI, text: str, **options: Any) -> Any:
    extra = {
        name: options.pop(name)
        for name in ("alpha", "max_cost", "max_calls", "task")
        if name in options
    }
    model = options.pop("model", "der")
    messages = options.pop("messages", [{"role": "user", "content": text}])
    return client.chat.completions.create(
        model=model, messages=messages, extra_body=extra, **options
    )


def wait_until(condition: Any, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)
