"""Measures what judged answers teach a served agent:
python scripts/check_feedback.py --run runs/few --requests 400 --out runs/few_taught [--full RUN]

The run was trained on a part of a recorded set (data.train.limit). scripts/serve.py serves it, and
questions of the training split that it has not met are asked by the official client. Each answer
is judged by the recorded verdict. scripts/learn_from_log.py then teaches a copy of the run, which
is --out. Both agents play the test questions at every weight of cost; differences of return are
paired by question, with 95% intervals. --full: a run that was trained on the whole split, for
comparison. Settings of the evaluation may follow.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.command_line import count, parse, run_command


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the taught run")
    parser.add_argument("--requests", type=count, default=400)
    parser.add_argument("--explore", type=float, default=0.0, help="as of scripts/serve.py")
    parser.add_argument("--full", type=Path, help="a run trained on the whole split")
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(lambda arguments: parse(make_parser(), arguments))

import numpy as np
import openai

from evaluation.ground import Ground
from evaluation.stats import paired_difference
from questions import Question, load_splits, read_questions
from runtime.errors import ConfigError
from runtime.run_folder import load_run_config
from scripts import learn_from_log

Returns = dict[float, np.ndarray]  # weight of cost -> returns (N,) of the test questions


def unmet_questions(run: Path, most: int) -> list[Question]:
    """Training questions that a run has not been trained on, the first of them.

    Raises ConfigError where there are none.
    """
    data = load_run_config(run).data
    splits = load_splits(data)
    met = {question.text for question in (*splits.train, *splits.validation, *splits.test)}
    everything = read_questions(data.train.model_copy(update={"limit": None}))
    unmet = [question for question in everything if question.text not in met]
    if not unmet:
        raise ConfigError(f"{run}: trained on all questions; train with --data.train.limit N")
    return unmet[:most]


@contextmanager
def served(run: Path, log: Path, explore: float) -> Iterator[str]:
    """The base URL of a server of the run, which logs texts."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, str(root / "scripts" / "serve.py"), "--run", str(run), "--port", "0"]
    command += ["--log", str(log), "--log_texts", "--explore", str(explore)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        url = re.search(r"http://\S+", said)
        if url is None:
            raise ConfigError(f"scripts/serve.py --run {run} did not begin to serve: {said}")
        yield url.group()
    finally:
        server.terminate()
        server.wait()


def ask_and_judge(url: str, questions: Sequence[Question]) -> float:
    """Ask each question, and judge the answer by the recorded verdict; returns their mean."""
    client = openai.OpenAI(base_url=url, api_key="none")
    verdicts = []
    for question in questions:
        reply = client.chat.completions.create(
            model="der",
            messages=[{"role": "user", "content": question.text}],
            extra_body={"task": question.task},
        )
        route = (reply.model_extra or {})["x_der"]
        verdict = question.scores[route["expert"]]
        judgement = {"id": reply.id, "quality": verdict}
        client.post("/feedback", body=judgement, cast_to=dict[str, object])
        verdicts.append(verdict)
    return float(np.mean(verdicts))


def returns_of(run: Path, overrides: Sequence[str]) -> Returns:
    """Returns of a run's agent on the test questions at every weight of cost."""
    ground = Ground([run], overrides)
    reward = ground.config.reward
    returns = {}
    for alpha in reward.alphas or (reward.alpha,):
        ground.agent.ask_with(alpha)
        routes = ground.play(ground.splits.test, ground.agent, ground.runs[0].judge, ground.t_max)
        weighted = reward.model_copy(update={"alpha": alpha})
        returns[alpha] = np.array([route.return_under(weighted) for route in routes])
    return returns


def show(label: str, returns: Returns, before: Returns) -> None:
    """Rows of the table: an agent at every weight of cost, and all of them together."""
    pairs = {f"{alpha:g}": (returns[alpha], before[alpha]) for alpha in before}
    pairs["mean"] = (
        np.mean(list(returns.values()), axis=0),
        np.mean(list(before.values()), axis=0),
    )
    for name, (own, other) in pairs.items():
        found = paired_difference(own, other)
        difference = f"{found['diff']:+.4f} [{found['lo']:+.4f}, {found['hi']:+.4f}]"
        print(f"| {label} | {name} | {own.mean():.4f} | {difference} |", flush=True)


def main(arguments: list[str]) -> None:
    options, overrides = parse(make_parser(), arguments)
    questions = unmet_questions(options.run, options.requests)
    shutil.copytree(options.run, options.out)
    log = options.out / "served" / "routes.jsonl"
    with served(options.out, log, options.explore) as url:
        quality = ask_and_judge(url, questions)
    print(f"{len(questions)} questions served and judged; mean verdict {quality:.3f}")
    learn_from_log.main(["--run", str(options.out), "--log", str(log), "--write"])
    print("| agent | alpha | return | return less that of before |")
    print("|---|---|---|---|")
    before = returns_of(options.run, overrides)
    show("before", before, before)
    show("taught", returns_of(options.out, overrides), before)
    if options.full:
        show("trained on all", returns_of(options.full, overrides), before)


if __name__ == "__main__":
    run_command(main)
