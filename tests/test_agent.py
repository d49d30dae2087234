"""The agent: what its encoder sees, what PPO learns from, what its folder keeps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tianshou.algorithm import PPO
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, ReplayBuffer, VectorReplayBuffer
from tianshou.utils.net.common import ModuleWithVectorOutput
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
from tianshou.utils.torch_utils import policy_within_training_step
from torch import nn
from transformers import AutoModel, AutoTokenizer

from agent import build_agent, load_agent, save_agent
from config import AgentConfig, EnvConfig, PPOConfig, RewardConfig
from der_env import DEREnv, Episode, OracleJudge, encode_states
from questions import Question
from runtime.errors import AgentError
from text_agent import Agent, TextActor, TextCritic
from training.ppo import build_ppo
from training.vector_env import DERVectorEnv

T_MAX = 3
NUM_EXPERTS = 4
QUESTIONS = [
    Question(f"q{i}", f"what is the sum of {'abcdefgh'[i]}", _reference="yes") for i in range(8)
]
PAIRS = [
    ("what is the capital of france", "paris"),
    ("spell question backward", ""),
    ("the sum of yes and no is", "no and yes and the answer of"),
]


@pytest.fixture
def encoders(bert_encoder: Path, roberta_encoder: Path) -> dict[str, Path]:
    return {"bert": bert_encoder, "roberta": roberta_encoder}


@pytest.fixture
def make_agent(bert_encoder: Path) -> Callable[..., Agent]:
    """`make_agent(**AgentConfig fields)`: same seed, same heads."""

    def make(num_experts: int = NUM_EXPERTS, **fields: object) -> Agent:
        torch.manual_seed(0)
        return build_agent(
            AgentConfig(
                **{"encoder": str(bert_encoder), "max_tokens": 48, "hidden_sizes": (32,), **fields}
            ),
            num_experts,
            T_MAX,
        )

    return make


def scripted_envs(agent: Agent, make_pool: Callable, num_envs: int = 3) -> DERVectorEnv:
    """Expert 0 is always right, the others are right on top of another answer only: routes of one
    to three calls.
    """
    pool = make_pool(
        [lambda q, a: "yes"] + [lambda q, a: "no" if a is None else "yes"] * (agent.num_experts - 1)
    )
    judge, env = (
        OracleJudge(QUESTIONS, 1.0, pool.names),
        EnvConfig(t_max=T_MAX, continue_past_p0=0.5),
    )
    reward = RewardConfig(kind="paper", alpha=0.01)
    return DERVectorEnv(
        [DEREnv(QUESTIONS, pool, judge, agent.observer, env, reward) for _ in range(num_envs)],
        np.random.default_rng(0),
    )


def collect(
    algorithm: PPO, agent: Agent, make_pool: Callable, num_episodes: int = 12
) -> VectorReplayBuffer:
    envs = scripted_envs(agent, make_pool)
    collector = Collector(algorithm, envs, VectorReplayBuffer(300, len(envs)))
    collector.reset()
    with policy_within_training_step(algorithm.policy):
        collector.collect(n_episode=num_episodes)
    return collector.buffer


def update(algorithm: PPO, buffer: ReplayBuffer, batch_size: int, repeats: int) -> object:
    with policy_within_training_step(algorithm.policy):
        return algorithm.update(buffer, batch_size, repeats)


def huggingface_pooled(folder: Path, pairs: list[tuple[str, str]], pooling: str) -> torch.Tensor:
    """The encoder as its own library runs it: own sentence pairs, attention mask, token types, one
    text at a time.
    """
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModel.from_pretrained(folder).eval(),
    )
    out = []
    for question, answer in pairs:
        # A pair even where the answer is empty
        inputs = tokenizer([(question, answer)], return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state[0]  # (T, D)
        out.append({"cls": hidden[0], "last": hidden[-1], "mean": hidden.mean(0)}[pooling])
    return torch.stack(out)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_encoder_sees_what_its_own_library_would_show_it(
    encoders: dict[str, Path], make_agent: Callable, kind: str, pooling: str
) -> None:
    agent = make_agent(encoder=str(encoders[kind]), pooling=pooling, max_tokens=96)
    questions, answers = zip(*PAIRS, strict=True)
    rows = agent.state_tokenizer.encode(questions, answers, [1, 2, 3])
    expected = huggingface_pooled(encoders[kind], PAIRS, pooling)
    with torch.no_grad():
        # Padded in one batch
        assert torch.allclose(agent.encoder.pooled(rows), expected, atol=1e-5)
    features, _ = agent.encoder(rows)
    assert torch.allclose(features[:, : agent.encoder.width], expected, atol=1e-5)
    # One to three calls left
    assert features[:, agent.encoder.width :].tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
    ]


def test_a_bfloat16_encoder_gives_nearly_the_same_features_in_float32(
    make_agent: Callable,
) -> None:
    narrow, wide = make_agent(encoder_dtype="bfloat16"), make_agent()
    assert {p.dtype for p in narrow.encoder.model.parameters()} == {torch.bfloat16}
    questions, answers = zip(*PAIRS, strict=True)
    rows = wide.state_tokenizer.encode(questions, answers, [1, 2, 3])
    with torch.no_grad():
        features, expected = narrow.encoder.pooled(rows), wide.encoder.pooled(rows)
    assert features.dtype == torch.float32
    # bfloat16 keeps 8 bits: an error of 2^-9 of a number of size 1, in each of some ten steps
    assert torch.allclose(features, expected, atol=10 * 2**-9 * float(expected.abs().max()))
    assert not torch.equal(features, expected)


def test_a_trainable_encoder_cannot_be_bfloat16(make_agent: Callable) -> None:
    with pytest.raises(ValidationError, match="encoder_dtype bfloat16 is for a frozen encoder"):
        make_agent(encoder_dtype="bfloat16", freeze_encoder=False)


def test_code_in_an_encoders_folder_is_never_run(bert_encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(bert_encoder, folder)
    (folder / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "planted",
        "auto_map": {"AutoConfig": "planted.C", "AutoModel": "planted.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AgentError, match="cannot be loaded"):
        build_agent(AgentConfig(encoder=str(folder)), 2, 2)
    assert not (tmp_path / "ran").exists()


def test_calls_left_can_be_hidden_from_the_heads(make_agent: Callable) -> None:
    agent = make_agent(sees_calls_left=False)
    rows = agent.state_tokenizer.encode(["what is"] * 2, ["no"] * 2, [1, 3])
    logits, _ = agent.actor(rows)
    assert torch.equal(logits[0], logits[1])
    logits, _ = make_agent(sees_calls_left=True).actor(rows)
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_special_token_text_in_a_question_does_not_change_the_layout(
    encoders: dict[str, Path], make_agent: Callable, kind: str
) -> None:
    agent = make_agent(encoder=str(encoders[kind]))
    tokenizer = AutoTokenizer.from_pretrained(encoders[kind])
    cls, sep, pad = tokenizer.cls_token, tokenizer.sep_token, tokenizer.pad_token
    question, answer = f"is {sep} {pad} {cls} the", f"{sep} yes"
    row = agent.state_tokenizer.encode([question], [answer], [1])[0]
    ids = row[2:].tolist()
    length = sum(i != tokenizer.pad_token_id for i in ids)
    num_between = 1 if kind == "bert" else 2  # </s></s>
    assert ids[length:] == [tokenizer.pad_token_id] * (len(ids) - length)
    assert [
        i for i in ids[:length] if i in tokenizer.all_special_ids and i != tokenizer.unk_token_id
    ] == [tokenizer.cls_token_id] + [tokenizer.sep_token_id] * (num_between + 1)
    # The answer starts behind the first real separator
    assert ids.index(tokenizer.sep_token_id) + num_between == row[1]
    assert (
        tokenizer.decode(ids[row[1] : length - 1]).replace(" ", "")
        == answer.replace(" ", "").lower()
    )


# RoBERTa counts positions from padding_idx + 1 = 2
@pytest.mark.parametrize("kind, positions, fit", [("bert", 20, 20), ("roberta", 20, 18)])
def test_an_encoder_with_fewer_positions_than_max_tokens_reads_what_it_can(
    encoders: dict[str, Path],
    make_agent: Callable,
    tmp_path: Path,
    kind: str,
    positions: int,
    fit: int,
) -> None:
    tokenizer, model = (
        AutoTokenizer.from_pretrained(encoders[kind]),
        AutoModel.from_pretrained(encoders[kind]),
    )
    model.config.max_position_embeddings = positions
    type(model)(model.config).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    agent = make_agent(encoder=str(tmp_path / "short"), max_tokens=64)
    rows = agent.state_tokenizer.encode(["what is the sum of " * 20], ["yes and no " * 20], [1])
    assert rows.shape == (1, 2 + fit) and (rows[:, 2:] != agent.state_tokenizer.pad_id).all()
    assert torch.isfinite(agent.encoder(rows)[0]).all()


def test_a_frozen_encoder_runs_once_per_distinct_text(make_agent: Callable) -> None:
    agent = make_agent()
    # 3 texts, 6 states
    fresh = [Episode(question.sealed(), t_max) for question in QUESTIONS[:3] for t_max in (2, 3)]
    agent.act(fresh)
    assert agent.encoder.num_rows == 3
    agent.act(fresh[::-1])
    agent.row_features(encode_states(fresh, agent.state_tokenizer))
    assert agent.encoder.num_rows == 3
    agent.act([Episode(QUESTIONS[4].sealed(), 3), *fresh])
    assert agent.encoder.num_rows == 4


def test_collection_and_updates_encode_each_text_once_or_each_state_once_per_pass(
    make_agent: Callable, make_pool: Callable
) -> None:
    frozen = make_agent()
    algorithm = build_ppo(frozen, PPOConfig(), 0.95, None)
    buffer = collect(algorithm, frozen, make_pool)
    update(algorithm, buffer, 8, 2)
    # 8 questions, each alone, with "yes" and with "no". Tianshou also asks for the state after a
    # reset; it is one of those.
    assert frozen.encoder.num_rows == len(frozen.encoder.cache) <= 24
    trainable = make_agent(freeze_encoder=False)
    algorithm = build_ppo(trainable, PPOConfig(), 0.95, None)
    buffer = collect(algorithm, trainable, make_pool)
    num_states = len(buffer)
    assert trainable.encoder.num_rows == num_states  # policy and value share the pass
    update(algorithm, buffer, 8, 2)
    # Encoded again in each of 2 repeats, and not before the first
    assert trainable.encoder.num_rows == num_states + 2 * num_states


@pytest.mark.parametrize("freeze", [True, False])
def test_only_a_trainable_encoder_changes_in_an_update(
    make_agent: Callable, make_pool: Callable, freeze: bool
) -> None:
    agent = make_agent(freeze_encoder=freeze)
    algorithm = build_ppo(agent, PPOConfig(lr_encoder=1e-3), 0.95, None)
    buffer = collect(algorithm, agent, make_pool)
    encoder = {name: p.clone() for name, p in agent.encoder.model.named_parameters()}
    head = agent.actor.last.model[0].weight.clone()
    algorithm.train()
    update(algorithm, buffer, 8, 1)
    changed = {
        name
        for name, p in agent.encoder.model.named_parameters()
        if not torch.equal(p, encoder[name])
    }
    assert not torch.equal(agent.actor.last.model[0].weight, head)
    if freeze:
        assert changed == set() and not any(
            p.requires_grad for p in agent.encoder.model.parameters()
        )
    else:
        assert {
            "embeddings.position_embeddings.weight",
            "encoder.layer.0.attention.self.query.weight",
            "encoder.layer.1.output.dense.weight",
        } <= changed
        assert "embeddings.word_embeddings.weight" not in changed


@pytest.mark.parametrize("freeze", [True, False])
def test_heads_and_encoder_learn_at_their_own_rates(make_agent: Callable, freeze: bool) -> None:
    agent = make_agent(freeze_encoder=freeze)
    algorithm = build_ppo(agent, PPOConfig(lr=0.5, lr_encoder=0.25), 0.95, None)
    groups = algorithm.optim._optim.param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for head in (agent.actor.last, agent.critic.last):
        assert {rates[id(p)] for p in head.parameters()} == {0.5}
    trained = [p for p in agent.encoder.model.parameters() if p.requires_grad]
    assert {rates[id(p)] for p in trained} == (set() if freeze else {0.25})
    assert len(rates) == 8 + len(trained)  # two heads of two layers, weight and bias


def test_the_shared_pass_is_not_reused_after_a_gradient_step(make_agent: Callable) -> None:
    agent = make_agent(freeze_encoder=False)
    obs = encode_states(
        [Episode(question.sealed(), T_MAX) for question in QUESTIONS], agent.state_tokenizer
    )
    before, _ = agent.encoder(obs)
    assert agent.encoder(obs)[0] is before  # the second head gets the very same tensor
    optimizer = torch.optim.SGD(
        [p for p in agent.encoder.model.parameters() if p.requires_grad], lr=0.5
    )
    before.square().sum().backward()
    optimizer.step()
    after, _ = agent.encoder(obs)
    with torch.no_grad():
        assert torch.allclose(after[:, : agent.encoder.width], agent.encoder.pooled(obs), atol=1e-6)
    assert not torch.allclose(after, before, atol=1e-3)


@pytest.mark.parametrize("freeze", [True, False])
def test_ppo_learns_from_exactly_what_stock_tianshou_would(
    make_agent: Callable, make_pool: Callable, freeze: bool
) -> None:
    agent = make_agent(freeze_encoder=freeze)
    for layer in agent.critic.last.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.5)  # values far from zero
    ours = build_ppo(agent, PPOConfig(gae_lambda=0.8), 0.9, None)
    stock = PPO(
        policy=ours.policy,
        critic=agent.critic,
        optim=AdamOptimizerFactory(),
        gae_lambda=0.8,
        gamma=0.9,
    )
    buffer = collect(ours, agent, make_pool, num_episodes=20)
    batch, indices = buffer.sample(0)
    expected = stock._preprocess_batch(Batch(batch, copy=True), buffer, indices)
    found = ours._preprocess_batch(batch, buffer, indices)
    assert np.abs(expected.v_s.numpy()).max() > 0.1 and len(indices) > 20
    for name in ("v_s", "returns", "adv", "logp_old"):
        ours_is, stock_is = found[name], torch.as_tensor(np.asarray(expected[name]))
        assert ours_is.shape == (len(indices),) == stock_is.shape, name
        assert torch.allclose(ours_is, stock_is.float(), atol=1e-6), name


def hand_made_buffer(agent: Agent) -> ReplayBuffer:
    """Two episodes of two steps, one straight behind the other, with made-up rewards and values."""
    buffer, rows = (
        ReplayBuffer(16),
        encode_states([Episode(q.sealed(), T_MAX) for q in QUESTIONS], agent.state_tokenizer),
    )
    for t, (reward, value) in enumerate([(1.0, 0.5), (2.0, 0.25), (3.0, 1.0), (4.0, 2.0)]):
        is_end = t % 2 == 1
        policy = Batch(logp=np.log(0.25), value=value)
        buffer.add(
            Batch(
                obs=rows[t],
                act=t % 2,
                rew=reward,
                terminated=is_end,
                truncated=False,
                obs_next=rows[t + 1],
                info={},
                policy=policy,
            )
        )
    return buffer


def test_returns_never_cross_the_end_of_an_episode(make_agent: Callable) -> None:
    agent = make_agent()
    buffer = hand_made_buffer(agent)
    batch, indices = buffer.sample(0)
    found = build_ppo(agent, PPOConfig(gae_lambda=0.8), 0.9, None)._preprocess_batch(
        batch, buffer, indices
    )
    # gamma .9, lambda .8. Last steps: 2 - .25 = 1.75 and 4 - 2 = 2. First steps: 1 + .9 x .25 - .5
    # + .72 x 1.75 = 1.985 and 3 + .9 x 2 - 1 + .72 x 2 = 5.24. A return is advantage + value.
    assert found.adv.tolist() == pytest.approx([1.985, 1.75, 5.24, 2.0])
    assert found.returns.tolist() == pytest.approx([2.485, 2.0, 6.24, 4.0])


def test_half_an_episode_is_refused(make_agent: Callable) -> None:
    agent = make_agent()
    buffer = hand_made_buffer(agent)
    buffer.add(
        Batch(
            obs=buffer.obs[0],
            act=0,
            rew=1.0,
            terminated=False,
            truncated=False,
            obs_next=buffer.obs[1],
            info={},
            policy=Batch(logp=-1.0, value=0.0),
        )
    )
    batch, indices = buffer.sample(0)
    with pytest.raises(RuntimeError, match="whole episodes"):
        build_ppo(agent, PPOConfig(), 0.9, None)._preprocess_batch(batch, buffer, indices)


@pytest.mark.parametrize("freeze", [True, False])
def test_an_untouched_policy_has_ratio_one_in_every_state(
    make_agent: Callable, make_pool: Callable, freeze: bool
) -> None:
    agent = make_agent(freeze_encoder=freeze)
    algorithm = build_ppo(agent, PPOConfig(), 0.95, None)
    algorithm.train()
    buffer = collect(algorithm, agent, make_pool)
    batch, indices = buffer.sample(0)
    assert batch.policy.logp.shape == batch.policy.value.shape == (len(indices),)
    batch = algorithm._preprocess_batch(batch, buffer, indices)
    logp = algorithm.policy(batch).dist.log_prob(batch.act)
    # (N, N) would compare every state with every other
    assert logp.shape == batch.logp_old.shape == (len(indices),)
    assert torch.allclose((logp - batch.logp_old).exp(), torch.ones(len(indices)), atol=1e-5)


def test_the_first_losses_of_an_update_are_those_of_the_formula(make_agent: Callable) -> None:
    agent = make_agent()
    agent.encoder.mean.fill_(0.1)
    buffer = hand_made_buffer(agent)
    obs = buffer.sample(0)[0].obs
    with torch.no_grad():
        values = agent.critic(obs).flatten().numpy()
        log_p = agent.actor(obs)[0].log_softmax(1)  # (4, experts)
    losses = update(build_ppo(agent, PPOConfig(gae_lambda=0.8, lr=1e-9), 0.9, None), buffer, 64, 1)
    # Returns and advantages of the test above; a shape of (N, N) in any of the three would give
    # another number.
    advantages = np.array([1.985, 1.75, 5.24, 2.0])
    normalised = (advantages - advantages.mean()) / advantages.std(ddof=1)
    ratio = log_p[range(4), [0, 1, 0, 1]].exp().numpy() / 0.25
    surrogate = np.minimum(ratio * normalised, ratio.clip(0.8, 1.2) * normalised)
    assert losses.vf_loss.mean == pytest.approx(
        float(np.mean((np.array([2.485, 2.0, 6.24, 4.0]) - values) ** 2)), rel=1e-4
    )
    assert losses.actor_loss.mean == pytest.approx(float(-surrogate.mean()), abs=1e-5)
    assert losses.ent_loss.mean == pytest.approx(
        float(-(log_p.exp() * log_p).sum(1).mean()), rel=1e-4
    )


def test_the_policy_can_be_sure_of_itself(make_agent: Callable) -> None:
    agent = make_agent()
    obs = encode_states([Episode(QUESTIONS[0].sealed(), T_MAX)], agent.state_tokenizer)
    policy = build_ppo(agent, PPOConfig(), 1.0, None).policy
    fresh = policy(Batch(obs=obs, info=Batch())).dist
    assert fresh.entropy().item() == pytest.approx(np.log(4), abs=0.01)  # starts near uniform
    with torch.no_grad():
        [m for m in agent.actor.last.modules() if isinstance(m, nn.Linear)][-1].bias[2] = 6.0
    dist = policy(Batch(obs=obs, info=Batch())).dist
    # With a second softmax no probability of four could exceed e / (e + 3) = 0.475, nor the entropy
    # fall below 1.27.
    assert dist.probs[0, 2].item() > 0.9
    assert dist.entropy().item() < 0.1
    decision = agent.act([Episode(QUESTIONS[0].sealed(), T_MAX)])[0]
    assert decision.expert_idx == 2 and decision.entropy == pytest.approx(
        dist.entropy().item(), abs=1e-5
    )


def test_dropout_is_off_while_the_encoder_is_trained(make_agent: Callable) -> None:
    agent = make_agent(freeze_encoder=False)
    # There is dropout to switch off
    assert any(isinstance(m, nn.Dropout) and m.p > 0 for m in agent.encoder.model.modules())
    build_ppo(agent, PPOConfig(), 0.95, None).train()
    rows = agent.state_tokenizer.encode(["what is the sum"], ["yes"], [1])
    assert torch.equal(agent.encoder(rows.copy())[0], agent.encoder(rows.copy())[0])


@pytest.mark.parametrize(
    "fields",
    [{"freeze_encoder": True}, {"freeze_encoder": False}, {"encoder_dtype": "bfloat16"}],
    ids=["frozen", "trainable", "bfloat16"],
)
def test_a_saved_agent_decides_as_before(
    make_agent: Callable, make_pool: Callable, tmp_path: Path, fields: dict[str, object]
) -> None:
    agent = make_agent(**fields)
    obs = encode_states(
        [Episode(question.sealed(), T_MAX) for question in QUESTIONS], agent.state_tokenizer
    )
    agent.encoder.calibrate(obs)
    algorithm = build_ppo(agent, PPOConfig(lr=0.01, lr_encoder=1e-3), 0.95, None)
    update(algorithm, collect(algorithm, agent, make_pool), 8, 2)
    pool = make_pool([lambda q, a: "yes"] * NUM_EXPERTS)
    save_agent(agent, tmp_path / "agent", pool)
    loaded = load_agent(tmp_path / "agent", pool)
    with torch.no_grad():
        assert torch.equal(loaded.actor(obs.copy())[0], agent.actor(obs.copy())[0])
        assert torch.equal(loaded.critic(obs.copy()), agent.critic(obs.copy()))
    # It had learned something
    assert not torch.allclose(agent.actor(obs)[0], make_agent(**fields).actor(obs)[0], atol=1e-3)
    assert {path.name for path in (tmp_path / "agent").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer",
        "README.md",
    }
    assert [
        expert["name"]
        for expert in json.loads((tmp_path / "agent" / "config.json").read_text())["pool"]
    ] == ["e0", "e1", "e2", "e3"]


def test_a_saved_agent_refuses_an_encoder_of_other_weights(
    bert_encoder: Path, make_agent: Callable, make_pool: Callable, tmp_path: Path
) -> None:
    encoder = shutil.copytree(bert_encoder, tmp_path / "encoder")
    agent, pool = make_agent(encoder=str(encoder)), make_pool([lambda q, a: "yes"] * NUM_EXPERTS)
    save_agent(agent, tmp_path / "agent", pool)
    load_agent(tmp_path / "agent", pool)
    assert load_agent(tmp_path / "agent", pool).encoder_hash() == agent.encoder_hash()
    # As where only a language model was saved: drawn anew, and not used
    del (weights := load_file(encoder / "model.safetensors"))["pooler.dense.weight"]
    save_file(weights, encoder / "model.safetensors", {"format": "pt"})
    load_agent(tmp_path / "agent", pool)
    with torch.no_grad():
        agent.encoder.model.embeddings.LayerNorm.weight.mul_(1.01)
    agent.encoder.model.save_pretrained(encoder)
    with pytest.raises(
        AgentError,
        match=(
            r"agent: agent.encoder '.*encoder' is not the one trained on, its weights are other"
            r" ones"
        ),
    ):
        load_agent(tmp_path / "agent", pool)


def test_a_saved_agent_refuses_another_pool_unless_told_to(
    make_agent: Callable, make_pool: Callable, scripted_expert: Callable, tmp_path: Path
) -> None:
    def pool(names: str, **options: object) -> object:
        return make_pool([scripted_expert(lambda q, a: "yes", name) for name in names], **options)

    folder = tmp_path / "agent"
    save_agent(make_agent(), folder, pool("abcd"))
    load_agent(folder, pool("abcd"))
    with pytest.raises(
        AgentError, match=r"differ from those it was trained on: x\. .*--other_pool(?! true)"
    ):
        load_agent(folder, pool("abxd"))
    with pytest.raises(AgentError, match="b, a"):
        load_agent(folder, pool("bacd"))  # the order numbers the actions
    with pytest.raises(
        AgentError, match="Knowledge Transfer Prompt paper-v1, the pool uses code-v1"
    ):
        load_agent(folder, pool("abcd", ktp="code-v1"))
    with pytest.raises(AgentError, match="4 experts, the pool has 3"):
        load_agent(folder, pool("abc"), other_pool=True)
    assert load_agent(folder, pool("wxyz", ktp="code-v1"), other_pool=True).num_experts == 4
    with pytest.raises(AgentError, match=r"config\.json is missing"):
        load_agent(tmp_path / "nowhere", pool("abcd"))


def test_a_missing_encoder_names_the_command_that_gets_one(make_agent: Callable) -> None:
    with pytest.raises(
        AgentError, match=r"no/such-encoder(.|\n)*scripts/get_small_llms\.py minilm"
    ):
        make_agent(encoder="no/such-encoder")


class PlainFeatures(ModuleWithVectorOutput):
    """Observations are the features."""

    def forward(self, obs: torch.Tensor, state: object = None, info: object = None) -> tuple:
        return obs, state


@pytest.mark.parametrize("hidden_sizes", [(), (8,), (8, 4)])
def test_the_heads_are_tianshous_by_name_start_and_output(hidden_sizes: tuple[int, ...]) -> None:
    features = PlainFeatures(6)
    torch.manual_seed(3)
    actor = DiscreteActor(
        preprocess_net=features, action_shape=4, hidden_sizes=hidden_sizes, softmax_output=False
    )
    critic = DiscreteCritic(preprocess_net=features, hidden_sizes=hidden_sizes)
    torch.manual_seed(3)
    ours = TextActor(features, 4, hidden_sizes), TextCritic(features, 1, hidden_sizes)
    obs = torch.randn(5, 6)
    for own, tianshous in zip(ours, (actor, critic), strict=True):
        expected = tianshous.state_dict()
        assert list(own.state_dict()) == list(expected)
        assert all(torch.equal(value, expected[name]) for name, value in own.state_dict().items())
    assert torch.equal(ours[0](obs)[0], actor(obs)[0])
    assert torch.equal(ours[1](obs), critic(obs))
