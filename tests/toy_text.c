/* toy_text: see the header. */
#include "tests/toy_text.h"
#include "engine/err.h"
#include "engine/json.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char *toy_tokenizer_json(const char *pre, const char *model, const char *root)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    fprintf(f,
            "{\"pre_tokenizer\":%s,\"decoder\":{\"type\":\"ByteLevel\"},\"added_tokens\":["
            "{\"id\":20,\"content\":\"<|x|>\",\"special\":true,\"normalized\":false},"
            "{\"id\":21,\"content\":\"<y>\",\"special\":false,\"normalized\":false},"
            "{\"id\":22,\"content\":\"<y>z\",\"special\":false,\"normalized\":false}],"
            "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"d\":3,\"e\":4,\"\\u0120\":5,"
            "\"1\":6,"
            "\"'\":7,\"s\":8,\"ab\":9,\"cd\":10,\"abcd\":11,\"\\u0120a\":12}"
            ",\"merges\":[\"c d\",[\"a\",\"b\"],\"\\u0120 a\",\"ab cd\"]%s}%s}",
            pre, model, root);
    fclose(f);
    return text;
}

void toy_expect_ids(const struct tokenizer *t, const char *text, size_t n, int special, const char *expected)
{
    int *ids = NULL, n_ids = 0, cap = 0;
    char *found = NULL;
    size_t n_found;
    ck_assert_msg(tokenizer_encode(t, text, n, special, &ids, &n_ids, &cap) == 0, "%s", err_text());
    FILE *f = open_memstream(&found, &n_found);
    for (int i = 0; i < n_ids; i++)
        fprintf(f, "%s%d", i ? " " : "", ids[i]);
    fclose(f);
    ck_assert_str_eq(found, expected);
    free(found);
    free(ids);
}

int toy_each_line(const char *path, toy_line use, void *self)
{
    int number = 0;
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    FILE *f = fopen(path, "rb");
    if (!f)
        return -1;
    while ((n = getline(&line, &cap, f)) > 0) {
        json_t *v;
        number++;
        ck_assert_msg(json_parse(line, (size_t)n, path, &v) == 0, "%s", err_text());
        use(v, number, self);
        json_decref(v);
    }
    free(line);
    fclose(f);
    return number;
}

static unsigned digit_of(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    ck_assert_ptr_nonnull(at);
    return (unsigned)(at - digits);
}

char *toy_base64(const json_t *line, const char *key, size_t *n)
{
    const char *p = json_string_value(json_object_get(line, key));
    ck_assert_ptr_nonnull(p);
    char *out = malloc(strlen(p) + 1);
    unsigned bits = 0, held = 0;
    *n = 0;
    for (; *p && *p != '='; p++) {
        bits = bits << 6 | digit_of(*p);
        held += 6;
        if (held >= 8) {
            held -= 8;
            out[(*n)++] = (char)(bits >> held);
        }
    }
    return out;
}

void toy_same_ids(const json_t *expected, const int *ids, int n, const char *where, int line)
{
    ck_assert_msg(json_is_array(expected), "%s, line %d: no expected ids", where, line);
    ck_assert_msg((int)json_array_size(expected) == n, "%s, line %d: expected %zu ids, found %d", where, line,
                  json_array_size(expected), n);
    for (int i = 0; i < n; i++)
        ck_assert_msg(json_integer_value(json_array_get(expected, (size_t)i)) == ids[i],
                      "%s, line %d, id %d: expected %lld, found %d", where, line, i,
                      (long long)json_integer_value(json_array_get(expected, (size_t)i)), ids[i]);
}

struct golden {
    const struct tokenizer *t;
    const char *name;
    int checked;
};

static void encode_line(const json_t *line, int number, void *self)
{
    struct golden *g = self;
    const json_t *only = json_object_get(line, "special");
    size_t n;
    char *text = toy_base64(line, "b64", &n);
    for (int special = 0; special < 2; special++) {
        int *ids = NULL, n_ids = 0, cap = 0;
        if (only && json_is_true(only) != special)
            continue;
        ck_assert_msg(tokenizer_encode(g->t, text, n, special, &ids, &n_ids, &cap) == 0, "%s", err_text());
        toy_same_ids(json_object_get(line, g->name), ids, n_ids, g->name, number);
        free(ids);
        g->checked++;
    }
    free(text);
}

/* In one go and streamed token by token. */
static void decode_line(const json_t *line, int number, void *self)
{
    struct golden *g = self;
    size_t n, used = 0, i;
    json_t *id;
    if (strcmp(json_string_value(json_object_get(line, "tokenizer")), g->name) != 0)
        return;
    const json_t *list = json_object_get(line, "ids");
    int n_ids = (int)json_array_size(list), room = tokenizer_max_bytes(g->t) + 4;
    int *ids = malloc(((size_t)n_ids + 1) * sizeof *ids);
    char *expected = toy_base64(line, "b64", &n), *streamed = malloc((size_t)room * ((size_t)n_ids + 1));
    struct tokenizer_stream s = {.n_pending = 0};
    json_array_foreach(list, i, id)
    {
        ids[i] = (int)json_integer_value(id);
        used += (size_t)tokenizer_stream_push(g->t, &s, ids[i], streamed + used, room);
    }
    used += (size_t)tokenizer_stream_push(g->t, &s, -1, streamed + used, room);
    char *text = tokenizer_decode(g->t, ids, n_ids);
    ck_assert_msg(used == n && memcmp(streamed, expected, n) == 0, "decode.jsonl, line %d, streamed", number);
    ck_assert_msg(memcmp(text, expected, n) == 0 && text[n] == 0, "decode.jsonl, line %d", number);
    g->checked++;
    free(text);
    free(streamed);
    free(expected);
    free(ids);
}

int toy_golden_encode(const struct tokenizer *t, const char *dir, const char *name)
{
    char path[4096];
    struct golden g = {t, name, 0};
    snprintf(path, sizeof path, "%s/tokenizer/encode.jsonl", dir);
    ck_assert_int_gt(toy_each_line(path, encode_line, &g), 0);
    return g.checked;
}

int toy_golden_decode(const struct tokenizer *t, const char *dir, const char *name)
{
    char path[4096];
    struct golden g = {t, name, 0};
    snprintf(path, sizeof path, "%s/tokenizer/decode.jsonl", dir);
    ck_assert_int_gt(toy_each_line(path, decode_line, &g), 0);
    return g.checked;
}
