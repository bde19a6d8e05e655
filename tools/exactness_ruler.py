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
# Prompts beyond the positions that `mixed` computes in 16 bits: characters of stories of the text.
LONG_PROMPTS = ((0, 700), (1, 1000), (2, 1400), (3, 2400))
LONG_QUESTION = "Who is this about, and what happens? Answer in two sentences."

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
        self.long_golden()
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
        """The ruler's answers to its golden prompts, which are short."""
        return self._answers("golden.json", lambda: ruler.golden(self._ruler()))

    def long_golden(self):
        """Its answers to questions about stories, 150 to 600 tokens long."""
        return self._answers("long_golden.json", self._answer_long_prompts)

    def _answer_long_prompts(self):
        model, stories = self._ruler(), text.stories()
        rows = []
        for number, characters in LONG_PROMPTS:
            name, story = stories[number]
            ids = model.tokenizer.encode(
                ruler.chatml(f"{story[:characters]}\n\n{LONG_QUESTION}")).ids
            tokens, margins, _ = ruler.greedy(model, ids, ruler.GOLDEN_TOKENS,
                                              {model.meta["tokenizer.ggml.eos_token_id"]})
            rows.append({"prompt": f"story {name}, {len(ids)} tokens", "prompt_tokens": ids,
                         "output_tokens": tokens, "margins": margins})
        return rows

    def _answers(self, name, compute):
        path = self._folder / name
        if not path.exists():
            say(f"computing the ruler's {path.stem.replace('_', ' ')} answers")
            rows = compute()
            _write(path, lambda file: file.write(json.dumps(rows).encode()))
        return [GoldenAnswer(row["prompt"], row["prompt_tokens"], row["output_tokens"],
                             row["margins"]) for row in json.loads(path.read_text())]
