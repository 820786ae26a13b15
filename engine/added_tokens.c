/* added_tokens: the tokens that share their first k bytes with the text are neighbours in the sorted list;
 * the neighbourhood shrinks by two binary searches a byte. Cost: a table look-up for a byte where nothing
 * begins. */
#include "engine/added_tokens.h"
#include "engine/err.h"
#include <stdlib.h>
#include <string.h>

int added_tokens_init(struct added_tokens *a, int cap)
{
    *a = (struct added_tokens){.tokens = calloc((size_t)cap + 1, sizeof *a->tokens)};
    if (!a->tokens)
        FAIL(ERR_MEMORY, "tokenizer: out of memory for %d added tokens", cap);
    return 0;
}

void added_tokens_deinit(struct added_tokens *a)
{
    for (int i = 0; i < a->n; i++)
        free(a->tokens[i].text);
    free(a->tokens);
    *a = (struct added_tokens){0};
}

int added_tokens_put(struct added_tokens *a, const char *text, int id, int special)
{
    char *copy = strdup(text);
    if (!copy)
        FAIL(ERR_MEMORY, "tokenizer: out of memory for added token %d", id);
    a->tokens[a->n++] = (struct added_token){copy, (int)strlen(copy), id, special};
    a->begins[(unsigned char)copy[0]] = 1;
    return 0;
}

static int by_text(const void *x, const void *y)
{
    const struct added_token *a = x, *b = y;
    int order = memcmp(a->text, b->text, (size_t)(a->n < b->n ? a->n : b->n));
    return order ? order : (a->n > b->n) - (a->n < b->n);
}

int added_tokens_seal(struct added_tokens *a)
{
    qsort(a->tokens, (size_t)a->n, sizeof *a->tokens, by_text);
    for (int i = 1; i < a->n; i++)
        if (by_text(&a->tokens[i - 1], &a->tokens[i]) == 0)
            return i;
    return -1;
}

/* First token of [lo, hi), which all agree in their first k bytes, whose byte k is at least `byte`; a token
 * that ends there comes before all others. */
static int lower(const struct added_tokens *a, int lo, int hi, int k, int byte)
{
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        const struct added_token *t = &a->tokens[mid];
        if (t->n <= k || (unsigned char)t->text[k] < byte)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static const struct added_token *longest_at(const struct added_tokens *a, const char *text, size_t n)
{
    const struct added_token *best = NULL;
    int lo = 0, hi = a->n;
    for (int k = 0; (size_t)k < n && lo < hi; k++) {
        int byte = (unsigned char)text[k];
        lo = lower(a, lo, hi, k, byte);
        hi = lower(a, lo, hi, k, byte + 1);
        if (lo < hi && a->tokens[lo].n == k + 1)
            best = &a->tokens[lo];
    }
    return best;
}

const struct added_token *added_tokens_next(const struct added_tokens *a, const char *text, size_t n,
                                            size_t from, size_t *start)
{
    for (size_t i = from; a->n > 0 && i < n; i++) {
        const struct added_token *t =
            a->begins[(unsigned char)text[i]] ? longest_at(a, text + i, n - i) : NULL;
        if (t) {
            *start = i;
            return t;
        }
    }
    return NULL;
}

const struct added_token *added_tokens_find(const struct added_tokens *a, const char *text, size_t n)
{
    const struct added_token *t = longest_at(a, text, n);
    return t && (size_t)t->n == n ? t : NULL;
}
