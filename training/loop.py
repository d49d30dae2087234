"""A run from its first update, or its last checkpoint, to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agent import AgentSpec
from config import Config
from evaluation.progress import collapse_warning, epoch_line, update_line
from runtime.errors import ConfigError, RunError
from runtime.machine import set_threads
from runtime.model_folder import read_model_folder
from runtime.run_folder import RunFolder, load_run_config, run_name
from runtime.signals import Terminated, finishing_first
from terminator import TerminatorSpec
from training.belief_trainer import BeliefTrainer
from training.trainer import Trainer


def train(trainer: Trainer) -> None:
    """Epochs of updates, each ended by a validation and a checkpoint."""
    config = trainer.config
    # A killed run may have written curves after its checkpoint, which are dropped.
    writer = SummaryWriter(str(trainer.folder.path / "tb"), purge_step=trainer.update_idx + 1)
    total = config.train.epochs * config.train.updates_per_epoch
    with (
        tqdm(total=total, initial=trainer.update_idx, unit="update", dynamic_ncols=True) as bar,
        finishing_first("SIGTERM: this update is finished and saved first") as asked_to_end,
    ):
        if trainer.has_a_plan and trainer.best_return == -np.inf:
            validate(trainer, writer, bar)
        while trainer.epoch < config.train.epochs:
            for _ in range(trainer.updates_left):
                figures = trainer.update()
                record(trainer, writer, figures, epoch=trainer.epoch + 1)
                bar.set_postfix_str(update_line(figures, trainer.pool.names))
                bar.update()
                if asked_to_end.is_set():
                    trainer.save(is_best=False)
                    raise Terminated(saved_line(trainer))
            trainer.epoch += 1
            validate(trainer, writer, bar)
            if asked_to_end.is_set():
                raise Terminated(saved_line(trainer))
    writer.close()


def validate(trainer: Trainer, writer: SummaryWriter, bar: Any) -> None:
    """Validate, log, and keep the agent where it is the best so far."""
    figures = trainer.validate()
    is_best = trainer.is_best(figures)
    if is_best:
        trainer.best_return = figures["eval/return"]
    record(trainer, writer, figures | {"eval/is_best": float(is_best)}, epoch=trainer.epoch)
    trainer.save(is_best=is_best)
    names = trainer.pool.names
    bar.write(epoch_line(trainer.epoch, figures, names, is_best=is_best))
    if warning := collapse_warning(figures, names):
        bar.write(warning)


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


def make_trainer(config: Config, folder: RunFolder, saved: dict[str, Any] | None = None) -> Trainer:
    """The trainer that the agent's way of reading needs."""
    kind = BeliefTrainer if config.agent.reads == "belief" else Trainer
    return kind(config, folder, saved)


def new_run(config: Config, config_path: Path) -> Trainer:
    """A trainer in a fresh folder."""
    set_threads(config.threads)
    folder = RunFolder(Path("runs") / run_name(config, config_path), resume=False)
    trainer = make_trainer(config, folder)
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
    folder = RunFolder(path, resume=True)
    state = folder.load_checkpoint("last")
    trainer = make_trainer(config, folder, state)
    if not is_whole(path):  # what it had learned is in its best checkpoint
        best = folder.load_checkpoint("best")
        if best is not None:
            trainer.load_state(best)
            trainer.save_learned()
    if state:
        trainer.load_state(state)
    else:
        trainer.calibrate()
    trainer.folder.cut_metrics(trainer.epoch, trainer.update_idx)
    return trainer
