/* test_tokenizer: a toy tokenizer whose ids can be worked out by hand, the refusals, and two tokenizers
 * shaped like Llama 3's and Llama 4's against the library `tokenizers`. */
#include "engine/tokenizer.h"
#include "engine/err.h"
#include "tests/toy_text.h"
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct tokenizer *parse(char *json)
{
    struct tokenizer *t = NULL;
    ck_assert_msg(tokenizer_parse(&t, json, strlen(json), "toy") == 0, "%s", err_text());
    free(json);
    return t;
}

static struct tokenizer *toy(void)
{
    return parse(toy_tokenizer_json(TOY_BYTE_LEVEL, "", ""));
}

static void expect(const struct tokenizer *t, const char *text, int special, const char *ids)
{
    toy_expect_ids(t, text, strlen(text), special, ids);
}

/* Ranks: c d, a b, " " a, ab cd. */
START_TEST(pairs_merge_by_rank_and_then_from_the_left)
{
    struct tokenizer *t = toy();
    expect(t, "abcd", 0, "11");
    expect(t, "cdab", 0, "10 9");
    expect(t, "aab", 0, "0 9");
    expect(t, " ab", 0, "5 9");
    expect(t, " a", 0, "12");
    expect(t, "", 0, "");
    tokenizer_close(t);
}
END_TEST

START_TEST(a_byte_without_a_token_disappears_and_its_neighbours_merge)
{
    struct tokenizer *t = toy();
    expect(t, "axb", 0, "9");
    expect(t, "xyz", 0, "");
    tokenizer_close(t);
}
END_TEST

START_TEST(a_byte_without_a_token_becomes_the_unknown_token_where_there_is_one)
{
    struct tokenizer *t = parse(toy_tokenizer_json(TOY_BYTE_LEVEL, ",\"unk_token\":\"e\"", ""));
    expect(t, "axb", 0, "0 4 1");
    tokenizer_close(t);
}
END_TEST

/* U+FFFD is three bytes, none of which has a token: three times the unknown token. */
START_TEST(invalid_utf8_counts_as_one_replacement_for_each_invalid_part)
{
    struct tokenizer *t = parse(toy_tokenizer_json(TOY_BYTE_LEVEL, ",\"unk_token\":\"e\"", ""));
    expect(t, "a\xFF", 0, "0 4 4 4");
    expect(t, "\xF0\x9F\x98", 0, "4 4 4");
    expect(t, "\xC3(", 0, "4 4 4 4");
    tokenizer_close(t);
}
END_TEST

START_TEST(special_tokens_are_found_only_on_request_and_others_always)
{
    struct tokenizer *t = toy();
    expect(t, "a<|x|>b", 1, "0 20 1");
    expect(t, "a<|x|>b", 0, "0 1");
    expect(t, "a<y>b", 0, "0 21 1");
    expect(t, "a<y>b", 1, "0 21 1");
    tokenizer_close(t);
}
END_TEST

START_TEST(the_longest_added_token_at_the_first_place_counts)
{
    struct tokenizer *t = toy();
    expect(t, "a<y>zb", 1, "0 22 1");
    expect(t, "<y<y>a", 1, "21 0");
    expect(t, "<y><y>z<|x|>", 1, "21 22 20");
    tokenizer_close(t);
}
END_TEST

#define TINY(model)                                                                                          \
    "{\"pre_tokenizer\":" TOY_BYTE_LEVEL                                                                     \
    ",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\"," model "}}"

START_TEST(ignore_merges_takes_a_piece_that_is_a_token_whole)
{
    static const char vocab[] = "\"merges\":[],\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"abc\":3}";
    struct tokenizer *t =
        parse(strdup(TINY("\"ignore_merges\":true,\"merges\":[],\"vocab\":{\"a\":0,\"b\":1,\"c\":2,"
                          "\"abc\":3}")));
    expect(t, "abc", 0, "3");
    expect(t, "ab", 0, "0 1");
    tokenizer_close(t);
    char json[512];
    snprintf(json, sizeof json, TINY("%s"), vocab);
    t = parse(strdup(json));
    expect(t, "abc", 0, "0 1 2");
    tokenizer_close(t);
}
END_TEST

