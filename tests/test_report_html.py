"""The report's figures and page: what they show is what the results hold, and no text of a question
becomes markup.

The page is opened in a headless Chromium (Debian: apt-get install chromium); without one those
tests are skipped.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_results import NUM_QUESTIONS, TASKS, made_results, made_row

from report import figures
from report.page import html, markdown, write_report_files
from report.route_browser import route_data
from report.tables import policy_table, scaled

EVIL = (
    "</script><script>document.documentElement.dataset.hacked=1</script><img src=x"
    " onerror=document.documentElement.dataset.hacked=1><b>x"
)
CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)


def needs_chromium(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that opens report.html in a browser, which takes seconds."""
    reason = "no Chromium to open report.html with: apt-get install chromium"
    return pytest.mark.slow(pytest.mark.skipif(CHROMIUM is None, reason=reason)(test))


@pytest.fixture
def results() -> dict[str, Any]:
    return made_results()


@pytest.fixture
def bare(results: dict[str, Any]) -> dict[str, Any]:
    """Results without any section that may be missing."""
    rows = [
        {key: value for key, value in row.items() if key not in ("by_task", "by_seed")}
        for row in results["rows"]
    ]
    return {
        key: results[key]
        for key in ("split", "num_questions", "seeds", "reward", "alpha", "cost_unit", "experts")
    } | {"rows": rows}


def made_step(
    expert: str, answer: str, quality: float, p_stop: float | None, **prompt: str
) -> dict[str, Any]:
    cost = {
        "params_b": 0.000167872,
        "prompt_tokens": 10,
        "completion_tokens": 8,
        "flops": 6043392.0,
        "latency_s": 0.0007,
        "usd": None,
    }
    decided = {"value": None, "entropy": None, "p_stop": p_stop}
    return {
        "expert": expert,
        "prompt_hash": "9e96a759d821279f",
        **prompt,
        "answer": answer,
        "quality": quality,
        "cost": cost,
        "charge": 0.16787,
        **decided,
    }


def made_records() -> list[dict[str, Any]]:
    """Routes of DER and of one baseline, two seeds each.

    Question 7 is the evil one; odd questions fail; question 9 takes two calls.
    """
    made = []
    for policy, kind in (("best fixed: large", "static"), ("DER", "der")):
        for seed in (0, 1):
            for idx in range(NUM_QUESTIONS):
                text, quality = EVIL if idx == 7 else f"question number {idx}?", float(idx % 2 == 0)
                steps = [made_step("large", f"answer {idx}", quality, None)]
                if kind == "der":
                    steps = (
                        [
                            made_step(
                                "small",
                                EVIL if idx == 7 else f"guess {idx}",
                                0.0,
                                0.125,
                                prompt=text,
                            )
                        ]
                        if idx in (7, 9)
                        else []
                    )
                    steps.append(
                        made_step(
                            "large",
                            f"answer {idx}",
                            quality,
                            0.875,
                            prompt=f"{text} Another student says: guess {idx}",
                        )
                    )
                question = {
                    "question": f"q-{idx:02}",
                    "text": text,
                    "reference": ["one", "two"] if idx == 3 else f"reference {idx}",
                    "task": TASKS[idx % 2],
                }
                outcome = {"stop_reason": "satisfied", "quality": quality, "return": quality - 0.05}
                outcome["submitted"] = 0 if idx == 7 else len(steps) - 1
                made.append(
                    {
                        "policy": policy,
                        "kind": kind,
                        "seed": seed,
                        "split": "test",
                        **question,
                        **outcome,
                        "steps": steps,
                    }
                )
    return made


def made_curves() -> dict[int, list[dict[str, Any]]]:
    """Two seeds; the second has one update more."""
    logs = {}
    for seed, num_updates in ((0, 4), (1, 5)):
        train = [
            {
                "epoch": 1,
                "update": u,
                "train/return": 0.1 * u + seed,
                "train/quality": 0.1 * u,
                "losses/entropy": 1.6 / u,
            }
            for u in range(1, num_updates + 1)
        ]
        logs[seed] = [*train, {"epoch": 1, "update": 4, "eval/return": 0.5, "eval/quality": 0.6}]
    return logs


