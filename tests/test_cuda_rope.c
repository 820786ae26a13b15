/* Rope and moving cells on a CUDA device, in both forms of the cache. */
#include "tests/cuda_scene.h"
#include "tests/cuda_suite.h"

/* --- rope -------------------------------------------------------------------------------------------- */

enum { ROPE_ROWS = 70, ROPE_CAP = 160 };

static struct scene *rope_scene(int shape)
{
    struct scene *s = scene_new(shape, ROPE_CAP);
    for (int i = 0; i < ROPE_ROWS; i++) {
        row_add(s, i % 8 == 5 ? -1 : i % SLOTS, 1873 * i); /* some are nobody's */
        s->cell[i] = 2 * i + 1;
    }
    scene_upload(s);
    return s;
}

static float *inv_freq_new(int dim)
{
    float *f = host_new((size_t)dim * sizeof *f);
    for (int j = 0; j < dim / 2; j++)
        f[j] = powf(10000, -2.0f * (float)j / (float)dim);
    return f;
}

/* Rotates rows in launches of `size`; the table comes back, [ROPE_ROWS][dim]. */
static float *rotate(struct scene *s, int size)
{
    size_t bytes = (size_t)ROPE_ROWS * (size_t)s->dim * sizeof(float);
    float *inv_freq = inv_freq_new(s->dim),
          *frequencies = device_new(inv_freq, (size_t)s->dim * sizeof *inv_freq);
    float *table = device_new(NULL, bytes), *out = host_new(bytes);
    for (int first = 0; first < ROPE_ROWS; first += size) {
        struct rows rows = scene_rows(s, first, ROPE_ROWS - first < size ? ROPE_ROWS - first : size);
        float *part = table + (size_t)first * (size_t)s->dim;
        struct rope a = {.rows = &rows,
                         .qkv = s->device_qkv + (size_t)first * row_size(s),
                         .cos_sin = part,
                         .kv = scene_kv(s),
                         .heads = s->heads,
                         .rotate = 1};
        cuda(rope_table_cuda(&rows, frequencies, s->dim, part, NULL), "rope_table_cuda");
        cuda(rope_cuda(&a, NULL), "rope_cuda");
    }
    download(out, table, bytes);
    cuda((int)cudaFree(frequencies), "cudaFree");
    cuda((int)cudaFree(table), "cudaFree");
    free(inv_freq);
    return out;
}

/* CUDA states 2 ulp for sincosf; an ulp is 2^-24 below 1. */
START_TEST(the_rope_table_holds_cosines_then_sines_of_far_positions)
{
    struct scene *s = rope_scene(_i);
    float *table = rotate(s, ROPE_ROWS), *inv_freq = inv_freq_new(s->dim);
    int half = s->dim / 2;
    for (int r = 0; r < ROPE_ROWS; r++)
        for (int j = 0; j < half; j++) {
            float angle = (float)s->pos[r] * inv_freq[j];
            double c = fabs(table[r * 2 * half + j] - cos(angle)),
                   d = fabs(table[r * 2 * half + half + j] - sin(angle));
            EXPECT_MSG(c <= 0x1p-23 && d <= 0x1p-23,
                       "position %d, frequency %d, angle %.9g: off by %.3g and %.3g", s->pos[r], j, angle, c,
                       d);
        }
    free(table);
    free(inv_freq);
    scene_free(s);
}
END_TEST

/* The distance of neighbouring numbers of a form around x, at most. */
static float step_of(enum kv_form form, float x)
{
    return form == KV_FP8 ? fmaxf(0x1p-9f, fabsf(x) * 0x1p-3f) : fabsf(x) * 0x1p-7f;
}

/* Against the reference with the device's table: |x| <= 2, two products and a sum, 3 roundings of at most 4;
 * keys then to the cells' form: half a step of the exact number's, values bit for bit. */
