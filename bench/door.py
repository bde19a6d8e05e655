#!/usr/bin/env python3
"""Speed through the door: streams through gateway and decoder against the engine alone.

Each round runs the engine (`cogumi bench`) and the doors one after another on the same machine,
with the same prompts and answers of the same length; the ratio is of medians.
"""
import argparse
import collections
import json
import statistics
import subprocess
import sys
import tempfile

import serving

ONE_BOUND, MANY_BOUND = 0.95, 0.90
# One stream is measured as often a round: it takes half a second, and the machine's memory is
# faster and slower in turns.
ONES = 3


def engine_report(model, tokens, streams):
    """What `cogumi bench` says of one stream ("decode") and of `streams`, without services."""
    process = subprocess.run(
        [str(serving.BIN / "cogumi"), "bench", str(model), "--json", "--rounds", "1", "--tokens",
         str(tokens), "--prompt", "16", "--batches", str(streams), "--depths", "16"],
        capture_output=True, text=True)
    if process.returncode != 0:
        raise serving.BenchError(f"cogumi bench: {process.stderr.strip() or process.stdout}")
    return json.loads(process.stdout)


def engine_rate(report, name):
    return next(row["median"] for row in report["results"] if row["name"] == name)


def parse_arguments():
    parser = argparse.ArgumentParser(prog="bench/door", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true",
                        help=f"fail below {ONE_BOUND} (one stream) or {MANY_BOUND} (many)")
    parser.add_argument("--rounds", type=int, default=5,
                        help=f"of {ONES} times one stream and once many")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--streams", type=int, default=32, help="of the row with many streams")
    parser.add_argument("--json", metavar="OUT", help="write the figures here")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.tokens < 2 or arguments.streams < 2:
        parser.error("--rounds is at least 1, --tokens and --streams at least 2")
    return arguments


def measure(arguments, doors):
    """{row: [tokens a second]}, the engine's rows first."""
    rates, report = collections.defaultdict(list), None
    for door in doors:
        serving.one_stream(door, 0, arguments.tokens)  # warm-up
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
        for _ in range(ONES):
            report = engine_report(serving.model_path(), arguments.tokens, 2)
            rates[("engine", 1)].append(engine_rate(report, "decode"))
            for door in doors:
                rates[(door.name, 1)].append(serving.one_stream(door, 0, arguments.tokens))
        report = engine_report(serving.model_path(), arguments.tokens, arguments.streams)
        rates[("engine", arguments.streams)].append(
            engine_rate(report, f"batch-{arguments.streams}"))
        for door in doors:
            rates[(door.name, arguments.streams)].append(
                serving.many_streams(door, 0, arguments.tokens, arguments.streams))
    return rates, report


def main():
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="cogumi-bench-") as folder:
        # Both sides without drafts: random prompts are answered with loops, which are easy to draft.
        cluster = serving.Cluster(folder, "--decoder.speculation", "off")
        try:
            with serving.GrpcDoor(cluster) as grpc_door:
                rates, report = measure(arguments, [grpc_door, serving.SseDoor(cluster)])
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
