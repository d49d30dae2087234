"""The unit of cost by its name, and settings of older versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_results import made_results

from config import RewardConfig
from report.schema import read_results
from reward import Cost, charge
from runtime.command_line import load_config, validate
from runtime.errors import ConfigError
from settings.units import in_units, parse_unit, unit_of

ONE_EXPERT = """
pool:
  experts:
    - {name: a, source: a, params_b: 7, usd_per_million_completion_tokens: 2}
"""
# 7e9 parameters, 500 tokens: 2 x 7e9 x 500 = 7e12 FLOPs
COST = Cost(7.0, 300, 200, 7e12, 1.5, 0.002)


@pytest.mark.parametrize(
    ("unit", "charged"),
    [
        ("billion parameters", 7.0),
        ("million parameters", 7000.0),
        ("trillion parameters", 0.007),
        ("3.5 billion parameters", 2.0),  # 7 / 3.5
        ("TFLOP", 7.0),
        ("PFLOP", 0.007),
        ("tokens", 500.0),
        ("thousand tokens", 0.5),
        ("million tokens", 0.0005),
        ("seconds", 1.5),
        ("milliseconds", 1500.0),
        ("USD", 0.002),
        ("US cent", 0.2),
        ("0.001 USD", 2.0),
    ],
)
def test_c_counts_what_the_unit_names(unit: str, charged: float) -> None:
    assert charge(COST, RewardConfig(cost_unit=unit)) == pytest.approx(charged)
    assert parse_unit(unit_of(*parse_unit(unit))) == pytest.approx(parse_unit(unit))


def test_a_unit_with_a_number_is_said_so() -> None:
    assert in_units("million parameters") == "in million parameters"
    assert in_units("34.4 billion parameters") == "in units of 34.4 billion parameters"


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("cost_unit: bananas", "reward.cost_unit = 'bananas': expected a unit, or a number"),
        ("cost_unit: -1 USD", "reward.cost_unit = '-1 USD': expected a unit"),
        ("cost_unit: nan USD", "expected a unit"),
        ("cost_unit: 1e-300 USD", "at most 1e\\+06 times larger or smaller"),
        ("cost: bananas", "reward.cost = bananas, reward.cost_scale = 1.0: reward.cost_unit names"),
        ("{cost: usd, cost_scale: 0}", "reward.cost = usd, reward.cost_scale = 0: reward.cost_uni"),
        ("{cost: usd, cost_unit: USD}", "give cost_unit alone"),
    ],
)
def test_a_wrong_unit_is_explained(tmp_path: Path, reward: str, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"{ONE_EXPERT}\nreward:\n  {reward}\n")
    with pytest.raises(ConfigError, match=said):
        load_config(path)


@pytest.mark.parametrize(
    ("older", "unit"),
    [
        ("{cost: params}", "billion parameters"),
        ("{cost_scale: 1000}", "million parameters"),
        ("{cost: params, cost_scale: 0.001}", "trillion parameters"),
        ("{cost: usd, cost_scale: 1000}", "0.001 USD"),
        ("{cost: tokens, cost_scale: 1.0}", "thousand tokens"),
        ("{cost: params, cost_scale: 0.029069767441860465}", "34.4 billion parameters"),
    ],
)
def test_the_cost_of_an_older_run_keeps_its_size(tmp_path: Path, older: str, unit: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"{ONE_EXPERT}\nreward: {older}\n")
    assert load_config(path).reward.cost_unit == unit
    assert load_config(path, ["--reward.cost_unit", "USD"]).reward.cost_unit == "USD"


def test_a_setting_that_became_a_constant_is_left_out_where_it_has_that_value(
    tmp_path: Path,
) -> None:
    path = tmp_path / "config.yaml"
    older = "ppo: {vf_coef: 0.5, max_grad_norm: 0.5}\nterminator: {lr: 0.002, weight_decay: 0.01}"
    path.write_text(f"{ONE_EXPERT}\n{older}\n")
    assert "vf_coef" not in load_config(path).model_dump_json()
    path.write_text(f"{ONE_EXPERT}\nppo: {{vf_coef: 0.25}}\n")
    with pytest.raises(ConfigError, match=r"ppo\.vf_coef = 0\.25: .* always 0\.5\. Remove the li"):
        load_config(path)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--reward.cost", "tokens", "reward.cost_unit names what C counts"),
        ("--reward.cost_scale", "10", "reward.cost_unit names what C counts"),
        ("--terminator.lr", "0.1", "no setting any more, it is always 0.002"),
    ],
)
def test_an_option_of_an_older_version_says_what_to_write(
    tmp_path: Path, option: str, value: str, said: str
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(ONE_EXPERT)
    with pytest.raises(ConfigError, match=said):
        load_config(path, [option, value])


def test_results_of_an_older_version_are_read_with_the_units_name(tmp_path: Path) -> None:
    older = made_results() | {"cost_unit": "params", "cost_scale": 1000.0}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(older))
    assert read_results(path)["cost_unit"] == "million parameters"


def test_the_configuration_in_older_results_is_read() -> None:
    expert = {"name": "a", "source": "a", "params_b": 7}
    older = {"pool": {"experts": [expert]}, "reward": {"cost": "tokens"}, "ppo": {"vf_coef": 0.5}}
    assert validate(older).reward.cost_unit == "thousand tokens"
