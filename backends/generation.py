"""Continuous batching with a Hugging Face model's own `generate`.

`generate` is called for a chunk of tokens at a time. Between two calls, rows that have ended leave
the batch, and other rows join it. In one long call every row would cost as much as the longest,
though most answers are short. Later requests would wait for all of them. docs/speed.md measures
what this gains.

Requests A (3 tokens), B (8) and C (5) in a batch of two rows, a letter a token:

    chunk   1    2    3
    row 1  AAA  CCC  CC     C joins when A has left
    row 2  BBB  BBB  BB
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

from backends.answer_store import Answer, mean_and_least
from backends.dispatch import OnText
from config import DecodingConfig

CHUNK_TOKENS = 16  # most tokens of a decode chunk; between two chunks rows may leave and join
LOGITS_KEPT = 1 << 20  # numbers, 4 MB; more are read at once
ENDED_SHARE = 0.5  # a decode chunk is over when this share of its rows has ended


@dataclass
class Row:
    """A prompt on its way to a completion."""

    request_id: int  # the inbox's id of the prompt
    ids: list[int]  # the prompt's tokens
    was_cut: bool = False
    seed: int = 0
    completion: list[int] = field(default_factory=list)  # up to and including its first end token
    # Of each token of the completion, see TokenLogprobs; empty where the model does not tell
    logprobs: list[float] = field(default_factory=list)
    seconds: float = 0.0  # its share of the model's time
    on_text: OnText | None = None  # told the text after each chunk

    def start_again(self) -> None:
        """Forget what was generated."""
        self.completion = []
        self.logprobs = []

    def add(self, tokens: list[int], logprobs: list[float]) -> None:
        """Append tokens, with the log-probabilities of these and perhaps of more behind them."""
        self.completion += tokens
        self.logprobs += logprobs[: len(tokens)]

    def answer(self, text: str, *, has_end: bool) -> Answer:
        """The row as an answer, whose text its completion says; `has_end`: by an end token."""
        logprob_mean, logprob_min = self.certainty
        return Answer(
            text,
            prompt_tokens=len(self.ids),
            completion_tokens=len(self.completion),
            latency_s=self.seconds,
            prompt_cut=self.was_cut,
            finish="stop" if has_end else "length",
            logprob_mean=logprob_mean,
            logprob_min=logprob_min,
        )

    @property
    def certainty(self) -> tuple[float | None, float | None]:
        """Mean and least log-probability of the completion's tokens; None where not known."""
        is_known = len(self.logprobs) == len(self.completion)
        return mean_and_least(self.logprobs if is_known else [])


class TokenLogprobs(LogitsProcessor):
    """Notes the log-probabilities of the tokens that one call of `generate` chooses.

    They are of the softmax of the logits at temperature 1, without top-p: what the model itself
    says of its choice, however that was drawn. Settings of the model's own that change logits, such
    as a repetition penalty, come before. It changes nothing.
    """

    def __init__(self) -> None:
        self._noted: list[torch.Tensor] = []  # (B, steps) each
        self._logits: list[torch.Tensor] = []  # (B, V) each: of the last steps, not noted yet

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if len(self._logits) * scores.numel() >= LOGITS_KEPT:
            self._note(input_ids)
        self._logits.append(scores)
        return scores

    def _note(self, tokens: torch.Tensor) -> None:
        """Note the last tokens of (B, T): one for each of the steps whose logits are kept.

        Several steps at once, since a small model's step takes no longer than a few operations.
        """
        num_steps = len(self._logits)
        if num_steps == 0:
            return
        logits = torch.stack(self._logits, dim=1) if num_steps > 1 else self._logits[0][:, None]
        chosen = logits.gather(2, tokens[:, -num_steps:, None]).squeeze(2)
        self._noted.append(chosen.float() - logits.float().logsumexp(2))
        self._logits = []

    def of(self, sequences: torch.Tensor) -> list[list[float]]:
        """For each of the finished sequences (B, T) the log-probabilities of its new tokens."""
        self._note(sequences)
        if not self._noted:  # code from a hub may generate without asking a processor
            return [[] for _ in sequences]
        return torch.cat(self._noted, dim=1).clamp(max=0.0).tolist()


