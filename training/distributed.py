"""The encoder's work shared by the processes of `accelerate launch --multi_gpu --num_processes N
train_ppo_multi.py ...`, a GPU each.

Process 0 trains as it would alone: it asks the experts and holds heads, losses and optimiser. The
rows it gives the encoder are cut into N parts; every process encodes its own and, in a gradient
step, backpropagates through it, and process 0 gets the sum of their gradients. So an update is the
one of a single process up to rounding, with an Nth of the encoder's activations on each GPU.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from agent import build_agent
from encoder import StateEncoder
from runtime.errors import ConfigError
from text_agent import Agent

PATIENCE = timedelta(days=30)  # helpers wait while process 0 asks experts


def is_helper() -> bool:
    """Whether this process was launched to help another train."""
    return int(os.environ.get("RANK", 0)) > 0


def share_encoder(agent: Agent) -> None:
    """Let the other processes do their part of the encoder's work from now on.

    Process 0 calls it. Nothing changes where it is the only process.

    Raises:
        ConfigError: the processes are on another kind of device than the encoder.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    state = PartialState(timeout=PATIENCE)
    if state.device.type != agent.encoder.device.type:
        raise ConfigError(
            f"device {agent.encoder.device}: the processes that accelerate launched are on"
            f" {state.device.type}; leave device: auto"
        )
    agent.encoder.team = EncoderTeam(agent.encoder)
    agent.encoder.team.tell((agent.config, agent.t_max))


def help_encode() -> None:
    """Build the encoder that process 0 names, then do as it says until it stops."""
    device = PartialState(timeout=PATIENCE).device
    config, t_max = _told(device)
    agent = build_agent(config, num_experts=1, t_max=t_max).to(device)
    EncoderTeam(agent.encoder).serve()


def _told(device: torch.device) -> Any:
    """What process 0 tells next."""
    message = [None]
    dist.broadcast_object_list(message, src=0, device=device)
    return message[0]


class EncoderTeam:
    """One process's end of the shared work.

    Process 0 calls `pooled`, `tell` and `stop`; a helper calls `serve`.
    """

    def __init__(self, encoder: StateEncoder):
        self.encoder = encoder
        self.parameters = [p for p in encoder.model.parameters() if p.requires_grad]
        self._sent_version: int | None = None  # of the parameters that the helpers have
        # Rows and features of this process's part, with the graph of the features.
        self._own: tuple[slice, torch.Tensor] | None = None

    def tell(self, message: Any) -> None:
        dist.broadcast_object_list([message], src=0, device=self.encoder.device)

    def stop(self) -> None:
        """Let the helpers end."""
        self.tell(None)
        dist.destroy_process_group()

    def pooled(self, rows: np.ndarray) -> torch.Tensor:
        """Pooled encoder output (B, D) of the rows, each part from its process; gradients flow to
        this process's parameters.
        """
        if self.parameters and self._sent_version != self.parameters[0]._version:
            self._sent_version = self.parameters[0]._version
            self.tell(("weights",))
            self._share_weights()
        if torch.is_grad_enabled() and self.parameters:
            return _Pooled.apply(self, rows, *self.parameters)
        self.tell(("encode", rows, False))
        return self._encode(rows, with_grad=False)

    def serve(self) -> None:
        while (message := _told(self.encoder.device)) is not None:
            match message:
                case ("weights",):
                    self._share_weights()
                case ("encode", rows, with_grad):
                    self._encode(rows, with_grad=with_grad)
                case ("backpropagate", shape):
                    self._backpropagate(torch.empty(shape, device=self.encoder.device))
        dist.destroy_process_group()

    def _share_weights(self) -> None:
        vector = parameters_to_vector(self.parameters).detach()
        dist.broadcast(vector, src=0)
        if is_helper():
            vector_to_parameters(vector, self.parameters)

    def _encode(self, rows: np.ndarray, *, with_grad: bool) -> torch.Tensor:
        """Features (B, D): all of them in process 0, this process's part elsewhere."""
        bounds = np.linspace(0, len(rows), dist.get_world_size() + 1).astype(int)
        own = slice(bounds[dist.get_rank()], bounds[dist.get_rank() + 1])
        features = torch.zeros(len(rows), self.encoder.width, device=self.encoder.device)
        if own.start < own.stop:
            with torch.set_grad_enabled(with_grad):
                part = self.encoder.pooled_here(rows[own])
            features[own] = part.detach()
            self._own = (own, part) if with_grad else None
        dist.reduce(features, dst=0)  # the parts do not overlap
        return features

    def _backpropagate(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """Gradients of the parameters: summed over all parts in process 0.

        `gradient` (B, D) is process 0's, of the last features.
        """
        dist.broadcast(gradient, src=0)
        gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        if self._own is not None:
            own, part = self._own
            own_gradients = torch.autograd.grad(
                part, self.parameters, gradient[own], allow_unused=True, materialize_grads=True
            )
            gradients = list(own_gradients)
            self._own = None
        vector = parameters_to_vector(gradients)
        dist.reduce(vector, dst=0)
        pieces = vector.split([parameter.numel() for parameter in self.parameters])
        summed = []
        for piece, parameter in zip(pieces, self.parameters, strict=True):
            summed.append(piece.view_as(parameter))
        return summed


class _Pooled(torch.autograd.Function):
    """The team's features as a function of process 0's parameters."""

    @staticmethod
    def forward(
        ctx: Any, team: EncoderTeam, rows: np.ndarray, *parameters: torch.Tensor
    ) -> torch.Tensor:
        del parameters
        ctx.team = team
        team.tell(("encode", rows, True))
        return team._encode(rows, with_grad=True)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        ctx.team.tell(("backpropagate", tuple(gradient.shape)))
        return None, None, *ctx.team._backpropagate(gradient.contiguous())
