"""What DER adds to a request, measured with experts that answer at once.

    python scripts/load_test.py --run runs/NAME --at_once 1 8 32

The run's experts are replaced by instant ones in a server of its own process, with an empty store.
A share of their calls fails; the official client asks again. Every answer names its question, so
none can be lost or crossed unnoticed. With one request at a time a bare pass of the agent's encoder
over the same question follows each request, so that both meet the same load of the machine.
docs/speed.md has the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.command_line import count, parse, run_command


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, help="folder of the run; default: the newest")
    parser.add_argument("--requests", type=count, default=1000)
    parser.add_argument("--at_once", type=count, nargs="+", default=[1, 8, 32])
    parser.add_argument("--failing", type=float, default=0.05, help="share of expert calls")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(lambda arguments: parse(make_parser(), arguments))

import numpy as np
import openai
import torch
import uvicorn

from agent import load_agent
from backends.answer_store import Answer
from backends.dispatch import Finished, Inbox
from experts import build_pool
from runtime.errors import BoundsError
from runtime.machine import pick_device, set_threads
from runtime.run_folder import evaluated_config, newest_run
from serving.app import build_app
from serving.served_run import Exploration, ServedRun
from serving.service import Service, ServiceOptions

MAX_RETRIES = 10  # of the client: a request whose expert failed is asked again
SEED = 0


class InstantAnswers:
    """What stands for an expert's `answer`: it repeats the prompt at once, or fails."""

    def __init__(self, failing: float):
        self.failing = failing
        self.rng = random.Random(SEED)

    def __call__(self, prompts: Sequence[str] | Inbox) -> Iterator[Finished]:
        inbox = Inbox.of(prompts)
        while inbox:
            batch: list[tuple[int, Answer | None]] = []
            for request_id, prompt in inbox.take():
                is_failure = self.rng.random() < self.failing
                answer = Answer(prompt, len(prompt) // 4, 1, latency_s=0.0)
                batch.append((request_id, None if is_failure else answer))
            yield batch


def load_instant(run: Path, overrides: list[str], failing: float) -> ServedRun:
    """The run with instant experts."""
    served = ServedRun(run, overrides, Exploration())
    for expert in served.pool.experts:
        instant: Any = {"answer": InstantAnswers(failing), "load": _nothing, "unload": _nothing}
        vars(expert).update(instant)
    return served


def _nothing() -> None:
    """No weights are loaded."""


def serve(run: Path, overrides: list[str], failing: float, port: Connection) -> None:
    """The server's process; sends its port once it listens."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    folder = Path(overrides[-1].partition("=")[2]).parent
    service = Service(
        lambda: load_instant(run, overrides, failing), folder / "routes.jsonl", ServiceOptions()
    )

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: list | None = None) -> None:
            await super().startup(sockets)
            port.send(self.servers[0].sockets[0].getsockname()[1])

    config = uvicorn.Config(build_app(service), port=0, log_level="warning", access_log=False)
    Announcing(config).run()


@dataclass
class Tally:
    """What the client saw. Milliseconds."""

    wall: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)  # from arrival to the answer
    encoder: list[float] = field(default_factory=list)  # bare passes in turns with the requests
    calls: list[int] = field(default_factory=list)
    num_crossed: int = 0
    num_lost: int = 0


def encoder_of(run: Path, overrides: list[str]) -> Callable[[str], object]:
    """A bare pass of the run's encoder over a question."""
    config = evaluated_config(run, overrides)
    set_threads(config.threads)
    device = pick_device(config.device)
    agent = load_agent(run / "agent", build_pool(config), device=device)

    def encode(text: str) -> object:
        rows = agent.state_tokenizer.encode([text], [None], [agent.t_max])
        with torch.no_grad():
            return agent.encoder.pooled_here(rows)

    return encode


async def ask_all(
    url: str, texts: Sequence[str], at_once: int, encode: Callable[[str], object]
) -> Tally:
    """Ask every question once, so many at the same time."""
    tally = Tally()
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=MAX_RETRIES, timeout=120)
    places = asyncio.Semaphore(at_once)

    async def ask(text: str) -> None:
        async with places:
            began = time.perf_counter()
            try:
                reply = await client.chat.completions.create(
                    model="der", messages=[{"role": "user", "content": text}]
                )
            except openai.OpenAIError:
                tally.num_lost += 1
                return
            tally.wall.append(1000 * (time.perf_counter() - began))
        route = (reply.model_extra or {})["x_der"]
        tally.server.append(1000 * route["seconds"]["total"])
        tally.calls.append(len(route["steps"]))
        tally.num_crossed += text not in (reply.choices[0].message.content or "")
        if at_once == 1:
            began = time.perf_counter()
            encode(text)
            tally.encoder.append(1000 * (time.perf_counter() - began))

    await asyncio.gather(*[ask(text) for text in texts])
    await client.close()
    return tally


def measure(
    url: str, num_requests: int, at_once: int, encode: Callable[[str], object]
) -> dict[str, float]:
    """Figures of one load. Raises BoundsError for an answer that is lost or crossed."""
    texts = []
    for number in range(num_requests):
        texts.append(f"Spell this word backward (example: sun -> nus): {at_once}w{number}x")
    began = time.perf_counter()
    cpu_began = server_cpu_s(url)
    tally = asyncio.run(ask_all(url, texts, at_once, encode))
    wall_s = time.perf_counter() - began
    cpu_s = server_cpu_s(url) - cpu_began
    if tally.num_lost or tally.num_crossed:
        raise BoundsError(f"{tally.num_lost} requests lost, {tally.num_crossed} answers crossed")
    figures = {
        "requests_per_s": num_requests / wall_s,
        "calls": float(np.mean(tally.calls)),
        "cpu_ms": 1000 * cpu_s / num_requests,
    }
    for percentile in (50, 99):
        figures[f"server_ms_p{percentile}"] = float(np.percentile(tally.server, percentile))
        figures[f"client_ms_p{percentile}"] = float(np.percentile(tally.wall, percentile))
    if tally.encoder:
        figures["encoder_ms_p50"] = float(np.percentile(tally.encoder, 50))
        figures["over_encoder"] = figures["server_ms_p50"] / figures["encoder_ms_p50"]
    return figures


def server_cpu_s(url: str) -> float:
    """Processor time that the server's process has taken so far."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics") as reply:
        for line in reply.read().decode().splitlines():
            name, _, value = line.partition(" ")
            if name == "process_cpu_seconds_total":
                return float(value)
    raise BoundsError("the server does not show its processor time")


def main(arguments: list[str]) -> dict[str, dict[str, float]]:
    """Run the command; returns the figures of each number of requests at once."""
    options, overrides = parse(make_parser(), arguments)
    run = options.run or newest_run()
    all_figures = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*overrides, f"--pool.store={folder}/answers.sqlite"]
        encode = encoder_of(run, overrides)  # before the server: what is wrong is said once
        receiver, sender = context.Pipe(duplex=False)
        server = context.Process(target=serve, args=(run, overrides, options.failing, sender))
        server.start()
        sender.close()
        try:
            url = f"http://127.0.0.1:{receiver.recv()}/v1"
            measure(url, 32, 1, encode)  # the first pass of a model takes longer
            for at_once in options.at_once:
                figures = measure(url, options.requests, at_once, encode)
                all_figures[str(at_once)] = figures
                shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
                print(f"{at_once} at once: 0 lost, 0 crossed, {shown}", flush=True)
        finally:
            server.terminate()
            server.join()
    if options.out:
        options.out.write_text(json.dumps(all_figures, indent=2) + "\n")
    return all_figures


if __name__ == "__main__":
    run_command(main)
