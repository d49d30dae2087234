"""Play a run's test questions with exploration, and log the probability of everything it does:
python scripts/explore_run.py --run runs/NAME --share 0.3 --out runs/explored.jsonl

A share of the decisions is drawn by a softmax over what the actions promise, at a temperature in
units of return. The others take what promises most. `scripts/estimate_policy.py` estimates from
such a log what other policies would have returned. Share 0 logs the policy as it is, with
probability 1 for every step: such a log says nothing of other policies. Settings may follow, e.g.
--reward.alpha 0.1.
"""

from __future__ import annotations

import argparse
import json
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
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument(
        "--share", type=float, required=True, help="of the decisions that are drawn"
    )
    parser.add_argument("--temperature", type=float, default=0.05, help="in units of return")
    parser.add_argument("--draw", type=int, default=0, help="seed of what is drawn")
    parser.add_argument("--out", type=Path, required=True, help="the route log to write")
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(lambda arguments: parse(make_parser(), arguments))

from belief.exploration import GREEDY, Exploration
from belief_agent import BeliefAgent
from evaluation.ground import Ground
from evaluation.route_log import PolicyRoutes, Record, route_records
from questions import Question
from runtime.errors import ConfigError
from runtime.files import write_atomically


def belief_agent_of(ground: Ground) -> BeliefAgent:
    """The agent of a run. Raises ConfigError for one without scores to explore by."""
    agent = ground.agent
    if not isinstance(agent, BeliefAgent):
        raise ConfigError(f"{ground.runs[0].path}: exploration needs agent.reads: belief")
    return agent


def explore(
    ground: Ground, questions: list[Question], exploration: Exploration, seed: int
) -> list[Record]:
    """Lines of a route log: these questions, played once."""
    agent = belief_agent_of(ground)
    agent.explore_with(exploration, seed)
    routes = ground.play(questions, agent, ground.runs[0].judge, ground.t_max)
    agent.explore_with(GREEDY, 0)
    label = f"DER, exploring in {exploration.share:.0%} of its decisions"
    played = PolicyRoutes(label, "der", routes, seed=seed, role="der")
    references = {question.id: question.reference for question in questions}
    return list(route_records(played, ground.pool, ground.config, references))


def exploration_of(share: float, temperature: float) -> Exploration:
    """Raises ConfigError for what is no share or no temperature."""
    if not 0 <= share <= 1:
        raise ConfigError(f"--share {share:g}: a share is from 0 to 1")
    if not temperature > 0:  # nor NaN
        raise ConfigError(f"--temperature {temperature:g}: a temperature is above 0")
    return Exploration(share, temperature)


def main(arguments: list[str]) -> Path:
    options, overrides = parse(make_parser(), arguments)
    exploration = exploration_of(options.share, options.temperature)
    ground = Ground([options.run], overrides)
    records = explore(ground, ground.splits.test, exploration, options.draw)
    lines = [json.dumps(record) + "\n" for record in records]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out, "".join(lines).encode())
    print(f"{len(records)} routes are in {options.out}")
    return options.out


if __name__ == "__main__":
    run_command(main)
