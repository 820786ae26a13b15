/* test_model: checkpoints written by the test and read back; where every element must land is checked element
 * by element, because a transposed or swapped matrix still produces text. */
#include "engine/checkpoint.h"
#include "engine/err.h"
#include "engine/log.h"
#include "engine/model.h"
#include "tests/toy.h"
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { FILE_MAX = 1 << 20 };

static char dir[64];
static struct backend be;

static void setup(void)
{
    log_set_level(LOG_WARN);
    snprintf(dir, sizeof dir, "/tmp/test_model_XXXXXX");
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

static void expect_error(int rc, int code, const char *sentence)
{
    ck_assert_int_eq(rc, code);
    ck_assert_msg(strstr(err_text(), sentence) != NULL, "expected '%s' in:\n%s", sentence, err_text());
}

/* A file under construction: header text and data grow together. */
struct writer {
    char header[1 << 14];
    unsigned char *data;
    size_t at, n;
    enum dtype dtype;
    const char *skip; /* leave this tensor out */
};

/* Element (i, j) of the tensor with this number: multiples of 1/64 in [-1, 1), which BF16, F16 and F32 hold
 * exactly. */
static float value_of(int tensor, int i, int j)
{
    return (float)((tensor * 37 + i * 11 + j * 5) % 128 - 64) / 64;
}

static uint16_t half_of(float f)
{
    uint16_t sign = f < 0 ? 0x8000 : 0;
    int exp = 0;
    float m = frexpf(fabsf(f), &exp); /* f = m 2^exp, m in [0.5, 1) */
    return f == 0 ? 0 : (uint16_t)(sign | (exp + 14) << 10 | (int)(m * 2048 - 1024));
}

static void put(struct writer *w, const char *name, int tensor, int n, int k)
{
    static const char *const names[] = {[DTYPE_BF16] = "BF16", [DTYPE_F16] = "F16", [DTYPE_F32] = "F32"};
    char shape[32];
    const size_t begin = w->n;
    if (w->skip && strcmp(name, w->skip) == 0)
        return;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < (k ? k : 1); j++, w->n += dtype_size(w->dtype)) {
            const float f = value_of(tensor, i, j);
            const uint16_t half = w->dtype == DTYPE_F16 ? half_of(f) : bf16_from_f32(f);
            if (w->dtype == DTYPE_F32)
                memcpy(w->data + w->n, &f, sizeof f);
            else
                memcpy(w->data + w->n, &half, sizeof half);
        }
    snprintf(shape, sizeof shape, k ? "[%d,%d]" : "[%d]", n, k);
    w->at += (size_t)snprintf(w->header + w->at, sizeof w->header - w->at,
                              "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                              w->at > 1 ? "," : "{", name, names[w->dtype], shape, begin, w->n);
}

/* Tensors are numbered: embed 1, norm 2, head 3, layer l from 10 (l + 1) on, in the order below. */
static void put_model(struct writer *w, const struct model_config *c)
{
    static const char *const names[] = {"input_layernorm",  "self_attn.q_proj", "self_attn.k_proj",
                                        "self_attn.v_proj", "self_attn.o_proj", "post_attention_layernorm",
                                        "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
    const int q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim, h = c->hidden;
    const int n[] = {h, q, kv, kv, h, h, c->ffn, c->ffn, h}, k[] = {0, h, h, h, q, 0, h, h, c->ffn};
    put(w, "model.embed_tokens.weight", 1, c->vocab, h);
    put(w, "model.norm.weight", 2, h, 0);
    if (!c->tied)
        put(w, "lm_head.weight", 3, c->vocab, h);
    for (int l = 0; l < c->layers; l++)
        for (int t = 0; t < 9; t++) {
            char name[128];
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, names[t]);
            put(w, name, 10 * (l + 1) + t, n[t], k[t]);
        }
}

/* Write model.safetensors; odd bytes of padding after the header make every tensor unaligned. */
static void write_model(const struct model_config *c, enum dtype dtype, const char *skip, const char *extra)
{
    char path[128];
    unsigned char length[8] = {0};
    struct writer *w = calloc(1, sizeof *w);
    w->data = malloc(FILE_MAX);
    w->dtype = dtype;
    w->skip = skip;
    put_model(w, c);
    if (extra)
        put(w, extra, 4, 3, 0);
    w->at += (size_t)snprintf(w->header + w->at, sizeof w->header - w->at, "}");
    while (w->at % 2 == 0)
        w->header[w->at++] = ' ';
    length[0] = (unsigned char)w->at;
    length[1] = (unsigned char)(w->at >> 8);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *f = fopen(path, "wb");
    fwrite(length, 1, 8, f);
    fwrite(w->header, 1, w->at, f);
    fwrite(w->data, 1, w->n, f);
    ck_assert_int_eq(fclose(f), 0);
    free(w->data);
    free(w);
}

static int build_as(struct model *m, const struct model_config *c, const struct model_opts *opts)
{
    struct checkpoint ckpt = {0};
    ck_assert_msg(checkpoint_open(&ckpt, dir) == 0, "%s", err_text());
    int rc = model_build(m, &be, c, &ckpt, opts);
    checkpoint_close(&ckpt);
    return rc;
}

static int build(struct model *m, const struct model_config *c)
{
    return build_as(m, c, NULL);
}

static void expect_rows(const struct matrix *w, int from, int n, int tensor)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < w->k; j++)
            ck_assert_msg(matrix_at(w, from + i, j) == value_of(tensor, i, j),
                          "tensor %d at [%d, %d]: %g, expected %g", tensor, i, j, matrix_at(w, from + i, j),
                          value_of(tensor, i, j));
}

