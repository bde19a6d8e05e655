"""Both sides of the comparison: each measures one row once and answers tokens a second."""
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys

import llama_cpp
import rows
from rows import LlamaBatch

# A peer that a loaded core stops almost entirely is not waited for.
LOADED_TIMEOUT = 60
BATCH_SEARCH_TOKENS = 16  # of each sequence


@dataclasses.dataclass
class Machine:
    """What ours measured around one of its tests."""
    bandwidth: float
    barrier: float
    vnni: float
    # Tokens a second that reading the weights and the cache, or vpdpbusd, would allow.
    bandwidth_limit: float
    arithmetic_limit: float  # 0: no AVX-512 VNNI


# Ends by itself when its parent is gone, however that ended.
BUSY = "import os\nwhile os.getppid() == {}: pass"


@contextlib.contextmanager
def busy_core(core):
    """Another process computes on this core meanwhile."""
    process = subprocess.Popen([sys.executable, "-c", BUSY.format(os.getpid())])
    try:
        os.sched_setaffinity(process.pid, {core})
        yield
    finally:
        process.kill()
        process.wait()


class Engine:
    """cogumi-engine-bench."""

    def __init__(self, binary, models, threads, arguments):
        self._binary, self._models = binary, models
        self._threads, self._arguments = threads, list(arguments)
        self.description = None  # of the machine, from the last run
        self.configurations = {}  # row name -> kernel fingerprint

    def measure(self, row):
        """(tokens a second, Machine)."""
        command = [str(self._binary), str(self._models[row.model]), "--tests", row.test,
                   "--threads", str(row.threads or self._threads), *self._arguments,
                   *row.arguments]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode != 0:
            raise llama_cpp.PeerError(process.stderr.strip() or f"{command[0]} failed")
        output = json.loads(process.stdout)
        self.description = {**output["machine"], "bytes_per_token": output["bytes_per_token"]} \
            if row.model == "default" else self.description
        self.configurations[row.name] = output["configuration"]
        test = output["rows"][0]
        return statistics.median(test["tokens_per_second"]), machine_of(row, output)


def machine_of(row, output):
    machine, test = output["machine"], output["rows"][0]
    bytes_of_step = output["bytes_per_token"] + test["kv_bytes_per_step"]
    products = test["products_per_token"] * row.planes
    return Machine(
        bandwidth=machine["read_bandwidth"], barrier=machine["barrier_seconds"],
        vnni=machine["vnni_products"],
        bandwidth_limit=machine["read_bandwidth"] * test["tokens_per_step"] / bytes_of_step,
        arithmetic_limit=machine["vnni_products"] / products if products else 0.0)


class LlamaCpp:
    """llama.cpp on one file, at the options that a search found best for each kind of work."""

    def __init__(self, label, binaries, models, threads, rounds, say):
        self._label, self._binaries, self._models = label, binaries, models
        self._threads, self._rounds, self._say = threads, rounds, say
        self._best = {}  # (model, key of options) -> options
        self._paused = {}  # row name -> PausedBench

    def _options(self, row):
        key = (row.model, row.key_of_options)
        if key not in self._best:
            batch = isinstance(row.peer_test, LlamaBatch)
            options, rate = self._search_batch(row) if batch else self._search(row)
            self._best[key] = options
            self._say(f"  {self._label}, {row.model} model, best for {row.key_of_options}: flash "
                      f"attention {'on' if options['fa'] else 'off'}, micro-batch "
                      f"{options['ub']}, {options['t']} threads: {rate:.0f} tok/s")
        return self._best[key]

    def _search_batch(self, row):
        """Flash attention; the prompts' micro-batch is not part of the figure."""
        test, found = row.peer_test, []
        for flash in (0, 1):
            options = {"fa": flash, "t": self._threads, "ub": 512}
            found.append((options, llama_cpp.batched(
                self._binaries, self._models[row.model], test.sequences, test.prompt,
                BATCH_SEARCH_TOKENS, options)))
        return max(found, key=lambda one: one[1])

    def _search(self, row):
        """Flash attention, and the micro-batch of prompts or the threads of decoding."""
        threads = ",".join(str(count) for count in sorted({1, self._threads}))
        arguments = {
            "decode": ["-p", "0", "-n", "64", "-r", "2", "-ub", "512", "-t", threads],
            "prefill": ["-p", "512", "-n", "0", "-r", "1", "-ub", "128,512",
                        "-t", str(self._threads)],
            "five": ["-p", "5", "-n", "0", "-r", "8", "-ub", "512", "-t", str(self._threads)],
            "depth": ["-p", "0", "-n", "16", "-d", "1024", "-r", "1", "-ub", "512",
                      "-t", str(self._threads)],
        }[row.key_of_options]
        results = llama_cpp.bench(self._binaries, self._models[row.model],
                                  [*arguments, "-fa", "0,1"])
        winner = max(results, key=lambda result: max(result["samples"]))
        return winner["options"], max(winner["samples"])

    def measure(self, row):
        """Tokens a second."""
        test, options = row.peer_test, dict(self._options(row))
        if row.threads:
            options["t"] = row.threads
        model = self._models[row.model]
        if isinstance(test, LlamaBatch):
            return llama_cpp.batched(self._binaries, model, test.sequences, test.prompt,
                                     test.generate, options)
        if test.kv != "f16":
            options["fa"] = 1  # a quantised cache needs it
        arguments = ["-t", str(options["t"]), "-ub", str(options["ub"]), "-fa", str(options["fa"]),
                     "-ctk", test.kv, "-ctv", test.kv]
        if test.depth:
            if row.name not in self._paused:
                self._paused[row.name] = llama_cpp.PausedBench(
                    self._binaries, model, test.depth, test.generate, self._rounds, arguments)
            return self._paused[row.name].sample()
        arguments += ["-p", str(test.prompt), "-n", str(test.generate), "-r", str(test.repeat)]
        try:
            result, = llama_cpp.bench(self._binaries, model, arguments,
                                      LOADED_TIMEOUT if row.loaded else None)
        except llama_cpp.PeerTimeout:
            self._say(f"  {self._label}: not done after {LOADED_TIMEOUT} s, counted as 0 tok/s")
            return 0.0
        return statistics.median(result["samples"])

    def close(self):
        for paused in self._paused.values():
            paused.close()


class Prefill:
    """A peer that only computes prompts."""

    def __init__(self, worker):
        self._worker = worker

    def measure(self, row):
        return self._worker.prefill(row.peer_test.prompt)

    def close(self):
        self._worker.close()


def core_to_load(number):
    """Alternately each core, so that neither the caller's nor the worker's is spared."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[number % len(cores)]


def measure_round(row, number, engine, peers, results):
    """One round of a row: ours and its peers in turns; odd rounds in the other order."""
    names = [None, *(row.peers if not row.rounds or number < row.rounds else ())]
    if number % 2:
        names.reverse()
    with busy_core(core_to_load(number)) if row.loaded else contextlib.nullcontext():
        for name in names:
            if name is None:
                rate, machine = engine.measure(row)
                results.ours.append(rate)
                results.machine.append(machine)
            else:
                results.peers[name].append(peers[name].measure(row))


@dataclasses.dataclass
class Results:
    """Samples of a row, one a round."""
    row: rows.Row
    ours: list = dataclasses.field(default_factory=list)
    machine: list = dataclasses.field(default_factory=list)
    peers: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in self.row.peers:
            self.peers.setdefault(name, [])
