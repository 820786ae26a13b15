/* One table, three forms: text that lines up whatever the script, CSV by RFC 4180, JSON that parses back. */
#include "experiments/table.h"
#include "experiments/display.h"
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct table_column columns[] = {
    {"name", "name", "", TABLE_TEXT, 0, 1},
    {"n", "count", "", TABLE_COUNT, 0, 1},
    {"x", "value", "ms", TABLE_REAL, 1, 1},
    {"share", "share", "", TABLE_SHARE, 0, 0},
    {"ratio", "ratio", "[95 %]", TABLE_INTERVAL, 2, 1},
    {"last", "last", "", TABLE_REAL, 1, 3},
};
enum { COLUMNS = sizeof columns / sizeof *columns };

static void add(struct table *t, const char *name, double n, double x, struct stats_interval ratio)
{
    table_row(t);
    table_text(t, "name", name);
    table_number(t, "n", n);
    table_number(t, "x", x);
    table_number(t, "share", 0.125);
    table_interval(t, "ratio", ratio);
    table_number(t, "last", x);
}

enum form { TEXT, CSV };

/* What the table prints, malloc'ed. */
static char *print(const struct table *t, enum form form, int width)
{
    char *out = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&out, &n);
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(form == CSV ? table_print_csv(t, f) : table_print_text(t, 1, width, f), 0);
    fclose(f);
    return out;
}

START_TEST(width_counts_terminal_columns)
{
    ck_assert_int_eq(display_width(""), 0);
    ck_assert_int_eq(display_width("abc"), 3);
    ck_assert_int_eq(display_width("\u00dcber"), 4);
    ck_assert_int_eq(display_width("e\u0301"), 1);          /* a combining accent */
    ck_assert_int_eq(display_width("\u7ffb\u8bd1"), 4);     /* wide */
    ck_assert_int_eq(display_width("\U0001F600"), 2);       /* emoji */
    ck_assert_int_eq(display_width("a\xff\xc3"), 3);        /* not UTF-8: shown as ? */
    ck_assert_int_eq(display_width("\xed\xa0\x80"), 3);     /* a surrogate */
    ck_assert_int_eq(display_width("\xf0\x82\x82\xac"), 4); /* overlong */
}
END_TEST

START_TEST(lines_are_equally_wide_in_any_script)
{
    static const char *const names[] = {"plain", "\u00dcbersetzung", "\u7ffb\u8bd1", "\U0001F600", "bad\xff"};
    struct table t;
    table_init(&t, columns, COLUMNS);
    for (int i = 0; i < 5; i++)
        add(&t, names[i], i * 1000, i ? 1.5 : 100.25, (struct stats_interval){i, i - 0.5, i + 10.5});
    char *out = print(&t, TEXT, 110);
    int lines = 0, width = 0;
    for (char *save, *line = strtok_r(out, "\n", &save); line; line = strtok_r(NULL, "\n", &save), lines++) {
        if (lines == 1)
            continue; /* the last column has no unit: the line ends earlier */
        width = width ? width : display_width(line);
        ck_assert_int_eq(display_width(line), width);
    }
    ck_assert_int_eq(lines, 7);
    free(out);
    table_deinit(&t);
}
END_TEST

START_TEST(text_rounds_and_aligns_exactly_like_this)
{
    struct table t;
    table_init(&t, columns, COLUMNS);
    add(&t, "none", 7, NAN, (struct stats_interval){1, 1, 1});
    add(&t, "ngram", 1234, 2.25, (struct stats_interval){1.504, 1.25, 11.75});
    table_break(&t);
    char *out = print(&t, TEXT, 110);
    ck_assert_str_eq(out, "name   count  value               ratio  last\n"
                          "                 ms              [95 %]\n"
                          "none       7      -  1.00                   -\n"
                          "\n"
                          "ngram   1234    2.2  1.50 [1.25, 11.75]   2.2\n");
    free(out);
    table_deinit(&t);
}
END_TEST

