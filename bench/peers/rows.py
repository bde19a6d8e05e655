"""What is compared and how fast it must be: the one table of rows and floors."""
import dataclasses

Q4_1, Q4_0 = "llama.cpp Q4_1", "llama.cpp Q4_0"  # the same file; its lossy requantisation
Q4_1_AVX2 = "llama.cpp Q4_1, AVX2 build"
OPENVINO = "OpenVINO GenAI"

# A floor above these shares of what the machine allowed in the same run is replaced by them.
BANDWIDTH_CAP, ARITHMETIC_CAP = 0.90, 0.65
# Cores whose barrier takes longer than this share no last cache.
SHARED_CACHE_BARRIER = 80e-9
# Slower peers were disturbed: tokens a second per GB/s of bandwidth (decode, two threads), and
# tokens a second (prefill on a machine with AVX-512 VNNI). Such a run is void.
PLAUSIBLE_DECODE = {Q4_1: 3.8, Q4_0: 5.5}
PLAUSIBLE_PREFILL = {Q4_0: 650.0}
ROUNDS = 5  # at least, for --check


@dataclasses.dataclass(frozen=True)
class Floor:
    """At least `times` the median of `of`: a peer, or another row's own figure."""
    of: str
    times: float
    own: bool = False  # `of` names a row
    every_round: bool = False  # not only of the medians


@dataclasses.dataclass(frozen=True)
class Share:
    """Of the bandwidth limit, by whether the cores share a last cache in that round."""
    shared: float
    apart: float
    instead: bool = False  # reaching it makes the row's other floors good


@dataclasses.dataclass(frozen=True)
class LlamaTest:
    """llama-bench: `prompt` tokens at once or `generate` one by one, behind `depth`."""
    prompt: int = 0
    generate: int = 0
    depth: int = 0
    repeat: int = 1
    kv: str = "f16"


@dataclasses.dataclass(frozen=True)
class LlamaBatch:
    """llama-batched-bench: sequences that generate together behind their own prompts."""
    sequences: int
    prompt: int
    generate: int


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    title: str
    test: str  # of cogumi-engine-bench
    peers: tuple = ()
    peer_test: object = None
    floors: tuple = ()
    share: Share | None = None
    threads: int = 0  # 0: all
    arguments: tuple = ()  # of cogumi-engine-bench
    # Passes of vpdpbusd over a weight, the mean of the test's tokens: 2 for 16-bit activations, 1
    # for 8-bit; 0: memory binds.
    planes: float = 0
    base: str = ""  # the row whose peers stand beside this one
    model: str = "default"
    loaded: bool = False  # another process computes on one core
    rounds: int = 0  # 0: all; else the peers run in so many only (shown, not bounded)

    @property
    def key_of_options(self):
        """Peers' best options are searched per kind of work."""
        if isinstance(self.peer_test, LlamaBatch):
            return f"batch {self.peer_test.sequences}"
        if self.peer_test.generate:
            return "depth" if self.peer_test.depth else "decode"
        return "five" if self.peer_test.prompt < 32 else "prefill"


DECODE = LlamaTest(generate=128)
PREFILL = LlamaTest(prompt=512)
DEEP = LlamaTest(generate=32, depth=4096)
FAST = ("--activations", "fast")

# By default prompts are computed in 8 bits beyond their first 128 positions, which take 16.
PROMPT_PLANES = (128 * 2 + (512 - 128)) / 512

ROWS = (
    Row("decode", "decode", "decode", (Q4_1, Q4_0), DECODE,
        (Floor(Q4_1, 2.0), Floor(Q4_0, 1.3)), Share(0.85, 0.75)),
    Row("decode-1", "decode, one thread", "decode", (Q4_1, Q4_0), DECODE,
        (Floor(Q4_1, 2.4), Floor(Q4_0, 1.0)), threads=1),
    Row("prefill", "prefill 512", "prefill", (Q4_1, Q4_0, OPENVINO), PREFILL,
        (Floor(Q4_1, 5.0), Floor(Q4_0, 2.0), Floor(OPENVINO, 1.0)),
        planes=PROMPT_PLANES),
    Row("prefill-1", "prefill 512, one thread", "prefill", (Q4_1, Q4_0), PREFILL,
        (Floor(Q4_0, 1.8),), threads=1, planes=PROMPT_PLANES),
    Row("five", "5 tokens at once", "five", (Q4_1, Q4_0), LlamaTest(prompt=5, repeat=16),
        (Floor(Q4_1, 3.6), Floor(Q4_0, 2.2)), planes=2),
    Row("batch8", "batch 8, sum", "batch8", (Q4_1, Q4_0), LlamaBatch(8, 128, 64),
        (Floor(Q4_1, 4.0), Floor(Q4_0, 2.4)), planes=2),
    Row("batch32", "batch 32, sum", "batch32", (Q4_1, Q4_0), LlamaBatch(32, 128, 32),
        (Floor(Q4_1, 4.2), Floor(Q4_0, 2.2)), planes=2),
    Row("depth", "decode at depth 4096, fp16 KV", "depth4096", (Q4_1, Q4_0), DEEP,
        (Floor(Q4_1, 2.0), Floor(Q4_0, 2.0))),
    Row("depth-int4", "decode at depth 4096, INT4 KV", "depth4096", (Q4_1, Q4_0),
        dataclasses.replace(DEEP, kv="q4_0"),
        (Floor(Q4_1, 6.0), Floor(Q4_0, 6.0), Floor("depth", 1.15, own=True)),
        arguments=("--kv", "int4")),
    Row("loaded", "decode, one core loaded", "decode", (Q4_1, Q4_0), LlamaTest(generate=16),
        (Floor("decode", 0.40, own=True, every_round=True),), loaded=True, rounds=2),
    Row("fast-decode", "decode, fast", "decode", base="decode", arguments=FAST),
    Row("fast-prefill", "prefill 512, fast", "prefill", base="prefill", arguments=FAST, planes=1),
    Row("fast-five", "5 tokens at once, fast", "five", base="five", arguments=FAST, planes=1),
    Row("fast-batch32", "batch 32, sum, fast", "batch32", base="batch32", arguments=FAST, planes=1),
    Row("1b-decode", "1B shape: decode", "decode", (Q4_0,), LlamaTest(generate=64),
        (Floor(Q4_0, 1.05),), Share(0.92, 0.92, instead=True), model="1b"),
    Row("1b-prefill", "1B shape: prefill 512", "prefill", (Q4_0,), PREFILL,
        (Floor(Q4_0, 2.0),), model="1b", planes=PROMPT_PLANES),
    Row("avx2-decode", "decode, AVX2 kernels", "decode", (Q4_1_AVX2,), DECODE,
        (Floor(Q4_1_AVX2, 1.0),), arguments=("--kernels", "avx2")),
)
AVX2_ROWS = ("avx2-decode",)
BY_NAME = {row.name: row for row in ROWS}
