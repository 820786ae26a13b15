/* test_json: what is read, what is refused, and that the sentence names document, key, expectation and
 * finding. */
#include "engine/json.h"
#include "engine/err.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static json_t *parse(const char *text)
{
    json_t *v = NULL;
    ck_assert_msg(json_parse(text, strlen(text), "doc", &v) == 0, "%s", err_text());
    return v;
}

static void expect_error(int rc, int code, const char *sentence)
{
    ck_assert_int_eq(rc, code);
    ck_assert_msg(strstr(err_text(), sentence) != NULL, "expected '%s' in:\n%s", sentence, err_text());
}

START_TEST(members_of_the_right_type_are_read)
{
    json_t *v = parse("{\"i\": -3, \"d\": 2.5, \"b\": true, \"s\": \"text\"}");
    long i;
    double d;
    int b;
    const char *s;
    ck_assert_int_eq(json_get_int(v, "i", "doc", -3, 10, NULL, &i), 0);
    ck_assert_int_eq(i, -3);
    ck_assert_int_eq(json_get_double(v, "d", "doc", NULL, &d), 0);
    ck_assert(d == 2.5);
    ck_assert_int_eq(json_get_double(v, "i", "doc", NULL, &d), 0);
    ck_assert(d == -3);
    ck_assert_int_eq(json_get_bool(v, "b", "doc", NULL, &b), 0);
    ck_assert_int_eq(b, 1);
    ck_assert_int_eq(json_get_string(v, "s", "doc", NULL, &s), 0);
    ck_assert_str_eq(s, "text");
    json_decref(v);
}
END_TEST

START_TEST(missing_and_null_members_take_the_fallback)
{
    static const long seven = 7;
    static const double half = 0.5;
    static const int yes = 1;
    json_t *v = parse("{\"n\": null}");
    static const char *const keys[] = {"n", "missing"};
    for (int k = 0; k < 2; k++) {
        long i = 0;
        double d = 0;
        int b = 0;
        const char *s = NULL;
        ck_assert_int_eq(json_get_int(v, keys[k], "doc", 0, 1, &seven, &i), 0);
        ck_assert_int_eq(i, 7);
        ck_assert_int_eq(json_get_double(v, keys[k], "doc", &half, &d), 0);
        ck_assert(d == 0.5);
        ck_assert_int_eq(json_get_bool(v, keys[k], "doc", &yes, &b), 0);
        ck_assert_int_eq(b, 1);
        ck_assert_int_eq(json_get_string(v, keys[k], "doc", "fallback", &s), 0);
        ck_assert_str_eq(s, "fallback");
    }
    json_decref(v);
}
END_TEST

START_TEST(missing_members_without_a_fallback_are_errors)
{
    json_t *v = parse("{\"n\": null}");
    long i = 5;
    const char *s = "kept";
    expect_error(json_get_int(v, "hidden_size", "doc", 0, 9, NULL, &i), ERR_FORMAT,
                 "doc: 'hidden_size': expected an integer, found nothing");
    expect_error(json_get_string(v, "n", "doc", NULL, &s), ERR_FORMAT,
                 "doc: 'n': expected a string, found null");
    ck_assert_int_eq(i, 5);
    ck_assert_str_eq(s, "kept");
    json_decref(v);
}
END_TEST

START_TEST(wrong_types_are_errors_even_with_a_fallback)
{
    static const long seven = 7;
    static const double half = 0.5;
    static const int yes = 1;
    json_t *v = parse("{\"s\": \"4\", \"i\": 1, \"r\": 1.0, \"a\": []}");
    long i;
    double d;
    int b;
    const char *s;
    expect_error(json_get_int(v, "s", "doc", 0, 9, &seven, &i), ERR_FORMAT,
                 "expected an integer, found a string");
    expect_error(json_get_int(v, "r", "doc", 0, 9, &seven, &i), ERR_FORMAT,
                 "expected an integer, found a real number");
    expect_error(json_get_double(v, "s", "doc", &half, &d), ERR_FORMAT, "expected a number, found a string");
    expect_error(json_get_bool(v, "i", "doc", &yes, &b), ERR_FORMAT,
                 "expected true or false, found an integer");
    expect_error(json_get_string(v, "a", "doc", "x", &s), ERR_FORMAT, "expected a string, found an array");
    expect_error(json_get_string(json_object_get(v, "a"), "k", "doc", "x", &s), ERR_FORMAT,
                 "expected an object with 'k', found an array");
    expect_error(json_get_string(NULL, "k", "doc", "x", &s), ERR_FORMAT, "found nothing");
    json_decref(v);
}
END_TEST