START_TEST(encoding_appends_and_leaves_what_was_there)
{
    struct tokenizer *t = toy();
    int *ids = NULL, n = 0, cap = 0;
    for (int i = 0; i < 100; i++)
        ck_assert_int_eq(tokenizer_encode(t, "abcde", 5, 0, &ids, &n, &cap), 0);
    ck_assert_int_eq(n, 200);
    for (int i = 0; i < n; i++)
        ck_assert_int_eq(ids[i], i % 2 ? 4 : 11);
    ck_assert_int_ge(cap, n);
    free(ids);
    tokenizer_close(t);
}
END_TEST

START_TEST(tokens_are_found_by_text_and_by_id)
{
    struct tokenizer *t = toy();
    size_t n;
    ck_assert_int_eq(tokenizer_vocab_size(t), 23);
    ck_assert_int_eq(tokenizer_id(t, " a"), 12);
    ck_assert_int_eq(tokenizer_id(t, "<|x|>"), 20);
    ck_assert_int_eq(tokenizer_id(t, "xyz"), -1);
    ck_assert_int_eq(tokenizer_id(t, ""), -1);
    ck_assert(memcmp(tokenizer_bytes(t, 12, &n), " a", 2) == 0);
    ck_assert_uint_eq(n, 2);
    ck_assert(memcmp(tokenizer_bytes(t, 20, &n), "<|x|>", 5) == 0);
    static const int none[] = {-1, 13, 19, 23, 1 << 30};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        tokenizer_bytes(t, none[i], &n);
        ck_assert_uint_eq(n, 0);
        ck_assert_int_eq(tokenizer_is_special(t, none[i]), 0);
    }
    ck_assert_int_eq(tokenizer_is_special(t, 20), 1);
    ck_assert_int_eq(tokenizer_is_special(t, 21), 0);
    tokenizer_close(t);
    tokenizer_close(NULL);
}
END_TEST

#define TEMPLATE                                                                                             \
    "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<|x|>\"}},{\"Sequence\":{"     \
    "\"id\":"                                                                                                \
    "\"A\"}}],\"special_tokens\":{\"<|x|>\":{\"ids\":[20]}}}"

START_TEST(begin_of_text_comes_from_the_post_processor)
{
    struct tokenizer *t = toy();
    ck_assert_int_eq(tokenizer_bos(t), -1);
    tokenizer_close(t);
    t = parse(toy_tokenizer_json(TOY_BYTE_LEVEL, "", ",\"post_processor\":" TEMPLATE));
    ck_assert_int_eq(tokenizer_bos(t), 20);
    tokenizer_close(t);
    t = parse(toy_tokenizer_json(
        TOY_BYTE_LEVEL, "",
        ",\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"}"
        "," TEMPLATE "]}"));
    ck_assert_int_eq(tokenizer_bos(t), 20);
    tokenizer_close(t);
}
END_TEST

/* Tokens of single bytes: 0 C3, 1 A9, 2 E2, 3 82, 4 AC, 5 a. C3 A9 is e acute, E2 82 AC the euro sign. */
static struct tokenizer *bytes_tokenizer(void)
{
    return parse(strdup(
        "{\"pre_tokenizer\":" TOY_BYTE_LEVEL ",\"decoder\":{\"type\":\"ByteLevel\"},\"added_tokens\":[{"
        "\"id\":6,\"content\":\"<s>\",\"special\":true}],\"model\":{\"type\":\"BPE\",\"merges\":[],"
        "\"vocab\":{\"\\u00c3\":0,\"\\u00a9\":1,\"\\u00e2\":2,\"\\u0124\":3,\"\\u00ac\":4,\"a\":5}}}"));
}

