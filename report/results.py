"""From the route log to results: the rows and comparisons of results.json, what they say in words,
the table.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from config import Config
from evaluation.route_log import Record
from evaluation.stats import adjust, few_seeds_note, interval, paired_difference
from questions import RECORDED
from report.trade_off import trade_off
from runtime.errors import ReportError

COST_UNITS = ("params_b", "flops", "prompt_tokens", "completion_tokens", "latency_s")
COST_WORDS = {
    "params": "billions of parameters",
    "flops": "trillions of FLOPs",
    "tokens": "thousands of tokens",
    "latency": "seconds",
    "usd": "US dollars",
}
RIVAL_KINDS = ("static", "random", "cascade", "learned", "ensemble")  # what the agent has to beat
ANCHORS = (
    "best fixed: ",
    "random with KTP",
    "cascade",
    "full-information",
)  # policies that every other is compared with, by the start of their names
YARDSTICKS = {  # of results.json -> the policy that is it
    "oracle_stop": "DER, oracle stop",
    "optimum": "optimum (hindsight)",
    "full_information": "full-information",
    "full_information_oracle_stop": "full-information, oracle stop",
    "best_of_all": "all once, oracle's pick",
}
SEPARABLE = {"worse": "loses to", "not separable": "cannot be told from", "better": "beats"}


# --- numbers ---


class Sheet:
    """One policy's records as arrays of shape (S seeds, Q questions)."""

    def __init__(self, policy: str, records: Sequence[Record], questions: Sequence[str]):
        by_seed: dict[int, list[Record]] = defaultdict(list)
        for record in records:
            by_seed[record["seed"]].append(record)
        self.policy, self.seeds = policy, sorted(by_seed)
        rows = []
        for seed in self.seeds:
            found = {record["question"]: record for record in by_seed[seed]}
            if found.keys() != set(questions) or len(by_seed[seed]) != len(questions):
                raise ReportError(
                    f"policy {policy}, seed {seed}: {len(by_seed[seed])} routes for"
                    f" {len(questions)} questions; the runs were evaluated on other questions"
                )
            rows.append([found[name] for name in questions])
        self.records = rows
        self.kind = rows[0][0]["kind"]
        self.tasks = np.array([record["task"] for record in rows[0]])
        self.quality, self.value = (
            self._array(lambda r: r["quality"]),
            self._array(lambda r: r["return"]),
        )
        self.calls = self._array(lambda r: len(r["steps"]))
        self.charge = self._array(lambda r: sum(step["charge"] for step in r["steps"]))

    def _array(self, figure: Any) -> np.ndarray:
        return np.array([[figure(record) for record in row] for row in self.records], dtype=float)

    def measure(self, name: str) -> np.ndarray:
        return self.quality if name == "quality" else self.value

    def row(self, best_single: Sheet) -> dict[str, Any]:
        """The policy's row of results.json."""
        flat = [record for row in self.records for record in row]
        costs = {
            name: float(np.mean([sum(step["cost"][name] for step in r["steps"]) for r in flat]))
            for name in COST_UNITS
        }
        prices = [step["cost"]["usd"] for r in flat for step in r["steps"]]
        versus = paired_difference(self.quality, best_single.quality)
        return {
            "policy": self.policy,
            "kind": self.kind,
            "quality": _span(self.quality),
            "return": _span(self.value),
            "calls": _span(self.calls, counted=True),
            "charge": float(self.charge.mean()),
            "cost": {**costs, "usd": None if None in prices else sum(prices) / len(flat)},
            "overhead": {
                name: float(np.mean([r["overhead"][name] for r in flat]))
                for name in ("params_b", "flops", "latency_s")
            },
            "vs_best_single": {name: versus[name] for name in ("diff", "lo", "hi", "verdict")},
            "by_task": {
                task: {
                    "quality": float(self.quality[:, self.tasks == task].mean()),
                    "n": int((self.tasks == task).sum()),
                }
                for task in sorted(set(self.tasks))
            },
            "by_seed": {
                str(seed): {"quality": float(q.mean()), "return": float(v.mean())}
                for seed, q, v in zip(self.seeds, self.quality, self.value, strict=True)
            },
        }

    def point(self, value: str | None = None) -> dict[str, Any]:
        """The policy's point in the trade-off; `value`: of the swept setting, for an agent trained
        with it.
        """
        return {
            "policy": self.policy,
            "kind": self.kind,
            "value": value,
            "cost": _span(self.charge, counted=True),
            "quality": _span(self.quality),
        }


