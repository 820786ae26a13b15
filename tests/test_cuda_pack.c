/* test_cuda_pack: what the device packs is what matrix_pack_cuda packs on the host, byte for byte: from rows
 * of every dtype, in pieces and through the backend, and from counters. */
#include "engine/backend_cuda.h"
#include "engine/err.h"
#include "engine/log.h"
#include "engine/model.h"
#include "kernels/gemm_part.h"
#include "kernels/pack.h"
#include "kernels/philox.h"
#include "tests/cuda_suite.h"
#include "tests/expect.h"
#include "tests/toy.h"
#include <stdio.h>
#include <stdlib.h>

static struct backend be;

static const struct shape {
    int n[3], parts, k;
    enum matrix_flags flags;
    int head_dim;
} shapes[] = {
    {{1}, 1, 1, MATRIX_PLAIN, 0},
    {{16}, 1, 16, MATRIX_PLAIN, 0},
    {{17, 5}, 2, 33, MATRIX_PLAIN, 0},
    {{7, 20, 6}, 3, 100, MATRIX_PLAIN, 0},
    {{97}, 1, 64, MATRIX_PLAIN, 0},
    {{3}, 1, 2050, MATRIX_PLAIN, 0},
    {{576}, 1, 1536, MATRIX_PLAIN, 0},
    {{32, 32}, 2, 64, MATRIX_INTERLEAVE, 0},
    {{48, 48}, 2, 37, MATRIX_INTERLEAVE, 0},
    {{1536, 1536}, 2, 576, MATRIX_INTERLEAVE, 0},
    {{64, 32, 32}, 3, 64, MATRIX_ROTARY, 16},
    {{96, 48, 48}, 3, 52, MATRIX_ROTARY, 48},
    {{64, 64, 64}, 3, 47, MATRIX_ROTARY, 64},
    {{576, 192, 192}, 3, 576, MATRIX_ROTARY, 64},
    {{1024, 256, 256}, 3, 4096, MATRIX_ROTARY, 128}, /* more than a buffer of the ring */
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, TYPES = DTYPE_SYNTHETIC + 1, MIXED = TYPES };

/* A source, and the bytes it becomes. It points into itself, so it stays where it was initialised. */
struct sample {
    struct matrix_part parts[3];
    struct synthetic formula[3];
    struct matrix_source from;
    int n;
    size_t bytes;
    char *packed, *device_packed; /* owned host bytes: expected, got */
    float *scale, *device_scale;  /* owned [n] */
    char what[96];
};

static void ok(int rc)
{
    if (rc)
        ck_abort_msg("%s", err_text());
}

/* An output of a third is uniform in (-1, 1), of a seventh zero, of the rest any bits under 2. */
static void put_number(char *to, int output, uint32_t bits, enum dtype dtype)
{
    const float uniform = 2 * philox_uniform(bits) - 1;
    const uint32_t word = output % 7 == 5 ? 0 : bits & 0xbfffffffu;
    const uint16_t half = dtype == DTYPE_F16 ? (uint16_t)(word >> 16)
                          : output % 3 == 0  ? bf16_from_f32(uniform)
                                             : (uint16_t)(word >> 16);
    if (dtype == DTYPE_F32)
        memcpy(to, output % 3 == 0 ? (const void *)&uniform : &word, sizeof word);
    else
        memcpy(to, &half, sizeof half);
}

static void *numbers(int n, int k, enum dtype dtype, uint32_t stream)
{
    const size_t size = dtype_size(dtype);
    char *data = malloc((size_t)n * (size_t)k * size);
    ck_assert_ptr_nonnull(data);
    for (int j = 0; j < n; j++)
        for (int i = 0; i < k; i++) {
            const size_t at = (size_t)j * (size_t)k + (size_t)i;
            put_number(data + at * size, j, philox(5, stream, 0, 0, (uint32_t)at).v[0], dtype);
        }
    return data;
}

