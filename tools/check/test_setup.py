"""tools/setup/lib.sh: what ./run and ./test do when something is missing or breaks off."""
import os
import pathlib
import shutil
import signal
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def library(tmp_path):
    """The library in a tree of its own: what it makes is made there."""
    copy = tmp_path / "tools/setup/lib.sh"
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / "tools/setup/lib.sh", copy)
    return copy


def start(library, script, **options):
    # A shell in the background starts its commands with SIGINT ignored, which no shell below can
    # take back.
    return subprocess.Popen(["bash", "-uc", f'source "{library}"\n{script}'], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                            **options)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_and_cleans_up(library, tmp_path, number, code):
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = start(library, f"""scratch={scratch}
logged "Waiting" {tmp_path}/log bash -c 'echo $$ >{fifo}; exec sleep 1000'
""")
    child = int(fifo.read_text())
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code and "interrupted" in errors
    assert not scratch.exists()
    assert not os.path.exists(f"/proc/{child}")


def test_the_status_of_a_command_comes_through(library, tmp_path):
    process = start(library, f"logged Failing {tmp_path}/log bash -c 'echo why; exit 7'; exit $?")
    process.communicate(timeout=30)
    assert process.returncode == 7 and (tmp_path / "log").read_text() == "why\n"


def test_an_environment_that_was_broken_off_is_made_again(library, tmp_path):
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/usr/bin/python3")
    process = start(library, "ensure_venv")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    subprocess.run([python, "-m", "pip", "--version"], check=True, capture_output=True)
    # And not a second time.
    process = start(library, "ensure_venv")
    assert "Creating" not in process.communicate(timeout=120)[1] and process.returncode == 0


def test_without_a_home_it_says_so(library):
    bare = {"PATH": os.environ["PATH"]}
    process = start(library, "ensure_model", env=bare)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "HOME" in errors and "then:" in errors and "unbound" not in errors
