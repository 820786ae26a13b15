#!/usr/bin/env python3
"""Makes tests/golden/eagle3/: random EAGLE-3 heads of each published layout, and what their trainers' own modules compute.

SpecForge's LlamaForCausalLMEagle3 (which is SafeAILab's network, with its tensor names) and speculators' Eagle3DraftModel
write the files and compute the logits; the functions of SGLang that make the draft tree of EAGLE-2 choose its nodes.
eagle3_maths.py computes everything a second time from the files as written; the two must agree, and must not if the
second is given a network that is wrong in one point.

usage: TORCHDYNAMO_DISABLE=1 make_eagle3.py SGLANG      SGLANG: the folder of an unpacked sglang package
"""
import ast
import copy
import json
import shutil
import struct
import sys
import typing
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from specforge.modeling.draft.llama3_eagle import LlamaForCausalLMEagle3
from speculators.config import SpeculatorsConfig, VerifierConfig
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig, Qwen3Config

import eagle3_maths as maths

HERE = Path(__file__).resolve().parent
OUT = HERE / "eagle3"
MAGIC = b"SBEAGLE3"
TRUE_ROWS, STEPS = 9, 5
TREES = ((4, 4, 12), (3, 2, 12), (5, 3, 40))  # top_k, depth, most nodes: cut, whole (3 + 9), wide
TOLERANCE = 1e-4
LEAST_GAP = 2e-3
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
         "num_hidden_layers": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
EAGLE_CONFIG = {"eagle_aux_hidden_state_layer_ids": [1, 3, 4], "use_aux_hidden_state": True,
                "use_input_layernorm_in_first_layer": True, "use_last_layernorm": True, "use_mtp_layernorm": False,
                "next_layer_regular": False}

# name: (target, drafted ids or 0 for all, stored type, layout, keys of the config)
HEADS = {
    "safeailab": ("tiny/f32", 48, torch.float16, "midlayer", {}),
    "specforge": ("tiny/f32", 40, torch.bfloat16, "midlayer",
                  {"rope_theta": 500000.0, "rope_scaling": LLAMA3, "fc_norm": True, "norm_output": True}),
    "wide": ("tiny/untied", 48, torch.bfloat16, "midlayer", {"target_hidden_size": 64, "rope_theta": 10000.0}),
    "nvidia": ("llama4/maverick", 0, torch.bfloat16, "layers", {"rope_theta": 500000.0, "eagle_config": EAGLE_CONFIG}),
    "trained": ("tiny/f32", 48, torch.bfloat16, "speculators",
                {"norm_before_residual": True, "norm_before_fc": True, "norm_output": True}),
    "fc_norm": ("tiny/f32", 48, torch.float32, "speculators", {"norm_before_residual": True, "fc_norm": True}),
    "qwen3": ("tiny/f32", 48, torch.bfloat16, "speculators", {"norm_before_fc": True, "qwen3": True}),
    "converted": ("tiny/f32", 0, torch.float32, "speculators", {}),
}
# What must show, of heads that have it.
WRONG = {"safeailab": ("d2t", "order", "norm_before_residual"), "specforge": ("fc_norm",),
         "trained": ("norm_before_residual", "norm_before_fc", "norm_output"), "fc_norm": ("fc_norm",), "qwen3": ("qk_norm",)}


# ---- the reference modules ---------------------------------------------------------------------------------------

def sglang_functions(folder):
    """The two functions that choose nodes, without the package around them, which needs a GPU's libraries."""
    space = {"torch": torch, "List": typing.List, "Optional": typing.Optional, "maybe_detect_oob": lambda *a: None,
             "fast_topk": lambda x, k, dim: torch.topk(x, k, dim=dim)}
    for name, wanted in (("spec_utils", {"_select_top_k_tokens_first", "_select_top_k_tokens_later", "select_top_k_tokens"}),
                         ("eagle_utils", {"organize_draft_results"})):
        tree = ast.parse((folder / "srt" / "speculative" / f"{name}.py").read_text())
        tree.body = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name in wanted]
        for f in tree.body:
            f.decorator_list = []
        exec(compile(tree, name, "exec"), space)
    return space["select_top_k_tokens"], space["organize_draft_results"]