static void expect_norm(const float *w, int n, int tensor)
{
    for (int i = 0; i < n; i++)
        ck_assert_float_eq(w[i], value_of(tensor, i, 0));
}

/* The model's interleaved matrix must be what matrix_pack makes of gate (first) and up (second). */
static void expect_gate_up(const struct matrix *w, const struct model_config *c, int tensor)
{
    const size_t count = (size_t)c->ffn * (size_t)c->hidden;
    float *gate = malloc(2 * count * sizeof *gate), *up = gate + count;
    struct matrix want = {.n = 2 * c->ffn, .k = c->hidden};
    for (int i = 0; i < c->ffn; i++)
        for (int j = 0; j < c->hidden; j++) {
            gate[i * c->hidden + j] = value_of(tensor, i, j);
            up[i * c->hidden + j] = value_of(tensor + 1, i, j);
        }
    const struct matrix_part parts[] = {{gate, DTYPE_F32, c->ffn}, {up, DTYPE_F32, c->ffn}};
    want.data = aligned_alloc(64, matrix_packed_bytes(want.n, want.k));
    matrix_pack(&want, parts, 2, MATRIX_INTERLEAVE, 1);
    ck_assert_int_eq(w->n, want.n);
    ck_assert_mem_eq(w->data, want.data, want.bytes);
    free(want.data);
    free(gate);
}

static void expect_model(const struct model *m)
{
    const struct model_config *c = &m->cfg;
    const int q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    expect_rows(&m->embed, 0, c->vocab, 1);
    expect_rows(&m->head, 0, c->vocab, c->tied ? 1 : 3);
    expect_norm(m->norm, c->hidden, 2);
    for (int l = 0; l < c->layers; l++) {
        const int first = 10 * (l + 1);
        expect_norm(m->layers[l].attn_norm, c->hidden, first);
        expect_rows(&m->layers[l].qkv, 0, q, first + 1);
        expect_rows(&m->layers[l].qkv, q, kv, first + 2);
        expect_rows(&m->layers[l].qkv, q + kv, kv, first + 3);
        expect_rows(&m->layers[l].o, 0, c->hidden, first + 4);
        expect_norm(m->layers[l].ffn_norm, c->hidden, first + 5);
        expect_gate_up(&m->layers[l].gate_up, c, first + 6);
        expect_rows(&m->layers[l].down, 0, c->hidden, first + 8);
    }
}

START_TEST(every_tensor_lands_where_the_network_wants_it)
{
    struct model m = {.be = NULL};
    const struct model_config c = toy_config();
    write_model(&c, (enum dtype)_i, NULL, NULL);
    ck_assert_msg(build(&m, &c) == 0, "%s", err_text());
    expect_model(&m);
    ck_assert_float_eq(m.inv_freq[0], 1.0f);
    model_deinit(&m);
}
END_TEST

