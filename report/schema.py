"""What report/results.json holds: these models are the documentation of the format.

The file is checked against them whenever it is written (`to_json`) or read (`read_results`); an
error names the field. Numbers are never NaN or infinite, a field that is not listed here is
refused. Everything is computed in results.py beside it, evaluation/runner.py, terminator.py and
evaluation/transfer.py.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from report.entries import ROUNDING, Comparison, Difference, Entry, PairedTest, Span
from runtime.errors import ReportError
from settings.former import current_results
from settings.units import known_unit

Kind = Literal["der", "single", "static", "random", "cascade", "learned", "ensemble", "oracle"]
ERRORS_SHOWN = 5


class Expert(Entry):
    name: str
    params_b: float = Field(gt=0, description="parameters in billions")
    endings: dict[Literal["answers", "length", "content_filter", "refusal"], int] | None = Field(
        None, description="different answers on all routes, and how many ended so"
    )


class ExpertsCost(Entry):
    """What the experts cost per question, summed over the calls."""

    params_b: float
    flops: float
    prompt_tokens: float
    completion_tokens: float
    latency_s: float
    usd: float | None = Field(description="none: an expert has no price")


class DecidingCost(Entry):
    """What deciding cost per question: agent, Terminator, ranker."""

    params_b: float
    flops: float
    latency_s: float


class TaskFigure(Entry):
    quality: float
    n: int = Field(ge=1, description="questions")


class Figures(Entry):
    quality: float
    return_: float = Field(
        alias="return",
        description=(
            "quality of the final answer minus alpha times the sum of C: undiscounted, unshaped"
        ),
    )


class Row(Entry):
    """A policy on the split."""

    policy: str = Field(description="name for readers")
    role: str = Field(description="what the policy is; reports find it by this, not by its name")
    kind: Kind = Field(
        description=(
            "static: chosen on validation; learned: fitted on training questions; oracle: sees"
            " references"
        )
    )
    quality: Span
    return_: Span = Field(alias="return")
    validation_return: float | None = Field(
        None, description="mean return on the validation questions, where it was played there"
    )
    calls: Span
    charge: float = Field(description="C per question, in the report's cost_unit")
    cost: ExpertsCost
    overhead: DecidingCost
    vs_best_single: Difference = Field(
        description="quality minus that of the single expert best on validation"
    )
    by_task: dict[str, TaskFigure]
    by_seed: dict[str, Figures]


class Gap(Entry):
    """The optimum's return minus the agent's, in parts that add up."""

    information: float = Field(description="what the question does not tell")
    learning: float = Field(description="what the agent has not learned")
    stopping: float = Field(description="what the Terminator loses to the oracle's stop")


class Oracle(Entry):
    """Yardsticks: means of rows that know more than the agent. Each is there if it was played."""

    oracle_stop: Figures | None = Field(None, description="the agent, ended by the oracle")
    optimum: Figures | None = Field(
        None, description="the best route of every question, with hindsight"
    )
    full_information: Figures | None = Field(
        None, description="the router taught every outcome, which decides alone when to stop"
    )
    full_information_oracle_stop: Figures | None = Field(
        None, description="the same, taught to be ended by the oracle"
    )
    best_of_all: Figures | None = Field(
        None, description="every expert asked once, the best answer taken"
    )
    gap: Gap | None = Field(
        None,
        description=(
            "information: optimum - full_information_oracle_stop; learning: that - oracle_stop;"
            " stopping: oracle_stop - agent"
        ),
    )
    gap_own_stop: Gap | None = Field(
        None,
        description=(
            "the same with full_information, whose own stop, unlike the oracle's, may be wrong:"
            " learning can be below 0"
        ),
    )


class CalibrationBin(Entry):
    p: float = Field(ge=0, le=1, description="mean stop probability of a tenth of the answers")
    good: float = Field(ge=0, le=1, description="share of them whose quality reaches p0")
    count: int = Field(ge=1)


class ThresholdPoint(Entry):
    """What the agent's routes become when they end at this threshold."""

    threshold: float
    quality: float
    return_: float = Field(alias="return")
    cost: float


class TerminatorOfSeed(Entry):
    seed: int
    threshold: float
    auroc: float | None
    auroc_well_formed: float | None
    ece: float


class TerminatorFigures(Entry):
    """The first seed's Terminator on the answers of the agent's routes, each run on to
    `terminator.max_threshold`.
    """

    threshold: float = Field(
        description="stop probability that ends a route, chosen on validation; 2: never"
    )
    answers: int
    auroc: float | None = Field(description="none: all answers are good, or all bad")
    auroc_well_formed: float | None = Field(
        description="among answers of a form that the task's references have"
    )
    well_formed: float = Field(ge=0, le=1, description="their share")
    brier: float
    ece: float = Field(description="expected calibration error over the bins")
    calibration: list[CalibrationBin]
    thresholds: list[ThresholdPoint] = Field([], description="empty in a re-priced report")
    seeds: list[TerminatorOfSeed]


