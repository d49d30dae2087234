"""Which experts a policy asks: results.json's `routes`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.route_log import Record
from report.policies import PolicyResults

UNWANTED_ENDINGS = ("length", "content_filter", "refusal")
Path = tuple[str, ...]  # the experts of a route, in the order they were asked


def route_statistics(policy: PolicyResults, experts: Sequence[str]) -> dict[str, Any]:
    """Shares of the calls, flows from call to call, entropy, and what each further call brings."""
    paths = [path_of(record) for record in policy.all_records]
    every_call = list(itertools.chain(*paths))
    longest = max(map(len, paths))
    by_position = []
    for position in range(longest):
        calls = [path[position] for path in paths if len(path) > position]
        by_position.append(_shares(calls, experts))
    entropies = [_entropy([path_of(record) for record in row]) for row in policy.records]
    return {
        "policy": policy.name,
        "share": _shares(every_call, experts),
        "by_position": by_position,
        "flows": _flows(paths),
        "entropy": float(np.mean(entropies)),
        "further_calls": _further_calls(policy.all_records, longest),
    }


def endings(records: Sequence[Record], experts: Sequence[str]) -> list[dict[str, int]]:
    """How each expert's answers ended: results.json's `endings`. The same answer counts once."""
    found: dict[str, dict[tuple[str, str], str]] = {name: {} for name in experts}
    for record in records:
        for step in record["steps"]:
            answer = (record["question"], step["answer"])
            found[step["expert"]][answer] = step.get("finish", "")
    counted = []
    for finishes in found.values():
        counts = Counter(finishes.values())
        ends = {"answers": len(finishes)}
        for finish in UNWANTED_ENDINGS:
            ends[finish] = counts[finish]
        counted.append(ends)
    return counted


def path_of(record: Record) -> Path:
    return tuple(step["expert"] for step in record["steps"])


def _shares(calls: Sequence[str], experts: Sequence[str]) -> dict[str, float]:
    counts = Counter(calls)
    return {name: counts[name] / len(calls) for name in experts}


def _flows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """How many routes go from one expert to another at each step."""
    counts: Counter[tuple[int, str, str]] = Counter()
    for path in paths:
        stations = ["start", *path, "stop"]
        for step, (before, after) in enumerate(itertools.pairwise(stations), start=1):
            counts[step, before, after] += 1
    flows = []
    for (step, before, after), count in sorted(counts.items()):
        flows.append({"step": step, "from": before, "to": after, "count": count})
    return flows


def _entropy(paths: Sequence[Path]) -> float:
    """Entropy in bits of the routes of one seed.

    Seeds are not pooled: agents that each take one route have none, though their routes differ.
    """
    shares = np.array(list(Counter(paths).values())) / len(paths)
    return float((shares * np.log2(1 / shares)).sum())


def _further_calls(records: Sequence[Record], longest: int) -> list[dict[str, Any]]:
    """For each call after the first: how many routes make it, quality gained, cost."""
    found = []
    for position in range(1, longest):
        gains = []
        charges = []
        for record in records:
            if len(record["steps"]) > position:
                before, after = record["steps"][position - 1 : position + 1]
                gains.append(after["quality"] - before["quality"])
                charges.append(after["charge"])
        means = {"gain": float(np.mean(gains)), "charge": float(np.mean(charges))}
        found.append({"call": position + 1, "routes": len(gains), **means})
    return found
