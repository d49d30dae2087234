"""A trained run as the server plays it: agent, judge and pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent import load_agent
from backends.dispatch import OnText
from belief_agent import BeliefAgent
from config import AnyExpertConfig, Config, EndpointExpertConfig
from der_env import Episode
from experts import ExpertPool, Request, build_pool
from questions import Question, read_questions
from reward import charge
from rollout import InFlight, Route
from runtime.errors import DERError
from runtime.machine import pick_device, set_threads
from runtime.run_folder import evaluated_config
from serving.policy import Limits, ServingPolicy, expected_prices
from serving.requests import MODEL, NAMED_ALPHA, Asked, RequestError, unknown_model
from terminator import load_terminator, make_judge
from text_agent import Agent

LOCK_PATIENCE_S = 3600.0  # a store that another process holds delays requests
MAX_TRIES = 3  # of a request to an endpoint: a client waits
MAX_AWAY_S = 4.0  # that a failing endpoint is left alone
MAX_REMEMBERED = 20_000  # encoded texts, some 50 MB, and estimates


def for_serving(config: Config) -> Config:
    """The configuration with endpoints that give up soon, each request for itself."""
    experts: list[AnyExpertConfig] = []
    for expert in config.pool.experts:
        if isinstance(expert, EndpointExpertConfig):
            retries = min(expert.max_retries, MAX_TRIES - 1)
            changed = {
                "on_failure": "empty",
                "max_retries": retries,
                "max_away_s": min(expert.max_away_s, MAX_AWAY_S),
            }
            experts.append(expert.model_copy(update=changed))
        else:
            experts.append(expert)
    pool = config.pool.model_copy(update={"experts": experts})
    return config.model_copy(update={"pool": pool})


@dataclass(frozen=True)
class Exploration:
    """How actions are drawn: from the softmax of the policy over `temperature`; 0: the best one."""

    temperature: float = 0.0
    seed: int = 0


class ServedRun:
    """A run's agent, judge and pool. It belongs to the thread that makes it, as its store does.

    Raises what loading an agent and a pool raises.
    """

    def __init__(
        self,
        run: Path,
        overrides: Sequence[str],
        exploration: Exploration,
        budget: float | None = None,
    ):
        self.name = run.name
        self.config = for_serving(evaluated_config(run, overrides))
        set_threads(self.config.threads)
        device = pick_device(self.config.device)
        self.pool: ExpertPool = build_pool(self.config)
        self.pool.outlive_failures()
        self.pool.store.wait_for_locks(LOCK_PATIENCE_S)
        self.agent: Agent = load_agent(run / "agent", self.pool, device=device)
        self.agent.ask_with(self.config.reward.alpha)
        if budget is not None:
            self.agent.spend(budget)
        self.judge = make_judge(self.agent, load_terminator(run / "terminator", device))
        self.prices = expected_prices(self.agent, self.pool, self.config.reward)
        self.kinds = question_kinds(self.config)
        self.limits: dict[str, Limits] = {}
        self.policy = ServingPolicy(
            self.agent,
            self.prices,
            self.config.reward,
            self.limits,
            exploration.temperature,
            exploration.seed,
        )

    def new_flight(self, listen: Callable[[Route], OnText | None]) -> InFlight:
        return InFlight(self.policy, self.pool, self.judge, self.agent.reader, listen)

    def submits_next(self, route: Route) -> bool:
        """Whether the answer of a route's next call is sure to be submitted.

        No call may follow it, and no earlier answer may be chosen in its place.
        """
        episode = route.episode
        is_only_choice = episode.submits == "last" or not episode.steps
        return is_only_choice and self.limits[episode.question.id].is_last_call

    @property
    def models(self) -> list[str]:
        """Names that a client may ask for; those between two of them are taken as well."""
        alphas = self.config.reward.alphas if self.agent.alpha_range else ()
        return [MODEL, *(f"{MODEL}-{alpha:g}" for alpha in alphas)]

    def check_alpha(self, asked: Asked) -> None:
        """Raise RequestError for a weight of cost that the agent was not trained for."""
        if asked.alpha is None:
            return
        own = self.config.reward.alpha
        min_alpha, max_alpha = self.agent.alpha_range or (own, own)
        if min_alpha - 1e-6 <= asked.alpha <= max_alpha + 1e-6:
            return
        why = f": this agent was trained for alpha from {min_alpha:g} to {max_alpha:g}"
        if NAMED_ALPHA.fullmatch(asked.model):
            raise unknown_model(asked.model, why)
        said = f"alpha = {asked.alpha:g}{why}"
        raise RequestError(400, said, code="invalid_value", param="alpha")

    def check_budget(self, asked: Asked) -> None:
        """Raise RequestError where not even the cheapest expert is within max_cost."""
        if asked.max_cost is None or self.prices.min() <= asked.max_cost + 1e-9:
            return
        said = (
            f"max_cost = {asked.max_cost:g}: the cheapest call is expected to cost"
            f" {self.prices.min():.4g}"
        )
        raise RequestError(400, said, code="invalid_value", param="max_cost")

    def begin(self, request_id: str, asked: Asked) -> Route:
        """A route without steps for a request.

        Raises RequestError where it cannot be played: a weight of cost that is unknown, a budget
        that is too small, or a conversation that an expert's format refuses.
        """
        self.check_alpha(asked)
        self.check_budget(asked)
        question = self._question(request_id, asked)
        self._check_prompts(question)
        t_max = min(self.config.env.t_max, asked.max_calls or self.config.env.t_max)
        episode = Episode(question, t_max, submits=self.config.env.submits, alpha=asked.alpha)
        self.limits[request_id] = Limits(asked.max_cost)
        return Route(episode, [])

    def _question(self, request_id: str, asked: Asked) -> Question:
        """The question of a request, of the kind that training met."""
        like = self.kinds.get(asked.task or "", self.kinds[""])
        task = asked.task or like.task
        return replace(
            like,
            id=request_id,
            text=asked.text,
            context=asked.context,
            task=task,
            similarity=self.agent.similarity_under(self.config.env),
        )

    def _check_prompts(self, question: Question) -> None:
        """Raise RequestError where an expert cannot be asked this."""
        try:
            for expert_idx in range(len(self.pool)):
                for previous in (None, "2"):
                    request = Request(expert_idx, question.text, previous, context=question.context)
                    self.pool.render(request)
            self.pool.check_recorded([question])
        except DERError as error:
            raise RequestError(400, str(error), code="invalid_value", param="messages") from error

    def alpha_of(self, episode: Episode) -> float:
        """The weight of cost that a request was asked with."""
        if isinstance(self.agent, BeliefAgent):
            return self.agent.reader.alpha_of(episode)
        return self.config.reward.alpha

    def charge_of(self, route: Route) -> float:
        """C of all calls of a route."""
        return charge(route.episode.cost, self.config.reward)

    def forget(self) -> None:
        """Bound what is remembered of questions: a server meets new ones without end."""
        self.agent.forget(MAX_REMEMBERED)


def question_kinds(config: Config) -> dict[str, Question]:
    """A sealed question of each task of the training split, by task; under "" the usual kind.

    It says which metric reads the answers. Without the split the settings of its source say so.
    """
    source = config.data.train
    plain = Question("", "", task=source.task, metric=source.metric, agreement=source.agreement)
    try:
        questions = read_questions(source, need_reference=False)
    except (DERError, OSError):
        return {"": plain}
    kinds: dict[str, Question] = {}
    how_read: Counter[tuple[str, str | None]] = Counter()
    for question in questions:
        kinds.setdefault(question.task, question.sealed())
        how_read[question.metric, question.agreement] += 1
    metric, agreement = how_read.most_common(1)[0][0]
    task = next(iter(kinds)) if len(kinds) == 1 else "default"
    kinds[""] = replace(plain, task=task, metric=metric, agreement=agreement)
    return kinds
