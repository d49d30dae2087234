"""How fast DER is, as ratios measured side by side in one run; docs/speed.md explains each.

    python scripts/benchmark.py --out speed.json  # the embedded pool
    # real small LLMs, or the path of a configuration
    python scripts/benchmark.py --pool small_llms --only rollouts
    python scripts/benchmark.py --pool configs/X.yaml --device cuda --pool.max_batch_size 256
    # minutes from recorded answers to a report, from empty caches
    python scripts/benchmark.py --only recorded --questions 5000
    python scripts/benchmark.py --pool configs/lookahead_math.yaml --only recorded
    # counts instead of seconds; a test guards them
    python scripts/benchmark.py --quick

Figures are medians of --repeats measurements in which the ways compared take turns. Stores are cold
unless said, weights are loaded beforehand. Every way of a rollout runs at the torch thread count
that suits it best. Other settings are passed on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.command_line import count, load_config, parse, run_command

POOLS = {"tiny": Path("configs/quickstart.yaml"), "small_llms": Path("configs/small_llms.yaml")}
GROUPS = ("rollouts", "generation", "updates", "store", "scaling", "encoder", "recorded")
STORE_SIZES = (10_000, 100_000, 1_000_000)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--pool", default="tiny", help=f"{', '.join(POOLS)}, or a configuration file"
    )
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups of figures"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=(
            "counts only: generate calls, forward passes, encoder rows, store reads, model loads"
            " per 1,000 transitions"
        ),
    )
    parser.add_argument("--device", help="device of the configuration")
    parser.add_argument("--repeats", type=count, default=5)
    parser.add_argument(
        "--questions", type=count, default=256, help="of a timed rollout, or of the recorded set"
    )
    parser.add_argument("--out", type=Path, help="write the figures as one flat JSON object")
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(lambda arguments: parse(make_parser(), arguments))

from scripts.support import (
    bench_encoder,
    bench_generation,
    bench_recorded,
    bench_rollouts,
    bench_store,
    bench_updates,
)


def measured(
    options: argparse.Namespace, overrides: list[str], folder: Path
) -> Iterator[dict[str, float]]:
    """The figures of each group that was asked for."""
    path = POOLS.get(options.pool, Path(options.pool))
    config = load_config(path, overrides)
    if options.quick:
        yield bench_updates.counts(path, overrides, folder)
        return
    repeats = options.repeats
    if "rollouts" in options.only:
        yield bench_rollouts.measure(config, folder, repeats, options.questions)
    if "generation" in options.only:
        yield bench_generation.measure(config, repeats, options.questions)
    if "updates" in options.only:
        yield bench_updates.measure(path, overrides, folder, repeats)
    if "store" in options.only:
        for size in STORE_SIZES:
            yield bench_store.measure(folder, size)
    if "scaling" in options.only:
        yield bench_rollouts.measure_scaling(config, folder, repeats)
    if "encoder" in options.only:
        yield bench_encoder.measure(config.agent, repeats)
    if "recorded" in options.only:
        if all(expert.kind == "recorded" for expert in config.pool.experts):
            yield bench_recorded.measure(path, overrides, folder)
        else:
            synthetic = bench_recorded.write_synthetic(folder, options.questions)
            yield bench_recorded.measure(synthetic, [], folder)


def main(arguments: list[str]) -> dict[str, float]:
    """Run the command; returns the figures."""
    options, overrides = parse(make_parser(), arguments)
    if options.device:
        overrides += ["--device", options.device]
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for new in measured(options, overrides, Path(folder)):
            figures.update(new)
            for name, value in new.items():
                print(f"{name:44} {value:12.4g}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


if __name__ == "__main__":
    run_command(main)