static void push(const struct tokenizer *t, struct tokenizer_stream *s, int id, const char *expected)
{
    char buf[16];
    int n = tokenizer_stream_push(t, s, id, buf, sizeof buf);
    ck_assert_int_eq(n, (int)strlen(expected));
    ck_assert(memcmp(buf, expected, (size_t)n) == 0);
}

START_TEST(streaming_holds_back_an_unfinished_character)
{
    struct tokenizer *t = bytes_tokenizer();
    struct tokenizer_stream s = {.n_pending = 0};
    push(t, &s, 0, "");
    push(t, &s, 6, "");
    push(t, &s, 1, "\xC3\xA9");
    push(t, &s, 2, "");
    push(t, &s, 3, "");
    push(t, &s, 4, "\xE2\x82\xAC");
    push(t, &s, 5, "a");
    push(t, &s, -1, "");
    tokenizer_close(t);
}
END_TEST

START_TEST(streaming_replaces_what_cannot_become_a_character)
{
    struct tokenizer *t = bytes_tokenizer();
    struct tokenizer_stream s = {.n_pending = 0};
    push(t, &s, 1, "\xEF\xBF\xBD");
    push(t, &s, 2, "");
    push(t, &s, 3, "");
    push(t, &s, 5,
         "\xEF\xBF\xBD"
         "a");
    push(t, &s, 2, "");
    push(t, &s, 0, "\xEF\xBF\xBD");
    push(t, &s, -1, "\xEF\xBF\xBD");
    push(t, &s, -1, "");
    tokenizer_close(t);
}
END_TEST

START_TEST(decoding_skips_special_tokens_and_ids_without_a_token)
{
    struct tokenizer *t = toy();
    static const int ids[] = {11, 20, 12, 15, -1, 21, 4};
    char *text = tokenizer_decode(t, ids, 7);
    ck_assert_str_eq(text, "abcd a<y>e");
    free(text);
    text = tokenizer_decode(t, NULL, 0);
    ck_assert_str_eq(text, "");
    free(text);
    tokenizer_close(t);
}
END_TEST

#define SPLIT(members)                                                                                       \
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\"," members "}," TOY_BYTE_LEVEL "]}"
#define VOCAB "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}"

