#!/usr/bin/env python3
"""Writes a small PEFT adapter folder for tests: random F16 weights for the default model.

    make_adapter.py FOLDER [--rank 8] [--seed 1] [--domain code] [--targets q_proj,v_proj]
"""

import argparse
import dataclasses
import json
import pathlib
import random
import struct


@dataclasses.dataclass(frozen=True)
class Base:
    """The model that an adapter is for; the default model unless told otherwise."""
    digest: str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    layers: int = 30
    width: int = 576
    queries: int = 576
    keys: int = 192
    inner: int = 1536

    def linears(self):
        return {
            "q_proj": ("self_attn", self.width, self.queries),
            "k_proj": ("self_attn", self.width, self.keys),
            "v_proj": ("self_attn", self.width, self.keys),
            "o_proj": ("self_attn", self.queries, self.width),
            "gate_proj": ("mlp", self.width, self.inner),
            "up_proj": ("mlp", self.width, self.inner),
            "down_proj": ("mlp", self.inner, self.width),
        }


def tensors(rank, targets, base):
    for layer in range(base.layers):
        for module in targets:
            block, inputs, outputs = base.linears()[module]
            prefix = f"base_model.model.model.layers.{layer}.{block}.{module}"
            yield f"{prefix}.lora_A.weight", (rank, inputs)
            yield f"{prefix}.lora_B.weight", (outputs, rank)


def write_adapter(folder, rank=8, seed=1, domain="code", targets=("q_proj", "v_proj"),
                  base=Base()):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    header, data = {}, bytearray()
    for name, shape in tensors(rank, targets, base):
        begin = len(data)
        count = shape[0] * shape[1]
        data += struct.pack(f"<{count}e", *(rng.uniform(-0.02, 0.02) for _ in range(count)))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "adapter_model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + bytes(data))
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank,
        "lora_dropout": 0.0, "bias": "none", "target_modules": list(targets),
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "inference_mode": True, "modules_to_save": None, "use_dora": False}, indent=2))
    (folder / "card.json").write_text(json.dumps({
        "domain": domain, "license": "Apache-2.0", "base_digest": base.digest,
        "description": "Random weights for tests."}, indent=2))
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--domain", default="code")
    parser.add_argument("--targets", default="q_proj,v_proj")
    options = parser.parse_args()
    print(write_adapter(options.folder, options.rank, options.seed, options.domain,
                        options.targets.split(",")))


if __name__ == "__main__":
    main()
