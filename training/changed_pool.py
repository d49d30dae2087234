"""A trained run for another pool, without training its policy: an expert joins, or one leaves.

The changed run has a folder of its own, with config.yaml, agent/ and terminator/. What belongs to
the experts that stay is taken over (`belief.pool_change`). A promise of the Terminator is not: it
was made for the old pool. Nor is what the agent spends at which weight of cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent import build_agent, load_agent, save_agent
from belief.features import Said
from belief.outcome_model import Outcomes, count_answers, count_questions
from belief.packing import pack_model
from belief.pool_change import add_expert, drop_expert, move_candidates, move_plan
from belief_agent import BeliefAgent
from config import Config
from experts import ExpertPool, Request, build_pool
from metrics.registry import score_answers
from questions import Question, load_splits
from reward import charge
from runtime.command_line import dump_config, read_yaml, validate
from runtime.errors import AgentError, ConfigError
from runtime.files import write_atomically
from runtime.machine import pick_device, set_threads
from runtime.run_folder import load_run_config
from terminator import EstimateTerminator, load_terminator, save_terminator

NEW = -1  # in place of an expert's index in the old pool


@dataclass
class Change:
    """The old run, and the pool that it is changed for.

    kept: for each expert of the new pool its index in the old one, NEW for a new one.
    """

    run: Path
    config: Config
    pool: ExpertPool
    old_pool: ExpertPool
    agent: BeliefAgent
    kept: list[int]


def with_expert(run: Path, experts: Path, num_examples: int, out: Path) -> Path:
    """A run to which the experts of a file are added, from their answers to training questions.

    experts: YAML with a list `experts`, as in `pool.experts`. num_examples: training questions that
    each of them answers. Returns `out`. Raises DERError for files that do not fit.
    """
    listed = read_yaml(experts).get("experts")
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{experts}: expected a list of experts under the key experts")
    settings = load_run_config(run).model_dump(mode="json")
    kept = [*range(len(settings["pool"]["experts"])), *[NEW] * len(listed)]
    settings["pool"]["experts"] += listed
    change = open_change(run, settings, kept, str(experts))
    return write_changed(change, num_examples, out)


def without_expert(run: Path, name: str, out: Path) -> Path:
    """A run without the expert of this name. Returns `out`. Raises ConfigError for nobody."""
    settings = load_run_config(run).model_dump(mode="json")
    experts = settings["pool"]["experts"]
    names = [expert["name"] for expert in experts]
    if name not in names:
        raise ConfigError(f"--drop_expert {name}: the pool of {run} has {', '.join(names)}")
    place = names.index(name)
    kept = [expert_idx for expert_idx in range(len(names)) if expert_idx != place]
    settings["pool"]["experts"] = [experts[expert_idx] for expert_idx in kept]
    if settings["terminator"]["reference"] == name:
        settings["terminator"]["reference"] = None
    return write_changed(open_change(run, settings, kept, str(run)), 0, out)


def open_change(run: Path, settings: dict[str, Any], kept: list[int], origin: str) -> Change:
    """Both pools and the agent of the old one. Raises DERError where they do not fit."""
    old_config = load_run_config(run)
    settings["terminator"]["max_loss"] = None
    config = validate(settings, origin)
    set_threads(config.threads)
    old_pool = build_pool(old_config)
    agent = load_agent(run / "agent", old_pool, device=pick_device(config.device))
    if not isinstance(agent, BeliefAgent):
        raise AgentError(f"{run}: only a pool of an agent over beliefs can change without training")
    if agent.reader.t_max < min(config.env.t_max, len(kept)):
        raise AgentError(
            f"{run}: its routes had {agent.reader.t_max} calls at most, with the new expert they"
            f" have one more, which no plan was fitted for: train the agent again"
        )
    return Change(run, config, build_pool(config), old_pool, agent, kept)


def write_changed(change: Change, num_examples: int, out: Path) -> Path:
    """Fit new experts, move everything learned, and write the changed run."""
    if (out / "config.yaml").exists():
        raise ConfigError(f"{out}: there is a run already; give another --out FOLDER")
    agent = changed_agent(change, num_examples)
    out.mkdir(parents=True, exist_ok=True)
    save_agent(agent, out / "agent", change.pool)
    old = load_terminator(change.run / "terminator", torch.device("cpu"))
    save_terminator(EstimateTerminator(old.threshold), out / "terminator")
    config = change.config.model_copy(update={"name": out.name})
    write_atomically(out / "config.yaml", dump_config(config).encode())
    return out


def changed_agent(change: Change, num_examples: int) -> BeliefAgent:
    """The agent for the new pool."""
    old = change.agent
    model = old.reader.model
    costs = list(old.reader.costs)
    for expert_idx in reversed(range(len(costs))):
        if expert_idx not in change.kept:
            model = drop_expert(model, expert_idx)
            costs.pop(expert_idx)
    for place, source in enumerate(change.kept):
        if source == NEW:
            outcomes, cost = judged_answers(change, place, num_examples)
            model = add_expert(model, outcomes)
            costs.append(cost)
    candidates = move_candidates(old.reader.candidates, len(change.old_pool), change.kept)
    state = moved_state(change)
    for name, array in pack_model(model, candidates).items():
        state[f"belief.{name}"] = torch.as_tensor(array)
    state["costs"] = torch.as_tensor(np.array(costs))
    agent = build_agent(change.config.agent, len(change.pool), change.config.env.t_max)
    assert isinstance(agent, BeliefAgent)
    agent.load_learned_state(state, old.settings() | {"spent": [], "num_spent": 0})
    return agent


def moved_state(change: Change) -> dict[str, torch.Tensor]:
    """What the policy has learned, for the new pool and its longest routes."""
    state = change.agent.learned_state()
    t_max = min(change.config.env.t_max, len(change.kept))
    for name in ("actor.plan", "actor.scale", "actor.learned"):
        moved = move_plan(state[name].numpy(), len(change.old_pool), change.kept)
        state[name] = torch.as_tensor(moved[..., :t_max, :]).contiguous()
    state["critic.weights"] = state["critic.weights"][: t_max + 1].contiguous()
    return state


def judged_answers(change: Change, expert_idx: int, num_examples: int) -> tuple[Outcomes, float]:
    """A new expert's answers to some training questions, judged, and C of a call on average."""
    config = change.config
    training = load_splits(config.data).train
    if num_examples > len(training):
        raise ConfigError(
            f"--examples {num_examples}: there are {len(training)} training questions"
        )
    rows = np.random.default_rng(config.seed).permutation(len(training))[:num_examples]
    questions = [training[row] for row in rows]
    pool = change.pool
    answers = pool.answer([Request(expert_idx, question.text) for question in questions])
    texts = [answer.text for answer in answers]
    names = [pool.names[expert_idx]] * len(texts)
    quality = np.array(score_answers(questions, texts, names))
    charges = []
    for answer in answers:
        charges.append(charge(pool.cost(expert_idx, answer), config.reward))
    said = [Said.of(answer) for answer in answers]
    outcomes = describe(change.agent, questions, said, quality >= config.env.p0)
    return outcomes, float(np.mean(charges))


def describe(
    agent: BeliefAgent, questions: Sequence[Question], answers: Sequence[Said], good: np.ndarray
) -> Outcomes:
    """One expert's judged answers, as features."""
    tasks = agent.reader.tasks
    task = [tasks.index(q.task) if q.task in tasks else -1 for q in questions]
    return Outcomes(
        question=count_questions(questions),
        embedding=agent.question_embeddings(questions),
        task=np.array(task),
        answer=count_answers(questions, answers)[:, None],
        good=good[:, None],
    )
