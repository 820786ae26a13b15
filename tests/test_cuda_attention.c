/* Attention on a CUDA device: the three ways of kernels/attention.cu have the same bits, for any rows beside
 * a row. */
#include "tests/cuda_attend.h"
#include "tests/cuda_suite.h"

enum { CLUSTER_REACH = 8192 }; /* the longest that a cluster takes */

/* --- exact values -----------------------------------------------------------------------------------------
 */

START_TEST(equal_keys_average_the_values_of_every_context_exactly)
{
    static const int sizes[] = {1, 16, SPLIT, 150};
    for (int context = 1, n, launch = 0; context <= 2100; context += n, launch++) {
        n = sizes[launch % 4];
        struct scene *s = means_scene(_i * N_SHAPES + 3, 2304, 0, context - 1 + n); /* what follows is NaN */
        uint16_t *out = outputs_new(s);
        for (int i = 0; i < n; i++)
            row_add(s, 1, context - 1 + i);
        scene_upload(s);
        attend(s, 0, n, out);
        expect_means(s, out, 0, n);
        free(out);
        scene_free(s);
    }
}
END_TEST

START_TEST(long_contexts_average_exactly_whatever_the_reach)
{
    static const int contexts[] = {1,    63,   64,   65,   1000, 1024, 2047, 2048, 2049, 2303,  2304,  2305,
                                   4095, 4096, 4097, 8191, 8192, 8193, 9215, 9216, 9217, 32767, 32768, 32769};
    struct scene *s = means_scene(_i * N_SHAPES + 7, 32784, 0, 32784);
    uint16_t *out = outputs_new(s);
    for (size_t i = 0; i < sizeof contexts / sizeof *contexts; i++)
        row_add(s, 1, contexts[i] - 1);
    scene_upload(s);
    attend(s, 0, s->n, out);
    expect_means(s, out, 0, s->n);
    for (int r = 0; r < s->n; r++) {
        int class = 256;
        while (class < contexts[r])
            class *= 2;
        const int reaches[] = {contexts[r], class < s->cap ? class : s->cap, s->cap};
        for (int i = 0; i < 3; i++) {
            attend_to(s, r, 1, reaches[i], out);
            expect_means(s, out, r, 1);
        }
    }
    free(out);
    scene_free(s);
}
END_TEST

/* A query along one key, keys of +-1: that score is far above all others, whose exponentials underflow. y is
 * that key's value. */
START_TEST(an_overwhelming_key_takes_all_at_every_position)
{
    struct scene *s = scene_new(_i * N_SHAPES, 2048);
    uint16_t *out = outputs_new(s);
    const int in = (int)row_size(s), width = s->heads * s->dim, last = 2040;
    for (int p = 0; p <= last; p++) {
        cell_set(s, 2, p, p);
        for (int h = 0; h < s->kv_heads; h++)
            for (int d = 0; d < s->dim; d++)
                cache_put(s, 0, at(s, 2, h, p) + (size_t)d,
                          hash(5, (uint32_t)p, (uint32_t)(h * 1000 + d)) & 0x8000 ? 1 : -1);
    }
    for (int i = 0; i < SPLIT + 36; i++)
        row_add(s, 2, i % 2 ? last : last - i);
    scene_upload(s);
    for (int first = 0; first <= last; first += s->n) {
        for (int r = 0; r < s->n; r++)
            for (int i = 0; i < width; i++) {
                int p = (first + r) % (s->pos[r] + 1);
                s->qkv[r * in + i] =
                    1000 * cache_get(s, 0, at(s, 2, i / s->dim / 3, p) + (size_t)(i % s->dim));
            }
        upload(s->device_qkv, s->qkv, MAX_ROWS * row_size(s) * sizeof(float));
        for (int walk = 0; walk < 2; walk++) {
            attend(s, 0, walk ? s->n : SPLIT, out);
            for (int r = 0; r < (walk ? s->n : SPLIT); r++)
                for (int i = 0; i < width; i++) {
                    int p = (first + r) % (s->pos[r] + 1);
                    float expected = cache_get(s, 1, at(s, 2, i / s->dim / 3, p) + (size_t)(i % s->dim));
                    EXPECT_MSG(bf16_to_f32(out[r * width + i]) == expected,
                               "row %d at %d, key %d, head %d component %d: %.9g, expected %.9g", r,
                               s->pos[r], p, i / s->dim, i % s->dim, bf16_to_f32(out[r * width + i]),
                               expected);
                }
        }
    }
    free(out);
    scene_free(s);
}
END_TEST

