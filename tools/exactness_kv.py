"""How much a KV format costs: the engine's distributions at a context of 1024 tokens against the
same engine's with an fp16 cache, and against the ruler's.

Activations have 16 bits everywhere (`exact`): rounding in 8 bits turns any small difference into
one of its own size, which would hide the cache's.
"""
import dataclasses

import exactness_engine as engine
import exactness_metrics as metrics

WINDOW = 1024
SCORED_FROM = 512
DEFAULT_WINDOWS = 4
RULER_WINDOWS = 1  # a window of the ruler takes numpy a minute
FORMATS = ("f16", "int8", "int4", "k8v4")


@dataclasses.dataclass(frozen=True)
class Bound:
    kl_mean: float
    same_top: float
    perplexity: float  # at most this share away


# Against fp16.
BOUNDS = {"int8": Bound(0.0002, 0.98, 0.003), "int4": Bound(0.0015, 0.975, 0.003),
          "k8v4": Bound(0.0015, 0.975, 0.003)}


def parse_formats(value):
    """Formats out of a comma-separated list; fp16 may be called so."""
    formats = ["f16" if name == "fp16" else name for name in value.split(",") if name]
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"no format '{name}', known: {', '.join(FORMATS)}")
    return formats


@dataclasses.dataclass
class Result:
    kernels: str
    against: str  # "f16" or "ruler"
    windows: int
    summary: metrics.Summary


def failures(result, name):
    """What of a result against fp16 lies beyond the bounds."""
    summary, bound = result.summary, BOUNDS[name]
    away = abs(summary.perplexity / summary.perplexity_exact - 1)
    found = []
    if not summary.kl_mean <= bound.kl_mean:
        found.append(f"mean KL {summary.kl_mean:.6f}, bound {bound.kl_mean}")
    if not summary.same_top >= bound.same_top:
        found.append(f"same top token in {summary.same_top:.2%}, bound {bound.same_top:.1%}")
    if not away <= bound.perplexity:
        found.append(f"perplexity {away:.2%} away, bound {bound.perplexity:.1%}")
    return [f"{result.kernels} against f16: {what}" for what in found]


class KvEvaluation:
    def __init__(self, binary, model, ruler, windows, kernels=""):
        """windows: lists of WINDOW token ids."""
        self._binary, self._model, self._ruler = binary, model, ruler
        self._windows, self._kernels = windows, kernels
        self.results, self.failures = [], []

    def _logits(self, name):
        """The program's header and the logits of every window."""
        sequences = [engine.Sequence(tokens, SCORED_FROM, WINDOW) for tokens in self._windows]
        stream = engine.logits(self._binary, self._model,
                               engine.Configuration(self._kernels, "exact", name), sequences)
        return next(stream), stream

    def run(self, formats, report):
        """Compares each format; report is called with every Result."""
        _, stream = self._logits("f16")
        base = [metrics.log_softmax(logits).astype("float32") for logits in stream]
        for name in formats:
            header, stream = self._logits(name)
            against_base, against_ruler = metrics.Comparison(), metrics.Comparison()
            for number, logits in enumerate(stream):
                following = self._windows[number][SCORED_FROM + 1:]
                if name != "f16":
                    against_base.add(base[number], logits, following)
                if number < RULER_WINDOWS:
                    exact = self._ruler.window(number, self._windows[number], SCORED_FROM)
                    against_ruler.add(exact, logits, following)
            if name != "f16":
                result = Result(header["kernels"], "f16", len(self._windows),
                                against_base.summary())
                self.results.append(result)
                self.failures += failures(result, name)
                report(result)
            result = Result(header["kernels"], "ruler", min(RULER_WINDOWS, len(self._windows)),
                            against_ruler.summary())
            self.results.append(result)
            report(result)
