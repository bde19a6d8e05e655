"""The verdicts of bench/speculation and bench/modifiers: a value just beyond each bound is named."""
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench"))
import modifiers  # noqa: E402
import speculation  # noqa: E402


def row(**fields):
    return {"task": "quote", "drafter": "ngram", "batch": 1, "temperature": 0.0, "different": 0,
            "speed_up": 1.3, "drafts": 10, "drafted": 40, "accepted": 40, "tokens": [1000], **fields}


@pytest.mark.parametrize("fields", [
    {}, {"batch": 8, "speed_up": 0.97}, {"task": "free", "speed_up": 0.97},
    {"temperature": 1.0, "speed_up": 0.97}, {"drafter": "self", "speed_up": 0.97},
    {"drafter": "ten", "accepted": 3, "speed_up": 0.97},
    {"drafter": "self", "temperature": 1.0, "accepted": 39},
    {"drafter": "random", "drafts": 20, "accepted": 0},
])
def test_rows_at_their_bounds_pass(fields):
    assert speculation.failures_of(row(**fields)) == []


@pytest.mark.parametrize("fields, message", [
    ({"speed_up": 1.299}, "1.299, bound 1.3"),
    ({"task": "edit", "speed_up": 1.29}, "bound 1.3"),
    ({"task": "free", "speed_up": 0.969}, "bound 0.97"),
    ({"batch": 8, "speed_up": 0.96}, "bound 0.97"),
    ({"batch": 32, "temperature": 1.0, "speed_up": 0.96}, "bound 0.97"),
    ({"drafter": "ten", "speed_up": 0.96}, "bound 0.97"),
    ({"different": 1}, "1 groups were answered differently"),
    ({"drafter": "self", "accepted": 39}, "39 of 40 of its own drafts"),
    ({"drafter": "random", "drafts": 21}, "21 drafts in 1000 tokens"),
])
def test_what_is_beyond_a_bound_of_speculation_is_named(fields, message):
    found, = speculation.failures_of(row(**fields))
    assert message in found


def test_a_table_with_holes_does_not_pass():
    whole = [row(task=task, drafter=drafter, batch=batch, temperature=float(temperature))
             for task in ("quote", "edit", "free")
             for drafter in ("ngram", "self", "ten", "random") for batch in (1, 8, 32)
             for temperature in (0, 1)]
    assert speculation.missing_of(whole) == []
    assert speculation.missing_of(whole[1:]) == ["quote, ngram, batch 1, T=0.0: not measured"]
    nothing = [{**r, "drafted": 0} if r["drafter"] == "self" else r for r in whole]
    assert "nothing was drafted" in speculation.missing_of(nothing)[0]


@pytest.mark.parametrize("arguments", [["--prompts", "49"], ["--groups", "1"]])
def test_a_check_is_not_made_smaller(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["speculation", "--check", *arguments])
    with pytest.raises(SystemExit) as error:
        speculation.parse_arguments()
    assert error.value.code == 2 and "--check needs" in capsys.readouterr().err


FIGURES = {"decode_ratio": 1.10, "batch_ratio": 1.25, "resident_swap_seconds": 1e-3,
           "cold_swap_seconds": 0.1, "prefill_ratio": 9.0}


@pytest.mark.parametrize("name", ["decode_ratio", "batch_ratio", "resident_swap_seconds",
                                  "cold_swap_seconds"])
def test_what_is_beyond_a_bound_of_modifiers_is_named(name):
    assert modifiers.check(FIGURES) == []
    found, = modifiers.check({**FIGURES, name: FIGURES[name] * 1.01})
    assert found.startswith(name)


def test_figures_of_modifiers_are_medians_of_ratios():
    rounds = [{"decode": 1.0, "decode_adapter": 1.0 + i / 10, "decode_turning": 1.5, "batch8": 2.0,
               "batch8_adapters": 2.4, "prefill": 4.0, "prefill_adapter": 5.0} for i in range(3)]
    figures = modifiers.evaluate(
        {"rounds": rounds, "find_seconds": 0.5, "load_seconds": [3.0, 1.0, 2.0]},
        [(1.0, 0.5), (0.75, 0.5), (9.0, 0.5)])
    assert figures["decode_ratio"] == pytest.approx(1.1)
    assert figures["batch_ratio"] == pytest.approx(1.2)
    assert figures["resident_swap_seconds"] == pytest.approx(0.9)
    assert figures["cold_swap_seconds"] == pytest.approx(0.5)
    assert figures["load_seconds"] == 2.0
