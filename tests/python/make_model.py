"""Writes a tiny model with random weights: python make_model.py KIND FILE.gguf

KIND is `mamba` (one state per sequence), `window` (three of four layers see the last 32 tokens only) or `bert` (reads
texts and writes none; it has no weights, since it is refused before they are read). The vocabulary is bytes and some
pairs of letters. The weights are the same on every run.
"""

import sys

import gguf
import numpy as np

EMBEDDING = 128
LAYERS = 4
WINDOW = 32
CONTEXT = 8192

random = np.random.default_rng(7)


def weights(*shape: int, scale: float = 1.0) -> np.ndarray:
    """Rows by columns; a row of such a matrix times a vector of ones is about `scale`."""
    return (random.standard_normal(shape) * scale / np.sqrt(shape[-1])).astype(np.float32)


def ones(count: int) -> np.ndarray:
    return np.ones(count, dtype=np.float32)


def tokenizer(writer: gguf.GGUFWriter) -> int:
    """SentencePiece's kind. Gives the number of tokens."""
    tokens = [b"<unk>", b"<s>", b"</s>"]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    tokens += [b"<0x%02X>" % byte for byte in range(256)]
    types += [gguf.TokenType.BYTE] * 256
    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = [letter + other for letter in letters[:11] for other in letters[:11]]
    tokens += [text.encode() for text in [*letters, *pairs]]
    types += [gguf.TokenType.NORMAL] * (len(letters) + len(pairs))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(rank) for rank in range(len(tokens))])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    return len(tokens)


def common(kind: str, file: str) -> tuple[gguf.GGUFWriter, int]:
    writer = gguf.GGUFWriter(file, {"window": "cohere2"}.get(kind, kind))
    writer.add_name(f"tiny {kind}")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(LAYERS)
    return writer, tokenizer(writer)


def mamba(file: str) -> gguf.GGUFWriter:
    writer, vocabulary = common("mamba", file)
    inner, state, rank, kernel = 2 * EMBEDDING, 16, 8, 4
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", weights(vocabulary, EMBEDDING, scale=EMBEDDING**0.5))
    writer.add_tensor("output_norm.weight", ones(EMBEDDING))
    writer.add_tensor("output.weight", weights(vocabulary, EMBEDDING, scale=4))
    # Slow decay, so that what was read long ago still counts.
    decay = -np.tile(np.linspace(0.01, 1, state, dtype=np.float32), (inner, 1))
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", ones(EMBEDDING))
        writer.add_tensor(block + "ssm_in.weight", weights(2 * inner, EMBEDDING, scale=2))
        writer.add_tensor(block + "ssm_conv1d.weight", weights(inner, kernel, scale=2))
        writer.add_tensor(block + "ssm_conv1d.bias", weights(inner))
        writer.add_tensor(block + "ssm_x.weight", weights(rank + 2 * state, inner, scale=2))
        writer.add_tensor(block + "ssm_dt.weight", weights(inner, rank))
        writer.add_tensor(block + "ssm_dt.bias", weights(inner))
        writer.add_tensor(block + "ssm_a", decay)
        writer.add_tensor(block + "ssm_d", ones(inner))
        writer.add_tensor(block + "ssm_out.weight", weights(EMBEDDING, inner, scale=2))
    return writer


def window(file: str) -> gguf.GGUFWriter:
    writer, vocabulary = common("window", file)
    heads, forward = 4, 2 * EMBEDDING
    writer.add_feed_forward_length(forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(EMBEDDING // heads)
    writer.add_vocab_size(vocabulary)
    writer.add_sliding_window(WINDOW)
    writer.add_logit_scale(0.25)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tensor("token_embd.weight", weights(vocabulary, EMBEDDING))
    writer.add_tensor("output_norm.weight", ones(EMBEDDING))
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", ones(EMBEDDING))
        for name in ("q", "k"):
            writer.add_tensor(block + f"attn_{name}.weight", weights(EMBEDDING, EMBEDDING, scale=2))
        # Attention over many random values is small: it has to count beside the token itself.
        writer.add_tensor(block + "attn_v.weight", weights(EMBEDDING, EMBEDDING, scale=4))
        writer.add_tensor(block + "attn_output.weight", weights(EMBEDDING, EMBEDDING, scale=4))
        writer.add_tensor(block + "ffn_gate.weight", weights(forward, EMBEDDING))
        writer.add_tensor(block + "ffn_up.weight", weights(forward, EMBEDDING))
        writer.add_tensor(block + "ffn_down.weight", weights(EMBEDDING, forward, scale=2))
    return writer


def bert(file: str) -> gguf.GGUFWriter:
    writer, _ = common("bert", file)
    writer.add_feed_forward_length(EMBEDDING)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)
    return writer


def main() -> None:
    kind, file = sys.argv[1:]
    writer = {"mamba": mamba, "window": window, "bert": bert}[kind](file)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
