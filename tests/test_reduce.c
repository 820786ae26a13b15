/* test_reduce: the order of the sum, what the wire rounds, and the norm behind it. */
#include "kernels/reduce.h"
#include <check.h>
#include <stdlib.h>

static float reduce_one(float y, const float *terms, int world, enum wire wire, float *normed)
{
    const float gain = 2, *part[8];
    struct reduce a = {.y = &y, .rows = 1, .n = 1, .wire = wire};
    a.norm = (struct rmsnorm){
        .x = &y, .w = &gain, .y = {.act = normed}, .rows = 1, .dim = 1, .threads = 1, .eps = 0};
    for (int p = 0; p < world; p++)
        part[p] = &terms[p];
    reduce_ref(&a, part, world);
    return y;
}

/* 1 + 2^24 rounds to 2^24 in f32, so only the order of the ranks gives 0, and y last keeps its 3. */
START_TEST(parts_are_added_in_the_order_of_ranks_and_then_to_the_stream)
{
    float normed = 0;
    ck_assert(reduce_one(3, (const float[]){1, 0x1p24f, -0x1p24f}, 3, WIRE_F32, &normed) == 3);
    ck_assert(reduce_one(3, (const float[]){0x1p24f, -0x1p24f, 1}, 3, WIRE_F32, &normed) == 4);
    ck_assert(normed == 2);
}
END_TEST

/* 1 + 2^-8 lies half way between two bf16 numbers: to even, 1. */
START_TEST(a_narrow_wire_rounds_every_part_and_no_sum)
{
    float normed = 0;
    const float parts[] = {1 + 0x1p-8f, 0x1p-8f};
    ck_assert(reduce_one(0, parts, 2, WIRE_BF16, &normed) == 1 + 0x1p-8f);
    ck_assert(reduce_one(0, parts, 2, WIRE_F32, &normed) == 1 + 0x1p-7f);
}
END_TEST

/* The largest number becomes 448 times its row's scale; 1 is then 448 / 7 = 64 exactly. */
START_TEST(with_a_scale_the_norm_is_rounded_to_fp8)
{
    const float gain[2] = {1, 1}, part[2] = {6, -1}, *parts[1] = {part};
    float y[2] = {1, 0}, act[2], scale = 0;
    const struct reduce a = {
        .y = y,
        .norm = {.x = y, .w = gain, .y = {.act = act}, .rows = 1, .dim = 2, .threads = 1, .eps = 0},
        .rows = 1,
        .n = 2,
        .scale = &scale};
    reduce_ref(&a, parts, 1);
    ck_assert(y[0] == 7 && y[1] == -1);
    ck_assert_float_eq_tol(scale, 1.4f / 448, 1e-7f); /* 7 / rms = 7 / 5 */
    ck_assert(act[0] == 448 && act[1] == -64);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("reduce");
    TCase *t = tcase_create("reference");
    tcase_add_test(t, parts_are_added_in_the_order_of_ranks_and_then_to_the_stream);
    tcase_add_test(t, with_a_scale_the_norm_is_rounded_to_fp8);
    tcase_add_test(t, a_narrow_wire_rounds_every_part_and_no_sum);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
