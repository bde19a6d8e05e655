#!/usr/bin/env python3
"""What adapters cost in a step, and how long one takes to come: rank 8 on all linears.

Steps are timed in one process, the cases that are compared in turns step by step; a ratio is the
median over the rounds of a round's own ratio. A resident swap is what a step costs more when its
adapter changes with every step; a cold one is the whole way of a request to an adapter that only
the catalogue has, against the same request when it is resident.
"""
import argparse
import http.client
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import serving

sys.path.insert(0, str(serving.ROOT / "tests" / "support"))
import peft_adapters  # noqa: E402

RANK, ADAPTERS = 8, 8
DECODE_BOUND = 1.10  # batch 1, of the time without
BATCH_BOUND = 1.25  # 8 sequences with 8 adapters
RESIDENT_BOUND = 1e-3  # seconds
COLD_BOUND = 0.1


def parse_arguments():
    parser = argparse.ArgumentParser(prog="bench/modifiers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail beyond the bounds")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of timed steps")
    parser.add_argument("--kernels", default="", help="tier of the kernels; none: the best")
    parser.add_argument("--json", metavar="OUT", help="write the figures here")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        parser.error("--rounds is at least 3")
    return arguments


def measure_steps(arguments, folders):
    command = [serving.BIN / "cogumi-adapter-bench", serving.model_path(), *folders,
               "--rounds", str(arguments.rounds)]
    if arguments.kernels:
        command += ["--kernels", arguments.kernels]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if result.returncode != 0:
        raise serving.BenchError(result.stderr.strip())
    return json.loads(result.stdout)


def first_token_seconds(cluster, model):
    """Of a request of one token."""
    connection = http.client.HTTPConnection(cluster.http, timeout=60)
    body = json.dumps({"model": model, "prompt": serving.prompt_tokens(1), "max_tokens": 1,
                       "temperature": 0})
    begin = time.monotonic()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    seconds = time.monotonic() - begin
    connection.close()
    if response.status != 200:
        raise serving.BenchError(f"{model}: {response.status} {text[:300]!r}")
    return seconds


def measure_arrivals(folder, folders):
    """[(cold, resident)] seconds until the first token."""
    cluster = serving.Cluster(pathlib.Path(folder) / "cluster")
    try:
        with serving.GrpcDoor(cluster) as door:
            door.generate([0], 2)  # warm; asks again until the gateway has found the decoder
        names = {}
        for path in folders:
            shown = subprocess.run(
                [str(serving.BIN / "cogumi"), "adapter", "load", str(path), "--json"],
                env=cluster.environment, capture_output=True, text=True, timeout=120)
            if shown.returncode != 0:
                raise serving.BenchError(shown.stdout + shown.stderr)
            names[json.loads(shown.stdout)["name"]] = path
        connection = http.client.HTTPConnection(cluster.http, timeout=60)

        def listed():
            connection.request("GET", "/v1/models")
            return [m["id"] for m in json.loads(connection.getresponse().read())["data"]]

        while len(models := listed()) <= len(names):
            time.sleep(0.01)
        arrivals = []
        for model in models[1:]:
            cold = first_token_seconds(cluster, model)
            arrivals.append((cold, statistics.median(
                first_token_seconds(cluster, model) for _ in range(5))))
        return arrivals
    finally:
        cluster.stop()


def evaluate(steps, arrivals):
    def ratio(over, under):
        return statistics.median(r[over] / r[under] for r in steps["rounds"])

    swap = statistics.median(r["decode_turning"] - r["decode_adapter"] for r in steps["rounds"])
    return {
        "decode_ratio": ratio("decode_adapter", "decode"),
        "batch_ratio": ratio("batch8_adapters", "batch8"),
        "prefill_ratio": ratio("prefill_adapter", "prefill"),
        "resident_swap_seconds": max(swap, 0.0) + steps["find_seconds"],
        "cold_swap_seconds": statistics.median(cold - warm for cold, warm in arrivals),
        "load_seconds": statistics.median(steps["load_seconds"]),
    }


def check(figures):
    """Bounds that are broken, in words."""
    bounds = {"decode_ratio": DECODE_BOUND, "batch_ratio": BATCH_BOUND,
              "resident_swap_seconds": RESIDENT_BOUND, "cold_swap_seconds": COLD_BOUND}
    return [f"{name} {figures[name]:.4g}, bound {bound}" for name, bound in bounds.items()
            if figures[name] > bound]


def main():
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="cogumi-bench-") as folder:
        folders = []
        for seed in range(ADAPTERS):
            adapter = peft_adapters.random_adapter(
                peft_adapters.BaseShape(), RANK, kind="F16", seed=seed)
            folders.append(peft_adapters.write(pathlib.Path(folder) / f"bench-{seed}", adapter))
        steps = measure_steps(arguments, folders)
        arrivals = measure_arrivals(folder, folders)
    figures = evaluate(steps, arrivals)
    last = steps["rounds"][-1]
    print(f"{steps['cpu']}, {steps['threads']} threads, {steps['configuration']}; rank {RANK}, "
          f"{steps['adapter_bytes'] / 2**20:.1f} MiB an adapter\n"
          f"decode, batch 1      {(figures['decode_ratio'] - 1) * 100:6.1f} % more "
          f"(bound {(DECODE_BOUND - 1) * 100:.0f}; {last['decode'] * 1e3:.2f} ms a step without)\n"
          f"batch 8, 8 adapters  {(figures['batch_ratio'] - 1) * 100:6.1f} % more "
          f"(bound {(BATCH_BOUND - 1) * 100:.0f}; {last['batch8'] * 1e3:.2f} ms without)\n"
          f"prefill              {(figures['prefill_ratio'] - 1) * 100:6.1f} % more\n"
          f"resident swap        {figures['resident_swap_seconds'] * 1e3:6.3f} ms "
          f"(bound {RESIDENT_BOUND * 1e3:.0f})\n"
          f"cold swap            {figures['cold_swap_seconds'] * 1e3:6.1f} ms "
          f"(bound {COLD_BOUND * 1e3:.0f}; of it packing {figures['load_seconds'] * 1e3:.1f})")
    failures = check(figures)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(
            {**figures, "steps": steps, "arrivals": arrivals, "failures": failures},
            indent=1) + "\n")
    return serving.verdict(failures) if arguments.check else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except serving.BenchError as error:
        sys.exit(f"bench/modifiers: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
