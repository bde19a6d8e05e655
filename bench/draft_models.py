"""Draft models for benchmarks, made out of the model itself: its first layers, or nothing but its
vocabulary with random weights. Written with the `gguf` package into a temporary folder."""
import gguf
import numpy

SMALL_WIDTH, SMALL_LAYERS = 128, 2


def _copy_fields(reader, writer, changed):
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = changed.get(field.name, field.contents())
        writer.add_key_value(field.name, value, kind, sub_type=inner)


def _write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def first_layers(model, path, layers):
    """The model cut off behind its first `layers` layers."""
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(path, "llama")
    _copy_fields(reader, writer, {"llama.block_count": layers})
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        if parts[0] == "blk" and int(parts[1]) >= layers:
            continue
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    _write(writer)


def random_weights(model, path, seed=1):
    """A small model that has the vocabulary and knows nothing."""
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(path, "llama")
    width, hidden, heads = SMALL_WIDTH, 2 * SMALL_WIDTH, 2
    _copy_fields(reader, writer, {
        "llama.block_count": SMALL_LAYERS, "llama.embedding_length": width,
        "llama.feed_forward_length": hidden, "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": heads, "llama.rope.dimension_count": width // heads})
    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    random = numpy.random.default_rng(seed)

    def add(name, rows, columns):
        values = random.standard_normal((rows, columns), dtype=numpy.float32) / columns**0.5
        writer.add_tensor(name, values.astype(numpy.float16))

    add("token_embd.weight", vocabulary, width)
    writer.add_tensor("output_norm.weight", numpy.ones(width, numpy.float32))
    for layer in range(SMALL_LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", numpy.ones(width, numpy.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", width, width)
        add(f"blk.{layer}.ffn_gate.weight", hidden, width)
        add(f"blk.{layer}.ffn_up.weight", hidden, width)
        add(f"blk.{layer}.ffn_down.weight", width, hidden)
    _write(writer)
