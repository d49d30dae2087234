"""The settings of learning and of evaluation."""

from __future__ import annotations

from pydantic import Field

from settings.section import Section

MAX_SIZE = 65_536  # of a layer
RATE = 10.0  # of learning, at most


class PPOConfig(Section):
    lr: float = Field(1e-3, gt=0, le=RATE, description="learning rate of the heads")
    lr_encoder: float = Field(
        2e-5, gt=0, le=RATE, description="learning rate of a trainable encoder"
    )
    batch_size: int = Field(64, ge=2, description="transitions a gradient step")
    repeats: int = Field(4, ge=1, description="passes over each collected batch")
    eps_clip: float = Field(0.2, gt=0, description="clip range of the probability ratio")
    gae_lambda: float = Field(
        0.95, ge=0, le=1, description="lambda of generalised advantage estimation; 1: full returns"
    )
    ent_coef: float = Field(0.01, ge=0, description="weight of the entropy bonus")


class TrainConfig(Section):
    epochs: int = Field(10, ge=1, description="epochs; each ends with a validation")
    updates_per_epoch: int = Field(4, ge=1, description="PPO updates between two validations")
    episodes_per_update: int = Field(
        128,
        ge=2,
        description=(
            "episodes collected per PPO update; at least 2, since PPO normalises advantages over"
            " the batch"
        ),
    )
    num_envs: int = Field(
        64, ge=1, description="questions in flight; their expert calls are batched"
    )
    lr_decay: bool = Field(True, description="learning rate falls linearly to zero")
    refit: bool = Field(
        True,
        description=(
            "agent.reads belief: fit what was fitted on training and validation questions together"
            " once training has ended"
        ),
    )
    max_expert_calls: int | None = Field(
        None, ge=1, description="answers this run may generate; stored ones are free"
    )


class TerminatorConfig(Section):
    hidden_size: int = Field(64, ge=1, le=MAX_SIZE, description="hidden units")
    steps: int = Field(400, ge=1, description="optimiser steps of a fit")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout of features and hidden units during a fit"
    )
    max_states: int = Field(20_000, ge=1, description="learn from the newest N distinct states")
    max_threshold: float = Field(
        0.95,
        gt=0,
        le=1,
        description="validation routes end here, so thresholds above are not considered",
    )
    max_loss: float | None = Field(
        None,
        gt=0,
        lt=1,
        description=(
            "agent.reads belief: promise that the reference is right and the route wrong on at most"
            " this share of questions; half of the validation questions calibrate the threshold;"
            " none: no promise"
        ),
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="of the promise of max_loss")
    reference: str | None = Field(
        None,
        description=(
            "the expert that max_loss compares with; none: the best one on training questions"
        ),
    )


class EvalConfig(Section):
    full: bool = Field(
        False,
        description=(
            "all baselines, the exact optimum, the full-information router and the transfer audit:"
            " many expert calls, all stored"
        ),
    )
    baselines: tuple[str, ...] = Field(
        (),
        description=(
            "policies to compare with, by name (see docs/evaluation.md) or import path"
            " package.module:name of a Baseline or of a policy's class; none: those that ask"
            " nothing but the test and validation questions, where answers are recorded also those"
            " that learn from training questions"
        ),
    )
    tree_questions: int | None = Field(
        None,
        ge=2,
        description=(
            "full: training questions whose route trees teach the full-information router;"
            " none: all"
        ),
    )
    composition_tasks: tuple[str, ...] = Field(
        (),
        description=(
            "tasks that chain skills by construction, reported apart in the transfer audit"
        ),
    )
    transfer: bool = Field(
        False,
        description=(
            "the transfer audit without the rest of full: what second calls gain from the answer"
            " they are handed"
        ),
    )
    use_terminator: bool = Field(
        True,
        description="false: every route runs to T_max, the paper's ablation without the Terminator",
    )
    ranker: str | None = Field(
        None,
        description=(
            "folder or hub id of a PairRM (llm-blender/PairRM-hf) that picks among all experts'"
            " answers; none: leave it out"
        ),
    )
    ranker_revision: str | None = Field(None, description="hub commit of the ranker")
    max_tree_calls: int = Field(
        1_000_000, ge=1, description="full: refuse route trees that could need more expert calls"
    )
