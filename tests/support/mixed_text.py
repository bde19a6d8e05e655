"""Lines of every kind of text that a tokenizer meets, from a fixed seed."""
import pathlib
import random
import unicodedata

ROOT = pathlib.Path(__file__).resolve().parents[2]

WORDS = ("the quick brown fox jumps over lazy dogs Paris naïve façade Straße größer été coração "
         "don't we'll I'm they're you've he'd it's DON'T WE'LL i'M 'tis ’tis rock'n'roll "
         "Привет мир Здравствуйте Ελλάδα καλημέρα שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดี "
         "你好世界 日本語テキスト 한국어 문장 ქართული հայերեն አማርኛ").split()
NUMBERS = ("0 7 42 1234567890 3.14159 1e-9 0xdeadbeef 2026-11-23 ½ ² Ⅷ ① ٣٤٥ १२३ 一二三 ９８７ "
           "1,000,000.00 v1.2.3 192.168.0.1").split()
EMOJI = ("🙂 👍🏽 👨‍👩‍👧‍👦 🇫🇷 🏳️‍🌈 ❤️ ✈ ☃️ 🧑🏿‍🚀 1️⃣ ©️").split()
SYMBOLS = "!? ... :-) -> => != <= && || ++ -- /* */ // # $ % ^ ~ ` \\ \" ' '' ''' « » “ ” — … € £ ¥".split()
SPACES = (" ", "  ", "   ", "        ", "\t", "\t\t", " \t", "\n", "\n\n", "\n\n\n", "\r\n", "\r",
          " \n", "\n ", " \n \n", "\u00a0", "\u3000", "\u2028", "\u200b", "\u0085", "\x0b", "\x0c",
          "\ufeff", "\u1680", "\u2003 ")
MARKERS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "<|im_end|", "<<|im_end|>>",
           "<repo_name>", "<reponame>", "<file_sep>", "<empty_output>", "<|eot_id|>",
           "<|im_start|>user\nHi<|im_end|>\n")


def _source_lines() -> list[str]:
    lines = []
    for pattern in ("engine/**/*.cc", "engine/**/*.h", "tests/support/*.py", "proto/cogumi/**/*.proto"):
        for path in sorted(ROOT.glob(pattern)):
            lines += path.read_text(encoding="utf-8").splitlines(keepends=True)
    return lines


def _assigned(rng: random.Random) -> str:
    """A character that every version of Unicode in use knows (assigned in Unicode 11 or before, so
    far as Python's oldest table can tell)."""
    while True:
        c = chr(rng.choice((rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(0x10000),
                            rng.randrange(0x20000))))
        if unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs"):
            return c


def lines(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    source = _source_lines()

    def code() -> str:
        return "".join(rng.choices(source, k=rng.randint(1, 4)))

    def prose() -> str:
        return "".join(rng.choice(WORDS) + rng.choice((" ", " ", " ", ", ", ". ", "\n", "  "))
                       for _ in range(rng.randint(1, 30)))

    def mixed() -> str:
        pools = (WORDS, NUMBERS, EMOJI, SYMBOLS, SPACES, SPACES)
        return "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 30)))

    def unicode() -> str:
        return "".join(_assigned(rng) for _ in range(rng.randint(1, 40)))

    def noise() -> str:
        return rng.randbytes(rng.randint(1, 80)).decode("utf-8", errors="replace")

    def marked() -> str:
        return "".join(rng.choice((rng.choice(MARKERS), rng.choice(WORDS), rng.choice(SPACES)))
                       for _ in range(rng.randint(1, 12)))

    def contractions() -> str:
        return "".join(rng.choice("'’ſsStTrReEvVmMlLdD \n") for _ in range(rng.randint(1, 25)))

    def repeated() -> str:
        return rng.choice(WORDS + list(SPACES) + EMOJI + NUMBERS) * rng.randint(2, 60)

    kinds = (code, prose, mixed, unicode, noise, marked, contractions, repeated)
    return [kinds[i % len(kinds)]() for i in range(count)]
