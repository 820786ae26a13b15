/* test_utf8: all code points, and invalid sequences, among them those of the Unicode Standard. */
#include "engine/utf8.h"
#include <check.h>
#include <stdlib.h>
#include <string.h>

static int put(uint32_t c, char *out)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    int len = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = len - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)((0xF00u >> len & 0xF0) | c);
    return len;
}

/* Is c read as the character it is, all of it, and every beginning of it as cut off? */
static int is_read(uint32_t c)
{
    char text[4];
    int n = put(c, text), len;
    uint32_t code;
    int good = utf8_next(text, (size_t)n, &len, &code) == UTF8_CHAR && len == n && code == c;
    for (int cut = 1; cut < n; cut++)
        good = good && utf8_next(text, (size_t)cut, &len, &code) == UTF8_CUT && len == cut;
    return good;
}

static int is_refused(uint32_t c)
{
    char text[4];
    int n = put(c, text), len;
    uint32_t code;
    return utf8_next(text, (size_t)n, &len, &code) == UTF8_BAD && len == 1 && code == 0xFFFD;
}

/* Surrogates are no characters; everything else up to U+10FFFF is, and nothing beyond. */
START_TEST(every_code_point_is_read_and_every_beginning_of_it_is_cut)
{
    for (uint32_t c = 0; c < 0x120000; c++) {
        int none = (c >= 0xD800 && c < 0xE000) || c > 0x10FFFF;
        if (none ? !is_refused(c) : !is_read(c))
            ck_abort_msg("U+%X", c);
    }
}
END_TEST

/* Text, and what Python's bytes.decode("utf-8", "replace") makes of it, with ? for U+FFFD. */
static const char *const invalid[][2] = {
    {"\xC0\xAF", "??"},
    {"\xE0\x80\xBF", "???"},
    {"\xED\xA0\x80", "???"},
    {"\xF4\x90\x80\x80", "????"},
    {"\xF0\x80\x80\x41", "???A"},
    {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", "????A"},
    {"\xE2\x82", "?"},
    {"\xF0\x9F\x98", "?"},
    {"\xF0\x9F\x98\xF0\x9F\x98", "??"},
    {"\xFF\x41\xFE", "?A?"},
    {"\x80\xBF", "??"},
    {"\xC3\x28", "?("},
};

START_TEST(every_invalid_part_becomes_one_replacement)
{
    char expected[64] = "";
    size_t n, n_in = strlen(invalid[_i][0]);
    for (const char *p = invalid[_i][1]; *p; p++) {
        size_t used = strlen(expected);
        if (*p == '?')
            memcpy(expected + used, UTF8_REPLACEMENT, 4);
        else
            memcpy(expected + used, p, 1);
    }
    ck_assert_uint_lt(utf8_valid(invalid[_i][0], n_in), n_in);
    char *clean = utf8_clean(invalid[_i][0], n_in, &n);
    ck_assert_uint_eq(n, strlen(expected));
    ck_assert(memcmp(clean, expected, n) == 0);
    ck_assert_uint_eq(utf8_valid(clean, n), n);
    free(clean);
}
END_TEST

START_TEST(the_valid_prefix_ends_where_the_invalid_part_begins)
{
    ck_assert_uint_eq(utf8_valid("", 0), 0);
    ck_assert_uint_eq(utf8_valid("abc", 3), 3);
    ck_assert_uint_eq(utf8_valid("a\xC3\xA9\xE2\x82", 5), 3);
    ck_assert_uint_eq(utf8_valid("\xFF", 1), 0);
}
END_TEST

START_TEST(white_space_is_the_25_characters_of_unicode)
{
    int n = 0;
    for (uint32_t c = 0; c < 0x110000; c++)
        n += utf8_is_space(c) != 0;
    ck_assert_int_eq(n, 25);
    ck_assert(utf8_is_space(0x85) && utf8_is_space(0x3000) && !utf8_is_space(0x180E) &&
              !utf8_is_space(0x200B));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("utf8");
    TCase *c = tcase_create("utf8");
    tcase_add_test(c, every_code_point_is_read_and_every_beginning_of_it_is_cut);
    tcase_add_loop_test(c, every_invalid_part_becomes_one_replacement, 0,
                        (int)(sizeof invalid / sizeof invalid[0]));
    tcase_add_test(c, the_valid_prefix_ends_where_the_invalid_part_begins);
    tcase_add_test(c, white_space_is_the_25_characters_of_unicode);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