START_TEST(integers_outside_their_range_are_errors)
{
    json_t *v = parse("{\"low\": 0, \"high\": 11}");
    long i;
    expect_error(json_get_int(v, "low", "doc", 1, 10, NULL, &i), ERR_FORMAT,
                 "'low': expected an integer from 1 to 10, found 0");
    expect_error(json_get_int(v, "high", "doc", 1, 10, NULL, &i), ERR_FORMAT, "found 11");
    json_decref(v);
}
END_TEST

static const char *const malformed[] = {
    "",
    "{",
    "{\"a\": 1,}",
    "{\"a\": 1, \"a\": 2}",
    "{} x",
    "7",
    "{\"a\": 01}",
    "[1e999]",
    "[99999999999999999999]",
    "{\"a\": \"\xFF\"}",
    "[\"\\ud800\"]",
};

START_TEST(malformed_text_is_an_error_with_a_place)
{
    json_t *v = NULL;
    expect_error(json_parse(malformed[_i], strlen(malformed[_i]), "doc", &v), ERR_FORMAT, "doc: line ");
    ck_assert_ptr_null(v);
}
END_TEST

START_TEST(the_place_of_an_error_is_its_line)
{
    json_t *v = NULL;
    static const char text[] = "{\n\"a\": 1,\n\"b\" 2\n}";
    expect_error(json_parse(text, strlen(text), "doc", &v), ERR_FORMAT, "doc: line 3, column ");
}
END_TEST

START_TEST(nesting_beyond_all_reason_is_an_error)
{
    enum { DEPTH = 1000000 };
    json_t *v = NULL;
    char *text = malloc(DEPTH);
    memset(text, '[', DEPTH);
    expect_error(json_parse(text, DEPTH, "doc", &v), ERR_FORMAT, "doc: line ");
    free(text);
}
END_TEST

START_TEST(files_are_read_whole_and_missing_ones_named)
{
    char path[] = "/tmp/test_json_XXXXXX";
    json_t *v = NULL;
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    FILE *f = fdopen(fd, "wb");
    fputs("{\"pad\": \"", f);
    for (int i = 0; i < 200000; i++)
        fputc('x', f);
    fputs("\", \"last\": 42}", f);
    fclose(f);
    ck_assert_msg(json_read_file(path, &v) == 0, "%s", err_text());
    ck_assert_int_eq(json_integer_value(json_object_get(v, "last")), 42);
    json_decref(v);
    unlink(path);
    expect_error(json_read_file(path, &v), ERR_IO, ": cannot open: No such file");
    expect_error(json_read_file("/tmp", &v), ERR_IO, "/tmp: cannot read: ");
}
END_TEST

START_TEST(types_have_names)
{
    json_t *v = parse("[{}, [], \"\", 1, 1.5, true, false, null]");
    static const char *const names[] = {"an object",     "an array", "a string", "an integer",
                                        "a real number", "true",     "false",    "null"};
    for (size_t i = 0; i < 8; i++)
        ck_assert_str_eq(json_type_name(json_array_get(v, i)), names[i]);
    ck_assert_str_eq(json_type_name(NULL), "nothing");
    json_decref(v);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("json");
    TCase *c = tcase_create("json");
    tcase_add_test(c, members_of_the_right_type_are_read);
    tcase_add_test(c, missing_and_null_members_take_the_fallback);
    tcase_add_test(c, missing_members_without_a_fallback_are_errors);
    tcase_add_test(c, wrong_types_are_errors_even_with_a_fallback);
    tcase_add_test(c, integers_outside_their_range_are_errors);
    tcase_add_loop_test(c, malformed_text_is_an_error_with_a_place, 0,
                        (int)(sizeof malformed / sizeof malformed[0]));
    tcase_add_test(c, the_place_of_an_error_is_its_line);
    tcase_add_test(c, nesting_beyond_all_reason_is_an_error);
    tcase_add_test(c, files_are_read_whole_and_missing_ones_named);
    tcase_add_test(c, types_have_names);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
