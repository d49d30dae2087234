"""What GET /metrics shows, in Prometheus' text format."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from serving.worker import Worker

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
CALLS = (1, 2, 3, 4, 5, 6, 8, 10)


class Figures:
    """Counters of one server."""

    def __init__(self, worker: Worker):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # processor time and memory of the server
        self.requests = Counter(
            "der_requests", "Chat completions by HTTP status", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "der_request_seconds",
            "Wall time of an answered request",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.overhead = Histogram(
            "der_overhead_seconds",
            "The same without the time in which experts were waited for",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.calls = Histogram(
            "der_calls", "Expert calls of a request", buckets=CALLS, registry=self.registry
        )
        self.expert_calls = Counter(
            "der_expert_calls", "Expert calls", ["expert"], registry=self.registry
        )
        self.tokens = Counter("der_tokens", "Tokens of all calls", ["kind"], registry=self.registry)
        self.cost = Counter("der_cost", "C of all calls", registry=self.registry)
        self.feedback = Counter("der_feedback", "Judged answers", registry=self.registry)
        self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        """Show what the worker and its pool count themselves."""
        open_requests = Gauge("der_open_requests", "Requests under way", registry=self.registry)
        open_requests.set_function(lambda: worker.num_open)
        said = {
            "hits": "Calls answered from the store",
            "generated": "Answers generated",
            "failed": "Calls without an answer",
        }
        stats = worker.run.pool.stats
        for name, words in said.items():
            gauge = Gauge(f"der_pool_{name}", words, registry=self.registry)
            gauge.set_function(functools.partial(getattr, stats, name))

    def note_route(self, record: Mapping[str, Any]) -> None:
        """Count a served route."""
        seconds = record["seconds"]
        self.seconds.observe(seconds["total"])
        self.overhead.observe(max(0.0, seconds["total"] - seconds["experts"]))
        self.calls.observe(len(record["steps"]))
        self.cost.inc(record["cost"])
        for step in record["steps"]:
            self.expert_calls.labels(step["expert"]).inc()
            self.tokens.labels("prompt").inc(step["prompt_tokens"])
            self.tokens.labels("completion").inc(step["completion_tokens"])

    def text(self) -> bytes:
        return generate_latest(self.registry)
