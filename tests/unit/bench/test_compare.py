"""bench/peers/compare with doubles of all sides: turns, verdict, report and figures."""
import contextlib
import json
import os
import pathlib
import stat
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench" / "peers"))
import compare  # noqa: E402
import llama_cpp  # noqa: E402
import rows  # noqa: E402
import sides  # noqa: E402
import verdict  # noqa: E402

# Its speed in a row is a file's content; its calls go to another.
OURS = """#!/bin/sh
echo "ours $*" >> "$(dirname "$0")/calls"
rate=5000
case "$*" in *int4*) rate=5800 ;; esac
while [ $# -gt 0 ]; do [ "$1" = --tests ] && name=$2; shift; done
rate=$(cat "$(dirname "$0")/$name" 2>/dev/null || echo $rate)
echo '{"machine": {"cpu": "x", "cores": 2, "features": "f", "read_bandwidth": 25e9,
 "barrier_seconds": 3e-8, "vnni_products": 4e14}, "bytes_per_token": 4800000, "configuration": "c",
 "rows": [{"name": "'$name'", "tokens_per_second": ['$rate'], "tokens_per_step": 1,
 "kv_bytes_per_step": 0, "products_per_token": 1000000}]}'
"""


class Peers:
    """llama-bench, llama-batched-bench and OpenVINO at fixed speeds."""

    def __init__(self, folder):
        self.folder = folder
        self.decode, self.prefill, self.batch, self.openvino = 200.0, 800.0, 400.0, 1600.0
        self.calls = []
        self.opened = self.closed = 0

    def _note(self, text):
        with open(self.folder / "calls", "a") as file:
            file.write(text + "\n")

    def bench(self, binaries, model, arguments, timeout=None):
        self.calls.append(arguments)
        self._note("llama " + pathlib.Path(model).name)
        value = dict(zip(arguments[::2], arguments[1::2]))
        generate = int(value["-n"])
        rate = self.decode if generate else self.prefill
        return [{"prompt": int(value["-p"]), "generate": generate,
                 "options": {"fa": int(flash), "t": int(threads), "ub": int(ub)},
                 "samples": [rate * (1 + int(flash) * 0.1) * int(threads) / 2]}
                for flash in value["-fa"].split(",") for threads in value["-t"].split(",")
                for ub in value["-ub"].split(",")]

    def batched(self, binaries, model, *_):
        return self.batch

    def paused(self, binaries, model, depth, generate, samples, arguments):
        self.calls.append([*arguments, "-d", str(depth)])
        self.opened += 1
        return Sampled(self, self.decode)


class Sampled:
    """What keeps its process between rounds: llama-bench behind a long prompt, OpenVINO."""

    def __init__(self, peers, rate):
        self._peers, self._rate = peers, rate

    def sample(self):
        self._peers._note("llama sample")
        return self._rate

    def prefill(self, tokens):
        assert tokens == 512
        return self._rate

    def close(self):
        self._peers.closed += 1


@pytest.fixture
def peers(tmp_path, monkeypatch):
    double = Peers(tmp_path)
    monkeypatch.setattr(llama_cpp, "build", lambda *_: tmp_path)
    monkeypatch.setattr(llama_cpp, "is_built", lambda *_: True)
    monkeypatch.setattr(llama_cpp, "bench", double.bench)
    monkeypatch.setattr(llama_cpp, "batched", double.batched)
    monkeypatch.setattr(llama_cpp, "quantize", lambda _, source, target, say: target)
    monkeypatch.setattr(compare, "random_1b", lambda *_: tmp_path / "1b.gguf")
    monkeypatch.setattr(llama_cpp, "PausedBench", double.paused)
    monkeypatch.setattr(compare.openvino_peer, "OpenVino", lambda *_: Sampled(double, double.openvino))
    monkeypatch.setattr(compare, "cpu_flags", lambda: {"avx2", "avx512_vnni"})
    return double


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, peers):
    binary, model = tmp_path / "ours", tmp_path / "model.gguf"
    binary.write_text(OURS)
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    model.write_bytes(b"GGUF")

    def run_compare(*arguments):
        (tmp_path / "calls").unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", ["compare", "--model", str(model), "--bench", str(binary),
                                          "--threads", "2", *arguments])
        return compare.main(), capsys.readouterr().out

    return run_compare


def test_all_rows_are_compared_and_checked(run, peers, tmp_path):
    out = tmp_path / "out.json"
    code, text = run("--check", "--json", str(out))
    assert code == 0 and "check: passed" in text
    figures = json.loads(out.read_text())
    assert [row["name"] for row in figures["rows"]] == [row.name for row in rows.ROWS]
    by_name = {row["name"]: row for row in figures["rows"]}
    assert by_name["decode"]["ours"] == [5000] * 5
    assert by_name["decode"]["peers"] == {rows.Q4_1: [pytest.approx(220)] * 5,
                                          rows.Q4_0: [pytest.approx(220)] * 5}
    assert by_name["prefill"]["peers"][rows.OPENVINO] == [1600] * 5
    assert by_name["fast-prefill"]["peers"] == by_name["prefill"]["peers"]
    assert by_name["decode"]["rounds"][0]["bandwidth_limit"] == pytest.approx(25e9 / 4.8e6)
    assert len(by_name["loaded"]["peers"][rows.Q4_1]) == rows.BY_NAME["loaded"].rounds
    for row in rows.ROWS:
        assert row.title in text


