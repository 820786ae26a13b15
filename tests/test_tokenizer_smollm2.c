/* test_tokenizer_smollm2: SmolLM2's own tokenizer.json against the library `tokenizers`. Skipped without the
 * model. */
#include "engine/err.h"
#include "engine/tokenizer.h"
#include "tests/toy_text.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char dir[] = SPECBED_MODELS_DIR "/smollm2-135m-instruct";
static struct tokenizer *t;

static void open_smollm2(void)
{
    ck_assert_msg(tokenizer_open(&t, dir) == 0, "%s", err_text());
}

static void close_smollm2(void)
{
    tokenizer_close(t);
}

START_TEST(the_vocabulary_has_the_published_size_and_special_tokens)
{
    ck_assert_int_eq(tokenizer_vocab_size(t), 49152);
    ck_assert_int_eq(tokenizer_id(t, "<|endoftext|>"), 0);
    ck_assert_int_eq(tokenizer_id(t, "<|im_start|>"), 1);
    ck_assert_int_eq(tokenizer_id(t, "<|im_end|>"), 2);
    ck_assert_int_eq(tokenizer_bos(t), -1);
}
END_TEST

START_TEST(published_examples_give_the_published_ids)
{
    static const char *const examples[][2] = {
        {"Hello, we can use", "19556 28 392 416 722"},
        {"The capital of France is", "504 3575 282 4649 314"},
        {"\n", "198"},
        {"Hello world! 123", "19556 905 17 216 33 34 35"},
        {"Caf\xC3\xA9 d\xC3\xA9j\xC3\xA0 vu.", "51 1939 2756 32564 90 16739 386 101 30"},
        {"  multiple   spaces", "216 2701 256 5600"},
    };
    for (size_t i = 0; i < sizeof examples / sizeof examples[0]; i++)
        toy_expect_ids(t, examples[i][0], strlen(examples[i][0]), 1, examples[i][1]);
}
END_TEST

START_TEST(ids_equal_the_reference_library_on_every_golden_text)
{
    ck_assert_int_ge(toy_golden_encode(t, SPECBED_GOLDEN_DIR, "smollm2"), 2000);
}
END_TEST

START_TEST(decoded_text_equals_the_reference_library_on_every_golden_list)
{
    ck_assert_int_ge(toy_golden_decode(t, SPECBED_GOLDEN_DIR, "smollm2"), 200);
}
END_TEST

/* What they merge to is the golden files' business; here the size is. */
START_TEST(a_run_of_100_000_letters_or_spaces_comes_back)
{
    enum { N = 100000 };
    static const char runs[] = "a \n.";
    char *text = malloc(N);
    for (const char *c = runs; *c; c++) {
        int *ids = NULL, n_ids = 0, cap = 0;
        memset(text, *c, N);
        ck_assert_int_eq(tokenizer_encode(t, text, N, 0, &ids, &n_ids, &cap), 0);
        char *back = tokenizer_decode(t, ids, n_ids);
        ck_assert_uint_eq(strlen(back), N);
        ck_assert(memcmp(back, text, N) == 0);
        free(back);
        free(ids);
    }
    free(text);
}
END_TEST

int main(void)
{
    if (access(dir, F_OK) != 0) {
        printf("skipped: no directory %s\n", dir);
        return 77;
    }
    Suite *s = suite_create("tokenizer_smollm2");
    TCase *c = tcase_create("smollm2");
    tcase_add_unchecked_fixture(c, open_smollm2, close_smollm2);
    tcase_add_test(c, the_vocabulary_has_the_published_size_and_special_tokens);
    tcase_add_test(c, published_examples_give_the_published_ids);
    tcase_add_test(c, ids_equal_the_reference_library_on_every_golden_text);
    tcase_add_test(c, decoded_text_equals_the_reference_library_on_every_golden_list);
    tcase_add_test(c, a_run_of_100_000_letters_or_spaces_comes_back);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