class Reference:
    """Either module behind one face: rows with any mask over each other."""

    def __init__(self, module, embedding, speculators):
        self.m, self.speculators = module, speculators
        self.embedding = embedding

    def fuse(self, a):
        if not self.speculators:
            return self.m.project_hidden_states(a)
        m = self.m
        if m.input_norm is not None:
            a = m.input_norm(a)
        if m.fc_norm is not None:
            a = torch.cat([n(c) for n, c in zip(m.fc_norm, a.chunk(3, dim=-1))], dim=-1)
        return m.fc(a)

    def rows(self, g, tokens, positions, visible):
        e, g = self.embedding[tokens][None], g[None]
        positions = torch.tensor(positions)[None]
        mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
        if not self.speculators:
            return self.m.midlayer(input_emb=e, hidden_states=g, attention_mask=mask, position_ids=positions)[0]
        x = torch.cat([e, g], dim=-1)
        return self.m.layers[0](x, attention_mask=mask, position_ids=positions,
                                position_embeddings=self.m.rotary_emb(x, positions))[0]

    def logits(self, h):
        return self.m.lm_head(self.m.norm(h))

    def fed_back(self, h):
        return self.m.norm(h) if self.speculators and self.m.config.norm_output else h


def causal(n):
    return torch.tril(torch.ones(n, n, dtype=torch.bool))


def reference_chain(ref, d2t, taps, tokens):
    n = taps.shape[1]
    g = ref.fuse(torch.cat(list(taps), dim=-1))
    row_tokens, drafted, after = list(tokens[1:]), [], []
    for step in range(STEPS):
        h = ref.rows(g, row_tokens, list(range(n + step)), causal(n + step))
        logits = ref.logits(h)
        if step == 0:
            true_logits = logits
        after.append(logits[-1])
        drafted.append(int(d2t[int(logits[-1].argmax())]))
        g = torch.cat([g, ref.fed_back(h[-1:])])
        row_tokens.append(drafted[-1])
    return true_logits, drafted, torch.stack(after)