class Flow(Entry):
    """How many routes go from one expert to another; `start` before the first call, `stop` after
    the last.
    """

    step: int = Field(ge=1)
    from_: str = Field(alias="from")
    to: str
    count: int = Field(ge=1)


class FurtherCall(Entry):
    call: int = Field(ge=2)
    routes: int = Field(ge=1, description="that make this call")
    gain: float = Field(description="quality after it minus quality before it")
    charge: float


class Routes(Entry):
    """Whom the agent asks, over all seeds."""

    policy: str
    share: dict[str, float] = Field(description="of all calls")
    by_position: list[dict[str, float]]
    flows: list[Flow]
    entropy: float = Field(
        ge=-ROUNDING, description="of the routes a seed takes, in bits; mean over the seeds"
    )
    further_calls: list[FurtherCall]


class TradeOffPoint(Entry):
    """A policy's quality and C per question, means over its seeds."""

    policy: str
    kind: Kind
    value: str | None = Field(description="of the swept setting, for the agents of a sweep")
    cost: Span
    quality: Span


class TradeOff(Entry):
    setting: str | None = Field(
        description="what the agents differ in, as KEY; none: there is one agent"
    )
    points: list[TradeOffPoint] = Field(description="every policy without hindsight")
    hull: list[tuple[float, float]] = Field(
        description="(cost, quality) of the agents' upper hull, from the cheapest to the best"
    )
    bounds: tuple[float, float] | None = Field(
        description="cost of the cheapest and of the most expensive single expert"
    )
    area: float | None = Field(
        description=(
            "mean height, between the bounds, of the upper hull of the agents and the cheapest"
            " expert; none: one agent, or all experts cost the same"
        )
    )
    area_experts: float | None = Field(
        description=(
            "the same of the single experts: what mixing them without looking at the question gives"
        )
    )


class CurvePoint(Entry):
    """A policy at one alpha: means over its seeds and the questions."""

    alpha: float
    policy: str = Field(description="its name at this alpha: `best fixed: e1`")
    cost: float
    quality: float
    return_: Span = Field(alias="return")
    validation_return: float | None = Field(
        description="return on the validation questions, by which the best rules are chosen"
    )


class CurveRow(Entry):
    """A policy that was played at every alpha, or the best rule of each alpha."""

    policy: str
    role: str
    kind: Kind
    deployable: bool = Field(description="sees no reference and no outcome of other routes")
    points: list[CurvePoint] = Field(min_length=1, description="in the order of the alphas")
    hull: list[tuple[float, float]] = Field(
        description="(cost, quality) of the points' upper hull, from the cheapest to the best"
    )
    area: Span | None = Field(
        description=(
            "mean height, between the bounds, of the upper hull of the points and the cheapest"
            " expert: hulls by seed, then averaged; 95% bootstrap interval over the questions;"
            " none: all experts cost the same"
        )
    )


class CurveCell(Difference):
    """The agent minus a rule: in return at an alpha, or in area."""

    a: str
    b: str
    alpha: float | None = Field(description="none: the area")
    p: float = Field(ge=0, le=1, description="two-sided")
    p_adjusted: float = Field(ge=0, le=1, description="Holm's correction over all cells")


class PooledTerminator(Entry):
    """Estimates of the answers to submit, over the agent's routes at every alpha and seed."""

    answers: int = Field(ge=1)
    auroc: float | None
    ece: float
    ece_of_calibrated: tuple[float, float] = Field(
        description="95% interval of a calibrated model's ece on so many answers"
    )


class Curves(Entry):
    """Quality against cost over several alphas; report/curves.py has the definitions."""

    alphas: list[float] = Field(min_length=2)
    cheapest: str = Field(description="name of the cheapest single expert")
    most_expensive: str
    bounds: tuple[float, float] = Field(description="their mean costs C")
    rows: list[CurveRow] = Field(min_length=1, description="the agent first")
    cells: list[CurveCell]
    summary: list[str] = Field(description="where reading answers pays, in sentences")
    terminator: PooledTerminator | None = None


