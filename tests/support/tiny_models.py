#!/usr/bin/env python3
"""Writes tiny random `llama` models of many shapes, with a byte-level vocabulary, by the gguf package.

    tiny_models.py FOLDER      one GGUF file for every shape in SHAPES

They generate noise, but the same noise everywhere: the engine is held against the ruler with them.
"""
import argparse
import dataclasses
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

CONTEXT_LENGTH = 256
MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("a", "n"), ("Ġ", "a"), ("e", "r"),
          ("o", "n")]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are tiny.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


@dataclasses.dataclass(frozen=True)
class Shape:
    width: int = 64
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    rope_dim: int | None = None  # all of the head
    layers: int = 2
    rope_base: float = 10000.0
    rope_freqs: bool = False
    tied: bool = True
    matrices: Type = Type.F32
    embedding: Type | None = None  # also of the head; None: as the matrices
    key_length: bool = True  # False: left to be width / heads


SHAPES = {
    "width48": Shape(width=48, hidden=80, heads=3, kv_heads=3, key_length=False),
    "width96-gqa3": Shape(width=96, hidden=160, heads=6, kv_heads=2, layers=3),
    "width160-gqa4-head80": Shape(width=160, hidden=352, heads=4, kv_heads=1, head_dim=80),
    "head24": Shape(width=72, hidden=104, heads=3, kv_heads=1, head_dim=24),
    "head64": Shape(width=128, hidden=224, heads=4, kv_heads=2, head_dim=64),
    "wide-heads": Shape(width=64, heads=8, kv_heads=2, head_dim=24),
    "narrow-heads": Shape(width=96, hidden=96, heads=2, kv_heads=1, head_dim=16),
    "part-rope": Shape(heads=4, kv_heads=4, head_dim=16, rope_dim=8),
    "rope-base": Shape(rope_base=500000.0),
    "rope-freqs": Shape(rope_freqs=True, head_dim=64, rope_base=500000.0),
    "untied": Shape(tied=False),
    "one-layer": Shape(layers=1, width=32, hidden=32, heads=2, kv_heads=1),
    "f16": Shape(matrices=Type.F16, tied=False),
    "bf16": Shape(matrices=Type.BF16, tied=False),
    "q8_0": Shape(width=96, hidden=160, matrices=Type.Q8_0, heads=6),
    "q4_0": Shape(width=96, hidden=160, matrices=Type.Q4_0, heads=6),
    "q4_1": Shape(width=160, hidden=96, matrices=Type.Q4_1, heads=10),
    "q5_0": Shape(width=96, hidden=160, matrices=Type.Q5_0, heads=6),
    "q5_1": Shape(width=96, hidden=160, matrices=Type.Q5_1, heads=6, tied=False),
    "q4_k": Shape(width=256, hidden=256, matrices=Type.Q4_K, heads=4, head_dim=64),
    "q5_k": Shape(width=256, hidden=512, matrices=Type.Q5_K, heads=4, head_dim=64),
    "q6_k": Shape(width=256, hidden=256, matrices=Type.Q6_K, heads=4, head_dim=64, tied=False),
    "q4_1-head-q8_0": Shape(width=192, hidden=512, heads=3, kv_heads=1, head_dim=64,
                            matrices=Type.Q4_1, embedding=Type.Q8_0),
}


def byte_alphabet() -> list[str]:
    """GPT-2's character for each byte."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in itself else chr(next(others)) for b in range(256)]


def add_vocabulary(writer: gguf.GGUFWriter) -> int:
    """Byte b is token b, then the merged tokens, then the control tokens. Returns their number."""
    tokens = byte_alphabet() + [left + right for left, right in MERGES]
    types = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(CONTROL)
    tokens += CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{left} {right}" for left, right in MERGES])
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    return len(tokens)


def random_k_blocks(kind: Type, rows: int, inputs: int, deviation: float,
                    rng: np.random.Generator) -> np.ndarray:
    """Valid blocks of a K-quant, which the gguf package reads but does not write: everything random
    but the 16-bit scales, whose size gives the values about the deviation."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows * inputs // elements, size), dtype=np.uint8)

    def scales(offset: int, value: float) -> None:
        random = (value * rng.uniform(0.75, 1.25, len(blocks))).astype("<f2")
        blocks[:, offset:offset + 2] = random[:, None].view(np.uint8)

    # The divisors are the deviations of the random integers that the scales multiply.
    if kind == Type.Q6_K:  # values of 6 bits times scales of 8, both signed
        scales(208, deviation / 1370)
    else:  # values of 4 or 5 bits times scales of 6, less minimums of 6
        quant_scale = deviation / (272 if kind == Type.Q4_K else 543)
        scales(0, quant_scale)
        scales(2, quant_scale * (7.5 if kind == Type.Q4_K else 15.5))
    return blocks.reshape(rows, inputs // elements * size)


def write(path: pathlib.Path, shape: Shape, seed: int = 1) -> None:
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_block_count(shape.layers)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    if shape.key_length:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.rope_dim or shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    vocabulary = add_vocabulary(writer)
    writer.add_vocab_size(vocabulary)

    def matrix(name: str, rows: int, inputs: int, gain: float, kind: Type) -> None:
        deviation = gain / np.sqrt(inputs)
        if kind in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
            data = random_k_blocks(kind, rows, inputs, deviation, rng)
        else:
            data = gguf.quantize(
                rng.normal(0, deviation, (rows, inputs)).astype(np.float32), kind)
        writer.add_tensor(name + ".weight", data, raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(name + ".weight",
                          rng.uniform(0.75, 1.25, shape.width).astype(np.float32))

    width, kind = shape.width, shape.matrices
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrix("token_embd", vocabulary, width, 2, shape.embedding or kind)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        norm(block + "attn_norm")
        matrix(block + "attn_q", queries, width, 1, kind)
        matrix(block + "attn_k", keys, width, 1, kind)
        matrix(block + "attn_v", keys, width, 1, kind)
        # Widths of heads that are no multiple of a block stay as numbers.
        elements = gguf.GGML_QUANT_SIZES[kind][0]
        matrix(block + "attn_output", width, queries, 1, kind if queries % elements == 0 else Type.F32)
        norm(block + "ffn_norm")
        matrix(block + "ffn_gate", shape.hidden, width, 1, kind)
        matrix(block + "ffn_up", shape.hidden, width, 1, kind)
        matrix(block + "ffn_down", width, shape.hidden, 1, kind)
    norm("output_norm")
    if not shape.tied:
        matrix("output", vocabulary, width, 2, shape.embedding or kind)
    if shape.rope_freqs:
        count = (shape.rope_dim or shape.head_dim) // 2
        writer.add_tensor("rope_freqs.weight",
                          np.geomspace(1, 8, count).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape in SHAPES.items():
        write(folder / f"{name}.gguf", shape)


if __name__ == "__main__":
    main()