def reference_tree(ref, d2t, taps, tokens, shape, functions):
    """(token, parent, depth) by SGLang's choice; every level runs all rows so far under a mask of ancestors."""
    top_k, depth, most = shape
    select, organise = functions
    n = taps.shape[1]
    g, row_tokens, positions, visible = ref.fuse(torch.cat(list(taps), dim=-1)), list(tokens[1:]), list(range(n)), causal(n)
    h = ref.rows(g, row_tokens, positions, visible)
    probability = torch.softmax(ref.logits(h)[-1:], dim=-1)
    state, scores, lists = ref.fed_back(h[-1:]), None, ([], [], [])
    rows_of = [n - 1] * top_k  # the row whose state a frontier node continues, of itself before it is run
    for level in range(depth):
        top = torch.topk(probability, top_k, dim=-1)
        index = torch.tensor(d2t)[top.indices]
        ids, state, scores, info = select(level, top.values, index, state, scores, top_k)
        for kept, new in zip(lists, info):
            kept.append(new)
        if level + 1 == depth:
            break
        if level > 0:
            rows_of = [rows_of_last[int(i - (top_k * top_k * (level - 1) + top_k)) // top_k] for i in info[2][0]]
        rows_of_last = list(range(len(row_tokens), len(row_tokens) + top_k))
        for j, token in enumerate(ids.tolist()):
            line = torch.zeros(1, len(row_tokens) + 1, dtype=torch.bool)
            line[0, :len(row_tokens)] = visible[rows_of[j]]
            line[0, -1] = True
            visible = torch.cat([torch.nn.functional.pad(visible, (0, 1)), line])
            g = torch.cat([g, state[j:j + 1]])
            row_tokens.append(token)
            positions.append(n + level)
        h = ref.rows(g, row_tokens, positions, visible)[-top_k:]
        probability, state = torch.softmax(ref.logits(h), dim=-1), ref.fed_back(h)
    most = min(most, sum(x.numel() for x in lists[1]))
    parents, chosen, drafted = organise(*lists, most + 1)
    place = {int(c): i for i, c in enumerate(chosen[0])}
    flat = parents[0].tolist() if parents.numel() else []
    nodes = []
    for c, token in zip(chosen[0].tolist(), drafted[0].tolist()):
        parent = -1 if c < top_k else place[flat[1:][(c - top_k) // top_k]]
        nodes.append((token, parent, 1 if parent < 0 else nodes[parent][2] + 1))
    return nodes


# ---- weights and files -------------------------------------------------------------------------------------------

def on_grid(x):
    """Numbers that bf16, f16 and f32 hold alike."""
    x = x.to(torch.bfloat16).to(torch.float32)
    return torch.where(x.abs() < 2.0 ** -14, 0.0, x)


def randomise(module, generator):
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        gain = {"lm_head.weight": 2.5, "embed_tokens.weight": 1.0}.get(name, 1.2)
        p.data = on_grid(1 + 0.25 * noise if p.dim() == 1 else noise * gain / p.shape[1] ** 0.5)


def target_embedding(folder):
    """Of a golden model that needs no index: every shard is read."""
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(file)
    return next(t.float() for n, t in tensors.items() if n.endswith("embed_tokens.weight"))


def vocabulary(vocab, drafted, generator):
    """d2t as offsets, and t2d; not sorted, as ModelOpt leaves it."""
    ids = torch.randperm(vocab, generator=generator)[:drafted]
    t2d = torch.zeros(vocab, dtype=torch.bool)
    t2d[ids] = True
    return ids - torch.arange(drafted), t2d


def make_speculators(keys, vocab, drafted):
    qwen3 = keys.get("qwen3")
    layer = (Qwen3Config if qwen3 else LlamaConfig)(**SHAPE, vocab_size=vocab)
    layer._attn_implementation = "eager"
    method = GreedyTokenProposalConfig(speculative_tokens=3)
    config = Eagle3SpeculatorConfig(
        transformer_layer_config=layer, draft_vocab_size=drafted or vocab, eagle_aux_hidden_state_layer_ids=[0, 1, 1],
        speculators_config=SpeculatorsConfig(algorithm="eagle3", proposal_methods=[method], default_proposal_method="greedy",
                                             verifier=VerifierConfig(name_or_path=None, architectures=["LlamaForCausalLM"])),
        **{k: v for k, v in keys.items() if k != "qwen3"})
    return Eagle3DraftModel(config)


def specforge_config(keys, vocab, drafted, dtype):
    return {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_act": "silu", "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 0, "vocab_size": vocab, "draft_vocab_size": drafted or vocab,
            "tie_word_embeddings": False, "torch_dtype": str(dtype).removeprefix("torch."), "use_cache": True} | SHAPE | keys


def store_specforge(folder, module, config, dtype, layout):
    skipped = () if "target_hidden_size" in config else ("embed_tokens.weight",)
    if config["draft_vocab_size"] == config["vocab_size"]:
        skipped += ("d2t", "t2d")
    prefix = "layers.0." if layout == "layers" else "midlayer."
    tensors = {n.replace("midlayer.", prefix): t if t.dtype in (torch.int64, torch.bool) else t.to(dtype)
               for n, t in module.state_dict().items() if n not in skipped and "rotary" not in n}
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def store_speculators(folder, module, dtype):
    copy.deepcopy(module).to(dtype).save_pretrained(folder)  # a copy: the table of rotations is rounded, too
    (folder / "config.py").unlink(missing_ok=True)


def make_head(name, seed):
    """Writes the folder; returns the reference and d2t."""
    target, drafted, dtype, layout, keys = HEADS[name]
    embedding = target_embedding(HERE / target)
    vocab, generator = embedding.shape[0], torch.Generator().manual_seed(seed)
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    speculators = layout == "speculators"
    if speculators:
        module = make_speculators(keys, vocab, drafted)
    else:
        config = specforge_config(keys, vocab, drafted, dtype)
        module = LlamaForCausalLMEagle3(LlamaConfig(**config))
    randomise(module, generator)
    if "target_hidden_size" not in keys:
        module.embed_tokens.weight.data = embedding.clone()
    d2t = torch.zeros(drafted or vocab, dtype=torch.int64)
    if drafted:
        d2t, t2d = vocabulary(vocab, drafted, generator)
        module.d2t.copy_(d2t) if module.d2t is not None else None
        module.t2d.copy_(t2d)
    module.eval()
    store_speculators(folder, module, dtype) if speculators else store_specforge(folder, module, config, dtype, layout)
    reference = Reference(module, module.embed_tokens.weight.detach(), speculators)
    return reference, (torch.arange(drafted or vocab) + d2t).tolist()


# ---- goldens -----------------------------------------------------------------------------------------------------

def agree(name, folder, embedding, golden, taps, tokens):
    """Worst difference of the second computation; fails for trees that differ."""
    head = maths.Head(folder, embedding)
    true_logits, drafted, after = maths.run_chain(head, taps, tokens, STEPS)
    worst = max(np.abs(true_logits - golden["true"]).max(), np.abs(after - golden["after"]).max())
    assert drafted == golden["drafted"], f"{name}: the chains differ"
    for wrong in WRONG.get(name, ()):
        _, other, logits = maths.run_chain(maths.Head(folder, embedding, wrong), taps, tokens, STEPS)
        assert other != drafted or np.abs(logits - after).max() > 100 * TOLERANCE, f"{name}: {wrong} would not be noticed"
    return worst, head


def make(name, seed, functions):
    """The golden of one head, or None: a choice is too close for other programs to make it alike."""
    embedding = target_embedding(HERE / HEADS[name][0])
    width = embedding.shape[1]
    with torch.no_grad():
        reference, d2t = make_head(name, seed)
        generator = torch.Generator().manual_seed(1000 + seed)
        taps = on_grid(torch.randn(3, TRUE_ROWS, width, generator=generator) * torch.tensor([1.0, 2.0, 4.0])[:, None, None])
        tokens = torch.randint(0, embedding.shape[0], (TRUE_ROWS + 1,), generator=generator).tolist()
        true_logits, drafted, after = reference_chain(reference, d2t, taps, tokens)
        golden = {"true": true_logits.numpy(), "drafted": drafted, "after": after.numpy()}
        top = after.sort(descending=True).values
        close = float((top[:, 0] - top[:, 1]).min())
        worst, head = agree(name, OUT / name, embedding.double().numpy(), golden, taps.double().numpy(), tokens)
        trees = []
        for shape in TREES:
            nodes, gap = maths.run_tree(head, taps.double().numpy(), tokens, *shape)
            close = min(close, gap)
            if close < LEAST_GAP:
                return None
            assert [n[:3] for n in nodes] == reference_tree(reference, d2t, taps, tokens, shape, functions), f"{name}: {shape}"
            trees.append((shape, nodes))
    assert worst < TOLERANCE, f"{name}: {worst}"
    with open(OUT / name / "golden.bin", "wb") as f:
        f.write(MAGIC + struct.pack("<5I", TRUE_ROWS, STEPS, len(d2t), width, len(trees)))
        f.write(np.array(tokens, "<u4").tobytes() + taps.numpy().astype("<f4").tobytes())
        f.write(golden["true"].astype("<f4").tobytes() + np.array(drafted, "<u4").tobytes() + golden["after"].astype("<f4").tobytes())
        for shape, nodes in trees:
            f.write(struct.pack("<4I", *shape, len(nodes)))
            for token, parent, depth, log_q in nodes:
                f.write(struct.pack("<IiIf", token, parent, depth, log_q))
    print(f"{name}: seed {seed}, worst difference {worst:.2g}, logits to {np.abs(golden['true']).max():.1f}, closest choice {close:.2g}")
    return golden


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    functions = sglang_functions(Path(sys.argv[1]))
    for name in HEADS:
        seed = 0
        while make(name, seed, functions) is None:
            seed += 1


if __name__ == "__main__":
    main()
