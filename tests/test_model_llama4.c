/* test_model_llama4: every element of every golden, read once more from its file by rules written here, must
 * stand where the network wants it, because a transposed expert or a head whose pairs are left as they were
 * still produces text. Then files with one fault each, made from the goldens. */
#include "engine/checkpoint.h"
#include "engine/err.h"
#include "engine/log.h"
#include "engine/model.h"
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char *const goldens[] = {"maverick", "scout", "text", "fp8_meta", "fp8_modelopt"};
enum { N_GOLDENS = sizeof goldens / sizeof *goldens, NAME = 256, HEADER_MAX = 1 << 17 };

static struct backend be;
static char dir[64];

static void setup(void)
{
    log_set_level(LOG_WARN);
    snprintf(dir, sizeof dir, "/tmp/test_model_llama4_XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    ck_assert_int_eq(backend_open(&be, "cpu", &(struct backend_opts){.threads = 1, .isa = "auto"}), 0);
}

static void teardown(void)
{
    char path[128];
    backend_close(&be);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    unlink(path);
    rmdir(dir);
}

static void golden_dir(char out[512], const char *name)
{
    snprintf(out, 512, "%s/llama4/%s", SPECBED_GOLDEN_DIR, name);
}

static void expect_error(int rc, int code, const char *sentence)
{
    ck_assert_int_eq(rc, code);
    ck_assert_msg(strstr(err_text(), sentence) != NULL, "expected '%s' in:\n%s", sentence, err_text());
}

/* --- what the files say --- */

struct file {
    struct checkpoint ckpt;
    const char *prefix;
};

static const struct tensor *find(const struct file *f, const char *name)
{
    char full[NAME];
    snprintf(full, sizeof full, "%s%s", f->prefix, name);
    return checkpoint_peek(&f->ckpt, full);
}

static double number(const struct tensor *t, size_t i)
{
    const unsigned char *at = t->data;
    if (i >= t->bytes)
        ck_abort_msg("%s has no number %zu", t->name, i);
    if (strcmp(t->dtype, "F32") == 0) {
        float v;
        memcpy(&v, at + 4 * i, sizeof v);
        return (double)v;
    }
    if (strcmp(t->dtype, "BF16") == 0)
        return (double)bf16_to_f32((bf16)(at[2 * i] | at[2 * i + 1] << 8));
    if (strcmp(t->dtype, "F8_E4M3") != 0)
        ck_abort_msg("%s is %s", t->name, t->dtype);
    const int sign = at[i] >> 7, exp = at[i] >> 3 & 15, man = at[i] & 7;
    return (sign ? -1 : 1) * (exp ? ldexp(8 + man, exp - 10) : ldexp(man, -9));
}

/* A matrix [n, k] of the file, its scales beside it; or a slice of a fused [experts, k, columns]. */
struct source {
    const struct tensor *t, *scale, *input;
    int n, k, expert, columns, first; /* columns 0: not fused */
};

static struct source plain(const struct file *f, const char *base, int n, int k)
{
    char name[NAME];
    struct source s = {.n = n, .k = k};
    snprintf(name, sizeof name, "%s.weight", base);
    s.t = find(f, name);
    ck_assert_msg(s.t != NULL, "no '%s'", name);
    snprintf(name, sizeof name, "%s.weight_scale", base);
    s.scale = find(f, name);
    snprintf(name, sizeof name, "%s.input_scale", base);
    s.input = find(f, name);
    return s;
}

static struct source expert(const struct file *f, int layer, int e, const char *part, int n, int k)
{
    const int down = strcmp(part, "down_proj") == 0;
    char base[NAME - 16], name[NAME];
    struct source s = {.n = n, .k = k, .expert = e, .columns = down ? n : 2 * n};
    snprintf(base, sizeof base, "model.layers.%d.feed_forward.experts.%s", layer,
             down ? part : "gate_up_proj");
    s.t = find(f, base);
    if (!s.t) {
        snprintf(base, sizeof base, "model.layers.%d.feed_forward.experts.%d.%s", layer, e, part);
        return plain(f, base, n, k);
    }
    s.first = strcmp(part, "up_proj") == 0 ? n : 0;
    snprintf(name, sizeof name, "%s_weight_scale", base);
    s.scale = find(f, name);
    snprintf(name, sizeof name, "%s_input_scale", base);
    s.input = find(f, name);
    return s;
}

static double source_number(const struct source *s, int row, int col)
{
    if (!s->columns)
        return number(s->t, (size_t)row * (size_t)s->k + (size_t)col);
    return number(s->t, ((size_t)s->expert * (size_t)s->k + (size_t)col) * (size_t)s->columns +
                            (size_t)(s->first + row));
}

/* --- what the model holds --- */

/* Outputs as the model counts them: G, then U. */
static double held(const struct matrix *w, int interleaved, int row, int col)
{
    struct matrix numbers = *w;
    const int m = w->n / 2, half = row >= m, i = row - half * m;
    numbers.scale = NULL;
    return (double)matrix_at(&numbers, interleaved ? i / 16 * 32 + half * 16 + i % 16 : row, col);
}

/* Outputs [first, first + n) of w are the source's, then `width - n` zeros; pairs: a head's size. */
static void expect_part(const struct matrix *w, int interleaved, int first, int width, int pairs,
                        const struct source *s)
{
    ck_assert_int_eq(w->form == MATRIX_FP8, strcmp(s->t->dtype, "F8_E4M3") == 0);
    ck_assert_int_eq(w->form == MATRIX_FP8, s->scale != NULL);
    for (int row = 0; row < width; row++) {
        const int r = pairs ? row % pairs : 0; /* of a head in the file */
        const int to = first + (pairs ? row - r + r / 2 + r % 2 * (pairs / 2) : row);
        for (int col = 0; col < w->k; col++) {
            const double want = row < s->n && col < s->k ? source_number(s, row, col) : 0;
            if (held(w, interleaved, to, col) != want) /* an assertion each would take seconds */
                ck_abort_msg("%s: [%d, %d] is %g, expected %g", s->t->name, row, col,
                             held(w, interleaved, to, col), want);
        }
        if (s->scale && row < s->n) {
            const double want = number(s->scale, s->scale->n_dims == 2 ? (size_t)row : 0);
            ck_assert_msg((double)w->scale[to] == want, "%s: [%d] is %g, expected %g", s->scale->name, row,
                          (double)w->scale[to], want);
        }
    }
    if (s->input)
        ck_assert_double_ge((double)w->input_scale, number(s->input, 0));
    else
        ck_assert_float_eq(w->input_scale, 0);
}

static void expect_plain(const struct matrix *w, const struct source *s)
{
    ck_assert_int_eq(w->n, s->n);
    expect_part(w, 0, 0, w->n, 0, s);
    if (s->input)
        ck_assert_double_eq((double)w->input_scale, number(s->input, 0));
}

static void expect_vector(const float *v, const struct file *f, const char *name, int n)
{
    const struct tensor *t = find(f, name);
    ck_assert_msg(t != NULL, "no '%s'", name);
    for (int i = 0; i < n; i++)
        ck_assert_double_eq((double)v[i], number(t, (size_t)i));
}

static void expect_attention(const struct model *m, const struct file *f, int i)
{
    const struct model_config *c = &m->cfg;
    const struct layer *l = &m->layers[i];
    const int q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    char base[NAME];
    static const char *const names[] = {"q_proj", "k_proj", "v_proj"};
    const int first[] = {0, q, q + kv}, n[] = {q, kv, kv};
    ck_assert_int_eq(l->qkv.n, q + 2 * kv);
    for (int part = 0; part < 3; part++) {
        snprintf(base, sizeof base, "model.layers.%d.self_attn.%s", i, names[part]);
        const struct source s = plain(f, base, n[part], c->hidden);
        expect_part(&l->qkv, 0, first[part], n[part], part < 2 ? c->head_dim : 0, &s);
    }
    snprintf(base, sizeof base, "model.layers.%d.self_attn.o_proj", i);
    const struct source o = plain(f, base, c->hidden, q);
    expect_plain(&l->o, &o);
}

static void expect_mlp(const struct matrix *gate_up, const struct matrix *down, int width,
                       const struct source part[3])
{
    ck_assert_int_eq(gate_up->n, 2 * width);
    ck_assert_int_eq(down->k, width);
    expect_part(gate_up, 1, 0, width, 0, &part[0]);
    expect_part(gate_up, 1, width, width, 0, &part[1]);
    expect_plain(down, &part[2]);
}

static void expect_shared_or_dense(const struct model *m, const struct file *f, int i)
{
    static const char *const names[] = {"gate_proj", "up_proj", "down_proj"};
    const struct model_config *c = &m->cfg;
    const int moe = m->layers[i].kind & LAYER_MOE, width = moe ? c->ffn : c->ffn_dense,
              stored = width - (moe ? c->ffn_pad : c->ffn_dense_pad);
    struct source part[3];
    for (int p = 0; p < 3; p++) {
        char base[NAME];
        snprintf(base, sizeof base, "model.layers.%d.feed_forward.%s%s", i, moe ? "shared_expert." : "",
                 names[p]);
        part[p] = plain(f, base, p < 2 ? stored : c->hidden, p < 2 ? c->hidden : stored);
    }
    expect_mlp(&m->layers[i].gate_up, &m->layers[i].down, width, part);
}

static void expect_experts(const struct model *m, const struct file *f, int i)
{
    const struct model_config *c = &m->cfg;
    const struct layer *l = &m->layers[i];
    const int stored = c->ffn - c->ffn_pad;
    char base[NAME];
    snprintf(base, sizeof base, "model.layers.%d.feed_forward.router", i);
    const struct source router = plain(f, base, c->experts, c->hidden);
    expect_plain(&l->router, &router);
    for (int e = 0; e < c->experts; e++) {
        const struct source part[3] = {expert(f, i, e, "gate_proj", stored, c->hidden),
                                       expert(f, i, e, "up_proj", stored, c->hidden),
                                       expert(f, i, e, "down_proj", c->hidden, stored)};
        expect_mlp(&l->expert_gate_up[e], &l->expert_down[e], c->ffn, part);
    }
}

static void expect_model(const struct model *m, const struct file *f)
{
    const struct model_config *c = &m->cfg;
    const struct source embed = plain(f, "model.embed_tokens", c->vocab, c->hidden),
                        head = plain(f, "lm_head", c->vocab, c->hidden);
    expect_plain(&m->embed, &embed);
    expect_plain(&m->head, &head);
    expect_vector(m->norm, f, "model.norm.weight", c->hidden);
    for (int i = 0; i < c->layers; i++) {
        char name[NAME];
        snprintf(name, sizeof name, "model.layers.%d.input_layernorm.weight", i);
        expect_vector(m->layers[i].attn_norm, f, name, c->hidden);
        snprintf(name, sizeof name, "model.layers.%d.post_attention_layernorm.weight", i);
        expect_vector(m->layers[i].ffn_norm, f, name, c->hidden);
        ck_assert_int_eq(m->layers[i].kind, c->kind[i]);
        expect_attention(m, f, i);
        expect_shared_or_dense(m, f, i);
        if (c->kind[i] & LAYER_MOE)
            expect_experts(m, f, i);
        else
            ck_assert_ptr_null(m->layers[i].expert_gate_up);
    }
}

static void open_golden(struct file *f, const char *name)
{
    char path[512];
    golden_dir(path, name);
    ck_assert_msg(checkpoint_open(&f->ckpt, path) == 0, "%s", err_text());
    f->prefix = "language_model.";
    if (!find(f, "lm_head.weight"))
        f->prefix = "";
    ck_assert_ptr_nonnull(find(f, "lm_head.weight"));
}

START_TEST(every_element_of_a_golden_lands_where_the_network_wants_it)
{
    struct model m = {.be = NULL};
    struct file f = {.prefix = ""};
    char path[512];
    golden_dir(path, goldens[_i]);
    open_golden(&f, goldens[_i]);
    ck_assert_msg(model_load(&m, &be, path, NULL) == 0, "%s", err_text());
    expect_model(&m, &f);
    model_deinit(&m);
    checkpoint_close(&f.ckpt);
    ck_assert_uint_eq(be.allocated, 0);
}
END_TEST

/* Every matrix of the layers that a token meets: of two MoE layers one expert each. */
START_TEST(weight_bytes_are_what_one_token_reads)
{
    struct model m = {.be = NULL};
    char path[512];
    golden_dir(path, "fp8_meta");
    ck_assert_msg(model_load(&m, &be, path, NULL) == 0, "%s", err_text());
    const size_t attention =
        matrix_packed_bytes(128, 32) + matrix_packed_bytes(32, 64) + 2 * 32 * sizeof(float);
    const size_t dense = matrix_packed_bytes(96, 32) + matrix_packed_bytes(32, 48);
    const size_t shared = matrix_packed_bytes(32, 32) + matrix_packed_bytes(32, 16);
    const size_t moe = matrix_packed_bytes(8, 32) + 2 * shared + (32 + 32) * sizeof(float);
    ck_assert_uint_eq(m.weight_bytes,
                      4 * attention + 2 * dense + 2 * moe + matrix_packed_bytes(96, 32) + 32 * sizeof(float));
    model_deinit(&m);
}
END_TEST

START_TEST(rounding_on_request_leaves_the_router_and_stored_numbers_alone)
{
    struct model m = {.be = NULL}, stored = {.be = NULL};
    const struct model_opts opts = {.weights = MODEL_FP8};
    char path[512];
    golden_dir(path, "fp8_meta");
    ck_assert_msg(model_load(&stored, &be, path, NULL) == 0, "%s", err_text());
    ck_assert_msg(model_load(&m, &be, path, &opts) == 0, "%s", err_text());
    const struct layer *l = &m.layers[1], *s = &stored.layers[1];
    ck_assert_int_eq((int)l->router.form, MATRIX_BF16);
    ck_assert_mem_eq(l->router.data, s->router.data, s->router.bytes);
    ck_assert_int_eq((int)l->qkv.form, MATRIX_FP8);
    ck_assert_int_eq((int)s->qkv.form, MATRIX_BF16);
    ck_assert_int_eq((int)l->gate_up.form, MATRIX_FP8);
    ck_assert_int_eq((int)m.head.form, MATRIX_BF16);
    ck_assert_mem_eq(l->expert_down[3].data, s->expert_down[3].data, matrix_packed_bytes(32, 16));
    ck_assert_mem_eq(l->expert_down[3].scale, s->expert_down[3].scale, 32 * sizeof(float));
    model_deinit(&m);
    model_deinit(&stored);
    ck_assert_uint_eq(be.allocated, 0);
}
END_TEST

START_TEST(random_weights_of_the_shape_are_a_function_of_the_seed)
{
    struct model m[3] = {{.be = NULL}};
    struct model_config c = {0};
    char path[512];
    golden_dir(path, "text");
    ck_assert_int_eq(model_config_read(&c, path), 0);
    for (int i = 0; i < 2; i++)
        ck_assert_msg(model_synthetic(&m[i], &be, &c, 7, NULL) == 0, "%s", err_text());
    c.chunk++;
    ck_assert_int_eq(model_synthetic(&m[2], &be, &c, 7, NULL), 0);
    ck_assert_uint_eq(m[0].fingerprint, m[1].fingerprint);
    ck_assert_uint_ne(m[0].fingerprint, m[2].fingerprint);
    const struct layer *a = &m[0].layers[1], *b = &m[1].layers[1];
    ck_assert_mem_eq(a->expert_down[3].data, b->expert_down[3].data, a->expert_down[3].bytes);
    ck_assert_mem_ne(a->expert_down[3].data, a->expert_down[2].data, a->expert_down[3].bytes);
    for (int i = 0; i < 3; i++)
        model_deinit(&m[i]);
}
END_TEST

/* --- files with one fault --- */

/* What differs from the golden, by names without prefix. */
struct edit {
    const char *drop[3];              /* left out */
    const char *name, *dtype, *shape; /* NULL: as it was */
    float first;                      /* its first number, an F32; 0: as it was */
    const char *extra, *extra_shape;  /* one more tensor, of BF16 zeros; or 1, 1 + 1/128, 1 + 2/128, ... */
    size_t extra_bytes;
    int ramp;
};

static int dropped(const struct edit *e, const char *name)
{
    for (int i = 0; i < 3 && e->drop[i]; i++)
        if (strcmp(e->drop[i], name) == 0)
            return 1;
    return 0;
}

static void shape_of(const struct tensor *t, char out[64])
{
    size_t at = (size_t)snprintf(out, 64, "[");
    for (int i = 0; i < t->n_dims; i++)
        at += (size_t)snprintf(out + at, 64 - at, i ? ",%zu" : "%zu", t->shape[i]);
    snprintf(out + at, 64 - at, "]");
}

static size_t entry(char *header, size_t at, const char *name, const char *dtype, const char *shape,
                    size_t begin, size_t bytes)
{
    return at + (size_t)snprintf(header + at, HEADER_MAX - at,
                                 "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                                 at > 1 ? "," : "", name, dtype, shape, begin, begin + bytes);
}

/* Header and data of a one-file golden with the edit. Returns the data's size. */
static size_t edited(const struct file *f, const struct edit *e, char *header, size_t *header_bytes,
                     unsigned char *data)
{
    const struct safetensors *st = &f->ckpt.files[0];
    const size_t prefix = strlen(f->prefix);
    size_t at = 1, n = 0;
    header[0] = '{';
    for (int i = 0; i < st->n; i++) {
        const struct tensor *t = &st->tensors[i];
        const char *name = t->name + (strncmp(t->name, f->prefix, prefix) == 0 ? prefix : 0);
        const int hit = e->name && strcmp(name, e->name) == 0;
        char shape[64];
        if (dropped(e, name))
            continue;
        shape_of(t, shape);
        memcpy(data + n, t->data, t->bytes);
        if (hit && e->first != 0)
            memcpy(data + n, &e->first, sizeof e->first);
        at = entry(header, at, t->name, hit && e->dtype ? e->dtype : t->dtype,
                   hit && e->shape ? e->shape : shape, n, t->bytes);
        n += t->bytes;
    }
    if (e->extra) {
        char full[NAME];
        snprintf(full, sizeof full, "%s%s", f->prefix, e->extra);
        at = entry(header, at, full, "BF16", e->extra_shape, n, e->extra_bytes);
        for (size_t i = 0; i < e->extra_bytes / 2; i++) {
            const bf16 v = e->ramp ? (bf16)(0x3f80 + i) : 0;
            memcpy(data + n + 2 * i, &v, sizeof v);
        }
        n += e->extra_bytes;
    }
    header[at++] = '}';
    *header_bytes = at;
    return n;
}

static int load_edited(struct model *m, const char *golden, const struct edit *e,
                       const struct model_opts *opts)
{
    struct file f = {.prefix = ""};
    struct model_config c = {0};
    struct checkpoint ckpt = {0};
    char path[512], *header = malloc(HEADER_MAX);
    unsigned char *data = malloc(1 << 20), length[8] = {0};
    size_t n_header = 0;
    open_golden(&f, golden);
    ck_assert_int_eq(f.ckpt.n_files, 1);
    const size_t n = edited(&f, e, header, &n_header, data);
    for (int i = 0; i < 4; i++)
        length[i] = (unsigned char)(n_header >> 8 * i);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *out = fopen(path, "wb");
    ck_assert_ptr_nonnull(out);
    fwrite(length, 1, 8, out);
    fwrite(header, 1, n_header, out);
    fwrite(data, 1, n, out);
    ck_assert_int_eq(fclose(out), 0);
    golden_dir(path, golden);
    ck_assert_int_eq(model_config_read(&c, path), 0);
    ck_assert_msg(checkpoint_open(&ckpt, dir) == 0, "%s", err_text());
    const int rc = model_build(m, &be, &c, &ckpt, opts);
    checkpoint_close(&ckpt);
    checkpoint_close(&f.ckpt);
    free(header);
    free(data);
    return rc;
}

#define FFN      "model.layers.1.feed_forward."
#define NOTHING  "found no such tensor"
#define NAN_FILE ((float)NAN)
static const struct {
    const char *golden;
    struct edit edit;
    int code;
    const char *sentence;
} faults[] = {
    {"fp8_meta",
     {.drop = {FFN "experts.3.up_proj.weight_scale"}},
     ERR_FORMAT,
     "tensor 'language_model." FFN "experts.3.up_proj.weight_scale': expected [16, 1], " NOTHING},
    {"fp8_meta",
     {.drop = {FFN "experts.5.down_proj.weight"}},
     ERR_FORMAT,
     "tensor 'language_model." FFN "experts.5.down_proj.weight': expected [32, 16], " NOTHING},
    {"fp8_meta",
     {.name = FFN "experts.0.gate_proj.weight_scale", .shape = "[2,8]"},
     ERR_FORMAT,
     "experts.0.gate_proj.weight_scale': expected [16, 1], found BF16 [2, 8]"},
    {"fp8_meta",
     {.name = FFN "experts.0.gate_proj.weight", .dtype = "F8_E5M2"},
     ERR_FORMAT,
     "experts.0.gate_proj.weight': expected BF16, F16, F32 or F8_E4M3 [16, 32], found F8_E5M2 [16, 32]"},
    {"fp8_meta",
     {.extra = FFN "experts.8.gate_proj.weight", .extra_shape = "[16,32]", .extra_bytes = 1024},
     ERR_FORMAT,
     "found 1 more, the first 'language_model." FFN "experts.8.gate_proj.weight'"},
    {"fp8_meta",
     {.extra = "model.layers.0.self_attn.q_proj.weight_scale", .extra_shape = "[]", .extra_bytes = 2},
     ERR_FORMAT,
     "found 1 more, the first 'language_model.model.layers.0.self_attn.q_proj.weight_scale'"},
    {"fp8_meta",
     {.name = "model.layers.3.feed_forward.experts.7.down_proj.weight_scale", .first = -1},
     ERR_FORMAT,
     "experts.7.down_proj.weight_scale': expected scales from 0 on, found -1 at 0"},
    {"fp8_modelopt",
     {.drop = {FFN "experts.gate_up_proj_weight_scale"}},
     ERR_FORMAT,
     "tensor '" FFN "experts.gate_up_proj_weight_scale': expected [], " NOTHING},
    {"fp8_modelopt",
     {.drop = {"model.layers.0.self_attn.o_proj.weight_scale"}},
     ERR_FORMAT,
     "the scale of F8_E4M3 'model.layers.0.self_attn.o_proj.weight'"},
    {"fp8_modelopt",
     {.name = FFN "experts.down_proj_weight_scale", .first = NAN_FILE},
     ERR_FORMAT,
     "experts.down_proj_weight_scale': expected scales from 0 on, found nan"},
    {"fp8_modelopt",
     {.name = "model.layers.0.self_attn.k_proj.k_scale", .first = -2},
     ERR_FORMAT,
     "k_proj.k_scale': expected scales from 0 on, found -2"},
    {"fp8_modelopt",
     {.name = "model.layers.2.feed_forward.up_proj.input_scale", .dtype = "I32"},
     ERR_FORMAT,
     "up_proj.input_scale': expected BF16, F16 or F32 [], found I32 []"},
    {"fp8_modelopt",
     {.drop = {FFN "experts.gate_up_proj"}},
     ERR_FORMAT,
     "tensor '" FFN "experts.gate_up_proj': expected [8, 32, 32], or one for each expert from '" FFN
     "experts.0.gate_proj.weight' on, found neither"},
    {"fp8_modelopt",
     {.drop = {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight_scale",
               "model.layers.0.self_attn.q_proj.input_scale"},
      .extra = "model.layers.0.self_attn.q_proj.weight",
      .extra_shape = "[64,32]",
      .extra_bytes = 4096},
     ERR_LIMIT,
     "expected FP8 numbers in all 3 or in none, found them in 2: model.weights fp8 rounds the others"},
    {"text",
     {.name = FFN "router.weight", .dtype = "I16"},
     ERR_FORMAT,
     "router.weight': expected BF16, F16 or F32 [4, 32], found I16 [4, 32]"},
    {"text",
     {.name = FFN "experts.gate_up_proj", .shape = "[4,48,32]"},
     ERR_FORMAT,
     "experts.gate_up_proj': expected [4, 32, 48], found BF16 [4, 48, 32]"},
    {"text",
     {.name = FFN "experts.down_proj", .shape = "[2,48,32]"},
     ERR_FORMAT,
     "experts.down_proj': expected [4, 24, 32], found BF16 [2, 48, 32]"},
    {"text",
     {.extra = "model.layers.0.self_attn.q_proj.bias", .extra_shape = "[48]", .extra_bytes = 96},
     ERR_FORMAT,
     "found 1 more, the first 'model.layers.0.self_attn.q_proj.bias'"},
    {"text",
     {.extra = "vision_tower.weight", .extra_shape = "[2]", .extra_bytes = 4},
     ERR_FORMAT,
     "found 1 more, the first 'vision_tower.weight'"},
    {"text",
     {.drop = {"lm_head.weight"}, .extra = "lm_head.weights", .extra_shape = "[2]", .extra_bytes = 4},
     ERR_FORMAT,
     "expected tensor 'lm_head.weight', found none"},
};

START_TEST(a_fault_is_named_with_what_was_expected)
{
    struct model m = {.be = NULL};
    expect_error(load_edited(&m, faults[_i].golden, &faults[_i].edit, NULL), faults[_i].code,
                 faults[_i].sentence);
    ck_assert_ptr_null(m.be);
    ck_assert_uint_eq(be.allocated, 0);
}
END_TEST

START_TEST(static_activations_need_an_input_scale_with_every_fp8_matrix)
{
    static const struct {
        const char *golden;
        struct edit edit;
        enum model_numbers weights;
        const char *sentence;
    } cases[] = {
        {"text", {.drop = {NULL}}, MODEL_BF16, "as NVIDIA's ModelOpt writes them, found BF16 weights"},
        {"text", {.drop = {NULL}}, MODEL_FP8, "self_attn.q_proj' of "},
        {"fp8_meta",
         {.drop = {NULL}},
         MODEL_BF16,
         "expected an input_scale above 0 with '" FFN "experts.0.gate_proj' of "},
        {"fp8_meta", {.drop = {NULL}}, MODEL_FP8, "is not stored in FP8 and has no input_scale"},
        {"fp8_modelopt",
         {.drop = {"model.layers.0.self_attn.v_proj.input_scale"}},
         MODEL_BF16,
         "expected an input_scale above 0 with 'model.layers.0.self_attn.v_proj' of "},
        {"fp8_modelopt",
         {.drop = {FFN "experts.down_proj_input_scale"}},
         MODEL_BF16,
         "expected an input_scale above 0 with '" FFN "experts.0.down_proj' of "}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct model_opts opts = {.weights = cases[i].weights, .activations = MODEL_FP8_STATIC};
        struct model m = {.be = NULL};
        expect_error(load_edited(&m, cases[i].golden, &cases[i].edit, &opts), ERR_CONFIG, cases[i].sentence);
        ck_assert_ptr_null(m.be);
        ck_assert_uint_eq(be.allocated, 0);
    }
    struct model m = {.be = NULL};
    const struct model_opts opts = {.weights = MODEL_FP8, .activations = MODEL_FP8_STATIC, .calibrates = 1};
    expect_error(load_edited(&m, "text", &cases[0].edit, &opts), ERR_LIMIT,
                 "model.calibration: expected a model without experts, found 4 of them a layer");
}
END_TEST

/* Spellings of the same scales. */
START_TEST(scales_are_read_in_every_shape_that_writers_give_them)
{
    static const struct {
        const char *golden;
        struct edit edit;
    } same[] = {{"fp8_meta", {.name = FFN "experts.2.gate_proj.weight_scale", .shape = "[16]"}},
                {"fp8_modelopt", {.name = FFN "experts.down_proj_weight_scale", .shape = "[1]"}},
                {"fp8_modelopt", {.name = "model.layers.0.self_attn.k_proj.weight_scale", .shape = "[1]"}},
                {"fp8_modelopt", {.name = "model.layers.0.self_attn.k_proj.input_scale", .shape = "[1]"}}};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        struct model m = {.be = NULL};
        struct file f = {.prefix = ""};
        open_golden(&f, same[i].golden);
        ck_assert_msg(load_edited(&m, same[i].golden, &same[i].edit, NULL) == 0, "%s", err_text());
        expect_model(&m, &f);
        model_deinit(&m);
        checkpoint_close(&f.ckpt);
    }
}
END_TEST

START_TEST(a_matrix_rounded_in_part_loads_when_the_rest_may_be_rounded)
{
    struct model m = {.be = NULL};
    const struct model_opts opts = {.weights = MODEL_FP8};
    const struct edit *e = NULL;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        if (faults[i].code == ERR_LIMIT)
            e = &faults[i].edit;
    ck_assert_ptr_nonnull(e);
    ck_assert_msg(load_edited(&m, "fp8_modelopt", e, &opts) == 0, "%s", err_text());
    for (int i = 0; i < 64; i++)
        ck_assert_float_eq(matrix_at(&m.layers[0].qkv, i, 0), 0);
    ck_assert_int_eq((int)m.layers[0].qkv.form, MATRIX_FP8);
    model_deinit(&m);
}
END_TEST

START_TEST(scales_of_queries_follow_their_rows)
{
    struct model m = {.be = NULL};
    const struct edit e = {.drop = {"model.layers.0.self_attn.q_proj.weight_scale"},
                           .extra = "model.layers.0.self_attn.q_proj.weight_scale",
                           .extra_shape = "[64,1]",
                           .extra_bytes = 128,
                           .ramp = 1};
    ck_assert_msg(load_edited(&m, "fp8_modelopt", &e, NULL) == 0, "%s", err_text());
    for (int row = 0; row < 64; row++) {
        const int to = row / 16 * 16 + row % 16 / 2 + row % 2 * 8;
        ck_assert_float_eq(m.layers[0].qkv.scale[to], 1 + (float)row / 128);
    }
    model_deinit(&m);
}
END_TEST

static size_t room;

static size_t small_room(struct backend *b)
{
    (void)b;
    return room;
}

/* Bytes on a device, by hand: of four layers two are MoE of 8 experts and a shared one. */
START_TEST(room_is_counted_in_the_forms_of_the_file)
{
    const struct backend_ops *const ops = be.ops;
    struct backend_ops small = *ops;
    struct model m = {.be = NULL};
    const size_t ends = 2 * 2 * 96 * 32 + 4 * 32 * 9, attention = 128 * 32 + 32 * 64, dense = 3 * 32 * 48,
                 expert = 3 * 32 * 16, scales = 4 * (2 * 16 + 32),
                 meta = ends + 4 * 2 * attention + 2 * 2 * dense +
                        2 * (2 * 8 * 32 + 2 * expert + 8 * (expert + scales));
    char path[512];
    golden_dir(path, "fp8_meta");
    small.available = small_room;
    be.ops = &small;
    room = meta;
    ck_assert_msg(model_load(&m, &be, path, NULL) == 0, "%s", err_text());
    model_deinit(&m);
    room--;
    expect_error(model_load(&m, &be, path, NULL), ERR_MEMORY, "in BF16 and FP8 and");
    be.ops = ops;
}
END_TEST

int main(void)
{
    Suite *s = suite_create("model_llama4");
    TCase *loads = tcase_create("loads"), *refuses = tcase_create("refuses");
    TCase *all[] = {loads, refuses};
    tcase_add_loop_test(loads, every_element_of_a_golden_lands_where_the_network_wants_it, 0, N_GOLDENS);
    tcase_add_test(loads, weight_bytes_are_what_one_token_reads);
    tcase_add_test(loads, rounding_on_request_leaves_the_router_and_stored_numbers_alone);
    tcase_add_test(loads, random_weights_of_the_shape_are_a_function_of_the_seed);
    tcase_add_test(loads, scales_are_read_in_every_shape_that_writers_give_them);
    tcase_add_test(loads, scales_of_queries_follow_their_rows);
    tcase_add_test(loads, a_matrix_rounded_in_part_loads_when_the_rest_may_be_rounded);
    tcase_add_test(refuses, static_activations_need_an_input_scale_with_every_fp8_matrix);
    tcase_add_loop_test(refuses, a_fault_is_named_with_what_was_expected, 0, sizeof faults / sizeof *faults);
    tcase_add_test(refuses, room_is_counted_in_the_forms_of_the_file);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        tcase_add_checked_fixture(all[i], setup, teardown);
        suite_add_tcase(s, all[i]);
    }
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
