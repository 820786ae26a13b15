/* pretokenize: cuts text into the pieces that are merged one by one, as the "pre_tokenizer" of a tokenizer.json
 * says: Split (a regular expression, Isolated), Digits, and at the end ByteLevel, alone or as a Sequence. */
#ifndef ENGINE_PRETOKENIZE_H
#define ENGINE_PRETOKENIZE_H
#include "engine/regex.h"
#include <jansson.h>
#include <stddef.h>

enum { PRETOKENIZE_STEPS = 8 };

/* Each step cuts the pieces of the one before it: a match is a piece, and so is what lies between two matches. */
struct pretokenize_step {
    int prefix_space;    /* a piece that does not begin with a space gets one */
    struct regex *regex; /* owned; NULL: no cut */
};
struct pretokenize {
    struct pretokenize_step steps[PRETOKENIZE_STEPS];
    int n;
};
/* Takes one piece, which is lent for the call. 0, or an error that ends the run. */
typedef int (*pretokenize_sink)(void *self, const char *piece, size_t n);

/* spec: the value of "pre_tokenizer", NULL if there is none. ERR_LIMIT: a kind that is not built in; ERR_FORMAT. */
int  pretokenize_init(struct pretokenize *p, const json_t *spec, const char *what);
void pretokenize_deinit(struct pretokenize *p); /* a zeroed struct is fine */
/* text [n bytes of valid UTF-8]; pieces are never empty and come in order. */
int  pretokenize_run(const struct pretokenize *p, struct regex_scratch *scratch, const char *text, size_t n,
                     pretokenize_sink sink, void *self);
#endif
