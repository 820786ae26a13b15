/* Philox4x32-10 against the known answers of its authors (Random123, kat_vectors), through our names of the
 * counter's words: index, position, request, use, and the seed's low and high half as the key. */
#include "kernels/philox.h"
#include <check.h>
#include <stdlib.h>

static void expect(struct philox4 r, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    ck_assert_uint_eq(r.v[0], a);
    ck_assert_uint_eq(r.v[1], b);
    ck_assert_uint_eq(r.v[2], c);
    ck_assert_uint_eq(r.v[3], d);
}

START_TEST(the_authors_known_answers_hold)
{
    uint32_t ones = 0xffffffff;
    expect(philox(0, 0, 0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);
    expect(philox(UINT64_MAX, ones, ones, ones, ones), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd);
    expect(philox(0x299f31d0a4093822, 0x13198a2e, 0x85a308d3, 0x03707344, 0x243f6a88), 0xd16cfe09, 0x94fdcceb,
           0x5001e420, 0x24126ea1);
}
END_TEST

START_TEST(uniforms_stay_inside_the_open_interval)
{
    ck_assert(philox_uniform(0) == 0x1p-24f);
    ck_assert(philox_uniform(UINT32_MAX) == (float)PHILOX_UNIFORM_MAX);
    ck_assert((float)PHILOX_UNIFORM_MAX < 1.0f);
    for (uint32_t m = 0; m < 1u << 23;
         m += 4097) /* equally spaced, and exact: the same value from double arithmetic */
        ck_assert(philox_uniform(m << 9) == (2.0 * m + 1) / (1 << 24));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("philox");
    TCase *c = tcase_create("philox");
    tcase_add_test(c, the_authors_known_answers_hold);
    tcase_add_test(c, uniforms_stay_inside_the_open_interval);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
