#!/usr/bin/env python3
"""Rules that every committed file keeps.

    tools/check/files.py [ROOT]     prints each breach; exit code 1 then

Files stay under 800 lines; no path of a particular machine or registry host is written down; no
promise or placeholder is left open; text has no trailing blanks, tabs (but in Makefiles) or missing last newline.
"""
import pathlib
import re
import subprocess
import sys

MOST_LINES = 800
MOST_COLUMNS = 100
CODE = {".cc", ".h", ".cu", ".cuh", ".inl", ".py", ".proto", ".cmake", ".sh", ".yaml", ".yml"}
# Folders whose files are written by a program or are others' work.
GENERATED = re.compile(
    r"^(proto/third_party/|tests/support/golden.*\.json$|tools/setup/requirements-.*\.txt$"
    r"|.*\.(json|bin|binpb|gguf|safetensors|svg|png)$)")
MACHINE_PATH = re.compile(
    r"(?<![A-Za-z0-9_.~$}-])/(work|farm|root)/|(?<![A-Za-z0-9_.$}-])/home/[a-z]"
    r"|(?<![A-Za-z0-9_.-])/tmp/w\b")
REGISTRY = re.compile(r"files\.pythonhosted\.org|pypi\.org/simple|--index-url|--extra-index-url")
OPEN_PROMISE = re.compile(r"\b(TODO|FIXME|XXX)\b")
PLACEHOLDER = re.compile(r"@@[A-Z][A-Z0-9_]*@@")


def tracked_files(root: pathlib.Path) -> list[str]:
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], check=True,
                            capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (root / name).is_file()]


def breaches(name: str, text: str) -> list[str]:
    """What is wrong with one file's text."""
    found = []
    generated = GENERATED.match(name) is not None
    lines = text.split("\n")
    code = pathlib.PurePath(name).suffix in CODE
    if code and not generated and len(lines) - 1 > MOST_LINES:
        found.append(f"{name}: {len(lines) - 1} lines, at most {MOST_LINES}")
    # This file names what it looks for.
    if not name.startswith("tools/check/"):
        for number, line in enumerate(lines, 1):
            if MACHINE_PATH.search(line):
                found.append(f"{name}:{number}: a machine's own path: {line.strip()}")
            if REGISTRY.search(line):
                found.append(f"{name}:{number}: a registry host: {line.strip()}")
            if PLACEHOLDER.search(line):
                found.append(f"{name}:{number}: a placeholder: {line.strip()}")
            if code and OPEN_PROMISE.search(line):
                found.append(f"{name}:{number}: a promise left open: {line.strip()}")
    if generated:
        return found
    if text and not text.endswith("\n"):
        found.append(f"{name}: no newline at the end")
    for number, line in enumerate(lines, 1):
        if code and line != line.rstrip():
            found.append(f"{name}:{number}: blanks at the end of the line")
        if code and "\t" in line:
            found.append(f"{name}:{number}: a tab")
        if pathlib.PurePath(name).suffix in {".cc", ".h", ".cu"} and len(line) > MOST_COLUMNS:
            found.append(f"{name}:{number}: {len(line)} columns, at most {MOST_COLUMNS}")
    return found


def header_breaches(name: str, text: str) -> list[str]:
    if name.endswith(".h") and not name.startswith("proto/") and "#pragma once" not in text:
        return [f"{name}: no #pragma once"]
    return []


def check(root: pathlib.Path) -> list[str]:
    found = []
    for name in tracked_files(root):
        try:
            text = (root / name).read_text()
        except UnicodeDecodeError:
            continue  # not text
        found += breaches(name, text) + header_breaches(name, text)
    return found


def main() -> int:
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2])
    found = check(root)
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
