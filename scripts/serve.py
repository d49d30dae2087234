"""Serve a trained agent to any client of OpenAI's chat completions (docs/serving.md).

    python scripts/serve.py --run runs/NAME  # default: the newest run
    python scripts/serve.py --run runs/NAME --port 8080 --explore 1 --log_texts

Settings of the run can be overridden, written --key=value.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from socket import socket
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import watch_signals

if __name__ == "__main__":  # before the imports that take seconds
    watch_signals()

from runtime.command_line import parse, run_command
from serving import GRACE_S

LOCAL = ("127.0.0.1", "localhost", "::1")
CLOSE_S = 1.5  # for replies to be sent after the last request has ended


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, help="folder of the run; default: the newest")
    parser.add_argument("--host", default=LOCAL[0], help="default: this machine only")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument(
        "--budget", type=float, help="mean cost C of a question, instead of --reward.alpha=A"
    )
    parser.add_argument(
        "--key_env", help="environment variable with the key that clients must send"
    )
    parser.add_argument(
        "--explore",
        type=float,
        default=0.0,
        metavar="T",
        help="draw actions from the policy's softmax at this temperature; 0: take the best",
    )
    parser.add_argument("--explore_seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="default: served/routes.jsonl in the run")
    parser.add_argument(
        "--log_texts", action="store_true", help="log questions and answers, to learn from"
    )
    parser.add_argument(
        "--max_characters", type=int, default=100_000, help="of a request's messages"
    )
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for a request")
    parser.add_argument(
        "--grace", type=float, default=GRACE_S, help="seconds for open requests after SIGTERM"
    )
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(lambda arguments: parse(make_parser(), arguments))

try:
    import uvicorn
except ImportError:
    sys.exit("error: the server needs: pip install -r requirements-optional.txt")

from runtime.errors import ConfigError
from runtime.run_folder import newest_run
from runtime.signals import Terminated
from serving.app import build_app
from serving.served_run import Exploration, ServedRun
from serving.service import Service, ServiceOptions


class Server(uvicorn.Server):
    """uvicorn's server, which tells the service when it is to end."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Listen, and then say where."""
        await super().startup(sockets)
        if self.servers:
            host, port, *_ = self.servers[0].sockets[0].getsockname()
            print(f"{self.service.run.name}: serving on http://{host}:{port}/v1", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.drain()
        super().handle_exit(sig, frame)


def read_key(options: argparse.Namespace) -> str | None:
    """The key that clients must send. Raises ConfigError where its variable is not set."""
    if options.key_env is None:
        if options.host not in LOCAL:
            print(
                f"warning: {options.host} may be reached by others, and no key is asked for"
                " (--key_env)",
                file=sys.stderr,
            )
        return None
    key = os.environ.get(options.key_env)
    if not key:
        raise ConfigError(f"--key_env: the environment variable {options.key_env} is not set")
    return key


def main(arguments: list[str]) -> None:
    options, overrides = parse(make_parser(), arguments)
    if options.explore < 0:
        raise ConfigError(f"--explore {options.explore:g}: a temperature is 0 or more")
    run = options.run or newest_run()
    exploration = Exploration(options.explore, options.explore_seed)
    service_options = ServiceOptions(
        key=read_key(options),
        max_characters=options.max_characters,
        timeout_s=options.timeout,
        logs_texts=options.log_texts,
        grace_s=options.grace,
    )
    log_path = options.log or run / "served" / "routes.jsonl"
    service = Service(
        lambda: ServedRun(run, overrides, exploration, options.budget), log_path, service_options
    )
    config = uvicorn.Config(
        build_app(service),
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=round(options.grace + CLOSE_S),
    )
    try:
        Server(config, service).run()
    except Terminated as error:
        raise Terminated("terminated; what was generated is stored") from error
    finally:
        service.close()


if __name__ == "__main__":
    run_command(main)