/* The numbers, and what the host packs of them. */
static void sample_init(struct sample *a, const struct shape *s, int type, enum matrix_form form)
{
    *a = (struct sample){.n = 0};
    for (int i = 0; i < s->parts; i++) {
        const enum dtype dtype = (enum dtype)(type == MIXED ? i % 3 : type);
        a->formula[i] = (struct synthetic){(uint64_t)77 << 30, (uint32_t)(7 + i), 0.02f * (float)(1 + i)};
        a->parts[i] = (struct matrix_part){
            .data = dtype == DTYPE_SYNTHETIC ? &a->formula[i] : numbers(s->n[i], s->k, dtype, (uint32_t)i),
            .dtype = dtype,
            .n = s->n[i]};
        a->n += s->n[i];
    }
    a->from = (struct matrix_source){.parts = a->parts,
                                     .n_parts = s->parts,
                                     .k = s->k,
                                     .flags = s->flags,
                                     .form = form,
                                     .head_dim = s->head_dim};
    a->bytes = matrix_cuda_bytes(a->n, s->k, form);
    a->packed = malloc(a->bytes);
    a->device_packed = malloc(a->bytes);
    a->scale = calloc((size_t)a->n, sizeof *a->scale);
    a->device_scale = calloc((size_t)a->n, sizeof *a->device_scale);
    ck_assert(a->packed && a->device_packed && a->scale && a->device_scale);
    snprintf(a->what, sizeof a->what, "[%d, %d], flags %d, %s, dtype %d", a->n, s->k, (int)s->flags,
             form == MATRIX_FP8 ? "FP8" : "BF16", type);
    matrix_pack_cuda(a->packed, a->scale, &a->from);
}

static void sample_deinit(struct sample *a)
{
    for (int i = 0; i < a->from.n_parts; i++)
        if (a->parts[i].dtype != DTYPE_SYNTHETIC)
            free((void *)(uintptr_t)a->parts[i].data);
    free(a->packed), free(a->device_packed), free(a->scale), free(a->device_scale);
}

/* Fetch and compare, naming the first byte that differs by its tile, 16-byte word and lane. */
static void compare(struct sample *a, const void *data, const void *scale)
{
    size_t first = a->bytes, different = 0;
    ok(be.ops->download(&be, a->device_packed, data, a->bytes));
    if (scale)
        ok(be.ops->download(&be, a->device_scale, scale, (size_t)a->n * sizeof *a->scale));
    ok(be.ops->sync(&be));
    for (int j = 0; scale && j < a->n; j++)
        EXPECT_MSG(memcmp(&a->device_scale[j], &a->scale[j], sizeof *a->scale) == 0,
                   "%s: scale of output %d is %a, expected %a", a->what, j, (double)a->device_scale[j],
                   (double)a->scale[j]);
    for (size_t i = a->bytes; i-- > 0;)
        if (a->device_packed[i] != a->packed[i]) {
            first = i;
            different++;
        }
    const size_t tile = a->bytes / ((size_t)(a->n + 15) / 16);
    EXPECT_MSG(
        different == 0,
        "%s: %zu of %zu bytes differ, the first at tile %zu, word %zu, lane %zu, byte %zu: %#x, expected %#x",
        a->what, different, a->bytes, first / tile, first % tile / 512, first % 512 / 16, first % 16,
        (unsigned char)a->device_packed[first], (unsigned char)a->packed[first]);
}

/* Tiles [tile, tile + tiles) as they are uploaded; where there is no output, bytes that must not matter. */
static void stage(const struct sample *a, int tile, int tiles, char *to)
{
    const size_t row = (size_t)a->from.k * dtype_size(a->parts[0].dtype);
    memset(to, 0x5a, (size_t)tiles * 16 * row);
    for (int i = 0; i < tiles * 16; i++) {
        const struct matrix_part *p = a->parts;
        int j = matrix_cuda_output(&a->from, a->n, tile + i / 16, i % 16);
        if (j >= a->n)
            continue;
        for (; j >= p->n; p++)
            j -= p->n;
        memcpy(to + (size_t)i * row, (const char *)p->data + (size_t)j * row, row);
    }
}

