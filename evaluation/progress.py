"""What a training says of itself: the figures of its routes, and lines for the terminal."""

from __future__ import annotations

from collections import Counter

import numpy as np

from config import Config
from reward import charge
from rollout import Route

COLLAPSE_SHARE = 0.95  # of greedy first calls to one expert


def route_figures(
    routes: list[Route], config: Config, names: list[str], prefix: str
) -> dict[str, float]:
    """Mean return, quality, calls and cost of finished routes, and each expert's share of the calls
    and of the first calls.
    """
    calls: Counter[int] = Counter()
    first: Counter[int] = Counter()
    outcomes = np.empty((len(routes), 4))
    for idx, route in enumerate(routes):
        experts = [step.expert_idx for step in route.episode.steps]
        calls.update(experts)
        first[experts[0]] += 1
        value = route.return_under(config.reward)
        cost = charge(route.episode.cost, config.reward)
        outcomes[idx] = (value, route.quality, len(experts), cost)
    figures = {}
    for column, name in enumerate(("return", "quality", "calls", "cost")):
        figures[f"{prefix}/{name}"] = float(outcomes[:, column].mean())
    for idx, name in enumerate(names):
        figures[f"{prefix}/share/{name}"] = calls[idx] / calls.total()
    for idx, name in enumerate(names):
        figures[f"{prefix}/first/{name}"] = first[idx] / first.total()
    return figures


def collapse_warning(figures: dict[str, float], names: list[str]) -> str | None:
    """Plain words when nearly every question goes to one expert first; None otherwise, and for a
    pool of one.
    """
    name = max(names, key=lambda n: figures[f"eval/first/{n}"])
    share = figures[f"eval/first/{name}"]
    if len(names) == 1 or share < COLLAPSE_SHARE:
        return None
    return (
        f"WARNING: the policy has collapsed: {share:.0%} of the validation questions are sent to"
        f" {name} first. It is no better than always asking that expert. Usual causes: reward.alpha"
        " too high, ppo.ent_coef too low, or one expert that is best everywhere."
    )


def update_line(figures: dict[str, float], names: list[str]) -> str:
    """What the progress bar says after an update."""
    top = max(figures[f"train/share/{name}"] for name in names)
    return (
        f"return {figures['train/return']:.3f} quality {figures['train/quality']:.3f} cost"
        f" {figures['train/cost']:.3f} entropy {figures['losses/entropy']:.2f} top expert"
        f" {top:.0%} stored {figures['pool/hit_rate']:.0%}"
    )


def epoch_line(epoch: int, figures: dict[str, float], names: list[str], *, is_best: bool) -> str:
    """What is said at the end of an epoch."""
    shares = ", ".join(f"{name} {figures[f'eval/share/{name}']:.0%}" for name in names)
    return (
        f"epoch {epoch}: validation return {figures['eval/return']:.3f}, quality"
        f" {figures['eval/quality']:.3f}, calls {figures['eval/calls']:.2f}, cost"
        f" {figures['eval/cost']:.3f}, threshold {figures['terminator/threshold']:.2f};"
        f" {shares}{' (best)' if is_best else ''}"
    )
