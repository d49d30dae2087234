"""Training of the agent that reads text: episodes, PPO updates, validation, checkpoints."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.utils.torch_utils import policy_within_training_step

from agent import UNFIT, build_agent, save_agent
from config import Config, RewardConfig
from der_env import DEREnv, Episode, Judge, OracleJudge, Reader, encode_states
from evaluation.answer_table import settled_similarity
from evaluation.progress import route_figures
from experts import ExpertPool, build_pool
from questions import Question, load_splits
from rollout import Route, play, score_routes
from runtime.errors import RunError
from runtime.files import shown
from runtime.machine import pick_device, random_state, restore_random_state, seed_everything
from runtime.run_folder import RunFolder, shaping_settings
from terminator import (
    Terminator,
    TerminatorData,
    TerminatorJudge,
    choose_threshold,
    cut_at,
    save_terminator,
)
from training.distributed import share_encoder
from training.ppo import DERPPO, build_ppo
from training.vector_env import DERVectorEnv

CALIBRATION_QUESTIONS = 2000  # the feature standardisation is fitted on so many states

# A state that was judged: question, answer, calls left, expert, whether the answer is good enough.
Judged = tuple[str, str, int, int, bool]


class Trainer:
    """Everything that training touches, and its state on disk.

    `saved`: the state of a checkpoint to go on from; `load_state` takes it over.
    """

    def __init__(self, config: Config, folder: RunFolder, saved: dict[str, Any] | None = None):
        self.config = config
        self.folder = folder
        self.device = pick_device(config.device)
        self.splits = load_splits(config.data)
        self.pool = self._make_pool()
        seed_everything(config.seed)
        agent = build_agent(config.agent, len(self.pool), config.env.t_max)
        self.agent = agent.to(self.device)
        self.encoder_hash = self.agent.encoder_hash()  # before it learns
        share_encoder(self.agent)
        with self._fitting_state() if saved else nullcontext():
            if saved:
                self._check_unchanged(saved)
            self.settle_similarity(saved)
            self.build_learners(saved)
        self.algorithm = self._make_algorithm()
        self.finished: list[Episode] = []  # since the last update
        self.judged: list[Judged] = []  # since the last validation
        self.envs = self._make_envs()
        self.collector = Collector(self.algorithm, self.envs, self._make_buffer())
        self.epoch = 0
        self.update_idx = 0
        self.env_step = 0
        self.best_return = -np.inf

    def _make_pool(self) -> ExpertPool:
        """The experts, checked against all questions. Calls of earlier starts of the run count."""
        pool = build_pool(self.config, self.config.train.max_expert_calls)
        pool.check_questions([*self.splits.train, *self.splits.validation, *self.splits.test])
        pool.stats.generated = self.folder.expert_calls()
        pool.on_generated = self.folder.count_expert_calls
        return pool

    def _make_algorithm(self) -> DERPPO:
        train = self.config.train
        num_updates = train.epochs * train.updates_per_epoch if train.lr_decay else None
        return build_ppo(self.agent, self.config.ppo, self.config.reward.discount, num_updates)

    @property
    def choosing(self) -> Sequence[Question]:
        """The validation questions that choose what is used."""
        return self.splits.validation

    @property
    def heeds_agreement(self) -> bool:
        """Whether the agent's routes depend on which answers agree."""
        return self.config.env.submits == "agreed"

    def settle_similarity(self, saved: dict[str, Any] | None) -> None:
        """From which similarity free texts agree: as a checkpoint holds it, as set, or chosen."""
        similarity: float | None = None
        if saved is not None:
            similarity = saved.get("similarity")
        elif self.heeds_agreement:
            config = self.config
            similarity = settled_similarity(self.choosing, self.pool, config.env, config.reward)
        self.agent.similarity = similarity
        if similarity is not None:
            self.splits = self.splits.agreeing_from(similarity)

    def build_learners(self, saved: dict[str, Any] | None) -> None:
        """What learns beside the policy: here the Terminator."""
        del saved  # nothing that the policy is built on has to be restored first
        config = self.config
        self.terminator = Terminator(
            self.agent.encoder.width,
            len(self.pool),
            config.env.t_max,
            config.terminator.hidden_size,
            config.terminator.dropout,
        )
        self.terminator.to(self.device)
        self.terminator_data = TerminatorData()

    def summary(self) -> str:
        """The experts, the device and the numbers of questions, for the first line of output."""
        num_train = len(self.splits.train)
        num_validation = len(self.splits.validation)
        return (
            f"{len(self.pool)} experts on {self.device}, {num_train} training and"
            f" {num_validation} validation questions"
        )

    @property
    def reader(self) -> Reader | None:
        """Who estimates the answers on a route; nobody where the agent reads text."""
        return None

    def make_judge(self) -> Judge:
        """Who ends training episodes."""
        return OracleJudge(self.splits.train, self.config.env.p0, self.pool.names)

    def reward_of(self, env_idx: int) -> RewardConfig:
        """The reward of an environment; the same for all."""
        del env_idx
        return self.config.reward

    def _make_envs(self) -> DERVectorEnv:
        config = self.config
        judge = self.make_judge()
        envs = []
        for env_idx in range(min(config.train.num_envs, config.train.episodes_per_update)):
            env = DEREnv(
                self.splits.train,
                self.pool,
                judge,
                self.agent.observer,
                config.env,
                self.reward_of(env_idx),
                self._on_step,
                self.reader,
            )
            envs.append(env)
        return DERVectorEnv(envs, np.random.default_rng([config.seed, 1]))

    def _make_buffer(self) -> VectorReplayBuffer:
        """Room for the most episodes that one environment can play.

        Tianshou overwrites the oldest steps of a full sub-buffer without a warning.
        """
        num_envs = len(self.envs)
        per_env = (self.config.train.episodes_per_update - num_envs + 1) * self.config.env.t_max
        return VectorReplayBuffer(per_env * num_envs, num_envs)

    def _on_step(self, episode: Episode) -> None:
        """Remember what the Terminator learns from, and finished episodes for the log."""
        step = episode.steps[-1]
        is_good = step.quality is not None and step.quality >= self.config.env.p0
        text = episode.question.text
        self.judged.append((text, step.answer.text, episode.calls_left, step.expert_idx, is_good))
        if episode.is_over:
            self.finished.append(episode)

    def _keep_judged(self) -> None:
        """Move what was judged since the last call to the Terminator's data."""
        texts, answers, left, experts, good = zip(*self.judged, strict=True)
        rows = self.agent.state_tokenizer.encode(texts, answers, left)
        self.terminator_data.add(rows, experts, good)
        self.judged.clear()

    def calibrate(self) -> None:
        """Fit the feature standardisation on the first states of training questions."""
        first = []
        for question in self.splits.train[:CALIBRATION_QUESTIONS]:
            first.append(Episode(question.sealed(), self.config.env.t_max))
        self.agent.encoder.calibrate(encode_states(first, self.agent.state_tokenizer))

    def update(self) -> dict[str, float]:
        """Collect a batch of episodes with the oracle as judge and let PPO learn from it."""
        self.finished.clear()
        start = time.perf_counter()
        self.collector.reset(reset_stats=False)
        self.algorithm.train()
        with policy_within_training_step(self.algorithm.policy):
            stats = self.collector.collect(n_episode=self.config.train.episodes_per_update)
            collected = time.perf_counter()
            losses = self.algorithm.update(
                self.collector.buffer, self.config.ppo.batch_size, self.config.ppo.repeats
            )
        self.update_idx += 1
        self.env_step += int(stats.n_collected_steps)
        routes = [Route(episode, []) for episode in self.finished]
        return {
            **route_figures(routes, self.config, self.pool.names, "train"),
            "losses/policy": float(losses.actor_loss.mean),
            "losses/value": float(losses.vf_loss.mean),
            "losses/entropy": float(losses.ent_loss.mean),
            "time/collect_s": collected - start,
            "time/update_s": time.perf_counter() - collected,
            "pool/hit_rate": self.pool.stats.hit_rate,
            "pool/generated": self.pool.stats.generated,
            "pool/failed": self.pool.stats.failed,
            "pool/never_ended_thinking": self.pool.stats.never_ended_thinking,
        }

    def validate(self) -> dict[str, float]:
        """Fit the Terminator again and choose its threshold on the validation split.

        The figures are of the agent under that threshold.
        """
        config = self.config
        start = time.perf_counter()
        self.algorithm.eval()
        self._keep_judged()
        loss = self.terminator.fit(self.agent, self.terminator_data, config.terminator, config.seed)
        max_threshold = config.terminator.max_threshold
        judge = TerminatorJudge(self.agent, self.terminator, max_threshold)
        routes = play(
            [q.sealed() for q in self.splits.validation],
            self.agent,
            self.pool,
            judge,
            config.env.t_max,
            lockstep=True,  # a resumed run ends the same
            submits=config.env.submits,
        )
        score_routes(routes, self.splits.validation, self.pool.names)
        self.terminator.threshold = choose_threshold(routes, config.reward, max_threshold)
        ended = [cut_at(route, self.terminator.threshold) for route in routes]
        return {
            **route_figures(ended, config, self.pool.names, "eval"),
            "eval/entropy": mean_entropy(ended),
            "terminator/loss": loss,
            "terminator/threshold": self.terminator.threshold,
            "terminator/states": len(self.terminator_data),
            "time/validate_s": time.perf_counter() - start,
        }

    def save(self, *, is_best: bool) -> None:
        """Checkpoint; the agent and terminator folders follow the best epoch."""
        # The agent is written before the checkpoint. A run that is killed in between repeats the
        # epoch and writes the same agent again.
        if is_best:
            self.save_learned()
        self.folder.save_checkpoint(self.state(), is_best=is_best)

    def save_learned(self) -> None:
        """Write the agent and terminator folders."""
        with self.folder.saving(self.folder.path / "agent"):
            save_agent(self.agent, self.folder.path / "agent", self.pool)
            save_terminator(self.terminator, self.folder.path / "terminator")

    def is_best(self, figures: dict[str, float]) -> bool:
        """Whether a validation is better than all before it."""
        return figures["eval/return"] > self.best_return

    def finish(self) -> None:
        """What is left to do after the last epoch; nothing here."""

    @property
    def has_a_plan(self) -> bool:
        """Whether the policy is worth validating before its first update."""
        return False

    @property
    def updates_left(self) -> int:
        """Updates to the end of this epoch; a run that was terminated goes on within one."""
        return self.config.train.updates_per_epoch * (self.epoch + 1) - self.update_idx

    def state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "update_idx": self.update_idx,
            "env_step": self.env_step,
            "best_return": self.best_return,
            "algorithm": self._algorithm_state(),
            "schedulers": [scheduler.state_dict() for scheduler in self.algorithm.lr_schedulers],
            "features": self.agent.encoder.cache_state(),
            "learners": self.learners_state(),
            "similarity": self.agent.similarity,
            "sampler": self.envs.sampler_state(),
            "settings": shaping_settings(self.config),
            "learns_from": self.learns_from(),
            "random": random_state(),
        }

    def learners_state(self) -> dict[str, Any]:
        """State of what `build_learners` built."""
        return {
            "terminator": self.terminator.state_dict(),
            "threshold": self.terminator.threshold,
            "terminator_data": self.terminator_data.state(),
            "judged": [list(judged) for judged in self.judged],
        }

    def load_learners_state(self, state: dict[str, Any]) -> None:
        self.terminator.load_state_dict(state["terminator"])
        self.terminator.threshold = state["threshold"]
        self.terminator_data.load_state(state["terminator_data"])
        self.judged = [tuple(judged) for judged in state["judged"]]

    def learns_from(self) -> dict[str, str]:
        """Hashes of questions, experts and encoder, which a continued run must find unchanged.

        The state of the sampler, for example, is indices of questions.
        """
        return {
            "data.train": _hash([_as_given(question) for question in self.splits.train]),
            "data.validation": _hash([_as_given(question) for question in self.splits.validation]),
            "pool.experts": _hash(self.pool.fingerprint()),
            "agent.encoder": _hash(self.encoder_hash),
        }

    def _algorithm_state(self) -> dict[str, Any]:
        """Networks and optimiser; a frozen encoder's weights are left to its source."""
        kept = {}
        for name, value in self.algorithm.state_dict().items():
            is_of_encoder = ".preprocess.model." in name
            if not (is_of_encoder and self.config.agent.freeze_encoder):
                kept[name] = value
        return kept

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises RunError where settings, questions or experts are not those it was saved with, and
        for a state of another shape.
        """
        with self._fitting_state():
            self._check_unchanged(state)
            self._load_state(state)

    @contextmanager
    def _fitting_state(self) -> Iterator[None]:
        """Turns what a state of another shape raises into a RunError."""
        try:
            yield
        except UNFIT as error:
            raise RunError(
                f"{self.folder.path}: its checkpoint is not one of this run"
                f" ({type(error).__name__}: {error}); restore it, or train a new run"
            ) from error

    def _check_unchanged(self, state: dict[str, Any]) -> None:
        settings = shaping_settings(self.config)
        parts = self.learns_from()
        changed = []
        for name, then in state["settings"].items():
            if name in settings and settings[name] != then:
                changed.append(f"{name} (was {shown(then)})")
        for name, then in state["learns_from"].items():
            if parts[name] != then:
                changed.append(name)
        if changed:
            raise RunError(
                f"{self.folder.path}: {' and '.join(changed)} changed since its last checkpoint:"
                " restore what was there, or train a new run"
            )

    def _load_state(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.update_idx = state["update_idx"]
        self.env_step = state["env_step"]
        self.best_return = state["best_return"]
        # Tianshou removes entries from what it loads, so it gets a copy. It is not strict, because
        # a frozen encoder is not in the state.
        self.algorithm.load_state_dict(dict(state["algorithm"]), strict=False)
        for scheduler, saved in zip(self.algorithm.lr_schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self.agent.encoder.load_cache(state["features"])
        self.load_learners_state(state["learners"])
        self.envs.sampler.load_state(state["sampler"])
        restore_random_state(state["random"])


def mean_entropy(routes: Sequence[Route]) -> float:
    """Mean entropy of all decisions on these routes; a decision without one counts as 0."""
    entropies = []
    for route in routes:
        for decision in route.decisions:
            entropies.append(decision.entropy or 0.0)
    return float(np.mean(entropies))


def _as_given(question: Question) -> dict[str, Any]:
    """What the data say of a question, without what training has settled."""
    given = dict(vars(question))
    del given["similarity"]
    return given


def _hash(part: Any) -> str:
    text = json.dumps(part, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