class SeededSampling(LogitsProcessor):
    """Turns greedy decoding into sampling that depends on the prompt alone, not on its batch.

    The arg-max of log-probability / temperature + Gumbel noise is a sample from the softmax. The
    noise of a token depends only on its row's seed and its position in the completion, since
    `generate` may compute a step more than it keeps.
    """

    def __init__(self, decoding: DecodingConfig):
        self.temperature = decoding.temperature
        self.warper = TopPLogitsWarper(decoding.top_p) if decoding.top_p < 1.0 else None
        self.rows: Sequence[Row] = ()  # rows of the current call of `generate`
        self.width = 0  # tokens (T) that this call started from

    @staticmethod
    def seed(decoding: DecodingConfig, prompt: str) -> int:
        """The seed of a prompt's noise."""
        digest = hashlib.sha256(f"{decoding.seed}:{prompt}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float() / self.temperature  # (B, V)
        if self.warper is not None:
            scores = self.warper(input_ids, scores)
        num_new = input_ids.shape[1] - self.width
        noises = []
        for row in self.rows:
            position = len(row.completion) + num_new
            generator = torch.Generator().manual_seed(row.seed + position)
            noises.append(torch.rand(scores.shape[1], generator=generator))
        noise = torch.stack(noises).to(scores.device)  # (B, V)
        return scores - torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7)))


class StopWhenShareFinished(StoppingCriteria):
    """Ends a decode chunk for all rows as soon as ENDED_SHARE of them have ended.

    `generate` computes ended rows on with the others until its call returns.
    """

    def __init__(self, ends: torch.Tensor, num_rows: int):
        self.ends = ends
        self.have_ended = torch.zeros(num_rows, dtype=torch.bool, device=ends.device)

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        self.have_ended |= torch.isin(input_ids[:, -1], self.ends)
        return torch.full_like(self.have_ended, bool(self.have_ended.float().mean() >= ENDED_SHARE))


class PreallocatedLayer(DynamicLayer):
    """A cache layer with spare room behind its keys and values.

    A step writes its own keys and values into this room. It does not copy those that came before.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: DynamicLayer):
        super().__init__()
        self.__dict__.update(layer.__dict__)
        # (B, heads, T + room, head size) each; `keys` and `values` are views of their first part
        self._buffer: tuple[torch.Tensor, torch.Tensor] | None = None
        # `keys` as `update` left them. Where `keys` is another tensor, rows have left or joined
        self._last_keys: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, heads, T, head size) with those of the new tokens behind them."""
        num_new = key_states.shape[-2]
        start = self.keys.shape[-2]
        end = start + num_new
        buffer = self._buffer
        if buffer is None or self._last_keys is not self.keys or end > buffer[0].shape[-2]:
            more = [0, 0, 0, num_new + CHUNK_TOKENS]
            buffer = (pad(self.keys, more), pad(self.values, more))
        keys, values = buffer
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self._buffer = buffer
        self.keys = keys[..., :end, :]
        self.values = values[..., :end, :]
        self._last_keys = self.keys
        return self.keys, self.values


# Generation settings of a model that count tokens from the start or the end of a call
COUNTED_SETTINGS = (
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
)
# Cache layers whose rows can be concatenated with those of another cache
PLAIN_LAYERS = (DynamicLayer, PreallocatedLayer, DynamicSlidingWindowLayer)


def keeps_only_keys_and_values(model: Any) -> bool:
    """Whether the model remembers tokens only by keys and values of attention.

    Other models keep a recurrent or convolutional state.
    """
    if model._is_stateful:
        return False
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    return all("attention" in kind and "linear" not in kind for kind in kinds)


