/* tokenizer_load: reads a tokenizer.json. Whatever would change an id and is not built in is refused by its
 * name. */
#include "engine/err.h"
#include "engine/json.h"
#include "engine/tokenizer_parts.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ID_MAX = 1 << 22, ADDED_MAX_BYTES = 1024 };

/* A member that must be missing, null, false, 0 or "": nothing that would do something. */
static int expect_off(const json_t *obj, const char *key, const char *what)
{
    const json_t *v = json_object_get(obj, key);
    if (!v || json_is_null(v) || json_is_false(v) || (json_is_number(v) && json_number_value(v) == 0) ||
        (json_is_string(v) && json_string_length(v) == 0))
        return 0;
    FAIL(ERR_LIMIT, "%s: '%s': expected null, because it is not supported; found %s", what, key,
         json_type_name(v));
}

/* Size of the vocabulary and of its texts, the ids checked to lie in range. */
struct census {
    int size; /* highest id + 1 */
    size_t n_tokens, n_bytes;
};

static int count_token(struct census *c, const char *text, size_t n, json_int_t id, const char *what)
{
    if (id < 0 || id >= ID_MAX)
        FAIL(ERR_LIMIT, "%s: token '%.64s': expected an id from 0 to %d, found %lld", what, text, ID_MAX - 1,
             (long long)id);
    if (n > INT_MAX / 8)
        FAIL(ERR_LIMIT, "%s: token %lld: expected at most %d bytes, found %zu", what, (long long)id,
             INT_MAX / 8, n);
    if (id >= c->size)
        c->size = (int)id + 1;
    c->n_tokens++;
    c->n_bytes += n;
    return 0;
}

static int take_census(struct census *c, json_t *vocab, const json_t *added, const char *what)
{
    const char *text;
    json_t *id, *token;
    size_t i;
    json_object_foreach(vocab, text, id)
    {
        if (!json_is_integer(id))
            FAIL(ERR_FORMAT, "%s: 'model.vocab': token '%.64s': expected an integer, found %s", what, text,
                 json_type_name(id));
        TRY(count_token(c, text, strlen(text), json_integer_value(id), what));
    }
    json_array_foreach(added, i, token)
    {
        long value;
        const char *content;
        TRY_CTX(json_get_int(token, "id", what, 0, ID_MAX - 1, NULL, &value),
                "%s: 'added_tokens', element %zu", what, i);
        TRY_CTX(json_get_string(token, "content", what, NULL, &content), "%s: 'added_tokens', element %zu",
                what, i);
        TRY(count_token(c, content, strlen(content), value, what));
    }
    return 0;
}

/* Into t->vocab: all of model.vocab, then the added tokens that are not in it. */
static int load_vocab(struct tokenizer *t, json_t *vocab, const char *what)
{
    const char *text;
    json_t *value;
    json_object_foreach(vocab, text, value)
    {
        int id = (int)json_integer_value(value);
        if (t->vocab.tokens[id].bytes)
            FAIL(ERR_FORMAT,
                 "%s: 'model.vocab': expected every id once, found %d for '%.64s' and another token", what,
                 id, text);
        vocab_put(&t->vocab, id, text, strlen(text), 1);
    }
    for (int b = 0; b < 256; b++) {
        char byte = (char)b;
        t->byte_id[b] = vocab_find(&t->vocab, &byte, 1);
    }
    return 0;
}

static int load_unknown(struct tokenizer *t, const json_t *model, const char *what)
{
    const json_t *unk = json_object_get(model, "unk_token");
    if (!unk || json_is_null(unk))
        return 0;
    const json_t *id =
        json_is_string(unk) ? json_object_get(json_object_get(model, "vocab"), json_string_value(unk)) : NULL;
    if (!id)
        FAIL(ERR_FORMAT, "%s: 'model.unk_token': expected null or a token of 'model.vocab', found %s", what,
             json_type_name(unk));
    for (int b = 0; b < 256; b++)
        if (t->byte_id[b] < 0)
            t->byte_id[b] = (int)json_integer_value(id);
    return 0;
}

