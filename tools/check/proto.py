#!/usr/bin/env python3
"""The contracts: style, and no change that breaks a client.

    tools/check/proto.py            buf lint, and buf breaking against proto/cogumi.binpb
    tools/check/proto.py --update   writes the image anew, after a change that breaks nothing

Works offline, with the buf of requirements-test.txt.
"""
import argparse
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGE = "proto/cogumi.binpb"


def buf(*arguments: str, root: pathlib.Path = ROOT) -> subprocess.CompletedProcess:
    beside = pathlib.Path(sys.executable).parent / "buf"
    program = str(beside) if beside.exists() else shutil.which("buf")
    if program is None:
        raise SystemExit("buf is missing; ./test lint installs it into .venv")
    return subprocess.run([program, *arguments], cwd=root, capture_output=True, text=True)


def lint(root: pathlib.Path = ROOT) -> str:
    """What buf finds; empty when all is well."""
    result = buf("lint", root=root)
    return "" if result.returncode == 0 else result.stdout + result.stderr


def breaking(root: pathlib.Path = ROOT) -> str:
    result = buf("breaking", "--against", str(ROOT / IMAGE), root=root)
    return "" if result.returncode == 0 else result.stdout + result.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the image anew")
    arguments = parser.parse_args()
    found = lint() + breaking() if (ROOT / IMAGE).exists() else lint()
    print(found, end="")
    if found:
        return 1
    if arguments.update:
        result = buf("build", "-o", IMAGE)
        print(result.stderr, end="")
        return result.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
