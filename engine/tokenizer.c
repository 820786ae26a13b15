/* tokenizer: added tokens are cut out of the text, the rest is cut into pieces, a piece becomes one id a byte
 * and pairs of ids merge. Cost: tens of nanoseconds a byte, half of it in the regular expressions. */
#include "engine/tokenizer.h"
#include "engine/err.h"
#include "engine/json.h"
#include "engine/tokenizer_parts.h"
#include "engine/utf8.h"
#include <assert.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_MAX = 1 << 28 };

static int build(struct tokenizer **out, json_t *root, const char *what)
{
    int rc;
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        rc = ERR_SET(ERR_MEMORY, "%s: out of memory", what);
        goto out;
    }
    rc = tokenizer_load(t, root, what);
    if (rc)
        goto out;
    *out = t;
    t = NULL;
out:
    tokenizer_close(t);
    json_decref(root);
    return rc;
}

int tokenizer_open(struct tokenizer **out, const char *dir)
{
    json_t *root;
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/tokenizer.json", dir) >= (int)sizeof path)
        FAIL(ERR_IO, "%s: expected a directory name of less than %d bytes", dir, PATH_MAX);
    TRY(json_read_file(path, &root));
    return build(out, root, path);
}

int tokenizer_parse(struct tokenizer **out, const char *json, size_t n, const char *what)
{
    json_t *root;
    TRY(json_parse(json, n, what, &root));
    return build(out, root, what);
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t)
        return;
    vocab_deinit(&t->vocab);
    added_tokens_deinit(&t->added[0]);
    added_tokens_deinit(&t->added[1]);
    pretokenize_deinit(&t->pretokenize);
    bpe_deinit(&t->bpe);
    free(t);
}

int tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->vocab.size;
}

/* One call of tokenizer_encode. */
struct encoding {
    const struct tokenizer *t;
    int special;
    int **ids, *n_ids, *cap; /* the caller's */
    struct bpe_scratch merge;
    struct regex_scratch *regex; /* owned */
};

static int reserve(struct encoding *e, size_t more)
{
    size_t want = (size_t)*e->n_ids + more;
    if (want <= (size_t)*e->cap)
        return 0;
    if (want > INT_MAX / 2)
        FAIL(ERR_LIMIT, "tokenizer: expected at most %d ids, found text for up to %zu", INT_MAX / 2, want);
    size_t cap = want + want / 2 + 64;
    int *grown = realloc(*e->ids, cap * sizeof **e->ids);
    if (!grown)
        FAIL(ERR_MEMORY, "tokenizer: out of memory for %zu ids", cap);
    *e->ids = grown;
    *e->cap = (int)cap;
    return 0;
}

static int append(struct encoding *e, int id)
{
    TRY(reserve(e, 1));
    (*e->ids)[(*e->n_ids)++] = id;
    return 0;
}

static int encode_piece(void *self, const char *piece, size_t n)
{
    struct encoding *e = self;
    const struct tokenizer *t = e->t;
    if (t->ignore_merges) {
        int id = vocab_find(&t->vocab, piece, n);
        if (id >= 0)
            return append(e, id);
    }
    TRY(reserve(e, n));
    int *ids = *e->ids + *e->n_ids, n_ids = 0;
    for (size_t i = 0; i < n; i++) {
        int id = t->byte_id[(unsigned char)piece[i]];
        if (id >= 0)
            ids[n_ids++] = id;
    }
    TRY(bpe_merge(&t->bpe, &e->merge, ids, n_ids, &n_ids));
    *e->n_ids += n_ids;
    return 0;
}

