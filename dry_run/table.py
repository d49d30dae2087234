"""A plan as plain text: a line a fact, a row an expert."""

from __future__ import annotations

from statistics import fmean

from dry_run.plan import CHARS_PER_TOKEN, Plan, count_pool_calls, fit_together, max_loads
from dry_run.preflight import SPLITS
from reward import call_cost

ROW_BYTES = 250  # of a stored answer, beside prompt and text: key, numbers, library versions


def plan_text(plan: Plan) -> str:
    """The plan as plain text."""
    config, calls, train = plan.config, plan.calls, plan.config.train
    num_experts, t_max = len(plan.experts), config.env.t_max
    sizes = {name: plan.splits[name].num_questions for name in SPLITS}
    low, high = plan.bounds
    asks_first = sum(e.first > 0 for e in plan.experts)
    verdict = "can be run" if plan.can_be_run else "cannot be run here yet (see below)"
    lines = [
        (
            f"{verdict}, as far as can be seen without weights and network; nothing was loaded,"
            " asked or written."
        ),
        "",
        (
            f"questions   {', '.join(f'{name} {size:,}' for name, size in sizes.items())}; metrics:"
            f" {', '.join(plan.metrics)}"
        ),
        (
            f"pool        {num_experts} experts, T_max {t_max}:"
            f" {sum(num_experts**t for t in range(1, t_max + 1)):,} routes a question; the reward"
            f" charges {config.reward.cost}"
        ),
        (
            f"training    {train.epochs * train.updates_per_epoch * train.episodes_per_update:,}"
            f" episodes of 1 to {t_max} calls, and {train.epochs} validations"
        ),
        (
            f"answers     {low:,} to {high:,} to generate, each distinct prompt once; those in the"
            " store already are not generated again"
        ),
        (
            f"            at least a first call for every question met: {calls.low:,}, recorded"
            " first answers apart"
        ),
        (
            f"            at most {calls.first:,} first and {calls.later:,} later: call t has"
            " questions x experts^t prompts, and no more than calls are played"
        ),
        (
            "evaluation  asks each expert about every validation and test question:"
            f" {asks_first * (sizes['validation'] + sizes['test']):,} first answers; eval.full many"
            " more"
        ),
        "",
        *_expert_table(plan),
        "",
        *_totals(plan),
        *_placement(plan),
        *_store(plan),
        *(f"{'present' if here else 'MISSING'}     {what}" for what, here in plan.needs.items()),
        *(f"note        {note}" for note in dict.fromkeys(plan.notes)),
    ]
    if train.max_expert_calls is not None:
        lines.append(
            f"note        train.max_expert_calls ends the run after {train.max_expert_calls:,}"
            " generated answers"
        )
    return "\n".join(lines)


def _expert_table(plan: Plan) -> list[str]:
    rows = [
        (
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
    ]
    for e in plan.experts:
        weights, speed = (
            "-" if e.weights_gb is None else f"{e.weights_gb:.3g}",
            ("?" if e.tokens_per_second is None else f"{e.tokens_per_second:.3g}"),
        )
        cache = weights if e.weights_gb is None else "?" if e.kv_gb is None else f"{e.kv_gb:.3g}"
        prompts, answer = (
            f"{e.prompt_tokens[0]:.0f} / {e.prompt_tokens[1]:.0f}",
            f"{'' if e.measured else '<= '}{e.answer_tokens:.0f}",
        )
        hours = "?" if e.hours is None else f"{e.hours[0]:.2g} - {e.hours[1]:.2g}"
        rows.append(
            (
                e.config.name,
                e.config.kind,
                f"{e.config.params_b:g}",
                weights,
                cache,
                prompts,
                answer,
                speed,
                f"{e.low:,.0f} - {e.high:,.0f}",
                hours,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place > 1 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _totals(plan: Plan) -> list[str]:
    """How to read the table, and what it adds up to."""
    asked = [e for e in plan.experts if e.high]
    read, written = sum(e.tokens_read for e in asked), sum(e.tokens_written for e in asked)
    costs = [
        call_cost(e.config, round(e.tokens_read), round(e.tokens_written), 0.0).usd for e in asked
    ]
    known_costs = [cost for cost in costs if cost is not None]
    usd = f", {sum(known_costs):,.2f} USD" if len(known_costs) == len(costs) else ""
    lines = [
        (
            f"tokens      at most {read / 1e6:,.1f} million read and {written / 1e6:,.1f} million"
            f" written{usd}; all as in the table at an even share of the calls"
        ),
        (
            "            prompts of a first / a later call: by the tokenizer where it is here,"
            f" else {CHARS_PER_TOKEN} characters a token"
        ),
        (
            "            answers: the mean in the store, <= max_new_tokens where there is none;"
            " batch KV: of pool.max_batch_tokens, ? until the model's config.json is here"
        ),
    ]
    if unknown := [e for e in asked if e.hours is None]:
        whose = "every expert" if unknown == asked else ", ".join(e.config.name for e in unknown)
        lines.append(
            f"hours       unknown of {whose}: state tokens_per_second, or let a short run measure"
            " it (--train.max_expert_calls 1000)"
        )
    else:
        hours = [e.hours for e in asked if e.hours is not None]
        low = sum(least for least, _ in hours)
        high = sum(most for _, most in hours)
        lines.append(f"hours       {low:.2g} to {high:.2g}, one expert after the other")
    return lines


def _placement(plan: Plan) -> list[str]:
    """Which experts fit together, and how often they would be loaded."""
    sizes = {e.config.name: e.weights_gb or 0.0 for e in plan.experts if e.config.kind == "hf"}
    lines = [
        f"cluster     {e.config.name}: {e.config.replicas} x {e.weights_gb:.3g} GB on"
        f" {e.config.num_gpus:g} GPUs each"
        for e in plan.experts
        if e.config.kind == "ray"
    ]
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
    stated = [
        ROW_BYTES + CHARS_PER_TOKEN * (e.tokens_read + e.tokens_written) / e.high
        for e in plan.experts
        if e.high
    ]
    each = plan.bytes_per_answer or (fmean(stated) if stated else 0)
    how = "measured" if plan.bytes_per_answer else f"at {CHARS_PER_TOKEN} characters a token"
    return [
        f"store       {plan.config.pool.store} grows by"
        f" {sum(e.high for e in plan.experts) * each / 1e6:,.1f} MB at most ({each:,.0f} bytes an"
        f" answer, {how})"
    ]
