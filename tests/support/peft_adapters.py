"""LoRA adapters as PEFT writes them: random ones, their folders, merging into a ruler's weights."""
import dataclasses
import json
import pathlib
import struct

import numpy as np

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GGUF_NAMES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
              "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
BASE_DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@dataclasses.dataclass(frozen=True)
class BaseShape:
    """The defaults are the default model's."""
    layers: int = 30
    width: int = 576
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    hidden: int = 1536

    @classmethod
    def of_tiny(cls, shape) -> "BaseShape":
        return cls(shape.layers, shape.width, shape.heads, shape.kv_heads, shape.head_dim,
                   shape.hidden)

    def linear(self, module: str) -> tuple[str, int, int]:
        """Block, inputs, outputs."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {"q_proj": ("self_attn", self.width, queries),
                "k_proj": ("self_attn", self.width, keys),
                "v_proj": ("self_attn", self.width, keys),
                "o_proj": ("self_attn", queries, self.width),
                "gate_proj": ("mlp", self.width, self.hidden),
                "up_proj": ("mlp", self.width, self.hidden),
                "down_proj": ("mlp", self.hidden, self.width)}[module]


@dataclasses.dataclass(frozen=True)
class PeftAdapter:
    shape: BaseShape
    rank: int
    alpha: float
    modules: tuple[str, ...]
    kind: str  # F32, F16 or BF16
    tensors: dict[str, np.ndarray]  # float32 values that the kind holds exactly

    def delta(self, layer: int, module: str) -> np.ndarray:
        """What is added to the weights [outputs, inputs] as PEFT has them."""
        prefix = tensor_prefix(self.shape, layer, module)
        a = self.tensors[prefix + "A.weight"].astype(np.float64)
        b = self.tensors[prefix + "B.weight"].astype(np.float64)
        return self.alpha / self.rank * (b @ a)


def tensor_prefix(shape: BaseShape, layer: int, module: str) -> str:
    return f"base_model.model.model.layers.{layer}.{shape.linear(module)[0]}.{module}.lora_"


def rounded(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "F16":
        return values.astype(np.float16).astype(np.float32)
    if kind == "BF16":
        return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return values


def random_adapter(shape: BaseShape, rank: int, modules=LINEARS, kind="F32", seed=1,
                   strength=0.5) -> PeftAdapter:
    """The difference of each linear has about `strength` times the size of random weights of
    deviation 1 / sqrt(inputs)."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(shape.layers):
        for module in modules:
            _, inputs, outputs = shape.linear(module)
            prefix = tensor_prefix(shape, layer, module)
            a = rng.normal(0, inputs ** -0.5, (rank, inputs)).astype(np.float32)
            b = rng.normal(0, strength * rank ** -0.5 / 2, (outputs, rank)).astype(np.float32)
            tensors[prefix + "A.weight"] = rounded(a, kind)
            tensors[prefix + "B.weight"] = rounded(b, kind)
    return PeftAdapter(shape, rank, 2.0 * rank, tuple(modules), kind, tensors)


def write(folder: pathlib.Path, adapter: PeftAdapter, domain="code",
          base_digest=BASE_DIGEST) -> pathlib.Path:
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    header, data = {}, bytearray()
    for name, values in adapter.tensors.items():
        begin = len(data)
        if adapter.kind == "F16":
            data += values.astype("<f2").tobytes()
        elif adapter.kind == "BF16":
            data += (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            data += values.astype("<f4").tobytes()
        header[name] = {"dtype": adapter.kind, "shape": list(values.shape),
                        "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "adapter_model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + bytes(data))
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": adapter.rank,
        "lora_alpha": adapter.alpha, "lora_dropout": 0.0, "bias": "none",
        "target_modules": list(adapter.modules)}))
    (folder / "card.json").write_text(json.dumps({
        "domain": domain, "license": "Apache-2.0", "base_digest": base_digest,
        "description": "Random weights."}))
    return folder


def merge(model, adapter: PeftAdapter) -> None:
    """Adds the differences to a ruler's weights. GGUF has the rows of a head of q and k so that the
    two halves alternate: row 2 i + j of a head is row j * head_dim / 2 + i of PEFT's."""
    shape = adapter.shape
    for layer in range(shape.layers):
        for module in adapter.modules:
            delta = adapter.delta(layer, module)
            if module in ("q_proj", "k_proj"):
                halves = delta.reshape(-1, 2, shape.head_dim // 2, delta.shape[1])
                delta = halves.swapaxes(1, 2).reshape(delta.shape)
            model.merge(f"blk.{layer}.{GGUF_NAMES[module]}", delta)