static void check_pieces(struct sample *a, int per)
{
    const int tiles = (a->n + 15) / 16;
    const enum dtype dtype = a->parts[0].dtype;
    const size_t piece = (size_t)per * 16 * (size_t)a->from.k * dtype_size(dtype);
    void *to = NULL, *rows = NULL, *scale = NULL;
    char *host = malloc(piece);
    ck_assert_ptr_nonnull(host);
    ok(be.ops->alloc(&be, a->bytes, &to));
    ok(be.ops->alloc(&be, piece, &rows));
    ok(be.ops->alloc(&be, (size_t)a->n * sizeof(float), &scale));
    for (int t = 0; t < tiles; t += per) {
        const struct pack p = {.from = &a->from,
                               .rows = rows,
                               .dtype = dtype,
                               .tile = t,
                               .tiles = tiles - t < per ? tiles - t : per,
                               .to = to,
                               .scale = scale};
        stage(a, t, p.tiles, host);
        ok(be.ops->upload(&be, rows, host, piece));
        ck_assert_int_eq(pack_cuda(&p, cuda_of(&be)->stream), 0);
    }
    compare(a, to, a->from.form == MATRIX_FP8 ? scale : NULL);
    be.ops->release(&be, to);
    be.ops->release(&be, rows);
    be.ops->release(&be, scale);
    free(host);
}

START_TEST(rows_packed_in_pieces_are_what_the_host_packs)
{
    for (int form = MATRIX_BF16; form <= MATRIX_FP8; form++)
        for (int type = DTYPE_BF16; type <= DTYPE_F32; type++) {
            struct sample a;
            sample_init(&a, &shapes[_i], type, (enum matrix_form)form);
            check_pieces(&a, 1);
            check_pieces(&a, 3);
            check_pieces(&a, (a.n + 15) / 16);
            sample_deinit(&a);
        }
}
END_TEST

static void check_matrix(struct sample *a)
{
    struct matrix m = {.n = 0};
    ok(be.ops->matrix(&be, &m, &a->from));
    ck_assert_int_eq(m.n, a->n);
    ck_assert_int_eq(m.k, a->from.k);
    ck_assert_int_eq((int)m.form, (int)a->from.form);
    ck_assert_int_eq(m.scale != NULL, m.form == MATRIX_FP8);
    ck_assert_uint_eq(m.bytes, a->bytes + (m.scale ? (size_t)m.n * sizeof(float) : 0));
    compare(a, m.data, m.scale);
    be.ops->release(&be, m.data);
    be.ops->release(&be, m.scale);
}

START_TEST(a_matrix_of_the_backend_is_what_the_host_packs)
{
    for (int form = MATRIX_BF16; form <= MATRIX_FP8; form++)
        for (int type = 0; type <= MIXED; type++) {
            struct sample a;
            sample_init(&a, &shapes[_i], type, (enum matrix_form)form);
            check_matrix(&a);
            sample_deinit(&a);
        }
}
END_TEST

/* Numbers rounded before and numbers that lie transposed, whole and as some columns of more: sources with
 * views. */
struct viewed {
    struct sample a;
    struct scaled scaled[2];
    struct matrix_view views[2];
    float *scales; /* owned [2 n] */
    void *numbers; /* owned */
};

enum { VIEW_BEFORE = 12, VIEW_AFTER = 20, VIEW_LEFT = 8 };

