"""The agent's eyes: a Hugging Face encoder over state texts."""

from __future__ import annotations

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
        self.config, self.model, self.t_max = config, model, t_max
        self.pad_id = tokenizer.pad_token_id
        self.uses_segments = (
            "token_type_ids" in tokenizer.model_input_names
            and getattr(model.config, "type_vocab_size", 0) > 1
        )
        self.register_buffer("mean", torch.zeros(self.width))
        self.register_buffer("scale", torch.ones(self.width))
        self.team: Any = None  # encoder_team.EncoderTeam, where several processes share the work
        self.cache: dict[bytes, np.ndarray] = {}
        self.num_rows, self.seconds = (
            0,
            0.0,
        )  # encoder rows computed so far, and the wall time of those that were then cached
        self._memo: tuple[Any, Any, torch.Tensor] | None = None
        if config.freeze_encoder:
            model.requires_grad_(False)
        else:
            model.get_input_embeddings().requires_grad_(
                False
            )  # half of a small encoder's parameters, and too sparse a signal to train them
        self._watched = [p for p in model.parameters() if p.requires_grad][
            :1
        ]  # changes with every gradient step; a list, so as not to register it twice

    def train(self, mode: bool = True) -> StateEncoder:
        """Keeps the encoder itself in evaluation mode: dropout would move PPO's ratio away from one
        before any update.
        """
        super().train(mode)
        self.model.eval()
        return self

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def pooled(self, rows: np.ndarray) -> torch.Tensor:
        """Pooled encoder output (B, D) of the rows, from all processes where several share the
        work.
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
            second = torch.from_numpy(rows[:, 1].astype(np.int64)).to(self.device)
            inputs["token_type_ids"] = (positions >= second[:, None]).long() * mask
        autocast = (
            torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()
        )
        with autocast:
            outputs = self.model(**inputs)
        hidden: torch.Tensor = outputs.last_hidden_state.float()  # (B, T, D)
        if self.config.pooling == "cls":
            return hidden[:, 0]
        if self.config.pooling == "last":
            return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]
        weights = mask[..., None].float()
        return (hidden * weights).sum(1) / weights.sum(1)

    @torch.no_grad()
    def cached(self, rows: np.ndarray) -> torch.Tensor:
        """Pooled outputs (B, D) of a frozen encoder; each distinct text is encoded once, in batches
        of similar length.
        """
        keys = [row[1:].tobytes() for row in rows]  # not calls left: the encoder does not read it
        new = {key: index for index, key in enumerate(keys) if key not in self.cache}
        order = sorted(new, key=lambda key: (int((rows[new[key]] != self.pad_id).sum()), key))
        began = time.perf_counter()
        for start in range(0, len(order), ENCODE_ROWS):
            chunk = order[start : start + ENCODE_ROWS]
            for key, vector in zip(
                chunk, self.pooled(rows[[new[key] for key in chunk]]).cpu().numpy(), strict=True
            ):
                self.cache[key] = vector
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
        """Standardise features by their mean and deviation over `rows`: raw sentence embeddings
        share a large common part.
        """
        with torch.no_grad():
            features = (
                self.cached(rows)
                if self.config.freeze_encoder
                else torch.cat(
                    [
                        self.pooled(part)
                        for part in np.array_split(rows, -(-len(rows) // ENCODE_ROWS))
                    ]
                )
            )
        self._memo = None
        self.mean.copy_(features.mean(0))
        self.scale.copy_(
            features.std(0).clamp_min(1e-4) if len(features) > 1 else torch.ones_like(self.mean)
        )

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
            left = (
                torch.from_numpy(rows[:, 0].astype(np.int64)).to(self.device).clamp(1, self.t_max)
                - 1
            )
            features = torch.cat([features, nn.functional.one_hot(left, self.t_max).float()], dim=1)
        self._memo = (obs, key, features)
        return features, state


def position_offset(model: PreTrainedModel, tokenizer: Any) -> int:
    """RoBERTa numbers positions from padding_idx + 1, which takes that many off its table."""
    return (
        tokenizer.pad_token_id + 1
        if "roberta" in model.config.model_type or model.config.model_type in ("camembert", "mpnet")
        else 0
    )
