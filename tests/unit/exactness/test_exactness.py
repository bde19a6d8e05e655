"""The engine against the float32 ruler, small: one window, the default tier, the golden answers.

tools/exactness --check does the same for every tier and more text.
"""
import dataclasses
import json
import os
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests" / "support")]
import engine_tools  # noqa: E402
import exactness_engine as engine  # noqa: E402
import exactness_kv as kv  # noqa: E402
import exactness_metrics as metrics  # noqa: E402
import exactness_ruler  # noqa: E402
import exactness_run as exactness  # noqa: E402
import exactness_text as text  # noqa: E402

BINARY = pathlib.Path(os.environ.get("COGUMI_BUILD", ROOT / "build")) / "bin" / "cogumi-logits"


class RecordedAnswers:
    """A ruler whose short golden answers are those of tests/support/golden.json."""

    def __init__(self, window, long=()):
        self.window = window  # (number, ids) -> log-probabilities
        self._long = list(long)

    def long_golden(self):
        return self._long

    def golden(self):
        rows = json.loads((ROOT / "tests" / "support" / "golden.json").read_text())
        return [exactness_ruler.GoldenAnswer(r["prompt"], r["prompt_tokens"], r["output_tokens"],
                                             r["margins"]) for r in rows]


@pytest.fixture(scope="module")
def model():
    assert BINARY.is_file(), f"{BINARY} is not built"
    return engine_tools.model_path()


@pytest.fixture(scope="module")
def ruler(model):
    return exactness_ruler.CachedRuler(model)


@pytest.fixture(scope="module")
def window(ruler):
    return text.windows(ruler.text_ids(), 1)[0]


def run_default(model, ruler, window, activations="mixed"):
    evaluation = exactness.Evaluation(BINARY, model, ruler, [window])
    evaluation.run_tier("", activations)
    assert not evaluation.skipped
    return evaluation


def test_default_kernels_stay_within_the_bounds(model, ruler, window):
    answers = RecordedAnswers(ruler.window, ruler.long_golden())
    evaluation = run_default(model, answers, window)
    assert evaluation.failures == []
    assert [r.phase for r in evaluation.results] == ["prefill", "decode"]
    for result in evaluation.results:
        assert result.summary.positions == text.WINDOW - text.SCORED_FROM
        assert result.summary.same_top >= {"prefill": 0.95, "decode": 0.985}[result.phase]
        assert result.summary.perplexity == pytest.approx(result.summary.perplexity_exact, rel=0.01)
    short, long = evaluation.golden[0].positions
    assert short > 100 and long > 50
    assert all(len(a.prompt) > exactness.SHORT_PROMPT for a in answers.long_golden())


@pytest.mark.parametrize("activations", ["exact", "fast"])
def test_other_activations_stay_within_theirs(model, ruler, window, activations):
    evaluation = run_default(model, RecordedAnswers(ruler.window), window, activations)
    assert evaluation.failures == []
    assert {r.kernels.split("/")[1] for r in evaluation.results} == {activations}


def test_the_bounds_of_exact_see_eight_bits(model, ruler, window, monkeypatch):
    """Control: `fast` under the bounds of `exact`."""
    monkeypatch.setitem(exactness.BOUNDS, "fast", exactness.BOUNDS["exact"])
    evaluation = run_default(model, RecordedAnswers(ruler.window), window, "fast")
    assert sum("mean KL" in failure for failure in evaluation.failures) == 2, evaluation.failures


def test_longer_prompts_have_their_own_margin(model, ruler):
    """Control: a wrong token after a long prompt is named where its margin is clear."""
    story = ruler.long_golden()[0]
    clear = next(i for i, m in enumerate(story.margins) if m >= 1)
    for margin, named in ((0.25, True), (0.15, False)):
        margins = [*story.margins[:clear], margin, *story.margins[clear + 1:]]
        wrong = dataclasses.replace(
            story, tokens=[*story.tokens[:clear], 1234, *story.tokens[clear + 1:]], margins=margins)
        answers = RecordedAnswers(None, [wrong])
        answers.golden = lambda: []
        evaluation = exactness.Evaluation(BINARY, model, answers, [])
        result = evaluation.continue_golden(engine.Configuration(), exactness.MARGINS_DEFAULT)
        assert any(f"token {clear}:" in line for line in result.mismatches) == named