START_TEST(rope_is_within_its_bound_and_fills_its_cells_alone)
{
    struct scene *s = rope_scene(_i);
    float *table = rotate(s, ROPE_ROWS), *qkv = host_new(MAX_ROWS * row_size(s) * sizeof(float));
    struct rows rows = {.n = ROPE_ROWS, .slot = s->slot, .pos = s->pos, .cell = s->cell};
    struct kv_layer ref_kv = reference_kv(s);
    struct rope ref = {
        .rows = &rows, .qkv = s->qkv, .cos_sin = table, .kv = ref_kv, .heads = s->heads, .rotate = 1};
    const double slack = 3 * 4 * 0x1p-24;
    size_t written = 0, live = 0;
    rope_ref(&ref);
    download(qkv, s->device_qkv, MAX_ROWS * row_size(s) * sizeof(float));
    for (int i = 0; i < 2; i++)
        download(s->cells[i], s->device_cells[i], cache_bytes(s));
    for (int r = 0; r < ROPE_ROWS; r++) {
        const float *expected = s->qkv + (size_t)r * row_size(s), *key = expected + s->heads * s->dim,
                    *val = key + s->kv_heads * s->dim;
        for (int i = 0; i < s->heads * s->dim; i++)
            EXPECT_MSG(fabs((double)qkv[(size_t)r * row_size(s) + (size_t)i] - expected[i]) <=
                           (s->slot[r] < 0 ? 0 : slack),
                       "row %d (slot %d) query element %d is %.9g, expected %.9g", r, s->slot[r], i,
                       qkv[(size_t)r * row_size(s) + (size_t)i], expected[i]);
        for (int i = 0; s->slot[r] >= 0 && i < s->kv_heads * s->dim; i++) {
            size_t place = at(s, s->slot[r], i / s->dim, s->cell[r]) + (size_t)(i % s->dim);
            float k = cache_get(s, 0, place), v = cache_get(s, 1, place);
            float v_expected =
                s->form == KV_FP8 ? fp8_to_f32(fp8_from_f32(val[i])) : bf16_to_f32(bf16_from_f32(val[i]));
            EXPECT_MSG(fabs((double)k - key[i]) <= slack + step_of(s->form, key[i]) / 2 * (1 + 0x1p-10),
                       "row %d key element %d is %.9g, expected %.9g", r, i, k, key[i]);
            EXPECT_MSG(v == v_expected, "row %d value element %d is %.9g, expected %.9g", r, i, v,
                       v_expected);
        }
        live += s->slot[r] >= 0;
    }
    for (size_t i = 0; i < cache_size(s); i++)
        written += (size_t)!isnan(cache_get(s, 0, i)) + (size_t)!isnan(cache_get(s, 1, i));
    ck_assert_uint_eq(written, 2 * live * (size_t)(s->kv_heads * s->dim));
    free(qkv);
    free(table);
    free(ref_kv.k);
    free(ref_kv.v);
    scene_free(s);
}
END_TEST

/* Rotation, norm and temperature in every combination against the reference. A norm's sum of dim squares and
 * its root: at most dim + 8 roundings of the factor; what it multiplies as above, and random heads have an
 * rms over 1/8. */