def _span(values: np.ndarray, *, counted: bool = False) -> dict[str, float]:
    found = interval(values, counted=counted)
    return {name: found[name] for name in ("mean", "lo", "hi")}


def sheets_of(records: Sequence[Record]) -> list[Sheet]:
    """The policies of a route log (of one or several runs), in the order they were played.

    Raises ReportError when they do not fit together.
    """
    grouped: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        grouped[record["policy"]].append(record)
    questions = list(dict.fromkeys(record["question"] for record in records))
    return [Sheet(policy, lines, questions) for policy, lines in grouped.items()]


def compare(sheets: Sequence[Sheet]) -> list[dict[str, Any]]:
    """Paired differences in quality and return, p adjusted (Holm).

    Two questions, each with its own adjustment in each measure: the agent against every policy that
    could replace it; and every other policy, single experts aside, against the ANCHORS, each pair
    once.
    """
    der, others = sheets[0], [sheet for sheet in sheets[1:] if sheet.kind != "single"]
    own = [(der, b) for b in others if b.kind in RIVAL_KINDS]
    anchors = [
        sheet for sheet in others if sheet.kind in RIVAL_KINDS and sheet.policy.startswith(ANCHORS)
    ]
    rest = [(a, b) for a in others for idx, b in enumerate(anchors) if a not in anchors[: idx + 1]]
    out = []
    for measure, pairs in itertools.product(("quality", "return"), (own, rest)):
        family = []
        for a, b in pairs:
            values, baseline = a.measure(measure), b.measure(measure)
            if a.seeds != b.seeds and len(a.seeds) > 1 < len(b.seeds):
                raise ReportError(
                    f"{a.policy} was played with seeds {a.seeds}, {b.policy} with {b.seeds}:"
                    " evaluate the runs again"
                )
            family.append(
                {
                    "a": a.policy,
                    "b": b.policy,
                    "measure": measure,
                    **paired_difference(values, baseline),
                }
            )
        for comparison, p in zip(family, adjust([c["p"] for c in family]), strict=True):
            comparison["p_adjusted"] = p
        out += family
    return out


def route_figures(sheet: Sheet, names: Sequence[str]) -> dict[str, Any]:
    """Whom a policy asks: shares, by position, flows from call to call, entropy of a seed's routes
    (bits), what each further call brings.
    """
    routes = [
        [step["expert"] for step in record["steps"]] for row in sheet.records for record in row
    ]
    flat = [record for row in sheet.records for record in row]
    longest = max(map(len, routes))
    by_position = [[route[t] for route in routes if len(route) > t] for t in range(longest)]
    flows: Counter[tuple[int, str, str]] = Counter()
    for route in routes:
        flows.update(
            (t, before, after)
            for t, (before, after) in enumerate(
                itertools.pairwise(["start", *route, "stop"]), start=1
            )
        )
    # Seed by seed: agents that each take one route have none, though their routes differ
    entropies = []
    for row in sheet.records:
        counts = Counter(tuple(step["expert"] for step in record["steps"]) for record in row)
        shares = np.array(list(counts.values())) / len(row)
        entropies.append((shares * np.log2(1 / shares)).sum())
    further = []
    for t in range(1, longest):
        pairs = [(r["steps"][t - 1], r["steps"][t]) for r in flat if len(r["steps"]) > t]
        gain, cost = (
            np.mean([b["quality"] - a["quality"] for a, b in pairs]),
            np.mean([b["charge"] for _, b in pairs]),
        )
        further.append(
            {"call": t + 1, "routes": len(pairs), "gain": float(gain), "charge": float(cost)}
        )
    return {
        "policy": sheet.policy,
        "share": _shares([*itertools.chain(*routes)], names),
        "by_position": [_shares(calls, names) for calls in by_position],
        "flows": [
            {"step": t, "from": a, "to": b, "count": count}
            for (t, a, b), count in sorted(flows.items())
        ],
        "entropy": float(np.mean(entropies)),
        "further_calls": further,
    }