class RunningBatch:
    """Rows of one model that are being completed.

    Rows join at any time where the model allows it, by the same left padding that any batch of
    unequal prompts has. Encoder-decoders count positions from the start of the batch, so their rows
    start together.

    Some models run to the end in one call. A recurrent state can neither drop nor take rows.
    Generation settings may count from the start or the end of a call. Code from a hub may keep its
    cache in its own way; for this the caller passes `in_chunks=False`.
    """

    def __init__(
        self,
        model: Any,
        decoding: DecodingConfig,
        *,
        end_ids: set[int],
        pad_id: int,
        in_chunks: bool = True,
        work: Counter[str] | None = None,
    ):
        self.model = model
        self.decoding = decoding
        self.end_ids = end_ids
        self.pad_id = pad_id
        self.rows: list[Row] = []
        # Counts "generate_calls" and the model's "forward_passes"
        self.work = Counter() if work is None else work
        self._in_chunks = in_chunks and keeps_only_keys_and_values(model)
        for name in COUNTED_SETTINGS:
            if getattr(model.generation_config, name, None):
                self._in_chunks = False
        self._can_grow = self._in_chunks and not model.config.is_encoder_decoder
        self._sampling = SeededSampling(decoding) if decoding.temperature > 0 else None
        self._ends = torch.tensor(sorted(end_ids), device=model.device)
        self._ended: list[Row] = []
        self._tokens = torch.empty(0)  # (B, T): prompts and what was generated, padded on the left
        # The other arguments of `generate`. Its cache holds all tokens but the last
        self._state: dict[str, Any] = {}

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
        num_new = 1 if self._in_chunks else self.decoding.max_new_tokens
        going, tokens, state = self._extend(list(rows), tokens, state, num_new)
        if not going:
            return
        if self.rows:
            tokens, state = self._concat_left_padded(tokens, state)
        self.rows = self.rows + going
        self._tokens = tokens
        self._state = state

    def advance(self) -> list[Row]:
        """Generate a chunk of tokens for all rows; returns the rows ended since the last call."""
        if self.rows:
            num_left = min(self.decoding.max_new_tokens - len(row.completion) for row in self.rows)
            self.rows, self._tokens, self._state = self._extend(
                self.rows, self._tokens, self._state, min(CHUNK_TOKENS, num_left)
            )
        ended = self._ended
        self._ended = []
        return ended

    def tell_listeners(self, tokenizer: Any) -> None:
        """Tell how far completions have grown, where somebody listens."""
        for row in self.rows:
            if row.on_text is not None:
                row.on_text(tokenizer.decode(row.completion, skip_special_tokens=True))

    def _extend(
        self, rows: list[Row], tokens: torch.Tensor, state: dict[str, Any], num_new: int
    ) -> tuple[list[Row], torch.Tensor, dict[str, Any]]:
        """Rows, tokens and state after `num_new` more tokens, without the rows that have ended."""
        start = time.perf_counter()
        token_logprobs = TokenLogprobs()
        output = self._generate(rows, tokens, state, num_new, token_logprobs)
        # B lists of at most `num_new` tokens
        new = output.sequences[:, tokens.shape[1] :].tolist()
        num_steps = len(new[0])
        self.work.update(generate_calls=1, forward_passes=num_steps)
        seconds = (time.perf_counter() - start) / len(rows)
        logprobs = token_logprobs.of(output.sequences)
        for row, completion, row_logprobs in zip(rows, new, logprobs, strict=True):
            row.add(_until_end(completion, self.end_ids), row_logprobs)
            row.seconds += seconds
        going = self._sort_out_ended(rows)
        if not going:
            return [], tokens, {}
        chosen = torch.tensor(going)  # on the CPU, since layers may be on several devices
        state = _kept(state, output.past_key_values, chosen, num_steps)
        tokens, state = _trim_left_padding(output.sequences[chosen], state)
        return [rows[index] for index in going], tokens, state

    def _generate(
        self,
        rows: list[Row],
        tokens: torch.Tensor,
        state: dict[str, Any],
        num_new: int,
        token_logprobs: TokenLogprobs,
    ) -> Any:
        """What the model's `generate` returns for `num_new` tokens."""
        processors = LogitsProcessorList([token_logprobs])
        if self._sampling:
            self._sampling.rows = rows
            self._sampling.width = tokens.shape[1]
            processors.append(self._sampling)
        criteria = StoppingCriteriaList()
        if self._in_chunks and num_new > 1:
            criteria.append(StopWhenShareFinished(self._ends, len(rows)))
        is_encoder_decoder = self.model.config.is_encoder_decoder
        tokens_name = "decoder_input_ids" if is_encoder_decoder else "input_ids"
        return self.model.generate(
            **{tokens_name: tokens},
            **state,
            max_new_tokens=num_new,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.pad_id,
            eos_token_id=sorted(self.end_ids),
            logits_processor=processors,
            stopping_criteria=criteria,
            return_dict_in_generate=True,
        )

    def _sort_out_ended(self, rows: list[Row]) -> list[int]:
        """Note the rows that have ended; returns the indices of the others."""
        going = []
        for index, row in enumerate(rows):
            has_end = row.completion[-1] in self.end_ids
            if has_end or len(row.completion) >= self.decoding.max_new_tokens:
                self._ended.append(row)
            else:
                going.append(index)
        return going

    def _concat_left_padded(
        self, tokens: torch.Tensor, state: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Tokens and state of the running rows, and of new ones below them.

        Both are padded on the left to one width.
        """
        tokens = torch.cat(_aligned(self._tokens, tokens, -1, self.pad_id))
        running_mask = self._state["attention_mask"]
        mask = torch.cat(_aligned(running_mask, state["attention_mask"], -1, 0))
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
    later_axes = [0, 0] * (-1 - axis)  # `pad` counts axes from the last
    padded = []
    for part in (upper, lower):
        widths = [*later_axes, length - part.shape[axis], 0]
        padded.append(pad(part, widths, value=value))
    return padded


def _kept(state: dict[str, Any], cache: Any, chosen: torch.Tensor, num_new: int) -> dict[str, Any]:
    """The arguments of `generate` after `num_new` more tokens, for the chosen rows."""
    # The mask of the tokens that grow, which an encoder-decoder keeps apart from its inputs' mask
    mask_name = "decoder_attention_mask" if "encoder_outputs" in state else "attention_mask"
    if len(chosen) < len(state[mask_name]):
        cache.batch_select_indices(chosen)
    growing = getattr(cache, "self_attention_cache", cache)
    for index, layer in enumerate(growing.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            growing.layers[index] = PreallocatedLayer(layer)
    kept: dict[str, Any] = {}
    for name, value in state.items():
        kept[name] = value[chosen] if isinstance(value, torch.Tensor) else value
    kept["past_key_values"] = cache
    mask = kept[mask_name]
    kept[mask_name] = torch.cat([mask, mask.new_ones(len(chosen), num_new)], dim=1)
    if "encoder_outputs" in kept:
        encoded = kept["encoder_outputs"]
        hidden = encoded.last_hidden_state[chosen]
        kept["encoder_outputs"] = type(encoded)(last_hidden_state=hidden)
    return kept


def _is_plain(state: dict[str, Any]) -> bool:
    """Whether rows can be added to this state, and padding be cut from it."""
    if "encoder_outputs" in state:
        return False
    return all(type(layer) in PLAIN_LAYERS for layer in state["past_key_values"].layers)


def _trim_left_padding(
    tokens: torch.Tensor, state: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Tokens and state without the padding that all rows begin with.

    Such padding is left over when the longest row has ended.
    """
    if not _is_plain(state):
        return tokens, state
    num_padding = int(state["attention_mask"].argmax(1).min())
    if not num_padding:
        return tokens, state
    length = tokens.shape[1] - 1 - num_padding  # a sliding window may hold fewer already
    for layer in state["past_key_values"].layers:
        if layer.is_initialized:
            layer.keys = layer.keys[..., -length:, :]
            layer.values = layer.values[..., -length:, :]
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = length
    trimmed = dict(state)
    trimmed["attention_mask"] = state["attention_mask"][:, num_padding:]
    return tokens[:, num_padding:], trimmed


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    """A completion up to and including its first end token."""
    for index, token in enumerate(ids):
        if token in ends:
            return ids[: index + 1]
    return ids
