import argparse
import json
from pathlib import Path

import pytest
import yaml

from config import Config
from runtime.command_line import dump_config, load_config, parse
from runtime.errors import ConfigError

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
ONE_EXPERT = {"experts": [{"name": "a", "source": "some/model", "params_b": 1.0}]}
LAUGHS = "x0: &a0 [1, 1, 1, 1]\n" + "".join(  # each line four times the one before
    f"x{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 12)
)


@pytest.fixture
def load(tmp_path):
    """Load a YAML text (a pool of one is added where it names none) with command-line arguments on
    top.
    """

    def load(text: str = "", *arguments: str) -> Config:
        path = tmp_path / "config.yaml"
        pool = (
            ""
            if "pool:" in text
            else f"\npool: {yaml.safe_dump(ONE_EXPERT, default_flow_style=True)}"
        )
        path.write_text(text + pool)
        return load_config(path, list(arguments))

    return load


@pytest.mark.parametrize(
    ("text", "place", "nearest"),
    [
        ("reward: {alhpa: 0.1}", "reward.alhpa", "alpha"),
        ("sede: 1", "sede", "seed"),
        ("data: {train: {path: x.jsonl, limt: 3}}", "data.train.limt", "limit"),
        (
            "pool: {experts: [{name: a, source: x, params_b: 1, dtipe: auto}]}",
            "pool.experts.0.dtipe",
            "dtype",
        ),
        (
            (
                "pool: {experts: [{name: a, kind: endpoint, model: x, urls: [http://x], params_b:"
                " 1, timeout: 3}]}"
            ),
            "pool.experts.0.timeout",
            "timeout_s",
        ),
        (
            "pool: {experts: [{name: a, source: x, params_b: 1, decoding: {max_new_token: 3}}]}",
            "pool.experts.0.decoding.max_new_token",
            "max_new_tokens",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(load, text, place, nearest):
    with pytest.raises(ConfigError) as error:
        load(text)
    assert f"{place}: unknown key; did you mean '{nearest}'?" in str(error.value)


def test_an_unknown_key_on_the_command_line_is_an_error_too(load):
    with pytest.raises(
        ConfigError, match=r"ppo\.batchsize: unknown key; did you mean 'batch_size'"
    ):
        load("", "--ppo.batchsize", "64")


def test_a_key_like_no_other_lists_the_known_ones(load):
    with pytest.raises(ConfigError, match="qqqq: unknown key; known here: full"):
        load("eval: {qqqq: 1}")


@pytest.mark.parametrize(
    ("text", "field", "value", "allowed"),
    [
        ("agent: {pooling: max}", "agent.pooling", "'max'", "'cls', 'mean' or 'last'"),
        ("reward: {kind: fianl}", "reward.kind", "'fianl'", "'final' or 'paper'"),
        ("ppo: {batch_size: lots}", "ppo.batch_size", "'lots'", "integer"),
        ("env: {ktp: v9}", "env.ktp", "'v9'", "'paper-v1', 'code-v1', 'all-v1' or 'none-v1'"),
        ("env: {t_max: 0}", "env.t_max", "0", "greater than or equal to 1"),
        ("env: {p0: 1.5}", "env.p0", "1.5", "less than or equal to 1"),
        ("device: gpu", "device", "'gpu'", "cuda"),
        ("reward: {alpha: .nan}", "reward.alpha", "nan", "finite"),
        ("reward: {beta: .inf}", "reward.beta", "inf", "finite"),
        ("train: {epochs: yes}", "train.epochs", "True", "true and false"),
        (
            "agent: {hidden_sizes: [16, 0]}",
            "agent.hidden_sizes.1",
            "0",
            "greater than or equal to 1",
        ),
        (
            "pool: {experts: [{name: a, source: x, params_b: 1, stop: ['']}]}",
            "pool.experts.0.stop.0",
            "''",
            "at least 1 character",
        ),
    ],
)
def test_a_wrong_value_names_field_value_and_what_is_allowed(load, text, field, value, allowed):
    with pytest.raises(ConfigError) as error:
        load(text)
    assert f"{field} = {value}: " in str(error.value)
    assert allowed in str(error.value)


def test_every_problem_of_a_file_is_reported_at_once(load):
    with pytest.raises(ConfigError, match="2 problem") as error:
        load("seed: -1\nreward: {alhpa: 0.1}")
    assert "seed = -1" in str(error.value)
    assert "reward.alhpa" in str(error.value)


def test_an_exponent_that_yaml_reads_as_text_becomes_a_number(load):
    assert yaml.safe_load("3e-4") == "3e-4"  # the trap: YAML 1.1 wants 3.0e-4
    assert load("ppo: {lr: 3e-4}").ppo.lr == 0.0003
    assert load("", "--ppo.lr", "3e-4").ppo.lr == 0.0003


def test_yaml_no_switches_a_flag_off_and_is_refused_where_text_is_wanted(load):
    assert load("agent: {sees_calls_left: no}").agent.sees_calls_left is False
    assert load("", "--agent.sees_calls_left=no").agent.sees_calls_left is False
    with pytest.raises(ConfigError, match=r"agent\.encoder = False"):
        load("agent: {encoder: no}")


def test_what_is_set_twice_is_refused_and_options_of_one_section_add_up(load):
    with pytest.raises(
        ConfigError, match=r"(?s)config.yaml: not valid YAML: 'alpha' is set twice.*line 3"
    ):
        load("reward:\n  alpha: 0.1\n  alpha: 0.9")
    anchored = (  # keys over merged ones
        "data: {train: {path: a}, validation: &v {<<: &b {path: b, limit: 3}, limit: 4}, test: {<<:"
        " *v, path: c}}"
    )
    assert load(anchored).data.test.limit == 4
    reward = load("", "--reward.alpha", "0.2", "--reward", "{beta: 2}").reward
    assert (reward.alpha, reward.beta) == (0.2, 2.0)


def test_a_split_of_its_own_does_not_stand_beside_embedded_ones(load):
    with pytest.raises(
        ConfigError,
        match=(
            r"data\.validation\.path, data\.test\.path: missing; beside data\.train\.path, the"
            r" embedded"
        ),
    ):
        load("data: {train: {path: x.jsonl}}")
    assert (
        load(
            "data: {train: {path: x.jsonl}}",
            "--data.validation.path",
            "y.jsonl",
            "--data.test.path",
            "z.jsonl",
        ).data.test.path
        == "z.jsonl"
    )
    # Another test for the same agent
    assert load("", "--data.test.path", "z.jsonl").data.train.path == Config().data.train.path
    with pytest.raises(ConfigError, match=r"data\.test\.fields\.refrence.*'reference'"):
        load("data: {test: {fields: {refrence: answer}}}")


def test_a_system_prompt_that_no_prompt_would_hold_is_refused(load):
    with pytest.raises(
        ConfigError, match=r"\n  pool\.experts\.0 \(a\): system_prompt is for prompt_format chat"
    ):
        load(
            "pool: {experts: [{name: a, source: x, params_b: 1, prompt_format: plain,"
            " system_prompt: Be short.}]}"
        )


def test_command_line_beats_yaml_beats_defaults(load):
    config = load(
        "reward: {alpha: 0.2, beta: 4}\nseed: 1", "--reward.alpha", "0.3", "--env.t_max=2"
    )
    assert (config.reward.alpha, config.reward.beta, config.seed, config.env.t_max) == (
        0.3,
        4.0,
        1,
        2,
    )
    assert config.reward.gamma_bonus == Config().reward.gamma_bonus


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alpha", "0.1"], "unexpected argument 'alpha'"),
        (["--seed"], "--seed needs a value"),
        (["--seed", "--name", "x"], "--seed needs a value"),
        (["--name", "[a"], "name"),
        (["--reward", "paper", "--reward.alpha", "0.1"], "reward"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_an_error_a_user_can_mend(load, arguments, message):
    with pytest.raises(ConfigError, match=message):
        load("", *arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("reward: {alpha: 0.1", "not valid YAML"),
        ("- a\n- b", "expected keys and values, found list"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, content, message):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf"broken\.yaml: {message}"):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("seed: !!int 'x'", "seed: 'x' is no int"),
        ("seed: !!python/name:os.abort", "tag"),
        ("reward: {alpha: !!binary aGk=}", "reward.alpha: the tag .*binary is not read"),
        ("name: 2026-02-30", "name: '2026-02-30' is read as a date; put it in quotes"),
        ("name: 2026-02-28", "name: '2026-02-28' is read as a date"),
        ("seed: " + "9" * 5000, "seed: '99999.* is no int"),
        ("seed: 0x" + "f" * 5000, "seed: '0xffff.* is too large"),
        ("seed: " + "[" * 101 + "]" * 101, "seed.0.0.*nested more than 100 levels deep"),
        ("[" * 20_000, "nested more than 100 levels deep"),
        ("? [a]\n: b", "a key is no text"),
        ("seed: &a [*a]", "aliases repeat more than 100000 values"),
        (LAUGHS, "aliases repeat more than 100000 values"),
        ('name: "a\\0b"', r"name = 'a\\x00b': holds a character that no path or text may have"),
        ('name: "\\ud800"', "name = .*: holds a character that no path or text may have"),
        ("1: x", "1 = .*Keys should be strings"),
        ("pool: {1: x}", "pool.1 = .*Keys should be strings"),
        ("pool: {experts: {0: x}}", "pool.experts = {0: 'x'}"),
        ("seed: 4294967296", "seed = 4294967296: .*less than 4294967296"),
        ("threads: 100000", "threads = 100000: this machine has"),
        ("reward: {alpha: 1e308}", "reward.alpha = '?1e.?308'?: .*less than"),
        ("reward: {cost_unit: 1e-300 USD}", "reward.cost_unit = .*: at most"),
        ("reward: {beta: -1e300}", "reward.beta = .*: .*greater than"),
        ("ppo: {lr: 1e39}", "ppo.lr = .*: .*less than"),
        ("ppo: {lr_encoder: .inf}", "ppo.lr_encoder = inf"),
    ],
)
def test_a_value_that_no_setting_could_take_is_refused_by_its_field(tmp_path, content, said):
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf"(?s)odd\.yaml: .*{said}"):
        load_config(path)


def test_the_command_line_is_read_as_strictly_as_a_file(load):
    with pytest.raises(ConfigError, match=r"--seed !!int x: .*is no int"):
        load("", "--seed", "!!int x")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/tmp/x",
        "a\\b",
        " a",
        "a\n",
        "x" * 101,
        "日" * 99,
        "full_information",
        "answers.sqlite",
    ],
)
def test_a_name_that_is_no_folder_under_runs_is_refused(load, name):
    with pytest.raises(ConfigError, match="--name = "):
        load("", f"--name={json.dumps(name)}")


