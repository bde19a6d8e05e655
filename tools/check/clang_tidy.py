#!/usr/bin/env python3
"""clang-tidy with .clang-tidy's list over every source file of ours that the build compiles.

    tools/check/clang_tidy.py [PATTERN]    only files whose path matches; exit code 1 on findings
"""
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = re.compile(r"^(engine|router|services|pipeline|tools|tests|bench)/")


def sources(pattern: str) -> list[str]:
    commands = json.loads((ROOT / "build/compile_commands.json").read_text())
    names = {pathlib.Path(c["directory"], c["file"]).resolve() for c in commands}
    inside = {n.relative_to(ROOT).as_posix() for n in names if n.is_relative_to(ROOT)}
    return sorted(n for n in inside if OURS.match(n) and re.search(pattern, n))


def tidy(name: str) -> tuple[str, str]:
    result = subprocess.run(["clang-tidy", "-quiet", "-p", "build", name], cwd=ROOT,
                            capture_output=True, text=True)
    if result.returncode == 0:
        return name, ""
    # Killed for memory, or without a configuration, it says nothing on standard output.
    return name, result.stdout + result.stderr or f"{name}: exit code {result.returncode}"


def main() -> int:
    failed = 0
    names = sources(sys.argv[1] if len(sys.argv) > 1 else "")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, findings in pool.map(tidy, names):
            if findings:
                failed += 1
                print(findings, flush=True)
    print(f"clang-tidy: {len(names)} files, {failed} with findings")
    return 1 if failed or not names else 0


if __name__ == "__main__":
    sys.exit(main())
