"""What a line of routes.jsonl holds, and that a log is whole, before it is priced again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from backends.answer_store import Finish
from runtime.errors import ReportError
from runtime.files import read_jsonl, shown

REMEDY = "evaluate the run again: python test_ppo_multi.py --run RUN"
Amount = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
LogProbability = Annotated[float, Field(le=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """Keys not named here are passed over: a later version may have more."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class StepCost(Part):
    model_config = ConfigDict(extra="forbid")

    params_b: Amount
    prompt_tokens: Count
    completion_tokens: Count
    flops: Amount
    latency_s: Amount
    usd: Amount | None


class StepLine(Part):
    expert: str
    answer: str
    quality: Share
    prompt_cut: bool
    prompt: str | None = None  # of the agent's own routes
    prompt_hash: str = ""
    whole_answer: str = ""
    # Older logs lack these three
    finish: Finish = ""
    logprob_mean: LogProbability | None = None
    logprob_min: LogProbability | None = None
    cost: StepCost
    charge: float
    value: float | None
    entropy: float | None
    p_stop: Share | None
    probability: Share | None = None  # of asking this expert; none: not logged


class OverheadLine(Part):
    params_b: Amount
    flops: Amount
    latency_s: Amount


class RouteLine(Part):
    """A played route."""

    policy: str
    kind: str
    seed: Count
    split: str
    question: str
    text: str
    task: str
    role: str = ""  # older logs lack it
    validation_return: float | None = None
    stop_reason: Literal["satisfied", "t_max", "stopped"]
    stop_probability: Share | None = None  # of ending here; none: not logged, or out of calls
    submitted: Count | None = None  # index of the step whose answer counts; none: the last
    quality: Share
    return_: float = Field(alias="return")
    overhead: OverheadLine
    steps: list[StepLine] = Field(min_length=1)

    @model_validator(mode="after")
    def _quality_is_that_of_the_answer(self) -> RouteLine:
        submitted = len(self.steps) - 1 if self.submitted is None else self.submitted
        if submitted >= len(self.steps):
            raise ValueError("the submitted step is not there")
        if self.quality != self.steps[submitted].quality:
            raise ValueError("quality is not that of the submitted step")
        return self


def read_routes(path: Path) -> list[dict[str, Any]]:
    """The lines of a route log.

    Raises ReportError naming file, line and field of what is not as described above.
    """
    records = []
    try:
        for place, record in read_jsonl(path, ReportError):
            _check_line(record, place)
            records.append(record)
    except ReportError as error:
        raise ReportError(f"{error}; {REMEDY}") from error
    if not records:
        raise ReportError(f"{path}: no routes in it; {REMEDY}")
    return records


def check_complete(
    records: Sequence[Mapping[str, Any]], results: Mapping[str, Any], path: Path
) -> None:
    """Raise ReportError unless a log has the routes that results.json was computed from: of every
    policy and seed, one for every question, by the pool's experts.
    """
    for problem in _lacking(records, results):
        raise ReportError(f"{path}: {problem}; {REMEDY}")


def _lacking(records: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a log as a whole, the first of it first."""
    yield from _unknown_names(records, results)
    questions: dict[tuple[str, int], list[str]] = defaultdict(list)
    for record in records:
        questions[record["policy"], record["seed"]].append(record["question"])
    played = {(row["policy"], int(seed)) for row in results["rows"] for seed in row["by_seed"]}
    for policy, seed in sorted(played ^ questions.keys()):
        where = "results.json" if (policy, seed) in questions else "it"
        yield f"policy {policy}, seed {seed} is not in {where}"
    everything = {record["question"] for record in records}
    wanted = results["num_questions"]
    for (policy, seed), asked in questions.items():
        if len(asked) != wanted or set(asked) != everything:
            yield (
                f"policy {policy}, seed {seed}: {len(set(asked))} questions in {len(asked)} routes,"
                f" results.json has {wanted}"
            )


def _unknown_names(
    records: Sequence[Mapping[str, Any]], results: Mapping[str, Any]
) -> Iterator[str]:
    kinds = {row["policy"]: row["kind"] for row in results["rows"]}
    experts = {expert["name"] for expert in results["experts"]}
    for record in records:
        policy, kind = record["policy"], record["kind"]
        if kinds.get(policy, kind) != kind:
            yield f"policy {policy} is of kind {kind}, in results.json of {kinds[policy]}"
        for step in record["steps"]:
            if step["expert"] not in experts:
                yield f"expert {step['expert']} is not in results.json"


def _check_line(record: dict[str, Any], place: str) -> None:
    try:
        RouteLine.model_validate(record)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"]) or "line"
        said = problem["msg"].removeprefix("Value error, ")
        value = "" if isinstance(problem["input"], dict) else f" = {shown(problem['input'])}"
        raise ReportError(f"{place}: {field}{value}: {said}") from error
