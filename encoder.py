"""The agent's eyes: a Hugging Face encoder over state texts."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from config import AgentConfig
from prompts import StateTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENCODE_ROWS = 64  # rows per encoder pass outside gradient steps


class StateEncoder(nn.Module):
    """Observation rows (B, 2 + T) -> features (B, D): encoder, pooling, standardisation, calls
    left.

    A frozen encoder's pooled outputs are cached per text in `cache`, which is part of a checkpoint:
    recomputed in other batches they would differ in the last bits and a resumed run would drift
    from an uninterrupted one.
    """

    mean: torch.Tensor  # (D,), of the features that `calibrate` was given
    scale: torch.Tensor  # (D,), their standard deviation

    def __init__(self, config: AgentConfig, model: PreTrainedModel, tokenizer: Any, t_max: int):
        super().__init__()
        self.width: int = model.config.hidden_size
        self.output_dim = self.width + (t_max if config.sees_calls_left else 0)
        self.config = config
        self.model = model
        self.t_max = t_max
        self.pad_id = tokenizer.pad_token_id
        self.uses_segments = (
            "token_type_ids" in tokenizer.model_input_names
            and getattr(model.config, "type_vocab_size", 0) > 1
        )
        self.register_buffer("mean", torch.zeros(self.width))
        self.register_buffer("scale", torch.ones(self.width))
        self.team: Any = None  # encoder_team.EncoderTeam, where several processes share the work
        self.cache: dict[bytes, np.ndarray] = {}
        self.num_rows = 0  # rows encoded so far
        self.seconds = 0.0  # wall time of encoding the rows that were then cached
        self._memo: tuple[Any, Any, torch.Tensor] | None = None
        if config.freeze_encoder:
            model.requires_grad_(False)
        else:
            # Half of a small encoder's parameters, and the signal is too sparse to train them
            model.get_input_embeddings().requires_grad_(False)
        # The first trainable parameter, which changes with every gradient step. It is in a list so
        # that torch does not register it twice
        self._watched = [p for p in model.parameters() if p.requires_grad][:1]

    def train(self, mode: bool = True) -> StateEncoder:
        """Set the mode, but keep the encoder itself in evaluation mode.

        Dropout would move PPO's ratio away from one before any update.
        """
        super().train(mode)
        self.model.eval()
        return self

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def pooled(self, rows: np.ndarray) -> torch.Tensor:
        """Pooled encoder output (B, D) of the rows.

        Where several processes share the work, it comes from all of them.
        """
        self.num_rows += len(rows)
        return self.pooled_here(rows) if self.team is None else self.team.pooled(rows)

    def pooled_here(self, rows: np.ndarray) -> torch.Tensor:
        """Pooled encoder output (B, D) of the rows, padding trimmed to the longest."""
        ids = rows[:, StateTokenizer.HEADER :]
        lengths = (ids != self.pad_id).sum(axis=1)
        ids = ids[:, : lengths.max()]
        positions = torch.arange(ids.shape[1], device=self.device)
        mask = (positions < torch.from_numpy(lengths).to(self.device)[:, None]).long()  # (B, T)
        inputs = {
            "input_ids": torch.from_numpy(ids.astype(np.int64)).to(self.device),  # (B, T)
            "attention_mask": mask,
        }
        if self.uses_segments:
            starts = torch.from_numpy(rows[:, 1].astype(np.int64)).to(self.device)
            inputs["token_type_ids"] = (positions >= starts[:, None]).long() * mask
        autocast = (
            torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()
        )
        with autocast:
            outputs = self.model(**inputs)
        hidden: torch.Tensor = outputs.last_hidden_state.float()  # (B, T, D)
        return self._pool(hidden, mask)

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """One vector for each row, (B, D), of hidden states (B, T, D) under a mask (B, T)."""
        if self.config.pooling == "cls":
            return hidden[:, 0]
        if self.config.pooling == "last":
            return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]
        weights = mask[..., None].float()
        return (hidden * weights).sum(1) / weights.sum(1)

    def keys_of(self, rows: np.ndarray) -> list[bytes]:
        """Keys of rows in the cache: without calls left, the first column, which is not read."""
        return [row[1:].tobytes() for row in rows]

    @torch.no_grad()
    def cached(self, rows: np.ndarray) -> torch.Tensor:
        """Pooled outputs (B, D) of a frozen encoder.

        Each distinct text is encoded once, in batches of similar length.
        """
        keys = self.keys_of(rows)
        new = {key: index for index, key in enumerate(keys) if key not in self.cache}
        order = sorted(new, key=lambda key: (int((rows[new[key]] != self.pad_id).sum()), key))
        began = time.perf_counter()
        for start in range(0, len(order), ENCODE_ROWS):
            chunk = order[start : start + ENCODE_ROWS]
            vectors = self.pooled(rows[[new[key] for key in chunk]]).cpu().numpy()
            self.cache.update(zip(chunk, vectors, strict=True))
        self.seconds += time.perf_counter() - began
        return torch.from_numpy(np.stack([self.cache[key] for key in keys])).to(self.device)

    def cache_state(self) -> dict[str, torch.Tensor]:
        """The cached features as tensors: keys (N, 1 + T) of int32 and vectors (N, D)."""
        if not self.cache:
            return {}
        keys = [np.frombuffer(key, dtype=np.int32) for key in self.cache]
        return {
            "keys": torch.from_numpy(np.stack(keys)),
            "vectors": torch.from_numpy(np.stack(list(self.cache.values()))),
        }

    def load_cache(self, state: dict[str, torch.Tensor]) -> None:
        """Replace the cached features by those of `cache_state`."""
        self.cache = {}
        if state:
            for key, vector in zip(state["keys"].numpy(), state["vectors"].numpy(), strict=True):
                self.cache[key.tobytes()] = vector

    def calibrate(self, rows: np.ndarray) -> None:
        """Standardise features by their mean and standard deviation over `rows`.

        Raw sentence embeddings share a large common part.
        """
        with torch.no_grad():
            if self.config.freeze_encoder:
                features = self.cached(rows)
            else:
                num_parts = math.ceil(len(rows) / ENCODE_ROWS)
                parts = np.array_split(rows, num_parts)
                features = torch.cat([self.pooled(part) for part in parts])
        self._memo = None
        self.mean.copy_(features.mean(0))
        if len(features) > 1:
            self.scale.copy_(features.std(0).clamp_min(1e-4))
        else:
            self.scale.fill_(1.0)

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[torch.Tensor, Any]:
        """Features (B, output_dim) of observation rows.

        Policy and value heads asking for the same rows share one pass.
        """
        del info
        key = (torch.is_grad_enabled(), [p._version for p in self._watched])
        if self._memo is not None and self._memo[0] is obs and self._memo[1] == key:
            return self._memo[2], state
        rows = np.asarray(obs)
        pooled = self.cached(rows) if self.config.freeze_encoder else self.pooled(rows)
        features = (pooled - self.mean) / self.scale
        if self.config.sees_calls_left:
            calls_left = torch.from_numpy(rows[:, 0].astype(np.int64)).to(self.device)
            classes = calls_left.clamp(1, self.t_max) - 1
            one_hot = nn.functional.one_hot(classes, self.t_max).float()  # (B, T_max)
            features = torch.cat([features, one_hot], dim=1)
        self._memo = (obs, key, features)
        return features, state


def position_offset(model: PreTrainedModel, tokenizer: Any) -> int:
    """RoBERTa numbers positions from padding_idx + 1, which takes that many off its table."""
    model_type = model.config.model_type
    if "roberta" in model_type or model_type in ("camembert", "mpnet"):
        return int(tokenizer.pad_token_id) + 1
    return 0