/* "a b" or ["a", "b"] as its two halves. */
static int split_merge(const json_t *merge, size_t rank, const char *what, const char *half[2], size_t n[2])
{
    const json_t *a = json_array_get(merge, 0), *b = json_array_get(merge, 1);
    if (json_is_string(a) && json_is_string(b) && json_array_size(merge) == 2) {
        half[0] = json_string_value(a);
        n[0] = json_string_length(a);
        half[1] = json_string_value(b);
        n[1] = json_string_length(b);
        return 0;
    }
    const char *text = json_string_value(merge), *space = text ? strchr(text, ' ') : NULL;
    if (!space || strchr(space + 1, ' '))
        FAIL(ERR_FORMAT, "%s: 'model.merges', element %zu: expected \"a b\" or [\"a\", \"b\"], found %s%.64s",
             what, rank, text ? "" : json_type_name(merge), text ? text : "");
    half[0] = text;
    n[0] = (size_t)(space - text);
    half[1] = space + 1;
    n[1] = strlen(space + 1);
    return 0;
}

/* buf has room for the bytes of both halves: 2 * longest spelling. */
static int add_merge(struct tokenizer *t, const json_t *merge, size_t rank, const char *what, char *buf,
                     size_t cap)
{
    const char *half[2] = {NULL, NULL};
    size_t n[2] = {0, 0};
    int ids[2], used[2];
    TRY(split_merge(merge, rank, what, half, n));
    if (n[0] + n[1] > cap)
        FAIL(ERR_FORMAT,
             "%s: 'model.merges', element %zu: expected tokens of 'model.vocab', found longer text", what,
             rank);
    used[0] = vocab_unspell(half[0], n[0], buf);
    used[1] = used[0] < 0 ? -1 : vocab_unspell(half[1], n[1], buf + used[0]);
    if (used[1] < 0)
        FAIL(ERR_LIMIT, "%s: 'model.merges', element %zu: expected the byte-level alphabet, found '%.*s'",
             what, rank, n[0] + n[1] < 64 ? (int)(n[0] + n[1]) + 1 : 64, half[0]);
    ids[0] = vocab_find(&t->vocab, buf, (size_t)used[0]);
    ids[1] = vocab_find(&t->vocab, buf + used[0], (size_t)used[1]);
    int id = vocab_find(&t->vocab, buf, (size_t)(used[0] + used[1]));
    if (ids[0] < 0 || ids[1] < 0 || id < 0 || !used[0] || !used[1])
        FAIL(ERR_FORMAT,
             "%s: 'model.merges', element %zu: expected two tokens of 'model.vocab' that join to a third, "
             "found '%.*s' and '%.*s'",
             what, rank, n[0] < 64 ? (int)n[0] : 64, half[0], n[1] < 64 ? (int)n[1] : 64, half[1]);
    bpe_add(&t->bpe, ids[0], ids[1], id, (uint32_t)rank);
    return 0;
}

static int load_merges(struct tokenizer *t, const json_t *merges, const char *what)
{
    int rc = 0;
    size_t i, cap = 4 * (size_t)t->vocab.longest + 4;
    json_t *merge;
    char *buf = malloc(cap);
    if (!buf) {
        rc = ERR_SET(ERR_MEMORY, "%s: out of memory", what);
        goto out;
    }
    rc = bpe_init(&t->bpe, json_array_size(merges));
    if (rc)
        goto out;
    json_array_foreach(merges, i, merge)
    {
        rc = add_merge(t, merge, i, what, buf, cap);
        if (rc)
            goto out;
    }
out:
    free(buf);
    return rc;
}

