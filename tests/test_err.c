/* test_err: the message, its contexts, its limits, and that each thread has its own. */
#include "engine/err.h"
#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static int fail_with(int code)
{
    FAIL(code, "tensor '%s': expected %d rows, found %d", "wq", 64, 32);
}

static int try_it(int code)
{
    if (code)
        TRY_CTX(fail_with(code), "loading layer %d", 3);
    return 0;
}

static int try_twice(int code)
{
    TRY(try_it(0));
    TRY_CTX(try_it(code), "loading target model '%s'", "toy");
    return 0;
}

START_TEST(the_message_ends_in_file_and_line)
{
    ck_assert_int_eq(fail_with(ERR_FORMAT), ERR_FORMAT);
    ck_assert_ptr_nonnull(strstr(err_text(), "tensor 'wq': expected 64 rows, found 32  [tests/test_err.c:"));
    ck_assert_ptr_null(strchr(err_text(), '\n'));
}
END_TEST

START_TEST(contexts_go_in_front_and_indent_what_follows)
{
    ck_assert_int_eq(try_twice(ERR_LIMIT), ERR_LIMIT);
    static const char expected[] =
        "loading target model 'toy':\n  loading layer 3:\n    tensor 'wq': expected 64 rows";
    ck_assert_msg(strncmp(err_text(), expected, strlen(expected)) == 0, "%s", err_text());
}
END_TEST

START_TEST(success_passes_through_try)
{
    err_clear();
    ck_assert_int_eq(try_twice(0), 0);
    ck_assert_str_eq(err_text(), "");
}
END_TEST

START_TEST(a_new_message_drops_the_old_one)
{
    try_twice(ERR_FORMAT);
    ck_assert_int_eq(ERR_SET(ERR_IO, "second"), ERR_IO);
    ck_assert_int_eq(strncmp(err_text(), "second", 6), 0);
    ck_assert_ptr_null(strstr(err_text(), "wq"));
    err_clear();
    ck_assert_str_eq(err_text(), "");
}
END_TEST

START_TEST(endless_messages_and_contexts_are_cut)
{
    enum { N = 100000 };
    char *text = malloc(N + 1);
    memset(text, 'x', N);
    text[N] = 0;
    ck_assert_int_eq(ERR_SET(ERR_IO, "%s", text), ERR_IO);
    ck_assert_uint_lt(strlen(err_text()), N);
    ck_assert_uint_gt(strlen(err_text()), 1000);
    for (int i = 0; i < 1000; i++)
        err_context("%s", text);
    ck_assert_uint_lt(strlen(err_text()), N);
    ck_assert_int_eq(err_text()[0], 'x');
    free(text);
}
END_TEST

static void *other_thread(void *seen)
{
    *(int *)seen = err_text()[0] == 0;
    (void)ERR_SET(ERR_IO, "other");
    return NULL;
}

START_TEST(each_thread_has_its_own_message)
{
    pthread_t thread;
    int empty = 0;
    (void)ERR_SET(ERR_IO, "mine");
    ck_assert_int_eq(pthread_create(&thread, NULL, other_thread, &empty), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert_int_eq(empty, 1);
    ck_assert_int_eq(strncmp(err_text(), "mine", 4), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("err");
    TCase *c = tcase_create("err");
    tcase_add_test(c, the_message_ends_in_file_and_line);
    tcase_add_test(c, contexts_go_in_front_and_indent_what_follows);
    tcase_add_test(c, success_passes_through_try);
    tcase_add_test(c, a_new_message_drops_the_old_one);
    tcase_add_test(c, endless_messages_and_contexts_are_cut);
    tcase_add_test(c, each_thread_has_its_own_message);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
