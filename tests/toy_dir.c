/* toy_dir: safetensors is simple enough to be written by hand: length, JSON header, data. */
#include "tests/toy_dir.h"
#include "kernels/philox.h"
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HIDDEN = 32, FFN = 48, LAYERS = 2, HEADS = 2, KV_HEADS = 1, HEAD_DIM = 16 };

struct shape {
    char name[64];
    int rows, cols; /* cols 0: a vector of ones */
};

static int list_shapes(struct shape *out)
{
    static const struct shape layer[] = {
        {"input_layernorm", HIDDEN, 0},
        {"post_attention_layernorm", HIDDEN, 0},
        {"self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN},
        {"self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN},
        {"self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN},
        {"self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM},
        {"mlp.gate_proj", FFN, HIDDEN},
        {"mlp.up_proj", FFN, HIDDEN},
        {"mlp.down_proj", HIDDEN, FFN},
    };
    int n = 0;
    out[n++] = (struct shape){"model.embed_tokens", TOY_DIR_VOCAB, HIDDEN};
    out[n++] = (struct shape){"model.norm", HIDDEN, 0};
    for (int l = 0; l < LAYERS; l++)
        for (size_t i = 0; i < sizeof layer / sizeof *layer; i++) {
            out[n] = layer[i];
            snprintf(out[n++].name, sizeof out->name, "model.layers.%d.%.40s", l, layer[i].name);
        }
    return n;
}

static size_t elements(const struct shape *s)
{
    return (size_t)s->rows * (size_t)(s->cols ? s->cols : 1);
}

static void write_values(FILE *f, const struct shape *s, int tensor)
{
    float scale = s->cols ? sqrtf(3.0f / (float)s->cols) * (tensor ? 1 : 4) : 0;
    for (size_t i = 0; i < elements(s); i++) {
        uint32_t bits = philox(5, (uint32_t)tensor, (uint32_t)i, PHILOX_SYNTHETIC, 0).v[0];
        float x = s->cols ? scale * ((float)bits * 0x1p-31f - 1) : 1;
        fwrite(&x, sizeof x, 1, f);
    }
}

static int write_weights(const char *path)
{
    struct shape s[64];
    char *header = NULL;
    size_t length = 0, at = 0;
    int n = list_shapes(s);
    FILE *h = open_memstream(&header, &length), *f = fopen(path, "wb");
    if (!h || !f)
        return -1;
    for (int i = 0; i < n; i++) {
        char cols[16] = "";
        if (s[i].cols)
            snprintf(cols, sizeof cols, ",%d", s[i].cols);
        fprintf(h, "%c\"%s.weight\":{\"dtype\":\"F32\",\"shape\":[%d%s],\"data_offsets\":[%zu,%zu]}",
                i ? ',' : '{', s[i].name, s[i].rows, cols, at, at + 4 * elements(&s[i]));
        at += 4 * elements(&s[i]);
    }
    fputc('}', h);
    fclose(h);
    uint64_t bytes = length;
    fwrite(&bytes, sizeof bytes, 1, f);
    fwrite(header, 1, length, f);
    free(header);
    for (int i = 0; i < n; i++)
        write_values(f, &s[i], i);
    return fclose(f);
}

static int write_text(const char *dir, const char *name, const char *text)
{
    char path[160];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    if (!f)
        return -1;
    fputs(text, f);
    return fclose(f);
}

static int link_tokenizer(const char *golden, const char *model)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"};
    for (int i = 0; i < 3; i++) {
        char from[512], to[160];
        snprintf(from, sizeof from, "%s/tokenizer/llama3/%s", golden, names[i]);
        snprintf(to, sizeof to, "%s/%s", model, names[i]);
        if (symlink(from, to))
            return -1;
    }
    return 0;
}

static int write_all(struct toy_dir *d, const char *golden)
{
    char text[1024], weights[128];
    snprintf(
        text, sizeof text,
        "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_act\":\"silu\","
        "\"hidden_size\":%d,\"intermediate_size\":%d,\"num_hidden_layers\":%d,\"num_attention_heads\":%d,"
        "\"num_key_value_heads\":%d,\"head_dim\":%d,\"max_position_embeddings\":%d,\"vocab_size\":%d,"
        "\"rms_norm_eps\":1e-05,\"rope_theta\":10000.0,\"tie_word_embeddings\":true}\n",
        HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, TOY_DIR_POSITIONS, TOY_DIR_VOCAB);
    snprintf(weights, sizeof weights, "%s/model.safetensors", d->model);
    if (write_text(d->model, "config.json", text) || write_weights(weights) ||
        link_tokenizer(golden, d->model))
        return -1;
    if (write_text(
            d->path, "prompts.jsonl",
            "{\"question_id\":1,\"category\":\"a\",\"turns\":[\"Say one two three.\"]}\n"
            "{\"question_id\":2,\"category\":\"a\",\"turns\":[\"What is a tree?\",\"And a leaf?\"]}\n"
            "{\"question_id\":3,\"category\":\"b\",\"turns\":[\"Write a poem about the sea and the sea.\"]}\n"
            "{\"question_id\":4,\"category\":\"b\",\"turns\":[\"x\"]}\n"
            "{\"question_id\":5,\"category\":\"b\",\"turns\":[\"Count to ten, then again to ten.\"]}\n"
            "{\"question_id\":6,\"category\":\"c\",\"turns\":[\"First turn\",\"Second turn\"]}\n"
            "{\"question_id\":7,\"category\":\"c\",\"turns\":[\"The end of the day.\"]}\n"
            "{\"question_id\":8,\"category\":\"c\",\"turns\":[\"Good night, and good luck.\"]}\n"))
        return -1;
    snprintf(text, sizeof text,
             "name: toy\nmodel: {path: %s}\ndevice: {threads: 1}\ndraft: {max_depth: 4, max_nodes: 4}\n"
             "workload: {dataset: [%s/prompts.jsonl], max_tokens: 24}\ntrace: {level: full}\n",
             d->model, d->path);
    return write_text(d->path, "toy.yaml", text);
}

int toy_dir_make(struct toy_dir *d, const char *golden)
{
    snprintf(d->path, sizeof d->path, "/tmp/specbed-run-XXXXXX");
    if (!mkdtemp(d->path))
        return -1;
    snprintf(d->model, sizeof d->model, "%s/model", d->path);
    snprintf(d->config, sizeof d->config, "%s/toy.yaml", d->path);
    snprintf(d->out, sizeof d->out, "%s/out.h5", d->path);
    if (mkdir(d->model, 0777) || write_all(d, golden)) {
        perror("toy_dir");
        return -1;
    }
    return 0;
}

static void remove_files(const char *dir)
{
    char path[400];
    DIR *list = opendir(dir);
    for (struct dirent *e; list && (e = readdir(list));) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        unlink(path);
    }
    if (list)
        closedir(list);
    rmdir(dir);
}

void toy_dir_remove(struct toy_dir *d)
{
    remove_files(d->model);
    remove_files(d->path);
}