/* One key: y is its value, whatever the query. An act of f16 cannot say 10^5. */
START_TEST(an_f16_act_saturates_and_keeps_nan)
{
    static const float values[] = {0, 1, -0.5f, 65280, 1e5f, -1e5f, NAN};
    static const uint16_t expected[] = {0, 0x3c00, 0xb800, 0x7bf8, 0x7bff, 0xfbff};
    for (int n = 1; n <= SPLIT + 1; n += SPLIT) {
        struct scene *s = scene_new(0, 64);
        uint16_t *out = outputs_new(s);
        for (int r = 0; r < n; r++)
            row_add(s, 0, 0);
        cell_set(s, 0, 0, 0);
        for (int i = 0; i < s->kv_heads * s->dim; i++)
            cache_put(s, 1, at(s, 0, i / s->dim, 0) + (size_t)(i % s->dim), values[i % 7]);
        scene_upload(s);
        struct rows rows = scene_rows(s, 0, n);
        struct attention a = attention_of(s, &rows, 0, 1);
        a.y_form = ACT_F16;
        cuda(attention_cuda(&a, NULL), "attention_cuda");
        take(s, n, out);
        for (int i = 0; i < n * s->heads * s->dim; i++) {
            const int which = (i / s->dim % s->heads / 3 * s->dim + i % s->dim) % 7;
            const int fits = which == 6 ? (out[i] & 0x7fffu) > 0x7c00u : out[i] == expected[which];
            EXPECT_MSG(fits, "element %d of %d rows is %04x for the value %g", i, n, out[i], values[which]);
        }
        free(out);
        scene_free(s);
    }
}
END_TEST

/* --- trees ------------------------------------------------------------------------------------------------
 */

START_TEST(a_node_sees_exactly_its_sequence_bit_for_bit)
{
    static const int committed[][SLOTS] = {{0, 1, 63}, {64, 65, 127}, {200, 15, 128}, {600, 0, 17}};
    for (uint32_t c = 0; c < 4; c += _i < N_SHAPES ? 1 : 3) {
        struct scene *s = scene_new(_i, 768);
        uint16_t *out = outputs_new(s), *expected = outputs_new(s);
        scene_grow(s, c, committed[c], c == 3 ? 100 : SPLIT);
        scene_upload(s);
        attend_as_texts(s, _i, expected);
        attend(s, 0, s->n, out);
        expect_rows(s, out, expected, s->n, "all rows together", s->n);
        for (int size = 1; size <= SPLIT; size += size < 4 ? 1 : 7) {
            attend_in(s, size, 0, out);
            expect_rows(s, out, expected, s->n, "rows of a tree", size);
        }
        free(out);
        free(expected);
        scene_free(s);
    }
}
END_TEST

/* A prompt's rows: up to 64 a cluster, one walk at more. */
START_TEST(a_row_of_a_prompt_is_the_same_in_every_batch)
{
    struct scene *s = scene_new(_i, 2560);
    uint16_t *out = outputs_new(s), *expected = outputs_new(s);
    for (int p = 0; p < 2400; p++)
        cell_set(s, 0, p, p);
    for (int i = 0; i < MAX_ROWS; i++)
        row_add(s, 0, i < 80 ? i : 2200 + i);
    scene_upload(s);
    attend_in(s, 1, 0, expected);
    for (int size = 2; size <= MAX_ROWS; size += size < 8 ? 1 : 19) {
        attend_in(s, size, 0, out);
        expect_rows(s, out, expected, s->n, "a prompt", size);
    }
    free(out);
    free(expected);
    scene_free(s);
}
END_TEST

