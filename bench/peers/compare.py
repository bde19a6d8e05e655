#!/usr/bin/env python3
"""Speed beside llama.cpp on the same model file, in interleaved rounds of one run."""
import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys

import llama_cpp
from package_index import FetchError

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Rows that take long get fewer rounds and carry no bound.
QUICK, LONG = ("decode", "prefill", "five"), ("batch8", "batch32", "depth4096")
CHECKED = ("decode", "prefill")
LONG_ROUNDS = 2
TITLES = {"decode": "decode, 128 tokens", "prefill": "prefill, 512 tokens",
          "five": "5 tokens at once", "batch8": "decode, batch 8, sum",
          "batch32": "decode, batch 32, sum", "depth4096": "decode at depth 4096, fp16 KV"}
LLAMA_ARGUMENTS = {"decode": ["-p", "0", "-n", "128", "-r", "1"],
                   "prefill": ["-p", "512", "-n", "0", "-r", "1"],
                   "five": ["-p", "5", "-n", "0", "-r", "16"],
                   "depth4096": ["-p", "0", "-n", "32", "-d", "4096", "-r", "1"]}
BATCHES = {"batch8": (8, 128, 64), "batch32": (32, 128, 32)}  # sequences, prompt, generated
# Below so many tokens a second per GB/s read, the peer (Q4_1) was disturbed.
PLAUSIBLE_DECODE = 3.8


def say(text):
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass
class Row:
    name: str
    ours: list = dataclasses.field(default_factory=list)
    peer: list = dataclasses.field(default_factory=list)
    options: dict = dataclasses.field(default_factory=dict)

    def ratio(self):
        return statistics.median(self.ours) / statistics.median(self.peer)


class Ours:
    """Runs cogumi-engine-bench and collects what it says about the machine."""

    def __init__(self, binary, model, arguments):
        self._command = [str(binary), str(model), *arguments]
        self.bandwidths, self.barriers, self.last = [], [], None

    def measure(self, test):
        process = subprocess.run([*self._command, "--tests", test], capture_output=True, text=True)
        if process.returncode != 0:
            raise llama_cpp.PeerError(process.stderr.strip() or f"{self._command[0]} failed")
        self.last = json.loads(process.stdout)
        self.bandwidths.append(self.last["machine"]["read_bandwidth"])
        self.barriers.append(self.last["machine"]["barrier_seconds"])
        return self.last["rows"][0]["tokens_per_second"]


def warn_of_load():
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"warning: other processes compute (load average {load:.1f}); figures will suffer")


def search(binaries, model, threads):
    """The peer's best options for each quick test: flash attention, micro-batch, threads."""
    counts = ",".join(str(count) for count in sorted({1, threads}))
    results = llama_cpp.bench(binaries, model, [
        "-p", "512,5", "-n", "128", "-r", "2", "-fa", "0,1", "-ub", "128,512", "-t", counts])
    best = {}
    for test, prompt, generate in (("decode", 0, 128), ("prefill", 512, 0), ("five", 5, 0)):
        candidates = [r for r in results if (r["prompt"], r["generate"]) == (prompt, generate)]
        winner = max(candidates, key=lambda r: max(r["samples"]))
        best[test] = winner["options"]
        say(f"  llama.cpp's best for {test}: flash attention "
            f"{'on' if winner['options']['fa'] else 'off'}, micro-batch {winner['options']['ub']}, "
            f"{winner['options']['t']} threads: {max(winner['samples']):.0f} tok/s")
    return best


def measure_peer(binaries, model, row, best):
    """One round of the peer; a list of samples."""
    if row.name in BATCHES:
        row.options = best["decode"]
        return [llama_cpp.batched(binaries, model, *BATCHES[row.name], row.options)]
    row.options = best[row.name if row.name in best else "decode"]
    flash = "0,1" if row.name == "depth4096" else str(row.options["fa"])  # matters most there
    results = llama_cpp.bench(binaries, model, [
        *LLAMA_ARGUMENTS[row.name], "-fa", flash, "-t", str(row.options["t"]),
        "-ub", str(row.options["ub"])])
    winner = max(results, key=lambda r: statistics.median(r["samples"]))
    row.options = winner["options"]
    return [statistics.median(winner["samples"])]