START_TEST(a_tied_head_is_the_embedding_and_costs_nothing)
{
    struct model m = {.be = NULL};
    struct model_config c = toy_config();
    c.tied = 1;
    write_model(&c, DTYPE_BF16, NULL, NULL);
    ck_assert_msg(build(&m, &c) == 0, "%s", err_text());
    expect_model(&m);
    ck_assert_ptr_eq(m.head.data, m.embed.data);
    model_deinit(&m);
    ck_assert_uint_eq(be.allocated, 0);
}
END_TEST

START_TEST(weight_bytes_are_what_one_token_reads)
{
    struct model m = {.be = NULL};
    const struct model_config c = toy_config();
    ck_assert_int_eq(model_synthetic(&m, &be, &c, 1, NULL), 0);
    const size_t layer = matrix_packed_bytes(128, 64) + matrix_packed_bytes(64, 64) +
                         matrix_packed_bytes(192, 64) + matrix_packed_bytes(64, 96) + 2 * 64 * sizeof(float);
    ck_assert_uint_eq(m.weight_bytes, 2 * layer + matrix_packed_bytes(97, 64) + 64 * sizeof(float));
    model_deinit(&m);
}
END_TEST

START_TEST(fp8_weights_cost_their_scales_and_leave_the_ends_alone)
{
    struct model m = {.be = NULL};
    const struct model_config c = toy_config();
    const struct model_opts opts = {.weights = MODEL_FP8};
    ck_assert_int_eq(model_synthetic(&m, &be, &c, 1, &opts), 0);
    const size_t layer = matrix_packed_bytes(128, 64) + matrix_packed_bytes(64, 64) +
                         matrix_packed_bytes(192, 64) + matrix_packed_bytes(64, 96) +
                         (128 + 64 + 192 + 64 + 2 * 64) * sizeof(float);
    ck_assert_uint_eq(m.weight_bytes, 2 * layer + matrix_packed_bytes(97, 64) + 64 * sizeof(float));
    ck_assert_int_eq((int)m.embed.form, MATRIX_BF16);
    ck_assert_ptr_null(m.embed.scale);
    ck_assert_ptr_null(m.head.scale);
    ck_assert_int_eq((int)m.layers[1].down.form, MATRIX_FP8);
    ck_assert_ptr_nonnull(m.layers[1].down.scale);
    model_deinit(&m);
    ck_assert_uint_eq(be.allocated, 0);
}
END_TEST

/* Within 2^-4 of the file's value, or half the smallest number of a scale that is at most 1 / 448. */
START_TEST(fp8_weights_of_a_file_are_near_its_values)
{
    struct model m = {.be = NULL};
    const struct model_config c = toy_config();
    const struct model_opts opts = {.weights = MODEL_FP8};
    write_model(&c, DTYPE_F16, NULL, NULL);
    ck_assert_msg(build_as(&m, &c, &opts) == 0, "%s", err_text());
    for (int i = 0; i < c.hidden; i++)
        for (int j = 0; j < c.ffn; j++) {
            const double want = value_of(28, i, j), got = matrix_at(&m.layers[1].down, i, j);
            ck_assert_msg(fabs(got - want) <= fabs(want) * (0x1p-4 + 0x1p-22) + 0x1p-10 / 448,
                          "[%d, %d] is %g, expected %g", i, j, got, want);
        }
    expect_rows(&m.head, 0, c.vocab, 3);
    model_deinit(&m);
    ck_assert_uint_eq(be.allocated, 0);
}
END_TEST

START_TEST(the_fingerprint_is_that_of_the_weights_not_of_their_form)
{
    const struct model_opts opts = {.weights = MODEL_FP8, .activations = MODEL_FP8, .kv = MODEL_FP8};
    const struct model_config c = toy_config();
    struct model m[4] = {{.be = NULL}};
    write_model(&c, DTYPE_BF16, NULL, NULL);
    ck_assert_int_eq(build(&m[0], &c), 0);
    ck_assert_int_eq(build_as(&m[1], &c, &opts), 0);
    ck_assert_int_eq(model_synthetic(&m[2], &be, &c, 1, NULL), 0);
    ck_assert_int_eq(model_synthetic(&m[3], &be, &c, 1, &opts), 0);
    ck_assert_uint_eq(m[0].fingerprint, m[1].fingerprint);
    ck_assert_uint_eq(m[2].fingerprint, m[3].fingerprint);
    ck_assert_uint_ne(m[0].fingerprint, m[2].fingerprint);
    for (int i = 0; i < 4; i++)
        model_deinit(&m[i]);
}
END_TEST

