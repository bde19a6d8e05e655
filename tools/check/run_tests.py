#!/usr/bin/env python3
"""Runs what ./test built, counts single cases and ends with `N passed, N failed, N skipped`.

GoogleTest binaries and other ctest entries come from `ctest --show-only=json-v1`; Python tests
from pytest. A subset is a ctest label or a folder of Python tests.
"""
import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[2]
REPORTS = ROOT / "build" / "test-reports"
# Folders of Python tests by subset.
PYTHON_TESTS = {"unit": "tests/unit", "kernels": "tests/kernels", "services": "tests/services",
                "fuzz": "tests/fuzz", "lint": "tools/check", "e2e": "tests/e2e"}
PYTEST_TIMEOUT_SECONDS = 1500
# About half a minute a file and core.
CLANG_TIDY_TIMEOUT_SECONDS = 3000
# One thread races with nobody: not run under the thread sanitizer, which takes minutes for them.
SINGLE_THREADED = {"kernel_conformance_test", "gguf_fuzz_test", "decode_test", "io_test",
                   "memory_test", "router_test", "tokenizer_test"}
SANITIZERS = {
    "asan": {"ASAN_OPTIONS": "abort_on_error=0:detect_leaks=1:allocator_may_return_null=1",
             "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1"},
    "tsan": {"TSAN_OPTIONS": "halt_on_error=0:second_deadlock_stack=1"
                             # The session store is killed in a child.
                             ":die_after_fork=0"},
}


@dataclasses.dataclass
class Outcome:
    passed: int = 0
    failed: list[str] = dataclasses.field(default_factory=list)
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped


@dataclasses.dataclass
class CtestEntry:
    name: str
    command: list[str]
    labels: list[str]
    timeout: float
    directory: str
    environment: dict[str, str]
    skip_code: int | None

    def belongs_to(self, subsets: set[str]) -> bool:
        """An entry without a label of ours belongs to unit."""
        return bool((set(self.labels) & set(PYTHON_TESTS) or {"unit"}) & subsets)


def ctest_entries(build: str) -> list[CtestEntry]:
    folder = ROOT / build
    shown = subprocess.run(["ctest", "--test-dir", str(folder), "--show-only=json-v1"], check=True,
                           capture_output=True, text=True).stdout
    entries = []
    for test in json.loads(shown)["tests"]:
        properties = {p["name"]: p["value"] for p in test.get("properties", [])}
        environment = dict(line.split("=", 1) for line in properties.get("ENVIRONMENT", []))
        entries.append(CtestEntry(
            test["name"], test.get("command", []), properties.get("LABELS", []),
            float(properties.get("TIMEOUT", 300)), properties.get("WORKING_DIRECTORY", str(folder)),
            environment, properties.get("SKIP_RETURN_CODE")))
    return entries


def run_command(command: list[str], log: pathlib.Path, timeout: float, **kwargs) -> int | None:
    """The exit code; None after a timeout. The whole process group ends with the command."""
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL, start_new_session=True, **kwargs)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None


