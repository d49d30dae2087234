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
import os
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "NUMBA_DISABLE_JIT", "1"
)  # tianshou compiles three small functions for up to a minute and gains nothing here

from runtime.signals import watch_signals

if __name__ == "__main__":  # before the imports that take seconds
    watch_signals()

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agent import AgentSpec
from config import Config
from dry_run.plan import make_plan
from dry_run.table import plan_text
from evaluation.progress import collapse_warning, epoch_line, update_line
from questions import repeats_line
from runtime.command_line import dump_config, load_config, parse, run_command
from runtime.errors import ConfigError, RunError
from runtime.machine import (
    set_threads,
)
from runtime.model_folder import read_model_folder
from runtime.run_folder import RunFolder, load_run_config, run_name
from runtime.signals import Terminated, finishing_first
from terminator import (
    TerminatorSpec,
)
from training.belief_trainer import BeliefTrainer
from training.distributed import help_encode, is_helper
from training.trainer import Trainer


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


def new_run(config_path: Path, overrides: list[str]) -> Trainer:
    """A trainer in a fresh folder."""
    config = load_config(config_path, overrides)
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
        help_encode()
        return None
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
    trainer.finish()
    if trainer.agent.encoder.team:
        trainer.agent.encoder.team.stop()
    trainer.folder.close()
    print(
        f"agent and Terminator of the best epoch (validation return {trainer.best_return:.3f}) are"
        f" in {path}. Evaluate: python test_ppo_multi.py --run {path}"
    )
    return path


if __name__ == "__main__":
    run_command(main)
