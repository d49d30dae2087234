"""Which runs serve which cost weight, for an evaluation over several alphas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from config import Config
from runtime.errors import ConfigError
from runtime.run_folder import differing_settings, load_run_config


def runs_by_alpha(runs: Sequence[Path], alphas: Sequence[float]) -> dict[float, list[Path]]:
    """The runs of each alpha: those that were trained with it, or for it among others
    (reward.alphas).

    Raises ConfigError for a run of another alpha, runs that differ in more than alpha and seed, and
    an alpha without runs of all seeds.
    """
    configs = [load_run_config(run) for run in runs]
    groups: dict[float, list[Path]] = {alpha: [] for alpha in alphas}
    seeds: dict[float, set[int]] = {alpha: set() for alpha in alphas}
    for run, config in zip(runs, configs, strict=True):
        other = differing_settings(configs[0], config)
        if set(other) - {"reward.alpha"}:
            raise ConfigError(
                f"{run} differs from {runs[0]} in {', '.join(other)}: only runs that differ in"
                " reward.alpha and seed belong in one report"
            )
        for alpha in served_by(run, config, alphas):
            groups[alpha].append(run)
            seeds[alpha].add(config.seed)
    _check_seeds(seeds)
    return groups


def served_by(run: Path, config: Config, alphas: Sequence[float]) -> list[float]:
    """Those of the alphas that an agent knows. Raises ConfigError where its own is not listed."""
    learned = config.reward.alphas
    if learned:
        return [alpha for alpha in alphas if learned[0] <= alpha <= learned[-1]]
    own = config.reward.alpha
    if own not in alphas:
        raise ConfigError(
            f"{run} was trained with reward.alpha = {own:g}, which --alphas {_listed(alphas)} does"
            " not list: add it, or leave the run out"
        )
    return [own]


def _check_seeds(seeds: dict[float, set[int]]) -> None:
    everyone = set().union(*seeds.values())
    for alpha, found in seeds.items():
        if found != everyone:
            raise ConfigError(
                f"--alphas {_listed(list(seeds))}: alpha {alpha:g} has runs of the seeds"
                f" {sorted(found) or 'none'}, others have more. Train the missing ones:"
                f" python train_ppo_multi.py --reward.alpha {alpha:g} --seed SEED"
            )


def _listed(alphas: Sequence[float]) -> str:
    return ",".join(f"{alpha:g}" for alpha in alphas)
