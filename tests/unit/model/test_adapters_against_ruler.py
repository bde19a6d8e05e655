"""Adapters in the engine against the ruler with the same differences merged into its weights."""
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "support"))
import engine_tools
import peft_adapters
import ruler
import tiny_models

TOKENS = 40
DECODED = 8
# Shape of the base, rank, type of the file's tensors, modules.
CASES = {
    "all-linears": ("width96-gqa3", 8, "F32", peft_adapters.LINEARS),
    "rank-one": ("head64", 1, "F16", peft_adapters.LINEARS),
    "rank-64": ("q4_1-head-q8_0", 64, "BF16", peft_adapters.LINEARS),
    "attention": ("width160-gqa4-head80", 5, "F16", ("q_proj", "k_proj", "v_proj", "o_proj")),
    "queries-only": ("part-rope", 4, "F32", ("q_proj",)),
    "mlp": ("head24", 3, "F32", ("gate_proj", "up_proj", "down_proj")),
    "down-of-quantised": ("q8_0", 16, "BF16", ("v_proj", "down_proj")),
    "one-layer": ("one-layer", 7, "F16", ("k_proj", "up_proj")),
}
# Kernels, the largest difference of a log-probability, and the largest mean KL divergence.
CONFIGURATIONS = {
    "exact": ("reference", "f32", 1e-3, 1e-6),
    "avx2": ("avx2", "exact", 1e-2, 1e-4),
    "avx512vnni": ("avx512vnni", "exact", 1e-2, 1e-4),
    # With adapters in 8 bits, of differences that are half the size of the weights.
    "mixed": ("avx2", "mixed", 0.3, 1e-3),
}
ROUNDED = 1e-2, 1e-5  # the engine holds float32 files in 11 bits, 16-bit ones as they are


def engine_logprobs(model, ids, kernels, activations, adapter) -> np.ndarray:
    return ruler.log_softmax(engine_tools.logits(
        model, ids, DECODED, "--kernels", kernels, "--activations", activations, "--kv", "f32",
        "--chunk", 13, "--adapter", adapter))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("adapters"), {}

    def get(name: str):
        if name not in made:
            shape_name, rank, kind, modules = CASES[name]
            shape = tiny_models.SHAPES[shape_name]
            path = folder / f"{name}.gguf"
            tiny_models.write(path, shape)
            adapter = peft_adapters.random_adapter(
                peft_adapters.BaseShape.of_tiny(shape), rank=rank, modules=modules, kind=kind)
            peft_adapters.write(folder / name, adapter)
            model = ruler.Ruler(path)
            ids = np.random.default_rng(3).integers(0, model.vocabulary_size, TOKENS).tolist()
            plain = ruler.logprobs(model, ids)
            peft_adapters.merge(model, adapter)
            made[name] = path, folder / name, ids, plain, ruler.logprobs(model, ids)
        return made[name]

    return get


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("name", CASES)
def test_equal_to_merged_weights(cases, name, configuration):
    path, adapter, ids, plain, merged = cases(name)
    kernels, activations, bound, divergence = CONFIGURATIONS[configuration]
    if CASES[name][2] == "F32":
        bound, divergence = np.maximum((bound, divergence), ROUNDED)
    # An adapter that changes nothing would prove nothing: every position moves (the first sees only
    # itself, which its query cannot change), and some answers.
    assert np.abs(merged - plain).max(axis=1)[1:].min() > 0.05
    assert (merged.argmax(axis=1) != plain.argmax(axis=1)).any()
    got = engine_logprobs(path, ids, kernels, activations, adapter)
    assert np.abs(got - merged).max() <= bound
    exact = merged.astype(np.float64)
    assert (np.exp(exact) * (exact - got)).sum(axis=1).mean() <= divergence
