#!/usr/bin/env python3
"""Writes a small PEFT adapter folder for tests: random F16 weights for the default model.

    make_adapter.py FOLDER [--rank 8] [--seed 1] [--domain code] [--targets q_proj,v_proj]
"""

import argparse
import json
import pathlib
import random
import struct

BASE_DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LAYERS, WIDTH, KEYS, INNER = 30, 576, 192, 1536
LINEARS = {
    "q_proj": ("self_attn", WIDTH, WIDTH),
    "k_proj": ("self_attn", WIDTH, KEYS),
    "v_proj": ("self_attn", WIDTH, KEYS),
    "o_proj": ("self_attn", WIDTH, WIDTH),
    "gate_proj": ("mlp", WIDTH, INNER),
    "up_proj": ("mlp", WIDTH, INNER),
    "down_proj": ("mlp", INNER, WIDTH),
}


def tensors(rank, targets):
    for layer in range(LAYERS):
        for module in targets:
            block, inputs, outputs = LINEARS[module]
            prefix = f"base_model.model.model.layers.{layer}.{block}.{module}"
            yield f"{prefix}.lora_A.weight", (rank, inputs)
            yield f"{prefix}.lora_B.weight", (outputs, rank)


def write_adapter(folder, rank=8, seed=1, domain="code", targets=("q_proj", "v_proj")):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    header, data = {}, bytearray()
    for name, shape in tensors(rank, targets):
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
        "domain": domain, "license": "Apache-2.0", "base_digest": BASE_DIGEST,
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
