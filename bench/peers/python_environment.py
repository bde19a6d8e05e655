"""Python environments beside the project's own, for what only a comparison needs."""
import pathlib
import subprocess
import sys

from llama_cpp import PeerError


def environment(folder, requirements, say, name):
    """Python of an environment with these pinned packages, made when missing."""
    folder = pathlib.Path(folder)
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = requirements.read_text()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    say(f"installing {name} into {folder}")
    for command in ([sys.executable, "-m", "venv", str(folder)],
                    [str(python), "-m", "pip", "install", "--require-hashes", "--only-binary",
                     ":all:", "--disable-pip-version-check", "--quiet", "-r", str(requirements)]):
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode != 0:
            raise PeerError(f"installing {name} failed:\n  " +
                            "\n  ".join(process.stderr.splitlines()[-8:]))
    stamp.write_text(wanted)
    return python