START_TEST(fp8_activations_need_fp8_weights)
{
    struct model m = {.be = NULL};
    const struct model_config c = toy_config();
    expect_error(model_synthetic(&m, &be, &c, 1, &(struct model_opts){.activations = MODEL_FP8}), ERR_CONFIG,
                 "model.activations fp8: expected model.weights fp8 beside it, found bf16");
    const struct model_opts fixed = {.weights = MODEL_FP8, .activations = MODEL_FP8_STATIC};
    expect_error(
        model_synthetic(&m, &be, &c, 1, &fixed), ERR_CONFIG,
        "FP8 weights come with an input_scale, as NVIDIA's ModelOpt writes them, found random weights");
    const struct model_opts measured = {.activations = MODEL_FP8_STATIC, .calibrates = 1};
    expect_error(model_synthetic(&m, &be, &c, 1, &measured), ERR_CONFIG,
                 "model.activations fp8-static: expected model.weights fp8 beside it, found BF16 weights");
    ck_assert_ptr_null(m.be);
}
END_TEST

static size_t room;

static size_t small_room(struct backend *b)
{
    (void)b;
    return room;
}

/* The toy has 30720 numbers and 448 outputs in a layer, two ends of 6208 and five norms of 64. */
START_TEST(too_little_memory_is_said_before_loading)
{
    struct model m = {.be = NULL};
    const struct model_config c = toy_config();
    const struct model_opts fp8 = {.weights = MODEL_FP8};
    const struct backend_ops *const ops = be.ops;
    struct backend_ops small = *ops;
    const size_t layers = 2 * (128 * 64 + 64 * 64 + 192 * 64 + 64 * 96), ends = 4 * 97 * 64 + 4 * 5 * 64;
    small.available = small_room;
    be.ops = &small;
    room = 2 * layers + ends;
    ck_assert_int_eq(model_synthetic(&m, &be, &c, 1, NULL), 0);
    model_deinit(&m);
    room--;
    expect_error(model_synthetic(&m, &be, &c, 1, NULL), ERR_MEMORY, "model.weights fp8 needs");
    room = layers + 4 * 2 * 448 + ends;
    ck_assert_int_eq(model_synthetic(&m, &be, &c, 1, &fp8), 0);
    model_deinit(&m);
    room--;
    expect_error(model_synthetic(&m, &be, &c, 1, &fp8), ERR_MEMORY, "in FP8 and");
    expect_error(model_synthetic(&m, &be, &c, 1, NULL), ERR_MEMORY, "a smaller model");
    ck_assert_uint_eq(be.allocated, 0);
    be.ops = ops;
}
END_TEST

START_TEST(a_missing_head_is_explained)
{
    struct model m = {.be = NULL};
    const struct model_config c = toy_config();
    write_model(&c, DTYPE_BF16, "lm_head.weight", NULL);
    expect_error(build(&m, &c), ERR_FORMAT, "config.json must say \"tie_word_embeddings\": true");
    ck_assert_ptr_null(m.be);
    ck_assert_uint_eq(be.allocated, 0);
}
END_TEST

START_TEST(a_missing_or_foreign_tensor_is_named)
{
    struct model m = {.be = NULL};
    const struct model_config c = toy_config();
    write_model(&c, DTYPE_BF16, "model.layers.1.self_attn.v_proj.weight", NULL);
    expect_error(build(&m, &c), ERR_FORMAT,
                 "tensor 'model.layers.1.self_attn.v_proj.weight': expected [32, 64], found no such tensor");
    ck_assert_uint_eq(be.allocated, 0);
    write_model(&c, DTYPE_BF16, NULL, "model.layers.0.self_attn.q_proj.bias");
    expect_error(build(&m, &c), ERR_FORMAT, "found 1 more, the first 'model.layers.0.self_attn.q_proj.bias'");
    ck_assert_uint_eq(be.allocated, 0);
}
END_TEST

