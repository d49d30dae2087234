"""The cost of a call and the two rewards (paper, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from config import CostKind, ExpertConfig, RewardConfig
from runtime.errors import MetricError


@dataclass(frozen=True)
class Cost:
    """What calls took, in every unit. Costs add up."""

    params_b: float = 0.0  # billions of parameters
    prompt_tokens: int = 0
    completion_tokens: int = 0
    flops: float = 0.0  # 2 x parameters x tokens
    latency_s: float = 0.0
    usd: float | None = 0.0  # None: some call has no price

    def __add__(self, other: Cost) -> Cost:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Cost(
            self.params_b + other.params_b,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.flops + other.flops,
            self.latency_s + other.latency_s,
            usd,
        )

    def in_unit(self, unit: CostKind) -> float:
        """Raw units: billions of parameters, 1e12 FLOPs, thousands of tokens, seconds, USD."""
        if unit == "params":
            return self.params_b
        if unit == "flops":
            return self.flops / 1e12
        if unit == "tokens":
            return (self.prompt_tokens + self.completion_tokens) / 1000
        if unit == "latency":
            return self.latency_s
        if self.usd is None:
            raise MetricError("a call without a price cannot be charged in usd")
        return self.usd


def call_cost(
    expert: ExpertConfig, prompt_tokens: int, completion_tokens: int, latency_s: float
) -> Cost:
    """Cost of one call. A stored answer is charged as if it had just been generated."""
    tokens, usd = prompt_tokens + completion_tokens, None
    if expert.usd_per_million_completion_tokens is not None:
        prompt_price = expert.usd_per_million_prompt_tokens or 0.0
        usd = (
            prompt_tokens * prompt_price
            + completion_tokens * expert.usd_per_million_completion_tokens
        ) / 1e6
    return Cost(
        expert.params_b,
        prompt_tokens,
        completion_tokens,
        2 * expert.params_b * 1e9 * tokens,
        latency_s,
        usd,
    )


def charge(cost: Cost, reward: RewardConfig) -> float:
    """C of the paper, in units of reward.cost_unit."""
    return cost.in_unit(reward.cost) * reward.cost_scale


def paper_reward(
    step_idx: int,
    quality: float,
    previous_quality: float,
    cost: float,
    *,
    is_satisfied: bool,
    is_last: bool,
    reward: RewardConfig,
) -> float:
    """The paper's reward of one step (section 3; formula as retold, see docs/paper.md).

    P_0 - alpha C_0 at t = 0, P_t + beta (P_t - P_{t-1}) - alpha C_t after; gamma_bonus more at P_t
    >= p0, less at T_max without.
    """
    gained = reward.beta * (quality - previous_quality) if step_idx > 0 else 0.0
    bonus = reward.gamma_bonus if is_satisfied else (-reward.gamma_bonus if is_last else 0.0)
    return quality + gained - reward.alpha * cost + bonus


def final_reward(
    quality: float, previous_quality: float, cost: float, *, is_end: bool, reward: RewardConfig
) -> float:
    """Quality of the final answer once, minus alpha C at every step, plus potential-based shaping
    (Ng et al. 1999).

    Phi is the quality of the current answer, 0 before the first and at the end, so the shaping sums
    to nothing over an episode.
    # Deviation: the paper pays quality at every step, which rewards delaying success (README,
    deviations).
    """
    potential = 0.0 if is_end else quality
    return (
        (quality if is_end else 0.0)
        - reward.alpha * cost
        + reward.discount * potential
        - previous_quality
    )