/* The last row of a launch of 1 to 64, one tree in one slot as a step verifies it. */
START_TEST(any_number_of_rows_up_to_64_gives_the_same_bits)
{
    struct scene *s = scene_new(_i, 1280);
    uint16_t *out = outputs_new(s), *expected = outputs_new(s);
    scene_grow_in(s, 5, (int[SLOTS]){1020, 0, 0}, SPLIT, 1);
    scene_upload(s);
    attend_in(s, 1, 0, expected);
    for (int n = 2; n <= SPLIT; n++) {
        attend(s, 0, n, out);
        expect_rows(s, out, expected, n, "the first rows of a tree", n);
    }
    free(out);
    free(expected);
    scene_free(s);
}
END_TEST

/* Contexts on both sides of every change of chunk size, as far as a cluster goes. */
START_TEST(cluster_split_and_walk_have_the_same_bits)
{
    static const int committed[][SLOTS] = {{8120, 1000, 40}, {2040, 8100, 4090}, {8128, 2100, 2304}};
    static const int sizes[] = {1, 5, 21, SPLIT};
    const int c = _i % 3;
    struct scene *s = scene_new(_i, 8320);
    uint16_t *cluster = outputs_new(s), *other = outputs_new(s);
    scene_grow_in(s, 40 + (uint32_t)c, committed[c], 2 * SPLIT, c == 2 ? 1 : SLOTS);
    scene_upload(s);
    EXPECT_MSG(reach_of(s, 0, s->n) <= CLUSTER_REACH, "the tree is too deep: %d positions",
               reach_of(s, 0, s->n));
    attend_in(s, SPLIT, 0, cluster);
    attend_in(s, 2 * SPLIT, 0, other);
    expect_rows(s, other, cluster, s->n, "walk", 2 * SPLIT);
    for (int i = 0; i < 4; i++) {
        attend_in(s, sizes[i], s->cap, other);
        expect_rows(s, other, cluster, s->n, "split and merge", sizes[i]);
        attend_in(s, sizes[i], CLUSTER_REACH, other);
        expect_rows(s, other, cluster, s->n, "cluster", sizes[i]);
    }
    free(cluster);
    free(other);
    scene_free(s);
}
END_TEST

/* Every third row and a whole stretch of a tree's rows turn into rows of nobody; the others do not notice. A
 * row's ancestors are cells, so that no row needs another. */
START_TEST(rows_of_nobody_change_nothing)
{
    static const int committed[SLOTS] = {130, 64, 7};
    struct scene *s = scene_new(_i, 8320);
    uint16_t *out = outputs_new(s), *expected = outputs_new(s);
    scene_grow(s, 9, committed, 2 * SPLIT);
    scene_upload(s);
    attend_in(s, 1, 0, expected);
    for (int r = 0; r < s->n; r++)
        if (r % 3 == 0 || (r > 15 && r < 50) || r > 120) {
            s->slot[r] = -1;
            s->pos[r] = s->cell[r] = 0;
            s->base[r] = 1;
        }
    rows_upload(s);
    static const int sizes[] = {1, 2, 5, 16, SPLIT, 2 * SPLIT};
    for (int i = 0; i < 6; i++)
        for (int far = 0; far < 2; far++) {
            attend_in(s, sizes[i], far ? s->cap : 256, out);
            expect_rows(s, out, expected, s->n, far ? "dead rows, reach over 8192" : "dead rows", sizes[i]);
        }
    free(out);
    free(expected);
    scene_free(s);
}
END_TEST

/* A value that later rows alone may see is NaN: the rows before it keep their bits, those after it are NaN.
 * At the start of a text, and where a team has other chunks before and after that one. */