def tail(log: pathlib.Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def gtest_cases(entry: CtestEntry) -> list[str] | None:
    """Names of the cases, or None when the command is no GoogleTest binary."""
    binary = pathlib.Path(entry.command[0])
    if binary.parent.name != "tests" or len(entry.command) != 1:
        return None
    listed = subprocess.run([str(binary), "--gtest_list_tests"], capture_output=True, text=True,
                            cwd=entry.directory, timeout=60)
    if listed.returncode != 0:
        return None
    suite, cases = "", []
    for line in listed.stdout.splitlines():
        if not line.startswith(" "):
            suite = line.split("#")[0].strip()
        elif suite.endswith("."):
            cases.append(suite + line.split("#")[0].strip())
    return cases


def read_junit(report: pathlib.Path, prefix: str, separator: str) -> Outcome:
    """What GoogleTest or pytest wrote; `separator` stands between class and case."""
    try:
        suites = xml.etree.ElementTree.parse(report)
    except xml.etree.ElementTree.ParseError as error:
        return Outcome(failed=[f"{prefix}{report.name} ({error})"])
    outcome = Outcome()
    for case in suites.iter("testcase"):
        name = f"{prefix}{case.get('classname')}{separator}{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed.append(name)
        elif skipped is not None:
            # GoogleTest's words follow a line "FILE:LINE".
            words = re.sub(r"^\S+:\d+\n", "", skipped.get("message", "")).strip()
            outcome.skipped.append((name, words or "no reason given"))
        elif case.get("status") != "notrun":
            outcome.passed += 1
    return outcome


def describe(code: int | None, timeout: float) -> str:
    if code is None:
        return f"no end after {timeout:.0f} s"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def run_entry(entry: CtestEntry, pattern: re.Pattern | None, list_only: bool, prefix: str,
              environment: dict[str, str]) -> Outcome | None:
    """None when nothing of the entry matches the pattern."""
    name = prefix + entry.name
    cases = gtest_cases(entry)
    command = list(entry.command)
    if cases is None:
        chosen = [name] if not pattern or pattern.search(name) else []
    else:
        chosen = [c for c in cases if not pattern or pattern.search(f"{name}/{c}")]
        if pattern and len(chosen) < len(cases):
            command.append("--gtest_filter=" + ":".join(chosen))
    if not chosen:
        return None
    if list_only:
        for case in chosen:
            print(name if cases is None else f"{name}/{case}")
        return Outcome()

    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    report, log = REPORTS / f"{stem}.xml", REPORTS / f"{stem}.log"
    report.unlink(missing_ok=True)
    if cases is not None:
        command.append(f"--gtest_output=xml:{report}")
    start = time.monotonic()
    inherited = dict(os.environ)
    if environment:
        # A sanitizer takes its time; long tests run without one.
        inherited.pop("COGUMI_LONG_TESTS", None)
    scale = 5 if environment or "COGUMI_LONG_TESTS" in inherited else 1
    timeout = entry.timeout * scale
    code = run_command(command, log, timeout, cwd=entry.directory,
                       env={**inherited, **entry.environment, **environment})
    if cases is not None and report.exists():
        outcome = read_junit(report, name + "/", ".")
        if code != 0 and not outcome.failed:
            outcome.failed.append(f"{name} ({describe(code, timeout)} after its tests)")
    elif code == 0:
        outcome = Outcome(passed=1)
    elif entry.skip_code is not None and code == entry.skip_code:
        outcome = Outcome(skipped=[(name, tail(log, 1))])
    else:
        outcome = Outcome(failed=[f"{name} ({describe(code, timeout)})"])
    show(name, outcome, time.monotonic() - start, log)
    return outcome


def show(name: str, outcome: Outcome, seconds: float, log: pathlib.Path) -> None:
    state = "FAILED" if outcome.failed else "ok"
    lines = [f"{state:6} {name}: {outcome.passed} passed, {len(outcome.failed)} failed, "
             f"{len(outcome.skipped)} skipped, {seconds:.1f} s"]
    if outcome.failed:
        lines += ["       " + line for line in tail(log, 60).splitlines()]
    print("\n".join(lines), flush=True)


def pytest_ids(folder: str, log: pathlib.Path) -> list[str]:
    code = run_command([sys.executable, "-m", "pytest", "--collect-only", "-q", folder], log, 120,
                       cwd=ROOT)
    if code not in (0, 5):  # 5: nothing collected
        raise SystemExit(f"pytest could not read {folder}:\n{tail(log)}")
    return [line for line in log.read_text().splitlines() if "::" in line]


def run_pytest(subset: str, folder: str, pattern: re.Pattern | None,
               list_only: bool) -> Outcome | None:
    if not any((ROOT / folder).rglob("test_*.py")):
        return None
    report, log = REPORTS / f"pytest-{subset}.xml", REPORTS / f"pytest-{subset}.log"
    targets = [folder]
    if pattern or list_only:
        collected = pytest_ids(folder, REPORTS / f"collect-{subset}.log")
        targets = [i for i in collected if not pattern or pattern.search(i)]
        if not targets:
            return None
    if list_only:
        print("\n".join(targets))
        return Outcome()
    report.unlink(missing_ok=True)
    start = time.monotonic()
    code = run_command([sys.executable, "-m", "pytest", "-q", "-rs", "--junitxml", str(report),
                        *targets], log, PYTEST_TIMEOUT_SECONDS, cwd=ROOT)
    outcome = read_junit(report, "", "::") if report.exists() else Outcome()
    if code not in (0, 5) and not outcome.failed:
        outcome.failed.append(f"pytest {folder} ({describe(code, PYTEST_TIMEOUT_SECONDS)})")
    show(f"pytest {folder}", outcome, time.monotonic() - start, log)
    return outcome


def sanitizer_entries(sanitizer: str, subsets: set[str], quiet: bool) -> list[CtestEntry]:
    entries = []
    for entry in ctest_entries(f"build-{sanitizer}"):
        if sanitizer == "tsan" and entry.name in SINGLE_THREADED:
            if not quiet:
                print(f"left out tsan:{entry.name}: one thread races with nobody")
        elif entry.belongs_to(subsets):
            entries.append(entry)
    return entries


def run_sanitizers(subsets: set[str], pattern: re.Pattern | None,
                   list_only: bool) -> list[Outcome | None]:
    """The sanitizers beside each other, each with a folder for temporary files: most of their
    tests keep one core busy."""

    def run(sanitizer: str) -> list[Outcome | None]:
        entries = sanitizer_entries(sanitizer, subsets, bool(pattern) or list_only)
        with tempfile.TemporaryDirectory(prefix=f"cogumi-{sanitizer}-") as folder:
            environment = {**SANITIZERS[sanitizer], "TMPDIR": folder, "TEST_TMPDIR": folder}
            return [run_entry(entry, pattern, list_only, f"{sanitizer}:", environment)
                    for entry in entries]

    workers = 1 if list_only else len(SANITIZERS)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return [outcome for outcomes in pool.map(run, SANITIZERS) for outcome in outcomes]


def run_clang_tidy(pattern: re.Pattern | None, list_only: bool) -> Outcome | None:
    script = ROOT / "tools" / "check" / "clang_tidy.py"
    entry = CtestEntry("clang-tidy", [sys.executable, str(script)], [],
                       CLANG_TIDY_TIMEOUT_SECONDS, str(ROOT), {}, None)
    return run_entry(entry, pattern, list_only, "", {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subsets", nargs="*", choices=[*PYTHON_TESTS, []])
    parser.add_argument("-R", dest="regex", help="run only tests whose full name matches")
    parser.add_argument("--list", action="store_true", help="print names, run nothing")
    parser.add_argument("--all", action="store_true", help="also sanitizers and clang-tidy")
    arguments = parser.parse_args()
    try:
        pattern = re.compile(arguments.regex) if arguments.regex else None
    except re.error as error:
        parser.error(f"-R {arguments.regex!r}: {error}")
    subsets = set(arguments.subsets or PYTHON_TESTS)
    REPORTS.mkdir(parents=True, exist_ok=True)

    total, ran = Outcome(), 0

    def take(outcome: Outcome | None) -> None:
        nonlocal ran
        if outcome is not None:
            ran += 1
            total.add(outcome)

    if subsets != {"lint"}:
        for entry in ctest_entries("build"):
            if entry.belongs_to(subsets):
                take(run_entry(entry, pattern, arguments.list, "", {}))
    # The end-to-end tests come last: a failure there is easier to read when the parts are green.
    for subset, folder in PYTHON_TESTS.items():
        if subset in subsets:
            take(run_pytest(subset, folder, pattern, arguments.list))
    if arguments.all:
        for outcome in run_sanitizers(subsets, pattern, arguments.list):
            take(outcome)
        if "lint" in subsets:
            take(run_clang_tidy(pattern, arguments.list))

    if not ran:
        print("error: no test matches", file=sys.stderr)
        return 2
    if arguments.list:
        return 0
    for name in total.failed:
        print(f"failed: {name}")
    for name, reason in total.skipped:
        print(f"skipped: {name}: {reason}")
    print(f"{total.passed} passed, {len(total.failed)} failed, {len(total.skipped)} skipped")
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
