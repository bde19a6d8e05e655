#!/usr/bin/env python3
"""Speed through the door: streams through gateway and decoder against the engine alone.

Each round runs the engine (`cogumi bench`) and the doors one after another on the same machine,
with the same prompts and answers of the same length; the ratio is of medians.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile

import serving

ONE_BOUND, MANY_BOUND = 0.95, 0.90


def engine_speeds(model, tokens, streams):
    """Tokens a second of one stream and of many, without services."""
    process = subprocess.run(
        [str(serving.BIN / "cogumi"), "bench", str(model), "--json", "--rounds", "1", "--tokens",
         str(tokens), "--prompt", "16", "--batches", str(streams), "--depths", "16"],
        capture_output=True, text=True)
    if process.returncode != 0:
        raise serving.BenchError(f"cogumi bench: {process.stderr.strip() or process.stdout}")
    report = json.loads(process.stdout)
    rates = {row["name"]: row["median"] for row in report["results"]}
    return rates["decode"], rates[f"batch-{streams}"], report


def parse_arguments():
    parser = argparse.ArgumentParser(prog="bench/door", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true",
                        help=f"fail below {ONE_BOUND} (one stream) or {MANY_BOUND} (many)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--streams", type=int, default=32, help="of the row with many streams")
    parser.add_argument("--json", metavar="OUT", help="write the figures here")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.tokens < 2 or arguments.streams < 2:
        parser.error("--rounds is at least 1, --tokens and --streams at least 2")
    return arguments


def measure(arguments, cluster, stubs):
    """{row: [tokens a second]}, the engine's rows first."""
    doors = [serving.GrpcDoor(cluster, stubs), serving.SseDoor(cluster, stubs)]
    rates, report = {}, None
    serving.first_answer(doors[0])
    for door in doors:
        serving.one_stream(door, 0, arguments.tokens)  # warm-up
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
        one, many, report = engine_speeds(serving.model_path(), arguments.tokens,
                                          arguments.streams)
        rates.setdefault(("engine", 1), []).append(one)
        rates.setdefault(("engine", arguments.streams), []).append(many)
        for door in doors:
            rates.setdefault((door.name, 1), []).append(
                serving.one_stream(door, 0, arguments.tokens))
            rates.setdefault((door.name, arguments.streams), []).append(
                serving.many_streams(door, 0, arguments.tokens, arguments.streams))
    return rates, report


def main():
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="cogumi-bench-") as folder:
        stubs = serving.load_stubs(folder)
        # Both sides without drafts: random prompts are answered with loops, which are easy to draft.
        cluster = serving.Cluster(folder, "--decoder.speculation", "off")
        try:
            rates, report = measure(arguments, cluster, stubs)
        finally:
            cluster.stop()
    print(f"{report['machine']['processor']}, {report['threads']} threads, "
          f"{report['kernel_configuration']}, {report['read_bandwidth_bytes_per_second'] / 1e9:.1f}"
          f" GB/s\n\n{'door':8}{'streams':>8}{'tok/s':>10}{'of the engine':>15}{'bound':>8}")
    rows, failures = [], []
    for (door, streams), values in rates.items():
        ratio = statistics.median(values) / statistics.median(rates["engine", streams])
        bound = None if door == "engine" else ONE_BOUND if streams == 1 else MANY_BOUND
        rows.append({"door": door, "streams": streams, "rates": values, "ratio": ratio,
                     "bound": bound})
        print(f"{door:8}{streams:8}{statistics.median(values):10.1f}{ratio:15.3f}"
              f"{'' if bound is None else format(bound, '8.2f')}")
        if bound is not None and ratio < bound:
            failures.append(f"{door}, {streams} streams: {ratio:.3f} of the engine, bound {bound}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"machine": report["machine"], "tokens": arguments.tokens, "rows": rows}, file,
                      indent=1)
    return serving.verdict(failures) if arguments.check else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except serving.BenchError as error:
        sys.exit(f"bench/door: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