def _shares(calls: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    return {name: list(calls).count(name) / len(calls) for name in names}


# --- words ---


def verdicts(
    sheets: Sequence[Sheet],
    compared: Sequence[dict[str, Any]],
    routes: Mapping[str, Any],
    known: Mapping[str, Any],
    all_params_b: float,
) -> list[str]:
    """What the numbers say, in sentences: above all, when the agent is no better than something
    that needs no training.
    """
    der = sheets[0]
    rivals = {s.policy: s for s in sheets if s.kind in RIVAL_KINDS}
    returns = {
        c["b"]: c
        for c in compared
        if c["a"] == der.policy and c["measure"] == "return" and c["b"] in rivals
    }
    words = []
    for seed, row in zip(der.seeds, der.records, strict=True):
        ((top, count),) = Counter(record["steps"][0]["expert"] for record in row).most_common(1)
        if count >= 0.95 * len(row) and len(routes["share"]) > 1:
            words.append(
                f"COLLAPSED, seed {seed}: {count / len(row):.0%} of the questions go to {top}"
                " first, whatever they ask; the agent routes nothing."
            )
    for policy, c in returns.items():
        told = f"{SEPARABLE[c['verdict']]} ({c['diff']:+.3f} [{c['lo']:+.3f}, {c['hi']:+.3f}])"
        if policy.startswith("best fixed") and c["verdict"] != "better":
            words.append(
                f"The agent is NO BETTER than a constant choice: its return {told} {policy}, which"
                " needs no training."
            )
        elif policy == "per-task lookup" and c["verdict"] != "better":
            words.append(
                f"The agent is NO BETTER than a table: its return {told} the per-task lookup."
            )
    for verdict, word in SEPARABLE.items():
        if met := [
            f"{policy} ({c['diff']:+.3f})"
            for policy, c in returns.items()
            if c["verdict"] == verdict
        ]:
            words.append(f"In return {der.policy} {word} {'; '.join(met)}.")
    if "gap" in known:
        stopped, alone, too = (
            known[name]["return"]
            for name in ("oracle_stop", "full_information", "full_information_oracle_stop")
        )
        words.append(
            f"Ended by the oracle {der.policy} returns {stopped:.3f}: {stopped - alone:+.3f}"
            f" against the full-information router's {alone:.3f}, and {stopped - too:+.3f} against"
            f" its {too:.3f} when the oracle ends that one too."
        )
    params = np.mean(
        [
            sum(step["cost"]["params_b"] for step in record["steps"])
            for row in der.records
            for record in row
        ]
    )
    words.append(
        f"{der.policy} asks {params / all_params_b:.0%} of the parameters of asking every expert"
        f" once ({1000 * all_params_b:.4g} M)."
    )
    words.append(
        f"Its routes have {routes['entropy']:.2f} bits of entropy, {der.calls.mean():.2f} calls a"
        " question."
    )
    for further in routes["further_calls"]:
        made = further["routes"] / der.calls.size
        words.append(
            f"Call {further['call']} is made in {made:.1%} of the routes and changes quality by"
            f" {further['gain']:+.2f}, for {further['charge']:.3g} of cost."
        )
    return words


def cost_words(unit: str, scale: float) -> str:
    """What the cost C of a call is: `billions of parameters x 1000`."""
    return COST_WORDS[unit] + (f" x {scale:g}" if scale != 1 else "")


def notes(
    config: Config, records: Sequence[Record], agent: str, num_seeds: int, failed: int
) -> list[str]:
    """Footnotes of the table; `failed`: requests that stayed without an answer."""
    reward = config.reward
    lines = [
        (
            f"Return: quality of the final answer minus alpha = {reward.alpha} times the experts'"
            f" cost C = {cost_words(reward.cost, reward.cost_scale)}; intervals 95%."
        ),
        (
            "Deciding (agent, Terminator) is charged in its own column, not in the return. Seconds:"
            " those of an answer's first generation, in a batch."
        ),
        (
            f"p of comparisons adjusted (Holm) within a measure: {agent}'s comparisons together,"
            " those of the other policies together. Intervals and verdicts are not adjusted."
        ),
    ]
    if config.eval.ranker is None:
        lines.append(
            "No pairwise ranker among the policies (LLM-Blender): eval.ranker names no weights, for"
            " example llm-blender/PairRM-hf."
        )
    if not config.eval.use_terminator:
        lines.append(
            f"Without a Terminator (eval.use_terminator: false): routes of {agent} and of the"
            " policies that stop like it run to T_max."
        )
    if note := few_seeds_note(num_seeds):
        lines.append(note)
    if failed:
        lines.append(
            f"{failed} requests to experts failed for good and count as empty answers, which says"
            " nothing about the experts. Evaluate again when the server is up."
        )
    cut = sum(step["prompt_cut"] for r in records for step in r["steps"])
    empty = sum(not step["answer"].strip() for r in records for step in r["steps"])
    unended = sum(
        "whole_answer" in step and not step["answer"].strip()
        for r in records
        for step in r["steps"]
    )
    lines += _recorded_notes(config, records)
    if unended:
        lines.append(
            f"{unended} answers never left their thinking part, so they are empty. More"
            " max_new_tokens may help."
        )
    if cut or empty:
        lines.append(
            f"Over all policies, {cut} prompts were longer than an expert's context and lost their"
            f" middle; {empty} answers were empty."
        )
    return lines


def _recorded_notes(config: Config, records: Sequence[Record]) -> list[str]:
    """What a reader must know about recorded answers."""
    recorded = [expert.name for expert in config.pool.experts if expert.kind == "recorded"]
    first = [
        expert.name
        for expert in config.pool.experts
        if expert.kind != "recorded" and expert.first_answers is not None
    ]
    lines = []
    if recorded:
        lines.append(
            f"Recorded answers do not react to the prompt: whatever {', '.join(recorded)} is"
            " handed, its answer is the one to the bare question. A second call can choose another"
            " answer and never improve one, and the knowledge-transfer audit leaves these experts"
            " out."
        )
    if first:
        lines.append(
            f"First calls of {', '.join(first)} are recorded answers where there is one, charged as"
            " if generated here."
        )
    textless = {
        r["question"]
        for r in records
        for s in r["steps"]
        if s["expert"] in recorded and not s["answer"].strip()
    }
    if textless:
        scored = (
            "; the scores that came with them count" if config.data.test.metric == RECORDED else ""
        )
        lines.append(
            f"{len(textless)} of {len({r['question'] for r in records})} test questions have a"
            f" recorded answer without a text{scored}."
        )
    if names := uncounted(records, config):
        lines.append(
            f"How long the recorded answers of {', '.join(names)} are is not known (no meta.tokens,"
            " no tokenizer): in tokens, FLOPs and USD those stand as 0."
        )
    return lines


def uncounted(records: Sequence[Record], config: Config) -> list[str]:
    """Experts with recorded answers of unknown length."""
    recorded = {
        expert.name
        for expert in config.pool.experts
        if expert.kind == "recorded" or expert.first_answers is not None
    }
    return sorted(
        {
            step["expert"]
            for r in records
            for step in r["steps"]
            if step["expert"] in recorded and not step["cost"]["completion_tokens"]
        }
    )


# --- results.json and the table ---


def yardsticks(sheets: Sequence[Sheet]) -> dict[str, Any]:
    """results.json's `oracle`: what knows more than the agent, and the agent's distance to the
    optimum in parts that add up.
    """
    by_policy, found = {sheet.policy: sheet for sheet in sheets}, {}
    for key, policy in YARDSTICKS.items():
        if sheet := by_policy.get(policy):
            found[key] = {
                "quality": float(sheet.quality.mean()),
                "return": float(sheet.value.mean()),
            }
    if found.keys() == YARDSTICKS.keys():
        optimum, stopped, agent = (
            found["optimum"]["return"],
            found["oracle_stop"]["return"],
            float(sheets[0].value.mean()),
        )
        for gap, known in (
            ("gap", "full_information_oracle_stop"),
            ("gap_own_stop", "full_information"),
        ):
            value = found[known]["return"]
            found[gap] = {
                "information": optimum - value,
                "learning": value - stopped,
                "stopping": stopped - agent,
            }
    return found


def build_results(
    records: Sequence[Record],
    config: Config,
    experts: Sequence[Mapping[str, Any]],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """results.json (report/schema.py) from the route log of one or several runs; `experts`: name
    and params_b of the pool, `extra`: sections computed elsewhere.
    """
    sheets = sheets_of(records)
    best_single = next(sheet for sheet in sheets if sheet.policy.startswith("best fixed: "))
    rows = [sheet.row(best_single) for sheet in sheets]
    compared = compare(sheets)
    routes, known = (
        route_figures(sheets[0], [expert["name"] for expert in experts]),
        yardsticks(sheets),
    )
    return {
        "split": "test",
        "num_questions": sheets[0].quality.shape[1],
        "seeds": sheets[0].seeds,
        "reward": config.reward.kind,
        "alpha": config.reward.alpha,
        "cost_unit": config.reward.cost,
        "cost_scale": config.reward.cost_scale,
        "experts": [dict(expert) for expert in experts],
        "rows": rows,
        "comparisons": compared,
        "oracle": known,
        "routes": routes,
        "tradeoff": trade_off([sheet.point() for sheet in sheets if sheet.kind != "oracle"]),
        "words": verdicts(
            sheets, compared, routes, known, sum(expert["params_b"] for expert in experts)
        ),
        "notes": notes(
            config,
            records,
            sheets[0].policy,
            len(sheets[0].seeds),
            extra.get("evaluation", {}).get("answers_failed", 0),
        ),
        **extra,
    }


def table(results: Mapping[str, Any]) -> str:
    """The rows as aligned text: quality and return with intervals, calls, experts' parameters,
    share of asking all, deciding.
    """
    all_params = sum(expert["params_b"] for expert in results["experts"])
    width = max(26, *(len(row["policy"]) for row in results["rows"]))
    lines = [
        f"{'policy':<{width}} {'quality':^20} {'return':^22} {'calls':>5} {'params (M)':>10}"
        f" {'of all':>6} {'deciding':>8} {'tokens':>7} {'s':>7} {'vs best single':>16}"
    ]
    for row in results["rows"]:
        quality, value, cost = row["quality"], row["return"], row["cost"]
        lines.append(
            f"{row['policy']:<{width}} {quality['mean']:.3f} [{quality['lo']:.3f},"
            f" {quality['hi']:.3f}] {value['mean']:>6.3f} [{value['lo']:>6.3f},"
            f" {value['hi']:>6.3f}] {row['calls']['mean']:>5.2f} {1000 * cost['params_b']:>10.3f}"
            f" {cost['params_b'] / all_params:>6.0%} {1000 * row['overhead']['params_b']:>8.1f}"
            f" {cost['prompt_tokens'] + cost['completion_tokens']:>7.1f} {cost['latency_s']:>7.4f}"
            f" {row['vs_best_single']['verdict']:>16}"
        )
    return "\n".join(lines)