/* A whole tokenizer.json, what it must be called, and part of the sentence. */
static const struct refusal {
    const char *json;
    int code;
    const char *sentence;
} refusals[] = {
    {"", ERR_FORMAT, "toy: line"},
    {"{}", ERR_FORMAT, "toy: 'model': expected an object, found nothing"},
    {"[1]", ERR_FORMAT, "'model': expected an object"},
    {TINY("\"merges\":[]"), ERR_FORMAT, "'model.vocab': expected an object, found nothing"},
    {TINY(VOCAB), ERR_FORMAT, "'model.merges': expected an array, found nothing"},
    {TINY(VOCAB ",\"merges\":[\"a q\"]"), ERR_FORMAT, "'model.merges', element 0: expected two tokens"},
    {TINY(VOCAB ",\"merges\":[\"b a\"]"), ERR_FORMAT, "found 'b' and 'a'"},
    {TINY(VOCAB ",\"merges\":[\"ab\"]"), ERR_FORMAT, "expected \"a b\" or [\"a\", \"b\"], found ab"},
    {TINY(VOCAB ",\"merges\":[7]"), ERR_FORMAT, "found an integer"},
    {TINY(VOCAB ",\"merges\":[[\"a\",\"b\",\"a\"]]"), ERR_FORMAT, "found an array"},
    {TINY(VOCAB ",\"merges\":[[\"\\u4e00\",\"b\"]]"), ERR_LIMIT, "expected the byte-level alphabet"},
    {TINY("\"merges\":[],\"vocab\":{\"a\":0,\"b\":0}"), ERR_FORMAT,
     "expected every id once, found 0 for 'b'"},
    {TINY("\"merges\":[],\"vocab\":{\"a\":-1}"), ERR_LIMIT, "token 'a': expected an id from 0 to"},
    {TINY("\"merges\":[],\"vocab\":{\"a\":2000000000}"), ERR_LIMIT, "found 2000000000"},
    {TINY("\"merges\":[],\"vocab\":{\"a\":\"0\"}"), ERR_FORMAT,
     "token 'a': expected an integer, found a string"},
    {TINY(VOCAB ",\"merges\":[],\"dropout\":0.1"), ERR_LIMIT, "'dropout': expected null"},
    {TINY(VOCAB ",\"merges\":[],\"byte_fallback\":true"), ERR_LIMIT, "'byte_fallback': expected null"},
    {TINY(VOCAB ",\"merges\":[],\"end_of_word_suffix\":\"</w>\""), ERR_LIMIT, "'end_of_word_suffix'"},
    {TINY(VOCAB ",\"merges\":[],\"unk_token\":\"q\""), ERR_FORMAT, "'model.unk_token'"},
    {"{\"model\":{\"type\":\"Unigram\"},\"pre_tokenizer\":" TOY_BYTE_LEVEL
     ",\"decoder\":{\"type\":\"ByteLevel\"}}",
     ERR_LIMIT, "'model.type': expected BPE (byte-level), found 'Unigram'"},
    {"{\"model\":{},\"normalizer\":{\"type\":\"NFC\"}}", ERR_LIMIT, "'normalizer': expected null"},
    {"{\"model\":{}}", ERR_FORMAT, "'pre_tokenizer'"},
    {"{\"model\":{},\"pre_tokenizer\":" TOY_BYTE_LEVEL ",\"decoder\":{\"type\":\"Metaspace\"}}", ERR_LIMIT,
     "'type': expected ByteLevel, found 'Metaspace'"},
};

START_TEST(what_is_malformed_or_not_built_in_is_refused_by_name)
{
    const struct refusal *r = &refusals[_i];
    struct tokenizer *t = NULL;
    err_clear();
    ck_assert_int_eq(tokenizer_parse(&t, r->json, strlen(r->json), "toy"), r->code);
    ck_assert_ptr_null(t);
    ck_assert_msg(strstr(err_text(), r->sentence) != NULL, "expected '%s' in:\n%s", r->sentence, err_text());
}
END_TEST

/* Members of the toy tokenizer that are refused: pre_tokenizer, more of the root, and part of the sentence.
 */
static const char *const toy_refusals[][3] = {
    {"{\"type\":\"Metaspace\"}", "", "expected ByteLevel at the end and only there, found 'Metaspace'"},
    {"{\"type\":\"Sequence\",\"pretokenizers\":[]}", "",
     "expected an array of 1 to 8 elements, found an array of 0"},
    {"{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Whitespace\"}," TOY_BYTE_LEVEL "]}", "",
     "expected Split, Digits or ByteLevel, found 'Whitespace'"},
    {SPLIT("\"behavior\":\"Removed\",\"pattern\":{\"Regex\":\"a\"}"), "",
     "expected Isolated, found 'Removed'"},
    {SPLIT("\"behavior\":\"Isolated\",\"invert\":true,\"pattern\":{\"Regex\":\"a\"}"), "",
     "expected false, found true"},
    {SPLIT("\"behavior\":\"Isolated\",\"pattern\":{\"String\":\"a\"}"), "",
     "expected an object with a string 'Regex'"},
    {SPLIT("\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"\\\\bx\"}"), "", "found '\\b'"},
    {TOY_BYTE_LEVEL, ",\"post_processor\":{\"type\":\"BertProcessing\"}", "found 'BertProcessing'"},
    {TOY_BYTE_LEVEL, ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}",
     "expected the text alone"},
    {TOY_BYTE_LEVEL, ",\"added_tokens\":7", "duplicate"},
};

