#!/usr/bin/env python3
"""What a cluster costs at rest: time until ready on a warm file cache, memory, processor time."""
import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

import serving

READY_BOUND = 0.5  # seconds
GATEWAY_BOUND = 40 << 20  # bytes resident, idle
DECODER_EXTRA = 120 << 20  # beyond the model file
CPU_BOUND = 0.01  # of a core, all processes together
SERVICES = ("gateway", "router", "decoder", "modifiers")


def resident(pid):
    """{kind: bytes} of a process's resident memory."""
    kinds = {}
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(("VmRSS:", "RssAnon:", "RssFile:")):
            name, value = line.split(":")
            kinds[name] = int(value.split()[0]) * 1024
    return kinds


def processor_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="bench/startup", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail beyond the bounds")
    parser.add_argument("--rounds", type=int, default=5, help="starts that are timed")
    parser.add_argument("--idle", type=float, default=10, help="seconds of rest that are measured")
    parser.add_argument("--json", metavar="OUT", help="write the figures here")
    arguments = parser.parse_args()
    if arguments.rounds < 2 or arguments.idle < 1:
        parser.error("--rounds is at least 2, --idle at least 1")
    return arguments


def measure(arguments, folder):
    ready, answered = [], []
    for number in range(arguments.rounds + 1):  # the first warms the file cache
        begin = time.monotonic()
        cluster = serving.Cluster(pathlib.Path(folder) / str(number))
        seconds = time.monotonic() - begin
        if number < arguments.rounds:
            try:
                with serving.GrpcDoor(cluster) as door:
                    first = door.generate([0], 2)[0].first - begin
            finally:
                cluster.stop()
            if number > 0:
                answered.append(first)
        if number > 0:
            ready.append(seconds)
    try:  # the last cluster has answered nothing yet
        pids = {name: cluster.pid(name) for name in SERVICES}
        idle = {name: resident(pid) for name, pid in pids.items()}
        before = {name: processor_seconds(pid) for name, pid in pids.items()}
        time.sleep(arguments.idle)
        cpu = {name: (processor_seconds(pid) - before[name]) / arguments.idle
               for name, pid in pids.items()}
        with serving.GrpcDoor(cluster) as door:
            serving.one_stream(door, 1, 64)
        serving.one_stream(serving.SseDoor(cluster), 2, 64)
        after = {name: resident(pid) for name, pid in pids.items()}
    finally:
        cluster.stop()
    return {"ready_seconds": ready, "first_token_seconds": answered, "idle": idle, "after_requests": after, "idle_cpu": cpu,
            "model_bytes": serving.model_path().stat().st_size}


def check(figures):
    """Bounds that are broken, in words."""
    failures = []
    ready = statistics.median(figures["ready_seconds"])
    gateway = figures["idle"]["gateway"]["VmRSS"]
    decoder = figures["after_requests"]["decoder"]["VmRSS"]
    cpu = sum(figures["idle_cpu"].values())
    if ready > READY_BOUND:
        failures.append(f"ready after {ready:.2f} s, bound {READY_BOUND}")
    if gateway > GATEWAY_BOUND:
        failures.append(f"gateway holds {gateway / 2**20:.1f} MiB, bound {GATEWAY_BOUND >> 20}")
    if decoder > figures["model_bytes"] + DECODER_EXTRA:
        failures.append(f"decoder holds {decoder / 2**20:.1f} MiB, bound "
                        f"{(figures['model_bytes'] + DECODER_EXTRA) / 2**20:.1f}")
    if cpu > CPU_BOUND:
        failures.append(f"idle processes take {cpu:.2%} of a core, bound {CPU_BOUND:.0%}")
    return failures


def main():
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="cogumi-bench-") as folder:
        figures = measure(arguments, folder)
    ready = figures["ready_seconds"]
    print(f"ready     {statistics.median(ready):.3f} s, median of {len(ready)} warm starts "
          f"({min(ready):.3f}-{max(ready):.3f}), from the command to four ready services\n"
          f"answer    {statistics.median(figures['first_token_seconds']):.3f} s until the first "
          "token of a request sent at once\n\n"
          f"{'MiB resident':12}{'idle':>8}{'after':>8}{'anonymous':>11}   idle processor")
    for name in SERVICES:
        idle, after = figures["idle"][name], figures["after_requests"][name]
        print(f"{name:12}{idle['VmRSS'] / 2**20:8.1f}{after['VmRSS'] / 2**20:8.1f}"
              f"{after['RssAnon'] / 2**20:11.1f}   {figures['idle_cpu'][name]:.2%}")
    print(f"model file  {figures['model_bytes'] / 2**20:8.1f}")
    failures = check(figures)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(
            json.dumps({**figures, "failures": failures}, indent=1) + "\n")
    return serving.verdict(failures) if arguments.check else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except serving.BenchError as error:
        sys.exit(f"bench/startup: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
