/* Which files a command line means, and that they are one data set or none. */
#include "experiments/analyze_input.h"
#include "experiments/trace_lean.h"
#include "engine/err.h"
#include "spec/loop.h"
#include "tests/toy_trace.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MS = 1000000, SLICES = 3 };

static char dir[] = "/tmp/specbed-input-XXXXXX";
static char path[SLICES][64], pattern[64], other[64];

/* One prompt of a run a slice. */
static void write_slice(int slice, uint64_t fingerprint)
{
    struct trace t;
    toy_trace_init(&t, path[slice]);
    t.meta.fingerprint = fingerprint;
    toy_trace_arm(&t, "none", "none", "greedy", 0, 0);
    toy_trace_prompt(&t, "qa", slice, 0);
    toy_trace_request(&t, 0, 0, 0, 0, 1);
    for (int i = 0; i < 3 + slice; i++)
        toy_trace_step(&t, (struct toy_step){0, 0, 0, 1, STEP_NO_DRAFT, MS});
    unlink(path[slice]);
    toy_trace_write(&t, path[slice]);
    trace_deinit(&t);
}

static void make_files(void)
{
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(pattern, sizeof pattern, "%s/slice[01].h5", dir);
    snprintf(other, sizeof other, "%s/slice0.h5.next", dir);
    for (int i = 0; i < SLICES; i++) {
        snprintf(path[i], sizeof path[i], "%s/slice%d.h5", dir, i);
        write_slice(i, 0xfeed);
    }
    FILE *f = fopen(other, "w");
    ck_assert_ptr_nonnull(f);
    fclose(f);
}

static void remove_files(void)
{
    for (int i = 0; i < SLICES; i++)
        unlink(path[i]);
    unlink(other);
    rmdir(dir);
    memcpy(dir + sizeof dir - 7, "XXXXXX", 6);
}

START_TEST(a_folder_means_its_results_and_not_their_lock_files)
{
    struct analyze_input in;
    const char *args[] = {dir};
    ck_assert_msg(!analyze_input_init(&in, args, 1), "%s", err_text());
    ck_assert_int_eq(in.n, SLICES);
    for (int i = 0; i < SLICES; i++)
        ck_assert_str_eq(in.path[i], path[i]);
    analyze_input_deinit(&in);
}
END_TEST

START_TEST(patterns_are_matched_and_a_file_counts_once)
{
    struct analyze_input in;
    const char *args[] = {path[1], pattern, path[1]};
    ck_assert_msg(!analyze_input_init(&in, args, 3), "%s", err_text());
    ck_assert_int_eq(in.n, 2);
    ck_assert_str_eq(in.path[0], path[1]);
    ck_assert_str_eq(in.path[1], path[0]);
    analyze_input_deinit(&in);
}
END_TEST

START_TEST(nothing_found_is_an_error_that_says_what_was_looked_for)
{
    struct analyze_input in = {0};
    char empty[64], none[64];
    snprintf(empty, sizeof empty, "%s/empty", dir);
    snprintf(none, sizeof none, "%s/*.hdf", dir);
    ck_assert_int_eq(mkdir(empty, 0700), 0);
    const char *folder[] = {empty}, *nothing[] = {none};
    ck_assert_int_eq(analyze_input_init(&in, folder, 1), ERR_IO);
    ck_assert_ptr_nonnull(strstr(err_text(), "a folder with result files (*.h5), found none"));
    ck_assert_int_eq(analyze_input_init(&in, nothing, 1), ERR_IO);
    ck_assert_ptr_nonnull(
        strstr(err_text(), "*.hdf: expected a pattern that matches result files, found none"));
    ck_assert_int_eq(rmdir(empty), 0);
    ck_assert_int_eq(in.n, 0);
}
END_TEST

START_TEST(slices_are_read_as_one_data_set)
{
    struct analyze_input in;
    struct trace t;
    const char *args[] = {dir};
    ck_assert_int_eq(analyze_input_init(&in, args, 1), 0);
    ck_assert_msg(!analyze_input_read(&in, TRACE_READ_LEAN | TRACE_READ_LOOPS, &t), "%s", err_text());
    ck_assert(t.n_requests == 3 && t.n_steps == 3 + 4 + 5 && t.n_arms == 1 && t.loops && t.lean);
    ck_assert(t.requests[2].step_begin == 7 && t.lean[11].ns_total == MS);
    trace_deinit(&t);
    analyze_input_deinit(&in);
}
END_TEST

START_TEST(what_must_not_be_mixed_is_refused)
{
    struct analyze_input in;
    struct trace t = {0};
    const char *args[] = {dir};
    write_slice(1, 0xbeef);
    ck_assert_int_eq(analyze_input_init(&in, args, 1), 0);
    ck_assert_int_eq(analyze_input_read(&in, TRACE_READ_LEAN, &t), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "expected files of one run, but models differ"));
    ck_assert_ptr_null(t.path);
    analyze_input_deinit(&in);
}
END_TEST

START_TEST(the_state_changes_when_a_file_does)
{
    struct analyze_input in;
    const char *args[] = {dir};
    ck_assert_int_eq(analyze_input_init(&in, args, 1), 0);
    uint64_t before = analyze_input_state(&in);
    ck_assert_uint_eq(analyze_input_state(&in), before);
    ck_assert_int_eq(truncate(path[2], 10), 0);
    ck_assert_uint_ne(analyze_input_state(&in), before);
    analyze_input_deinit(&in);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("analyze_input");
    TCase *c = tcase_create("files");
    tcase_add_checked_fixture(c, make_files, remove_files);
    tcase_add_test(c, a_folder_means_its_results_and_not_their_lock_files);
    tcase_add_test(c, patterns_are_matched_and_a_file_counts_once);
    tcase_add_test(c, nothing_found_is_an_error_that_says_what_was_looked_for);
    tcase_add_test(c, slices_are_read_as_one_data_set);
    tcase_add_test(c, what_must_not_be_mixed_is_refused);
    tcase_add_test(c, the_state_changes_when_a_file_does);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
