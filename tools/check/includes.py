#!/usr/bin/env python3
"""Who may include whom: the arrows of docs/architecture.md, held over every source file.

    tools/check/includes.py [ROOT]     prints each include that breaks a rule; exit code 1 then

A file's layer is the longest entry of LAYERS that its path begins with. It may include its own
layer and those that the layer lists.
"""
import pathlib
import re
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]', re.MULTILINE)
SOURCES = {".cc", ".h", ".cu", ".cuh", ".inl"}

PUBLIC = "engine/include/cogumi"
CORE = "engine/core"
LAYERS: dict[str, set[str]] = {
    # The public headers are plain types: everyone sees them, they see nothing.
    PUBLIC: set(),
    CORE: {PUBLIC},
    "engine/cuda": {PUBLIC, CORE},
    "engine/io": {PUBLIC, CORE},
    "engine/tokenizer": {PUBLIC, CORE, "engine/io"},
    "engine/kernels": {PUBLIC, CORE},
    "engine/memory": {PUBLIC, CORE, "engine/kernels"},
    "engine/model": {PUBLIC, CORE, "engine/cuda", "engine/io", "engine/kernels", "engine/memory",
                     "engine/tokenizer"},
    "engine/decode": {PUBLIC, CORE, "engine/kernels", "engine/memory", "engine/model",
                      "engine/tokenizer"},
    "engine/runtime": {PUBLIC, CORE, "engine/cuda", "engine/decode", "engine/io",
                       "engine/kernels", "engine/memory", "engine/model", "engine/tokenizer"},
    "router": {CORE},
    "services/common": {PUBLIC, CORE, "proto"},
    "services/decoder": {PUBLIC, CORE, "proto", "services/common"},
    "services/gateway": {PUBLIC, CORE, "proto", "services/common"},
    "services/router": {PUBLIC, CORE, "proto", "services/common", "router"},
    # Validates safetensors with the engine's own reader.
    "services/modifiers": {PUBLIC, CORE, "proto", "services/common", "engine/io"},
    "services/cli": {PUBLIC, CORE, "proto", "services/common", "services/decoder",
                     "services/gateway", "services/modifiers", "services/router"},
    "pipeline": {PUBLIC, CORE, "engine"},
}
# Test code may look at anything; nobody in production may look at it.
OUTSIDE_PRODUCTION = ("tests/", "bench/", "tools/")
SYSTEM_LIBRARIES = {
    # Library headers and the only layers that may use them.
    "grpcpp/": {"services"}, "grpc/": {"services"}, "google/protobuf/": {"services"},
    "prometheus/": {"services"}, "cuda": {"engine/cuda", "engine/kernels"},
}


def layer_of(path: str) -> str | None:
    if path.startswith("cogumi/v1/") or path.startswith(("google/rpc/", "grpc/health/")):
        return "proto"
    if path.startswith("cogumi/"):
        return PUBLIC
    matches = [layer for layer in LAYERS if path.startswith(layer + "/")]
    return max(matches, key=len) if matches else None


def violations(root: pathlib.Path) -> list[str]:
    found = []
    for folder in ("engine", "router", "services", "pipeline"):
        for file in sorted((root / folder).rglob("*")):
            if file.suffix not in SOURCES:
                continue
            path = file.relative_to(root).as_posix()
            layer = layer_of(path)
            if layer is None:
                found.append(f"{path}: belongs to no layer of tools/check/includes.py")
                continue
            for included in INCLUDE.findall(file.read_text(errors="replace")):
                if included.startswith(OUTSIDE_PRODUCTION):
                    found.append(f"{path}: production code includes {included}")
                    continue
                target = layer_of(included)
                if target is not None:
                    allowed = LAYERS[layer]
                    if target != layer and target not in allowed and not (
                            "engine" in allowed and target.startswith("engine/")):
                        found.append(f"{path}: {layer} may not include {included} ({target})")
                    continue
                for prefix, users in SYSTEM_LIBRARIES.items():
                    if included.startswith(prefix) and not path.startswith(
                            tuple(user + "/" for user in users)):
                        found.append(f"{path}: {layer} may not use {included}")
    return found


def main() -> int:
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2])
    found = violations(root)
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
