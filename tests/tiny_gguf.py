"""A tiny Llama in a .gguf file, as llama.cpp's converter would write it: random weights, a token for every byte."""

from pathlib import Path

import gguf
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tiny import END, byte_tokenizer


def save_tiny_gguf(path: Path, seed: int = 0) -> LlamaForCausalLM:
    """Write it, and return the model that it holds, in float32."""
    bytes_alone = byte_tokenizer().get_vocab()
    tokens = [*sorted(bytes_alone, key=bytes_alone.__getitem__), "ca"]  # a reader asks for a merge
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config).eval()
    file = gguf.GGUFWriter(path, "llama")
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    file.add_vocab_size(config.vocab_size)
    file.add_tokenizer_model("gpt2")
    file.add_token_list(tokens)
    file.add_token_types(
        [gguf.TokenType.CONTROL if token == END else gguf.TokenType.NORMAL for token in tokens]
    )
    file.add_token_merges(["c a"])
    file.add_eos_token_id(tokens.index(END))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        for part, number in heads.items():
            if part in name:  # GGUF's rotary embedding turns neighbours, transformers' turns halves
                tensor = tensor.unflatten(0, (number, 2, -1)).transpose(1, 2).reshape(tensor.shape)
        file.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.contiguous().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return model
