"""What the numbers say in sentences, and the footnotes of the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from config import Config, RecordedExpertConfig
from evaluation.route_log import Record
from evaluation.stats import few_seeds_note
from questions import RECORDED
from report.console import cut, millions
from report.policies import PolicyResults
from report.roles import RIVAL_KINDS
from settings.units import in_units

VERDICT_WORDS = {
    "worse": "loses to",
    "not separable": "cannot be told from",
    "better": "beats",
}
NO_BETTER = {
    "best_single": (
        "The agent is NO BETTER than a constant choice: its return {verdict} {name}, which needs no"
        " training."
    ),
    "best_single_return": (
        "The agent is NO BETTER than a constant choice: its return {verdict} {name}, which needs no"
        " training."
    ),
    "task_lookup": ("The agent is NO BETTER than a table: its return {verdict} the {name}."),
}
NAMED = 3  # policies that a sentence names; the others are counted
NAME_LENGTH = 40  # characters of a name in a sentence
COLLAPSED = 0.95  # share of first calls to one expert


# Sentences


def summarise(
    policies: Sequence[PolicyResults],
    comparisons: Sequence[Mapping[str, Any]],
    routes: Mapping[str, Any],
    oracle: Mapping[str, Any],
    all_params_b: float,
) -> list[str]:
    """results.json's `summary`.

    Args:
        policies: the agent first.
        all_params_b: parameters (billions) of all experts together.
    """
    agent = policies[0]
    rivals = {policy.name: policy for policy in policies if policy.kind in RIVAL_KINDS}
    returns = []
    for comparison in comparisons:
        is_agents = comparison["a"] == agent.name and comparison["measure"] == "return"
        if is_agents and comparison["b"] in rivals:
            returns.append(comparison)
    return [
        *_collapses(agent, len(routes["share"])),
        *_no_better(returns, rivals),
        *_verdicts(agent.name, returns),
        *_oracle_stop(agent.name, oracle),
        *_costs(agent, routes, all_params_b),
    ]


def _collapses(agent: PolicyResults, num_experts: int) -> Iterator[str]:
    if num_experts < 2:
        return
    for seed, row in zip(agent.seeds, agent.records, strict=True):
        first_calls = Counter(record["steps"][0]["expert"] for record in row)
        expert, count = first_calls.most_common(1)[0]
        share = count / len(row)
        if share >= COLLAPSED:
            yield (
                f"COLLAPSED, seed {seed}: {share:.0%} of the questions go to {expert} first,"
                " whatever they ask; the agent routes nothing."
            )


def _no_better(
    returns: Sequence[Mapping[str, Any]], rivals: Mapping[str, PolicyResults]
) -> Iterator[str]:
    """Says when the agent is no better than something that needs no training."""
    for comparison in returns:
        name = comparison["b"]
        sentence = NO_BETTER.get(rivals[name].role)
        if sentence is None or comparison["verdict"] == "better":
            continue
        interval = f"[{comparison['lo']:+.3f}, {comparison['hi']:+.3f}]"
        verdict = f"{VERDICT_WORDS[comparison['verdict']]} ({comparison['diff']:+.3f} {interval})"
        yield sentence.format(verdict=verdict, name=name)


def _verdicts(agent: str, returns: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Which policies the agent loses to, equals and beats in return, the strongest first."""
    for verdict, words in VERDICT_WORDS.items():
        matching = [comparison for comparison in returns if comparison["verdict"] == verdict]
        matching.sort(key=lambda comparison: comparison["diff"])
        names = []
        for comparison in matching:
            names.append(f"{cut(comparison['b'], NAME_LENGTH)} ({comparison['diff']:+.3f})")
        if names:
            yield f"In return {agent} {words} {few_of(names)}."


def few_of(names: Sequence[str]) -> str:
    """`a, b, c and 4 others`: NAMED at most, the others counted."""
    others = len(names) - NAMED
    if others > 0:
        counted = "1 other" if others == 1 else f"{others} others"
        return f"{', '.join(names[:NAMED])} and {counted}"
    if len(names) > 1:
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return names[0]


def _oracle_stop(agent: str, oracle: Mapping[str, Any]) -> Iterator[str]:
    if "gap" not in oracle:
        return
    stopped = oracle["oracle_stop"]["return"]
    alone = oracle["full_information"]["return"]
    both_stopped = oracle["full_information_oracle_stop"]["return"]
    yield (
        f"Ended by the oracle {agent} returns {stopped:.3f}: {stopped - alone:+.3f} against the"
        f" full-information router's {alone:.3f}, and {stopped - both_stopped:+.3f} against its"
        f" {both_stopped:.3f} when the oracle ends that one too."
    )