static void viewed_init(struct viewed *w, int n, int k, int parts, enum dtype dtype, enum matrix_form form,
                        int apart)
{
    const int whole = VIEW_BEFORE + k + VIEW_AFTER, outputs = VIEW_LEFT + parts * n;
    const size_t count = (size_t)outputs * (size_t)whole, stride = apart ? (size_t)outputs : (size_t)whole;
    *w = (struct viewed){.scales = malloc((size_t)outputs * sizeof(float)), .numbers = malloc(count * 4)};
    ck_assert(w->scales && w->numbers);
    for (size_t i = 0; i < count; i++) {
        const uint32_t bits = philox(6, 0, 0, 0, (uint32_t)i).v[0];
        if (dtype == DTYPE_FP8)
            ((uint8_t *)w->numbers)[i] = (bits & 0x7f) == 0x7f ? 1 : (uint8_t)bits;
        else
            put_number((char *)w->numbers + i * dtype_size(dtype), 0, bits, dtype);
    }
    for (int i = 0; i < outputs; i++)
        w->scales[i] = 0.001f * (float)(i + 1);
    struct sample *a = &w->a;
    for (int i = 0; i < parts; i++) {
        const size_t output = (size_t)(VIEW_LEFT + i * n);
        w->scaled[i] = (struct scaled){w->numbers, w->scales + output};
        w->views[i] =
            (struct matrix_view){apart ? VIEW_BEFORE * stride + output : output * stride + VIEW_BEFORE,
                                 apart ? 1 : stride, apart ? stride : 1, VIEW_BEFORE, VIEW_AFTER};
        a->parts[i] = (struct matrix_part){
            .data = dtype == DTYPE_FP8 ? (const void *)&w->scaled[i] : w->numbers, .dtype = dtype, .n = n};
    }
    a->n = parts * n;
    a->from = (struct matrix_source){.parts = a->parts,
                                     .views = w->views,
                                     .n_parts = parts,
                                     .k = k,
                                     .flags = parts == 2 ? MATRIX_INTERLEAVE : MATRIX_PLAIN,
                                     .form = form};
    a->bytes = matrix_cuda_bytes(a->n, k, form);
    a->packed = malloc(a->bytes);
    a->device_packed = malloc(a->bytes);
    a->scale = calloc((size_t)a->n, sizeof *a->scale);
    a->device_scale = calloc((size_t)a->n, sizeof *a->device_scale);
    ck_assert(a->packed && a->device_packed && a->scale && a->device_scale);
    snprintf(a->what, sizeof a->what, "view of [%d, %d], %s, dtype %d, %s", a->n, k,
             form == MATRIX_FP8 ? "FP8" : "BF16", (int)dtype, apart ? "transposed" : "rows");
    matrix_pack_cuda(a->packed, a->scale, &a->from);
}

static void viewed_deinit(struct viewed *w)
{
    free(w->a.packed), free(w->a.device_packed), free(w->a.scale), free(w->a.device_scale);
    free(w->scales), free(w->numbers);
}

/* The last one is more than a buffer of the ring, in FP8, too. */
static const struct {
    int n, k, parts;
} viewed_shapes[] = {{16, 16, 1}, {37, 33, 1}, {48, 100, 2}, {96, 64, 2}, {1040, 2048, 2}, {5120, 2048, 1}};

START_TEST(shares_stored_in_fp8_or_transposed_are_what_the_host_packs)
{
    static const enum dtype types[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32, DTYPE_FP8};
    for (int type = 0; type < 4; type++)
        for (int form = types[type] == DTYPE_FP8 ? MATRIX_FP8 : MATRIX_BF16; form <= MATRIX_FP8; form++)
            for (int apart = 0; apart < 2; apart++) {
                struct viewed w;
                viewed_init(&w, viewed_shapes[_i].n, viewed_shapes[_i].k, viewed_shapes[_i].parts,
                            types[type], (enum matrix_form)form, apart);
                check_matrix(&w.a);
                viewed_deinit(&w);
            }
}
END_TEST

/* Numbers rounded before beside others: the host packs those. */
START_TEST(a_matrix_of_fp8_and_bf16_parts_is_what_the_host_packs)
{
    const struct shape s = {{32, 32}, 2, 64, MATRIX_INTERLEAVE, 0};
    struct sample a;
    struct viewed w;
    sample_init(&a, &s, DTYPE_BF16, MATRIX_FP8);
    viewed_init(&w, 32, 64, 1, DTYPE_FP8, MATRIX_FP8, 0);
    const struct matrix_part stored = a.parts[1];
    const struct matrix_view views[2] = {{0, 64, 1, 0, 0}, w.views[0]};
    a.parts[1] = w.a.parts[0];
    a.from.views = views;
    matrix_pack_cuda(a.packed, a.scale, &a.from);
    check_matrix(&a);
    a.parts[1] = stored;
    viewed_deinit(&w);
    sample_deinit(&a);
}
END_TEST