START_TEST(a_nan_reaches_only_the_rows_that_see_it)
{
    static const int sizes[] = {2, 8, 21, SPLIT, 100};
    const int at_first = _i / 2 ? 1000 : 0;
    struct scene *s = scene_new(_i % 2 * N_SHAPES + 1, 1280);
    const size_t width = (size_t)s->heads * (size_t)s->dim;
    uint16_t *out = outputs_new(s), *expected = outputs_new(s);
    for (int p = 0; p < at_first + 100; p++)
        cell_set(s, 0, p, p);
    for (int i = 0; i < 100; i++)
        row_add(s, 0, at_first + i);
    cache_put(s, 1, at(s, 0, 2, at_first + 70), NAN); /* component 0 of kv head 2, heads 8 to 11 */
    scene_upload(s);
    attend_in(s, 1, 0, expected);
    for (int i = 0; i < 5; i++) {
        attend_in(s, sizes[i], 0, out);
        expect_rows(s, out, expected, s->n, "a NaN among the values", sizes[i]);
        for (int r = 0; r < s->n; r++) {
            const float with = bf16_to_f32(out[(size_t)r * width + 8 * 128]);
            EXPECT_MSG(!!isnan(with) == (r >= 70), "%d rows, row %d: %g", sizes[i], r, with);
            EXPECT(!isnan(bf16_to_f32(out[(size_t)r * width + 8 * 128 + 1])));
        }
    }
    free(out);
    free(expected);
    scene_free(s);
}
END_TEST

/* Rows of one text in launches on both sides of every m tile count, at reaches whose results fit the inboxes
 * of a cluster and at those that send them to scratch. */
START_TEST(a_chain_has_the_same_bits_at_every_size_and_reach)
{
    static const int sizes[] = {2, 3, 4, 5, 8, 9, 16, 17, 22, 43, SPLIT};
    static const int reaches[] = {1100, 2048, 2304, 8192};
    struct scene *s = scene_new(_i, 8320);
    uint16_t *out = outputs_new(s), *expected = outputs_new(s);
    for (int p = 0; p < 1100; p++)
        cell_set(s, 0, p, p);
    for (int i = 0; i < SPLIT; i++)
        row_add(s, 0, 1000 + i);
    scene_upload(s);
    attend_in(s, 1, s->cap, expected);
    for (int i = 0; i < 11; i++)
        for (int k = 0; k < 4; k++) {
            attend_in(s, sizes[i], reaches[k], out);
            expect_rows(s, out, expected, s->n, "a chain", sizes[i]);
        }
    free(out);
    free(expected);
    scene_free(s);
}
END_TEST

/* --- order ------------------------------------------------------------------------------------------------
 */

/* Rope and attention as a pass enqueues them, without a pause: what attention requests ahead of its wait must
 * not be what rope has yet to write. Cells of the pass are NaN before it. */
static void pass(struct scene *s, float *table, const float *frequencies, int n, int wait, uint16_t *out)
{
    struct rows rows = scene_rows(s, 0, n);
    struct rope rope = {.rows = &rows,
                        .qkv = s->device_qkv,
                        .cos_sin = table,
                        .kv = scene_kv(s),
                        .heads = s->heads,
                        .rotate = 1};
    struct attention a = attention_of(s, &rows, 0, reach_of(s, 0, n));
    upload(s->device_qkv, s->qkv, MAX_ROWS * row_size(s) * sizeof(float));
    for (int which = 0; which < 2; which++)
        upload(s->device_cells[which], s->cells[which], cache_bytes(s));
    cuda(rope_table_cuda(&rows, frequencies, s->dim, table, NULL), "rope_table_cuda");
    cuda(rope_cuda(&rope, NULL), "rope_cuda");
    if (wait)
        cuda((int)cudaDeviceSynchronize(), "rope");
    cuda(attention_cuda(&a, NULL), "attention_cuda");
    take(s, n, out);
}

static void check_order(struct scene *s, float *table, const float *frequencies, int n, uint16_t *out,
                        uint16_t *expected)
{
    pass(s, table, frequencies, n, 1, expected);
    for (int again = 0; again < 3; again++) {
        pass(s, table, frequencies, n, 0, out);
        expect_rows(s, out, expected, n, "right behind rope", n);
    }
    for (int i = 0; i < n * s->heads * s->dim; i++)
        EXPECT_MSG(!isnan(bf16_to_f32(out[i])), "chunks of %d, %d rows: element %d is NaN", s->chunk, n, i);
}