START_TEST(a_wrong_shape_is_named)
{
    struct model m = {.be = NULL};
    struct model_config c = toy_config();
    write_model(&c, DTYPE_BF16, NULL, NULL);
    c.kv_heads = 4;
    expect_error(build(&m, &c), ERR_FORMAT,
                 "tensor 'model.layers.0.self_attn.k_proj.weight': expected [64, 64], found BF16 [32, 64]");
}
END_TEST

START_TEST(random_weights_are_a_function_of_the_seed)
{
    struct model a = {.be = NULL}, b = {.be = NULL}, c = {.be = NULL};
    struct backend two = {.ops = NULL};
    const struct model_config cfg = toy_config();
    ck_assert_int_eq(backend_open(&two, "cpu", &(struct backend_opts){.threads = 2, .isa = "auto"}), 0);
    ck_assert_int_eq(model_synthetic(&a, &be, &cfg, 1, NULL), 0);
    ck_assert_int_eq(model_synthetic(&b, &two, &cfg, 1, NULL), 0);
    ck_assert_int_eq(model_synthetic(&c, &be, &cfg, 2, NULL), 0);
    ck_assert_uint_eq(a.fingerprint, b.fingerprint);
    ck_assert_uint_ne(a.fingerprint, c.fingerprint);
    ck_assert_mem_eq(a.layers[1].down.data, b.layers[1].down.data, a.layers[1].down.bytes);
    ck_assert_mem_ne(a.layers[1].down.data, c.layers[1].down.data, a.layers[1].down.bytes);
    ck_assert_mem_ne(a.layers[0].down.data, a.layers[1].down.data, a.layers[1].down.bytes);
    ck_assert_mem_eq(a.norm, b.norm, 64 * sizeof(float));
    model_deinit(&a);
    model_deinit(&b);
    model_deinit(&c);
    backend_close(&two);
}
END_TEST

/* 96 x 64 weights of down, N(0, 1/96): with N = 6144 the mean has a deviation of 0.0013 and the variance of
 * 1/96 sqrt(2/N) = 0.00019; five deviations each. */
START_TEST(random_weights_have_the_variance_of_their_fan_in)
{
    struct model m = {.be = NULL};
    const struct model_config cfg = toy_config();
    double sum = 0, squares = 0;
    ck_assert_int_eq(model_synthetic(&m, &be, &cfg, 1, NULL), 0);
    for (int i = 0; i < 64; i++)
        for (int j = 0; j < 96; j++) {
            const double x = matrix_at(&m.layers[0].down, i, j);
            sum += x;
            squares += x * x;
        }
    ck_assert_double_le(fabs(sum / 6144), 5 * 0.0013);
    ck_assert_double_le(fabs(squares / 6144 - 1.0 / 96), 5 * 0.00019);
    model_deinit(&m);
}
END_TEST

START_TEST(a_directory_without_a_config_is_an_io_error)
{
    struct model m = {.be = NULL};
    expect_error(model_load(&m, &be, dir, NULL), ERR_IO, "config.json: cannot open");
    model_deinit(&m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("model");
    TCase *builds = tcase_create("builds"), *refuses = tcase_create("refuses"),
          *random = tcase_create("random");
    TCase *all[] = {builds, refuses, random};
    tcase_add_loop_test(builds, every_tensor_lands_where_the_network_wants_it, DTYPE_BF16, DTYPE_F32 + 1);
    tcase_add_test(builds, a_tied_head_is_the_embedding_and_costs_nothing);
    tcase_add_test(builds, weight_bytes_are_what_one_token_reads);
    tcase_add_test(builds, fp8_weights_cost_their_scales_and_leave_the_ends_alone);
    tcase_add_test(builds, fp8_weights_of_a_file_are_near_its_values);
    tcase_add_test(builds, the_fingerprint_is_that_of_the_weights_not_of_their_form);
    tcase_add_test(refuses, fp8_activations_need_fp8_weights);
    tcase_add_test(refuses, too_little_memory_is_said_before_loading);
    tcase_add_test(refuses, a_missing_head_is_explained);
    tcase_add_test(refuses, a_missing_or_foreign_tensor_is_named);
    tcase_add_test(refuses, a_wrong_shape_is_named);
    tcase_add_test(refuses, a_directory_without_a_config_is_an_io_error);
    tcase_add_test(random, random_weights_are_a_function_of_the_seed);
    tcase_add_test(random, random_weights_have_the_variance_of_their_fan_in);
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
