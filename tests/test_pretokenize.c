/* test_pretokenize: where text is cut. The expected pieces are those of the library `tokenizers`. */
#include "engine/pretokenize.h"
#include "engine/err.h"
#include "engine/json.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BYTE_LEVEL(prefix, regex)                                                                            \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":" prefix ",\"use_regex\":" regex "}"
#define PLAIN              BYTE_LEVEL("false", "true")
#define NO_REGEX           BYTE_LEVEL("false", "false")
#define AFTER(step, last)  "{\"type\":\"Sequence\",\"pretokenizers\":[" step "," last "]}"
#define DIGITS(individual) "{\"type\":\"Digits\",\"individual_digits\":" individual "}"
#define SPLIT(regex)                                                                                         \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\",\"invert\":false}"
#define LLAMA4                                                                                               \
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]*[\\\\p{Ll}\\\\p{Lm}\\\\p{" \
    "Lo}\\\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"                                                            \
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]+[\\\\p{Ll}\\\\p{Lm}\\\\p{" \
    "Lo}\\\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"                                                            \
    "\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n/]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

static const struct cut {
    const char *spec, *text, *pieces; /* pieces: joined by '^' */
} cuts[] = {
    {PLAIN, "Hello world's 123!?", "Hello^ world^'s^ 123^!?"},
    {PLAIN, "a   b\n\n c  ", "a^  ^ b^\n\n^ c^  "},
    {PLAIN, "DON'T don't", "DON^'^T^ don^'t"},
    {PLAIN, "x\xC2\x85y", "x^\xC2\x85^y"},
    {PLAIN, "x\xE1\xA0\x8Ey", "x^\xE1\xA0\x8E^y"},
    {PLAIN, "", ""},
    {NO_REGEX, "a b  c", "a b  c"},
    {BYTE_LEVEL("true", "true"), "a b", " a^ b"},
    {BYTE_LEVEL("true", "true"), " a b", " a^ b"},
    {BYTE_LEVEL("true", "false"), "a b", " a b"},
    {AFTER(DIGITS("true"), PLAIN), "a 123b", "a^ ^1^2^3^b"},
    {AFTER(DIGITS("false"), PLAIN), "a 123b", "a^ ^123^b"},
    {AFTER(DIGITS("true"), BYTE_LEVEL("true", "true")), "a12", " a^ 1^ 2"},
    {AFTER(SPLIT(LLAMA4), NO_REGEX), "HELLOworld don't DON'T 12345 a//\n",
     "HELLOworld^ don't^ DON'T^ ^123^45^ a^//\n"},
    {AFTER(SPLIT(LLAMA4), NO_REGEX), "  x\n \n  y", " ^ x^\n \n^ ^ y"},
    {AFTER(SPLIT("b+"), NO_REGEX), "abbcb", "a^bb^c^b"},
    {AFTER(SPLIT("x*"), NO_REGEX), "a\xC3\xA9xxb", "a^\xC3\xA9^xx^b"},
    {AFTER(SPLIT("(?=b)"), NO_REGEX), "abab", "a^ba^b"},
};

static int join(void *self, const char *piece, size_t n)
{
    char *joined = self;
    size_t used = strlen(joined);
    ck_assert_uint_gt(n, 0);
    ck_assert_uint_lt(used + n + 2, 256);
    if (used)
        joined[used++] = '^';
    memcpy(joined + used, piece, n);
    joined[used + n] = 0;
    return 0;
}

static int stop(void *self, const char *piece, size_t n)
{
    (void)piece;
    (void)n;
    ++*(int *)self;
    return ERR_STOP;
}

static struct pretokenize open_spec(const char *spec)
{
    json_t *v;
    struct pretokenize p;
    ck_assert_msg(json_parse(spec, strlen(spec), "spec", &v) == 0, "%s", err_text());
    ck_assert_msg(pretokenize_init(&p, v, "spec") == 0, "%s", err_text());
    json_decref(v);
    return p;
}

START_TEST(text_is_cut_where_the_library_cuts_it)
{
    const struct cut *c = &cuts[_i];
    char joined[256] = "";
    struct regex_scratch *s;
    struct pretokenize p = open_spec(c->spec);
    ck_assert_int_eq(regex_scratch_new(&s), 0);
    ck_assert_int_eq(pretokenize_run(&p, s, c->text, strlen(c->text), join, joined), 0);
    ck_assert_str_eq(joined, c->pieces);
    regex_scratch_free(s);
    pretokenize_deinit(&p);
    pretokenize_deinit(&p);
}
END_TEST

START_TEST(an_error_of_the_sink_ends_the_run)
{
    int calls = 0;
    struct regex_scratch *s;
    struct pretokenize p = open_spec(AFTER(DIGITS("true"), PLAIN));
    ck_assert_int_eq(regex_scratch_new(&s), 0);
    ck_assert_int_eq(pretokenize_run(&p, s, "a 1 b", 5, stop, &calls), ERR_STOP);
    ck_assert_int_eq(calls, 1);
    regex_scratch_free(s);
    pretokenize_deinit(&p);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("pretokenize");
    TCase *c = tcase_create("pretokenize");
    tcase_add_loop_test(c, text_is_cut_where_the_library_cuts_it, 0, (int)(sizeof cuts / sizeof cuts[0]));
    tcase_add_test(c, an_error_of_the_sink_ends_the_run);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
