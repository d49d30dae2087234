"""Continuous batching with a Hugging Face model's own `generate`, called for a round of tokens at a
time: rows that have ended leave, and others join.

In one long call every row of a batch costs as much as the longest, and answers of a question's few
words stand beside runaways of hundreds; and who is asked later waits for all of them. docs/speed.md
has what this gains.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from config import DecodingConfig

ROUND = 16  # tokens between two looks at who has ended and who may join, at most
ENDED_SHARE = 0.5  # of a batch's rows: when so many have ended a round is over


@dataclass
class Row:
    """A prompt on its way to a completion."""

    number: int  # its place among the caller's prompts
    ids: list[int]  # of the prompt
    was_cut: bool = False
    seed: int = 0
    completion: list[int] = field(default_factory=list)  # up to and including its first end token
    seconds: float = 0.0  # its share of the model's time


class SeededSampling(LogitsProcessor):
    """Turns greedy decoding into sampling that depends on the prompt alone, not on the batch it
    travels in.

    The arg-max of log-probability / temperature + Gumbel noise is a sample from the softmax. The
    noise of a token depends on its row's seed and its place in the completion only: `generate` may
    compute a step more than it keeps.
    """

    def __init__(self, decoding: DecodingConfig):
        self.temperature = decoding.temperature
        self.warper = TopPLogitsWarper(decoding.top_p) if decoding.top_p < 1.0 else None
        self.rows: Sequence[Row] = ()  # of the batch at hand
        self.width = 0  # tokens of the batch before this call of `generate`

    @staticmethod
    def seed(decoding: DecodingConfig, prompt: str) -> int:
        """The seed of a prompt's noise."""
        return (
            int.from_bytes(hashlib.sha256(f"{decoding.seed}:{prompt}".encode()).digest()[:8], "big")
            >> 1
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float() / self.temperature  # (B, V)
        if self.warper is not None:
            scores = self.warper(input_ids, scores)
        places = [len(row.completion) + input_ids.shape[1] - self.width for row in self.rows]
        sources = [
            torch.Generator().manual_seed(row.seed + place)
            for row, place in zip(self.rows, places, strict=True)
        ]
        noise = torch.stack(
            [torch.rand(scores.shape[1], generator=source) for source in sources]
        ).to(scores.device)  # (B, V)
        return scores - torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7)))


class EnoughHaveEnded(StoppingCriteria):
    """Ends a round for all rows as soon as a share of them has ended: those would be computed on
    with the others.
    """

    def __init__(self, ends: torch.Tensor, num_rows: int):
        self.ends = ends
        self.have_ended = torch.zeros(num_rows, dtype=torch.bool, device=ends.device)

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        self.have_ended |= torch.isin(input_ids[:, -1], self.ends)
        return torch.full_like(self.have_ended, bool(self.have_ended.float().mean() >= ENDED_SHARE))


class RoomyLayer(DynamicLayer):
    """Keys and values with room behind them, so that a step writes its own and does not copy all
    that came before.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: DynamicLayer):
        super().__init__()
        self.__dict__.update(layer.__dict__)
        self._room: tuple[torch.Tensor, torch.Tensor] | None = (
            None  # what `keys` and `values` are the front of
        )
        self._front: torch.Tensor | None = (
            None  # `keys` as they were left: rows may have gone or come since
        )

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, heads, T, head size) with those of the new tokens behind them."""
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        room = self._room
        if room is None or self._front is not self.keys or end > room[0].shape[-2]:
            more = [0, 0, 0, key_states.shape[-2] + ROUND]
            room = (pad(self.keys, more), pad(self.values, more))
        keys, values = room
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self._room = room
        self.keys = keys[..., :end, :]
        self.values = values[..., :end, :]
        self._front = self.keys
        return self.keys, self.values


# Generation settings of a model that count tokens from the start or the end of a call.
COUNTED_SETTINGS = (
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
)
PLAIN_LAYERS = (
    DynamicLayer,
    RoomyLayer,
    DynamicSlidingWindowLayer,
)  # caches whose rows can be set beside each other


def keeps_only_keys_and_values(model: Any) -> bool:
    """Whether the model remembers a token by keys and values of attention alone, not in a recurrent
    or convolutional state.
    """
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    return not model._is_stateful and all(
        "attention" in kind and "linear" not in kind for kind in kinds
    )


