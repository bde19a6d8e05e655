"""The ruler's answers (tests/support/ruler.py), computed once and kept in the cache folder.

A window of log-probabilities takes numpy some seconds and 50 MB. The cache is keyed by the model's
digest, the text's digest and the ruler's own source, so that a change of any computes it anew.
"""
import dataclasses
import hashlib
import json
import pathlib
import shutil
import sys

import numpy as np

import exactness_text as text

SUPPORT = pathlib.Path(__file__).resolve().parents[1] / "tests" / "support"
SOURCES = ("ruler.py", "reference_tokenizer.py")

sys.path.insert(0, str(SUPPORT))
import ruler  # noqa: E402  (tests/support)


class RulerError(Exception):
    """What the ruler cannot do."""


@dataclasses.dataclass(frozen=True)
class GoldenAnswer:
    """The ruler's greedy answer; margins: differences of the two largest logits."""
    question: str
    prompt: list
    tokens: list
    margins: list


def say(message):
    print(message, file=sys.stderr, flush=True)


def _write(path, write):
    """Whole files only: another run may read at the same time."""
    part = path.with_name(f"{path.name}.part")
    with open(part, "wb") as file:
        write(file)
    part.replace(path)


class CachedRuler:
    def __init__(self, model):
        self._path = pathlib.Path(model)
        with open(model, "rb") as file:
            self.model_digest = hashlib.file_digest(file, "sha256").hexdigest()
        key = hashlib.sha256(text.TEXT_SHA256.encode())
        for name in SOURCES:
            key.update((SUPPORT / name).read_bytes())
        base, prefix = text.cache_folder() / "ruler", self.model_digest[:16]
        self._folder = base / f"{prefix}-{key.hexdigest()[:16]}"
        if not self._folder.exists():
            for old in base.glob(f"{prefix}-*"):
                shutil.rmtree(old, ignore_errors=True)
            self._folder.mkdir(parents=True)
        self._loaded = None

    def _ruler(self):
        if self._loaded is None:
            say("loading the ruler")
            try:
                self._loaded = ruler.Ruler(self._path)
            except (KeyError, ValueError) as error:
                raise RulerError(f"the ruler cannot read {self._path}: {error}") from error
        return self._loaded

    def text_ids(self):
        path = self._folder / "text_ids.json"
        if not path.exists():
            ids = self._ruler().tokenizer.encode(text.ruler_text()).ids
            _write(path, lambda file: file.write(json.dumps(ids).encode()))
        return json.loads(path.read_text())

    def prepare(self, windows):
        """Computes what is not in the cache yet."""
        for number, ids in enumerate(windows):
            self.window(number, ids)
        self.golden()
        self._loaded = None  # half a gigabyte

    def window(self, number, ids, scored_from=text.SCORED_FROM):
        """Log-probabilities [scored positions, vocabulary] of a window of the text."""
        length = "" if len(ids) == text.WINDOW else f"-of-{len(ids)}"
        path = self._folder / f"window{number}{length}.npy"
        if not path.exists():
            say(f"computing the ruler's window {number}")
            exact = ruler.logprobs(self._ruler(), ids)[scored_from:]
            _write(path, lambda file: np.save(file, exact))
        return np.load(path, mmap_mode="r")

    def golden(self):
        """The ruler's answers to its golden prompts."""
        path = self._folder / "golden.json"
        if not path.exists():
            say("computing the ruler's golden answers")
            rows = ruler.golden(self._ruler())
            _write(path, lambda file: file.write(json.dumps(rows).encode()))
        return [GoldenAnswer(row["prompt"], row["prompt_tokens"], row["output_tokens"],
                             row["margins"]) for row in json.loads(path.read_text())]