@pytest.mark.parametrize("name", ["x" * 100, "toy-agent.hidden_sizes=[16, 16]-s0", "日本語"])
def test_a_name_may_be_any_one_part_of_a_path(load, name):
    assert load("", f"--name={json.dumps(name)}").name == name


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such configuration file"):
        load_config(tmp_path / "nowhere.yaml")


def test_an_empty_pool_is_refused(load):
    with pytest.raises(ConfigError, match="the pool is empty"):
        load("pool: {experts: []}")
    with pytest.raises(ConfigError, match="the pool is empty"):
        load("pool: {max_batch_size: 4}")  # none given is as empty


def test_two_experts_of_one_name_are_refused(load):
    with pytest.raises(ConfigError, match="two experts share a name: twin"):
        load(
            "pool: {experts: [{name: twin, source: x, params_b: 1}, {name: b, source: x, params_b:"
            " 1}, {name: twin, source: y, params_b: 2}]}"
        )


def test_charging_usd_needs_a_price_for_every_expert(load):
    priced = "{name: paid, source: x, params_b: 1, usd_per_million_completion_tokens: 2}"
    with pytest.raises(ConfigError, match=r"these experts have no price: free$"):
        load(
            f"reward: {{cost_unit: USD}}\npool: {{experts: [{priced},"
            " {name: free, source: y, params_b: 1}]}"
        )
    assert load(f"reward: {{cost_unit: USD}}\npool: {{experts: [{priced}]}}").reward.cost == "usd"


