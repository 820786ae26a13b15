/* vocab: one arena for all bytes, one table by id, one hash table of ids. */
#include "engine/vocab.h"
#include "engine/err.h"
#include "engine/utf8.h"
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The byte that a character of the alphabet shows: printable Latin-1 shows itself, the other 68 bytes are
 * shown, in order, by U+0100 and its followers. -1: not in the alphabet. */
static int byte_of(uint32_t c)
{
    if ((c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF))
        return (int)c;
    if (c >= 0x100 && c <= 0x120)
        return (int)c - 0x100;
    if (c >= 0x121 && c <= 0x142)
        return (int)c - 0x121 + 0x7F;
    return c == 0x143 ? 0xAD : -1;
}

int vocab_unspell(const char *spelling, size_t n, char *out)
{
    int used = 0;
    for (size_t i = 0; i < n;) {
        int len;
        uint32_t code;
        int byte = utf8_next(spelling + i, n - i, &len, &code) == UTF8_CHAR ? byte_of(code) : -1;
        if (byte < 0)
            return -1;
        out[used++] = (char)byte;
        i += (size_t)len;
    }
    return used;
}

int vocab_init(struct vocab *v, int size, size_t n_tokens, size_t n_bytes)
{
    size_t slots = 16;
    while (slots < 2 * n_tokens)
        slots *= 2;
    *v = (struct vocab){.size = size, .mask = slots - 1, .cap = n_bytes};
    v->tokens = calloc((size_t)size + 1, sizeof *v->tokens);
    v->slots = malloc(slots * sizeof *v->slots);
    v->arena = malloc(n_bytes + 1);
    if (!v->tokens || !v->slots || !v->arena)
        FAIL(ERR_MEMORY, "tokenizer: out of memory for %d tokens", size);
    memset(v->slots, 0xFF, slots * sizeof *v->slots);
    return 0;
}

void vocab_deinit(struct vocab *v)
{
    free(v->tokens);
    free(v->slots);
    free(v->arena);
    *v = (struct vocab){0};
}

static size_t slot_of(const struct vocab *v, const char *bytes, size_t n)
{
    uint64_t h = 0xCBF29CE484222325u; /* FNV-1a */
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)bytes[i]) * 0x100000001B3u;
    size_t at = (size_t)(h ^ h >> 32) & v->mask;
    for (; v->slots[at] >= 0; at = (at + 1) & v->mask) {
        const struct vocab_token *t = &v->tokens[v->slots[at]];
        if ((size_t)t->n == n && memcmp(t->bytes, bytes, n) == 0)
            break;
    }
    return at;
}

/* The next n bytes of the arena become token id. */
static void append(struct vocab *v, int id, size_t n)
{
    assert(id >= 0 && id < v->size && !v->tokens[id].bytes && n <= v->cap - v->used);
    v->tokens[id] = (struct vocab_token){.bytes = v->arena + v->used, .n = (int)n};
    v->used += n;
    if ((int)n > v->longest)
        v->longest = (int)n;
}

void vocab_put(struct vocab *v, int id, const char *spelling, size_t n, int indexed)
{
    assert(n <= v->cap - v->used);
    int n_bytes = vocab_unspell(spelling, n, v->arena + v->used);
    if (n_bytes < 0) {
        vocab_put_verbatim(v, id, spelling, n);
        return;
    }
    append(v, id, (size_t)n_bytes);
    size_t at = slot_of(v, v->tokens[id].bytes, (size_t)n_bytes);
    if (indexed && v->slots[at] < 0)
        v->slots[at] = id;
}

void vocab_put_verbatim(struct vocab *v, int id, const char *bytes, size_t n)
{
    assert(n <= v->cap - v->used);
    memcpy(v->arena + v->used, bytes, n);
    append(v, id, n);
}

int vocab_find(const struct vocab *v, const char *bytes, size_t n)
{
    return v->slots[slot_of(v, bytes, n)];
}