def test_rows_under_load_or_of_one_thread_alone_are_reported_too(run):
    for name in ("loaded", "decode-1"):
        code, text = run("--rows", name, "--rounds", "1")
        assert code == 0 and "read bandwidth   25.0 GB/s" in text


def test_a_slower_row_fails_the_check_and_is_named(run, tmp_path):
    (tmp_path / "prefill").write_text("1599")
    code, text = run("--check")
    assert code == 1 and "check: failed" in text
    assert "FAILED: prefill 512: 1.00 x of OpenVINO GenAI, floor 1.00" in text
    assert "FAILED: decode" not in text


def test_a_run_with_a_disturbed_peer_is_void(run, peers):
    peers.decode = 60.0  # 66 tok/s with flash attention, at 25 GB/s
    code, text = run("--check")
    assert code == 1 and "check: void" in text
    assert "void: llama.cpp Q4_1 decoded 66 tok/s, 2.6 per GB/s of bandwidth, below 3.8" in text


def test_both_sides_take_turns_and_change_who_begins(run, peers, tmp_path):
    run("--rows", "decode", "--rounds", "2")
    calls = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    # The first call of each peer also searches its options.
    assert calls == ["ours", "llama", "llama", "llama", "llama", "llama", "llama", "ours"]


def test_long_prompts_are_computed_once_and_their_processes_ended(run, peers, tmp_path):
    run("--rows", "depth,depth-int4", "--rounds", "3")
    assert peers.opened == peers.closed == 4  # two rows, two files
    assert (tmp_path / "calls").read_text().count("llama sample") == 3 * 4
    run("--rows", "prefill", "--rounds", "1")
    assert peers.closed == 5  # OpenVINO
    (tmp_path / "ours").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(llama_cpp.PeerError):
        run("--rows", "prefill", "--rounds", "1")
    assert peers.closed == 6


def test_the_peer_runs_at_its_best_options(run, peers):
    run("--rows", "decode,decode-1,depth-int4", "--rounds", "1")
    decode, one, deep = [call for call in peers.calls if "0,1" not in call][::2]
    assert decode[decode.index("-fa") + 1] == "1" and decode[decode.index("-t") + 1] == "2"
    assert one[one.index("-t") + 1] == "1"
    assert deep[deep.index("-ctk") + 1] == deep[deep.index("-ctv") + 1] == "q4_0"
    assert deep[deep.index("-d") + 1] == "4096"


def test_a_loaded_row_runs_beside_a_busy_process(monkeypatch, run):
    cores = sorted(os.sched_getaffinity(0))
    loaded, original = [], sides.busy_core

    def busy_core(core):
        loaded.append(core)
        return original(core)

    monkeypatch.setattr(sides, "busy_core", busy_core)
    run("--rows", "decode,loaded", "--rounds", "2")
    assert loaded == [cores[0], cores[1 % len(cores)]]


def test_a_busy_core_is_computed_on_and_left_again():
    core = min(os.sched_getaffinity(0))
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("no list of children in /proc")
    before = children.read_text().split()
    with sides.busy_core(core):
        process, = set(children.read_text().split()) - set(before)
        assert os.sched_getaffinity(int(process)) == {core}
    assert children.read_text().split() == before


