"""What entries of results.json are made of: means, differences and tests with their intervals."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Verdict = Literal["better", "worse", "not separable"]
Covers = Literal["questions", "seeds and questions"]
ROUNDING = 1e-9


class Entry(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class Span(Entry):
    """A mean with its 95% interval."""

    mean: float
    lo: float
    hi: float
    covers: Covers | None = Field(
        None, description="what the interval allows for, where it is not that of the whole report"
    )

    @model_validator(mode="after")
    def _holds_the_mean(self) -> Span:
        if not self.lo - ROUNDING <= self.mean <= self.hi + ROUNDING:
            raise ValueError(f"the mean {self.mean} is outside its interval [{self.lo}, {self.hi}]")
        return self


class Difference(Entry):
    """A paired mean difference with its 95% interval.

    The verdict is whether the interval leaves out 0.
    """

    diff: float
    lo: float
    hi: float
    verdict: Verdict


class PairedTest(Difference):
    p: float = Field(ge=0, le=1, description="two-sided")
    wins: int = Field(
        ge=0, description="questions whose difference, averaged over the seeds, is above 0"
    )
    ties: int = Field(ge=0)
    losses: int = Field(ge=0)
    covers: Covers


class Comparison(PairedTest):
    """a minus b."""

    a: str
    b: str
    measure: Literal["quality", "return"]
    p_adjusted: float = Field(
        ge=0,
        le=1,
        description=(
            "Holm's correction within the measure, over the agent's comparisons or over those of"
            " the other policies"
        ),
    )
