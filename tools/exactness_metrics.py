"""How far one next-token distribution is from another."""
import dataclasses

import numpy as np

_ROWS = 32  # at once, so that float64 temporaries stay small


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@dataclasses.dataclass
class Summary:
    positions: int
    kl_mean: float
    kl_p99: float
    same_top: float  # share of positions with the same most likely token
    perplexity: float
    perplexity_exact: float
    max_difference: float  # of any log-probability


class Comparison:
    """Collects windows of positions. KL is of (exact || other)."""

    def __init__(self):
        self._kl, self._same, self._loss, self._exact_loss, self._largest = [], [], [], [], 0.0

    def add(self, exact, logits, following):
        """exact: log-probabilities [n, vocabulary]; logits: of the other; following: the tokens
        that come next in the text, n or fewer (the last position of a window has none)."""
        for first in range(0, len(exact), _ROWS):
            p = exact[first:first + _ROWS].astype(np.float64)
            q = log_softmax(logits[first:first + _ROWS])
            self._kl.extend((np.exp(p) * (p - q)).sum(-1))
            self._same.extend(p.argmax(-1) == q.argmax(-1))
            self._largest = max(self._largest, float(np.abs(p - q).max()))
            targets = np.asarray(following[first:first + _ROWS], dtype=np.int64)
            rows = np.arange(len(targets))
            self._loss.extend(-q[rows, targets])
            self._exact_loss.extend(-p[rows, targets])

    def summary(self):
        kl = np.asarray(self._kl)
        finite = bool(np.isfinite(kl).all())
        if not finite:  # a NaN anywhere must not look small
            kl = np.full_like(kl, np.inf)
        return Summary(
            positions=len(kl), kl_mean=float(kl.mean()), kl_p99=float(np.quantile(kl, 0.99, method="lower")),
            same_top=float(np.mean(self._same)), perplexity=float(np.exp(np.mean(self._loss))),
            perplexity_exact=float(np.exp(np.mean(self._exact_loss))),
            max_difference=self._largest if finite else float("inf"))


def greedy_mismatches(tokens, margins, logits, least_margin):
    """Positions where the most likely token is another than the ruler's although the ruler's
    margin (difference of its two largest logits) is at least `least_margin`."""
    top = logits.argmax(-1)
    return [i for i, (token, margin) in enumerate(zip(tokens, margins))
            if margin >= least_margin and (top[i] != token or not np.isfinite(logits[i]).all())]
