"""A plan as plain text: one line for each fact, one row for each expert."""

from __future__ import annotations

from statistics import fmean

from config import SPLITS, Config, RayExpertConfig
from dry_run.plan import (
    CHARS_PER_TOKEN,
    ExpertPlan,
    Plan,
    count_pool_calls,
    fit_together,
    max_loads,
)
from reward import call_cost

ROW_BYTES = 250  # of a stored answer without prompt and text: key, numbers, library versions


def plan_text(plan: Plan) -> str:
    """The plan as plain text."""
    verdict = "can be run" if plan.can_be_run else "cannot be run here yet (see below)"
    lines = [
        (
            f"{verdict}, as far as can be seen without weights and network; nothing was loaded,"
            " asked or written."
        ),
        "",
        *_run_size(plan),
        *_num_answers(plan),
        "",
        *_expert_table(plan),
        "",
        *_totals(plan),
        *_placement(plan),
        *_store(plan),
    ]
    for need, is_present in plan.needs.items():
        lines.append(f"{'present' if is_present else 'MISSING'}     {need}")
    for note in dict.fromkeys(plan.notes):
        lines.append(f"note        {note}")
    max_calls = plan.config.train.max_expert_calls
    if max_calls is not None:
        lines.append(
            f"note        train.max_expert_calls ends the run after {max_calls:,} generated answers"
        )
    return "\n".join(lines)


def _run_size(plan: Plan) -> list[str]:
    """How many questions, routes and episodes there are."""
    config, train = plan.config, plan.config.train
    sizes = ", ".join(f"{name} {plan.splits[name].num_questions:,}" for name in SPLITS)
    num_experts, t_max = len(plan.experts), config.env.t_max
    num_routes = sum(num_experts**t for t in range(1, t_max + 1))
    num_episodes = train.epochs * train.updates_per_epoch * train.episodes_per_update
    return [
        f"questions   {sizes}; metrics: {', '.join(plan.metrics)}",
        (
            f"pool        {num_experts} experts, T_max {t_max}: {num_routes:,} routes a question;"
            f" C counts {config.reward.cost_unit}"
        ),
        (
            f"training    {num_episodes:,} episodes of 1 to {t_max} calls, and {train.epochs}"
            " validations"
        ),
    ]


def _num_answers(plan: Plan) -> list[str]:
    """How many answers training and evaluation generate."""
    calls = plan.calls
    low, high = plan.bounds
    num_asked_first = sum(e.first > 0 for e in plan.experts)
    num_evaluated = plan.splits["validation"].num_questions + plan.splits["test"].num_questions
    return [
        (
            f"answers     {low:,} to {high:,} to generate, each distinct prompt once; those in the"
            " store already are not generated again"
        ),
        (
            f"            at least {_least(plan.config)}: {calls.low:,}, recorded first answers"
            " apart"
        ),
        (
            f"            at most {calls.first:,} first and {calls.later:,} later: call t has"
            " questions x experts^t prompts, and no more than calls are played"
        ),
        (
            "evaluation  asks each expert about every validation and test question:"
            f" {num_asked_first * num_evaluated:,} first answers; eval.full many more"
        ),
    ]


def _least(config: Config) -> str:
    """What is asked whatever the policy."""
    if config.agent.reads == "belief":
        return "every expert's first answers, on which an agent over beliefs is fitted"
    return "a first call for every question met"


HEADER = (
    "expert",
    "kind",
    "params_b",
    "weights GB",
    "batch KV GB",
    "prompt tokens",
    "answer tokens",
    "tokens/s",
    "answers",
    "hours",
)


def _expert_table(plan: Plan) -> list[str]:
    """One line for each expert under a header; from the third column on aligned to the right."""
    rows = [HEADER, *map(_expert_row, plan.experts)]
    widths = []
    for column in zip(*rows, strict=True):
        widths.append(max(map(len, column)))
    lines = []
    for row in rows:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cells.append(cell.rjust(width) if place > 1 else cell.ljust(width))
        lines.append("  ".join(cells))
    return lines


def _expert_row(e: ExpertPlan) -> tuple[str, ...]:
    """The cells under HEADER; "-" where an expert has no such thing, "?" where it is not known."""
    weights = cache = "-"
    if e.weights_gb is not None:
        weights = f"{e.weights_gb:.3g}"
        cache = "?" if e.kv_gb is None else f"{e.kv_gb:.3g}"
    first, later = e.prompt_tokens
    at_most = "" if e.measured else "<= "
    return (
        e.config.name,
        e.config.kind,
        f"{e.config.params_b:g}",
        weights,
        cache,
        f"{first:.0f} / {later:.0f}",
        f"{at_most}{e.answer_tokens:.0f}",
        "?" if e.tokens_per_second is None else f"{e.tokens_per_second:.3g}",
        f"{e.low:,.0f} - {e.high:,.0f}",
        "?" if e.hours is None else f"{e.hours[0]:.2g} - {e.hours[1]:.2g}",
    )


