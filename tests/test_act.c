/* The orders that CUDA matrix products read: acts (kernels/act.h) and weights (matrix_pack_cuda), against the
 * fragments of mma.m16n8k16 as the PTX ISA documents them. Needs no GPU. */
#include "kernels/act.h"
#include "kernels/cuda.h"
#include "kernels/fp8.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

enum { LANES = 32, MAX_ROWS = 19 };

static const struct {
    int n, k;
} shapes[] = {{1, 1}, {16, 16}, {17, 3}, {97, 64}, {48, 33}, {100, 65}, {33, 127}, {64, 48}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type": groupID = lane >> 2,
 * threadID_in_group = lane % 4. A, element i of 8: row = groupID for 0 <= i < 2 and 4 <= i < 6, else groupID
 * + 8; col = threadID * 2 + (i & 1), + 8 for i >= 4. B, element i of 4: row = threadID * 2 + (i & 1), + 8 for
 * i >= 2; col = groupID. C, element i of 4: row = groupID, + 8 for i >= 2; col = threadID * 2 + (i & 1). */
static int a_row(int lane, int i)
{
    return (lane >> 2) + ((i < 2 || (i >= 4 && i < 6)) ? 0 : 8);
}

static int a_col(int lane, int i)
{
    return lane % 4 * 2 + (i & 1) + (i >= 4 ? 8 : 0);
}

static int b_row(int lane, int i)
{
    return lane % 4 * 2 + (i & 1) + (i >= 2 ? 8 : 0);
}

static int b_col(int lane, int i)
{
    return (void)i, lane >> 2;
}

static int c_row(int lane, int i)
{
    return (lane >> 2) + (i >= 2 ? 8 : 0);
}

static int c_col(int lane, int i)
{
    return lane % 4 * 2 + (i & 1);
}

/* Different small integers for different places, of both signs, exact in bf16. */
static float value(int row, int col)
{
    return (float)((row * 31 + col * 17 + row * col) % 15 - 7);
}

START_TEST(act_at_gives_every_input_a_place_of_its_own)
{
    int k = shapes[_i].k, padded = (k + ACT_STEP - 1) / ACT_STEP * ACT_STEP, rows = 3 * ACT_ROWS;
    size_t size = act_tile(k) * 3;
    ck_assert_uint_eq(size, (size_t)padded * (size_t)rows);
    char *seen = calloc(size, 1);
    ck_assert_ptr_nonnull(seen);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < padded; i++) {
            size_t at = act_at(r, i, k);
            if (at >= size || seen[at]++)
                ck_abort_msg("k %d: row %d input %d stands at %zu of %zu, which is %s", k, r, i, at, size,
                             at >= size ? "outside" : "taken");
        }
    free(seen);
}
END_TEST

START_TEST(act_at_is_the_b_fragment_of_the_ptx_isa)
{
    int k = 80;
    for (int tile = 0; tile < 3; tile++)
        for (int step = 0; step < k / ACT_STEP; step++)
            for (int lane = 0; lane < LANES; lane++)
                for (int i = 0; i < 4; i++) {
                    size_t expected =
                        (((size_t)tile * (size_t)(k / ACT_STEP) + (size_t)step) * LANES + (size_t)lane) * 4 +
                        (size_t)i;
                    ck_assert_uint_eq(act_at(tile * 8 + b_col(lane, i), step * 16 + b_row(lane, i), k),
                                      expected);
                }
}
END_TEST

static float *weights(int n, int k)
{
    float *w = malloc((size_t)n * (size_t)k * sizeof *w);
    ck_assert_ptr_nonnull(w);
    for (int j = 0; j < n; j++)
        for (int i = 0; i < k; i++)
            w[(size_t)j * (size_t)k + (size_t)i] = value(j, i);
    return w;
}

static bf16 *pack(int n, int k, const struct matrix_part *parts, int n_parts, enum matrix_flags flags)
{
    const size_t bytes = matrix_cuda_bytes(n, k, MATRIX_BF16);
    bf16 *to = malloc(bytes);
    ck_assert_ptr_nonnull(to);
    memset(to, 0xff, bytes);
    matrix_pack_cuda(to, NULL,
                     &(struct matrix_source){.parts = parts, .n_parts = n_parts, .k = k, .flags = flags});
    return to;
}

