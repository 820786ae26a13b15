/* added_tokens: the tokens that are found in the text before anything splits it. The first place where one begins
 * counts, and the longest that begins there. */
#ifndef ENGINE_ADDED_TOKENS_H
#define ENGINE_ADDED_TOKENS_H
#include <stddef.h>

struct added_token {
    char *text; /* owned, terminated */
    int n, id, special;
};
struct added_tokens {
    struct added_token *tokens; /* owned [n], sorted by text once sealed */
    int n;
    unsigned char begins[256]; /* some token begins with this byte */
};

int  added_tokens_init(struct added_tokens *a, int cap);
void added_tokens_deinit(struct added_tokens *a); /* a zeroed struct is fine */
/* No more than cap tokens; text is copied and not empty. ERR_MEMORY. */
int  added_tokens_put(struct added_tokens *a, const char *text, int id, int special);
/* Sort; returns the index of a token whose text is there twice, or -1. */
int  added_tokens_seal(struct added_tokens *a);
/* First match in text [n] at or after `from`: the token and where it starts; NULL: none. */
const struct added_token *added_tokens_next(const struct added_tokens *a, const char *text, size_t n, size_t from,
                                            size_t *start);
/* The token spelled text [n], or NULL. */
const struct added_token *added_tokens_find(const struct added_tokens *a, const char *text, size_t n);
#endif
