"""The engine against the float32 ruler on tiny random models of every shape and tensor type."""
import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "support"))
import engine_tools
import ruler
import tiny_models

TOKENS = 70  # more than one page of the KV cache
DECODED = 12  # of them, one a step at the end
# Kernels, activations and cache, and the largest difference of a log-probability: float32 differs in
# the order of sums, 16-bit activations and the 16-bit cache (the default) by their rounding.
CONFIGURATIONS = {
    "exact": ("reference", "f32", "f32", 1e-4),
    "reference": ("reference", "exact", "f32", 2e-3),
    "avx2": ("avx2", "exact", "f32", 2e-3),
    "avx512vnni": ("avx512vnni", "exact", "f32", 2e-3),
    "avx512amx": ("avx512amx", "exact", "f32", 2e-3),
    "reference-f16": ("reference", "exact", "f16", 0.05),
    "avx2-f16": ("avx2", "exact", "f16", 0.05),
    "avx512vnni-f16": ("avx512vnni", "exact", "f16", 0.05),
}


def engine_logprobs(model: pathlib.Path, ids: list[int], kernels: str, activations: str,
                    kv: str) -> np.ndarray:
    return ruler.log_softmax(engine_tools.logits(
        model, ids, DECODED, "--kernels", kernels, "--activations", activations, "--kv", kv,
        "--chunk", 25))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Path, ids and the ruler's log-probabilities of a shape, made once."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def get(name: str):
        if name not in made:
            path = folder / f"{name}.gguf"
            tiny_models.write(path, tiny_models.SHAPES[name])
            model = ruler.Ruler(path)
            ids = np.random.default_rng(7).integers(0, model.vocabulary_size, TOKENS).tolist()
            made[name] = path, ids, ruler.logprobs(model, ids)
        return made[name]

    return get


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("name", tiny_models.SHAPES)
def test_logprobs(models, name, configuration):
    path, ids, exact = models(name)
    *how, bound = CONFIGURATIONS[configuration]
    got = engine_logprobs(path, ids, *how)
    # A model whose predictions are all alike would prove nothing.
    assert exact.std(axis=1).min() > 0.5
    assert np.abs(got - exact).max() <= bound


def test_ruler_feeds_in_pieces_as_at_once(models):
    path, ids, exact = models("width96-gqa3")
    sequence = ruler.Sequence(ruler.Ruler(path))
    pieces = [sequence.feed(ids[:1]), sequence.feed(ids[1:40]), sequence.feed(ids[40:])]
    assert np.allclose(ruler.log_softmax(np.concatenate(pieces)), exact, atol=1e-4)


def test_golden_answers_are_the_rulers():
    golden = json.loads((engine_tools.ROOT / "tests/support/golden.json").read_text())
    assert [row["prompt"] for row in golden] == list(ruler.GOLDEN_PROMPTS)
    model = ruler.Ruler(engine_tools.model_path())
    for row in golden:
        ids = model.tokenizer.encode(ruler.chatml(row["prompt"])).ids
        assert ids == row["prompt_tokens"]
        if len(row["output_tokens"]) > 20:
            continue  # the long ones take minutes on a slow machine
        tokens, margins, first_five = ruler.greedy(
            model, ids, ruler.GOLDEN_TOKENS, {model.meta["tokenizer.ggml.eos_token_id"]})
        assert tokens == row["output_tokens"]
        assert np.allclose(margins, row["margins"], atol=1e-3)
        assert [i for i, _ in first_five] == [i for i, _ in row["top5"]]


def test_tiny_vocabulary_is_tokenised_as_the_library_does(models):
    path, _, _ = models("one-layer")
    text = "The then on an <|im_end|> über\n\n 🙂"
    library = ruler.Ruler(path).tokenizer
    (ids, dropped), = engine_tools.tokenize(path, [text.encode()], "special")
    assert dropped == 0
    assert ids == library.encode(text).ids
