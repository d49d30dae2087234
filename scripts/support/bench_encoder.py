"""What reading a state costs in each precision of a frozen encoder."""

from __future__ import annotations

import random
import time

import numpy as np
import torch

from agent import build_agent
from config import AgentConfig
from encoder import ENCODE_ROWS, StateEncoder
from prompts import StateTokenizer
from scripts.support.synthetic_answers import make_row


def synthetic_states(tokenizer: StateTokenizer, num_states: int) -> np.ndarray:
    """Observation rows of questions with an answer each."""
    rng = random.Random(0)
    questions = []
    answers = []
    for number in range(num_states):
        row = make_row(number, "train", rng)
        questions.append(row["question"])
        answers.append(rng.choice(list(row["answers"].values())))
    return tokenizer.encode(questions, answers, [1] * num_states)


@torch.no_grad()
def encode_s(encoder: StateEncoder, rows: np.ndarray) -> float:
    """Seconds of one pass over the rows."""
    start = time.perf_counter()
    encoder.pooled(rows)
    return time.perf_counter() - start


def measure(config: AgentConfig, repeats: int) -> dict[str, float]:
    """bfloat16 against float32 in turns, at the thread count that torch has.

    The features differ a little: their least cosine is given, after the mean was taken off.
    """
    wide = build_agent(config.model_copy(update={"encoder_dtype": "float32"}), 2, 1)
    narrow = build_agent(config.model_copy(update={"encoder_dtype": "bfloat16"}), 2, 1)
    rows = synthetic_states(wide.state_tokenizer, ENCODE_ROWS)
    for agent in (wide, narrow):
        encode_s(agent.encoder, rows)  # the first pass takes longer
    seconds = []
    ratios = []
    for _ in range(repeats):
        seconds.append(encode_s(wide.encoder, rows))
        ratios.append(seconds[-1] / encode_s(narrow.encoder, rows))
    return {
        "encode_ms_per_state": 1000 * float(np.median(seconds)) / len(rows),
        "encode_vs_fp32": float(np.median(ratios)),
        "encode_vs_fp32/least_cosine": least_cosine(wide.encoder, narrow.encoder, rows),
    }


@torch.no_grad()
def least_cosine(one: StateEncoder, other: StateEncoder, rows: np.ndarray) -> float:
    """Of the features that two encoders give a state, each without its mean over the rows."""
    ours = one.pooled(rows)
    theirs = other.pooled(rows)
    cosines = torch.cosine_similarity(ours - ours.mean(0), theirs - theirs.mean(0))
    return float(cosines.min())
