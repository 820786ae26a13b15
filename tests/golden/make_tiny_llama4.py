#!/usr/bin/env python3
"""Makes tests/golden/llama4/: random Llama 4 text models, and what transformers computes with them in f32.

All weights lie on the bf16 grid before any is quantised. llama4_maths.py computes everything a second time from the
files as written; the two must agree, and must not if the second is given a network that is wrong in one point.

usage: make_tiny_llama4.py
"""
import json
import struct
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import Llama4Config, Llama4ForCausalLM, Llama4ForConditionalGeneration, Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4MultiModalProjector, Llama4VisionModel

import llama4_maths as maths

OUT = Path(__file__).resolve().parent / "llama4"
MAGIC = b"SBLLAMA4"
TOKENS = 50
POSITIONS = (0, 7, 8, 15, 16, 31, 32, 49)  # stored of what is large: borders of chunks, of floor_scale
E4M3_MAX = 448.0
TOLERANCE = 1e-4
FP8 = torch.float8_e4m3fn
PREFIX = "language_model."
VISION = ("vision_model.", "multi_modal_projector.")

TEXT = {
    "model_type": "llama4_text", "attention_bias": False, "attention_chunk_size": 16, "attention_dropout": 0.0,
    "attn_scale": 0.1, "bos_token_id": 1, "eos_token_id": [2, 3, 4], "floor_scale": 8, "for_llm_compressor": False,
    "head_dim": 16, "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 16,
    "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2, "max_position_embeddings": 1024,
    "no_rope_layers": [], "num_attention_heads": 4, "num_experts_per_tok": 1, "num_hidden_layers": 4,
    "num_key_value_heads": 2, "num_local_experts": 8, "output_router_logits": False, "pad_token_id": 5,
    "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 500000.0, "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0, "torch_dtype": "bfloat16", "use_cache": True, "use_qk_norm": False, "vocab_size": 96}
SCOUT = {
    "interleave_moe_layer_step": 1, "num_local_experts": 4, "use_qk_norm": True, "attn_temperature_tuning": 4,
    "rope_scaling": {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 64, "rope_type": "llama3"}}
