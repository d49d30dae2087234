"""What deciding costs, beside the experts: the passes of the agent's encoder."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from der_env import Episode, encode_states
from encoder import ENCODE_ROWS
from evaluation.route_log import Overhead
from questions import Question
from rollout import Route
from text_agent import Agent

State = tuple[str, str | None]  # a question, and the answer that the encoder reads with it


def seconds_per_state(agent: Agent, questions: Sequence[Question], t_max: int) -> float:
    """Wall seconds of the encoder for one state, measured on a full batch, not taken from the
    cache.
    """
    episodes = [Episode(question.sealed(), t_max) for question in questions[:ENCODE_ROWS]]
    rows = encode_states(episodes, agent.state_tokenizer)
    with torch.inference_mode():
        agent.encoder.pooled(rows[:1])  # what a first pass takes longer is not the state's
        start = time.perf_counter()
        agent.encoder.pooled(rows)
        return (time.perf_counter() - start) / len(rows)


def overheads(
    agent: Agent,
    routes: Sequence[Route],
    seconds_per_row: float,
    lengths: dict[State, int] | None = None,
    *,
    reads_question: bool = True,
    reads_answers: bool = True,
) -> list[Overhead]:
    """Encoder work of each route.

    The agent takes one pass over the bare question, and one over the state after each call. The
    Terminator shares the latter: the agent reads the same state if the route goes on. `lengths`, in
    tokens, of the states read so far are used and added to.
    """
    states: list[State] = []
    route_of: list[int] = []  # of each state
    for route_idx, route in enumerate(routes):
        read: list[str | None] = [None] if reads_question else []
        if reads_answers:
            read += route.episode.answers
        states += [(route.episode.question.text, answer) for answer in read]
        route_of += [route_idx] * len(read)
    passes = np.bincount(route_of, minlength=len(routes))
    num_tokens_of = _num_tokens(agent, states, {} if lengths is None else lengths)
    tokens = np.bincount(route_of, num_tokens_of, minlength=len(routes))
    params = sum(map(torch.numel, agent.encoder.model.parameters()))
    work = []
    for num_passes, num_tokens in zip(passes.tolist(), tokens.tolist(), strict=True):
        params_b = num_passes * params / 1e9
        flops = 2.0 * params * num_tokens
        work.append(Overhead(params_b, flops, num_passes * seconds_per_row))
    return work


def _num_tokens(agent: Agent, states: Sequence[State], lengths: dict[State, int]) -> np.ndarray:
    """How many tokens the encoder reads of each state (N,). What is known stands in `lengths`."""
    tokenizer = agent.state_tokenizer
    new = [state for state in dict.fromkeys(states) if state not in lengths]
    if new:
        texts = [text for text, _ in new]
        rows = tokenizer.encode(texts, [answer for _, answer in new], [0] * len(new))
        is_token = rows[:, tokenizer.HEADER :] != tokenizer.pad_id
        lengths.update(zip(new, is_token.sum(axis=1).tolist(), strict=True))
    return np.array([lengths[state] for state in states], dtype=np.int64)
