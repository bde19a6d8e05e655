#!/usr/bin/env python3
"""How exact the engine is: its next-token distributions against the float32 ruler's.

For each instruction-set tier: mean KL divergence (exact || engine), 99th percentile, share of
positions with the same most likely token and perplexity on the ruler text, once fed as a prompt
and once decoded token by token after half of it; then the ruler's greedy answers to the golden
prompts, which the engine is fed and has to continue alike.
"""
import argparse
import dataclasses
import json
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
try:
    import exactness_engine as engine
    import exactness_kv as kv
    import exactness_metrics as metrics
    import exactness_ruler as ruler_cache
    import exactness_text as text
except ModuleNotFoundError as error:
    sys.exit(f"tools/exactness: the Python package '{error.name}' is missing: run ./test once, "
             "which sets up .venv, or install numpy, gguf and tokenizers")

TIERS = ("avx512amx", "avx512vnni", "avx2", "reference")
PHASES = ("prefill", "decode")
# By activations and phase: mean KL at most, share of the same most likely token at least. 8 bits in
# blocks of 32 are what llama.cpp computes with: it reaches 0.0042 and 96.2 % on the same file. 16
# bits measure below 0.000001, so that their bound also sees small mistakes.
BOUNDS = {
    "mixed": {"prefill": (0.0035, 0.96), "decode": (0.0005, 0.985)},
    "exact": {"prefill": (0.0001, 0.995), "decode": (0.0001, 0.995)},
    "fast": {"prefill": (0.0035, 0.96), "decode": (0.0035, 0.96)},
}
DIFFERENCE_BOUND = 1e-3  # of any log-probability, reference kernels with float32 activations
# Of the ruler, from which on tokens must be equal: for prompts up to SHORT_PROMPT tokens and beyond.
# 8 bits in blocks of 32 move a logit difference by about 0.1.
SHORT_PROMPT = 128
MARGINS_EXACT, MARGINS_DEFAULT = (1e-3, 1e-3), (0.05, 0.2)
REFERENCE_WINDOWS = 1  # the scalar tier is slow


@dataclasses.dataclass
class Result:
    kernels: str
    phase: str
    windows: int
    summary: metrics.Summary


@dataclasses.dataclass
class GoldenResult:
    kernels: str
    margins: tuple  # of prompts up to SHORT_PROMPT tokens and of longer ones
    positions: list  # of both: those with such a margin
    mismatches: list  # text, one each