/* Every element of every fragment; wanted(row of the matrix in tile order, col) says what it should be. */
static void check_fragments(const bf16 *packed, int n, int k,
                            float (*wanted)(int tile, int row, int col, int n, int k))
{
    int tiles = (n + 15) / 16, steps = (k + 15) / 16;
    ck_assert_uint_eq(matrix_cuda_bytes(n, k, MATRIX_BF16), (size_t)tiles * (size_t)steps * 512);
    for (int tile = 0; tile < tiles; tile++)
        for (int step = 0; step < steps; step++)
            for (int lane = 0; lane < LANES; lane++)
                for (int i = 0; i < 8; i++, packed++) {
                    int row = a_row(lane, i), col = step * 16 + a_col(lane, i);
                    float want = wanted(tile, row, col, n, k);
                    if (bf16_to_f32(*packed) != want)
                        ck_abort_msg("[%d, %d]: tile %d step %d lane %d element %d (row %d, col %d) is %g, "
                                     "expected %g",
                                     n, k, tile, step, lane, i, row, col, (double)bf16_to_f32(*packed),
                                     (double)want);
                }
}

static float plain(int tile, int row, int col, int n, int k)
{
    return tile * 16 + row < n && col < k ? value(tile * 16 + row, col) : 0;
}

static float interleaved(int tile, int row, int col, int n, int k)
{
    int m = n / 2, j = tile * 8 + row % 8;
    return j < m && col < k ? value(row < 8 ? j : m + j, col) : 0;
}

START_TEST(packed_weights_are_the_a_fragments_of_the_ptx_isa)
{
    int n = shapes[_i].n, k = shapes[_i].k;
    float *w = weights(n, k);
    struct matrix_part whole = {w, DTYPE_F32, n};
    bf16 *packed = pack(n, k, &whole, 1, MATRIX_PLAIN);
    check_fragments(packed, n, k, plain);
    free(packed);
    free(w);
}
END_TEST

START_TEST(stacked_parts_are_one_matrix)
{
    int n = shapes[_i].n, k = shapes[_i].k, first = n / 3, second = n / 2;
    float *w = weights(n, k);
    struct matrix_part parts[3] = {{w, DTYPE_F32, first},
                                   {w + (size_t)first * (size_t)k, DTYPE_F32, second - first},
                                   {w + (size_t)second * (size_t)k, DTYPE_F32, n - second}};
    bf16 *packed = pack(n, k, parts, 3, MATRIX_PLAIN);
    check_fragments(packed, n, k, plain);
    free(packed);
    free(w);
}
END_TEST

START_TEST(interleaved_tiles_hold_eight_of_each_part)
{
    static const int halves[] = {16, 48, 24, 8};
    int n = 2 * halves[_i], k = 35;
    float *w = weights(n, k);
    struct matrix_part parts[2] = {{w, DTYPE_F32, n / 2},
                                   {w + (size_t)(n / 2) * (size_t)k, DTYPE_F32, n / 2}};
    bf16 *packed = pack(n, k, parts, 2, MATRIX_INTERLEAVE);
    check_fragments(packed, n, k, interleaved);
    free(packed);
    free(w);
}
END_TEST

/* A lane's 16 bytes are its fragments of two steps; scale: the largest magnitude over 448, 1 where all are 0.
 */
