"""scripts/serve.py as a user starts it: a budget, and SIGTERM."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import torch
from recordings import CHEAP_AND_DEAR, make_rows
from served import LoopbackExpert, ask, wait_until

from agent import load_agent
from experts import build_pool
from runtime.run_folder import load_run_config

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def server_process(run: Path, *options: str) -> Iterator[tuple[openai.OpenAI, subprocess.Popen]]:
    """scripts/serve.py as a user starts it, and a client of it."""
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), "--run", str(run), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert server.stdout is not None
        url = re.search(r"http://\S+", server.stdout.readline())
        assert url is not None
        yield openai.OpenAI(base_url=url.group(), api_key="none", max_retries=0), server
    finally:
        server.kill()


def test_a_server_with_a_budget_spends_it_and_ends_open_requests_within_ten_seconds(
    run: Path, experts: dict[str, LoopbackExpert], tmp_path: Path
) -> None:
    """A call costs 1 or 8. The interval is that of `belief.budget.Dial`, for the questions asked.

    What ends when SIGTERM comes is timed with the server's own --grace.
    """
    pool = build_pool(load_run_config(run))
    agent = load_agent(run / "agent", pool, device=torch.device("cpu"))
    dial = agent.spend(5.0)
    log = ["--log", str(tmp_path / "log.jsonl")]
    questions = []
    for row in make_rows(120, seed=1, skills=CHEAP_AND_DEAR):
        questions.append(row["question"])
        for name, expert in experts.items():
            expert.answers[row["question"]] = row["answers"][name]
    with server_process(run, "--budget", "5", *log) as (client, server):
        routes = [ask(client, question).x_der for question in questions]
        low, high = dial.interval(len(questions))
        assert low <= np.mean([route["cost"] for route in routes]) <= high
        assert {route["alpha"] for route in routes} <= {dial.alpha, dial.higher}
        asked_with = ask(client, questions[0], alpha=0).x_der
        assert asked_with["alpha"] == 0  # a request's own weight comes first
        for expert in experts.values():
            expert.hold.clear()
        try:
            error, seconds = end_while_asking(client, server, experts)
        finally:
            for expert in experts.values():
                expert.hold.set()
    assert isinstance(error, openai.InternalServerError)
    assert error.code == "shutting_down"
    assert seconds < 10


def end_while_asking(
    client: openai.OpenAI, server: subprocess.Popen, experts: dict[str, LoopbackExpert]
) -> tuple[BaseException | None, float]:
    """Send SIGTERM while an expert keeps a request waiting.

    Returns what the request raised, and the seconds until the server has ended.
    """
    held = sum(expert.num_requests for expert in experts.values())
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ask, client, "Too late?")
        wait_until(lambda: sum(e.num_requests for e in experts.values()) > held)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        error = waiting.exception(20)
    assert server.wait(20) == 128 + signal.SIGTERM
    return error, time.monotonic() - began
