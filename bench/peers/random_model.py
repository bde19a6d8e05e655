"""A GGUF file of random F16 weights in the shape of a known model, without a vocabulary.

Speed does not depend on the values, so a large model's speed can be measured without its file.
"""
import dataclasses
import pathlib

PIECE = 1 << 24  # values drawn at once


@dataclasses.dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int

    def tensors(self):
        """Names and shapes (rows before inputs), in file order; the head is the embedding."""
        kv_width = self.width // self.heads * self.kv_heads
        yield "token_embd.weight", (self.vocabulary, self.width)
        yield "output_norm.weight", (self.width,)
        for layer in range(self.layers):
            for name, shape in (
                    ("attn_norm", (self.width,)), ("ffn_norm", (self.width,)),
                    ("attn_q", (self.width, self.width)), ("attn_k", (kv_width, self.width)),
                    ("attn_v", (kv_width, self.width)), ("attn_output", (self.width, self.width)),
                    ("ffn_gate", (self.feed_forward, self.width)),
                    ("ffn_up", (self.feed_forward, self.width)),
                    ("ffn_down", (self.width, self.feed_forward))):
                yield f"blk.{layer}.{name}.weight", shape


LLAMA_1B = Shape(layers=16, width=2048, feed_forward=8192, heads=32, kv_heads=8, vocabulary=128256)


def write(path, shape, seed=0):
    """Writes the file; needs the gguf package. Matrices are normal with deviation 0.03."""
    import gguf
    import numpy as np

    path = pathlib.Path(path)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random weights")
    writer.add_block_count(shape.layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")
    kinds = {name: np.dtype(np.float32 if len(size) == 1 else np.float16)
             for name, size in shape.tensors()}
    for name, size in shape.tensors():
        count = int(np.prod(size, dtype=np.int64))
        writer.add_tensor_info(name, size, kinds[name], count * kinds[name].itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(seed)
    for name, size in shape.tensors():
        values = np.ones(size, kinds[name])
        if len(size) > 1:
            flat = values.reshape(-1)
            for first in range(0, flat.size, PIECE):
                piece = flat[first:first + PIECE]
                piece[:] = generator.standard_normal(piece.size, np.float32) * np.float32(0.03)
        writer.write_tensor_data(values)
    writer.close()
