/* test_fp8: every code, every boundary between neighbours, and what is out of range; then quantise over rows.
 */
#include "kernels/fp8.h"
#include "kernels/philox.h"
#include "kernels/quantise.h"
#include <check.h>
#include <math.h>

/* The value of a finite code by the format's definition. */
static double value_of(int code)
{
    const int exp = code >> 3 & 15, man = code & 7;
    const double magnitude = exp ? ldexp(8 + man, exp - 10) : ldexp(man, -9);
    return code & 0x80 ? -magnitude : magnitude;
}

static int is_nan(int code)
{
    return (code & 0x7f) == 0x7f;
}

START_TEST(every_code_has_its_value_and_returns)
{
    for (int code = 0; code < 256; code++) {
        const float f = fp8_to_f32((uint8_t)code);
        ck_assert_int_eq(isnan(f) != 0, is_nan(code));
        if (!is_nan(code)) {
            ck_assert_msg((double)f == value_of(code), "code %#x is %a, expected %a", code, (double)f,
                          value_of(code));
            ck_assert_int_eq(signbit(f) != 0, code >> 7);
        }
        ck_assert_msg(fp8_from_f32(f) == code, "code %#x returns as %#x", code, fp8_from_f32(f));
    }
}
END_TEST

static void expect_code(float f, int code)
{
    ck_assert_msg(fp8_from_f32(f) == code, "%a becomes %#x, expected %#x", (double)f, fp8_from_f32(f), code);
    ck_assert_msg(fp8_from_f32(-f) == (code | 0x80), "%a becomes %#x, expected %#x", (double)-f,
                  fp8_from_f32(-f), code | 0x80);
}

/* Neighbours have codes that differ by one, so the even one of a tie is the even code. */
START_TEST(between_neighbours_the_nearer_wins_and_ties_go_to_even)
{
    for (int code = 0; code < 0x7e; code++) {
        const float low = (float)value_of(code), high = (float)value_of(code + 1), middle = (low + high) / 2;
        expect_code(nextafterf(low, high), code);
        expect_code(nextafterf(middle, low), code);
        expect_code(middle, code + (code & 1));
        expect_code(nextafterf(middle, high), code + 1);
        expect_code(nextafterf(high, low), code + 1);
    }
}
END_TEST

START_TEST(what_is_too_large_saturates_and_nan_stays)
{
    static const float large[] = {448, 449, 464, 465, 480, 512, 1e30f, INFINITY};
    for (size_t i = 0; i < sizeof large / sizeof *large; i++)
        expect_code(large[i], 0x7e);
    expect_code(0x1p-149f, 0);
    expect_code(0x1p-10f, 0); /* halfway to the smallest, 2^-9 */
    expect_code(nextafterf(0x1p-10f, 1), 1);
    expect_code(NAN, 0x7f);
    ck_assert(isnan(fp8_to_f32(fp8_from_f32(-NAN))));
}
END_TEST

/* Of bf16, which the packers round: the nearest code found by search, over all 65536. */
START_TEST(every_bf16_rounds_to_the_nearest_code)
{
    for (uint32_t h = 0; h < 0x8000; h++) {
        const float f = bf16_to_f32((bf16)h);
        int best = 0;
        if (isnan(f))
            continue;
        for (int code = 1; code < 0x7f; code++) {
            const double gain = fabs(f - value_of(best)) - fabs(f - value_of(code));
            if (gain > 0 || (gain == 0 && code % 2 == 0))
                best = code;
        }
        if (f > 448)
            best = 0x7e;
        if (fp8_from_f32(f) != best || fp8_from_f32(-f) != (best | 0x80))
            ck_abort_msg("%a becomes %#x, expected %#x", (double)f, fp8_from_f32(f), best);
    }
}
END_TEST

/* x / scale reaches 448, its code is off by at most 2^-4 of it, or by half the smallest, 2^-10; the quotient
 * itself by 2^-24. */