START_TEST(norms_and_temperatures_of_heads_are_within_their_bound)
{
    float by[ROPE_ROWS];
    for (int r = 0; r < ROPE_ROWS; r++)
        by[r] = 1 + 0.25f * (float)(r % 7);
    float *temperature = device_new(by, sizeof by);
    for (int kind = 1; kind < 8; kind++) {
        struct scene *s = rope_scene(_i);
        const struct kv_layer ref_kv = reference_kv(s);
        const size_t bytes = ROPE_ROWS * row_size(s) * sizeof(float);
        float *table = rotate(s, ROPE_ROWS), *got = host_new(bytes),
              *angles = device_new(table, (size_t)ROPE_ROWS * (size_t)s->dim * sizeof(float));
        struct rows rows = scene_rows(s, 0, ROPE_ROWS),
                    host_rows = {.n = ROPE_ROWS, .slot = s->slot, .pos = s->pos, .cell = s->cell};
        upload(s->device_qkv, s->qkv, bytes);
        struct rope a = {.rows = &rows,
                         .qkv = s->device_qkv,
                         .cos_sin = angles,
                         .kv = scene_kv(s),
                         .heads = s->heads,
                         .rotate = kind & 1,
                         .qk_norm = kind & 2 ? 1e-5f : 0,
                         .temperature = kind & 4 ? temperature : NULL};
        cuda(rope_cuda(&a, NULL), "rope_cuda");
        download(got, s->device_qkv, bytes);
        download(s->cells[0], s->device_cells[0], cache_bytes(s));
        a.rows = &host_rows, a.qkv = s->qkv, a.cos_sin = table, a.kv = ref_kv;
        a.temperature = kind & 4 ? by : NULL;
        rope_ref(&a);
        const double slack = 3 * 4 * 0x1p-24 * (kind & 2 ? 8 : 1) * (kind & 4 ? 2.5 : 1),
                     relative = (kind & 2 ? s->dim + 8 : 1) * 0x1p-24;
        for (int r = 0; r < ROPE_ROWS; r++) {
            const float *expected = s->qkv + (size_t)r * row_size(s), *key = expected + s->heads * s->dim;
            for (int i = 0; i < s->heads * s->dim; i++)
                EXPECT_MSG(fabs((double)got[(size_t)r * row_size(s) + (size_t)i] - expected[i]) <=
                               (s->slot[r] < 0 ? 0 : slack + relative * fabsf(expected[i])),
                           "kind %d, row %d query element %d is %.9g, expected %.9g", kind, r, i,
                           got[(size_t)r * row_size(s) + (size_t)i], expected[i]);
            for (int i = 0; s->slot[r] >= 0 && i < s->kv_heads * s->dim; i++) {
                const float k =
                    cache_get(s, 0, at(s, s->slot[r], i / s->dim, s->cell[r]) + (size_t)(i % s->dim));
                EXPECT_MSG(fabs((double)k - key[i]) <= slack + relative * fabsf(key[i]) +
                                                           step_of(s->form, key[i]) / 2 * (1 + 0x1p-10),
                           "kind %d, row %d key element %d is %.9g, expected %.9g", kind, r, i, k, key[i]);
            }
        }
        cuda((int)cudaFree(angles), "cudaFree");
        free(got), free(table), free(ref_kv.k), free(ref_kv.v);
        scene_free(s);
    }
    cuda((int)cudaFree(temperature), "cudaFree");
}
END_TEST

/* Positions up to 2^20 - 1 and a few at the borders; log1p to 2 ulp, at most 4 with its product and sum. */
START_TEST(temperatures_are_within_their_bound)
{
    enum { N = 300 };
    int pos[N];
    float got[N], want[N];
    for (int r = 0; r < N; r++)
        pos[r] = r < 8 ? 8190 + r : r == 8 ? (1 << 20) - 1 : r * 3491;
    int *device_pos = device_new(pos, sizeof pos);
    float *out = device_new(NULL, sizeof got);
    const struct rows rows = {.n = N, .pos = device_pos}, host_rows = {.n = N, .pos = pos};
    cuda(rope_temperature_cuda(&(struct temperature){&rows, 0.1f, 8192, out}, NULL), "rope_temperature_cuda");
    download(got, out, sizeof got);
    rope_temperature(&(struct temperature){&host_rows, 0.1f, 8192, want});
    for (int r = 0; r < N; r++)
        EXPECT_MSG(fabsf(got[r] - want[r]) <= 4 * 0x1p-23f, "position %d: %.9g, expected %.9g", pos[r],
                   got[r], want[r]);
    cuda((int)cudaFree(device_pos), "cudaFree");
    cuda((int)cudaFree(out), "cudaFree");
}
END_TEST

