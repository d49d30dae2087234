"""What training costs beside the experts: the loop around stored answers and cached features, and
PPO's gradient steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.utils.net.common import ModuleWithVectorOutput
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic

from backends.answer_store import Answer
from backends.hf import HFExpert
from config import Config
from encoder import StateEncoder
from evaluation.route_tree import grow
from prompts import StateTokenizer
from runtime.command_line import load_config
from runtime.run_folder import RunFolder
from training.ppo import MAX_GRAD_NORM, VALUE_WEIGHT, TwoRates
from training.trainer import Trainer

SMALL = ("--data.train.limit=48", "--env.t_max=2")
FEW = (  # of a trainable encoder, whose gradient steps are long
    "--agent.freeze_encoder=false",
    "--train.episodes_per_update=16",
    "--ppo.batch_size=16",
    "--ppo.repeats=2",
)
INSTANT = Answer("no", prompt_tokens=20, completion_tokens=1, latency_s=0.0)


def make_trainer(config: Config, folder: Path) -> Trainer:
    trainer = Trainer(config, RunFolder(folder, resume=False))
    trainer.calibrate()
    return trainer


def warm_up(trainer: Trainer) -> int:
    """Store every answer and cache the features of every state that training can meet; returns the
    number of states.
    """
    questions, t_max = trainer.splits.train, trainer.config.env.t_max
    tree = grow(questions, trainer.pool, t_max, expand_solved=True)
    texts, answers = [], []
    for level in tree.levels[:-1]:
        for question_idx, answer in zip(level.question, level.answers, strict=True):
            texts.append(questions[question_idx].text)
            answers.append(answer)
    rows = trainer.agent.state_tokenizer.encode(texts, answers, [1] * len(texts))
    trainer.agent.row_features(rows)
    return len(texts)


@contextmanager
def instant_parts(trainer: Trainer) -> Iterator[None]:
    """The same loop with instant scripted experts and ready feature vectors: what Tianshou,
    environment and scoring cost.
    """
    rows = np.zeros(
        (4096, StateTokenizer.HEADER + trainer.agent.state_tokenizer.max_tokens), dtype=np.int32
    )
    features = torch.randn(4096, trainer.agent.encoder.output_dim)
    with (
        mock.patch.object(trainer.pool, "answer", lambda requests: [INSTANT] * len(requests)),
        mock.patch.object(
            trainer.agent.state_tokenizer,
            "encode",
            lambda questions, answers, left: rows[: len(questions)].copy(),
        ),
        mock.patch.object(
            trainer.agent.encoder,
            "forward",
            lambda obs, state=None, info=None: (features[: len(obs)], state),
        ),
    ):
        yield


def ms_per_transition(trainer: Trainer) -> float:
    """Wall milliseconds of one collect and update, per transition."""
    steps, start = trainer.env_step, time.perf_counter()
    trainer.update()
    return (time.perf_counter() - start) * 1e3 / (trainer.env_step - steps)


class PaddedEncoder(ModuleWithVectorOutput):
    """The encoder as one would plug it into stock Tianshou: every row at full length, nothing
    shared between the two heads.
    """

    def __init__(self, encoder: StateEncoder):
        super().__init__(encoder.width)
        self.model: Any
        self.model, self.pad_id = encoder.model, encoder.pad_id

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[torch.Tensor, Any]:
        del info
        # (B, T)
        ids = torch.from_numpy(np.asarray(obs)[:, StateTokenizer.HEADER :].astype(np.int64)).to(
            self.model.device
        )
        mask = (ids != self.pad_id).long()
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, D)
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), state


def stock_ppo(trainer: Trainer) -> PPO:
    """Tianshou's PPO, actor and critic over the trainer's encoder, with the same settings."""
    config, encoder = trainer.config, PaddedEncoder(trainer.agent.encoder)
    actor = DiscreteActor(
        preprocess_net=encoder,
        action_shape=len(trainer.pool),
        hidden_sizes=config.agent.hidden_sizes,
        softmax_output=False,
    )
    critic = DiscreteCritic(preprocess_net=encoder, hidden_sizes=config.agent.hidden_sizes)
    policy = DiscreteActorPolicy(actor=actor, action_space=trainer.envs.envs[0].action_space)
    same = {
        "eps_clip": config.ppo.eps_clip,
        "vf_coef": VALUE_WEIGHT,
        "ent_coef": config.ppo.ent_coef,
        "max_grad_norm": MAX_GRAD_NORM,
        "gae_lambda": config.ppo.gae_lambda,
    }
    return PPO(
        policy=policy,
        critic=critic,
        optim=TwoRates(config.ppo, None),
        gamma=config.reward.discount,
        **same,
    )


def collect(trainer: Trainer) -> None:
    """Fill the buffer with whole episodes."""
    trainer.collector.reset(reset_stats=False)
    trainer.algorithm.eval()
    trainer.collector.collect(n_episode=trainer.config.train.episodes_per_update)


def update_s(trainer: Trainer, algorithm: PPO) -> float:
    """Seconds of PPO's gradient steps on the collected episodes."""
    start = time.perf_counter()
    algorithm.policy.is_within_training_step = True
    algorithm.update(
        trainer.collector.buffer, trainer.config.ppo.batch_size, trainer.config.ppo.repeats
    )
    algorithm.policy.is_within_training_step = False
    return time.perf_counter() - start