class Budget(Entry):
    """The first run's agent, held to a mean cost of a question."""

    budget: float = Field(gt=0, description="mean cost C of a question that was asked for")
    alphas: tuple[float, float] = Field(description="the two weights of cost that meet it")
    share: float = Field(ge=0, le=1, description="of questions asked with the higher weight")
    expected: Span = Field(
        description="mean cost, by what training found, with a 95% interval for the test questions"
    )
    cost: Span = Field(description="on the test questions")
    quality: Span
    is_met: bool = Field(description="whether the cost lies in the expected interval")


class Variants(Entry):
    """The second expert's quality by what it is handed. None: too few questions."""

    previous: Span | None = Field(description="the first expert's answer")
    none: Span | None = Field(description="nothing")
    swapped: Span | None = Field(
        description="the first expert's answer to another question of the task"
    )
    own: Span | None = Field(description="its own first answer")


class Gains(Entry):
    """The handed-on answer against each other variant, paired by question."""

    none: PairedTest
    swapped: PairedTest
    own: PairedTest


class TransferPair(Entry):
    first: str
    second: str
    task_group: str = Field(description="composition, other, or in `best` a single task")
    n: int = Field(ge=1, description="questions")
    variants: Variants
    wrong_to_right: Span | None = Field(
        description="share of the first's wrong answers that the second rights"
    )
    right_to_wrong: Span | None
    gains: Gains | None = Field(None, description="null in results of older versions")


class BestPair(TransferPair):
    gains: Gains


class Transfer(Entry):
    pairs: list[TransferPair]
    best: list[BestPair] = Field(
        description="per task that chains skills by construction, the pair best on validation"
    )


class EvaluationFacts(Entry):
    runs: list[str] = Field(description="folders of the runs, as given")
    seconds: float
    answers_generated: int
    answers_failed: int = Field(
        0, description="requests that an expert on a server left unanswered"
    )
    config: dict[str, Any] = Field(
        description="resolved configuration of the first run; config.py has its schema"
    )


class Results(Entry):
    version: str | None = Field(None, description="of DER; null before 0.2")
    split: Literal["train", "validation", "test"]
    num_questions: int = Field(ge=2)
    seeds: list[int] = Field(min_length=1)
    reward: Literal["final", "paper"]
    alpha: float
    cost_unit: Annotated[str, AfterValidator(known_unit)] = Field(
        description="what C counts: reward.cost_unit of config.py"
    )
    experts: list[Expert] = Field(min_length=1, description="the pool, in the order of the actions")
    rows: list[Row] = Field(min_length=1, description="the agent's row first")
    comparisons: list[Comparison]
    oracle: Oracle
    terminator: TerminatorFigures
    routes: Routes
    transfer: Transfer | None = Field(None, description="with eval.full or eval.transfer")
    tradeoff: TradeOff
    curves: Curves | None = Field(None, description="with --alphas")
    summary: list[str] = Field(description="what the numbers say, in sentences")
    notes: list[str] = Field(description="footnotes of the table")
    budgets: list[Budget] | None = Field(None, description="played with --budget")
    evaluation: EvaluationFacts

    @model_validator(mode="after")
    def _fits_together(self) -> Results:
        names = Counter(row.policy for row in self.rows)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"rows: two rows are called {', '.join(twice)}")
        if unknown := sorted(
            {name for c in self.comparisons for name in (c.a, c.b)} - names.keys()
        ):
            raise ValueError(f"comparisons: no row is called {', '.join(unknown)}")
        experts = Counter(expert.name for expert in self.experts)
        if twice := [name for name, count in experts.items() if count > 1]:
            raise ValueError(f"experts: two are called {', '.join(twice)}")
        return self


def to_json(results: dict[str, Any]) -> bytes:
    """The bytes of results.json.

    Raises ReportError where the results are not as described above.
    """
    text = json.dumps(results, indent=2)
    _check(text, "results")
    return text.encode()


def read_results(path: Path) -> dict[str, Any]:
    """A results.json.

    Raises ReportError naming the file, and the field that is not as described above.
    """
    if not path.is_file():
        raise ReportError(
            f"{path}: no results here; evaluate the run first: python test_ppo_multi.py --run RUN"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: cannot be read ({error}); evaluate the run again") from error
    text = current_results(text)
    _check(text, str(path))
    return json.loads(text)


def _check(text: str, where: str) -> None:
    try:
        Results.model_validate_json(text)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            field = ".".join(map(str, problem["loc"])) or "file"
            lines.append(f"    {field}: {problem['msg']}")
        if len(lines) > ERRORS_SHOWN:
            lines[ERRORS_SHOWN:] = [f"    and {len(lines) - ERRORS_SHOWN} more"]
        head = (
            f"{where}: not as report/schema.py describes it (evaluate the run again, or correct the"
            " file)"
        )
        raise ReportError("\n".join([head, *lines])) from error