class Evaluation:
    """Runs the engine over the ruler text and the golden prompts."""

    def __init__(self, binary, model, ruler, windows):
        """windows: lists of token ids; ruler: see CachedRuler."""
        self._binary, self._model, self._ruler = binary, model, ruler
        self._windows = windows
        self.results, self.golden, self.failures, self.skipped = [], [], [], []

    def _window_sequences(self, phase, count):
        decode_from = text.WINDOW if phase == "prefill" else text.SCORED_FROM
        return [engine.Sequence(tokens, text.SCORED_FROM, decode_from)
                for tokens in self._windows[:count]]

    def compare(self, configuration, phase, count):
        """Result of the first `count` windows."""
        count = min(count, len(self._windows))
        comparison = metrics.Comparison()
        stream = engine.logits(self._binary, self._model, configuration,
                               self._window_sequences(phase, count))
        header = next(stream)
        for number, logits in enumerate(stream):
            exact = self._ruler.window(number, self._windows[number])
            comparison.add(exact, logits, self._windows[number][text.SCORED_FROM + 1:])
        result = Result(header["kernels"], phase, count, comparison.summary())
        self.results.append(result)
        return result

    def continue_golden(self, configuration, margins):
        """Feeds the ruler's answers and compares the most likely token at each position."""
        answers = self._ruler.golden() + self._ruler.long_golden()
        sequences = [engine.Sequence(a.prompt + a.tokens[:-1], len(a.prompt) - 1, len(a.prompt))
                     for a in answers]
        stream = engine.logits(self._binary, self._model, configuration, sequences)
        result = GoldenResult(next(stream)["kernels"], margins, [0, 0], [])
        for answer, logits in zip(answers, stream):
            long = len(answer.prompt) > SHORT_PROMPT
            margin = margins[long]
            result.positions[long] += sum(m >= margin for m in answer.margins)
            for i in metrics.greedy_mismatches(answer.tokens, answer.margins, logits, margin):
                result.mismatches.append(
                    f"'{answer.question}', token {i}: {int(logits[i].argmax())} instead of "
                    f"{answer.tokens[i]} (the ruler's margin {answer.margins[i]:.4f})")
        self.golden.append(result)
        return result

    def run_tier(self, tier, activations):
        """The bounds of a tier, as the engine ships it or with other activations."""
        configuration = engine.Configuration(tier, activations)
        count = REFERENCE_WINDOWS if tier == "reference" else len(self._windows)
        try:
            for phase in PHASES:
                result = self.compare(configuration, phase, count)
                print_result(result)
                kl_mean, same_top = BOUNDS[activations][phase]
                if not result.summary.kl_mean <= kl_mean:
                    self.failures.append(f"{result.kernels}, {phase}: mean KL "
                                         f"{result.summary.kl_mean:.6f}, bound {kl_mean}")
                if not result.summary.same_top >= same_top:
                    self.failures.append(f"{result.kernels}, {phase}: same top token in "
                                         f"{result.summary.same_top:.2%}, bound {same_top:.1%}")
            if activations != "fast":  # which decodes in 8 bits too
                self._check_golden(self.continue_golden(configuration, MARGINS_DEFAULT))
        except engine.UnsupportedTier as error:
            self.skipped.append(f"{tier}: {error}")

    def run_float(self):
        """Reference kernels with float32 activations and cache: the ruler's own arithmetic."""
        configuration = engine.Configuration("reference", "f32", "f32")
        result = self.compare(configuration, "prefill", REFERENCE_WINDOWS)
        print_result(result)
        if not result.summary.max_difference <= DIFFERENCE_BOUND:
            self.failures.append(f"{result.kernels}: a log-probability is "
                                 f"{result.summary.max_difference:.2e} off, bound "
                                 f"{DIFFERENCE_BOUND:.0e}")
        self._check_golden(self.continue_golden(configuration, MARGINS_EXACT))

    def _check_golden(self, result):
        total = sum(result.positions)
        print(f"{result.kernels:26} golden answers: {total - len(result.mismatches)} of {total} "
              f"tokens equal where the ruler's margin is >= {result.margins[0]} "
              f"({result.positions[0]}), after more than {SHORT_PROMPT} tokens "
              f">= {result.margins[1]} ({result.positions[1]})", flush=True)
        self.failures += [f"{result.kernels}: {mismatch}" for mismatch in result.mismatches]


def print_result(result):
    print_row(result, result.phase)


def print_row(result, label):
    s = result.summary
    print(f"{result.kernels:26} {label:8} {result.windows:7}  {s.kl_mean:7.1e}  "
          f"{s.kl_p99:7.1e}  {s.same_top:8.2%}  {s.perplexity:8.3f} ({s.perplexity_exact:.3f})  "
          f"{s.max_difference:.1e}", flush=True)


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tools/exactness", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true",
                        help="fail beyond the bounds: in each tier mean KL and share of the same "
                             "top token, " + "; ".join(
                                 f"{name} {phase} <= {kl} and >= {top:.1%}".replace("%", "%%")
                                 for name, phases in BOUNDS.items()
                                 for phase, (kl, top) in phases.items()) +
                             "; float32 log-probabilities within "
                             f"{DIFFERENCE_BOUND:.0e}, golden tokens equal")
    parser.add_argument("--tier", default=",".join(TIERS), help="comma-separated, default all")
    parser.add_argument("--activations", default="mixed,exact,fast", metavar="LIST",
                        help="of the tiers: mixed (the engine's default), exact, fast, comma-"
                             "separated (default all; the reference tier, which is slow, runs the first)")
    parser.add_argument("--windows", type=int, default=text.DEFAULT_WINDOWS,
                        help=f"windows of {text.WINDOW} tokens (default {text.DEFAULT_WINDOWS}; "
                             f"the reference tier takes {REFERENCE_WINDOWS})")
    parser.add_argument("--kv", default="", metavar="FORMATS",
                        help="also compare KV formats, comma-separated: " + ", ".join(kv.FORMATS) +
                             f"; in {kv.DEFAULT_WINDOWS} windows of {kv.WINDOW} tokens, against "
                             "the same engine's fp16 and the ruler")
    parser.add_argument("--no-float", action="store_true",
                        help="leave out the reference kernels with float32 activations")
    parser.add_argument("--model", type=pathlib.Path,
                        default=os.environ.get("COGUMI_MODEL") or text.cache_folder() /
                        "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--logits", type=pathlib.Path, default=ROOT / "build/bin/cogumi-logits",
                        help="the program that computes the engine's logits")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="write the figures here")
    arguments = parser.parse_args()
    arguments.tiers = [tier.strip() for tier in arguments.tier.split(",") if tier.strip()]
    for tier in arguments.tiers:
        if tier not in TIERS:
            parser.error(f"--tier: no tier '{tier}', known: {', '.join(TIERS)}")
    arguments.activations = [a.strip() for a in arguments.activations.split(",") if a.strip()]
    for activations in arguments.activations:
        if activations not in BOUNDS:
            parser.error(f"--activations: no '{activations}', known: {', '.join(BOUNDS)}")
    try:
        arguments.kv = kv.parse_formats(arguments.kv)
    except ValueError as error:
        parser.error(f"--kv: {error}")
    if arguments.windows < 1:
        parser.error(f"--windows {arguments.windows}: at least 1")
    for flag, path in (("--model", arguments.model), ("--logits", arguments.logits)):
        if not pathlib.Path(path).is_file():
            parser.error(f"{flag}: no file {path}")
    return arguments


