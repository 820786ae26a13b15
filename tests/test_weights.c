/* test_weights: matrices of a file in every order that is asked for, larger than the squares in which they
 * are copied, on one thread and on several. */
#include "engine/weights.h"
#include "engine/err.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Two experts, transposed in one tensor: 130 inputs, 96 outputs of which the last 70 are asked for. */
enum { EXPERTS = 2, INPUTS = 130, COLUMNS = 96, OUTPUTS = 70, FIRST = COLUMNS - OUTPUTS, PAD = 10 };

static char dir[64];

static void make_dir(void)
{
    snprintf(dir, sizeof dir, "/tmp/test_weights_XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void remove_dir(void)
{
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    unlink(path);
    rmdir(dir);
}

/* One tensor "x.fused" [2, 130, 96] whose element i holds the bytes i, i >> 8, ...; and
 * "x.fused_weight_scale" 3. */
static void write_fused(const char *dtype, size_t size)
{
    const size_t count = (size_t)EXPERTS * INPUTS * COLUMNS, bytes = count * size;
    const float scale = 3;
    char path[128], header[512];
    unsigned char length[8] = {0}, *data = malloc(bytes);
    const int fp8 = size == 1;
    int n = snprintf(header, sizeof header,
                     "{\"x.fused\":{\"dtype\":\"%s\",\"shape\":[%d,%d,%d],\"data_offsets\":[0,%zu]}", dtype,
                     EXPERTS, INPUTS, COLUMNS, bytes);
    if (fp8)
        n += snprintf(header + n, sizeof header - (size_t)n,
                      ",\"x.fused_weight_scale\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[%zu,%zu]}",
                      bytes, bytes + sizeof scale);
    n += snprintf(header + n, sizeof header - (size_t)n, "}");
    for (size_t i = 0; i < bytes; i++)
        data[i] = (unsigned char)(i / size >> 8 * (i % size));
    length[0] = (unsigned char)n;
    length[1] = (unsigned char)(n >> 8);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    fwrite(length, 1, 8, f);
    fwrite(header, 1, (size_t)n, f);
    fwrite(data, 1, bytes, f);
    fwrite(&scale, 1, fp8 ? sizeof scale : 0, f);
    ck_assert_int_eq(fclose(f), 0);
    free(data);
}

/* Row `row` of expert 1 of a copy in which heads of `pairs` rows are in the file's order where it is 0. */
static void expect_row(const unsigned char *at, size_t size, int row, int pairs)
{
    const int half = pairs / 2, r = pairs ? row % pairs : 0;
    const int stored = pairs ? row - r + (r < half ? 2 * r : 2 * (r - half) + 1) : row;
    for (int col = 0; col < INPUTS + PAD; col++)
        for (size_t b = 0; b < size; b++) {
            const size_t i = ((size_t)INPUTS + (size_t)col) * COLUMNS + FIRST + (size_t)stored;
            const unsigned want = row < OUTPUTS && col < INPUTS ? i >> 8 * b & 255 : 0;
            if (at[(size_t)col * size + b] != want)
                ck_abort_msg("byte %zu of [%d, %d] is %u, expected %u", b, row, col,
                             at[(size_t)col * size + b], want);
        }
}

static const struct {
    const char *dtype;
    size_t size;
    int pairs, threads;
} orders[] = {{"F8_E4M3", 1, 0, 1}, {"BF16", 2, 0, 1}, {"F32", 4, 0, 1}, {"BF16", 2, 14, 1},
              {"F8_E4M3", 1, 0, 3}, {"BF16", 2, 0, 3}, {"F32", 4, 0, 3}};

START_TEST(an_expert_is_copied_out_of_its_fused_tensor)
{
    struct checkpoint ckpt = {0};
    struct weights from = {0};
    const size_t size = orders[_i].size;
    const struct weight_want want = {.name = "x.1.up",
                                     .n = OUTPUTS,
                                     .k = INPUTS,
                                     .n_pad = PAD,
                                     .k_pad = PAD,
                                     .pairs = orders[_i].pairs,
                                     .rounded = 1};
    const struct weight_fused fused = {"x.fused", EXPERTS, 1, COLUMNS, FIRST};
    write_fused(orders[_i].dtype, size);
    ck_assert_msg(checkpoint_open(&ckpt, dir) == 0, "%s", err_text());
    weights_init(&from, &ckpt, 0, orders[_i].threads);
    for (int again = 0; again < 2; again++) { /* into a new buffer, then into the same one */
        struct weight w = {.copy = NULL};
        ck_assert_msg(weights_expert(&from, &want, &fused, &w) == 0, "%s", err_text());
        ck_assert_int_eq(w.part.n, OUTPUTS + PAD);
        for (int row = 0; row < OUTPUTS + PAD; row++)
            expect_row((unsigned char *)w.copy + (size_t)row * (INPUTS + PAD) * size, size, row,
                       orders[_i].pairs);
        ck_assert_int_eq(w.scale != NULL, size == 1);
        for (int row = 0; w.scale && row < OUTPUTS + PAD; row++)
            ck_assert_float_eq(w.scale[row], row < OUTPUTS ? 3 : 1);
        memset(w.copy, 0xee, w.copy_bytes);
        weights_drop(&from, &w);
    }
    ck_assert_int_eq(checkpoint_unused(&ckpt, 0), 0);
    weights_deinit(&from);
    checkpoint_close(&ckpt);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("weights");
    TCase *copies = tcase_create("copies");
    tcase_add_checked_fixture(copies, make_dir, remove_dir);
    tcase_add_loop_test(copies, an_expert_is_copied_out_of_its_fused_tensor, 0,
                        sizeof orders / sizeof *orders);
    suite_add_tcase(s, copies);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