def test_few_shot_needs_its_file_and_a_file_needs_few_shot(load):
    for expert in ("prompt_format: few_shot", "few_shot: x.jsonl"):
        with pytest.raises(ConfigError, match="belong together"):
            load(f"pool: {{experts: [{{name: a, source: x, params_b: 1, {expert}}}]}}")


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        ("prompt_format: template", "belong together"),
        ("prompt_template: 'Q: {prompt}'", "belong together"),
        ("prompt_format: template, prompt_template: 'Q: {question}'", r"needs \{prompt\} once"),
        ("prompt_format: template, prompt_template: '{prompt} {prompt}'", r"needs \{prompt\} once"),
    ],
)
def test_a_template_needs_its_text_and_one_place_for_the_prompt(load, expert, message):
    with pytest.raises(ConfigError, match=message):
        load(f"pool: {{experts: [{{name: a, source: x, params_b: 1, {expert}}}]}}")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_survives_being_dumped(path, tmp_path):
    config = load_config(path, ["--seed", "3"])
    dumped = tmp_path / "config.yaml"
    dumped.write_text(dump_config(config), encoding="utf-8")
    assert config.seed == 3
    assert load_config(dumped) == config


def test_a_dump_keeps_awkward_values(load, tmp_path):
    expert = {
        "name": "ä: no",
        "source": "x",
        "params_b": 1.67872e-04,
        "stop": ["\n", "no"],
        "system_prompt": "Say: {yes}\n# no",
    }
    expert |= {"device_map": "auto", "max_memory": {0: "20GiB", "cpu": "60GiB"}}
    config = load(yaml.safe_dump({"pool": {"experts": [expert]}, "ppo": {"lr": 1e-05}}))
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump_config(config), encoding="utf-8")
    again = load_config(dumped)
    assert again == config
    assert again.pool.experts[0].stop == ("\n", "no") and again.pool.experts[0].max_memory == {
        0: "20GiB",
        "cpu": "60GiB",
    }
    assert again.ppo.lr == 0.00001


