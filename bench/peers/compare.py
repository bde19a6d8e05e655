#!/usr/bin/env python3
"""Speed beside llama.cpp and OpenVINO GenAI on the same cores, in interleaved rounds of one run.

Floors stand in rows.py. They hold on AVX-512 VNNI without AMX; elsewhere --check checks the AVX2
line and exactness.
"""
import argparse
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import llama_cpp
import openvino_peer
import plot
import random_model
import report
import rows
import sides
import verdict
from package_index import FetchError

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "figures" / "peers.json"  # the plot lies beside it


def say(text):
    print(text, file=sys.stderr, flush=True)


def warn_of_load():
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"warning: other processes compute (load average {load:.1f}); figures will suffer")


def cpu_flags():
    """Feature bits as Linux names them."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def digest_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def random_1b(cache, binaries):
    """The 1B shape as llama-quantize's Q4_0, made once."""
    target = cache / "peers" / "random-1b.Q4_0.gguf"
    if not target.exists():
        say("making random weights in the shape of a 1B model (a minute, 2.5 GB for a while)")
        source = target.with_name("random-1b.F16.gguf")
        source.parent.mkdir(parents=True, exist_ok=True)
        random_model.write(source, random_model.LLAMA_1B)
        llama_cpp.quantize(binaries, source, target, say)
        source.unlink()
    return target


def prepare_peers(arguments, selected):
    """(peers by name, models of ours): built, quantised and loaded as far as the rows need them."""
    cache, threads = arguments.cache, arguments.threads
    wanted = {name for row in selected for name in row.peers}
    binaries = llama_cpp.build(cache, say)
    models = {"default": arguments.model}
    lossy = {}
    if any(row.model == "1b" for row in selected):
        models["1b"] = lossy["1b"] = random_1b(cache, binaries)
    if rows.Q4_0 in wanted:
        name = f"{arguments.model.stem}.{digest_of(arguments.model)[:12]}.requantised-Q4_0.gguf"
        lossy["default"] = llama_cpp.quantize(binaries, arguments.model, cache / "peers" / name,
                                              say)
    def llama(label, folder, files):
        return sides.LlamaCpp(label, folder, files, threads, arguments.rounds, say)

    peers = {rows.Q4_1: llama(rows.Q4_1, binaries, models),
             rows.Q4_0: llama(rows.Q4_0, binaries, lossy)}
    if rows.Q4_1_AVX2 in wanted:
        avx2 = llama_cpp.build(cache, say, "avx2")
        peers[rows.Q4_1_AVX2] = llama(rows.Q4_1_AVX2, avx2, models)
    if rows.OPENVINO in wanted:
        peers[rows.OPENVINO] = sides.Prefill(
            openvino_peer.OpenVino(cache, arguments.model, threads, say))
    return peers, models


def choose_rows(arguments, vnni):
    """The rows of this run: what was asked for, else all that need no further build."""
    if arguments.rows:
        return [rows.BY_NAME[name] for name in arguments.rows]
    if arguments.check and not vnni:
        return [rows.BY_NAME[name] for name in rows.AVX2_ROWS]
    with_avx2 = arguments.avx2 or arguments.check or llama_cpp.is_built(arguments.cache, "avx2")
    if not with_avx2:
        say("without the AVX2 rows: --avx2 builds the peer for them")
    return [row for row in rows.ROWS if with_avx2 or row.name not in rows.AVX2_ROWS]


def run_rounds(arguments, selected, engine, peers):
    results = {row.name: sides.Results(row) for row in selected}
    try:
        for number in range(arguments.rounds):
            for row in selected:
                say(f"round {number + 1} of {arguments.rounds}: {row.title}")
                sides.measure_round(row, number, engine, peers, results[row.name])
    finally:
        for peer in peers.values():
            peer.close()
    return results


def check_exactness():
    """Whether tools/exactness --check passes: the floor of machines without floors of speed."""
    say("no floors of speed here: checking exactness")
    return subprocess.run([str(ROOT / "tools" / "exactness"), "--check"]).returncode == 0