def report(rows, ours, threads):
    machine = ours.last["machine"]
    bandwidth = statistics.median(ours.bandwidths)
    limit = bandwidth / ours.last["bytes_per_token"]
    print(f"machine          {machine['cpu']}, {machine['cores']} cores")
    print(f"instruction set  {ours.last['configuration']} ({machine['features']}); "
          "llama.cpp: -march=native")
    print(f"read bandwidth   {bandwidth / 1e9:.1f} GB/s in this run ({min(ours.bandwidths) / 1e9:.1f}"
          f"-{max(ours.bandwidths) / 1e9:.1f}), {threads} threads; "
          f"barrier {statistics.median(ours.barriers) * 1e9:.0f} ns")
    print(f"decode limit     {limit:.0f} tok/s = bandwidth / "
          f"{ours.last['bytes_per_token'] / 1e6:.1f} MB a token")
    print()
    print(f"{'tok/s: median (best)':31}{'cogumi':>17}{'llama.cpp':>17}{'ratio':>8}  rounds")
    for row in rows:
        sides = [f"{statistics.median(s):8.1f} ({max(s):.0f})" for s in (row.ours, row.peer)]
        share = ""
        if row.name == "decode":
            share = f"  {statistics.median(row.ours) / limit:.0%} of the limit"
        print(f"{TITLES[row.name]:31}{sides[0]:>17}{sides[1]:>17}{row.ratio():8.2f}  "
              f"{len(row.peer)}{share}")
    decode = next((row for row in rows if row.name == "decode"), None)
    if decode and statistics.median(decode.peer) < PLAUSIBLE_DECODE * bandwidth / 1e9:
        print(f"\nwarning: llama.cpp decoded {statistics.median(decode.peer):.0f} tok/s, below "
              f"{PLAUSIBLE_DECODE} per GB/s of bandwidth: something disturbed it, the run is void")


def parse_arguments():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    parser = argparse.ArgumentParser(prog="bench/peers/compare", description=__doc__)
    parser.add_argument("--check", action="store_true",
                        help=f"fail when {' or '.join(CHECKED)} is slower than llama.cpp")
    parser.add_argument("--rounds", type=int, default=5,
                        help=f"interleaved rounds (default 5; {LONG_ROUNDS} of the long rows)")
    parser.add_argument("--rows", default=",".join(QUICK + LONG),
                        help="comma-separated: " + ", ".join(QUICK + LONG))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kernels", default="", help="tier of ours (default: the best)")
    parser.add_argument("--model", type=pathlib.Path,
                        default=os.environ.get("COGUMI_MODEL") or
                        cache / "cogumi/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--bench", type=pathlib.Path,
                        default=ROOT / "build/bin/cogumi-engine-bench", help="our benchmark binary")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="write the figures here")
    arguments = parser.parse_args()
    arguments.cache = cache / "cogumi"
    arguments.rows = [name.strip() for name in arguments.rows.split(",")]
    for name in arguments.rows:
        if name not in TITLES:
            parser.error(f"--rows: no row '{name}'")
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads are at least 1")
    if arguments.check and arguments.rounds < 5:
        parser.error(f"--rounds {arguments.rounds}: --check needs at least 5")
    if arguments.check and not set(CHECKED) <= set(arguments.rows):
        parser.error(f"--check needs the rows {', '.join(CHECKED)}")
    if not pathlib.Path(arguments.model).is_file():
        parser.error(f"--model: no file {arguments.model}")
    return arguments


def main():
    arguments = parse_arguments()
    binaries = llama_cpp.build(arguments.cache, say)
    extra = ["--threads", str(arguments.threads)]
    if arguments.kernels:
        extra += ["--kernels", arguments.kernels]
    ours = Ours(arguments.bench, arguments.model, extra)
    warn_of_load()
    say("searching llama.cpp's best options")
    best = search(binaries, arguments.model, arguments.threads)
    rows = [Row(name) for name in arguments.rows]
    for number in range(arguments.rounds):
        for row in rows:
            if row.name in LONG and number >= LONG_ROUNDS:
                continue
            say(f"round {number + 1} of {arguments.rounds}: {TITLES[row.name]}")
            if number % 2 == 0:  # neither side always runs on the machine that the other warmed
                row.ours += ours.measure(row.name)
                row.peer += measure_peer(binaries, arguments.model, row, best)
            else:
                row.peer += measure_peer(binaries, arguments.model, row, best)
                row.ours += ours.measure(row.name)
    report(rows, ours, arguments.threads)
    slower = [row for row in rows if row.name in CHECKED and row.ratio() < 1]
    if arguments.json:
        with open(arguments.model, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        arguments.json.write_text(json.dumps({
            "model": {"file": pathlib.Path(arguments.model).name, "sha256": digest,
                      "bytes_per_token": ours.last["bytes_per_token"]},
            "machine": {**ours.last["machine"],
                        "read_bandwidth": statistics.median(ours.bandwidths)},
            "threads": arguments.threads, "configuration": ours.last["configuration"],
            "peer": f"{llama_cpp.PACKAGE} {llama_cpp.VERSION}",
            "rows": [{**dataclasses.asdict(row), "ratio": row.ratio()} for row in rows],
        }, indent=1) + "\n")
    if arguments.check:
        for row in slower:
            print(f"FAILED: {TITLES[row.name]}: {row.ratio():.2f} of llama.cpp, bound 1.00")
        print("check: " + ("failed" if slower else "passed"))
        return 1 if slower else 0
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (llama_cpp.PeerError, FetchError) as error:
        sys.exit(f"bench/peers/compare: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
