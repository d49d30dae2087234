"""Generation in rounds: a Hugging Face model's own `generate`, paused now and then so that finished rows leave the batch.

In one long call every row of a batch costs as much as the longest; answers of a question's few words stand beside runaways of
hundreds. docs/speed.md has what this gains.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from config import DecodingConfig

FIRST_ROUND = 8  # tokens before the first pause; the number generated doubles from pause to pause


class SeededSampling(LogitsProcessor):
    """Turns greedy decoding into sampling that depends on the prompt alone, not on the batch it travels in.

    The arg-max of log-probability / temperature + Gumbel noise is a sample from the softmax; each row draws its own noise.
    """

    def __init__(self, decoding: DecodingConfig, prompts: list[str]):
        self.temperature = decoding.temperature
        self.warper = TopPLogitsWarper(decoding.top_p) if decoding.top_p < 1.0 else None
        seeds = [int.from_bytes(hashlib.sha256(f"{decoding.seed}:{prompt}".encode()).digest()[:8], "big") >> 1 for prompt in prompts]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with these rows of the batch only."""
        self.generators = [self.generators[row] for row in rows]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.float() / self.temperature  # (B, V)
        if self.warper is not None:
            scores = self.warper(input_ids, scores)
        noise = torch.stack([torch.rand(scores.shape[1], generator=g) for g in self.generators]).to(scores.device)  # (B, V)
        return scores - torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7)))


def generate(
    model: Any,
    tokens: torch.Tensor,
    state: dict[str, Any],
    *,
    max_new_tokens: int,
    end_ids: set[int],
    pad_id: int,
    sampling: SeededSampling | None = None,
    in_rounds: bool = True,
) -> list[list[int]]:
    """Completions of a batch, each up to and including its first end token.

    `tokens` (B, T) are what the model continues: the prompt, padded on the left, or an encoder-decoder's start token. `state` holds
    the other arguments of the model's `generate`: attention masks, keys and values computed already, encoder outputs.
    """
    in_rounds = in_rounds and not model._is_stateful  # a recurrent state cannot drop rows
    ends = torch.tensor(sorted(end_ids), device=tokens.device)
    completions: list[list[int]] = [[] for _ in tokens]
    rows, num_new = torch.arange(len(tokens), device=tokens.device), 0  # rows (B,) that go on
    while True:
        num_round = min(max(FIRST_ROUND, num_new) if in_rounds else max_new_tokens, max_new_tokens - num_new)
        output = model.generate(
            **{"decoder_input_ids" if model.config.is_encoder_decoder else "input_ids": tokens},
            **state,
            max_new_tokens=num_round,
            do_sample=False,
            num_beams=1,
            pad_token_id=pad_id,
            eos_token_id=sorted(end_ids),
            logits_processor=LogitsProcessorList([sampling] if sampling else []),
            return_dict_in_generate=True,
        )
        new = output.sequences[:, tokens.shape[1] :]  # (B, N)
        for row, completion in zip(rows.tolist(), new.tolist(), strict=True):
            completions[row] += completion
        num_new += num_round
        going = (~torch.isin(new, ends).any(1)).nonzero().flatten()
        if not len(going) or num_new >= max_new_tokens:
            return [_until_end(completion, end_ids) for completion in completions]
        rows, tokens = rows[going], output.sequences[going]
        state = _keep_rows(state, output.past_key_values, going, num_round)
        if sampling:
            sampling.keep_rows(going.tolist())


def _keep_rows(state: dict[str, Any], cache: Any, going: torch.Tensor, num_new: int) -> dict[str, Any]:
    """The arguments of `generate` after `num_new` more tokens, for the rows that go on."""
    cache.batch_select_indices(going)
    own = "decoder_attention_mask" if "encoder_outputs" in state else "attention_mask"  # of the tokens that grow
    state = {name: value[going] if isinstance(value, torch.Tensor) else value for name, value in state.items()} | {"past_key_values": cache}
    state[own] = torch.cat([state[own], state[own].new_ones(len(going), num_new)], dim=1)
    if "encoder_outputs" in state:
        state["encoder_outputs"] = type(state["encoder_outputs"])(last_hidden_state=state["encoder_outputs"].last_hidden_state[going])
    return state


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    """A completion up to and including its first end token."""
    for index, token in enumerate(ids):
        if token in ends:
            return ids[: index + 1]
    return ids
