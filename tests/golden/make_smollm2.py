#!/usr/bin/env python3
"""Makes tests/golden/smollm2/: what transformers computes in f32 with the weights of experiments/models/smollm2.py.

usage: make_smollm2.py MODELS_DIR     (the folder that holds smollm2-135m-instruct)
"""
import struct
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
OUT = HERE / "smollm2"
LOGITS_MAGIC, GREEDY_MAGIC = b"SBLOGIT1", b"SBGREED1"
N_TOP, N_SAMPLE, N_NEW = 16, 256, 128
STOPS = (0, 2)
BORDERS = (0, 1, 15, 16, 17, 31, 32, 63, 64, 127, 128, 255, 256)  # where blocked loops begin and end

STORY = ("The harbour master counted the boats before breakfast, and there were nineteen of them. Nobody had asked her "
         "to count; she simply liked to know. ")
CODE = '''def merge(a, b):
    """Merge two sorted lists."""
    out, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] <= b[j]:
            out.append(a[i]); i += 1
        else:
            out.append(b[j]); j += 1
    return out + a[i:] + b[j:]
'''
LONG = (HERE / "training_text.txt").read_text("utf-8")

# (text, number of tokens to keep; 0: all)
LOGIT_PROMPTS = [
    ("The", 1), ("Hello", 2), (STORY, 17), (STORY + LONG, 64), (LONG, 130), (LONG[600:], 301), (CODE, 0),
    ("Мы читаем книги каждый вечер. 今日は天気がいい。 Où est la gare ? Straße 🙂", 0),
    ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
     "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n", 0),
]

PARAGRAPH = ("The old bridge over the river was closed in March. Engineers found cracks in two of its five arches. The "
             "town council wants to repair it before winter, but the work will cost more than two million euros. Until "
             "then, buses take a detour of nine kilometres, and shops on the east side report a third fewer customers.")
GREEDY_PROMPTS = [
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about a lighthouse.",
    "List the days of the week.",
    "Summarise the following text in one sentence:\n\n" + PARAGRAPH,
    "Repeat the following text word for word:\n\n" + PARAGRAPH,
    "Rewrite the following text so that a child can understand it:\n\n" + PARAGRAPH,
    "Write a Python function that returns the n-th Fibonacci number.",
    "Add a docstring to each function and return the whole program:\n\n" + CODE,
    "Rename the variable `out` to `result` in this program and print all of it:\n\n" + CODE,
    "What does this program do?\n\n" + CODE,
    "Translate into French: The house is white and the garden is green.",
    "How many legs do three spiders have together? Think step by step.",
    "Calculate 17 * 6.",
    "Give me a recipe for pancakes with a list of ingredients.",
    "Write an email to my landlord about a broken heater.",
    "Who wrote Romeo and Juliet, and when?",
    "Count from 1 to 40, separated by commas.",
    "Make a table in Markdown with three countries and their capitals.",
    "Write a JSON object that describes a book with title, author and year.",
    "Tell me a story about a dog that finds a key.",
    "What is the difference between a stack and a queue?",
    "Answer yes or no: is seven a prime number?",
    "Write ten sentences that all begin with the words: On the hill",
]


def u32s(values):
    return struct.pack(f"<{len(values)}I", *values)


def f32s(tensor):
    return tensor.to(torch.float32).contiguous().numpy().astype("<f4").tobytes()


def top_two_gap(logits):
    top = torch.topk(logits, 2, dim=-1).values
    return top[..., 0] - top[..., 1]


def logits_prompt(model, ids):
    logits = model(torch.tensor([ids])).logits[0]
    positions = sorted({p for p in BORDERS if p < len(ids)} | {len(ids) // 3, len(ids) // 2, len(ids) - 1})
    out = u32s([len(ids), len(positions)]) + u32s(ids) + u32s(logits.argmax(-1).tolist()) + f32s(top_two_gap(logits))
    step = logits.shape[1] // N_SAMPLE
    for p in positions:
        top = torch.topk(logits[p], N_TOP)
        out += u32s([p]) + f32s(torch.logsumexp(logits[p].double(), 0)) + u32s(top.indices.tolist())
        out += f32s(top.values) + f32s(logits[p][::step][:N_SAMPLE])
    return out


def make_logits(model, tokenizer):
    vocab = model.config.vocab_size
    data = LOGITS_MAGIC + u32s([vocab, len(LOGIT_PROMPTS), N_TOP, N_SAMPLE, vocab // N_SAMPLE])
    for text, keep in LOGIT_PROMPTS:
        ids = tokenizer(text).input_ids
        if keep == 2 and len(ids) == 1:
            ids += tokenizer(" there").input_ids
        ids = ids[:keep] if keep else ids
        assert not keep or len(ids) == keep, (text, len(ids))
        print(f"logits: {len(ids)} tokens")
        data += logits_prompt(model, ids)
    (OUT / "logits.bin").write_bytes(data)


def greedy_prompt(model, ids):
    """128 tokens, each the argmax; a stop token does not stop, it is only counted."""
    tokens, gaps, cache, step = [], [], None, torch.tensor([ids])
    for _ in range(N_NEW):
        answer = model(step, cache=cache, use_cache=True)
        cache, logits = answer.cache, answer.logits[0, -1]
        tokens.append(int(logits.argmax()))
        gaps.append(float(top_two_gap(logits)))
        step = torch.tensor([[tokens[-1]]])
    until_stop = next((i + 1 for i, t in enumerate(tokens) if t in STOPS), N_NEW)
    return tokens, gaps, until_stop


def make_greedy(model, tokenizer):
    data = GREEDY_MAGIC + u32s([len(GREEDY_PROMPTS), N_NEW])
    for prompt in GREEDY_PROMPTS:
        ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True,
                                            return_dict=True)["input_ids"]
        tokens, gaps, until_stop = greedy_prompt(model, ids)
        print(f"greedy: {len(ids)} + {until_stop} tokens, smallest gap {min(gaps):.4f}: "
              f"{tokenizer.decode(tokens[:12])!r}", flush=True)
        data += u32s([len(ids), until_stop]) + u32s(ids) + u32s(tokens) + f32s(torch.tensor(gaps))
    (OUT / "greedy.bin").write_bytes(data)


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]) / "smollm2-135m-instruct"
    OUT.mkdir(exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        make_logits(model, tokenizer)
        make_greedy(model, tokenizer)


if __name__ == "__main__":
    main()
