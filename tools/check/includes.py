#!/usr/bin/env python3
"""Who may include whom: the arrows of docs/architecture.md, held over every source file.

    tools/check/includes.py [ROOT]     prints each include that breaks a rule; exit code 1 then

A file's layer is the longest entry of LAYERS that its path begins with. It may include its own
layer, those that the layer lists, and the single headers of EXCEPTIONS. Kernels may include the
standard library's plain headers beside that, and libraries only where KERNEL_LIBRARIES says.
"""
import pathlib
import re
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]', re.MULTILINE)
SOURCES = {".cc", ".h", ".cu", ".cuh", ".inl"}

PUBLIC = "engine/include/cogumi"
CORE = "engine/core"
KERNELS = "engine/kernels"
LAYERS: dict[str, set[str]] = {
    # The public headers are plain types: everyone sees them, they see nothing.
    PUBLIC: set(),
    CORE: {PUBLIC},
    "engine/io": {PUBLIC, CORE},
    "engine/tokenizer": {PUBLIC, CORE, "engine/io"},
    # Compiled for one instruction set: nothing whose inline functions another machine may link.
    KERNELS: set(),
    "engine/memory": {PUBLIC, CORE, "engine/kernels"},
    "engine/model": {PUBLIC, CORE, "engine/io", "engine/kernels", "engine/memory",
                     "engine/tokenizer"},
    "engine/decode": {PUBLIC, CORE, "engine/kernels", "engine/memory", "engine/model",
                      "engine/tokenizer"},
    "engine/runtime": {PUBLIC, CORE, "engine/decode", "engine/io",
                       "engine/kernels", "engine/memory", "engine/model", "engine/tokenizer"},
    "router": {CORE},
    "services/common": {PUBLIC, CORE, "proto"},
    "services/decoder": {PUBLIC, CORE, "proto", "services/common"},
    "services/gateway": {PUBLIC, CORE, "proto", "services/common"},
    "services/router": {PUBLIC, CORE, "proto", "services/common", "router"},
    # Reads the base model's shape with the engine's own reader.
    "services/modifiers": {PUBLIC, CORE, "proto", "services/common", "engine/io"},
    "services/cli": {PUBLIC, CORE, "proto", "services/common", "services/decoder",
                     "services/gateway", "services/modifiers", "services/router"},
}
# Headers beside the layers: file or folder that includes -> what it may include.
EXCEPTIONS: dict[str, set[str]] = {
    KERNELS + "/": {"engine/core/half.h"},
}
# Chooses a tier and explains it; it is compiled without one.
KERNEL_LIBRARIES = {
    "engine/kernels/registry.h": ("absl/status/statusor.h",),
    "engine/kernels/registry.cc": ("absl/strings/str_cat.h", "absl/strings/str_join.h",
                                   "sys/syscall.h"),  # asks for AMX
}
# Test code may look at anything; nobody in production may look at it.
OUTSIDE_PRODUCTION = ("tests/", "bench/", "tools/")
SYSTEM_LIBRARIES = {
    # Library headers and the only layers that may use them.
    "grpcpp/": {"services"}, "grpc/": {"services"}, "google/protobuf/": {"services"},
    "prometheus/": {"services"},
}


def layer_of(path: str) -> str | None:
    if path.startswith("cogumi/v1/") or path.startswith(("google/rpc/", "grpc/health/")):
        return "proto"
    if path.startswith("cogumi/"):
        return PUBLIC
    matches = [layer for layer in LAYERS if path.startswith(layer + "/")]
    return max(matches, key=len) if matches else None


def is_exception(path: str, included: str) -> bool:
    return any(path.startswith(user) and included in headers
               for user, headers in EXCEPTIONS.items())


def violations(root: pathlib.Path) -> list[str]:
    found = []
    for folder in ("engine", "router", "services"):
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
                    if (target != layer and target not in LAYERS[layer]
                            and not is_exception(path, included)):
                        found.append(f"{path}: {layer} may not include {included} ({target})")
                    continue
                if layer == KERNELS and "/" in included and included not in KERNEL_LIBRARIES.get(
                        path, ()):
                    found.append(f"{path}: {layer} may not use {included}")
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
