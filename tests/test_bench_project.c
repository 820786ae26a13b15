/* test_bench_project: the arithmetic of a projection on numbers made up to be divided in the head. */
#include "engine/err.h"
#include "experiments/bench_project.h"
#include <check.h>
#include <stdlib.h>
#include <string.h>

static const struct projection p = {.name = "made-up",
                                    .ranks = 4,
                                    .sheet = 2e12,
                                    .reach = 0.5,
                                    .collective_s = 1e-6,
                                    .per_layer = 2,
                                    .draft_s = 1e-4,
                                    .al = 3};
static const struct projected_from m = {
    .rows = 4, .context = 128, .layers = 50, .ranks_held = 1, .bytes = 4e9, .seconds = 2e-3, .floor = 1e-3};

/* 1e9 bytes at 1e12 * 0.5 a second are 2 ms; 100 collectives 0.1 ms; the draft 0.1 ms. */
START_TEST(a_step_is_pass_and_collectives_and_draft)
{
    const struct projected r = projection_of(&p, &m);
    ck_assert_double_eq_tol(r.bytes, 1e9, 1);
    ck_assert_double_eq_tol(r.share, 0.5, 1e-12);
    ck_assert_double_eq_tol(r.pass_s, 2e-3, 1e-12);
    ck_assert_double_eq_tol(r.collectives_s, 1e-4, 1e-12);
    ck_assert_double_eq_tol(r.step_s, 2.2e-3, 1e-12);
    ck_assert_double_eq_tol(r.tokens_per_s, 3 / 2.2e-3, 1e-6);
}
END_TEST

START_TEST(a_shard_is_not_cut_again)
{
    struct projected_from shard = m;
    shard.ranks_held = 4;
    shard.bytes = 1e9;
    ck_assert_double_eq_tol(projection_of(&p, &shard).pass_s, 2e-3, 1e-12);
}
END_TEST

START_TEST(every_assumption_has_a_line_and_the_result_says_it_is_none)
{
    char *text = NULL;
    size_t n = 0;
    int lines = 0;
    FILE *out = open_memstream(&text, &n);
    ck_assert_ptr_nonnull(out);
    projection_print(&p, &m, out);
    fclose(out);
    for (const char *at = text; (at = strstr(at, "assumed")); at++)
        lines++;
    ck_assert_int_eq(lines, 7);
    ck_assert_ptr_nonnull(strstr(text, "not measured"));
    ck_assert_ptr_nonnull(strstr(text, "2.2000 ms a step, 1364 tokens/s"));
    free(text);
}
END_TEST

START_TEST(an_unknown_machine_is_named)
{
    struct projection out;
    ck_assert_int_eq(projection_named("b200x8", &out), 0);
    ck_assert_int_eq(out.ranks, 8);
    ck_assert_int_eq(projection_named("b300x9", &out), ERR_CONFIG);
    ck_assert_msg(strstr(err_text(), "b300x9") != NULL, "%s", err_text());
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bench_project");
    TCase *c = tcase_create("bench_project");
    tcase_add_test(c, a_step_is_pass_and_collectives_and_draft);
    tcase_add_test(c, a_shard_is_not_cut_again);
    tcase_add_test(c, every_assumption_has_a_line_and_the_result_says_it_is_none);
    tcase_add_test(c, an_unknown_machine_is_named);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