def conclude(arguments, bounds, void, vnni, results):
    """The exit status of --check, with its reasons printed."""
    missed = [bound for bound in bounds if not bound.met]
    if not vnni:
        print("check: this machine has no AVX-512 VNNI, or has AMX: only the AVX2 line and "
              "exactness are checked")
    for bound in missed:
        print(f"FAILED: {results[bound.row].row.title}: {bound.reached:.2f} {bound.what}, "
              f"floor {bound.floor:.2f}")
    failed = bool(missed or void)
    if not vnni:
        failed = not check_exactness() or failed
    print("check: " + ("void" if void else "failed" if failed else "passed"))
    return 1 if failed else 0


def parse_arguments():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    parser = argparse.ArgumentParser(prog="bench/peers/compare", description=__doc__)
    parser.add_argument("--check", action="store_true",
                        help="fail when a floor is missed or the run is void")
    parser.add_argument("--rounds", type=int, default=rows.ROUNDS,
                        help=f"interleaved rounds (default {rows.ROUNDS})")
    parser.add_argument("--rows", default="", help="comma-separated: " + ", ".join(rows.BY_NAME))
    parser.add_argument("--avx2", action="store_true",
                        help="build llama.cpp for AVX2 too and compare the AVX2 kernels with it "
                             "(--check does so)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", type=pathlib.Path,
                        default=os.environ.get("COGUMI_MODEL") or
                        cache / "cogumi/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--bench", type=pathlib.Path,
                        default=ROOT / "build/bin/cogumi-engine-bench", help="our benchmark binary")
    parser.add_argument("--arguments", default="", metavar="WORDS",
                        help="more arguments of our benchmark binary")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="write the figures here")
    parser.add_argument("--docs", action="store_true",
                        help="write the figures and the plot into docs/figures")
    arguments = parser.parse_args()
    arguments.cache = cache / "cogumi"
    arguments.rows = [name.strip() for name in arguments.rows.split(",") if name.strip()]
    for name in arguments.rows:
        if name not in rows.BY_NAME:
            parser.error(f"--rows: no row '{name}'")
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads are at least 1")
    if arguments.check and arguments.rounds < rows.ROUNDS:
        parser.error(f"--rounds {arguments.rounds}: --check needs at least {rows.ROUNDS}")
    if arguments.check and arguments.rows:
        parser.error("--check needs all rows: leave out --rows")
    if arguments.check and arguments.arguments:
        parser.error("--check needs the default configuration: leave out --arguments")
    if not pathlib.Path(arguments.model).is_file():
        parser.error(f"--model: no file {arguments.model}")
    return arguments


def main():
    arguments = parse_arguments()
    arguments.model = pathlib.Path(arguments.model)
    vnni = verdict.has_floors(cpu_flags())
    selected = choose_rows(arguments, vnni)
    if arguments.docs and len(selected) < len(rows.ROWS):
        sys.exit("bench/peers/compare: --docs needs all rows: leave out --rows, and where --check "
                 "has the AVX2 line only, run --docs --avx2 without it")
    peers, models = prepare_peers(arguments, selected)
    engine = sides.Engine(arguments.bench, models, arguments.threads, arguments.arguments.split())
    warn_of_load()
    results = run_rounds(arguments, selected, engine, peers)
    bounds = [bound for result in results.values()
              for bound in verdict.row_bounds(result, results)]
    void = verdict.void_reasons(results, vnni)
    print("\n".join(report.text(engine.description, arguments.threads, results, bounds, void,
                                engine.configurations)))
    figures = report.as_json(
        engine.description, arguments.threads, results, bounds, void, engine.configurations,
        {"model": {"file": arguments.model.name, "sha256": digest_of(arguments.model)},
         "versions": {"llama.cpp": f"{llama_cpp.PACKAGE} {llama_cpp.VERSION}",
                      "OpenVINO GenAI": openvino_peer.VERSION}})
    for target in (arguments.json, FIGURES if arguments.docs else None):
        if target:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.docs:
        plot.draw_in_environment(arguments.cache, FIGURES, FIGURES.with_suffix(".svg"), say)
    return conclude(arguments, bounds, void, vnni, results) if arguments.check else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # peers are ended on the way out
    try:
        sys.exit(main())
    except (llama_cpp.PeerError, FetchError) as error:
        sys.exit(f"bench/peers/compare: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
