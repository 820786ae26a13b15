/* stop: a stop string can only end inside the bytes that the newest token made certain, and begins at most
 * its own length before them: the tail keeps that many bytes of the text and no more. */
#include "spec/stop.h"
#include "engine/err.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { UTF8_MAX = 4 }; /* bytes of an unfinished sequence that a token may complete */

const char *finish_name(enum finish f)
{
    static const char *const name[] = {"none", "stop", "stop_string", "length", "context", "interrupted"};
    return name[f];
}

int stop_init(struct stop *s, const struct stop_rules *rules)
{
    *s = (struct stop){.rules = rules};
    if (rules->n_strings == 0)
        return 0;
    if (!rules->tokenizer)
        FAIL(ERR_CONFIG, "stop strings: expected a tokenizer to decode the text with, found none");
    for (int i = 0; i < rules->n_strings; i++) {
        size_t n = strlen(rules->strings[i]);
        if (n == 0 || n > 1 << 16)
            FAIL(ERR_CONFIG, "stop string %d: expected 1 to %d bytes, found %zu", i + 1, 1 << 16, n);
        if ((int)n > s->max_string)
            s->max_string = (int)n;
    }
    s->cap_tail = s->max_string - 1 + UTF8_MAX + tokenizer_max_bytes(rules->tokenizer);
    s->tail = malloc((size_t)s->cap_tail);
    if (!s->tail)
        FAIL(ERR_MEMORY, "stop strings: out of memory for %d bytes of text", s->cap_tail);
    return 0;
}

void stop_deinit(struct stop *s)
{
    free(s->tail);
    *s = (struct stop){0};
}

void stop_begin(struct stop *s)
{
    s->stream = (struct tokenizer_stream){0};
    s->n_tail = 0;
}

static int is_stop_token(const struct stop_rules *r, int token)
{
    for (int i = 0; i < r->n_tokens; i++)
        if (r->tokens[i] == token)
            return 1;
    return 0;
}

static int tail_holds_stop_string(const struct stop *s)
{
    for (int i = 0; i < s->rules->n_strings; i++) {
        const char *string = s->rules->strings[i];
        if (memmem(s->tail, (size_t)s->n_tail, string, strlen(string)))
            return 1;
    }
    return 0;
}

enum finish stop_push(struct stop *s, int token)
{
    if (is_stop_token(s->rules, token))
        return FINISH_STOP_TOKEN;
    if (s->rules->n_strings == 0)
        return FINISH_NONE;
    int room = s->cap_tail - s->n_tail;
    s->n_tail += tokenizer_stream_push(s->rules->tokenizer, &s->stream, token, s->tail + s->n_tail, room);
    assert(s->n_tail <= s->cap_tail);
    if (tail_holds_stop_string(s))
        return FINISH_STOP_STRING;
    int keep = s->n_tail < s->max_string - 1 ? s->n_tail : s->max_string - 1;
    memmove(s->tail, s->tail + s->n_tail - keep, (size_t)keep);
    s->n_tail = keep;
    return FINISH_NONE;
}
