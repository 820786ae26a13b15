/* Where answers end: stop tokens, and stop strings wherever token borders fall in them. */
#include "engine/err.h"
#include "kernels/philox.h"
#include "spec/stop.h"
#include "tests/expect.h"
#include <stdlib.h>
#include <string.h>

/* Ids: a, b, ab, bba, the two bytes of U+00E9, and a special token. */
enum { A, B, AB, BBA, E9_FIRST, E9_SECOND, END, IDS };
static const char json[] =
    "{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, \"decoder\": {\"type\": "
    "\"ByteLevel\"},"
    "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"bba\": 3, \"\\u00c3\": 4, "
    "\"\\u00a9\": 5},"
    "\"merges\": []},"
    "\"added_tokens\": [{\"id\": 6, \"content\": \"<end>\", \"special\": true, \"normalized\": false}]}";
static struct tokenizer *tokenizer;

static void setup(void)
{
    ck_assert_msg(tokenizer_parse(&tokenizer, json, strlen(json), "toy tokenizer") == 0, "%s", err_text());
}

static void teardown(void)
{
    tokenizer_close(tokenizer);
}

/* Index of the token that ends the answer and how, -1 when none does. */
static int end_of(struct stop *s, const int *tokens, int n, enum finish *how)
{
    stop_begin(s);
    for (int i = 0; i < n; i++) {
        *how = stop_push(s, tokens[i]);
        if (*how != FINISH_NONE)
            return i;
    }
    return -1;
}

static void assert_end(const struct stop_rules *rules, const int *tokens, int n, int at, enum finish how)
{
    struct stop s;
    enum finish found = FINISH_NONE;
    ck_assert_msg(stop_init(&s, rules) == 0, "%s", err_text());
    ck_assert_int_eq(end_of(&s, tokens, n, &found), at);
    ck_assert_int_eq(found, how);
    stop_deinit(&s);
}

START_TEST(no_rules_never_end)
{
    const struct stop_rules rules = {0};
    const int tokens[] = {A, B, END, AB};
    assert_end(&rules, tokens, 4, -1, FINISH_NONE);
}
END_TEST

START_TEST(a_stop_token_ends_where_it_stands)
{
    const int stop[] = {END, BBA};
    const struct stop_rules rules = {.tokens = stop, .n_tokens = 2};
    assert_end(&rules, (const int[]){A, B, END, BBA}, 4, 2, FINISH_STOP_TOKEN);
    assert_end(&rules, (const int[]){BBA}, 1, 0, FINISH_STOP_TOKEN);
    assert_end(&rules, (const int[]){A, B, AB}, 3, -1, FINISH_NONE);
}
END_TEST

START_TEST(a_stop_string_may_cross_tokens)
{
    const char *const strings[] = {"bab"};
    const struct stop_rules rules = {.strings = strings, .n_strings = 1, .tokenizer = tokenizer};
    assert_end(&rules, (const int[]){B, A, A, B, A, A, B, AB}, 8, 7, FINISH_STOP_STRING);
    assert_end(&rules, (const int[]){AB, AB}, 2, 1, FINISH_STOP_STRING);
    assert_end(&rules, (const int[]){BBA, B}, 2, 1, FINISH_STOP_STRING);
    assert_end(&rules, (const int[]){A, BBA, BBA}, 3, 2, FINISH_STOP_STRING);
}
END_TEST

START_TEST(a_stop_string_inside_one_token_is_found)
{
    const char *const strings[] = {"bb", "zzzz"};
    const struct stop_rules rules = {.strings = strings, .n_strings = 2, .tokenizer = tokenizer};
    assert_end(&rules, (const int[]){A, BBA, A}, 3, 1, FINISH_STOP_STRING);
}
END_TEST

START_TEST(a_character_counts_once_all_its_bytes_are_there)
{
    const char *const strings[] = {"a\xC3\xA9"};
    const struct stop_rules rules = {.strings = strings, .n_strings = 1, .tokenizer = tokenizer};
    assert_end(&rules, (const int[]){A, E9_FIRST, E9_SECOND}, 3, 2, FINISH_STOP_STRING);
    assert_end(&rules, (const int[]){A, E9_FIRST, A, E9_SECOND}, 4, -1, FINISH_NONE);
}
END_TEST

START_TEST(a_special_token_spells_nothing)
{
    const char *const strings[] = {"<end>", "ab"};
    const struct stop_rules rules = {.strings = strings, .n_strings = 2, .tokenizer = tokenizer};
    assert_end(&rules, (const int[]){END, A, END, B}, 4, 3, FINISH_STOP_STRING);
}
END_TEST