static int load_model(struct tokenizer *t, const json_t *model, const json_t *added, const char *what)
{
    static const char *const off[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix",
                                      "fuse_unk", "byte_fallback"};
    static const int no = 0;
    const char *type;
    TRY(json_get_string(model, "type", what, NULL, &type));
    if (strcmp(type, "BPE") != 0)
        FAIL(ERR_LIMIT, "%s: 'model.type': expected BPE (byte-level), found '%.64s'", what, type);
    for (size_t i = 0; i < sizeof off / sizeof off[0]; i++)
        TRY_CTX(expect_off(model, off[i], what), "%s: 'model'", what);
    TRY(json_get_bool(model, "ignore_merges", what, &no, &t->ignore_merges));
    json_t *vocab = json_object_get(model, "vocab"), *merges = json_object_get(model, "merges");
    if (!json_is_object(vocab))
        FAIL(ERR_FORMAT, "%s: 'model.vocab': expected an object, found %s", what, json_type_name(vocab));
    if (!json_is_array(merges))
        FAIL(ERR_FORMAT, "%s: 'model.merges': expected an array, found %s", what, json_type_name(merges));
    struct census c = {0, 0, 0};
    TRY(take_census(&c, vocab, added, what));
    TRY(vocab_init(&t->vocab, c.size, c.n_tokens, c.n_bytes));
    TRY(load_vocab(t, vocab, what));
    TRY(load_unknown(t, model, what));
    return load_merges(t, merges, what);
}

/* An added token that is in model.vocab has that id there; any other needs a free one. */
static int add_added(struct tokenizer *t, const json_t *token, const json_t *vocab, const char *what)
{
    static const char *const off[] = {"single_word", "lstrip", "rstrip"};
    static const int no = 0, yes = 1;
    int special, normalized;
    long id;
    const char *text;
    for (size_t i = 0; i < sizeof off / sizeof off[0]; i++)
        TRY(expect_off(token, off[i], what));
    TRY(json_get_int(token, "id", what, 0, ID_MAX - 1, NULL, &id));
    TRY(json_get_string(token, "content", what, NULL, &text));
    TRY(json_get_bool(token, "special", what, &no, &special));
    TRY(json_get_bool(token, "normalized", what, special ? &no : &yes, &normalized));
    size_t n = strlen(text);
    if (n < 1 || n > ADDED_MAX_BYTES)
        FAIL(ERR_LIMIT, "%s: 'content': expected 1 to %d bytes, found %zu", what, ADDED_MAX_BYTES, n);
    const json_t *known = json_object_get(vocab, text);
    if (known && json_integer_value(known) != id)
        FAIL(ERR_FORMAT, "%s: '%s': expected the id that 'model.vocab' has, %lld; found %ld", what, text,
             (long long)json_integer_value(known), id);
    if (!known && t->vocab.tokens[id].bytes)
        FAIL(ERR_FORMAT, "%s: '%s': expected an id of its own, found %ld, another token's", what, text, id);
    if (!known && special)
        vocab_put_verbatim(&t->vocab, (int)id, text, n);
    else if (!known)
        vocab_put(&t->vocab, (int)id, text, n, 0);
    t->vocab.tokens[id].special = special;
    return added_tokens_put(&t->added[normalized], text, (int)id, special);
}

static int load_added(struct tokenizer *t, const json_t *added, const json_t *vocab, const char *what)
{
    size_t i;
    json_t *token;
    int n = (int)json_array_size(added);
    for (int pass = 0; pass < 2; pass++)
        TRY(added_tokens_init(&t->added[pass], n));
    json_array_foreach(added, i, token)
        TRY_CTX(add_added(t, token, vocab, what), "%s: 'added_tokens', element %zu", what, i);
    for (int pass = 0; pass < 2; pass++) {
        int twice = added_tokens_seal(&t->added[pass]);
        if (twice >= 0)
            FAIL(ERR_FORMAT, "%s: 'added_tokens': expected every text once, found '%s' twice", what,
                 t->added[pass].tokens[twice].text);
    }
    for (int k = 0; k < t->added[0].n; k++) {
        const struct added_token *a = &t->added[0].tokens[k];
        if (added_tokens_find(&t->added[1], a->text, (size_t)a->n))
            FAIL(ERR_FORMAT, "%s: 'added_tokens': expected every text once, found '%s' twice", what, a->text);
    }
    return 0;
}