START_TEST(parts_that_would_change_the_ids_are_refused_by_name)
{
    struct tokenizer *t = NULL;
    char *json = toy_tokenizer_json(toy_refusals[_i][0], "", toy_refusals[_i][1]);
    ck_assert_int_ne(tokenizer_parse(&t, json, strlen(json), "toy"), 0);
    ck_assert_msg(strstr(err_text(), toy_refusals[_i][2]) != NULL, "expected '%s' in:\n%s",
                  toy_refusals[_i][2], err_text());
    free(json);
}
END_TEST

/* An added token beside {"a": 0}, and part of the sentence. */
static const char *const added_refusals[][2] = {
    {"{\"id\":0,\"content\":\"x\"}", "expected an id of its own, found 0"},
    {"{\"id\":5,\"content\":\"a\"}", "expected the id that 'model.vocab' has, 0; found 5"},
    {"{\"id\":5,\"content\":\"\"}", "'content': expected 1 to"},
    {"{\"id\":5,\"content\":\"x\",\"lstrip\":true}", "'lstrip': expected null"},
    {"{\"id\":5,\"content\":\"x\",\"single_word\":true}", "'single_word': expected null"},
    {"{\"id\":5,\"content\":\"x\"},{\"id\":6,\"content\":\"x\"}",
     "expected every text once, found 'x' twice"},
    {"{\"id\":5,\"content\":\"x\",\"normalized\":true},{\"id\":6,\"content\":\"x\",\"normalized\":false}",
     "'x' twice"},
    {"{\"id\":99999999,\"content\":\"x\"}", "'id': expected an integer from 0 to"},
    {"{\"content\":\"x\"}", "'id': expected an integer, found nothing"},
    {"3", "expected an object"},
};

START_TEST(added_tokens_that_contradict_the_vocabulary_are_refused)
{
    struct tokenizer *t = NULL;
    char json[1024];
    snprintf(json, sizeof json,
             "{\"pre_tokenizer\":" TOY_BYTE_LEVEL
             ",\"decoder\":{\"type\":\"ByteLevel\"},\"added_tokens\":[%s],"
             "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}",
             added_refusals[_i][0]);
    ck_assert_int_ne(tokenizer_parse(&t, json, strlen(json), "toy"), 0);
    ck_assert_msg(strstr(err_text(), added_refusals[_i][1]) != NULL, "expected '%s' in:\n%s",
                  added_refusals[_i][1], err_text());
}
END_TEST

START_TEST(a_missing_directory_is_named)
{
    struct tokenizer *t = NULL;
    ck_assert_int_eq(tokenizer_open(&t, "/nowhere"), ERR_IO);
    ck_assert_ptr_nonnull(strstr(err_text(), "/nowhere/tokenizer.json: cannot open"));
}
END_TEST

/* Longer than the stack could recurse, and n * n steps would not end. */
START_TEST(a_run_of_a_million_bytes_merges_completely)
{
    enum { N = 1000000 };
    struct tokenizer *t = toy();
    char *text = malloc(N);
    int *ids = NULL, n = 0, cap = 0;
    for (int i = 0; i < N; i++)
        text[i] = "abcd"[i % 4];
    ck_assert_int_eq(tokenizer_encode(t, text, N, 0, &ids, &n, &cap), 0);
    ck_assert_int_eq(n, N / 4);
    int others = 0;
    for (int i = 0; i < n; i++)
        others += ids[i] != 11;
    ck_assert_int_eq(others, 0);
    free(ids);
    free(text);
    tokenizer_close(t);
}
END_TEST

static void *encode_often(void *shared)
{
    const struct tokenizer *t = shared;
    int wrong = 0;
    for (int k = 0; k < 200; k++) {
        int *ids = NULL, n = 0, cap = 0;
        wrong += tokenizer_encode(t, "abcd a <|x|>", 12, 1, &ids, &n, &cap) != 0;
        wrong += n != 4 || ids[0] != 11 || ids[1] != 12 || ids[2] != 5 || ids[3] != 20;
        free(ids);
    }
    return wrong ? shared : NULL;
}

