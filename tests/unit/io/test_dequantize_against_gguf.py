"""The engine's dequantisation equals the gguf package's bit for bit."""
import pathlib
import subprocess
import sys

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "support"))
import engine_tools

TYPES = [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1,
         Type.Q4_K, Type.Q5_K, Type.Q6_K]
BLOCKS = 4096
# Byte offsets of the 16-bit scales in a block.
SCALES = {Type.F16: [0], Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0],
          Type.Q5_1: [0, 2], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208]}


def random_blocks(kind: Type) -> np.ndarray:
    """Every byte random, but no infinite or NaN scale (those have many encodings)."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(int(kind)).integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    for offset in SCALES.get(kind, []):
        infinite = (raw[:, offset + 1] & 0x7C) == 0x7C
        raw[infinite, offset + 1] &= 0xBF
    if kind == Type.F32:
        raw[(raw[:, 3] & 0x7F) == 0x7F, 3] &= 0xBF
    if kind == Type.BF16:
        raw[(raw[:, 1] & 0x7F) == 0x7F, 1] &= 0xBF
    return raw.reshape(1, -1)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_random_blocks(kind, tmp_path):
    raw = random_blocks(kind)
    path = tmp_path / "blocks.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if kind == Type.F32:
        writer.add_tensor("blocks", raw.view(np.float32))
    elif kind == Type.F16:
        writer.add_tensor("blocks", raw.view(np.float16))
    else:
        writer.add_tensor("blocks", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    result = subprocess.run([engine_tools.tool("cogumi-dequantize"), path], capture_output=True,
                            timeout=60)
    assert result.returncode == 0, result.stderr.decode()
    got = np.frombuffer(result.stdout, np.float32)
    tensor = gguf.GGUFReader(path).tensors[0]
    assert tensor.tensor_type == kind
    wanted = gguf.dequantize(tensor.data, kind).astype(np.float32).reshape(-1)
    assert got.size == BLOCKS * gguf.GGML_QUANT_SIZES[kind][0]
    # Equal numbers and equal signs of zero.
    assert np.array_equal(got.view(np.uint32), wanted.view(np.uint32))


def test_default_model_has_the_gguf_packages_values():
    result = subprocess.run([engine_tools.tool("cogumi-dequantize"), engine_tools.model_path()],
                            capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr.decode()
    got = np.frombuffer(result.stdout, np.uint32)
    start = 0
    for tensor in gguf.GGUFReader(engine_tools.model_path()).tensors:
        wanted = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(-1)
        assert np.array_equal(got[start:start + wanted.size], wanted.view(np.uint32)), tensor.name
        start += wanted.size
    assert start == got.size