def test_a_busy_process_ends_with_its_parent():
    # A parent that is killed cannot clean up; its child must see that it is gone.
    parent = subprocess.Popen(
        [sys.executable, "-c", "import os, sides, sys\n"
         "with sides.busy_core(min(os.sched_getaffinity(0))):\n"
         "    os.system('cat /proc/{0}/task/{0}/children; echo'.format(os.getpid()))\n"
         "    sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT / "bench" / "peers")
    child = pathlib.Path("/proc") / parent.stdout.readline().split()[0] / "stat"

    def runs():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return child.read_text().rsplit(")", 1)[1].split()[0] != "Z"
        return False

    assert runs()
    parent.kill()
    parent.wait()
    while runs():
        pass  # until the test's limit, if it does not end


def test_elsewhere_only_the_avx2_line_and_exactness_are_checked(run, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "cpu_flags", lambda: {"avx2"})
    exact = []
    monkeypatch.setattr(compare, "check_exactness", lambda: exact.append(1) or exact != [1, 1])
    code, text = run("--check")
    assert code == 0 and exact == [1] and "only the AVX2 line and exactness" in text
    assert rows.BY_NAME["decode"].title + " " not in text
    code, _ = run("--check")  # exactness fails
    assert code == 1
    exact.clear()
    (tmp_path / "decode").write_text("219")
    code, text = run("--check")
    assert code == 1 and "FAILED: decode, AVX2 kernels: 1.00 x of" in text


def test_avx2_rows_need_their_peer(run, monkeypatch):
    monkeypatch.setattr(llama_cpp, "is_built", lambda *_: False)
    code, text = run("--rounds", "1")
    assert code == 0 and rows.BY_NAME["avx2-decode"].title not in text
    for arguments in (["--avx2", "--rounds", "1"], ["--check"]):
        code, text = run(*arguments)
        assert code == 0 and rows.BY_NAME["avx2-decode"].title in text


FLOORS = [(row, floor) for row in rows.ROWS for floor in row.floors if not floor.own]


@pytest.mark.parametrize("row, floor", FLOORS, ids=[f"{r.name}-{f.of}" for r, f in FLOORS])
def test_each_floor_of_the_table_is_held(row, floor):
    """Peers at 100 tok/s; ours just below and at the floor, all other floors far away."""
    def bounds(ours):
        result = sides.Results(row)
        result.ours = [ours] * 5
        result.machine = [sides.Machine(bandwidth=25e9, barrier=30e-9, vnni=4e14,
                                        bandwidth_limit=1e9, arithmetic_limit=1e9)] * 5
        result.peers = {name: [1e-3] * 5 for name in row.peers}
        result.peers[floor.of] = [100.0] * 5
        return [b for b in verdict.row_bounds(result, {row.name: result})
                if b.what == "x of " + floor.of]

    wanted = EXPECTED[row.name, floor.of]
    assert bounds(100 * wanted)[0].met
    below = bounds(100 * wanted - 1)[0]
    assert not below.met and below.floor == wanted


# The promises, apart from the table that is checked.
EXPECTED = {
    ("decode", rows.Q4_1): 2.0, ("decode", rows.Q4_0): 1.3,
    ("decode-1", rows.Q4_1): 2.4, ("decode-1", rows.Q4_0): 1.0,
    ("prefill", rows.Q4_1): 5.0, ("prefill", rows.Q4_0): 2.0, ("prefill", rows.OPENVINO): 1.0,
    ("prefill-1", rows.Q4_0): 1.8, ("five", rows.Q4_1): 3.6, ("five", rows.Q4_0): 2.2,
    ("batch8", rows.Q4_1): 4.0, ("batch8", rows.Q4_0): 2.4,
    ("batch32", rows.Q4_1): 4.2, ("batch32", rows.Q4_0): 2.2,
    ("depth", rows.Q4_1): 2.0, ("depth", rows.Q4_0): 2.0,
    ("depth-int4", rows.Q4_1): 6.0, ("depth-int4", rows.Q4_0): 6.0,
    ("1b-decode", rows.Q4_0): 1.05, ("1b-prefill", rows.Q4_0): 2.0,
    ("avx2-decode", rows.Q4_1_AVX2): 1.0,
}


def test_no_floor_of_the_table_is_missing():
    assert {(row.name, floor.of): floor.times for row, floor in FLOORS} == EXPECTED
    own = {(row.name, floor.of): floor.times for row in rows.ROWS for floor in row.floors
           if floor.own}
    assert own == {("depth-int4", "depth"): 1.15, ("loaded", "decode"): 0.40}
    shares = {row.name: (row.share.shared, row.share.apart) for row in rows.ROWS if row.share}
    assert shares == {"decode": (0.85, 0.75), "1b-decode": (0.92, 0.92)}
    assert rows.BY_NAME["loaded"].floors[0].every_round


def test_the_figures_and_their_plot_go_into_docs(run, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(compare, "FIGURES", tmp_path / "figures" / "peers.json")
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(compare.plot, "draw_in_environment",
                        lambda cache, figures, target, say: drawn.append((figures, target)))
    run("--avx2", "--rounds", "1", "--docs")
    figures, target = drawn[0]
    assert target.name == "peers.svg" and json.loads(figures.read_text())["rows"][0]["ours"]


def test_part_of_the_rows_does_not_replace_the_figures(run, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "FIGURES", tmp_path / "figures" / "peers.json")
    monkeypatch.setattr(compare, "cpu_flags", lambda: {"avx2"})
    for arguments in (["--rows", "decode"], ["--check"]):
        with pytest.raises(SystemExit, match="--docs needs all rows"):
            run(*arguments, "--docs")
    assert not compare.FIGURES.exists()


@pytest.mark.parametrize("arguments, message", [
    (["--rows", "decode,nine"], "no row 'nine'"),
    (["--rounds", "0"], "at least 1"),
    (["--check", "--rounds", "4"], "--check needs at least 5"),
    (["--check", "--rows", "decode"], "--check needs all rows"),
    (["--check", "--arguments", "--activations fast"], "--check needs the default"),
    (["--model", "/nowhere.gguf"], "no file /nowhere.gguf"),
])
def test_bad_arguments_are_named(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err
