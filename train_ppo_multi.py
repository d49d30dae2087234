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
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.signals import watch_signals

if __name__ == "__main__":  # before the imports that take seconds
    watch_signals()

from runtime.command_line import dump_config, load_config, parse, run_command
from runtime.errors import ConfigError

# What plans and trains loads libraries for seconds. It is imported where it is used, so that --help
# and a mistake in a setting are answered at once.
if TYPE_CHECKING:
    from training.trainer import Trainer


def show_config(path: Path, overrides: list[str], *, as_plan: bool) -> None:
    """Print the resolved configuration, or the plan of the run that it makes."""
    config = load_config(path, overrides)
    if not as_plan:
        print(dump_config(config).rstrip())
        return
    from dry_run.plan import make_plan
    from dry_run.table import plan_text

    print(f"{path}: {plan_text(make_plan(config))}")


def make_parser() -> argparse.ArgumentParser:
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
    return parser


def main(arguments: list[str]) -> Path | None:
    """Run the command; returns the run's folder."""
    options, overrides = parse(make_parser(), arguments)
    if options.resume and options.config:
        raise ConfigError(
            f"--resume {options.resume} goes on with the run's own configuration; leave --config"
            " out, or train a new run"
        )
    config_path = options.config or Path("configs/quickstart.yaml")
    if options.dry_run or options.print_config:
        path = options.resume / "config.yaml" if options.resume else config_path
        show_config(path, overrides, as_plan=options.dry_run)
        return None
    if options.resume is None:
        config = load_config(config_path, overrides)
    from evaluation.kept import kept_readings
    from training.distributed import help_encode, is_helper
    from training.loop import new_run, resumed_run

    if is_helper():
        help_encode()
        return None
    with kept_readings():
        if options.resume:
            return run(resumed_run(options.resume, overrides))
        return run(new_run(config, config_path))


def run(trainer: Trainer) -> Path:
    """Train to the end; returns the run's folder."""
    from questions import repeats_line
    from training.loop import train

    path = trainer.folder.path
    print(f"{path}: {trainer.summary()}")
    if trainer.splits.num_merged:
        print(repeats_line(trainer.splits))
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