def _totals(plan: Plan) -> list[str]:
    """How to read the table, and what it adds up to."""
    asked = [e for e in plan.experts if e.high]
    read = sum(e.tokens_read for e in asked)
    written = sum(e.tokens_written for e in asked)
    return [
        (
            f"tokens      at most {read / 1e6:,.1f} million read and {written / 1e6:,.1f} million"
            f" written{_usd(asked)}; all as in the table at an even share of the calls"
        ),
        (
            "            prompts of a first / a later call: by the tokenizer where it is here,"
            f" else {CHARS_PER_TOKEN} characters a token"
        ),
        (
            "            answers: the mean in the store, <= max_new_tokens where there is none;"
            " batch KV: of pool.max_batch_tokens, ? until the model's config.json is here"
        ),
        _hours(asked),
    ]


def _usd(asked: list[ExpertPlan]) -> str:
    """What all tokens cost, as `, 1.23 USD`; empty where an expert has no price."""
    total = 0.0
    for e in asked:
        usd = call_cost(e.config, round(e.tokens_read), round(e.tokens_written), 0.0).usd
        if usd is None:
            return ""
        total += usd
    return f", {total:,.2f} USD"


def _hours(asked: list[ExpertPlan]) -> str:
    """How long all experts take, or the experts for which that is not known."""
    low = 0.0
    high = 0.0
    unknown = []
    for e in asked:
        if e.hours is None:
            unknown.append(e.config.name)
        else:
            low += e.hours[0]
            high += e.hours[1]
    if not unknown:
        return f"hours       {low:.2g} to {high:.2g}, one expert after the other"
    whose = "every expert" if len(unknown) == len(asked) else ", ".join(unknown)
    return (
        f"hours       unknown of {whose}: state tokens_per_second, or let a short run measure"
        " it (--train.max_expert_calls 1000)"
    )


def _placement(plan: Plan) -> list[str]:
    """Which experts fit together, and how often they would be loaded."""
    sizes = {}
    lines = []
    for expert in plan.experts:
        config = expert.config
        if config.kind == "hf":
            sizes[config.name] = expert.weights_gb or 0.0
        elif isinstance(config, RayExpertConfig):
            lines.append(
                f"cluster     {config.name}: {config.replicas} x {expert.weights_gb:.3g} GB on"
                f" {config.num_gpus:g} GPUs each"
            )
    if not sizes:
        return lines
    limit = plan.config.pool.memory_gb
    loads = max_loads(
        list(sizes.values()),
        limit,
        count_pool_calls(plan.splits["validation"].num_questions, plan.config),
    )
    groups = " | ".join(" + ".join(group) for group in fit_together(sizes, limit))
    said = (
        "no pool.memory_gb: all stay loaded"
        if limit is None
        else f"under pool.memory_gb {limit:g}: {groups}"
    )
    lines.append(
        f"memory      weights {sum(sizes.values()):.3g} GB; {said}; {loads:,} loads at most"
    )
    if plan.device_gb is not None and plan.local_gb > plan.device_gb:
        here = f"{plan.device_gb:.3g} GB here (device {plan.config.device})"
        lines.append(
            f"            TOO MUCH for the {here}: {plan.local_gb:.3g} GB at once. Set"
            " pool.memory_gb, quantization or device_map"
        )
    return lines


def _store(plan: Plan) -> list[str]:
    """What the answer store may grow by."""
    stated = []
    most_answers = 0.0
    for expert in plan.experts:
        most_answers += expert.high
        if expert.high:
            num_tokens = expert.tokens_read + expert.tokens_written
            stated.append(ROW_BYTES + CHARS_PER_TOKEN * num_tokens / expert.high)
    each = plan.bytes_per_answer or (fmean(stated) if stated else 0)
    how = "measured" if plan.bytes_per_answer else f"at {CHARS_PER_TOKEN} characters a token"
    return [
        f"store       {plan.config.pool.store} grows by"
        f" {most_answers * each / 1e6:,.1f} MB at most ({each:,.0f} bytes an answer, {how})"
    ]