def bare_encoder_s(trainer: Trainer) -> float:
    """Seconds of forward and backward passes of the encoder alone over the same rows, in as many
    minibatches of the same size.
    """
    rows = trainer.collector.buffer.sample(0)[0].obs
    size, encoder = trainer.config.ppo.batch_size, trainer.agent.encoder
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(trainer.config.ppo.repeats):
        order = rng.permutation(len(rows))
        # Tianshou adds a short rest to the last minibatch
        for part in np.split(order, range(size, len(rows) - size + 1, size)):
            encoder.model.zero_grad()
            encoder.pooled(rows[part]).sum().backward()
    return time.perf_counter() - start


def measure(
    config_path: Path, overrides: list[str], folder: Path, repeats: int
) -> dict[str, float]:
    """Cost of training beside the experts, per transition with everything stored, and of PPO's
    gradient steps.
    """
    small = [f"--pool.store={folder / 'warm.sqlite'}", *SMALL, *overrides]
    frozen = load_config(config_path, small)
    out = measure_warm(make_trainer(frozen, folder / "warm"), repeats)
    trainable = load_config(config_path, [*small, *FEW])
    return out | measure_updates(make_trainer(trainable, folder / "trainable"), repeats)


def measure_warm(trainer: Trainer, repeats: int) -> dict[str, float]:
    """Collect and update with everything stored and cached, and against the bare loop."""
    warm_up(trainer)
    warm = []
    ratios = []
    for _ in range(repeats):
        warm.append(ms_per_transition(trainer))
        with instant_parts(trainer):
            ratios.append(warm[-1] / ms_per_transition(trainer))
    return {
        "warm_ms_per_transition": float(np.median(warm)),
        "warm_vs_floor": float(np.median(ratios)),
    }


def measure_updates(trainer: Trainer, repeats: int) -> dict[str, float]:
    """PPO's gradient steps with a trainable encoder against that encoder alone, and against the
    library's own.
    """
    collect(trainer)
    stock = stock_ppo(trainer)
    to_bare = []
    to_stock = []
    for _ in range(repeats):
        ours = update_s(trainer, trainer.algorithm)
        to_bare.append(ours / bare_encoder_s(trainer))
        to_stock.append(update_s(trainer, stock) / ours)
    return {
        "update_vs_encoder": float(np.median(to_bare)),
        "update_vs_stock": float(np.median(to_stock)),
    }


def counts(config_path: Path, overrides: list[str], folder: Path) -> dict[str, float]:
    """What 1,000 transitions of training and validation take, in counts: a cold store first, then
    the same run with its answers stored.
    """
    few = [
        "--data.train.limit",
        "64",
        "--data.validation.limit",
        "32",
        "--train.episodes_per_update",
        "64",
        "--threads",
        "1",
    ]
    small = ["--pool.store", str(folder / "counts.sqlite"), *few, *overrides]
    out: dict[str, float] = {}
    for state in ("cold", "warm"):
        trainer = make_trainer(load_config(config_path, small), folder / state)
        validated = 0.0
        for _ in range(2):
            trainer.update()
            validated += trainer.validate()["eval/calls"] * len(trainer.splits.validation)
        local = [expert for expert in trainer.pool.experts if isinstance(expert, HFExpert)]
        thousands = (trainer.env_step + validated) / 1000
        taken = {
            "generate_calls": sum(expert.work["generate_calls"] for expert in local),
            "forward_passes": sum(expert.work["forward_passes"] for expert in local),
            "encoder_rows": trainer.agent.encoder.num_rows,
            "store_reads": trainer.pool.store.num_reads,
            "model_loads": trainer.pool.stats.loads,
        }
        out |= {f"counts/{state}/{name}": count / thousands for name, count in taken.items()}
    return out