def run_kv(arguments, ruler, evaluation):
    """The KV formats; what is beyond the bounds goes to the evaluation's failures."""
    windows = text.windows(ruler.text_ids(), kv.DEFAULT_WINDOWS, kv.WINDOW)
    print(f"\nKV formats: exact activations, windows of {kv.WINDOW}, scored from "
          f"{kv.SCORED_FROM}; against f16: the engine's own with that cache\n"
          f"{'kernels':26} {'against':8} windows  mean KL  99 %     same top  "
          "perplexity (there)  largest difference")
    formats = kv.KvEvaluation(arguments.logits, arguments.model, ruler, windows)
    formats.run(arguments.kv, lambda result: print_row(result, result.against))
    evaluation.failures += formats.failures
    return formats.results


def write_json(path, evaluation, ruler, kv_results):
    path.write_text(json.dumps({
        "model_sha256": ruler.model_digest, "text_sha256": text.TEXT_SHA256,
        "bounds": {"by_activations": BOUNDS, "float_difference": DIFFERENCE_BOUND},
        "tiers": [{"kernels": r.kernels, "phase": r.phase, "windows": r.windows,
                   **dataclasses.asdict(r.summary)} for r in evaluation.results],
        "kv": [dataclasses.asdict(r) for r in kv_results],
        "golden": [dataclasses.asdict(g) for g in evaluation.golden],
        "skipped": evaluation.skipped, "failures": evaluation.failures}, indent=1) + "\n")


def main():
    arguments = parse_arguments()
    ruler = ruler_cache.CachedRuler(arguments.model)
    windows = text.windows(ruler.text_ids(), arguments.windows)
    ruler.prepare(windows)
    evaluation = Evaluation(arguments.logits, arguments.model, ruler, windows)
    print(f"model  {pathlib.Path(arguments.model).name}, SHA-256 {ruler.model_digest}\n"
          f"text   {text.STORIES} CoQA stories, SHA-256 {text.TEXT_SHA256}\n"
          f"scored positions {text.SCORED_FROM}-{text.WINDOW - 1} of windows of {text.WINDOW}; "
          "prefill: all in prompt chunks; decode: one token a step from there on\n\n"
          f"{'kernels':26} {'phase':8} windows  mean KL  99 %     same top  "
          "perplexity (exact)  largest difference")
    for activations in arguments.activations:
        for tier in arguments.tiers:
            if tier != "reference" or activations == arguments.activations[0]:
                evaluation.run_tier(tier, activations)
    if not arguments.no_float:
        evaluation.run_float()
    kv_results = run_kv(arguments, ruler, evaluation) if arguments.kv else []
    for line in evaluation.skipped:
        print(f"skipped: {line}")
    if arguments.json:
        write_json(arguments.json, evaluation, ruler, kv_results)
    if not arguments.check:
        return 0
    if not evaluation.results:
        evaluation.failures.append("nothing was measured")
    for line in evaluation.failures:
        print(f"FAILED: {line}")
    print("check: " + ("failed" if evaluation.failures else "passed"))
    return 1 if evaluation.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (engine.EngineError, text.TextError, ruler_cache.RulerError) as error:
        sys.exit(f"tools/exactness: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