START_TEST(begin_forgets_the_text_before)
{
    const char *const strings[] = {"ab", "\xEF\xBF\xBD"}; /* U+FFFD: what an unfinished character becomes */
    const struct stop_rules rules = {.strings = strings, .n_strings = 2, .tokenizer = tokenizer};
    struct stop s;
    ck_assert_int_eq(stop_init(&s, &rules), 0);
    stop_begin(&s);
    ck_assert_int_eq(stop_push(&s, A), FINISH_NONE);
    ck_assert_int_eq(stop_push(&s, E9_FIRST), FINISH_NONE);
    stop_begin(&s);
    ck_assert_int_eq(stop_push(&s, B), FINISH_NONE);
    ck_assert_int_eq(stop_push(&s, A), FINISH_NONE);
    ck_assert_int_eq(stop_push(&s, B), FINISH_STOP_STRING);
    stop_deinit(&s);
}
END_TEST

/* The first token after which the whole text so far holds a stop string. */
static int search(const struct stop_rules *rules, const int *tokens, int n)
{
    char text[512];
    int used = 0;
    struct tokenizer_stream stream = {.n_pending = 0};
    for (int i = 0; i < n; i++) {
        used += tokenizer_stream_push(tokenizer, &stream, tokens[i], text + used, (int)sizeof text - used);
        for (int k = 0; k < rules->n_strings; k++)
            if (memmem(text, (size_t)used, rules->strings[k], strlen(rules->strings[k])))
                return i;
    }
    return -1;
}

START_TEST(random_texts_end_where_a_search_of_all_text_ends_them)
{
    static const char *const piece[] = {"a", "b", "\xC3\xA9", "\xEF\xBF\xBD"};
    int found = 0;
    for (uint32_t id = 0; id < 3000; id++) {
        char strings[2][24] = {"", ""};
        const char *const pointers[] = {strings[0], strings[1]};
        int tokens[40];
        for (int k = 0; k < 2; k++)
            for (uint32_t i = 0; i < 2 + (id >> k) % 5; i++) {
                size_t end = strlen(strings[k]);
                const char *p = piece[philox(1, id, i, 70 + (uint32_t)k, 0).v[0] % (id % 3 ? 2 : 4)];
                memcpy(strings[k] + end, p, strlen(p) + 1);
            }
        for (uint32_t i = 0; i < 40; i++)
            tokens[i] = (int)(philox(1, id, i, 72, 0).v[0] % IDS);
        const struct stop_rules rules = {.strings = pointers, .n_strings = 2, .tokenizer = tokenizer};
        struct stop s;
        enum finish how;
        EXPECT(stop_init(&s, &rules) == 0);
        int at = search(&rules, tokens, 40);
        EXPECT(end_of(&s, tokens, 40, &how) == at);
        EXPECT(how == (at < 0 ? FINISH_NONE : FINISH_STOP_STRING));
        found += at >= 0;
        stop_deinit(&s);
    }
    ck_assert(found > 1000 && found < 3000);
}
END_TEST

START_TEST(bad_rules_are_errors_that_say_so)
{
    const char *const empty[] = {"ok", ""}, *const good[] = {"ok"};
    const struct stop_rules a = {.strings = empty, .n_strings = 2, .tokenizer = tokenizer};
    const struct stop_rules b = {.strings = good, .n_strings = 1};
    struct stop s;
    ck_assert_int_eq(stop_init(&s, &a), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "stop string 2"));
    stop_deinit(&s);
    ck_assert_int_eq(stop_init(&s, &b), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "tokenizer"));
    stop_deinit(&s);
}
END_TEST

START_TEST(every_finish_has_a_name_of_its_own)
{
    for (int i = FINISH_NONE; i <= FINISH_INTERRUPTED; i++)
        for (int k = FINISH_NONE; k < i; k++)
            ck_assert_str_ne(finish_name((enum finish)i), finish_name((enum finish)k));
    ck_assert_str_eq(finish_name(FINISH_STOP_TOKEN), "stop");
    ck_assert_str_eq(finish_name(FINISH_INTERRUPTED), "interrupted");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("stop");
    TCase *c = tcase_create("stop");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, no_rules_never_end);
    tcase_add_test(c, a_stop_token_ends_where_it_stands);
    tcase_add_test(c, a_stop_string_may_cross_tokens);
    tcase_add_test(c, a_stop_string_inside_one_token_is_found);
    tcase_add_test(c, a_character_counts_once_all_its_bytes_are_there);
    tcase_add_test(c, a_special_token_spells_nothing);
    tcase_add_test(c, begin_forgets_the_text_before);
    tcase_add_test(c, random_texts_end_where_a_search_of_all_text_ends_them);
    tcase_add_test(c, bad_rules_are_errors_that_say_so);
    tcase_add_test(c, every_finish_has_a_name_of_its_own);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
