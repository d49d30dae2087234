"""Play a split with the agents of one or several runs and with every baseline that was chosen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.answer_table import settled_similarity
from evaluation.catalogue import TRAINING, TREES, chosen_baselines, needs_of
from evaluation.ground import Ground, Say
from evaluation.route_log import PolicyRoutes, Role
from evaluation.transfer import audit, best_pairs, reading_experts
from rollout import Route
from terminator import answer_shape, terminator_figures


class Evaluation(Ground):
    """Runs of one configuration on the test split, and the sections of their report.

    Raises ConfigError for baselines that do not exist or that would cost too much, before anything
    is asked.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        overrides: Sequence[str],
        *,
        other_pool: bool = False,
        say: Say = lambda text: None,
    ):
        super().__init__(paths, overrides, other_pool=other_pool, say=say)
        self.baselines = chosen_baselines(self.config, self.pool)
        needs = needs_of(self.baselines)
        self.asks_training = TRAINING in needs
        chains = self.config.eval.transfer and self.config.eval.composition_tasks
        if TREES in needs or self.config.eval.full or chains:
            self.trees.check_size()
        if self.agent.similarity is None:  # the agent does without, the baselines do not
            similarity = settled_similarity(
                self.splits.validation, self.pool, self.config.env, self.config.reward
            )
            self.agree_from(similarity)

    def played(self) -> Iterator[PolicyRoutes]:
        """Every policy on the test split, the agent first, no label standing for two roles."""
        roles: dict[str, Role] = {}
        for baseline in self.baselines:
            for outcome in baseline.play(self):
                label, role = outcome.label, baseline.role
                if roles.setdefault(label, role) != role:
                    label += f" ({role})"  # an expert may be named like a policy
                yield PolicyRoutes(
                    label,
                    baseline.kind,
                    outcome.routes,
                    outcome.overheads,
                    self.runs[0].seed if outcome.seed is None else outcome.seed,
                    passes_answers=outcome.passes_answers,
                    role=role,
                    validation_return=outcome.validation_return,
                )

    def terminator_section(self) -> dict[str, Any]:
        """results.json's `terminator`: the first run's figures, every run's threshold and AUROC."""
        shapes: dict[str, set[str]] = defaultdict(set)
        for question in self.splits.train:
            reference: Any = question.reference
            if isinstance(reference, dict):  # what else a metric's object means, it alone knows
                reference = reference.get("answer")
            for text in reference if isinstance(reference, list) else [reference]:
                if text is not None:
                    shapes[question.task].add(answer_shape(str(text)))
        sections, each = [], []
        for run in self.runs:
            routes = self.long_routes[run.seed]
            section = terminator_figures(routes, self.splits.test, shapes, self.config)
            sections.append(section)
            kept = {name: section[name] for name in ("auroc", "auroc_well_formed", "ece")}
            each.append({"seed": run.seed, "threshold": run.terminator.threshold, **kept})
        return {"threshold": self.runs[0].terminator.threshold, **sections[0], "seeds": each}

    def agent_routes(self) -> list[list[Route]]:
        """The agent's scored test routes, a list for each run."""
        return list(self.long_routes.values())

    def transfer_section(self) -> dict[str, Any]:
        """results.json's `transfer`: the knowledge-transfer audit on the test split."""
        self.say("the knowledge-transfer audit")
        pairs = {}
        if tasks := self.config.eval.composition_tasks:
            pairs = best_pairs(self.trees.validation, tasks, reading_experts(self.pool))
        return audit(self.splits.test, self.pool, pairs, self.config.env.p0)
