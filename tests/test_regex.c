/* test_regex: Oniguruma's patterns mean the same under PCRE2; what would not is refused. The expected answers
 * were checked against the library `tokenizers`, which runs Oniguruma with Unicode 16. */
#include "engine/regex.h"
#include "engine/err.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* All matches of pattern in text, as "start-end start-end". */
static void expect_matches(const char *pattern, const char *text, const char *expected)
{
    struct regex *re;
    struct regex_scratch *s;
    size_t n = strlen(text), from = 0, start, end;
    char found[256] = "";
    int more = 1;
    ck_assert_msg(regex_open(&re, pattern, strlen(pattern), "re") == 0, "%s", err_text());
    ck_assert_int_eq(regex_scratch_new(&s), 0);
    while (from <= n) {
        ck_assert_msg(regex_find(re, s, text, n, from, &more, &start, &end) == 0, "%s", err_text());
        if (!more)
            break;
        size_t used = strlen(found);
        snprintf(found + used, sizeof found - used, "%s%zu-%zu", used ? " " : "", start, end);
        from = end > start ? end : end + 1;
    }
    ck_assert_msg(strcmp(found, expected) == 0, "'%s' in '%s': expected '%s', found '%s'", pattern, text,
                  expected, found);
    regex_scratch_free(s);
    regex_close(re);
}

START_TEST(white_space_is_unicodes_without_the_mongolian_separator)
{
    expect_matches("\\s", "a\xC2\x85", "1-3");               /* U+0085 */
    expect_matches("\\s", "\xE1\xA0\x8E", "");               /* U+180E */
    expect_matches("\\S", "\xE1\xA0\x8E", "0-3");            /* U+180E */
    expect_matches("[^\\s]", "\xE1\xA0\x8E \t", "0-3");      /* U+180E */
    expect_matches("\\s", "\xE2\x80\x8B\x1C\x1F", "");       /* U+200B and separators */
    expect_matches("\\s+", "\xE3\x80\x80\xC2\xA0\v", "0-6"); /* U+3000, U+00A0 */
}
END_TEST

START_TEST(categories_know_characters_of_unicode_16)
{
    expect_matches("\\p{Lu}", "\xE1\xB2\x89", "0-3"); /* U+1C89, Unicode 16 */
    expect_matches("\\p{L}", "\xE1\xB2\x89\xE1\xB2\x8A", "0-3 3-6");
    expect_matches("\\p{Ll}", "\xE1\xB2\x89\xE1\xB2\x8A", "3-6");
    expect_matches("\\P{L}", "\xE1\xB2\x89.", "3-4");
    expect_matches("[^\\s\\p{L}\\p{N}]", "\xE1\xB2\x89\xF0\x90\xB5\x80!", "7-8"); /* U+10D40, a digit */
    expect_matches("\\d", "\xF0\x90\xB5\x80", "0-4");
    expect_matches("\\p{Lo}", "\xF0\xB1\x8D\x90", "0-4"); /* U+31350, Unicode 15 */
    expect_matches("\\p{L}", "\xF3\xA0\x84\x80", "");     /* U+E0100, a mark */
    expect_matches("\\p{M}", "\xF3\xA0\x84\x80", "0-4");
}
END_TEST

START_TEST(every_recent_character_has_its_category_and_no_other)
{
    static const char *const categories[] = {"\\p{L}", "\\p{M}", "\\p{N}", "\\p{P}", "\\p{S}"};
    struct regex_scratch *s;
    ck_assert_int_eq(regex_scratch_new(&s), 0);
    ck_assert_int_gt(regex_n_recent, 100);
    for (size_t k = 0; k < 5; k++) {
        struct regex *re;
        ck_assert_int_eq(regex_open(&re, categories[k], 5, "re"), 0);
        for (int i = 0; i < regex_n_recent; i++) {
            unsigned c = regex_recent[i].hi;
            char text[4] = {(char)(0xF0 | c >> 18), (char)(0x80 | (c >> 12 & 63)),
                            (char)(0x80 | (c >> 6 & 63)), (char)(0x80 | (c & 63))};
            size_t start, end;
            int found;
            if (c < 0x10000)
                continue;
            ck_assert_int_eq(regex_find(re, s, text, 4, 0, &found, &start, &end), 0);
            ck_assert_msg(found == (regex_recent[i].category[0] == categories[k][3]),
                          "U+%X is %s, '%s' says %d", c, regex_recent[i].category, categories[k], found);
        }
        regex_close(re);
    }
    regex_scratch_free(s);
}
END_TEST