def test_a_configuration_cannot_be_changed_once_made(load):
    with pytest.raises(ValueError, match="frozen"):
        load().reward.alpha = 1.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dry-run"], "--dry-run: no such option; did you mean --dry_run?"),
        (["--configs", "x.yaml"], "--configs: no such option; did you mean --config?"),
        (
            ["configs/quickstart.yaml"],
            (
                "unexpected argument 'configs/quickstart.yaml': a configuration is given as"
                " --config configs/quickstart.yaml"
            ),
        ),
        (["x"], "unexpected argument 'x': options look like --reward.alpha 0.1"),
        (["--alpha", "0.2"], "--alpha: unknown key; did you mean 'reward.alpha'?"),
        (
            ["--train.lr", "0.2"],
            "--train.lr: unknown key; did you mean 'ppo.lr'?",
        ),
        (
            ["--pool.experts.0.name", "x"],
            (
                "--pool.experts.0.name: one element of a list cannot be set; give the whole list,"
                " as in YAML: --pool.experts '[...]'"
            ),
        ),
        (
            ["--reward", "0.2"],
            "--reward = 0.2: a section of settings; set --reward.kind, --reward.alpha, ",
        ),
        (["--seed", "-3"], "--seed = -3: "),
    ],
)
def test_a_mistake_on_the_command_line_is_said_to_be_there(load, tmp_path, arguments, said):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--dry_run", action="store_true")
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump({"pool": ONE_EXPERT}))
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "whole.yaml", parse(parser, arguments)[1])
    assert said in str(error.value)


def test_a_mistake_in_the_file_is_not_blamed_on_the_command_line(load):
    with pytest.raises(ConfigError) as error:
        load("reward: {alhpa: 0.1}", "--seed", "-3", "--reward.beta", "0.5")
    assert "\n  reward.alhpa: unknown key" in str(error.value) and "\n  --seed = -3: " in str(
        error.value
    )
    assert "config.yaml and the command line: 2 problem(s)" in str(error.value)