START_TEST(text_shrinks_to_the_width_and_shows_no_control_characters)
{
    struct table t;
    table_init(&t, columns, COLUMNS);
    add(&t, "a label of more than forty columns, which is a lot", 1, 1, (struct stats_interval){1, 1, 1});
    add(&t, "\x1b[31mred\nline", 1, 1, (struct stats_interval){1, 1, 1});
    char *out = print(&t, TEXT, 50);
    ck_assert_ptr_nonnull(strstr(out, "a label of"));
    ck_assert_ptr_nonnull(strstr(out, "\u2026"));
    ck_assert_ptr_nonnull(strstr(out, "?[31mred?line"));
    ck_assert_ptr_null(strchr(out, '\x1b'));
    for (char *save, *line = strtok_r(out, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        ck_assert_int_le(display_width(line), 50);
    free(out);
    table_deinit(&t);
}
END_TEST

START_TEST(a_column_without_values_is_not_shown)
{
    struct table t;
    table_init(&t, columns, COLUMNS);
    table_row(&t);
    table_text(&t, "name", "x");
    table_number(&t, "n", 3);
    char *out = print(&t, TEXT, 110);
    ck_assert_str_eq(out, "name  count\n\nx         3\n");
    free(out);
    table_deinit(&t);
}
END_TEST

START_TEST(csv_quotes_what_rfc_4180_says)
{
    struct table t;
    table_init(&t, columns, COLUMNS);
    add(&t, "a \"b\", c\nd", 3, 0.1, (struct stats_interval){2, NAN, NAN});
    char *out = print(&t, CSV, 0);
    ck_assert_str_eq(out, "name,n,x,share,ratio,ratio_lo,ratio_hi,last\r\n"
                          "\"a \"\"b\"\", c\nd\",3,0.10000000000000001,0.125,2,,,0.10000000000000001\r\n");
    free(out);
    table_deinit(&t);
}
END_TEST

START_TEST(json_parses_back_to_the_same_numbers)
{
    struct table t;
    json_t *rows;
    table_init(&t, columns, COLUMNS);
    add(&t, "bad \xff byte", 3, 1.0 / 3, (struct stats_interval){2.0 / 3, 0.1, NAN});
    table_row(&t);
    ck_assert_int_eq(table_json(&t, &rows), 0);
    char *text = json_dumps(rows, 0);
    json_t *back = json_loads(text, 0, NULL), *row = json_array_get(back, 0);
    ck_assert_uint_eq(json_array_size(back), 2);
    ck_assert_str_eq(json_string_value(json_object_get(row, "name")), "bad \uFFFD byte");
    ck_assert(json_is_integer(json_object_get(row, "n")) &&
              json_integer_value(json_object_get(row, "n")) == 3);
    ck_assert(json_real_value(json_object_get(row, "x")) == 1.0 / 3);
    json_t *ratio = json_object_get(row, "ratio");
    ck_assert(json_real_value(json_object_get(ratio, "value")) == 2.0 / 3);
    ck_assert(json_real_value(json_object_get(ratio, "lo")) == 0.1);
    ck_assert(json_is_null(json_object_get(ratio, "hi")));
    ck_assert(json_is_null(json_object_get(json_array_get(back, 1), "x")));
    ck_assert(json_is_null(json_object_get(json_array_get(back, 1), "name")));
    free(text);
    json_decref(back);
    json_decref(rows);
    table_deinit(&t);
}
END_TEST

START_TEST(paragraphs_break_at_spaces)
{
    char *out = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&out, &n);
    display_paragraph("one two three four", 2, 10, f);
    display_paragraph("awordthatislongerthantheline", 2, 10, f);
    fclose(f);
    ck_assert_str_eq(out, "one two\n  three\n  four\nawordthatislongerthantheline\n");
    free(out);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("table");
    TCase *c = tcase_create("forms");
    tcase_add_test(c, width_counts_terminal_columns);
    tcase_add_test(c, lines_are_equally_wide_in_any_script);
    tcase_add_test(c, text_rounds_and_aligns_exactly_like_this);
    tcase_add_test(c, text_shrinks_to_the_width_and_shows_no_control_characters);
    tcase_add_test(c, a_column_without_values_is_not_shown);
    tcase_add_test(c, csv_quotes_what_rfc_4180_says);
    tcase_add_test(c, json_parses_back_to_the_same_numbers);
    tcase_add_test(c, paragraphs_break_at_spaces);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
