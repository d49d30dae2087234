"""Ask the pool through a trained agent, and see the route.

    python scripts/ask.py "Spell this word backward (example: sun -> nus): planet"  # the newest run
    python scripts/ask.py --run runs/NAME  # interactive
    # many questions; no references needed
    python scripts/ask.py --file questions.jsonl --out routed.jsonl

Settings of the run can be overridden, written --key=value. Lines of the file: {"text": ..., "id"?:
..., "task"?: ...}. Lines written: {"id", "text", "answer", "expert", "calls", "params_b", "p_stop",
"route"}.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import watch_signals

if __name__ == "__main__":  # before the imports that take seconds
    watch_signals()

from runtime.command_line import parse, run_command


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("question", nargs="?", help="none: interactive")
    parser.add_argument("--run", type=Path, help="folder of the run; default: the newest")
    parser.add_argument(
        "--budget", type=float, help="mean cost C of a question, instead of --reward.alpha=A"
    )
    parser.add_argument("--file", type=Path, help="JSONL of questions")
    parser.add_argument(
        "--out", type=Path, help="with --file: where the routes go; default: routed.jsonl"
    )
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(lambda arguments: parse(make_parser(), arguments))

from agent import load_agent
from config import SourceConfig
from der_env import Step
from experts import ExpertPool, build_pool
from questions import Question, agreeing_from, read_questions
from reward import charge
from rollout import Route, play
from runtime.errors import ConfigError
from runtime.files import whole_text, write_atomically
from runtime.machine import pick_device, set_threads
from runtime.run_folder import evaluated_config, newest_run
from terminator import load_terminator, make_judge


class Router:
    """A run's agent, Terminator and pool, ready for questions without references."""

    def __init__(self, run: Path, overrides: Sequence[str], budget: float | None = None):
        self.config = evaluated_config(run, overrides)
        set_threads(self.config.threads)
        device = pick_device(self.config.device)
        self.pool: ExpertPool = build_pool(self.config)
        self.agent = load_agent(run / "agent", self.pool, device=device)
        self.agent.ask_with(self.config.reward.alpha)
        if budget is not None:
            self.agent.spend(budget)
        self.judge = make_judge(self.agent, load_terminator(run / "terminator", device))

    def route(self, questions: Sequence[Question]) -> list[Route]:
        similarity = self.agent.similarity_under(self.config.env)
        return play(
            agreeing_from(questions, similarity),
            self.agent,
            self.pool,
            self.judge,
            self.config.env.t_max,
            submits=self.config.env.submits,
            reader=self.agent.reader,
        )

    def show(self, route: Route) -> str:
        """The route step by step: expert, answer, stop probability, cost."""
        lines = []
        for number, (step, decision) in enumerate(
            zip(route.episode.steps, route.decisions, strict=True), start=1
        ):
            lines.append(
                f"{number}. {self.pool.names[step.expert_idx]} says: {step.answer.text!r}\n   stop"
                f" probability {step.p_stop:.2f} (threshold {self.judge.threshold:.2f}), cost"
                f" {charge(step.cost, self.config.reward):.4g} ({step.cost.params_b:.6g} B"
                f" parameters, {step.cost.prompt_tokens}+{step.cost.completion_tokens} tokens),"
                f" expected return {decision.value:.2f}"
            )
        reasons = {
            "satisfied": "the Terminator is satisfied",
            "stopped": "the agent expects no gain from another call",
            "t_max": f"{self.config.env.t_max} calls are the most",
        }
        submitted = route.episode.submitted
        by = "" if submitted is route.episode.steps[-1] else self._submitted_words(submitted)
        lines.append(f"stopped: {reasons[route.episode.stop_reason]}")
        lines.append(f"answer: {submitted.answer.text}{by}")
        return "\n".join(lines)

    def _submitted_words(self, step: Step) -> str:
        """Whose answer is submitted, where it is not the last."""
        why = "estimated best" if self.config.env.submits == "best" else "agreed upon by most"
        return f"  (of {self.pool.names[step.expert_idx]}, {why})"

    def record(self, route: Route) -> dict[str, object]:
        episode = route.episode
        steps = [
            {
                "expert": self.pool.names[s.expert_idx],
                "answer": s.answer.text,
                "p_stop": s.p_stop,
                "cost": charge(s.cost, self.config.reward),
            }
            for s in episode.steps
        ]
        submitted = episode.submitted
        return {
            "id": episode.question.id,
            "text": episode.question.text,
            "answer": submitted.answer.text,
            "expert": self.pool.names[submitted.expert_idx],
            "calls": len(steps),
            "params_b": episode.cost.params_b,
            "p_stop": steps[-1]["p_stop"],
            "route": steps,
        }


def ask_file(router: Router, source: Path, out: Path) -> None:
    """Route every question of a JSONL file, in file order."""
    routes = router.route(read_questions(SourceConfig(path=str(source)), need_reference=False))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        out, "".join(json.dumps(router.record(route)) + "\n" for route in routes).encode()
    )
    print(
        f"{out}: {len(routes)} questions routed,"
        f" {sum(len(r.episode.steps) for r in routes) / len(routes):.2f} calls each"
    )


def main(arguments: list[str]) -> None:
    options, overrides = parse(make_parser(), arguments)
    if options.file and options.question is not None:
        raise ConfigError(
            f"a question and --file {options.file} are two things to ask: give one of them"
        )
    if options.out and not options.file:
        raise ConfigError("--out is for the routes of --file; those of a question are shown")
    if options.question is not None and not options.question.strip():
        raise ConfigError("the question is empty")
    for argument in overrides:
        if not (argument.startswith("--") and "=" in argument):
            raise ConfigError(
                f"unexpected {argument!r}: beside a question, settings are written --key=value, for"
                " example --threads=1"
            )
    router = Router(options.run or newest_run(), overrides, options.budget)
    if options.file is not None:
        ask_file(router, options.file, options.out or Path("routed.jsonl"))
    elif options.question is not None:
        ask_one(router, options.question.strip())
    else:
        with suppress(EOFError):
            while (text := input("question (empty to leave)> ").strip()) != "":
                ask_one(router, text)


def ask_one(router: Router, text: str) -> None:
    """Route one question and print what was asked and answered."""
    route = router.route([Question("asked", whole_text(text))])[0]
    print(router.show(route))


if __name__ == "__main__":
    run_command(main)