class UniformRuler:
    """Stands in where only the comparison against fp16 counts."""

    def window(self, number, ids, scored_from):
        rows = len(ids) - scored_from
        return np.full((rows, 49152), -np.log(49152), dtype=np.float32)


def test_kv_formats_stay_within_their_bounds(model, ruler):
    windows = text.windows(ruler.text_ids(), 2, kv.WINDOW)
    evaluation = kv.KvEvaluation(BINARY, model, UniformRuler(), windows)
    evaluation.run(["int8", "int4", "k8v4"], lambda result: None)
    assert evaluation.failures == []
    losses = [r.summary.kl_mean for r in evaluation.results if r.against == "f16"]
    assert 0 < losses[0] < losses[2] < losses[1]  # the cheaper, the further away
    assert [r.kernels.rsplit("/", 1)[1] for r in evaluation.results] == [
        name for name in ("kv-int8", "kv-int4", "kv-k8v4") for _ in range(2)]


def test_kv_results_beyond_a_bound_are_failures():
    good = metrics.Summary(512, 0.0001, 0.001, 0.99, 20.0, 20.01, 0.1)
    for change, what in (({"kl_mean": 0.00021}, "mean KL"), ({"kl_mean": float("nan")}, "mean KL"),
                         ({"same_top": 0.97}, "same top"), ({"perplexity": 20.2}, "perplexity")):
        summary = dataclasses.replace(good, **change)
        found = kv.failures(kv.Result("k", "f16", 1, summary), "int8")
        assert len(found) == 1 and what in found[0]
    assert kv.failures(kv.Result("k", "f16", 1, good), "int8") == []
    assert kv.parse_formats("fp16,int8") == ["f16", "int8"]
    with pytest.raises(ValueError, match="no format 'int3'"):
        kv.parse_formats("int3")


def test_another_rope_base_turns_it_red(model, window, monkeypatch):
    """Control: the same check against a ruler that rotates with another base."""
    shape = exactness_ruler.ruler.Shape
    read = shape.read
    monkeypatch.setattr(shape, "read", lambda meta: dataclasses.replace(
        read(meta), rope_base=read(meta).rope_base / 2))
    disturbed = exactness_ruler.ruler.logprobs(exactness_ruler.ruler.Ruler(model), window)
    evaluation = run_default(model, RecordedAnswers(
        lambda number, ids: disturbed[text.SCORED_FROM:]), window)
    assert sum("mean KL" in failure for failure in evaluation.failures) == 2, evaluation.failures


def with_half_the_rope_base(model, copy):
    """A copy of the model file that differs in that number alone."""
    data = bytearray(pathlib.Path(model).read_bytes())
    key = b"llama.rope.freq_base"
    at = data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key)
    kind, base = struct.unpack_from("<If", data, at)
    assert kind == 6, "not a float32"
    struct.pack_into("<f", data, at + 4, base / 2)
    copy.write_bytes(data)
    return copy


def test_an_engine_with_another_rope_base_turns_it_red(model, ruler, window, tmp_path):
    """Control from the other side: the engine rotates with another base than the ruler."""
    disturbed = with_half_the_rope_base(model, tmp_path / "other_base.gguf")
    evaluation = run_default(disturbed, RecordedAnswers(ruler.window), window)
    assert sum("mean KL" in failure for failure in evaluation.failures) == 2, evaluation.failures


