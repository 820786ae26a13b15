"""An EAGLE-3 head once more, in NumPy and float64, from its files as written, to check what make_eagle3.py stores.

It shares no code with the trainers, and goes row by row where they work on whole tensors.
"""
import json

import numpy as np
import torch
from safetensors.torch import load_file


def rms(x, gain, eps):
    return x / np.sqrt(np.mean(x * x) + eps) * gain


def inverse_frequencies(layer, dim):
    rope = layer.get("rope_parameters") or layer.get("rope_scaling") or {}
    f = (rope.get("rope_theta") or layer.get("rope_theta") or 10000.0) ** (-np.arange(0, dim, 2) / dim)
    if rope.get("rope_type", "default") == "default":
        return f
    lo, hi = rope["low_freq_factor"], rope["high_freq_factor"]
    for j, wave in enumerate(2 * np.pi / f):
        turns = rope["original_max_position_embeddings"] / wave
        blend = np.clip((turns - lo) / (hi - lo), 0, 1)
        f[j] *= (1 - blend) / rope["factor"] + blend
    return f


def rotate(x, angle):
    a, b = np.split(x, 2)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])


class Head:
    """`wrong` names one thing that is left out or done otherwise."""

    def __init__(self, folder, target_embedding, wrong=None):
        config = json.loads((folder / "config.json").read_text())
        speculators = "transformer_layer_config" in config
        layer = config["transformer_layer_config"] if speculators else config
        w = {n: t if t.dtype in (torch.int64, torch.bool) else t.double()
             for n, t in load_file(folder / "model.safetensors").items()}
        self.w = {n.replace("midlayer.0.", "layers.0.").replace("midlayer.", "layers.0."): t.numpy()
                  for n, t in w.items()}
        self.wrong = wrong
        self.eps = layer["rms_norm_eps"]
        self.heads, self.kv_heads = layer["num_attention_heads"], layer["num_key_value_heads"]
        self.dim = layer.get("head_dim") or layer["hidden_size"] // self.heads
        self.frequency = inverse_frequencies(layer, self.dim)
        self.embedding = self.w.get("embed_tokens.weight", target_embedding)
        self.vocab = self.w["lm_head.weight"].shape[0]
        self.d2t = np.arange(self.vocab) + (self.w["d2t"] if "d2t" in self.w and wrong != "d2t" else 0)
        flag = {n: bool(config.get(n)) for n in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")}
        self.flag = flag | ({wrong: not flag[wrong]} if wrong in flag else {})
        self.feed_normed = speculators and self.flag["norm_output"]

    def fuse(self, low_mid_high):
        a = np.concatenate(low_mid_high)
        if self.flag["norm_before_fc"]:
            a = rms(a, self.w["input_norm.weight"], self.eps)
        if self.flag["fc_norm"]:
            a = np.concatenate([rms(x, self.w[f"fc_norm.{i}.weight"], self.eps) for i, x in enumerate(low_mid_high)])
        return self.w["fc.weight"] @ a

    def queries_keys_values(self, g, token, position):
        p = "layers.0."
        u = [rms(self.embedding[token], self.w[p + "input_layernorm.weight"], self.eps),
             rms(g, self.w[p + "hidden_norm.weight"], self.eps)]
        u = np.concatenate(u[::-1] if self.wrong == "order" else u)
        out = []
        for name, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
            x = (self.w[f"{p}self_attn.{name}_proj.weight"] @ u).reshape(heads, self.dim)
            gain = self.w.get(f"{p}self_attn.{name}_norm.weight")
            if gain is not None and self.wrong != "qk_norm":
                x = np.stack([rms(h, gain, self.eps) for h in x])
            out.append(x if name == "v" else np.stack([rotate(h, position * self.frequency) for h in x]))
        return out

    def row(self, g, token, position, seen):
        """h, and what `seen` needs of this row: (key, value) of the rows that later ones see. `seen` ends with this row."""
        p = "layers.0."
        q, k, v = self.queries_keys_values(g, token, position)
        seen = seen + [(k, v)]
        attended = []
        for h in range(self.heads):
            kv = h // (self.heads // self.kv_heads)
            score = np.array([key[kv] @ q[h] for key, _ in seen]) / np.sqrt(self.dim)
            weight = np.exp(score - score.max())
            attended.append(sum(s * value[kv] for s, (_, value) in zip(weight / weight.sum(), seen)))
        residual = rms(g, self.w[p + "hidden_norm.weight"], self.eps) if self.flag["norm_before_residual"] else g
        h = residual + self.w[p + "self_attn.o_proj.weight"] @ np.concatenate(attended)
        n = rms(h, self.w[p + "post_attention_layernorm.weight"], self.eps)
        gate, up = self.w[p + "mlp.gate_proj.weight"] @ n, self.w[p + "mlp.up_proj.weight"] @ n
        return h + self.w[p + "mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up), seen

    def logits(self, h):
        return self.w["lm_head.weight"] @ rms(h, self.w["norm.weight"], self.eps)

    def fed_back(self, h):
        return rms(h, self.w["norm.weight"], self.eps) if self.feed_normed else h


def run_true(head, taps, tokens):
    """Rows 0..n-1 pair taps[:, t] with tokens[t + 1]. Returns logits of all, then g and what is seen after the last."""
    seen, logits = [], []
    for t in range(taps.shape[1]):
        h, seen = head.row(head.fuse(list(taps[:, t])), tokens[t + 1], t, seen)
        logits.append(head.logits(h))
    return np.array(logits), head.fed_back(h), seen


def run_chain(head, taps, tokens, steps):
    """The tokens drafted, and the logits that each step drew its token from."""
    logits, g, seen = run_true(head, taps, tokens)
    drafted, after = [], [logits[-1]]
    for step in range(steps):
        drafted.append(int(head.d2t[np.argmax(after[-1])]))
        if step + 1 < steps:
            h, seen = head.row(g, drafted[-1], taps.shape[1] + step, seen)
            after.append(head.logits(h))
            g = head.fed_back(h)
    return logits, drafted, np.array(after)


def log_softmax(x):
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def run_tree(head, taps, tokens, top_k, depth, most):
    """EAGLE-2's tree as (token, parent, depth, log q) in the order of recording; and how close its closest choice was."""
    logits, g, seen = run_true(head, taps, tokens)
    found, close = [], [np.inf]  # token, parent, depth, log q, score

    def best(score, k):
        order = np.argsort(-score, kind="stable")
        close.append(np.min(-np.diff(score[order[:k + 1]]), initial=np.inf))
        return order[:k]

    def children(parent, logits, score, level):
        log_q = log_softmax(logits)
        for i in best(log_q, top_k):
            found.append((int(head.d2t[i]), parent, level, log_q[i], score + log_q[i]))

    children(-1, logits[-1], 0.0, 1)
    frontier = [(i, g, seen) for i in range(top_k)]
    for level in range(2, depth + 1):
        first, parents = len(found), {}
        for i, g_of, seen_of in frontier:
            h, seen_after = head.row(g_of, found[i][0], taps.shape[1] + level - 2, seen_of)
            parents[i] = (head.fed_back(h), seen_after)
            children(i, head.logits(h), found[i][4], level)
        chosen = first + best(np.array([c[4] for c in found[first:]]), top_k)
        frontier = [(i, *parents[found[i][1]]) for i in chosen]
    kept = sorted(best(np.array([c[4] for c in found]), most))
    place = {c: i for i, c in enumerate(kept)} | {-1: -1}
    return [(found[c][0], place[found[c][1]], found[c][2], found[c][3]) for c in kept], min(close)