class RunningBatch:
    """Rows of one model that are being completed.

    Rows join at any time where the model allows it, by the same left padding that any batch of
    unequal prompts has. Encoder-decoders count positions from the start of the batch, so their rows
    start together. A recurrent state can neither drop nor take rows, generation settings may count
    from the start or the end of a call, and code from a hub may keep its cache in a way of its own
    (`in_rounds=False`): those run to the end in one call.
    """

    def __init__(
        self,
        model: Any,
        decoding: DecodingConfig,
        *,
        end_ids: set[int],
        pad_id: int,
        in_rounds: bool = True,
        work: Counter[str] | None = None,
    ):
        self.model, self.decoding, self.end_ids, self.pad_id = model, decoding, end_ids, pad_id
        self.rows: list[Row] = []
        self.work = (
            Counter() if work is None else work
        )  # "generate_calls" and the model's "forward_passes", counted up
        self._in_rounds = (
            in_rounds
            and keeps_only_keys_and_values(model)
            and not any(getattr(model.generation_config, name, None) for name in COUNTED_SETTINGS)
        )
        self._can_grow = self._in_rounds and not model.config.is_encoder_decoder
        self._sampling = SeededSampling(decoding) if decoding.temperature > 0 else None
        self._ends = torch.tensor(sorted(end_ids), device=model.device)
        self._ended: list[Row] = []
        self._tokens = torch.empty(0)  # (B, T): prompts and what was generated, padded on the left
        self._state: dict[
            str, Any
            # The other arguments of the model's `generate`; keys and values are those of all
            # tokens but
            # the last
        ] = {}

    @property
    def width(self) -> int:
        """Tokens of the longest row, T."""
        return self._tokens.shape[1] if self.rows else 0

    @property
    def takes_rows(self) -> bool:
        """Whether rows may join now."""
        return not self.rows or (self._can_grow and _is_plain(self._state))

    def join(self, rows: Sequence[Row], tokens: torch.Tensor, state: dict[str, Any]) -> None:
        """Take in rows and generate their first token.

        `tokens` (B, T) are what the model continues: the prompts, padded on the left, or an
        encoder-decoder's start token. `state` holds the other arguments of the model's `generate`:
        attention masks, keys and values computed already, encoder outputs.
        """
        rows, tokens, state = self._extend(
            list(rows), tokens, state, 1 if self._in_rounds else self.decoding.max_new_tokens
        )
        if self.rows and rows:
            tokens, state = self._beside(tokens, state)
        if rows:
            self.rows, self._tokens, self._state = self.rows + rows, tokens, state

    def advance(self) -> list[Row]:
        """Generate a round of tokens for all rows; returns those that have ended since the last
        time.
        """
        if self.rows:
            left = min(self.decoding.max_new_tokens - len(row.completion) for row in self.rows)
            self.rows, self._tokens, self._state = self._extend(
                self.rows, self._tokens, self._state, min(ROUND, left)
            )
        ended, self._ended = self._ended, []
        return ended

    def _extend(
        self, rows: list[Row], tokens: torch.Tensor, state: dict[str, Any], num_new: int
    ) -> tuple[list[Row], torch.Tensor, dict[str, Any]]:
        """Rows, tokens and state after `num_new` more tokens, without the rows that have ended."""
        start = time.perf_counter()
        if self._sampling:
            self._sampling.rows, self._sampling.width = rows, tokens.shape[1]
        output = self.model.generate(
            **{
                "decoder_input_ids" if self.model.config.is_encoder_decoder else "input_ids": tokens
            },
            **state,
            max_new_tokens=num_new,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.pad_id,
            eos_token_id=sorted(self.end_ids),
            logits_processor=LogitsProcessorList([self._sampling] if self._sampling else []),
            stopping_criteria=StoppingCriteriaList(
                [EnoughHaveEnded(self._ends, len(rows))] if self._in_rounds and num_new > 1 else []
            ),
            return_dict_in_generate=True,
        )
        new = output.sequences[
            :, tokens.shape[1] :
        ].tolist()  # B lists, of `num_new` tokens at most
        self.work.update(generate_calls=1, forward_passes=len(new[0]))
        seconds, going = (time.perf_counter() - start) / len(rows), []
        for index, (row, completion) in enumerate(zip(rows, new, strict=True)):
            row.completion += _until_end(completion, self.end_ids)
            row.seconds += seconds
            is_over = (
                row.completion[-1] in self.end_ids
                or len(row.completion) >= self.decoding.max_new_tokens
            )
            self._ended.append(row) if is_over else going.append(index)
        if not going:
            return [], tokens, {}
        chosen = torch.tensor(going)  # not on a device: layers may be on several
        return [rows[index] for index in going], *_without_slack(
            output.sequences[chosen], _kept(state, output.past_key_values, chosen, len(new[0]))
        )

    def _beside(
        self, tokens: torch.Tensor, state: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Tokens and state of the running rows and of new ones below them, padded on the left to
        one width.
        """
        pairs = (
            (self._tokens, tokens, self.pad_id),
            (self._state["attention_mask"], state["attention_mask"], 0),
        )
        tokens, mask = (
            torch.cat(_aligned(upper, lower, -1, value)) for upper, lower, value in pairs
        )
        cache = self._state["past_key_values"]
        for layer, new in zip(cache.layers, state["past_key_values"].layers, strict=True):
            if new.is_initialized:  # a layer that shares another's keys has none
                layer.keys = torch.cat(_aligned(layer.keys, new.keys, -2, 0))
                layer.values = torch.cat(_aligned(layer.values, new.values, -2, 0))
                if isinstance(layer, DynamicSlidingWindowLayer):
                    layer.cumulative_length = max(layer.cumulative_length, new.cumulative_length)
        return tokens, {"attention_mask": mask, "past_key_values": cache}


def _aligned(upper: torch.Tensor, lower: torch.Tensor, axis: int, value: int) -> list[torch.Tensor]:
    """Both, padded at the front of `axis` to the longer one's length."""
    length = max(upper.shape[axis], lower.shape[axis])
    return [
        pad(part, [0, 0] * (-1 - axis) + [length - part.shape[axis], 0], value=value)
        for part in (upper, lower)
    ]


def _kept(state: dict[str, Any], cache: Any, chosen: torch.Tensor, num_new: int) -> dict[str, Any]:
    """The arguments of `generate` after `num_new` more tokens, for the chosen rows."""
    own = (
        "decoder_attention_mask" if "encoder_outputs" in state else "attention_mask"
    )  # of the tokens that grow
    if len(chosen) < len(state[own]):
        cache.batch_select_indices(chosen)
    growing = getattr(cache, "self_attention_cache", cache)
    growing.layers = [
        RoomyLayer(layer) if type(layer) is DynamicLayer and layer.is_initialized else layer
        for layer in growing.layers
    ]
    state = {
        name: value[chosen] if isinstance(value, torch.Tensor) else value
        for name, value in state.items()
    } | {"past_key_values": cache}
    state[own] = torch.cat([state[own], state[own].new_ones(len(chosen), num_new)], dim=1)
    if "encoder_outputs" in state:
        state["encoder_outputs"] = type(state["encoder_outputs"])(
            last_hidden_state=state["encoder_outputs"].last_hidden_state[chosen]
        )
    return state


def _is_plain(state: dict[str, Any]) -> bool:
    return "encoder_outputs" not in state and all(
        type(layer) in PLAIN_LAYERS for layer in state["past_key_values"].layers
    )


def _without_slack(
    tokens: torch.Tensor, state: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Tokens and state without the padding that all rows begin with, now that longer ones have
    left.
    """
    slack = int(state["attention_mask"].argmax(1).min()) if _is_plain(state) else 0
    if not slack:
        return tokens, state
    for layer in state["past_key_values"].layers:
        if layer.is_initialized:
            length = tokens.shape[1] - 1 - slack  # a sliding window may hold fewer already
            layer.keys, layer.values = layer.keys[..., -length:, :], layer.values[..., -length:, :]
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = length
    return tokens[:, slack:], state | {"attention_mask": state["attention_mask"][:, slack:]}


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    """A completion up to and including its first end token."""
    for index, token in enumerate(ids):
        if token in ends:
            return ids[: index + 1]
    return ids
