/* toy_text: what the tests of tokenizer and chat share: a small tokenizer.json, and reading tests/golden/tokenizer/. */
#ifndef TESTS_TOY_TEXT_H
#define TESTS_TOY_TEXT_H
#include "engine/tokenizer.h"
#include <jansson.h>

/* A tokenizer.json with a token for each of "abcde 1's" and for ab, cd, abcd, " a"; special <|x|> (20) and ordinary
 * <y> (21), longer <y>z (22). `pre` is the value of pre_tokenizer; `model` and `root` are further members, with a
 * comma in front, or "". The caller frees it. */
char *toy_tokenizer_json(const char *pre, const char *model, const char *root);
#define TOY_BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"

/* Ids of text by t, expected as a string like "1 2 3"; fails the test if they differ. */
void toy_expect_ids(const struct tokenizer *t, const char *text, size_t n, int special, const char *expected);

typedef void (*toy_line)(const json_t *line, int number, void *self);
/* Calls use for every line of a JSONL file of the golden directory; returns how many there were, -1: no such file. */
int  toy_each_line(const char *path, toy_line use, void *self);
/* Bytes of the base64 text `key` of line, the caller's. */
char *toy_base64(const json_t *line, const char *key, size_t *n);
/* Compares ids with a JSON array of them and fails the test, naming where, if they differ. */
void toy_same_ids(const json_t *expected, const int *ids, int n, const char *where, int line);
/* Checks all lines of encode.jsonl and decode.jsonl in dir for the tokenizer t called name; returns how many. */
int  toy_golden_encode(const struct tokenizer *t, const char *dir, const char *name);
int  toy_golden_decode(const struct tokenizer *t, const char *dir, const char *name);
#endif