START_TEST(escapes_keep_onigurumas_meaning)
{
    expect_matches("\\v", "\v\n", "0-1");
    expect_matches("[\\v]", "\v\n\r", "0-1");
    expect_matches("\\u00e9", "\xC3\xA9", "0-2");
    expect_matches("[\\u00e9-\\u00eb\\-]+", "-\xC3\xA9\xC3\xAB", "0-5");
    expect_matches(".", "a\nb\r", "0-1 2-3 3-4");
    expect_matches("\\.\\[", "x.[", "1-3");
}
END_TEST

START_TEST(repeats_and_groups_work)
{
    expect_matches("\\p{N}{1,3}", "12345", "0-3 3-5");
    expect_matches("a{2}|b{3,}", "aaabbbb", "0-2 3-7");
    expect_matches("\\s+(?!\\S)", "a   b", "1-3");
    expect_matches("(?i:'s|'ll)", "'S'lL's", "0-2 2-5 5-7");
    expect_matches("(?i:'s)", "'\xC5\xBF", "0-3"); /* U+017F, the long s */
    expect_matches("a++a", "aaa", "");
    expect_matches("a+?", "aa", "0-1 1-2");
    expect_matches("(?>a|ab)c|(b)", "abc", "1-2");
    expect_matches("x*", "axx", "0-0 1-3 3-3");
}
END_TEST

static const char *const refused[] = {
    "\\w",   "\\b",     "\\h",         "\\1",      "(a)\\1", "^a",    "a$",       "(?<=a)b",  "(?<n>a)",
    "(?#c)", "(*UTF)a", "[[a]b]",      "[a&&b]",   "[]a]",   "[\\S]", "[\\P{L}]", "\\p{Han}", "\\p{^L}",
    "\\pL",  "\\p{",    "\\p{L",       "a{,2}",    "a{2}+",  "a{2}?", "a{9999}",  "a{3,1}",   "\\x41",
    "\\u12", "(?i:ss)", "(?i:\\p{L})", "(?i:[a])", "\\",     "[\\b]", "(?i)a",    "a{",       "[[:alpha:]]",
};

START_TEST(what_the_engines_read_differently_is_refused)
{
    struct regex *re = NULL;
    ck_assert_int_eq(regex_open(&re, refused[_i], strlen(refused[_i]), "re"), ERR_LIMIT);
    ck_assert_ptr_null(re);
    ck_assert_ptr_nonnull(strstr(err_text(), "re: expected only what this program reads"));
}
END_TEST

static const char *const malformed[] = {"(a", "a)", "[a", "(?i:a", "*a", "a**", "[z-a]"};

START_TEST(what_is_no_expression_is_a_format_error)
{
    struct regex *re = NULL;
    ck_assert_int_eq(regex_open(&re, malformed[_i], strlen(malformed[_i]), "re"), ERR_FORMAT);
    ck_assert_ptr_null(re);
}
END_TEST

START_TEST(a_pattern_with_a_zero_byte_or_without_end_is_refused)
{
    struct regex *re = NULL;
    char *text = malloc(100000);
    memset(text, 'a', 100000);
    ck_assert_int_eq(regex_open(&re, text, 100000, "re"), ERR_LIMIT);
    text[1] = 0;
    ck_assert_int_eq(regex_open(&re, text, 3, "re"), ERR_LIMIT);
    free(text);
}
END_TEST

START_TEST(a_search_that_would_not_end_is_an_error)
{
    enum { N = 64 };
    char text[N];
    struct regex *re;
    struct regex_scratch *s;
    int found;
    size_t start, end;
    memset(text, 'a', N);
    ck_assert_int_eq(regex_open(&re, "(?:a|a)+(?=c)", 13, "re"), 0);
    ck_assert_int_eq(regex_scratch_new(&s), 0);
    ck_assert_int_eq(regex_find(re, s, text, N, 0, &found, &start, &end), ERR_LIMIT);
    ck_assert_ptr_nonnull(strstr(err_text(), "gives up at byte 0 of 64"));
    regex_scratch_free(s);
    regex_close(re);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("regex");
    TCase *c = tcase_create("regex");
    tcase_add_test(c, white_space_is_unicodes_without_the_mongolian_separator);
    tcase_add_test(c, categories_know_characters_of_unicode_16);
    tcase_add_test(c, every_recent_character_has_its_category_and_no_other);
    tcase_add_test(c, escapes_keep_onigurumas_meaning);
    tcase_add_test(c, repeats_and_groups_work);
    tcase_add_loop_test(c, what_the_engines_read_differently_is_refused, 0,
                        (int)(sizeof refused / sizeof refused[0]));
    tcase_add_loop_test(c, what_is_no_expression_is_a_format_error, 0,
                        (int)(sizeof malformed / sizeof malformed[0]));
    tcase_add_test(c, a_pattern_with_a_zero_byte_or_without_end_is_refused);
    tcase_add_test(c, a_search_that_would_not_end_is_an_error);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
