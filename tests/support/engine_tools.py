"""Where the Python tests find the model and the built tools, and how they talk to them."""
import json
import os
import pathlib
import struct
import subprocess

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
UNSUPPORTED = 3  # exit code of cogumi-logits: this processor lacks the kernels


def model_path() -> pathlib.Path:
    """The default model; without it the tests that need it fail."""
    if named := os.environ.get("COGUMI_MODEL"):
        path = pathlib.Path(named)
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        path = pathlib.Path(cache) / "cogumi" / "models" / MODEL_FILE
    assert path.is_file(), f"the default model is missing: {path} (./run fetches it)"
    return path


def _built(folder: str, name: str) -> pathlib.Path:
    path = pathlib.Path(os.environ.get("COGUMI_BUILD", ROOT / "build")) / folder / name
    assert path.is_file(), f"{path} is not built"
    return path


def tool(name: str) -> pathlib.Path:
    """A program that only tests use."""
    return _built("tests", name)


def binary(name: str) -> pathlib.Path:
    return _built("bin", name)


def tokenize(model: pathlib.Path, records: list[bytes], mode: str) -> list[tuple[list[int], int]]:
    """Ids and dropped bytes of every record; `mode` is plain, special or chat."""
    packed = b"".join(struct.pack("<I", len(r)) + r for r in records)
    result = subprocess.run([tool("cogumi-tokenize-lines"), model, mode], input=packed,
                            capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    answers = []
    for line in result.stdout.decode().splitlines():
        ids, dropped = line.split("\t")
        answers.append(([int(i) for i in ids.split()], int(dropped)))
    assert len(answers) == len(records)
    return answers


def logits(model: pathlib.Path, ids: list[int], decoded: int, *arguments: object) -> np.ndarray:
    """Of every position, as float64 [ids, vocabulary]; the last `decoded` are computed one a step.

    Skips the test where this processor lacks the kernels that `arguments` name.
    """
    result = subprocess.run([binary("cogumi-logits"), model, *map(str, arguments)],
                            input=" ".join(map(str, [0, len(ids) - decoded, *ids])).encode() + b"\n",
                            capture_output=True, timeout=300)
    if result.returncode == UNSUPPORTED:
        pytest.skip(result.stderr.decode().strip())
    assert result.returncode == 0, result.stderr.decode()
    header, _, data = result.stdout.partition(b"\n")
    values = np.frombuffer(data, "<f4").reshape(len(ids), json.loads(header)["vocabulary"])
    return values.astype(np.float64)
