#!/usr/bin/env python3
"""What a `llama` GGUF answers in plain float32: the ruler that the engine is held against.

    ruler.py MODEL golden OUT.json               greedy answers to the golden prompts
    ruler.py MODEL logprobs IDS.json OUT.npy     log-probabilities [n, vocabulary] after each id

Weights are dequantised by the gguf package and everything is computed in float32 by numpy, one
sequence at a time. It shares nothing with the engine; it is slow and simple so that it can be read.

Checked once against another implementation, written apart from it (2026-11-27, SmolLM2-135M-Instruct
Q4_1, windows 0-2 of the ruler text, 512 tokens each): no log-probability differs by more than
1.4e-4, the mean KL divergence is 3e-8 at most, and the most likely token is always the same.
"""
import argparse
import dataclasses
import functools
import json
import pathlib
import sys

import gguf
import numpy as np

import reference_tokenizer

GOLDEN_PROMPTS = (
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "What is 2+2?",
    "List three colors.",
    "¿Cómo estás hoy? 🙂",
)
GOLDEN_TOKENS = 48
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@dataclasses.dataclass(frozen=True)
class Shape:
    """The hyperparameters that the forward pass needs."""
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_dim: int
    rope_base: float
    epsilon: float

    @classmethod
    def read(cls, meta: dict) -> "Shape":
        if meta["general.architecture"] != "llama":
            raise ValueError(f"architecture {meta['general.architecture']} is not llama")
        if meta.get("llama.rope.scaling.type", "none") != "none":
            raise ValueError("RoPE scaling by metadata is not covered")
        get = lambda key, default=None: meta.get("llama." + key, default)
        width, heads = get("embedding_length"), get("attention.head_count")
        head_dim = get("attention.key_length", width // heads)
        return cls(get("block_count"), width, heads, get("attention.head_count_kv", heads), head_dim,
                   get("rope.dimension_count", head_dim), get("rope.freq_base", 10000.0),
                   get("attention.layer_norm_rms_epsilon"))


class Ruler:
    def __init__(self, path):
        reader = gguf.GGUFReader(str(path))
        self.meta = {name: field.contents() for name, field in reader.fields.items()}
        self.shape = Shape.read(self.meta)
        self._tensors = {
            t.name: np.ascontiguousarray(gguf.dequantize(t.data, t.tensor_type), dtype=np.float32)
            for t in reader.tensors}
        half = self.shape.rope_dim // 2
        exponents = np.arange(half, dtype=np.float64) * 2 / self.shape.rope_dim
        self._frequencies = self.shape.rope_base ** -exponents
        if "rope_freqs.weight" in self._tensors:
            self._frequencies = self._frequencies / self._tensors["rope_freqs.weight"].reshape(half)
        self.head = self._tensors.get("output.weight", self._tensors["token_embd.weight"])

    @property
    def vocabulary_size(self) -> int:
        return self.head.shape[0]

    @functools.cached_property
    def tokenizer(self):
        return reference_tokenizer.build(self.meta)

    def tensor(self, name: str) -> np.ndarray:
        return self._tensors[name + ".weight"]

    def merge(self, name: str, difference: np.ndarray) -> None:
        """Adds to a matrix."""
        self._tensors[name + ".weight"] = self.tensor(name) + difference.astype(np.float32)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        mean_square = np.mean(np.square(x), axis=1, keepdims=True, dtype=np.float32)
        return x * (1 / np.sqrt(mean_square + np.float32(self.shape.epsilon))) * self.tensor(name)

    def rotate(self, heads: np.ndarray, first_position: int) -> np.ndarray:
        """RoPE of [heads, n, head_dim]: neighbours (0, 1), (2, 3), ... are a complex number each;
        dimensions from rope_dim on stay."""
        positions = first_position + np.arange(heads.shape[1])
        turns = np.exp(1j * np.outer(positions, self._frequencies)).astype(np.complex64)
        turning = np.ascontiguousarray(heads[..., :self.shape.rope_dim]).view(np.complex64) * turns
        return np.concatenate([turning.view(np.float32), heads[..., self.shape.rope_dim:]], axis=-1)


class Sequence:
    """One text as it grows: keys and values of every layer, [kv_heads, positions, head_dim]."""

    def __init__(self, model: Ruler):
        self.model = model
        empty = np.zeros((model.shape.kv_heads, 0, model.shape.head_dim), np.float32)
        self.keys = [empty] * model.shape.layers
        self.values = [empty] * model.shape.layers

    def feed(self, ids) -> np.ndarray:
        """Logits [n, vocabulary] after each of the n ids."""
        model = self.model
        stream = model.tensor("token_embd")[np.asarray(ids)]
        for layer in range(model.shape.layers):
            block = f"blk.{layer}."
            stream = stream + self._attend(layer, model.norm(stream, block + "attn_norm"))
            normed = model.norm(stream, block + "ffn_norm")
            gate = normed @ model.tensor(block + "ffn_gate").T
            with np.errstate(over="ignore"):
                gate = gate / (1 + np.exp(-gate))
            up = normed @ model.tensor(block + "ffn_up").T
            stream = stream + (gate * up) @ model.tensor(block + "ffn_down").T
        return model.norm(stream, "output_norm") @ model.head.T

    def _attend(self, layer: int, normed: np.ndarray) -> np.ndarray:
        model, shape, block = self.model, self.model.shape, f"blk.{layer}."
        count, past = normed.shape[0], self.keys[layer].shape[1]

        def project(name, heads):
            flat = normed @ model.tensor(block + name).T
            return flat.reshape(count, heads, shape.head_dim).swapaxes(0, 1)

        queries = model.rotate(project("attn_q", shape.heads), past)
        keys = model.rotate(project("attn_k", shape.kv_heads), past)
        self.keys[layer] = np.concatenate([self.keys[layer], keys], axis=1)
        self.values[layer] = np.concatenate(
            [self.values[layer], project("attn_v", shape.kv_heads)], axis=1)

        hidden = np.triu(np.full((count, past + count), -np.inf, np.float32), past + 1)
        outputs = []
        for head in range(shape.heads):
            source = head * shape.kv_heads // shape.heads
            scores = queries[head] @ self.keys[layer][source].T / np.float32(shape.head_dim ** 0.5)
            weights = softmax(scores + hidden)
            outputs.append(weights @ self.values[layer][source])
        return np.concatenate(outputs, axis=1) @ model.tensor(block + "attn_output").T


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def logprobs(model: Ruler, ids) -> np.ndarray:
    """Log-probabilities [len(ids), vocabulary] of the token after each id."""
    return log_softmax(Sequence(model).feed(ids))


def greedy(model: Ruler, ids, count: int, ends=()):
    """Up to `count` most likely tokens after `ids`, the last one an end token if one came; with each
    the margin of the two largest logits, and the five largest logits of the first."""
    sequence = Sequence(model)
    logits = sequence.feed(ids)[-1]
    first_five = [[int(i), float(logits[i])] for i in np.argsort(-logits, kind="stable")[:5]]
    tokens, margins = [], []
    while True:
        runner_up, best = np.partition(logits, -2)[-2:]
        tokens.append(int(np.argmax(logits)))
        margins.append(round(float(best - runner_up), 4))
        if tokens[-1] in ends or len(tokens) == count:
            return tokens, margins, first_five
        logits = sequence.feed(tokens[-1:])[-1]


def chatml(user: str) -> str:
    return (f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
            "<|im_start|>assistant\n")


def golden(model: Ruler) -> list[dict]:
    end = model.meta["tokenizer.ggml.eos_token_id"]
    rows = []
    for prompt in GOLDEN_PROMPTS:
        ids = model.tokenizer.encode(chatml(prompt)).ids
        tokens, margins, first_five = greedy(model, ids, GOLDEN_TOKENS, {end})
        rows.append({"prompt": prompt, "prompt_tokens": ids, "output_tokens": tokens,
                     "output": model.tokenizer.decode(tokens), "margins": margins,
                     "top5": first_five})
    return rows


def write_rows(rows: list[dict], path: pathlib.Path) -> None:
    """One line a field: readable, and a change shows as one line."""
    blocks = []
    for row in rows:
        fields = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
                            for key, value in row.items())
        blocks.append(" {\n" + fields + "\n }")
    path.write_text("[\n" + ",\n".join(blocks) + "\n]\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("golden")
    command.add_argument("out", type=pathlib.Path)
    command = commands.add_parser("logprobs")
    command.add_argument("ids", type=pathlib.Path)
    command.add_argument("out", type=pathlib.Path)
    arguments = parser.parse_args()

    model = Ruler(arguments.model)
    if arguments.command == "golden":
        write_rows(golden(model), arguments.out)
    else:
        np.save(arguments.out, logprobs(model, json.loads(arguments.ids.read_text())))


if __name__ == "__main__":
    sys.exit(main())