START_TEST(fp8_weights_are_two_steps_to_a_lane_and_a_scale_an_output)
{
    const int n = shapes[_i].n, k = shapes[_i].k, tiles = (n + 15) / 16, loads = (k + 31) / 32;
    const size_t bytes = matrix_cuda_bytes(n, k, MATRIX_FP8);
    float *w = weights(n, k), *scale = malloc((size_t)n * sizeof *scale);
    uint8_t *packed = malloc(bytes), *at = packed;
    ck_assert(scale && packed);
    ck_assert_uint_eq(bytes, (size_t)tiles * (size_t)loads * 512);
    memset(packed, 0xff, bytes);
    const struct matrix_part whole = {w, DTYPE_F32, n};
    matrix_pack_cuda(packed, scale,
                     &(struct matrix_source){.parts = &whole, .n_parts = 1, .k = k, .form = MATRIX_FP8});
    for (int j = 0; j < n; j++) {
        float most = 0;
        for (int i = 0; i < k; i++)
            most = value(j, i) > most ? value(j, i) : -value(j, i) > most ? -value(j, i) : most;
        ck_assert(scale[j] == (most > 0 ? most / 448 : 1));
    }
    for (int tile = 0; tile < tiles; tile++)
        for (int load = 0; load < loads; load++)
            for (int lane = 0; lane < LANES; lane++)
                for (int i = 0; i < 16; i++, at++) {
                    const int row = tile * 16 + a_row(lane, i % 8),
                              col = load * 32 + i / 8 * 16 + a_col(lane, i % 8);
                    const uint8_t want = row < n && col < k ? fp8_from_f32(value(row, col) / scale[row]) : 0;
                    if (*at != want)
                        ck_abort_msg("[%d, %d]: tile %d load %d lane %d byte %d (row %d, col %d) is %02x, "
                                     "expected %02x",
                                     n, k, tile, load, lane, i, row, col, *at, want);
                }
    free(packed);
    free(scale);
    free(w);
}
END_TEST

/* Components j and j + head_dim / 2 of a head stand 8 rows apart in one tile, so in one lane. */
START_TEST(rotary_tiles_hold_the_two_components_that_a_rotation_pairs)
{
    static const int dims[] = {16, 48, 64, 128};
    const int dim = dims[_i], n = 3 * dim, k = 35, steps = (k + 15) / 16;
    float *w = weights(n, k);
    bf16 *packed = malloc(matrix_cuda_bytes(n, k, MATRIX_BF16));
    char *seen = calloc((size_t)n, 1);
    const struct matrix_part parts[] = {{w, DTYPE_F32, dim},
                                        {w + (size_t)dim * (size_t)k, DTYPE_F32, 2 * dim}};
    const struct matrix_source from = {
        .parts = parts, .n_parts = 2, .k = k, .flags = MATRIX_ROTARY, .head_dim = dim};
    ck_assert(packed && seen);
    matrix_pack_cuda(packed, NULL, &from);
    for (int tile = 0; tile < n / 16; tile++)
        for (int row = 0; row < 16; row++) {
            const int j = matrix_cuda_output(&from, n, tile, row);
            ck_assert(j >= 0 && j < n && !seen[j]++);
            if (row >= 8)
                ck_assert_int_eq(j, matrix_cuda_output(&from, n, tile, row - 8) + dim / 2);
            for (int col = 0; col < k; col++) {
                const int lane = row % 8 * 4 + col % 8 / 2, i = col % 16 / 8 * 4 + row / 8 * 2 + col % 2;
                const size_t at = (size_t)(tile * steps + col / 16) * 256 + (size_t)(lane * 8 + i);
                if (bf16_to_f32(packed[at]) != value(j, col))
                    ck_abort_msg("head_dim %d: tile %d row %d input %d is %g, expected output %d: %g", dim,
                                 tile, row, col, (double)bf16_to_f32(packed[at]), j, (double)value(j, col));
            }
        }
    free(packed);
    free(seen);
    free(w);
}
END_TEST

START_TEST(every_dtype_packs_as_the_cpu_order_does)
{
    enum { N = 3, K = 5 };
    static const float f32[N * K] = {1.00390625f, -0.1f, 3.1415927f, 65504, 1e-8f, 0,  -0.0f, 7,
                                     1e30f,       -2,    .3f,        .7f,   9,     11, 13};
    static const uint16_t f16[N * K] = {0x3c01, 0xae66, 0x4248, 0x7bff, 0x0001, 0, 0x8000, 0x4700,
                                        0x7c00, 0xc000, 1,      2,      3,      4, 5};
    static const bf16 b16[N * K] = {0x3f80, 0xbdcd, 0x4049, 0x477f, 1, 0, 0x8000, 0x40e0,
                                    0x7f80, 0xc000, 1,      2,      3, 4, 5};
    const struct matrix_part parts[3] = {{f32, DTYPE_F32, N}, {f16, DTYPE_F16, N}, {b16, DTYPE_BF16, N}};
    bf16 cpu[32 * 16 * 16];
    struct matrix m = {.n = 3 * N, .k = K, .data = cpu};
    ck_assert_uint_le(matrix_packed_bytes(m.n, m.k), sizeof cpu);
    matrix_pack(&m, parts, 3, MATRIX_PLAIN, 1);
    bf16 *packed = pack(m.n, K, parts, 3, MATRIX_PLAIN);
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 8; i++) {
            int row = a_row(lane, i), col = a_col(lane, i);
            bf16 want = row < m.n && col < K ? bf16_from_f32(matrix_at(&m, row, col)) : 0;
            ck_assert_uint_eq(packed[lane * 8 + i], want);
        }
    free(packed);
}
END_TEST

