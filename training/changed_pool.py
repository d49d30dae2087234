"""A trained run for another pool, without training its policy: an expert joins, or one leaves.

The changed run has a folder of its own, with config.yaml, agent/ and terminator/. What belongs to
the experts that stay is taken over (`belief.pool_change`). Where an expert joins, plans are fitted
anew on the questions that it has answered. Where one leaves an agent that follows fixed orders,
they are fitted anew on the questions of training: an order that names it leads nowhere. A promise
of the Terminator is not taken over: it was made for the old pool. Nor is what the agent spends at
which weight of cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent import build_agent, load_agent, save_agent
from belief.guard import Planner
from belief.outcome_model import CrossFitted, OutcomeModel, Outcomes, cross_fit, cross_fit_by
from belief.packing import pack_model
from belief.pool_change import (
    add_expert,
    add_to_candidates,
    drop_experts,
    move_candidates,
    move_plan,
)
from belief.state import CandidateModel, agreement, believe_sets, sample_questions
from belief_agent import BeliefAgent
from config import Config
from evaluation.answer_table import AnswerTable, ask_all
from evaluation.estimates import TableFeatures
from experts import ExpertPool, build_pool
from questions import Question, load_splits
from runtime.command_line import dump_config, read_yaml, validate
from runtime.errors import AgentError, ConfigError
from runtime.files import write_atomically
from runtime.machine import pick_device, set_threads
from runtime.run_folder import load_run_config
from terminator import EstimateTerminator, load_terminator, save_terminator
from training.belief_trainer import outcomes_of
from training.promise import fitted_on

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
    old = change.agent.reader
    dropped = sorted(set(range(len(old.costs))) - set(change.kept))
    model = drop_experts(old.model, dropped)
    costs = np.delete(old.costs, dropped)
    candidates = move_candidates(old.candidates, len(change.old_pool), change.kept)
    examples = None
    if NEW in change.kept:
        examples = judged_examples(change, model, num_examples)
        model = examples.fitted.model
        candidates = examples.add_to(candidates, change)
        costs = np.append(costs, examples.table.mean_charges()[len(costs) :])
    elif any(old.planned.is_order):
        examples = known_examples(change)
    state = moved_state(change)
    state |= pack_model(model, candidates, "belief.")
    state["costs"] = torch.as_tensor(costs)
    agent = build_agent(change.config.agent, len(change.pool), change.config.env.t_max)
    assert isinstance(agent, BeliefAgent)
    agent.load_learned_state(state, change.agent.settings() | {"spent": [], "num_spent": 0})
    if examples is not None:
        plan_anew(agent, examples, change.config)
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


@dataclass(frozen=True)
class Examples:
    """Everybody's answers to the questions that plans are fitted anew on.

    good (N, K): which are right. fitted: estimates by models that had not seen the answers. Where
    an expert joins, that holds for its answers alone, and `fitted.model` is that of the new pool.
    """

    table: AnswerTable
    good: np.ndarray
    fitted: CrossFitted

    def add_to(self, candidates: CandidateModel, change: Change) -> CandidateModel:
        """The weights of candidates, with those of the new experts."""
        t_max = min(change.config.env.t_max, len(change.kept))
        same = agreement(self.table.groups)
        arrays = (self.fitted.before, self.fitted.after, same, self.good)
        for expert_idx in newcomers(change):
            candidates = add_to_candidates(candidates, *arrays, t_max, expert_idx)
        return candidates


def newcomers(change: Change) -> list[int]:
    """Indices of the new experts in the new pool."""
    return [place for place, source in enumerate(change.kept) if source == NEW]


def judged_examples(change: Change, model: OutcomeModel, num_examples: int) -> Examples:
    """Ask new experts so many training questions, and fit their part of the model.

    model: of the experts that stay. Their answers are in the store since training.
    """
    config = change.config
    training = load_splits(config.data).train
    if not 2 <= num_examples <= len(training):
        raise ConfigError(f"--examples {num_examples}: must be from 2 to {len(training)}")
    rows = np.random.default_rng(config.seed).permutation(len(training))[:num_examples]
    table, outcomes = answers_to([training[row] for row in rows], change)

    def fit(part: Outcomes) -> OutcomeModel:
        extended = model
        for expert_idx in newcomers(change):
            extended = add_expert(extended, part.of_expert(expert_idx))
        return extended

    return Examples(table, outcomes.good, cross_fit_by(fit, outcomes, config.seed))


def known_examples(change: Change) -> Examples:
    """The questions of training, with estimates by models that had not seen the answers."""
    config = change.config
    questions = fitted_on(config)
    num_experts = len(change.pool)
    rows = sample_questions(len(questions), num_experts, config.env.t_max, config.seed)
    table, outcomes = answers_to([questions[row] for row in rows], change)
    num_tasks = len(change.agent.reader.tasks)
    return Examples(table, outcomes.good, cross_fit(outcomes, num_tasks, config.seed))


def answers_to(questions: list[Question], change: Change) -> tuple[AnswerTable, Outcomes]:
    """Everybody's answers, and what there is to learn from them."""
    config = change.config
    table = ask_all(questions, change.pool, config.reward)
    features = TableFeatures.of(table, change.agent.question_embeddings(questions))
    return table, outcomes_of(table, features, change.agent.reader.tasks, config.env.p0)


def plan_anew(agent: BeliefAgent, examples: Examples, config: Config) -> None:
    """Fit the plan of each weight of cost anew on the examples.

    A plan that was moved from the old pool stays where the new one does not return more on
    examples held out. What PPO had learned stays in it. An order never stays: it would not ask a
    new expert, and would go on asking for one that left.
    """
    reader = agent.reader
    fitted = examples.fitted
    same = agreement(examples.table.groups)
    planner = Planner(
        believe_sets(fitted.before, fitted.after, same, reader.candidates, reader.t_max),
        fitted.before,
        examples.good,
        reader.costs,
        reader.t_max,
        config.seed,
        can_stop=config.env.stop == "action",
    )
    plans = []
    alphas = config.reward.alphas or (config.reward.alpha,)
    for alpha, is_order in zip(alphas, reader.planned.is_order, strict=True):
        moved = agent.plan_at(alpha)
        plan, expected = planner.choose(alpha)
        stays = planner.returned(moved, alpha) >= expected
        plans.append(replace(moved, sizes=plan.sizes) if stays and not is_order else plan)
    agent.set_plans(plans)
    torch.nn.init.zeros_(agent.actor.learned)  # now in the plans that were moved
