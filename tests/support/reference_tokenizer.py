"""The `tokenizers` library set up from GGUF metadata, as the models' own tokenizer.json does."""
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

CONTROL, USER_DEFINED = 3, 4

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def pre_tokenizer(name: str):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "gpt-2":
        return byte_level
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if name == "llama-bpe":
        return pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raise ValueError(f"pre-tokenizer {name} is not covered")


def build(meta: dict) -> Tokenizer:
    """Special tokens in a text are parsed unless `encode_special_tokens` is set on the result."""
    tokens = meta["tokenizer.ggml.tokens"]
    pairs = [tuple(line.split(" ")) for line in meta["tokenizer.ggml.merges"]]
    name = meta["tokenizer.ggml.pre"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs,
                                     ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizer(name)
    tokenizer.decoder = decoders.ByteLevel()
    types = meta.get("tokenizer.ggml.token_type", [])
    # User-defined tokens are added tokens that are not special: found whether or not special ones
    # are parsed.
    tokenizer.add_special_tokens([
        AddedToken(token, special=True, normalized=False)
        for token, kind in zip(tokens, types) if kind == CONTROL])
    tokenizer.add_tokens([
        AddedToken(token, special=False, normalized=False)
        for token, kind in zip(tokens, types) if kind == USER_DEFINED])
    return tokenizer
