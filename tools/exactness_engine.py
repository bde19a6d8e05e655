"""The engine's logits, through the program cogumi-logits."""
import dataclasses
import json
import subprocess
import threading

import numpy as np


class EngineError(Exception):
    """What the program said."""


class UnsupportedTier(EngineError):
    """This processor lacks the instructions of the tier."""


@dataclasses.dataclass
class Sequence:
    tokens: list
    logits_from: int  # logits of this and all later positions
    decode_from: int  # earlier positions are a prompt in chunks, later ones come one a step

    def line(self):
        return " ".join(map(str, [self.logits_from, self.decode_from, *self.tokens]))


@dataclasses.dataclass(frozen=True)
class Configuration:
    kernels: str = ""  # "": the best of this machine
    activations: str = "mixed"
    kv: str = "f16"


def logits(binary, model, configuration, sequences):
    """Yields first the program's header, then a float32 array [rows, vocabulary] a sequence."""
    command = [str(binary), str(model), "--activations", configuration.activations,
               "--kv", configuration.kv]
    if configuration.kernels:
        command += ["--kernels", configuration.kernels]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        errors = []
        reader = threading.Thread(target=lambda: errors.append(process.stderr.read()), daemon=True)
        reader.start()
        try:
            process.stdin.write("\n".join(s.line() for s in sequences).encode() + b"\n")
            process.stdin.close()
        except BrokenPipeError:
            pass  # it ended early; the exit status below tells why
        head = process.stdout.readline()
        if head:
            header = json.loads(head)
            yield header
            for sequence in sequences:
                rows = len(sequence.tokens) - sequence.logits_from
                data = process.stdout.read(rows * header["vocabulary"] * 4)
                if len(data) != rows * header["vocabulary"] * 4:
                    break
                yield np.frombuffer(data, dtype="<f4").reshape(rows, header["vocabulary"])
        process.wait()
        reader.join()
        if process.returncode != 0:
            message = b"".join(errors).decode(errors="replace").strip()
            kind = UnsupportedTier if process.returncode == 3 else EngineError
            raise kind(message or f"{command[0]} ended with {process.returncode}")
