"""Where questions come from: the settings of data.train, data.validation and data.test."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from settings.section import Section

SPLITS = ("train", "validation", "test")


class SourceConfig(Section):
    """Where one split comes from."""

    path: str = Field(
        description=(
            "a .jsonl file of questions or of recorded answers, or a name or folder that"
            " datasets.load_dataset takes"
        )
    )
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str = Field(
        "train",
        description=(
            "split of a hub data set, or meta.split of the recorded rows to take (rows without one"
            " are all taken)"
        ),
    )
    revision: str | None = Field(None, description="commit of a hub data set")
    fields: dict[
        Literal["id", "text", "reference", "task", "metric", "agreement", "split"], str
    ] = Field(
        default_factory=dict,
        description=(
            "our field (id, text, reference, task, metric, agreement; split of recorded rows) ->"
            " theirs; dots reach into nested fields"
        ),
    )
    task: str = Field("default", description="task of rows that name none")
    metric: str = Field("exact_match", description="metric of rows that name none")
    agreement: str | None = Field(
        None,
        description=(
            "metric whose reading says which answers agree; none: the row's metric, exact_match"
            " where that is recorded"
        ),
    )
    score_range: tuple[float, float] = Field(
        (0.0, 1.0),
        description="metric recorded: the lowest and highest score there can be; mapped to 0 and 1",
    )
    limit: int | None = Field(None, ge=1, description="use the first N questions only")

    @field_validator("score_range")
    @classmethod
    def _score_range_rises(cls, given: tuple[float, float]) -> tuple[float, float]:
        if not given[0] < given[1]:
            raise ValueError("expected [lowest, highest]")
        if math.isinf(given[1] - given[0]):
            raise ValueError("too wide a range to map to [0, 1]")
        return given


class DataConfig(Section):
    train: SourceConfig = Field(
        SourceConfig(path="data/tiny_questions/train.jsonl"), description="training questions"
    )
    validation: SourceConfig = Field(
        SourceConfig(path="data/tiny_questions/validation.jsonl"),
        description="questions that choose the epoch, the threshold and the baselines",
    )
    test: SourceConfig = Field(
        SourceConfig(path="data/tiny_questions/test.jsonl"), description="questions of the report"
    )
    metrics: tuple[Annotated[str, Field(pattern=r"^[^\s:]+:\S+$")], ...] = Field(
        (),
        description=(
            "metrics with code of their own that rows may name: package.module:name,"
            " evaluate:NAME; a row may name no other code"
        ),
    )
