#!/usr/bin/env python3
"""Makes tests/golden/tiny/: random Llamas of two layers, and their logits as transformers computes them in f32.

All weights lie on the bf16 grid, whatever type they are stored in, so rounding while loading changes nothing.

usage: make_tiny_llama.py
"""
import json
import struct
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

OUT = Path(__file__).resolve().parent / "tiny"
VOCAB, LAYERS, TOKENS = 97, 2, 40
MAGIC = b"SBTINY01"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}

# name: (hidden, heads, kv heads, head size, ffn, stored type, shards, keys that differ in config.json)
MODELS = {
    "untied": (64, 4, 2, 16, 32, torch.bfloat16, 1, {"rope_scaling": None}),
    "rope_llama3": (64, 4, 2, 16, 32, torch.bfloat16, 1, {"rope_scaling": LLAMA3}),
    "tied": (48, 3, 1, 32, 32, torch.bfloat16, 1,
             {"tie_word_embeddings": True, "head_dim": 32, "rope_theta": None,
              "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}),
    "f16": (64, 4, 2, 16, 32, torch.float16, 1, {}),
    "f32": (32, 2, 1, 16, 32, torch.float32, 1, {}),
    "sharded": (64, 4, 4, 16, 16, torch.bfloat16, 2, {"rms_norm_eps": 1e-6}),
}


def config_of(hidden, heads, kv_heads, ffn, dtype, changes):
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": hidden, "intermediate_size": ffn,
        "max_position_embeddings": 256, "mlp_bias": False, "num_attention_heads": heads, "num_hidden_layers": LAYERS,
        "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."), "vocab_size": VOCAB}
    config.update(changes)
    return {k: v for k, v in config.items() if v is not None or k == "rope_scaling"}


def on_grid(x):
    """Nearest bf16 values; the few below f16's normal range become 0, so that f16 holds them all."""
    x = x.to(torch.bfloat16).to(torch.float32)
    return torch.where(x.abs() < 2.0 ** -14, torch.zeros(()), x)


def random_weights(hidden, heads, kv_heads, head_dim, ffn, tied, generator):
    def matrix(rows, cols, gain=1.0):
        return on_grid(torch.randn(rows, cols, generator=generator) * (gain / cols ** 0.5))

    def norm():
        return on_grid(1.0 + 0.25 * torch.randn(hidden, generator=generator))

    weights = {"model.embed_tokens.weight": matrix(VOCAB, hidden, hidden ** 0.5), "model.norm.weight": norm()}
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        weights[layer + "input_layernorm.weight"] = norm()
        weights[layer + "self_attn.q_proj.weight"] = matrix(heads * head_dim, hidden, 2.0)
        weights[layer + "self_attn.k_proj.weight"] = matrix(kv_heads * head_dim, hidden, 2.0)
        weights[layer + "self_attn.v_proj.weight"] = matrix(kv_heads * head_dim, hidden)
        weights[layer + "self_attn.o_proj.weight"] = matrix(hidden, heads * head_dim)
        weights[layer + "post_attention_layernorm.weight"] = norm()
        weights[layer + "mlp.gate_proj.weight"] = matrix(ffn, hidden, 2.0)
        weights[layer + "mlp.up_proj.weight"] = matrix(ffn, hidden)
        weights[layer + "mlp.down_proj.weight"] = matrix(hidden, ffn, 2.0)
    if not tied:
        weights["lm_head.weight"] = matrix(VOCAB, hidden, 2.0)
    return weights


def save(folder, weights, dtype, shards):
    stored = {name: w.to(dtype) for name, w in weights.items()}
    assert all(torch.equal(stored[name].to(torch.float32), w) for name, w in weights.items())
    if shards == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, where = list(stored), {}
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        part = names[s::shards]  # neighbours in different files, on purpose
        where.update(dict.fromkeys(part, file))
        save_file({name: stored[name] for name in part}, folder / file, metadata={"format": "pt"})
    total = sum(w.numel() * w.element_size() for w in stored.values())
    index = {"metadata": {"total_size": total}, "weight_map": {name: where[name] for name in sorted(where)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def make(number, name):
    hidden, heads, kv_heads, head_dim, ffn, dtype, shards, changes = MODELS[name]
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(hidden, heads, kv_heads, ffn, dtype, changes)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    generator = torch.Generator().manual_seed(1000 + number)
    tied = config["tie_word_embeddings"]
    save(folder, random_weights(hidden, heads, kv_heads, head_dim, ffn, tied, generator), dtype, shards)
    ids = torch.randint(0, VOCAB, (1, TOKENS), generator=generator)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(ids).logits[0]
    data = MAGIC + struct.pack("<2I", TOKENS, VOCAB) + struct.pack(f"<{TOKENS}I", *ids[0].tolist())
    (folder / "logits.bin").write_bytes(data + logits.contiguous().numpy().astype("<f4").tobytes())
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: {size} bytes, logits {logits.min():.2f}..{logits.max():.2f}")


def main():
    torch.set_num_threads(1)
    for number, name in enumerate(MODELS):
        make(number, name)


if __name__ == "__main__":
    main()