/* TemplateProcessing: "single" is [begin-of-text,] text. Its special_tokens say which id the name has. */
static int load_template(struct tokenizer *t, const json_t *spec, const char *what)
{
    const json_t *single = json_object_get(spec, "single");
    size_t n = json_array_size(single);
    const json_t *first = json_object_get(json_array_get(single, 0), "SpecialToken");
    if (n < 1 || n > 2 || !json_object_get(json_array_get(single, n - 1), "Sequence") || (n == 2 && !first))
        FAIL(ERR_LIMIT,
             "%s: 'single': expected the text alone or after one special token, found something else", what);
    if (n == 1)
        return 0;
    const char *name;
    TRY(json_get_string(first, "id", what, NULL, &name));
    const json_t *token = json_object_get(json_object_get(spec, "special_tokens"), name);
    const json_t *ids = json_object_get(token, "ids"), *id = json_array_get(ids, 0);
    if (json_array_size(ids) != 1 || !json_is_integer(id))
        FAIL(ERR_LIMIT, "%s: 'special_tokens': '%.64s': expected one integer in 'ids', found %s of %zu", what,
             name, json_type_name(ids), json_array_size(ids));
    json_int_t bos = json_integer_value(id);
    if (bos < 0 || bos >= t->vocab.size || !t->vocab.tokens[bos].bytes)
        FAIL(ERR_FORMAT, "%s: 'special_tokens': '%.64s': expected the id of a token, found %lld", what, name,
             (long long)bos);
    t->bos = (int)bos;
    return 0;
}

static int load_post_step(struct tokenizer *t, const json_t *spec, const char *what)
{
    const char *type;
    TRY(json_get_string(spec, "type", what, NULL, &type));
    if (strcmp(type, "TemplateProcessing") == 0)
        return load_template(t, spec, what);
    if (strcmp(type, "ByteLevel") != 0) /* which only moves offsets */
        FAIL(ERR_LIMIT, "%s: 'type': expected TemplateProcessing or ByteLevel, found '%.64s'", what, type);
    return 0;
}

static int load_post_processor(struct tokenizer *t, const json_t *spec, const char *what)
{
    const char *type;
    size_t i;
    json_t *step;
    if (!spec || json_is_null(spec))
        return 0;
    TRY(json_get_string(spec, "type", what, NULL, &type));
    if (strcmp(type, "Sequence") != 0)
        return load_post_step(t, spec, what);
    const json_t *list = json_object_get(spec, "processors");
    if (!json_is_array(list))
        FAIL(ERR_FORMAT, "%s: 'processors': expected an array, found %s", what, json_type_name(list));
    json_array_foreach(list, i, step) TRY(load_post_step(t, step, what));
    return 0;
}

static int check_decoder(const json_t *spec, const char *what)
{
    const char *type;
    TRY(json_get_string(spec, "type", what, NULL, &type));
    if (strcmp(type, "ByteLevel") != 0)
        FAIL(ERR_LIMIT, "%s: 'type': expected ByteLevel, found '%.64s'", what, type);
    return 0;
}

int tokenizer_load(struct tokenizer *t, const json_t *root, const char *what)
{
    t->bos = -1;
    const json_t *model = json_object_get(root, "model"), *added = json_object_get(root, "added_tokens");
    if (!json_is_object(model))
        FAIL(ERR_FORMAT, "%s: 'model': expected an object, found %s", what, json_type_name(model));
    if (added && !json_is_null(added) && !json_is_array(added))
        FAIL(ERR_FORMAT, "%s: 'added_tokens': expected an array, found %s", what, json_type_name(added));
    TRY(expect_off(root, "normalizer", what));
    TRY(pretokenize_init(&t->pretokenize, json_object_get(root, "pre_tokenizer"), what));
    TRY_CTX(check_decoder(json_object_get(root, "decoder"), what), "%s: 'decoder'", what);
    TRY(load_model(t, model, added, what));
    TRY(load_added(t, added, json_object_get(model, "vocab"), what));
    TRY_CTX(load_post_processor(t, json_object_get(root, "post_processor"), what), "%s: 'post_processor'",
            what);
    return 0;
}
