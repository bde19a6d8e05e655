"""The engine's ids are those of the `tokenizers` library."""
import json
import os
import pathlib
import sys

import gguf
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "support"))
import engine_tools
import mixed_text
import reference_tokenizer

LINES = 100_000 if "COGUMI_LONG_TESTS" in os.environ else 10_000
USER_DEFINED = {"<repo_name>", "<file_sep>"}
# Every code point of the alphabets, and samples of the ideographs, whose class is one.
CODE_POINTS = [c for span in (range(0x3400), range(0x3400, 0xe000, 7), range(0xe000, 0x17000),
                              range(0x17000, 0x1a000, 7), range(0x1a000, 0x20000),
                              range(0x20000, 0x33480, 61), range(0xe0000, 0xe0200))
               for c in span if not 0xd800 <= c < 0xe000]


@pytest.fixture(scope="module")
def meta() -> dict:
    reader = gguf.GGUFReader(engine_tools.model_path())
    meta = {name: field.contents() for name, field in reader.fields.items()
            if name.startswith("tokenizer.")}
    # The model has no user-defined token; some of its control tokens play that part.
    tokens = meta["tokenizer.ggml.tokens"]
    meta["tokenizer.ggml.token_type"] = [
        reference_tokenizer.USER_DEFINED if token in USER_DEFINED else kind
        for token, kind in zip(tokens, meta["tokenizer.ggml.token_type"])]
    assert USER_DEFINED <= set(tokens)
    return meta


@pytest.fixture(scope="module", params=["smollm", "llama-bpe", "gpt-2"])
def case(request, meta, tmp_path_factory):
    """A vocabulary-only model with the pre-tokenizer, and the library's tokenizer for it."""
    meta = {**meta, "tokenizer.ggml.pre": request.param}
    path = tmp_path_factory.mktemp("vocabulary") / f"{request.param}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(request.param)
    writer.add_token_list(meta["tokenizer.ggml.tokens"])
    writer.add_token_types(meta["tokenizer.ggml.token_type"])
    writer.add_token_merges(meta["tokenizer.ggml.merges"])
    writer.add_eos_token_id(meta["tokenizer.ggml.eos_token_id"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path, reference_tokenizer.build(meta)


def compare(path, library, texts, mode) -> None:
    library.encode_special_tokens = mode == "plain"
    wanted = [e.ids for e in library.encode_batch(texts, add_special_tokens=False)]
    got = engine_tools.tokenize(path, [t.encode() for t in texts], mode)
    wrong = [(text, w, g) for text, w, (g, _) in zip(texts, wanted, got) if w != g]
    assert not wrong, f"{len(wrong)} of {len(texts)} differ, first: {wrong[0]!r}"


@pytest.mark.parametrize("mode", ["plain", "special"])
def test_mixed_lines_have_the_same_ids(case, mode):
    texts = mixed_text.lines(LINES, seed=20)
    assert len(texts) == LINES
    compare(*case, texts, mode)


def test_every_code_point_is_split_the_same_way(case):
    compare(*case, [f"a{c}the 1{c}1  {c}\n {c}'{c}the" for c in map(chr, CODE_POINTS)], "plain")


def test_special_tokens_are_parsed_only_on_request(case):
    path, library = case
    text = b"<|im_start|>user\nHi<|im_end|>"
    (plain, _), = engine_tools.tokenize(path, [text], "plain")
    (special, _), = engine_tools.tokenize(path, [text], "special")
    control = {library.token_to_id("<|im_start|>"), library.token_to_id("<|im_end|>")}
    assert control <= set(special)
    assert not control & set(plain)


def test_user_defined_tokens_are_found_always(case):
    path, library = case
    ids = {library.token_to_id(token) for token in USER_DEFINED}
    for mode in ("plain", "special"):
        (got, _), = engine_tools.tokenize(path, [b"x<file_sep>y <repo_name>"], mode)
        assert ids <= set(got), mode


def test_dropped_bytes_are_counted(case):
    path, _ = case
    bytes_without_token = [b for b in range(256)
                           if not engine_tools.tokenize(path, [bytes([b])], "plain")[0][0]]
    assert len(bytes_without_token) == 21
    record = b"a" + bytes(bytes_without_token) * 3 + b"b"
    (ids, dropped), = engine_tools.tokenize(path, [record], "plain")
    assert dropped == 63
    assert ids


def test_golden_prompts_through_the_chat_template():
    golden = json.loads((engine_tools.ROOT / "tests/support/golden.json").read_text())
    got = engine_tools.tokenize(engine_tools.model_path(),
                                [row["prompt"].encode() for row in golden], "chat")
    assert [ids for ids, _ in got] == [row["prompt_tokens"] for row in golden]


def test_golden_answers_are_tokenised_as_they_were_written():
    """The next turn of a conversation finds an answer in the prefix cache only by its own ids."""
    golden = json.loads((engine_tools.ROOT / "tests/support/golden.json").read_text())
    answers = [row for row in golden if row["output_tokens"][-1] == 2]  # the end of the message
    assert answers
    got = engine_tools.tokenize(engine_tools.model_path(),
                                [row["output"].encode() for row in answers], "plain")
    assert [ids for ids, _ in got] == [row["output_tokens"][:-1] for row in answers]