def test_other_golden_answers_turn_it_red(model, ruler, window):
    """Control: a token that differs where the margin is clear is named."""
    answers = RecordedAnswers(ruler.window)
    paris = answers.golden()[0]
    wrong = exactness_ruler.GoldenAnswer(paris.question, paris.prompt,
                                         [*paris.tokens[:5], 1234, *paris.tokens[6:]],
                                         paris.margins)
    answers.golden = lambda: [wrong]
    evaluation = exactness.Evaluation(BINARY, model, answers, [window])
    result = evaluation.continue_golden(engine.Configuration(), exactness.MARGINS_DEFAULT)
    assert any("token 5: 7042 instead of 1234" in line for line in result.mismatches)


def rows_of(model, sequences, *arguments):
    process = subprocess.run([BINARY, model, *arguments], capture_output=True, timeout=120,
                             input="\n".join(s.line() for s in sequences).encode())
    assert process.returncode == 0, process.stderr.decode()
    return process.stdout.split(b"\n", 1)[1]


def test_logits_do_not_depend_on_chunks_and_threads(model, window):
    sequences = [engine.Sequence(window[:90], 0, 90), engine.Sequence(window[90:150], 50, 40)]
    expected = rows_of(model, sequences, "--threads", "2", "--chunk", "256")
    assert len(expected) == (90 + 10) * 49152 * 4
    assert rows_of(model, sequences, "--threads", "1", "--chunk", "256") == expected
    assert rows_of(model, sequences, "--threads", "2", "--chunk", "17") == expected
    assert rows_of(model, sequences, "--threads", "2", "--chunk", "1") == expected


@pytest.mark.parametrize("line, message", [
    ("0 1 5 x", "line 1: 'x' is no number"),
    ("0 1", "line 1: fewer than three numbers"),
    ("2 0 5 6", "line 1: logits_from 2 of 2 tokens"),
    ("0 0 49152", "line 1: token 49152, the vocabulary has 49152"),
    ("0 0 -1", "line 1: '-1' is no number"),
    ("0 0 4294967296", "line 1: '4294967296' is no number"),
    ("\n0 0 " + "5 " * 8193, "line 2: 8193 tokens, the context holds 8192"),
    ("", "sequences: none given"),
])
def test_bad_sequences_are_named(model, line, message):
    process = subprocess.run([BINARY, model], input=line.encode(), capture_output=True, timeout=120)
    assert process.returncode == 1
    assert message in process.stderr.decode()
    assert process.stdout == b""


def test_unknown_kernels_are_an_error(model):
    with pytest.raises(engine.EngineError, match="avx1024"):
        list(engine.logits(BINARY, model, engine.Configuration("avx1024"),
                           [engine.Sequence([5], 0, 1)]))


def test_a_tier_that_the_processor_lacks_is_skipped_by_name(tmp_path, window):
    program = tmp_path / "logits"
    program.write_text("#!/bin/sh\necho 'this CPU cannot run it' >&2\nexit 3\n")
    program.chmod(0o755)
    evaluation = exactness.Evaluation(program, "model", RecordedAnswers(None), [window])
    evaluation.run_tier("avx512vnni", "mixed")
    assert evaluation.skipped == ["avx512vnni: this CPU cannot run it"]
    assert evaluation.results == [] and evaluation.failures == []


def test_kl_of_known_distributions():
    exact = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    other = np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]])
    comparison = metrics.Comparison()
    comparison.add(exact, np.log(other) + 7, [0])  # logits, not normalised
    summary = comparison.summary()
    expected = 0.5 * np.log(2) + 0.25 * np.log(0.5)
    assert summary.kl_mean == pytest.approx(expected / 2)
    assert summary.same_top == 0.5
    assert summary.perplexity == pytest.approx(4)
    assert summary.perplexity_exact == pytest.approx(2)
    assert summary.max_difference == pytest.approx(np.log(2))


def test_nan_is_not_small():
    comparison = metrics.Comparison()
    logits = np.zeros((2, 4))
    logits[1, 2] = np.nan
    comparison.add(np.log(np.full((2, 4), 0.25)), logits, [0, 0])
    assert comparison.summary().kl_mean == float("inf")
    assert comparison.summary().max_difference == float("inf")
    assert metrics.greedy_mismatches([0, 0], [1.0, 1.0], logits, 0.05) == [1]
