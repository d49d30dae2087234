"""Learn from answers that were judged (POST /v1/feedback), and see whether it helps.

    python scripts/learn_from_log.py --run runs/NAME  # shows what would change
    python scripts/learn_from_log.py --run runs/NAME --write  # takes it over

The agent must read beliefs, and the server must have logged texts (--log_texts). The outcome model
is fitted again; the plan, what PPO learned and prices stay. A promise of the Terminator and budgets
were measured with the model before, so they go. What was before is kept beside it.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.command_line import parse, run_command


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, help="folder of the run; default: the newest")
    parser.add_argument("--log", type=Path, help="default: served/routes.jsonl in the run")
    parser.add_argument("--write", action="store_true", help="put the new model into the agent")
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(lambda arguments: parse(make_parser(), arguments))

import torch

from agent import load_agent, save_agent
from belief_agent import BeliefAgent
from experts import build_pool
from runtime.errors import AgentError
from runtime.machine import pick_device, set_threads
from runtime.run_folder import evaluated_config, newest_run
from serving.feedback import Lesson, Skill, learn, read_judged
from terminator import EstimateTerminator, load_terminator, save_terminator


def main(arguments: list[str]) -> Lesson:
    """Run the command; returns what was learned."""
    options, overrides = parse(make_parser(), arguments)
    run = options.run or newest_run()
    judged, num_without = read_judged(options.log or run / "served" / "routes.jsonl")
    config = evaluated_config(run, overrides)
    set_threads(config.threads)
    pool = build_pool(config)
    agent = load_agent(run / "agent", pool, device=pick_device(config.device))
    if not isinstance(agent, BeliefAgent):
        raise AgentError(f"{run}: only an agent that reads beliefs has an outcome model to teach")
    lesson = learn(agent, pool, config, judged)
    print(f"{run}: {len(judged)} judged answers; {num_without} more were logged without texts")
    show("before a call", *lesson.before_call)
    show("after the answer", *lesson.after_call)
    if options.write:
        kept = [keep(run / "agent"), keep(run / "terminator")]
        take_over(agent, lesson)
        save_agent(agent, run / "agent", pool)
        drop_promise(run / "terminator")
        print(f"taken over; what was before is in {kept[0]} and {kept[1]}")
    else:
        print("nothing is changed; --write takes the new model over")
    return lesson


def show(what: str, before: Skill, after: Skill) -> None:
    """A line of what learning changes on held-out judged answers."""
    print(
        f"{what:17} log loss {before.log_loss:.3f} -> {after.log_loss:.3f},"
        f" AUROC {shown_auroc(before)} -> {shown_auroc(after)}"
    )


def shown_auroc(skill: Skill) -> str:
    return "none" if skill.auroc is None else f"{skill.auroc:.3f}"


def take_over(agent: BeliefAgent, lesson: Lesson) -> None:
    """Put what was learned into an agent."""
    agent.reader.model = lesson.model
    if agent.spent:
        print("--budget needs training again: what is spent was found with the model before")
    agent.spent = []
    agent.num_spent = 0


def drop_promise(folder: Path) -> None:
    """Leave a Terminator its threshold, without what was promised of it."""
    terminator = load_terminator(folder, torch.device("cpu"))
    if isinstance(terminator, EstimateTerminator) and terminator.promise is not None:
        save_terminator(EstimateTerminator(terminator.threshold), folder)
        print("the promise of terminator.max_loss is dropped: it was made with the model before")


def keep(folder: Path) -> Path:
    """Copy a folder to the first free NAME_before-N beside it."""
    for number in itertools.count(1):
        target = folder.with_name(f"{folder.name}_before-{number}")
        if not target.exists():
            break
    shutil.copytree(folder, target)
    return target


if __name__ == "__main__":
    run_command(main)