START_TEST(threads_may_share_a_tokenizer)
{
    struct tokenizer *t = toy();
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, encode_often, t), 0);
    for (int i = 0; i < 4; i++) {
        void *wrong = t;
        ck_assert_int_eq(pthread_join(threads[i], &wrong), 0);
        ck_assert_ptr_null(wrong);
    }
    tokenizer_close(t);
}
END_TEST

static const char *const golden[] = {"llama3", "llama4"};

START_TEST(ids_and_text_equal_the_reference_library_on_every_golden_line)
{
    char dir[4096];
    struct tokenizer *t = NULL;
    snprintf(dir, sizeof dir, "%s/tokenizer/%s", SPECBED_GOLDEN_DIR, golden[_i]);
    ck_assert_msg(tokenizer_open(&t, dir) == 0, "%s", err_text());
    ck_assert_int_ge(tokenizer_bos(t), 0);
    ck_assert_int_ge(toy_golden_encode(t, SPECBED_GOLDEN_DIR, golden[_i]), 2000);
    ck_assert_int_ge(toy_golden_decode(t, SPECBED_GOLDEN_DIR, golden[_i]), 200);
    tokenizer_close(t);
}
END_TEST

static TCase *encode_case(void)
{
    TCase *c = tcase_create("encode");
    tcase_add_test(c, pairs_merge_by_rank_and_then_from_the_left);
    tcase_add_test(c, a_byte_without_a_token_disappears_and_its_neighbours_merge);
    tcase_add_test(c, a_byte_without_a_token_becomes_the_unknown_token_where_there_is_one);
    tcase_add_test(c, invalid_utf8_counts_as_one_replacement_for_each_invalid_part);
    tcase_add_test(c, special_tokens_are_found_only_on_request_and_others_always);
    tcase_add_test(c, the_longest_added_token_at_the_first_place_counts);
    tcase_add_test(c, ignore_merges_takes_a_piece_that_is_a_token_whole);
    tcase_add_test(c, encoding_appends_and_leaves_what_was_there);
    tcase_add_test(c, a_run_of_a_million_bytes_merges_completely);
    tcase_add_test(c, threads_may_share_a_tokenizer);
    tcase_add_test(c, tokens_are_found_by_text_and_by_id);
    tcase_add_test(c, begin_of_text_comes_from_the_post_processor);
    tcase_add_loop_test(c, ids_and_text_equal_the_reference_library_on_every_golden_line, 0, 2);
    return c;
}

static TCase *decode_case(void)
{
    TCase *c = tcase_create("decode");
    tcase_add_test(c, streaming_holds_back_an_unfinished_character);
    tcase_add_test(c, streaming_replaces_what_cannot_become_a_character);
    tcase_add_test(c, decoding_skips_special_tokens_and_ids_without_a_token);
    return c;
}

static TCase *refuse_case(void)
{
    TCase *c = tcase_create("refuse");
    tcase_add_loop_test(c, what_is_malformed_or_not_built_in_is_refused_by_name, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_loop_test(c, parts_that_would_change_the_ids_are_refused_by_name, 0,
                        (int)(sizeof toy_refusals / sizeof toy_refusals[0]));
    tcase_add_loop_test(c, added_tokens_that_contradict_the_vocabulary_are_refused, 0,
                        (int)(sizeof added_refusals / sizeof added_refusals[0]));
    tcase_add_test(c, a_missing_directory_is_named);
    return c;
}

int main(void)
{
    Suite *s = suite_create("tokenizer");
    suite_add_tcase(s, encode_case());
    suite_add_tcase(s, decode_case());
    suite_add_tcase(s, refuse_case());
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
