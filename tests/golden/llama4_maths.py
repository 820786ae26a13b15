"""Llama 4's text model once more, in NumPy and float64, to check what make_tiny_llama4.py stores.

It shares no code with transformers, and goes row by row where transformers works on whole tensors.
"""
import numpy as np


def uses_rope(config):
    """One bool a layer."""
    given = config.get("no_rope_layers")
    return [bool(g) for g in given] if given else [(i + 1) % 4 != 0 for i in range(config["num_hidden_layers"])]


def moe_layers(config):
    step = config["interleave_moe_layer_step"]
    return list(range(step - 1, config["num_hidden_layers"], step))


def inverse_frequencies(config):
    head_dim = config["head_dim"]
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", config.get("rope_theta"))
    f = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    scaling = config.get("rope_scaling")
    if not scaling:
        return f
    lo, hi = scaling["low_freq_factor"], scaling["high_freq_factor"]
    for j, wave in enumerate(2 * np.pi / f):
        turns = scaling["original_max_position_embeddings"] / wave
        if turns < lo:
            f[j] /= scaling["factor"]
        elif turns < hi:
            s = (turns - lo) / (hi - lo)
            f[j] *= (1 - s) / scaling["factor"] + s
    return f


def rms(x, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


def round_e4m3(x):
    x = np.clip(x, -448, 448)
    step = 2.0 ** (np.maximum(np.floor(np.log2(np.maximum(np.abs(x), 1e-9))), -6) - 3)
    return np.rint(x / step) * step


def silu(x):
    return x / (1 + np.exp(-x))


def rounded(x, w, name):
    """What the linear layer is given: x, unless w holds a function for it."""
    return w[name + ".input"](x) if name + ".input" in w else x


def linear(x, w, name):
    return rounded(x, w, name) @ w[name + ".weight"].T


def rotate(x, pos, f):
    """Neighbouring components are one complex number."""
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * pos * f)
    return np.stack([z.real, z.imag], -1).reshape(x.shape)


def attention(x, w, config, rope):
    n, head_dim, eps = len(x), config["head_dim"], config["rms_norm_eps"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    f = inverse_frequencies(config)
    q = linear(x, w, "q_proj").reshape(n, heads, head_dim)
    k = linear(x, w, "k_proj").reshape(n, kv_heads, head_dim)
    v = linear(x, w, "v_proj").reshape(n, kv_heads, head_dim)
    out = np.zeros((n, heads, head_dim))
    for i in range(n):
        if rope:
            q[i], k[i] = rotate(q[i], i, f), rotate(k[i], i, f)
            if config["use_qk_norm"]:
                q[i], k[i] = rms(q[i], eps), rms(k[i], eps)
        elif config.get("attn_temperature_tuning", True):
            q[i] *= 1 + config["attn_scale"] * np.log(1 + (i + 1) // config["floor_scale"])
        chunk = config["attention_chunk_size"]
        first = i // chunk * chunk if rope else 0
        for h in range(heads):
            g = h // (heads // kv_heads)
            p = np.exp(k[first:i + 1, g] @ q[i, h] / head_dim ** 0.5)
            out[i, h] = p @ v[first:i + 1, g] / p.sum()
    return linear(out.reshape(n, -1), w, "o_proj")


def mlp(x, w):
    return linear(silu(linear(x, w, "gate_proj")) * linear(x, w, "up_proj"), w, "down_proj")


def moe(x, w, config, score_on):
    r = linear(x, w, "router")
    chosen = np.argsort(-r, axis=1, kind="stable")[:, :config["num_experts_per_tok"]]
    y = mlp(x, under(w, "shared_expert."))
    for i, e in ((i, e) for i in range(len(x)) for e in chosen[i]):
        s = 1 / (1 + np.exp(-r[i, e]))
        u = s * x[i] if score_on == "input" else x[i]
        g, p = np.split(rounded(u, w, "experts.gate_up_proj") @ w["experts.gate_up_proj"][e], 2)
        o = rounded(p * silu(g), w, "experts.down_proj") @ w["experts.down_proj"][e]
        y[i] += o if score_on == "input" else s * o
    return y, r, chosen


def under(w, prefix):
    return {name.removeprefix(prefix): t for name, t in w.items() if name.startswith(prefix)}


def forward(config, weights, ids, score_on="input"):
    """Logits [n, vocab]; {MoE layer: (router logits [n, E], chosen [n, k])}; hidden states [layers, n, H].

    score_on "output" is a mistake on purpose: the score multiplies what the expert gives, not what it gets.
    """
    eps, routing, hidden = config["rms_norm_eps"], {}, []
    h = weights["model.embed_tokens.weight"][ids]
    for i, rope in enumerate(uses_rope(config)):
        w = under(weights, f"model.layers.{i}.")
        h = h + attention(rms(h, eps) * w["input_layernorm.weight"], under(w, "self_attn."), config, rope)
        x, ffn = rms(h, eps) * w["post_attention_layernorm.weight"], under(w, "feed_forward.")
        if i in moe_layers(config):
            y, *routing[i] = moe(x, ffn, config, score_on)
        else:
            y = mlp(x, ffn)
        h = h + y
        hidden.append(h)
    return rms(h, eps) * weights["model.norm.weight"] @ weights["lm_head.weight"].T, routing, np.stack(hidden)