START_TEST(a_row_of_rope_is_the_same_in_every_batch)
{
    static const int sizes[] = {2, 9, ROPE_ROWS};
    struct scene *alone = rope_scene(_i);
    size_t qkv = ROPE_ROWS * row_size(alone) * sizeof(float), cache = cache_bytes(alone);
    char *got = host_new(qkv + cache), *expected = host_new(qkv + cache);
    free(rotate(alone, 1));
    download(expected, alone->device_qkv, qkv);
    download(expected + qkv, alone->device_cells[0], cache);
    for (int i = 0; i < 3; i++) {
        struct scene *batch = rope_scene(_i);
        free(rotate(batch, sizes[i]));
        download(got, batch->device_qkv, qkv);
        download(got + qkv, batch->device_cells[0], cache);
        for (size_t j = 0; j < qkv + cache; j++)
            EXPECT_MSG(got[j] == expected[j], "%d rows a launch: byte %zu of %s differs", sizes[i],
                       j < qkv ? j : j - qkv, j < qkv ? "qkv" : "the keys");
        scene_free(batch);
    }
    free(got);
    free(expected);
    scene_free(alone);
}
END_TEST

/* --- moving cells ------------------------------------------------------------------------------------ */

START_TEST(moved_cells_hold_what_their_sources_held)
{
    for (uint32_t seed = 0; seed < 6; seed++) {
        struct scene *s = scene_new(_i, 320);
        int src[64], n = seed == 5 ? 64 : 1 + (int)(hash(seed, 8, 0) % 64), dst = 30;
        const size_t bytes = cache_bytes(s);
        uint8_t *got = host_new(bytes);
        for (int cell = 0; cell < s->cap; cell++)
            cell_set(s, 1, cell, cell);
        scene_upload(s);
        for (int i = 0, from = dst + (int)(hash(seed, 9, 0) % 3); i < n;
             i++, from += 1 + (int)(hash(seed, 10, (uint32_t)i) % 4))
            src[i] = from;
        for (int i = 0; i < n; i++)
            cell_set(s, 1, dst + i, src[i]);
        cuda(kv_move_cuda(&(struct kv_move){.kv = scene_kv(s), .slot = 1, .dst = dst, .n = n, .src = src},
                          NULL),
             "kv_move_cuda");
        for (int which = 0; which < 2; which++) {
            const uint8_t *expected = s->cells[which];
            download(got, s->device_cells[which], bytes);
            for (size_t i = 0; i < bytes; i++)
                EXPECT_MSG(
                    got[i] == expected[i], "%d cells, byte %zu of the %s (cell %zu): %02x, expected %02x", n,
                    i, which ? "values" : "keys", i / cell_bytes(s) % (size_t)s->cap, got[i], expected[i]);
        }
        free(got);
        scene_free(s);
    }
}
END_TEST

START_TEST(more_than_64_moves_are_refused)
{
    int src[65] = {0};
    ck_assert_int_ne(kv_move_cuda(&(struct kv_move){.n = 65, .src = src}, NULL), 0);
    ck_assert_int_eq(kv_move_cuda(&(struct kv_move){.n = 0, .src = src}, NULL), 0);
}
END_TEST

int main(void)
{
    if (cuda_suite_skips("test_cuda_rope"))
        return CUDA_SUITE_SKIPPED;
    Suite *s = suite_create("cuda_rope");
    TCase *c = tcase_create("cuda_rope");
    tcase_add_loop_test(c, the_rope_table_holds_cosines_then_sines_of_far_positions, 0, N_SHAPES);
    tcase_add_loop_test(c, rope_is_within_its_bound_and_fills_its_cells_alone, 0, N_CASES);
    tcase_add_loop_test(c, norms_and_temperatures_of_heads_are_within_their_bound, 0, N_CASES);
    tcase_add_test(c, temperatures_are_within_their_bound);
    tcase_add_loop_test(c, a_row_of_rope_is_the_same_in_every_batch, 0, N_CASES);
    tcase_add_loop_test(c, moved_cells_hold_what_their_sources_held, 0, N_CASES);
    tcase_add_test(c, more_than_64_moves_are_refused);
    suite_add_tcase(s, c);
    return cuda_suite_run(s);
}