/* Text between added tokens of set `pass`; what no set claims is cut into pieces. */
static int encode_text(struct encoding *e, int pass, const char *text, size_t n)
{
    if (pass == 2)
        return pretokenize_run(&e->t->pretokenize, e->regex, text, n, encode_piece, e);
    size_t done = 0, from = 0, start;
    const struct added_token *token;
    while ((token = added_tokens_next(&e->t->added[pass], text, n, from, &start))) {
        from = start + (size_t)token->n;
        if (token->special && !e->special)
            continue;
        TRY(encode_text(e, pass + 1, text + done, start - done));
        TRY(append(e, token->id));
        done = from;
    }
    return encode_text(e, pass + 1, text + done, n - done);
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, int special, int **ids,
                     int *n_ids, int *cap)
{
    int rc = 0, n_before = *n_ids;
    char *clean = NULL;
    struct encoding e = {.t = t, .special = special, .ids = ids, .n_ids = n_ids, .cap = cap};
    if (n > TEXT_MAX) {
        rc = ERR_SET(ERR_LIMIT, "tokenizer: expected text of at most %d bytes, found %zu", TEXT_MAX, n);
        goto out;
    }
    if (utf8_valid(text, n) < n) {
        clean = utf8_clean(text, n, &n);
        if (!clean) {
            rc = ERR_SET(ERR_MEMORY, "tokenizer: out of memory for a text of %zu bytes", n);
            goto out;
        }
        text = clean;
    }
    rc = regex_scratch_new(&e.regex);
    if (rc)
        goto out;
    rc = encode_text(&e, 0, text, n);
out:
    if (rc)
        *n_ids = n_before;
    regex_scratch_free(e.regex);
    bpe_scratch_deinit(&e.merge);
    free(clean);
    return rc;
}

int tokenizer_id(const struct tokenizer *t, const char *text)
{
    size_t n = strlen(text);
    for (int pass = 0; pass < 2; pass++) {
        const struct added_token *token = added_tokens_find(&t->added[pass], text, n);
        if (token)
            return token->id;
    }
    return vocab_find(&t->vocab, text, n);
}

const char *tokenizer_bytes(const struct tokenizer *t, int id, size_t *n)
{
    if (id < 0 || id >= t->vocab.size || !t->vocab.tokens[id].bytes) {
        *n = 0;
        return "";
    }
    *n = (size_t)t->vocab.tokens[id].n;
    return t->vocab.tokens[id].bytes;
}

int tokenizer_is_special(const struct tokenizer *t, int id)
{
    return id >= 0 && id < t->vocab.size && t->vocab.tokens[id].special;
}

int tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int tokenizer_max_bytes(const struct tokenizer *t)
{
    return 3 * t->vocab.longest;
}

/* Move one character's worth from the front of s->pending to buf: itself, or U+FFFD. */
static int emit(struct tokenizer_stream *s, int len, enum utf8_kind kind, char *buf)
{
    int n = kind == UTF8_CHAR ? len : 3;
    memcpy(buf, kind == UTF8_CHAR ? (const char *)s->pending : UTF8_REPLACEMENT, (size_t)n);
    s->n_pending -= len;
    memmove(s->pending, s->pending + len, (size_t)s->n_pending);
    return n;
}

int tokenizer_stream_push(const struct tokenizer *t, struct tokenizer_stream *s, int id, char *buf, int cap)
{
    size_t n = 0;
    int used = 0, len;
    uint32_t code;
    const char *bytes = tokenizer_is_special(t, id) ? "" : tokenizer_bytes(t, id, &n);
    assert(cap >= UTF8_MAX + 3 * (int)n);
    (void)cap;
    for (size_t i = 0; i < n; i++) {
        s->pending[s->n_pending++] = (unsigned char)bytes[i];
        while (s->n_pending > 0) {
            enum utf8_kind kind = utf8_next((const char *)s->pending, (size_t)s->n_pending, &len, &code);
            if (kind == UTF8_CUT)
                break;
            used += emit(s, len, kind, buf + used);
        }
    }
    if (id == -1 && s->n_pending > 0)
        used += emit(s, s->n_pending, UTF8_CUT, buf + used);
    return used;
}

char *tokenizer_decode(const struct tokenizer *t, const int *ids, int n)
{
    size_t cap = UTF8_MAX + 1, used = 0, n_bytes;
    for (int i = 0; i < n; i++) {
        tokenizer_bytes(t, ids[i], &n_bytes);
        cap += 3 * n_bytes;
    }
    char *text = malloc(cap);
    if (!text)
        return NULL;
    struct tokenizer_stream s = {.n_pending = 0};
    for (int i = 0; i <= n; i++) {
        int room = cap - used < INT_MAX ? (int)(cap - used) : INT_MAX;
        used += (size_t)tokenizer_stream_push(t, &s, i < n ? ids[i] : -1, text + used, room);
    }
    text[used] = 0;
    return text;
}