START_TEST(a_quantised_row_is_near_the_row)
{
    enum { ROWS = 5, K = 333 };
    float x[ROWS * K], y[ROWS * K], scale[ROWS];
    for (int i = 0; i < ROWS * K; i++)
        x[i] = y[i] =
            (2 * philox_uniform(philox(3, 1, 0, 0, (uint32_t)i).v[0]) - 1) * (float)(1 + 100 * (i / K));
    quantise_ref(&(struct quantise){.x = y, .scale = scale, .rows = ROWS, .k = K, .threads = 1});
    for (int r = 0; r < ROWS; r++) {
        float most = 0, top = 0;
        for (int i = r * K; i < (r + 1) * K; i++) {
            const double off = fabs((double)y[i] * scale[r] - x[i]);
            const double bound = fabs(x[i]) * (0x1p-4 + 0x1p-22) + scale[r] * 0x1p-10;
            ck_assert_msg(off <= bound, "row %d: %.9g became %.9g", r, (double)x[i],
                          (double)(y[i] * scale[r]));
            ck_assert_msg(y[i] == fp8_to_f32(fp8_from_f32(y[i])), "%.9g is no E4M3 number", (double)y[i]);
            most = fmaxf(most, fabsf(x[i]));
            top = fmaxf(top, fabsf(y[i]));
        }
        ck_assert_float_eq(scale[r], most / 448);
        ck_assert_float_eq(top, 448);
    }
}
END_TEST

START_TEST(a_row_of_zeros_has_scale_one_and_rows_are_alone)
{
    float x[3 * 2] = {0, 0, 448, -1.03f, 0, 1e-30f}, scale[3];
    quantise_ref(&(struct quantise){.x = x, .scale = scale, .rows = 3, .k = 2, .threads = 1});
    ck_assert_float_eq(scale[0], 1);
    ck_assert_float_eq(x[0], 0);
    ck_assert_float_eq(scale[1], 1);
    ck_assert_float_eq(x[2], 448);
    ck_assert_float_eq(x[3], -1);
    ck_assert_float_eq(x[5], 448);
}
END_TEST

/* By hand: over 0.25 the numbers are 1, 1.0625 (a tie, to even), 460 (the largest is 448), -inf and a NaN. */
START_TEST(a_fixed_scale_is_every_rows_and_beyond_it_numbers_saturate)
{
    const float from[2 * 5] = {0.25f, 0.265625f, 115, -INFINITY, NAN, 0, 1e-5f, -7.9f, 112, -112};
    const float want[2 * 5] = {1, 1, 448, -448, NAN, 0, 0, -32, 448, -448};
    float x[2 * 5], scale[2];
    memset(x, 0xff, sizeof x);
    quantise_ref(&(struct quantise){
        .x = x, .from = from, .scale = scale, .rows = 2, .k = 5, .threads = 1, .fixed = 0.25f});
    for (int i = 0; i < 10; i++)
        ck_assert_msg(x[i] == want[i] || (isnan(want[i]) && isnan(x[i])), "number %d is %g, expected %g", i,
                      (double)x[i], (double)want[i]);
    ck_assert_float_eq(scale[0], 0.25f);
    ck_assert_float_eq(scale[1], 0.25f);
    ck_assert_float_eq(from[1], 0.265625f);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("fp8");
    TCase *codes = tcase_create("codes"), *rows = tcase_create("rows");
    tcase_add_test(codes, every_code_has_its_value_and_returns);
    tcase_add_test(codes, between_neighbours_the_nearer_wins_and_ties_go_to_even);
    tcase_add_test(codes, what_is_too_large_saturates_and_nan_stays);
    tcase_add_test(codes, every_bf16_rounds_to_the_nearest_code);
    tcase_add_test(rows, a_quantised_row_is_near_the_row);
    tcase_add_test(rows, a_fixed_scale_is_every_rows_and_beyond_it_numbers_saturate);
    tcase_add_test(rows, a_row_of_zeros_has_scale_one_and_rows_are_alone);
    suite_add_tcase(s, codes);
    suite_add_tcase(s, rows);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