/* What the tensor core does with the fragments of one step, lane by lane, into c[16][8]. */
static void emulate_mma(float c[16][8], const bf16 *a, const bf16 *b)
{
    float A[16][16], B[16][8];
    for (int lane = 0; lane < LANES; lane++) {
        for (int i = 0; i < 8; i++)
            A[a_row(lane, i)][a_col(lane, i)] = bf16_to_f32(a[lane * 8 + i]);
        for (int i = 0; i < 4; i++)
            B[b_row(lane, i)][b_col(lane, i)] = bf16_to_f32(b[lane * 4 + i]);
    }
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < 16; k++)
                c[c_row(lane, i)][c_col(lane, i)] += A[c_row(lane, i)][k] * B[k][c_col(lane, i)];
}

START_TEST(fragments_multiplied_step_by_step_are_the_product)
{
    int n = shapes[_i].n, k = shapes[_i].k, steps = (k + 15) / 16;
    float *w = weights(n, k);
    struct matrix_part whole = {w, DTYPE_F32, n};
    bf16 *packed = pack(n, k, &whole, 1, MATRIX_PLAIN), *x = calloc(act_tile(k) * 3, sizeof *x);
    ck_assert_ptr_nonnull(x);
    for (int r = 0; r < MAX_ROWS; r++)
        for (int i = 0; i < k; i++)
            x[act_at(r, i, k)] = bf16_from_f32(value(i, r));
    for (int tile = 0; tile < (n + 15) / 16; tile++)
        for (int t = 0; t < 3; t++) {
            float c[16][8] = {{0}};
            for (int s = 0; s < steps; s++)
                emulate_mma(c, packed + (size_t)(tile * steps + s) * 256,
                            x + act_tile(k) * (size_t)t + (size_t)s * 128);
            for (int j = 0; j < 16 && tile * 16 + j < n; j++)
                for (int r = 0; r < 8 && t * 8 + r < MAX_ROWS; r++) {
                    float sum = 0;
                    for (int i = 0; i < k; i++)
                        sum += value(tile * 16 + j, i) * value(i, t * 8 + r);
                    if (c[j][r] != sum)
                        ck_abort_msg("[%d, %d]: output %d of row %d is %g, expected %g", n, k, tile * 16 + j,
                                     t * 8 + r, (double)c[j][r], (double)sum);
                }
        }
    free(x);
    free(packed);
    free(w);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("act");
    TCase *t = tcase_create("activations");
    tcase_add_loop_test(t, act_at_gives_every_input_a_place_of_its_own, 0, N_SHAPES);
    tcase_add_test(t, act_at_is_the_b_fragment_of_the_ptx_isa);
    suite_add_tcase(s, t);
    t = tcase_create("weights");
    tcase_add_loop_test(t, packed_weights_are_the_a_fragments_of_the_ptx_isa, 0, N_SHAPES);
    tcase_add_loop_test(t, stacked_parts_are_one_matrix, 0, N_SHAPES);
    tcase_add_loop_test(t, interleaved_tiles_hold_eight_of_each_part, 0, 4);
    tcase_add_loop_test(t, fp8_weights_are_two_steps_to_a_lane_and_a_scale_an_output, 0, N_SHAPES);
    tcase_add_loop_test(t, rotary_tiles_hold_the_two_components_that_a_rotation_pairs, 0, 4);
    tcase_add_test(t, every_dtype_packs_as_the_cpu_order_does);
    tcase_add_loop_test(t, fragments_multiplied_step_by_step_are_the_product, 0, N_SHAPES);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