def _costs(agent: PolicyResults, routes: Mapping[str, Any], all_params_b: float) -> Iterator[str]:
    params_b = agent.mean_cost("params_b")
    yield (
        f"{agent.name} asks {params_b / all_params_b:.0%} of the parameters of asking every expert"
        f" once ({millions(all_params_b)} M)."
    )
    yield (
        f"Its routes have {routes['entropy']:.2f} bits of entropy, {agent.calls.mean():.2f} calls a"
        " question."
    )
    for further in routes["further_calls"]:
        share = further["routes"] / agent.calls.size
        yield (
            f"Call {further['call']} is made in {share:.1%} of the routes and changes quality by"
            f" {further['gain']:+.2f}, for {further['charge']:.3g} of cost."
        )


# Footnotes

ENDING_WORDS = {
    "length": "out of tokens (max_new_tokens)",
    "content_filter": "ended by a filter",
    "refusal": "refused",
}


def notes(
    config: Config,
    records: Sequence[Record],
    agent: str,
    num_seeds: int,
    failed: int,
    experts: Sequence[Mapping[str, Any]],
) -> list[str]:
    """results.json's `notes`.

    Args:
        failed: requests that stayed without an answer.
        experts: as results.json has them.
    """
    reward = config.reward
    lines = [
        (
            f"Return: quality of the final answer minus alpha = {reward.alpha} times the experts'"
            f" cost C {in_units(reward.cost_unit)}; intervals 95%."
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
    few_seeds = few_seeds_note(num_seeds)
    if few_seeds:
        lines.append(few_seeds)
    if failed:
        lines.append(
            f"{failed} requests to experts failed for good and count as empty answers, which says"
            " nothing about the experts. Evaluate again when the server is up."
        )
    lines += _notes_on_recorded(config, records)
    lines += _notes_on_texts(records)
    lines += _notes_on_endings(experts)
    return lines


def _notes_on_endings(experts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line on the experts whose answers did not end by themselves."""
    counts = []
    for expert in experts:
        ends = expert["endings"]
        parts = [f"{ends[name]} {words}" for name, words in ENDING_WORDS.items() if ends[name]]
        if parts:
            counts.append(f"{expert['name']} {', '.join(parts)} of {ends['answers']}")
    if counts:
        yield f"Answers that did not end by themselves: {'; '.join(counts)}."


def _notes_on_texts(records: Sequence[Record]) -> Iterator[str]:
    cut = 0
    unended = 0
    empty = 0
    for record in records:
        for step in record["steps"]:
            cut += step["prompt_cut"]
            empty += not step["answer"].strip()
            unended += "whole_answer" in step and not step["answer"].strip()
    if unended:
        yield (
            f"{unended} answers never left their thinking part, so they are empty. More"
            " max_new_tokens may help."
        )
    if cut or empty:
        yield (
            f"Over all policies, {cut} prompts were longer than an expert's context and lost their"
            f" middle; {empty} answers were empty."
        )


def _notes_on_recorded(config: Config, records: Sequence[Record]) -> Iterator[str]:
    """What a reader must know about recorded answers."""
    recorded = []
    first_answers = []
    for expert in config.pool.experts:
        if isinstance(expert, RecordedExpertConfig):
            recorded.append(expert.name)
        elif expert.first_answers is not None:
            first_answers.append(expert.name)
    if recorded:
        yield (
            f"Recorded answers do not react to the prompt: whatever {', '.join(recorded)} is"
            " handed, its answer is the one to the bare question. A second call can choose another"
            " answer and never improve one, and the knowledge-transfer audit leaves these experts"
            " out."
        )
    if first_answers:
        yield (
            f"First calls of {', '.join(first_answers)} are recorded answers where there is one,"
            " charged as if generated here."
        )
    yield from _notes_on_missing_texts(config, records, recorded)
    names = uncounted(records, config)
    if names:
        yield (
            f"How long the recorded answers of {', '.join(names)} are is not known (no meta.tokens,"
            " no tokenizer): in tokens, FLOPs and USD those stand as 0."
        )


def _notes_on_missing_texts(
    config: Config, records: Sequence[Record], recorded: Sequence[str]
) -> Iterator[str]:
    questions = set()
    without_text = set()
    for record in records:
        questions.add(record["question"])
        for step in record["steps"]:
            if step["expert"] in recorded and not step["answer"].strip():
                without_text.add(record["question"])
    if without_text:
        scores_count = config.data.test.metric == RECORDED
        scored = "; the scores that came with them count" if scores_count else ""
        yield (
            f"{len(without_text)} of {len(questions)} test questions have a recorded answer without"
            f" a text{scored}."
        )


def uncounted(records: Sequence[Record], config: Config) -> list[str]:
    """Experts with recorded answers of unknown length."""
    recorded = set()
    for expert in config.pool.experts:
        if isinstance(expert, RecordedExpertConfig) or expert.first_answers is not None:
            recorded.add(expert.name)
    found = set()
    for record in records:
        for step in record["steps"]:
            if step["expert"] in recorded and not step["cost"]["completion_tokens"]:
                found.add(step["expert"])
    return sorted(found)