/* Random shares: the counters are the whole matrix's, and so are the scales. */
START_TEST(a_share_of_a_random_matrix_is_what_the_host_packs)
{
    const struct shape s = {{32, 32}, 2, 64, MATRIX_INTERLEAVE, 0};
    for (int form = MATRIX_BF16; form <= MATRIX_FP8; form++)
        for (int before = 0; before < 8; before += 3) {
            struct sample a;
            sample_init(&a, &s, DTYPE_SYNTHETIC, (enum matrix_form)form);
            const struct matrix_view v = {(size_t)(5 * 100 + before), 100, 1, before, 100 - 64 - before};
            const struct matrix_view views[2] = {v, v};
            a.from.views = views;
            matrix_pack_cuda(a.packed, a.scale, &a.from);
            check_matrix(&a);
            sample_deinit(&a);
        }
}
END_TEST

/* 40 MiB of rows: every buffer of the ring is used more than once, so one refilled too early would show. */
START_TEST(a_matrix_of_many_pieces_is_whole)
{
    const struct shape large = {{5120}, 1, 4096, MATRIX_PLAIN, 0};
    struct sample a;
    sample_init(&a, &large, DTYPE_BF16, MATRIX_BF16);
    check_matrix(&a);
    sample_deinit(&a);
}
END_TEST

/* Tensor by tensor the same numbers, so the device's books must say what the shapes say. */
START_TEST(a_synthetic_model_has_the_bytes_of_its_form)
{
    struct model m = {.be = NULL};
    const struct model_config c = toy_config();
    const enum matrix_form form = _i ? MATRIX_FP8 : MATRIX_BF16;
    const struct model_opts opts = {.weights = _i ? MODEL_FP8 : MODEL_BF16};
    const size_t scales = _i ? (size_t)(128 + 64 + 192 + 64) * sizeof(float) : 0;
    const size_t layer = matrix_cuda_bytes(128, 64, form) + matrix_cuda_bytes(64, 64, form) +
                         matrix_cuda_bytes(192, 64, form) + matrix_cuda_bytes(64, 96, form) + scales +
                         2 * 64 * sizeof(float);
    ok(model_synthetic(&m, &be, &c, 1, &opts));
    ck_assert_uint_eq(m.weight_bytes,
                      2 * layer + matrix_cuda_bytes(97, 64, MATRIX_BF16) + 64 * sizeof(float));
    ok(be.ops->sync(&be));
    model_deinit(&m);
    ck_assert_uint_eq(be.allocated, 0);
}
END_TEST

START_TEST(inputs_past_a_buffer_are_refused)
{
    const int k = (8 << 20) / 16 / 4 + 1;
    float *w = calloc((size_t)k, sizeof *w);
    const struct matrix_part part = {w, DTYPE_F32, 1};
    struct matrix m = {.n = 0};
    ck_assert_int_eq(be.ops->matrix(&be, &m, &(struct matrix_source){.parts = &part, .n_parts = 1, .k = k}),
                     ERR_LIMIT);
    ck_assert_msg(strstr(err_text(), "expected at most 131072 inputs") != NULL, "%s", err_text());
    ck_assert_uint_eq(be.allocated, 0);
    free(w);
}
END_TEST

int main(void)
{
    log_set_level(LOG_WARN);
    if (backend_open(&be, "cuda", &(struct backend_opts){0})) {
        printf("test_cuda_pack: skipped: %s\n", err_text());
        return CUDA_SUITE_SKIPPED;
    }
    Suite *s = suite_create("cuda_pack");
    TCase *c = tcase_create("cuda_pack");
    tcase_add_loop_test(c, rows_packed_in_pieces_are_what_the_host_packs, 0, N_SHAPES);
    tcase_add_loop_test(c, a_matrix_of_the_backend_is_what_the_host_packs, 0, N_SHAPES);
    tcase_add_loop_test(c, shares_stored_in_fp8_or_transposed_are_what_the_host_packs, 0,
                        sizeof viewed_shapes / sizeof *viewed_shapes);
    tcase_add_test(c, a_matrix_of_fp8_and_bf16_parts_is_what_the_host_packs);
    tcase_add_test(c, a_share_of_a_random_matrix_is_what_the_host_packs);
    tcase_add_test(c, a_matrix_of_many_pieces_is_whole);
    tcase_add_loop_test(c, a_synthetic_model_has_the_bytes_of_its_form, 0, 2);
    tcase_add_test(c, inputs_past_a_buffer_are_refused);
    suite_add_tcase(s, c);
    const int failed = cuda_suite_run(s);
    backend_close(&be);
    return failed;
}
