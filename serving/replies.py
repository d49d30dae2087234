"""What a client and the log are told of a served route."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from der_env import Step
from reward import charge
from rollout import Route
from serving.served_run import ServedRun
from serving.worker import Ticket

Record = dict[str, Any]
PIECE = 64  # characters of the answer in a chunk
STOP_REASONS = {
    "satisfied": "the estimate of the answer is above the Terminator's threshold",
    "stopped": "the agent expects no gain from another call",
    "t_max": "no further calls are allowed",
    "max_cost": "another call is expected to exceed max_cost",
}


def route_record(ticket: Ticket, route: Route, run: ServedRun) -> Record:
    """A served route without any text: `x_der` of the reply, and a line of the log."""
    episode = route.episode
    limits = run.limits[ticket.id]
    steps = []
    for place, step in enumerate(episode.steps):
        estimate = episode.estimates[place] if episode.estimates else step.p_stop
        steps.append(_step_record(step, run, limits.probabilities[place], estimate))
    reason = "max_cost" if limits.is_out_of_budget else episode.stop_reason
    record: Record = {
        "id": ticket.id,
        "run": run.name,
        "alpha": run.alpha_of(episode),
        "task": episode.question.task,
        "metric": episode.question.metric,
        "agreement": episode.question.agreement,
        "steps": steps,
        "submitted": episode.submitted_idx,
        "expert": steps[episode.submitted_idx]["expert"],
        "estimate": steps[episode.submitted_idx]["estimate"],
        "cost": run.charge_of(route),
        "cost_unit": run.config.reward.cost,
        "stop_reason": reason,
        "stopped_because": STOP_REASONS[reason],
        "stop_probability": None,
        "ignored": list(ticket.asked.ignored),
        "seconds": {"total": ticket.total_s, "experts": ticket.experts_s},
    }
    if len(limits.probabilities) > len(steps):  # stopping was an action, too
        record["stop_probability"] = limits.probabilities[-1]
    return record


def _step_record(step: Step, run: ServedRun, probability: float, estimate: float | None) -> Record:
    return {
        "expert": run.pool.names[step.expert_idx],
        "probability": probability,
        "cost": charge(step.cost, run.config.reward),
        "params_b": step.cost.params_b,
        "prompt_tokens": step.cost.prompt_tokens,
        "completion_tokens": step.cost.completion_tokens,
        "latency_s": step.cost.latency_s,
        "usd": step.cost.usd,
        "prompt_cut": step.answer.prompt_cut,
        "finish": step.answer.finish,
        "logprob_mean": step.answer.logprob_mean,
        "logprob_min": step.answer.logprob_min,
        "estimate": estimate,
        "p_stop": step.p_stop,
    }


def usage_of(record: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of all calls of a route."""
    prompt = sum(step["prompt_tokens"] for step in record["steps"])
    completion = sum(step["completion_tokens"] for step in record["steps"])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def completion(ticket: Ticket, answer: str, record: Record) -> Record:
    """The body of a chat completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    return {
        **_head(ticket, "chat.completion"),
        "choices": [choice],
        "usage": usage_of(record),
        "x_der": record,
    }


def _head(ticket: Ticket, kind: str) -> Record:
    return {
        "id": ticket.id,
        "object": kind,
        "created": int(ticket.created),
        "model": ticket.asked.model,
    }


class Chunks:
    """The chunks of a streamed chat completion, as its answer grows."""

    def __init__(self, ticket: Ticket):
        self._head = _head(ticket, "chat.completion.chunk")
        self._wants_usage = ticket.asked.wants_usage
        self._has_begun = False
        self.sent = ""

    def grow(self, answer: str) -> Iterator[Record]:
        """What brings an answer up to here; nothing for one that begins otherwise."""
        if not self._has_begun:
            self._has_begun = True
            yield self._chunk({"role": "assistant", "content": ""})
        if not answer.startswith(self.sent):
            return
        for start in range(len(self.sent), len(answer), PIECE):
            yield self._chunk({"content": answer[start : start + PIECE]})
        self.sent = answer

    def finish(self, answer: str, record: Record) -> Iterator[Record]:
        """The rest. The last chunk with a choice brings `x_der`."""
        yield from self.grow(answer)
        yield {**self._chunk({}, "stop"), "x_der": record}
        if self._wants_usage:
            yield {**self._head, "choices": [], "usage": usage_of(record)}

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> Record:
        return {**self._head, "choices": [_delta(delta, finish_reason)]}


def _delta(delta: dict[str, str], finish_reason: str | None = None) -> Record:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def headers_of(record: Mapping[str, Any]) -> dict[str, str]:
    """The route in short, as headers."""
    costs = [f"{step['cost']:.6g}" for step in record["steps"]]
    headers = {
        "x-der-id": record["id"],
        "x-der-route": json.dumps([step["expert"] for step in record["steps"]]),
        "x-der-costs": ", ".join(costs),
        "x-der-cost": f"{record['cost']:.6g}",
        "x-der-stop-reason": record["stop_reason"],
        "x-der-seconds": f"{record['seconds']['total']:.4f}",
    }
    if record["estimate"] is not None:
        headers["x-der-estimate"] = f"{record['estimate']:.4f}"
    return headers
