"""The default model with drafts of models that are made of it: itself, and its first ten layers.

The tiny models of engine_speculation_test.cc say noise; here is what a model really says, with
hundreds of drafted tokens. cogumi-draft-answers sees to it that drafts pay on any machine.
"""
import dataclasses
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests" / "support")]
import draft_models  # noqa: E402
import engine_tools  # noqa: E402

LAYERS = 10
WIDE_POSITIONS = 128  # of a prompt have 16 bits, those behind them 8 (kWidePositions)
LEAST_DRAFTED = 150
PROMPTS = (
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "Repeat this sentence three times: the quick brown fox jumps over the lazy dog.",
    "Write a short story about a lighthouse keeper and a storm.",
    "Explain why leaves change their colour in autumn.",
    # Longer than what has 16 bits.
    "Tell me in your own words what happens in the following story. The harbour was still dark "
    "when Ida opened the door of the workshop. Her father had left the lamp burning, and beside "
    "it lay the broken compass that the captain of the ferry had brought the evening before. "
    "She turned it over. The glass was cracked, the needle hung crooked on its pin, and "
    "somebody had tried to mend the ring with wax. It would take the whole morning, she "
    "thought, and the ferry left at noon. She put water on the stove, sharpened the small file "
    "and began. By noon the compass pointed north again. Ida wrapped it in a cloth and ran down "
    "to the quay, where the captain stood with his watch in his hand. He held the compass up "
    "against the light, turned around twice, and laughed.",
)


@dataclasses.dataclass
class Answer:
    prompt_tokens: int
    drafted: int
    accepted: int
    without: list[int]
    with_drafts: list[int]


def answers(draft: pathlib.Path) -> list[Answer]:
    result = subprocess.run(
        [engine_tools.tool("cogumi-draft-answers"), engine_tools.model_path(), draft],
        input="".join(f"{prompt}\n" for prompt in PROMPTS), capture_output=True, text=True,
        timeout=300)
    assert result.returncode == 0, result.stderr
    found = []
    for line in result.stdout.splitlines():
        counts, without, with_drafts = (list(map(int, part.split())) for part in line.split("\t"))
        found.append(Answer(*counts, without, with_drafts))
    assert len(found) == len(PROMPTS)
    return found


def assert_answers_stay(found: list[Answer]) -> None:
    for answer in found:
        assert answer.without and answer.with_drafts == answer.without, answer
    assert sum(a.drafted for a in found) > LEAST_DRAFTED, found
    # Of both kinds of prompt, those with narrow rows and those without.
    assert any(a.prompt_tokens > WIDE_POSITIONS and a.drafted > 0 for a in found), found
    assert any(a.prompt_tokens <= WIDE_POSITIONS and a.drafted > 0 for a in found), found


def test_the_model_accepts_all_that_it_drafts_itself():
    found = answers(engine_tools.model_path())
    assert_answers_stay(found)
    # To the last one, also with mixed activations and behind a long prompt: the draft model is
    # loaded with the engine's formats and computes each token in the role and at the position that
    # it has for the model, and no row's bits depend on what is computed beside it. So a draft is
    # the verifier's own logits' greedy choice, however the drafter caught up with what was
    # accepted. One that is refused is a token that was computed as something else.
    assert [a.accepted for a in found] == [a.drafted for a in found]


def test_its_first_ten_layers_change_no_answer():
    with tempfile.TemporaryDirectory(prefix="cogumi-draft-models-") as folder:
        ten = pathlib.Path(folder) / "ten.gguf"
        draft_models.first_layers(engine_tools.model_path(), ten, LAYERS)
        found = answers(ten)
    assert_answers_stay(found)
    # Most of them are wrong, and are taken back.
    assert 0 < sum(a.accepted for a in found) < sum(a.drafted for a in found) / 2, found
