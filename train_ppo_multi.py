"""Train a DER-Agent and its Terminator.

    python train_ppo_multi.py  # configs/quickstart.yaml: embedded pool, CPU, minutes
    python train_ppo_multi.py --config configs/X.yaml --reward.alpha 0.05 --seed 1
    # continue a killed run; the metrics come out the same
    python train_ppo_multi.py --resume runs/NAME
    # check it and plan answers, tokens, memory and hours; nothing is loaded
    python train_ppo_multi.py --config configs/X.yaml --dry_run
    python train_ppo_multi.py --config configs/X.yaml --print_config
    # four GPUs share the work of a large trainable encoder
    accelerate launch --multi_gpu --num_processes 4 train_ppo_multi.py ...

Lands in runs/NAME/: config.yaml, environment.json, metrics.jsonl, tb/, checkpoints/, agent/,
terminator/. Evaluate with python test_ppo_multi.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "NUMBA_DISABLE_JIT", "1"
)  # tianshou compiles three small functions for up to a minute and gains nothing here

import numpy as np
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.utils.torch_utils import policy_within_training_step
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agent import AgentSpec, build_agent, save_agent
from config import Config
from der_env import DEREnv, Episode, OracleJudge, encode_states
from dry_run.plan import make_plan
from dry_run.table import plan_text
from evaluation.progress import collapse_warning, epoch_line, route_figures, update_line
from experts import build_pool
from questions import load_splits, repeats_line
from rollout import Route, play, score_routes
from runtime.command_line import dump_config, load_config, parse, run_command
from runtime.errors import ConfigError, RunError
from runtime.files import shown
from runtime.machine import (
    pick_device,
    random_state,
    restore_random_state,
    seed_everything,
    set_threads,
)
from runtime.model_folder import read_model_folder
from runtime.run_folder import RunFolder, load_run_config, run_name, shaping_settings
from runtime.signals import Terminated, finishing_first
from terminator import (
    Terminator,
    TerminatorData,
    TerminatorJudge,
    TerminatorSpec,
    choose_threshold,
    cut_at,
    save_terminator,
)
from training.distributed import help_encode, is_helper, share_encoder
from training.vector_env import DERVectorEnv


class Trainer:
    """Everything that training touches, and its state on disk."""

    def __init__(self, config: Config, folder: RunFolder):
        self.config, self.folder = config, folder
        self.device = pick_device(config.device)
        self.splits = load_splits(config.data)
        self.pool = build_pool(config, config.train.max_expert_calls)
        self.pool.check_questions([*self.splits.train, *self.splits.validation, *self.splits.test])
        self.pool.stats.generated = folder.expert_calls()
        self.pool.on_generated = folder.count_expert_calls
        seed_everything(config.seed)
        self.agent = build_agent(config.agent, len(self.pool), config.env.t_max).to(self.device)
        self.encoder_hash = self.agent.encoder_hash()  # before it learns
        share_encoder(self.agent)
        self.terminator = Terminator(
            self.agent.encoder.width,
            len(self.pool),
            config.env.t_max,
            config.terminator.hidden_size,
            config.terminator.dropout,
        )
        self.terminator.to(self.device)
        self.terminator_data = TerminatorData()
        num_updates = config.train.epochs * config.train.updates_per_epoch
        self.algorithm = self.agent.ppo(
            config.ppo, config.reward.discount, num_updates if config.train.lr_decay else None
        )
        self.finished: list[Episode] = []  # since the last update
        self.judged: list[
            tuple[str, str, int, int, bool]
        ] = []  # question, answer, calls left, expert, good enough: since the last validation
        self.envs = self._make_envs()
        self.collector = Collector(self.algorithm, self.envs, self._make_buffer())
        self.epoch, self.update_idx, self.env_step, self.best_return = 0, 0, 0, -np.inf

    def _make_envs(self) -> DERVectorEnv:
        config, judge = (
            self.config,
            OracleJudge(self.splits.train, self.config.env.p0, self.pool.names),
        )
        num_envs = min(config.train.num_envs, config.train.episodes_per_update)
        envs = [
            DEREnv(
                self.splits.train,
                self.pool,
                judge,
                self.agent.observer,
                config.env,
                config.reward,
                self._on_step,
            )
            for _ in range(num_envs)
        ]
        return DERVectorEnv(envs, np.random.default_rng([config.seed, 1]))

    def _make_buffer(self) -> VectorReplayBuffer:
        """Room for the most episodes one environment can play: an overfull sub-buffer would
        overwrite silently.
        """
        num_envs = len(self.envs)
        per_env = (self.config.train.episodes_per_update - num_envs + 1) * self.config.env.t_max
        return VectorReplayBuffer(per_env * num_envs, num_envs)

    def _on_step(self, episode: Episode) -> None:
        """Remember what the Terminator learns from, and finished episodes for the log."""
        step = episode.steps[-1]
        self.judged.append(
            (
                episode.question.text,
                step.answer.text,
                episode.calls_left,
                step.expert_idx,
                step.quality >= self.config.env.p0,
            )
        )
        if episode.is_over:
            self.finished.append(episode)

    def _keep_judged(self) -> None:
        """Hand what was judged since the last call to the Terminator's data, tokenised in one
        batch.
        """
        texts, answers, left, experts, good = zip(*self.judged, strict=True)
        self.terminator_data.add(
            self.agent.state_tokenizer.encode(texts, answers, left), experts, good
        )
        self.judged.clear()

    def calibrate(self) -> None:
        """Fit the feature standardisation on the first states of (up to 2,000) training
        questions.
        """
        first = [
            Episode(question.sealed(), self.config.env.t_max)
            for question in self.splits.train[:2000]
        ]
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
        return {
            **route_figures(
                [Route(episode, []) for episode in self.finished],
                self.config,
                self.pool.names,
                "train",
            ),
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
        """Refit the Terminator, choose its threshold on the validation split, and report the agent
        under it.
        """
        config, start = self.config, time.perf_counter()
        self.algorithm.eval()
        self._keep_judged()
        loss = self.terminator.fit(self.agent, self.terminator_data, config.terminator, config.seed)
        most = config.terminator.max_threshold
        judge = TerminatorJudge(self.agent, self.terminator, most)
        routes = play(
            [q.sealed() for q in self.splits.validation],
            self.agent,
            self.pool,
            judge,
            config.env.t_max,
            in_step=True,
        )  # a resumed run ends the same
        score_routes(routes, self.splits.validation, self.pool.names)
        self.terminator.threshold = choose_threshold(routes, config.reward, most)
        ended = [cut_at(route, self.terminator.threshold) for route in routes]
        return {
            **route_figures(ended, config, self.pool.names, "eval"),
            "eval/entropy": float(np.mean([d.entropy for route in ended for d in route.decisions])),
            "terminator/loss": loss,
            "terminator/threshold": self.terminator.threshold,
            "terminator/states": len(self.terminator_data),
            "time/validate_s": time.perf_counter() - start,
        }

    def save(self, *, is_best: bool) -> None:
        """Checkpoint; the agent and terminator folders follow the best epoch."""
        # Before the checkpoint: a run killed in between repeats the epoch and writes the same again
        if is_best:
            self.save_learned()
        self.folder.save_checkpoint(self.state(), is_best=is_best)

    def save_learned(self) -> None:
        """Write the agent and terminator folders."""
        with self.folder.saving(self.folder.path / "agent"):
            save_agent(self.agent, self.folder.path / "agent", self.pool)
            save_terminator(self.terminator, self.folder.path / "terminator")

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
            "terminator": self.terminator.state_dict(),
            "threshold": self.terminator.threshold,
            "terminator_data": self.terminator_data.state(),
            "judged": [list(judged) for judged in self.judged],
            "sampler": self.envs.sampler_state(),
            "settings": shaping_settings(self.config),
            "learns_from": self.learns_from(),
            "random": random_state(),
        }

    def learns_from(self) -> dict[str, str]:
        """Hashes of what a run must go on with; the sampler's state, for one, is numbers of
        questions.
        """
        splits = {
            f"data.{name}": [vars(question) for question in getattr(self.splits, name)]
            for name in ("train", "validation")
        }
        made_of = splits | {
            "pool.experts": self.pool.fingerprint(),
            "agent.encoder": self.encoder_hash,
        }
        return {
            name: (
                hashlib.sha256(json.dumps(part, sort_keys=True, default=str).encode()).hexdigest()[
                    :16
                ]
            )
            for name, part in made_of.items()
        }

    def _algorithm_state(self) -> dict[str, Any]:
        """Networks and optimiser; a frozen encoder's weights are left to its source."""
        state = self.algorithm.state_dict()
        return {
            k: v
            for k, v in state.items()
            if not (self.config.agent.freeze_encoder and ".preprocess.model." in k)
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises RunError where settings, questions or experts are not those it was saved with, and
        for a state of another shape.
        """
        try:
            self._check_unchanged(state)
            self._load_state(state)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise RunError(
                f"{self.folder.path}: its checkpoint is not one of this run"
                f" ({type(error).__name__}: {error}); restore it, or train a new run"
            ) from error

    def _check_unchanged(self, state: dict[str, Any]) -> None:
        settings, parts = shaping_settings(self.config), self.learns_from()
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
        for name in ("epoch", "update_idx", "env_step", "best_return"):
            setattr(self, name, state[name])
        self.algorithm.load_state_dict(
            dict(state["algorithm"]), strict=False
        )  # a copy: Tianshou pops from it; a frozen encoder is not in it
        for scheduler, saved in zip(self.algorithm.lr_schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self.agent.encoder.load_cache(state["features"])
        self.terminator.load_state_dict(state["terminator"])
        self.terminator.threshold = state["threshold"]
        self.terminator_data.load_state(state["terminator_data"])
        self.judged = [tuple(judged) for judged in state["judged"]]
        self.envs.sampler.load_state(state["sampler"])
        restore_random_state(state["random"])


def train(trainer: Trainer) -> None:
    """Epochs of updates, each ended by a validation and a checkpoint."""
    config, folder = trainer.config, trainer.folder
    writer = SummaryWriter(
        str(folder.path / "tb"), purge_step=trainer.update_idx + 1
    )  # what a killed run wrote after its checkpoint
    total = config.train.epochs * config.train.updates_per_epoch
    with (
        tqdm(total=total, initial=trainer.update_idx, unit="update", dynamic_ncols=True) as bar,
        finishing_first("SIGTERM: this update is finished and saved first") as asked_to_end,
    ):
        while trainer.epoch < config.train.epochs:
            for _ in range(trainer.updates_left):
                figures = trainer.update()
                record(trainer, writer, figures, epoch=trainer.epoch + 1)
                bar.set_postfix_str(update_line(figures, trainer.pool.names))
                bar.update()
                if asked_to_end.is_set():
                    trainer.save(is_best=False)
                    raise Terminated(saved_line(trainer))
            figures = trainer.validate()
            trainer.epoch += 1
            is_best = figures["eval/return"] > trainer.best_return
            trainer.best_return = max(trainer.best_return, figures["eval/return"])
            record(trainer, writer, figures | {"eval/is_best": float(is_best)}, epoch=trainer.epoch)
            trainer.save(is_best=is_best)
            names = trainer.pool.names
            bar.write(epoch_line(trainer.epoch, figures, names, is_best=is_best))
            if warning := collapse_warning(figures, names):
                bar.write(warning)
            if asked_to_end.is_set():
                raise Terminated(saved_line(trainer))
    writer.close()
    folder.close()


def record(
    trainer: Trainer, writer: SummaryWriter, figures: dict[str, float], *, epoch: int
) -> None:
    trainer.folder.log(
        {"epoch": epoch, "update": trainer.update_idx, "env_step": trainer.env_step, **figures}
    )
    for name, value in figures.items():
        writer.add_scalar(name, value, trainer.update_idx)


def saved_line(trainer: Trainer) -> str:
    return (
        f"terminated; saved after update {trainer.update_idx}; continue with --resume"
        f" {trainer.folder.path}"
    )


def is_whole(path: Path) -> bool:
    """Whether a run's agent and Terminator can be read, or there are none yet."""
    if not (path / "checkpoints" / "best.pt").exists():
        return True
    try:
        read_model_folder(path / "agent", AgentSpec, RunError)
        read_model_folder(path / "terminator", TerminatorSpec, RunError)
    except RunError:
        return False
    return True


def new_run(config_path: Path, overrides: list[str]) -> Trainer:
    """A trainer in a fresh folder."""
    config = load_config(config_path, overrides)
    set_threads(config.threads)
    folder = RunFolder(Path("runs") / run_name(config, config_path), resume=False)
    trainer = Trainer(config, folder)
    trainer.calibrate()
    folder.describe(config, trainer.pool.fingerprint(), trainer.device)
    return trainer


def resumed_run(path: Path, overrides: list[str]) -> Trainer:
    """A trainer as it was at the run's last checkpoint, or at its start.

    Only the limit on expert calls may be overridden.
    """
    for flag in overrides:
        if flag.startswith("--") and flag.partition("=")[0] != "--train.max_expert_calls":
            raise ConfigError(
                f"{flag} cannot be changed by --resume: it would make another run. Only"
                " --train.max_expert_calls may"
            )
    config = load_run_config(path, overrides)
    set_threads(config.threads)
    trainer = Trainer(config, RunFolder(path, resume=True))
    if not is_whole(path):  # what it had learned is in its best checkpoint
        trainer.load_state(trainer.folder.load_checkpoint("best"))
        trainer.save_learned()
    if state := trainer.folder.load_checkpoint("last"):
        trainer.load_state(state)
    else:
        trainer.calibrate()
    trainer.folder.cut_metrics(trainer.epoch, trainer.update_idx)
    return trainer


def main(arguments: list[str]) -> Path | None:
    """Run the command; returns the run's folder."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, help="default: configs/quickstart.yaml")
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="continue this run from its last checkpoint"
    )
    parser.add_argument(
        "--print_config", action="store_true", help="show the resolved configuration and stop"
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="check the configuration without weights or network, show the plan and stop",
    )
    options, overrides = parse(parser, arguments)
    if options.resume and options.config:
        raise ConfigError(
            f"--resume {options.resume} goes on with the run's own configuration; leave --config"
            " out, or train a new run"
        )
    config_path = options.config or Path("configs/quickstart.yaml")
    if options.dry_run or options.print_config:
        path = options.resume / "config.yaml" if options.resume else config_path
        config = load_config(path, overrides)
        print(
            f"{path}: {plan_text(make_plan(config))}"
            if options.dry_run
            else dump_config(config).rstrip()
        )
        return None
    if is_helper():
        return help_encode()
    trainer = (
        resumed_run(options.resume, overrides)
        if options.resume
        else new_run(config_path, overrides)
    )
    path, splits = trainer.folder.path, trainer.splits
    print(
        f"{path}: {len(trainer.pool)} experts on {trainer.device}, {len(splits.train)} training and"
        f" {len(splits.validation)} validation questions"
    )
    if splits.num_merged:
        print(repeats_line(splits))
    train(trainer)
    if trainer.agent.encoder.team:
        trainer.agent.encoder.team.stop()
    print(
        f"agent and Terminator of the best epoch (validation return {trainer.best_return:.3f}) are"
        f" in {path}. Evaluate: python test_ppo_multi.py --run {path}"
    )
    return path


if __name__ == "__main__":
    run_command(main)