START_TEST(attention_sees_what_the_kernel_before_it_wrote)
{
    struct scene *s = scene_new(_i, 640);
    uint16_t *out = outputs_new(s), *expected = outputs_new(s);
    float *inv_freq = host_new((size_t)s->dim * sizeof *inv_freq);
    for (int j = 0; j < s->dim / 2; j++)
        inv_freq[j] = powf(10000, -2.0f * (float)j / (float)s->dim);
    for (int p = 0; p < 500; p++)
        for (int slot = 0; slot < SLOTS; slot++)
            cell_set(s, slot, p, slot * 100000 + p);
    for (int i = 0; i < SPLIT; i++)
        row_add(s, i / 24, 500 + i % 24);
    scene_upload(s);
    float *frequencies = device_new(inv_freq, (size_t)s->dim * sizeof *inv_freq),
          *table = device_new(NULL, (size_t)MAX_ROWS * (size_t)s->dim * sizeof(float));
    static const int chunks[] = {0, 16, 512};
    for (int c = 0; c < 3; c++) {
        s->chunk = chunks[c];
        for (int n = 1; n <= SPLIT; n += n < 8 ? 1 : 8)
            check_order(s, table, frequencies, n, out, expected);
    }
    cuda((int)cudaFree(frequencies), "cudaFree");
    cuda((int)cudaFree(table), "cudaFree");
    free(inv_freq);
    free(out);
    free(expected);
    scene_free(s);
}
END_TEST

/* --- the reference ----------------------------------------------------------------------------------------
 */

START_TEST(it_is_within_its_bound_of_the_reference)
{
    static const int committed[SLOTS] = {250, 60, 0};
    struct scene *s = scene_new(_i, 400);
    uint16_t *out = outputs_new(s);
    scene_grow(s, 77, committed, s->heads * s->dim > 4000 ? 4 : 24);
    scene_upload(s);
    attend(s, 0, s->n, out);
    expect_reference(s, out);
    free(out);
    scene_free(s);
}
END_TEST

START_TEST(it_is_within_its_bound_at_every_block_boundary)
{
    struct scene *s = scene_new(_i * N_SHAPES + 7, 2048);
    for (int p = 0; p < 2048; p++)
        cell_set(s, 0, p, p);
    for (int end = 64; end <= 1984; end += 64)
        for (int d = -1; d <= 1; d++)
            row_add(s, 0, end + d - 1);
    expect_reference_split_and_whole(s);
    scene_free(s);
}
END_TEST

int main(void)
{
    if (cuda_suite_skips("test_cuda_attention"))
        return CUDA_SUITE_SKIPPED;
    Suite *s = suite_create("cuda_attention");
    TCase *c = tcase_create("cuda_attention");
    tcase_add_loop_test(c, equal_keys_average_the_values_of_every_context_exactly, 0, 2);
    tcase_add_loop_test(c, long_contexts_average_exactly_whatever_the_reach, 0, 2);
    tcase_add_loop_test(c, an_overwhelming_key_takes_all_at_every_position, 0, 2);
    tcase_add_test(c, an_f16_act_saturates_and_keeps_nan);
    tcase_add_loop_test(c, a_node_sees_exactly_its_sequence_bit_for_bit, 0, N_CASES);
    tcase_add_loop_test(c, a_row_of_a_prompt_is_the_same_in_every_batch, 0, N_CASES);
    tcase_add_loop_test(c, any_number_of_rows_up_to_64_gives_the_same_bits, 0, N_CASES);
    tcase_add_loop_test(c, cluster_split_and_walk_have_the_same_bits, 0, N_CASES);
    tcase_add_loop_test(c, rows_of_nobody_change_nothing, 0, N_CASES);
    tcase_add_loop_test(c, a_nan_reaches_only_the_rows_that_see_it, 0, 4);
    tcase_add_loop_test(c, a_chain_has_the_same_bits_at_every_size_and_reach, 0, N_CASES);
    tcase_add_loop_test(c, attention_sees_what_the_kernel_before_it_wrote, 0, N_CASES);
    tcase_add_loop_test(c, it_is_within_its_bound_of_the_reference, 0, N_CASES);
    tcase_add_loop_test(c, it_is_within_its_bound_at_every_block_boundary, 0, 2);
    suite_add_tcase(s, c);
    return cuda_suite_run(s);
}