@pytest.fixture
def records() -> list[dict[str, Any]]:
    return made_records()


@pytest.fixture
def curves() -> dict[int, list[dict[str, Any]]]:
    return made_curves()


@pytest.mark.slow
def test_every_figure_is_written_as_a_png(tmp_path: Path, results: dict, curves: dict) -> None:
    names = figures.write_figures(tmp_path, figures.draw_figures(results, curves))
    assert names == [
        "quality_cost.png",
        "learning_curves.png",
        "routes.png",
        "experts_by_task.png",
        "calibration.png",
        "transfer.png",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for name in names:
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 8_000


def test_quality_is_drawn_against_cost_with_its_interval(results: dict) -> None:
    axes = figures.quality_cost(results).axes[0]
    family = axes.containers[-1]
    assert family.get_label() == "DER, reward.alpha 0.2, 0.05\n(by rising cost)" and family.lines[
        0
    ].get_xydata().tolist() == [[0.4, 0.8], [0.7, 0.87]]
    # Of the cost
    np.testing.assert_allclose(
        [segment[:, 0] for segment in family.lines[2][0].get_segments()],
        [[0.35, 0.45], [0.65, 0.75]],
    )
    for container, row in zip(axes.containers[:-1], results["rows"], strict=True):
        point, _, (bars,) = container.lines
        assert (container.get_label(), point.get_xdata()[0], point.get_ydata()[0]) == (
            row["policy"],
            row["charge"],
            row["quality"]["mean"],
        )
        np.testing.assert_allclose(
            bars.get_segments()[0][:, 1], [row["quality"]["lo"], row["quality"]["hi"]]
        )
    assert {line.get_label(): line.get_xydata().tolist() for line in axes.lines}[
        "upper hull"
    ] == results["tradeoff"]["hull"]
    assert axes.get_xlabel() == "experts' cost C (in million parameters)"
    assert axes.get_xscale() == "linear"  # 0.2 to 2.6
    results["rows"][-1]["charge"] = 4.1  # more than 20 times 0.2
    assert figures.quality_cost(results).axes[0].get_xscale() == "log"
    results["rows"][2]["charge"] = 0.0  # has no place on a logarithmic axis
    assert figures.quality_cost(results).axes[0].get_xscale() == "linear"


def test_rows_of_one_colour_differ_in_marker(results: dict) -> None:
    found = [
        (figures.KIND_COLOURS[row["kind"]], marker)
        for row, marker in zip(results["rows"], figures.markers(results["rows"]), strict=True)
    ]
    assert len(set(found)) == len(found)


def test_learning_curves_show_each_seed_and_the_mean_of_the_updates_all_seeds_have(
    results: dict, curves: dict
) -> None:
    axes = figures.learning_curves(curves).axes
    assert [a.get_title() for a in axes] == ["return", "quality", "policy entropy (nats)"]
    first, second, mean = (line.get_ydata() for line in axes[0].lines[:3])
    np.testing.assert_allclose(first, [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(second, [1.1, 1.2, 1.3, 1.4, 1.5])
    np.testing.assert_allclose(mean, [0.6, 0.7, 0.8, 0.9])
    # One seed is its own mean
    assert [len(a.lines) for a in figures.learning_curves({0: curves[0]}).axes] == [
        2,
        2,
        1,
    ]


def test_heat_maps_show_the_values_of_the_results(results: dict) -> None:
    axes = figures.experts_by_task(results).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "small",
        "middle",
        "large",
        "DER",
        "all once, oracle's pick",
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "capitals (15)",
        "sums (15)",
    ]
    np.testing.assert_allclose(
        axes.images[0].get_array(), [[0.1, 0.2], [0.2, 0.3], [0.3, 0.4], [0.75, 0.85], [0.8, 0.9]]
    )
    composition, other = figures.transfer(results).axes
    nan = np.nan  # previous minus swapped; rows: first expert
    np.testing.assert_allclose(
        composition.images[0].get_array().filled(nan), [[nan, 0.5], [-0.05, nan]], atol=1e-12
    )
    np.testing.assert_allclose(
        other.images[0].get_array().filled(nan), [[nan, 0.02], [nan, nan]], atol=1e-12
    )
    assert [text.get_text() for text in composition.texts] == ["0.50", "-0.05"]


def test_the_terminators_figure_shows_calibration_counts_and_thresholds(results: dict) -> None:
    stopped = made_row("DER, oracle stop", "oracle", 0.88, 0.5, "der_oracle")
    stopped["by_seed"] = {
        "0": {"quality": 0.9, "return": 0.86},
        "1": {"quality": 0.86, "return": 0.8},
    }
    results["rows"].append(stopped)
    reliability, threshold, counts, cost = figures.calibration(results).axes
    assert reliability.lines[1].get_xydata().tolist() == [[0.1, 0.2], [0.9, 0.95]]
    assert [bar.get_height() for bar in counts.patches] == [30, 70]
    drawn = {line.get_label(): line for line in threshold.lines}
    np.testing.assert_allclose(drawn["quality"].get_ydata(), [0.8, 0.84, 0.88])
    assert drawn["return, oracle stop"].get_ydata()[0] == 0.86  # of seed 0, as the curve
    assert drawn["quality, oracle stop"].get_ydata()[0] == 0.9
    np.testing.assert_allclose(cost.lines[0].get_ydata(), [0.4, 0.8, 1.2])
    assert cost.lines[1].get_xdata() == [0.4, 0.4]  # the threshold in use
    del results["terminator"]["calibration"]
    assert len(figures.calibration(results).axes) == 2


def test_routes_are_stacked_to_one_and_count_the_calls(results: dict) -> None:
    axes = figures.routes(results).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "call 1\n60 routes",
        "call 2\n6 routes",
    ]
    assert [[bar.get_width() for bar in bars] for bars in axes.containers] == [
        [0.6, 0.0],
        [0.0, 0.0],
        [0.4, 1.0],
    ]


def test_an_svg_keeps_names_as_text_and_takes_the_pages_colour(results: dict) -> None:
    results["rows"][1]["policy"] = r"$\frac{<b>$"  # neither mathematics nor markup
    (element,) = re.findall(
        r"<svg.*</svg>",
        figures.svg("quality_cost", figures.draw_figures(results, {})["quality_cost"]),
        flags=re.DOTALL,
    )
    assert ET.fromstring(element).tag.endswith("svg")
    assert r"$\frac{&lt;b&gt;$" in element and "<b>" not in element
    assert "currentColor" in element and figures.INK not in element
    assert "<style" not in element  # a style of one figure would reach the whole page


@pytest.mark.slow
def test_the_same_numbers_give_the_same_svg_and_two_figures_share_no_id(results: dict) -> None:
    def elements() -> list[str]:
        drawn = figures.draw_figures(results, {})
        return [figures.svg(name, figure) for name, figure in drawn.items()]

    made = elements()
    assert made == elements()
    ids = [set(re.findall(r' id="([^"]+)"', element)) for element in made]
    assert sum(map(len, ids)) == len(set.union(*ids))


def test_the_main_table_names_its_units(results: dict) -> None:
    table = policy_table(results)
    cells = {
        column: [row[idx].text for row in table.rows] for idx, column in enumerate(table.columns)
    }
    assert cells["parameters (M)"][:2] == ["0.500", "2.00"]
    assert cells["deciding: FLOPs (G)"][:2] == ["3.70", "0.00"]
    assert cells["ms"][0] == "4.0" and cells["verdict"][:2] == ["better", "not separable"]
    assert [cell.text for cell in scaled("x", [999.7, 3.0])[1]] == ["1.00", "0.00300"] and scaled(
        "x", [999.7]
    )[0] == "x (k)"  # 1000 to three digits
    assert "USD" not in cells  # no expert has a price
    results["rows"][0]["cost"]["usd"] = 0.00025
    table = policy_table(results)
    assert [row[table.columns.index("USD")].text for row in table.rows][:2] == ["0.000250", "-"]


@pytest.mark.slow
def test_the_markdown_report_says_everything_and_links_the_figures(
    tmp_path: Path, results: dict, records: list, curves: dict
) -> None:
    results["rows"][1]["policy"] = "a|b <i>"
    write_report_files(tmp_path, results, records, curves)
    text = (tmp_path / "report.md").read_text()
    assert (
        "- DER beats the best fixed expert." in text
        and "alpha 0.1, cost C in million parameters." in text
    )
    assert (
        "| DER | 0.850 [0.800, 0.900] | 0.800 [0.750, 0.850] | 1.00 | 0.500 | +0.450 [+0.400,"
        " +0.500] | better |" in text
    )
    assert "| a\\|b &lt;i> | 0.400" in text  # no markup, no further column
    own, others = (
        text.index(title)
        for title in (
            "## Paired by question: return\n",
            "## The other policies, paired by question\n",
        )
    )
    assert text.index(
        "| best fixed: large | +0.450 [+0.400, +0.500] | better | &lt; 0.001 | &lt; 0.001 | 14 | 15"
        " | 1 |",
        own,
    ) < text.index("## Paired by question: quality\n")
    # At the end
    assert (
        text.index("## Figures\n")
        < others
        < text.index("| small | best fixed: large | return | +0.450 [+0.400, +0.500] | better |")
    )
    assert (
        text.count("| lost to stopping | - | -0.010 |") == 1
        and "| lost to learning | - | 0.030 |" in text
    )
    assert "| lost to learning, full information with its own stop | - | -0.010 |" in text
    assert "- AUROC among well-formed answers: not defined" in text
    assert "- Intervals: 95% bootstrap over questions." in text
    assert (
        "a mean quality of 0.700 over costs C from 0.2 to 2" in text
        and "the question: 0.310)" in text
    )
    for line in text.splitlines():
        if line.startswith("!["):
            assert (tmp_path / line.split("](")[1].removesuffix(")")).is_file()


def test_what_is_missing_is_left_out(tmp_path: Path, bare: dict) -> None:
    write_report_files(tmp_path, bare, [], {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "quality_cost.png",
        "report.html",
        "report.md",
    ]
    # The markup before the scripts that follow
    page = (tmp_path / "report.html").read_text().split("<script>")[1].split("</script>")[1]
    assert "Policies" in page and "Quality and cost" in page
    for section in (
        "Paired comparisons",
        "What is lost",
        "Quality by task",
        "Where the questions go",
        "Terminator</h2>",
        "Knowledge transfer",
        "Learning curves",
        "Single routes",
    ):
        assert section not in page
    no_sweep = {
        "setting": None,
        "points": [],
        "hull": [[1.0, 1.0]],
        "bounds": None,
        "area": None,
        "area_experts": None,
    }
    empty = {
        **bare,
        "oracle": {},
        "terminator": {},
        "transfer": {"pairs": []},
        "tradeoff": no_sweep,
        "comparisons": [],
    }
    assert set(figures.draw_figures(empty, {})) == {"quality_cost"}
    assert "## Paired" not in markdown(empty, [])


@pytest.mark.slow
def test_a_number_that_json_lacks_is_refused(results: dict, records: list, curves: dict) -> None:
    records[0]["return"] = float("nan")
    with pytest.raises(ValueError, match="JSON compliant"):
        html(results, records, figures.draw_figures(results, curves))


def test_routes_are_stored_once_all_seeds_of_der_and_failures_first(
    results: dict, records: list
) -> None:
    data = route_data(results, records)
    routes = [dict(zip(data["route_fields"], row, strict=True)) for row in data["routes"]]
    kept = [(data["strings"][r["policy"]], r["seed"]) for r in routes]
    assert {pair: kept.count(pair) for pair in kept} == {
        ("DER", 0): 30,
        ("DER", 1): 30,
        ("best fixed: large", 0): 30,
    }
    assert [r["quality"] for r in routes[:60]] == [0.0] * 30 + [1.0] * 30
    assert len(data["questions"]) == NUM_QUESTIONS and len(set(data["strings"])) == len(
        data["strings"]
    )
    twice = next(
        r
        for r in routes
        if len(r["steps"]) == 2 and data["strings"][data["questions"][r["question"]][0]] == "q-09"
    )
    first = dict(zip(data["step_fields"], twice["steps"][0], strict=True))
    assert (data["strings"][first["prompt"]], first["prompt_hash"]) == ("question number 9?", None)
    assert (data["strings"][first["answer"]], first["p_stop"], first["params_b"], first["usd"]) == (
        "guess 9",
        0.125,
        0.0001679,
        None,
    )


def test_prompts_beyond_the_limit_are_left_out_and_counted(
    monkeypatch: pytest.MonkeyPatch, results: dict, records: list
) -> None:
    assert route_data(results, records)["left_out"] == 0
    monkeypatch.setattr("report.route_browser.PROMPT_CHARACTERS", 400)
    data = route_data(results, records)
    steps = [
        dict(zip(data["step_fields"], step, strict=True))
        for route in data["routes"]
        for step in route[-1]
    ]
    assert data["left_out"] > 0
    assert all((step["prompt"] is None) == (step["prompt_hash"] is not None) for step in steps)
    texts = {data["strings"][step["prompt"]] for step in steps if step["prompt"] is not None}
    # The others are questions, which are there anyway
    assert 0 < sum(len(text) for text in texts if "Another student" in text) <= 400
    assert f"{data['left_out']} prompts are left out" in html(results, records, {})


def test_questions_beyond_the_limit_are_left_out_and_counted(
    monkeypatch: pytest.MonkeyPatch, results: dict, records: list
) -> None:
    monkeypatch.setattr("report.route_browser.MAX_QUESTIONS", 20)
    data = route_data(results, records)
    assert len(data["questions"]) == 20 and data["questions_left_out"] == 10
    assert "10 questions are left out" in html(results, records, {})
    assert "questions are left out" not in html(results, records[:20], {})


@pytest.mark.slow
def test_no_text_of_a_question_is_markup(results: dict, records: list, curves: dict) -> None:
    results["rows"][0]["policy"] = records[-1]["policy"] = EVIL
    results["summary"].append(EVIL)
    page = html(results, records, figures.draw_figures(results, curves))
    assert (
        "<script>document.documentElement" not in page and "<img" not in page and "<b>x" not in page
    )


# In a browser


def browse(folder: Path, script: str, *, address: str = "", width: int = 1400) -> Any:
    """What `script` returns, run in a frame that shows report.html at this width. Fails on any
    error the browser logs.

    `script` is the body of an async function of `page` (the report's document) and
    `wait(milliseconds)`.
    """
    driver = folder / "driver.html"
    driver.write_text(
        f"""<iframe style="width: {width}px; height: 900px;
            border: 0"></iframe><pre id="found"></pre><script>
        const frame = document.querySelector("iframe"),
            wait = (ms) => new Promise((done) => setTimeout(done, ms));
        frame.src = "report.html" + {json.dumps(address)};
        frame.onload = async () => {{
            await wait(300);  // figures are drawn, an opened route is filled
            const page = frame.contentDocument;
            const found = await (async () => {{ {script} }})();
            document.getElementById("found").textContent = JSON.stringify(found);
        }};
    </script>"""
    )
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
    ]
    command = [
        str(CHROMIUM),
        *options,
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width + 100},1000",
        "--dump-dom",
        driver.as_uri(),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "CONSOLE" not in ran.stderr, ran.stderr
    found = ran.stdout.partition('<pre id="found">')[2].partition("</pre>")[0]
    assert found, f"the page did not get as far as the script's end:\n{ran.stderr[-2000:]}"
    return json.loads(unescape(found))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report, which takes seconds to draw."""
    folder = tmp_path_factory.mktemp("report")
    write_report_files(folder, made_results(), made_records(), made_curves())
    return folder


@pytest.fixture
def page(written: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(written, tmp_path, dirs_exist_ok=True))


@needs_chromium
def test_the_page_shows_tables_and_figures_without_an_error(page: Path) -> None:
    found = browse(
        page,
        """const drawn = [...page.querySelectorAll(".plot > svg")]
            .filter((svg) => svg.getBoundingClientRect().height > 100)
            .map((svg) => svg.parentNode.id);
        const label = [...page.querySelectorAll("#plot-quality_cost text")]
            .find((text) => text.textContent === "mean quality");
        return { drawn, error: page.getElementById("script-error").hidden,
            rows: [...page.querySelector("table").tBodies[0].rows]
                .map((row) => row.cells[0].textContent),
            text: getComputedStyle(page.body).color, label: getComputedStyle(label).fill,
            bytes: page.documentElement.outerHTML.length,
            hacked: page.documentElement.dataset.hacked || null,
            loaded: frame.contentWindow.performance.getEntriesByType("resource").length };""",
    )
    assert found["drawn"] == [
        "plot-quality_cost",
        "plot-experts_by_task",
        "plot-routes",
        "plot-calibration",
        "plot-transfer",
        "plot-learning_curves",
    ]
    assert found["label"] == found["text"]  # light and dark
    assert found["bytes"] < 400_000
    assert found["rows"] == [
        "DER",
        "best fixed: large",
        "small",
        "middle",
        "large",
        "all once, oracle's pick",
    ]
    assert found["error"] is True and found["hacked"] is None and found["loaded"] == 0


@needs_chromium
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_fits_its_width(page: Path, width: int) -> None:
    found = browse(
        page,
        """const plots = [...page.querySelectorAll(".plot")];
        return { page: page.documentElement.scrollWidth,
            plots: Math.max(...plots.map((plot) => plot.getBoundingClientRect().right)),
            text: page.querySelector(".plot text").getBoundingClientRect().height,
            table: page.querySelector(".scroll").scrollWidth
                > page.querySelector(".scroll").clientWidth };""",
        width=width,
    )
    assert found["page"] <= width and found["plots"] <= width
    assert found["text"] > 9  # pixels: a figure is not shrunk until its text cannot be read
    assert found["table"] == (width == 390)  # a phone scrolls the table, not the page


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [390, 1400])
def test_a_phone_shows_the_main_columns_and_the_others_on_demand(page: Path, width: int) -> None:
    found = browse(
        page,
        """const table = page.querySelector("table"), box = page.querySelector(".every-column");
        const shown = () => [...table.tHead.rows[0].cells]
            .filter((cell) => cell.offsetWidth).map((cell) => cell.textContent);
        const before = shown(), offered = box.offsetWidth > 0;
        box.click();
        return { before, offered, after: shown(),
            folded: [...page.querySelectorAll("details:not([open]) summary")]
                .map((s) => s.textContent),
                 own: [...page.querySelectorAll("h3")].map((h) => h.textContent) };""",
        width=width,
    )
    assert len(found["after"]) == 16 and found["offered"] == (width == 390)
    assert found["before"] == (
        ["policy", "quality", "return", "calls", "cost C", "minus best single", "verdict"]
        if width == 390
        else found["after"]
    )
    assert (
        found["own"] == ["In return", "In quality"]
        and "The other policies with one another (2 comparisons)" in found["folded"]
    )


@needs_chromium
def test_a_click_on_a_heading_sorts_and_another_turns_round(page: Path) -> None:
    found = browse(
        page,
        """const table = page.querySelector("table"),
            heading = [...table.tHead.rows[0].cells].find((cell) => cell.textContent === "quality");
        const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
        heading.firstChild.click();
        const falling = order(), sorted = heading.ariaSort;
        heading.firstChild.click();
        return { falling, sorted, rising: order() };""",
    )
    assert found["sorted"] == "descending"
    assert found["falling"] == [
        "all once, oracle's pick",
        "DER",
        "best fixed: large",
        "large",
        "middle",
        "small",
    ]
    assert found["rising"] == [
        "small",
        "middle",
        "best fixed: large",
        "large",
        "DER",
        "all once, oracle's pick",
    ]


ROUTES = """const shown = () => ({ count: page.getElementById("found").textContent,
    questions: [...page.querySelectorAll(".route .question")].map((q) => q.textContent),
    scores: [...page.querySelectorAll(".route .score")].map((score) => score.textContent) });"""


@needs_chromium
def test_routes_come_fifty_at_a_time_failures_first(page: Path) -> None:
    found = browse(
        page,
        ROUTES
        + "const first = shown(); page.querySelector('.more').click(); return [first, shown(),"
        " page.querySelector('.more').hidden];",
    )
    first, second, is_hidden = found
    assert (
        first["count"] == "60 of 90 routes, 50 shown"
        and len(first["questions"]) == 50
        and first["scores"] == ["0.00"] * 30 + ["1.00"] * 20
    )
    assert second["count"] == "60 of 90 routes, 60 shown" and is_hidden


@needs_chromium
def test_a_link_to_a_search_filters_and_opens_a_single_hit_as_text(page: Path) -> None:
    found = browse(
        page,
        ROUTES
        + """return { ...shown(), open: page.querySelectorAll("details.route[open]").length,
            texts: [...page.querySelectorAll(".route pre")].map((pre) => pre.textContent),
        inside: page.querySelectorAll(".route pre *, .route .question *").length,
            facts: page.querySelector(".step .caption").textContent,
            experts: [...page.querySelectorAll(".step b")].map((b) => b.textContent),
        hacked: page.documentElement.dataset.hacked || null };""",
        address="#search=HACKED+small&seed=1",
    )
    assert (
        found["count"] == "1 of 90 routes, 1 shown"
        and found["questions"] == [EVIL]
        and found["open"] == 1
    )
    assert found["texts"] == [
        EVIL,
        "reference 7",
        EVIL,
        EVIL,
        f"{EVIL} Another student says: guess 7",
        "answer 7",
    ]
    assert found["experts"] == ["1. small (submitted)", "2. large"]
    assert found["inside"] == 0 and found["hacked"] is None  # text, no elements
    assert (
        found["facts"]
        == "quality 0.00 · cost C 0.1679 · 167,900 parameters · 10 + 8 tokens · 0.7 ms · stop"
        " probability 0.125"
    )


@pytest.mark.slow
@needs_chromium
def test_filters_combine_and_are_kept_in_the_address(page: Path) -> None:
    found = browse(
        page,
        ROUTES
        + """const form = page.querySelector(".filters");
        const set = (name, value) => { form[name].value = value;
            form[name].dispatchEvent(new Event("input", { bubbles: true })); };
        const before = shown();
        set("outcome", "right"); set("search", "number 12"); set("policy", "");
        const after = shown(), address = frame.contentWindow.location.hash;
        frame.contentWindow.location.hash = "#task=sums&seed=0";
        await wait(100);
        return { before, after, address, back: shown() };""",
        address="#policy=best+fixed%3A+large",
    )
    assert found["before"]["count"] == "30 of 90 routes, 30 shown"
    # DER with two seeds, the fixed expert with its first
    assert found["after"]["questions"] == ["question number 12?"] * 3
    assert found["address"] == "#search=number+12&policy=&outcome=right"
    assert (
        found["back"]["count"] == "15 of 90 routes, 15 shown"
        and "question number 12?" in found["back"]["questions"]
    )


@pytest.mark.slow
@needs_chromium
def test_a_bare_report_opens_too(tmp_path: Path, bare: dict, results: dict) -> None:
    undefined = copy.deepcopy(results["terminator"]) | {
        "auroc": None,
        "calibration": [],
        "thresholds": [],
    }
    write_report_files(tmp_path, {**bare, "terminator": undefined}, [], {})
    found = browse(
        tmp_path,
        "return { text: page.body.innerText, plots: page.querySelectorAll('.plot').length, error:"
        " page.getElementById('script-error').hidden };",
    )
    assert (
        "not defined (all answers good, or all bad)" in found["text"]
        and found["plots"] == 1
        and found["error"] is True
    )