TOP_LEVEL = {  # None removes a key
    "architectures": ["Llama4ForCausalLM"], "intermediate_size": 24, "intermediate_size_mlp": 16,
    "no_rope_layers": [0, 1, 1, 0], "num_experts_per_tok": 2, "num_local_experts": 4, "attention_chunk_size": 12,
    "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 97,
    "floor_scale": 5, "rope_theta": None, "rope_scaling": None, "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
WRAPPER = {"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "boi_token_index": 93,
           "eoi_token_index": 94, "image_token_index": 95, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
VISION_CONFIG = {
    "model_type": "llama4_vision_model", "hidden_size": 8, "image_size": 4, "intermediate_size": 32, "norm_eps": 1e-5,
    "num_attention_heads": 2, "num_hidden_layers": 1, "patch_size": 2, "pixel_shuffle_ratio": 0.5,
    "projector_input_dim": 8, "projector_output_dim": 8, "rope_theta": 10000.0, "vision_output_dim": 8}

# The seeds are those of 24 tried whose closest routing decisions are least close.
# name: (seed, keys that differ from TEXT, layout)
MODELS = {
    "maverick": (6, {"num_hidden_layers": 8, "intermediate_size_mlp": 24}, "sharded"),
    "scout": (6, SCOUT, "single"),
    "text": (17, TOP_LEVEL, "top_level"),
    "fp8_meta": (15, {}, "compressed_tensors"),
    "fp8_modelopt": (15, {}, "modelopt"),
}


# ---- weights ----------------------------------------------------------------------------------------------------

def on_grid(x):
    return x.to(torch.bfloat16).to(torch.float32)


def random_text_weights(c, generator):
    """Names of a text-only checkpoint, experts fused [E, in, out]."""
    hidden, heads, kv_heads = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    experts, width = c["num_local_experts"], c["intermediate_size"]

    def matrix(*shape, gain=1.0, fan_in=-1):
        return on_grid(torch.randn(*shape, generator=generator) * (gain / shape[fan_in] ** 0.5))

    def norm():
        return on_grid(1.0 + 0.25 * torch.randn(hidden, generator=generator))

    def mlp(name, inner):
        return {name + "gate_proj.weight": matrix(inner, hidden, gain=2.0),
                name + "up_proj.weight": matrix(inner, hidden),
                name + "down_proj.weight": matrix(hidden, inner, gain=1.25)}

    weights = {"model.embed_tokens.weight": matrix(c["vocab_size"], hidden, gain=hidden ** 0.5),
               "model.norm.weight": norm(), "lm_head.weight": matrix(c["vocab_size"], hidden, gain=2.0)}
    for n in range(c["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        weights[layer + "input_layernorm.weight"] = norm()
        weights[layer + "post_attention_layernorm.weight"] = norm()
        for part, rows, gain in (("q", heads, 1.25), ("k", kv_heads, 1.25), ("v", kv_heads, 1.0)):
            weights[f"{layer}self_attn.{part}_proj.weight"] = matrix(rows * c["head_dim"], hidden, gain=gain)
        weights[layer + "self_attn.o_proj.weight"] = matrix(hidden, heads * c["head_dim"], gain=1.25)
        ffn = layer + "feed_forward."
        if n not in maths.moe_layers(c):
            weights |= mlp(ffn, c["intermediate_size_mlp"])
            continue
        weights |= mlp(ffn + "shared_expert.", width)
        weights[ffn + "router.weight"] = matrix(experts, hidden, gain=1.5)
        gate = matrix(experts, hidden, width, gain=2.0, fan_in=1)
        weights[ffn + "experts.gate_up_proj"] = torch.cat([gate, matrix(experts, hidden, width, fan_in=1)], 2)
        weights[ffn + "experts.down_proj"] = matrix(experts, width, hidden, gain=1.25, fan_in=1)
    return weights


def random_vision_weights(generator, whole):
    """A vision tower of the right names, or a few of them; nobody looks through it."""
    config = Llama4Config(vision_config=VISION_CONFIG, text_config={"hidden_size": TEXT["hidden_size"]})
    shapes = {"vision_model." + k: t.shape for k, t in Llama4VisionModel(config.vision_config).state_dict().items()}
    shapes |= {"multi_modal_projector." + k: t.shape for k, t in Llama4MultiModalProjector(config).state_dict().items()}
    return {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()
            if whole or name.startswith("multi") or "mlp.fc1" in name}


# ---- FP8 --------------------------------------------------------------------------------------------------------

def round_e4m3(x):
    """The nearest E4M3 number as f32, ties to even, beyond 448: 448."""
    x = x.clamp(-E4M3_MAX, E4M3_MAX)
    exponent = torch.frexp(x).exponent - 1
    step = torch.ldexp(torch.ones_like(x), exponent.clamp(min=-6) - 3)
    rounded = torch.round(x / step) * step
    assert torch.equal(rounded, x.to(FP8).to(torch.float32))
    return rounded


def quantise(w, scale):
    return round_e4m3(w / scale.to(torch.float32)).to(FP8)


def fake_quantise(x, scale):
    return round_e4m3(x / scale) * scale


def per_token(x):
    """A row of zeros (a token of other experts) stays what it is."""
    scale = x.abs().amax(-1, keepdim=True) / E4M3_MAX
    return fake_quantise(x, torch.where(scale > 0, scale, torch.ones(())))


def compressed_tensors(weights):
    """Meta's layout: routed experts unfused, [out, in], one scale a row; all else stays BF16.

    The format leaves the scales' type open: BF16 in the first half of the layers, F32 in the others.
    """
    stored = {}
    layers = 1 + max(int(name.split(".")[2]) for name in weights if ".layers." in name)
    for name, w in weights.items():
        if ".experts." not in name:
            stored[name] = w.to(torch.bfloat16)
            continue
        kind = torch.bfloat16 if int(name.split(".")[2]) < layers // 2 else torch.float32
        base, fused = name.rsplit(".", 1)
        for e, expert in enumerate(w):
            parts = zip(("gate_proj", "up_proj"), expert.chunk(2, 1)) if fused == "gate_up_proj" else [(fused, expert)]
            for part, m in parts:
                m = m.T.contiguous()
                scale = (m.abs().amax(1, keepdim=True) / E4M3_MAX).to(kind)
                stored[f"{base}.{e}.{part}.weight"] = quantise(m, scale)
                stored[f"{base}.{e}.{part}.weight_scale"] = scale
    return stored


def is_modelopt_fp8(name):
    return (".self_attn." in name or ".feed_forward." in name) and "router" not in name


def modelopt(weights, absmax):
    """NVIDIA's layout: one scale a tensor, experts fused; absmax: of the inputs, from a calibration text."""
    stored = {}
    for name, w in weights.items():
        if not is_modelopt_fp8(name):
            stored[name] = w.to(torch.bfloat16)
            continue
        base = name.removesuffix(".weight")
        dot = "." if base != name else "_"
        scale = w.abs().amax() / E4M3_MAX
        stored[name] = quantise(w, scale)
        stored[f"{base}{dot}weight_scale"] = scale
        stored[f"{base}{dot}input_scale"] = absmax[base] / E4M3_MAX
        for part in ("k", "v"):
            if base.endswith(f".{part}_proj"):
                stored[f"{base}.{part}_scale"] = (absmax[base + ".out"] / E4M3_MAX).clamp(min=1.0)
    return stored


def read_text_weights(folder):
    """The files' text model in f32 under the names of random_text_weights, and the input scales found."""
    stored = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored |= load_file(file)
    stored = {k.removeprefix(PREFIX): t for k, t in stored.items() if not k.startswith(VISION)}
    scales = {k: t for k, t in stored.items() if k.endswith("_scale")}
    weights = {}
    for name, t in stored.items():
        base = name.removesuffix(".weight")
        scale = scales.get(base + ("." if base != name else "_") + "weight_scale")
        if name not in scales:
            weights[name] = t.to(torch.float32) if scale is None else t.to(torch.float32) * scale.to(torch.float32)
    for first in [k for k in weights if k.endswith(".experts.0.gate_proj.weight")]:
        base = first.removesuffix("0.gate_proj.weight")
        gate, up, down = (torch.stack([weights.pop(f"{base}{e}.{part}_proj.weight").T
                                       for e in range(TEXT["num_local_experts"])]) for part in ("gate", "up", "down"))
        weights |= {base + "gate_up_proj": torch.cat([gate, up], 2), base + "down_proj": down}
    return weights, {k: t for k, t in scales.items() if k.endswith("input_scale")}


# ---- files ------------------------------------------------------------------------------------------------------

def meta_quantization():
    eight = {"num_bits": 8, "type": "float", "symmetric": True, "group_size": None, "block_structure": None}
    ignore = ["re:.*self_attn.*", "re:.*shared_expert.*", "re:.*router.*", "re:.*feed_forward[.](gate|up|down)_proj",
              "re:.*lm_head", "re:vision_model.*", "re:multi_modal_projector.*"]
    return {"config_groups": {"group_0": {
                "targets": ["Linear"], "weights": eight | {"dynamic": False, "strategy": "channel"},
                "input_activations": eight | {"dynamic": True, "strategy": "token"}, "output_activations": None}},
            "format": "float-quantized", "ignore": ignore, "kv_cache_scheme": None,
            "quant_method": "compressed-tensors", "quantization_status": "compressed"}


def modelopt_quantization():
    """The section of config.json, and hf_quant_config.json."""
    exclude = ["lm_head", "*router*", "vision_model*", "multi_modal_projector*"]
    eight = {"dynamic": False, "num_bits": 8, "type": "float"}
    producer = {"name": "modelopt", "version": "0.29.0"}
    section = {"config_groups": {"group_0": {"input_activations": eight, "weights": eight, "targets": ["Linear"]}},
               "ignore": exclude, "kv_cache_scheme": eight, "quant_algo": "FP8", "producer": producer,
               "quant_method": "modelopt"}
    file = {"producer": producer,
            "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": exclude}}
    return section, file


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def save_shards(folder, stored, shards):
    if shards == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        return
    where, names = {}, list(stored)
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        part = names[s::shards]  # neighbours in different files, on purpose
        where |= dict.fromkeys(part, file)
        save_file({name: stored[name] for name in part}, folder / file, metadata={"format": "pt"})
    total = sum(w.numel() * w.element_size() for w in stored.values())
    write_json(folder / "model.safetensors.index.json",
               {"metadata": {"total_size": total}, "weight_map": {name: where[name] for name in sorted(where)}})


def save(folder, text, layout, weights, generator):
    """config.json and the weights, stored as layout says."""
    for old in list(folder.glob("*.safetensors")) + list(folder.glob("*.json")):
        old.unlink()
    config = dict(WRAPPER, text_config=text, vision_config=VISION_CONFIG)
    prefix, stored = PREFIX, {name: w.to(torch.bfloat16) for name, w in weights.items()}
    if layout == "compressed_tensors":
        stored = compressed_tensors(weights)
        config["quantization_config"] = meta_quantization()
    elif layout == "modelopt":
        prefix, stored = "", modelopt(weights, calibrate(text, weights, generator))
        config["quantization_config"], file = modelopt_quantization()
        write_json(folder / "hf_quant_config.json", file)
    elif layout == "top_level":
        prefix, config = "", text
    stored = {prefix + name: t.contiguous() for name, t in stored.items()}
    if layout != "top_level":
        stored |= random_vision_weights(generator, layout == "sharded")
    write_json(folder / "config.json", config)
    save_shards(folder, stored, 3 if layout == "sharded" else 1)


# ---- transformers -----------------------------------------------------------------------------------------------

def text_model(text, weights):
    """transformers' text model with these weights. It takes no number for a bool, which published files have."""
    text = dict(text, attn_temperature_tuning=bool(text.get("attn_temperature_tuning", True)))
    config = Llama4TextConfig(**text, attn_implementation="eager")
    model = Llama4ForCausalLM(config).eval()
    model.load_state_dict(weights)
    return model


def published_model(folder):
    """The text model as transformers itself reads the folder. (The whole of version 5.24.0 fails without an image.)"""
    nested = "text_config" in (folder / "config.json").read_text()
    kind = Llama4ForConditionalGeneration if nested else Llama4ForCausalLM
    model, info = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                       output_loading_info=True)
    assert not any(info.values()), info
    return getattr(model, "language_model", model).eval()


def run(model, ids):
    """Logits, {MoE layer: router logits}, hidden states after each layer, all without the batch."""
    router, hidden, hooks = {}, [], []
    for name, m in model.named_modules():
        if name.endswith(".router"):
            n = int(name.split(".")[2])
            hooks.append(m.register_forward_hook(lambda _m, _i, out, n=n: router.update({n: out[1].clone()})))
        elif type(m).__name__ == "Llama4TextDecoderLayer":
            hooks.append(m.register_forward_hook(lambda _m, _i, out: hidden.append(out[0].clone())))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    return logits, router, torch.stack(hidden)


def experts_forward(m, gate_up_hook, down_hook):
    """Runs m as it is written, with hooks on the inputs of its two products."""
    def forward(x):
        x = gate_up_hook(x.view(m.num_experts, -1, m.hidden_size))
        gate, up = torch.bmm(x, m.gate_up_proj).chunk(2, -1)
        return torch.bmm(down_hook(up * m.act_fn(gate)), m.down_proj).view(-1, m.hidden_size)
    return forward


def hook_inputs(model, layout, change):
    """change(name of the linear layer, its input) replaces the input of each layer that the layout quantises."""
    for name, m in model.named_modules():
        if name.endswith(".experts"):
            m.forward = experts_forward(m, lambda x, n=name: change(n + ".gate_up_proj", x),
                                        lambda x, n=name: change(n + ".down_proj", x))
        elif layout == "modelopt" and type(m) is torch.nn.Linear and is_modelopt_fp8(name):
            m.register_forward_pre_hook(lambda _m, args, n=name: (change(n, args[0]),))


def calibrate(text, weights, generator):
    """{linear layer: largest input}, and of k and v the largest output, on a text that is not the golden one."""
    absmax = {}

    def seen(name, x):
        absmax[name] = torch.maximum(absmax.get(name, torch.zeros(())), x.abs().amax())
        return x

    model = text_model(text, weights)
    hook_inputs(model, "modelopt", seen)
    for name, m in model.named_modules():
        if name.endswith(("k_proj", "v_proj")):
            m.register_forward_hook(lambda _m, _i, out, n=name: seen(n + ".out", out))
    run(model, torch.randint(6, 93, (128,), generator=generator).tolist())
    return absmax


def quantised_run(text, layout, weights, scales, ids):
    """The logits when the inputs of all FP8 layers are rounded to E4M3 as the layout prescribes; the cache is not."""
    def change(name, x):
        if layout == "compressed_tensors":
            return per_token(x)
        return fake_quantise(x, scales[name + ("_" if ".experts." in name else ".") + "input_scale"])

    model = text_model(text, weights)
    hook_inputs(model, layout, change)
    return run(model, ids)


# ---- what is stored, and whether it is right --------------------------------------------------------------------

def gaps(router, top_k):
    """How far the last chosen logit is above the best one not chosen."""
    top = router.topk(top_k + 1).values
    return top[:, top_k - 1] - top[:, top_k]


def golden(text, ids, answer, quantised):
    logits, router, hidden = answer
    top_k = text["num_experts_per_tok"]
    head = (len(ids), logits.shape[1], hidden.shape[2], len(hidden), len(router), text["num_local_experts"], top_k,
            len(POSITIONS), quantised is not None)
    data = MAGIC + struct.pack("<9I", *head) + np.array(ids, "<u4").tobytes() + f32s(logits)
    for n, r in sorted(router.items()):
        chosen = r.topk(top_k).indices
        data += struct.pack("<I", n) + chosen.numpy().astype("<u4").tobytes() + f32s(gaps(r, top_k)) + f32s(r)
    data += np.array(POSITIONS, "<u4").tobytes() + f32s(hidden[:, list(POSITIONS)])
    return data + (f32s(quantised[0][list(POSITIONS)]) if quantised else b"")


def f32s(t):
    return t.to(torch.float32).contiguous().numpy().astype("<f4").tobytes()


def half_rotation(text, weights):
    """What a loader of Llama 3 files would make of q and k."""
    d = text["head_dim"]
    order = np.arange(d).reshape(2, d // 2).T.reshape(-1)
    return {k: w.reshape(-1, d, w.shape[1])[:, order].reshape(w.shape) if k.endswith(("q_proj.weight", "k_proj.weight"))
            else w for k, w in weights.items()}


def up_before_gate(weights):
    return {k: np.roll(w, w.shape[2] // 2, 2) if k.endswith("gate_up_proj") else w for k, w in weights.items()}


def mistakes(text, w):
    """(name, config, weights, what the score multiplies) of networks that are wrong in one point."""
    rope = [int(r) for r in maths.uses_rope(text)]
    yield "no chunks", dict(text, attention_chunk_size=1 << 20), w, "input"
    yield "chunks of one more", dict(text, attention_chunk_size=text["attention_chunk_size"] + 1), w, "input"
    yield "no temperature", dict(text, attn_temperature_tuning=False), w, "input"
    yield "floor_scale of one more", dict(text, floor_scale=text["floor_scale"] + 1), w, "input"
    yield "QK norm the other way", dict(text, use_qk_norm=not text["use_qk_norm"]), w, "input"
    yield "all layers rotate", dict(text, no_rope_layers=[1] * len(rope)), w, "input"
    yield "rotating layers exchanged", dict(text, no_rope_layers=rope[1:] + rope[:1]), w, "input"
    yield "half rotation", text, half_rotation(text, w), "input"
    yield "up before gate", text, up_before_gate(w), "input"
    yield "score on the output", text, w, "output"
    other_k = 1 if text["num_experts_per_tok"] > 1 else 2
    yield f"top-{other_k}", dict(text, num_experts_per_tok=other_k), w, "input"
    if text.get("rope_scaling"):
        yield "no rope scaling", dict(text, rope_scaling=None), w, "input"


def check(text, weights, ids, answer):
    """The second implementation agrees; each mistake shows in the logits. Returns the worst differences."""
    logits, router, hidden = (x if isinstance(x, dict) else x.numpy() for x in answer)
    w = {name: t.numpy().astype(np.float64) for name, t in weights.items()}
    want, routing, states = maths.forward(text, w, ids)
    worst = {"logits": np.abs(want - logits).max(), "hidden": np.abs(states - hidden).max(),
             "router": max(np.abs(routing[n][0] - r.numpy()).max() for n, r in router.items())}
    assert routing.keys() == router.keys()
    for n, (_, chosen) in routing.items():
        assert np.array_equal(chosen, router[n].topk(text["num_experts_per_tok"]).indices.numpy())
    assert max(worst.values()) < TOLERANCE, worst
    smallest = min((np.abs(maths.forward(c, v, ids, s)[0] - want).max(), name) for name, c, v, s in mistakes(text, w))
    assert smallest[0] > 100 * TOLERANCE, smallest
    return worst, smallest


def check_quantised(text, layout, weights, scales, ids, answer):
    """The same for inputs that are rounded to E4M3."""
    def per_token(x):
        scale = np.abs(x).max(-1, keepdims=True) / E4M3_MAX
        return maths.round_e4m3(x / scale) * scale

    w = {name: t.numpy().astype(np.float64) for name, t in weights.items()}
    if layout == "compressed_tensors":
        w |= {name + ".input": per_token for name in weights if ".experts." in name}
    for name, scale in scales.items():
        scale, base = float(scale), name.removesuffix("input_scale")[:-1]
        w[base + ".input"] = lambda x, scale=scale: maths.round_e4m3(x / scale) * scale
    worst = np.abs(maths.forward(text, w, ids)[0] - answer[0].numpy()).max()
    assert worst < TOLERANCE, worst
    return worst


def make(name):
    seed, changes, layout = MODELS[name]
    text = {k: v for k, v in (TEXT | changes).items() if k not in changes or v is not None}
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(2000 + seed)
    original = random_text_weights(text, generator)
    ids = torch.randint(6, 93, (TOKENS,), generator=generator).tolist()
    save(folder, text, layout, original, generator)
    weights, scales = read_text_weights(folder)
    answer = run(text_model(text, weights), ids)
    if layout in ("sharded", "top_level"):
        assert torch.equal(run(published_model(folder), ids)[0], answer[0])
    worst, smallest = check(text, weights, ids, answer)
    quantised = None
    if layout in ("compressed_tensors", "modelopt"):
        quantised = quantised_run(text, layout, weights, scales, ids)
        worst["logits of rounded inputs"] = check_quantised(text, layout, weights, scales, ids, quantised)
    (folder / "golden.bin").write_bytes(golden(text, ids, answer, quantised))
    report(folder, text, answer, quantised, worst, smallest)


def report(folder, text, answer, quantised, worst, smallest):
    logits, router, _ = answer
    top_k = text["num_experts_per_tok"]
    print(f"{folder.name}: {sum(f.stat().st_size for f in folder.iterdir())} bytes, logits {logits.min():.2f}.."
          f"{logits.max():.2f} rms {logits.square().mean().sqrt():.2f}")
    print("  float64 differs by " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items()) +
          f"; the mistake that shows least: {smallest[1]}, {smallest[0]:.2f}")
    for n, r in sorted(router.items()):
        g, counts = gaps(r, top_k), torch.bincount(r.topk(top_k).indices.flatten(), minlength=r.shape[1])
        print(f"  layer {n}: router gap least {g.min():.4f}, median {g.median():.2f}; score "
              f"{r.amax(1).sigmoid().min():.2f}..{r.amax(1).sigmoid().max():.2f}; tokens an expert {counts.tolist()}")
    if quantised:
        d = quantised[0] - logits
        other = quantised[1]
        moved = sum(int((r.topk(top_k).indices != other[n].topk(top_k).indices).sum()) for n, r in router.items())
        print(f"  inputs in E4M3: logits move by {d.square().mean().sqrt():.3f} rms, {d.abs().max():.2f} at most; "
              f"{moved} other experts")


def main():
    assert not "4.55.0" <= transformers.__version__ <= "4.56.0", "these releases compute Llama 4 wrongly"
    torch.set_num_threads(1)
    for name in MODELS:
        make(name)


if __name__ == "__main__":
    main()
