#!/usr/bin/env python3
"""Makes tests/golden/tokenizer/: two small tokenizers, and what `tokenizers` and `transformers` answer with them.

usage: make_tokenizer.py MODELS_DIR     (the folder that holds smollm2-135m-instruct)
"""
import base64
import json
import random
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

import tokenizer_corpus as corpus

HERE = Path(__file__).resolve().parent
OUT = HERE / "tokenizer"
SEED = 20240517
ORDINARY = 1950  # tokens before the special ones

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3_PATTERN = CONTRACTIONS + (r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                                 r"|\s+(?!\S)|\s+")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LLAMA4_PATTERN = "|".join([
    r"[^\r\n\p{L}\p{N}]?" + UPPER + "*" + LOWER + "+" + CONTRACTIONS + "?",
    r"[^\r\n\p{L}\p{N}]?" + UPPER + "+" + LOWER + "*" + CONTRACTIONS + "?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])

LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
                  "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>",
                  "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
LLAMA4_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
                  "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>", "<|python_start|>",
                  "<|python_end|>", "<|finetune_right_pad|>", "<|image_start|>", "<|image_end|>", "<|image|>",
                  "<|patch|>"]
# Whole words without a merge that makes them: only ignore_merges finds them, as with 678 tokens of Llama 3.
LLAMA3_WHOLE = ["Ġunreachable", "zugzwang", "Ġjuxtapose", "qwxyz", "Ġquixotic", "!?!?!", "Ġ<=>", "xylophone"]

LLAMA3_TEMPLATE = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
    " + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
LLAMA4_TEMPLATE = (
    "{{- bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|header_start|>system<|header_end|>\n\n' + messages[0]['content'] | trim + '<|eot|>' }}"
    "{%- set messages = messages[1:] %}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|header_start|>' + message['role'] + '<|header_end|>\n\n' + message['content'] + '<|eot|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|header_start|>assistant<|header_end|>\n\n' }}{%- endif %}")


# ---- the two small tokenizers -----------------------------------------------------------------------------------

def train(pattern, size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=1, show_progress=False, max_token_length=24,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator([(HERE / "training_text.txt").read_text("utf-8")], trainer)
    return json.loads(tokenizer.to_str())


def shuffle_bytes(vocab):
    """Gives the 256 single bytes other ids among themselves: in the published files they are not in byte order."""
    singles = sorted(t for t in vocab if len(t) == 1)
    ids = [vocab[t] for t in singles]
    random.Random(SEED).shuffle(ids)
    vocab.update(zip(singles, ids))


def finish(document, special, whole, ignore_merges, string_merges, sequence):
    model = document["model"]
    vocab = model["vocab"]
    shuffle_bytes(vocab)
    for word in whole:
        vocab.setdefault(word, len(vocab))
    model["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
    model["ignore_merges"] = ignore_merges
    if string_merges:
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
    first = len(vocab)
    document["added_tokens"] = [
        {"id": first + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True} for i, text in enumerate(special)]
    bos = special[0]
    template = {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                         {"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {bos: {"id": bos, "ids": [first], "tokens": [bos]}}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    document["post_processor"] = ({"type": "Sequence", "processors": [byte_level, template]} if sequence
                                  else template)
    return document


def write_tokenizer(name, document, template, eos, stops):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokenizer.json", document, None)
    ids = {t["content"]: t["id"] for t in document["added_tokens"]}
    write_json(folder / "tokenizer_config.json", {
        "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"}
                                 for t in document["added_tokens"]},
        "bos_token": "<|begin_of_text|>", "eos_token": eos, "clean_up_tokenization_spaces": False,
        "model_max_length": 8192, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}, 1)
    write_json(folder / "generation_config.json", {
        "bos_token_id": ids["<|begin_of_text|>"], "eos_token_id": [ids[s] for s in stops], "do_sample": True,
        "temperature": 0.6, "top_p": 0.9}, 1)


def make_small_tokenizers():
    write_tokenizer("llama3", finish(train(LLAMA3_PATTERN, ORDINARY), LLAMA3_SPECIAL, LLAMA3_WHOLE, True, True, True),
                    LLAMA3_TEMPLATE, "<|eot_id|>", ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"])
    write_tokenizer("llama4", finish(train(LLAMA4_PATTERN, ORDINARY), LLAMA4_SPECIAL, [], False, False, False),
                    LLAMA4_TEMPLATE, "<|eot|>", ["<|end_of_text|>", "<|eom|>", "<|eot|>"])


# ---- vectors ----------------------------------------------------------------------------------------------------

def b64(data):
    return base64.b64encode(data).decode()


def encode(tokenizer, text, special):
    tokenizer.encode_special_tokens = not special
    return tokenizer.encode(text, add_special_tokens=False).ids


def encode_lines(tokenizers):
    for data in corpus.texts(random.Random(SEED)):
        text = data.decode("utf-8", errors="replace")
        found = [{n: encode(t, text, special) for n, t in tokenizers.items()} for special in (True, False)]
        if found[0] == found[1]:
            yield {"b64": b64(data), **found[0]}
        else:
            yield {"b64": b64(data), "special": True, **found[0]}
            yield {"b64": b64(data), "special": False, **found[1]}


def decode_lines(tokenizers):
    """Round trips, cuts through the middle of characters, and ids in no order at all."""
    rng = random.Random(SEED + 1)
    texts = [d.decode("utf-8", errors="replace") for d in corpus.texts(random.Random(SEED))]
    for name, tokenizer in tokenizers.items():
        size = tokenizer.get_vocab_size()
        sequences = [encode(tokenizer, text, True)[:80] for text in rng.sample(texts, 60)]
        for text in corpus.PHRASES + corpus.EMOJI:
            ids = encode(tokenizer, text, True)
            a = rng.randrange(len(ids))
            sequences.append(ids[a:rng.randrange(a, len(ids)) + 1])
        sequences += [[rng.randrange(size) for _ in range(rng.randrange(1, 12))] for _ in range(60)]
        sequences += [[rng.randrange(300) for _ in range(rng.randrange(1, 9))] for _ in range(60)]
        sequences += [[], [0], [size - 1], [size - 1, 40, size - 2, 41]]
        for ids in sequences:
            text = tokenizer.decode(ids, skip_special_tokens=True)
            yield {"tokenizer": name, "ids": ids, "b64": b64(text.encode())}


def rule_parts(template, messages):
    """The conversation as (text, is it a special token): all text between two specials is one piece."""
    if template == "chatml":
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": corpus.SMOLLM2_SYSTEM}] + messages
        for m in messages:
            yield from [("<|im_start|>", True), (m["role"] + "\n" + m["content"], False), ("<|im_end|>", True),
                        ("\n", False)]
        yield from [("<|im_start|>", True), ("assistant\n", False)]
        return
    start, middle, close = {"llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
                            "llama4": ("<|header_start|>", "<|header_end|>", "<|eot|>")}[template]
    yield "<|begin_of_text|>", True
    for i, m in enumerate(messages):
        trimmed = template == "llama3" or (i == 0 and m["role"] == "system")
        content = m["content"].strip() if trimmed else m["content"]
        yield from [(start, True), (m["role"], False), (middle, True), ("\n\n" + content, False), (close, True)]
    yield from [(start, True), ("assistant", False), (middle, True), ("\n\n", False)]


def rule_ids(tokenizer, template, messages):
    ids = []
    for text, special in rule_parts(template, messages):
        ids += [tokenizer.token_to_id(text)] if special else encode(tokenizer, text, False)
    return ids


def chat_lines(tokenizers, folders):
    for name, template in (("smollm2", "chatml"), ("llama3", "llama3"), ("llama4", "llama4")):
        auto = AutoTokenizer.from_pretrained(folders[name])
        for messages in corpus.CONVERSATIONS:
            ids = auto.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
            if rule_ids(tokenizers[name], template, messages) != ids:
                raise SystemExit(f"{template}: rule and transformers differ for {messages}")
            yield {"tokenizer": name, "template": template, "messages": messages, "ids": ids,
                   "source": "transformers"}
        for messages in corpus.HOSTILE_CONVERSATIONS:
            yield {"tokenizer": name, "template": template, "messages": messages,
                   "ids": rule_ids(tokenizers[name], template, messages), "source": "rule"}


def write_json(path, value, indent):
    separators = None if indent else (",", ":")
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent, separators=separators) + "\n", "utf-8")


def write_lines(path, lines):
    count = 0
    with open(path, "w", encoding="ascii") as f:
        for line in lines:
            f.write(json.dumps(line, separators=(",", ":")) + "\n")
            count += 1
    print(f"{path.relative_to(HERE)}: {count} lines, {path.stat().st_size} bytes")


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    make_small_tokenizers()
    folders = {"smollm2": Path(sys.argv[1]) / "smollm2-135m-instruct", "llama3": OUT / "llama3",
               "llama4": OUT / "llama4"}
    tokenizers = {name: Tokenizer.from_file(str(folder / "tokenizer.json")) for name, folder in folders.items()}
    write_lines(OUT / "encode.jsonl", encode_lines(tokenizers))
    write_lines(OUT / "decode.jsonl", decode_lines(tokenizers))
    write_lines(OUT / "chat.jsonl", chat_lines(tokenizers, folders))


if __name__ == "__main__":
    main()
