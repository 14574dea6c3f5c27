"""The header of a GGUF of Mistral-7B-Instruct-v0.3: hyper-parameters, and the vocabulary of Mistral's own mistral-common."""

import gguf
import mistral_venv
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

TEMPLATES = mistral_venv.REPOSITORY / "tests" / "templates"

EMBEDDING = 4096
FEED_FORWARD = 14336
HEADS = 32
HEADS_KV = 8
HEAD = 128
LAYERS = 32


def token_type(model, piece: int) -> gguf.TokenType:
    if model.is_unknown(piece):
        return gguf.TokenType.UNKNOWN
    if model.is_control(piece):
        return gguf.TokenType.CONTROL
    if model.is_byte(piece):
        return gguf.TokenType.BYTE
    return gguf.TokenType.NORMAL


def write(writer: gguf.GGUFWriter, layers: int = LAYERS, template: str = "new", space_prefix: bool | None = None) -> int:
    """Adds the header to `writer`, which writes it. Returns the number of tokens."""
    model = MistralTokenizer.v3().instruct_tokenizer.tokenizer._model
    pieces = range(model.vocab_size())
    writer.add_name("Mistral-7B-Instruct-v0.3")
    writer.add_context_length(32768)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS_KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(model.vocab_size())
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([model.id_to_piece(piece) for piece in pieces])
    writer.add_token_scores([model.get_score(piece) for piece in pieces])
    writer.add_token_types([token_type(model, piece) for piece in pieces])
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    writer.add_unk_token_id(model.unk_id())
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    if space_prefix is not None:
        writer.add_add_space_prefix(space_prefix)
    writer.add_chat_template((TEMPLATES / f"mistral_{template}.jinja").read_text())
    return len(pieces)
