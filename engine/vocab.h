/* vocab: token ids and their bytes, both ways. A tokenizer.json spells a token in the byte-level alphabet, which
 * shows every byte as one printable character ("Ġthe" is " the"); here a token is its bytes. */
#ifndef ENGINE_VOCAB_H
#define ENGINE_VOCAB_H
#include <stddef.h>

struct vocab_token {
    const char *bytes; /* borrowed from the arena, not terminated; NULL: no token has this id */
    int n;
    int special;
};
struct vocab {
    struct vocab_token *tokens; /* owned [size] */
    int size;                   /* highest id + 1 */
    int *slots;                 /* owned [mask + 1]: ids by the hash of their bytes, -1 free; at most half full */
    size_t mask;
    char *arena; /* owned: all bytes */
    size_t used, cap;
    int longest; /* bytes of the longest token */
};

/* Room for ids below size, n_tokens of them, whose spellings have n_bytes bytes together. */
int  vocab_init(struct vocab *v, int size, size_t n_tokens, size_t n_bytes);
void vocab_deinit(struct vocab *v); /* a zeroed struct is fine */
/* spelling [n bytes of UTF-8]; indexed: vocab_find may find it, if all of it is in the alphabet. A spelling with a
 * character outside the alphabet stands for itself. The id must be free. */
void vocab_put(struct vocab *v, int id, const char *spelling, size_t n, int indexed);
/* The same for a token that stands for itself whatever its characters. */
void vocab_put_verbatim(struct vocab *v, int id, const char *bytes, size_t n);
int  vocab_find(const struct vocab *v, const char *bytes, size_t n); /* -1: none */
/* Bytes of a spelling into out [n]; returns how many, -1 when a character is outside the alphabet. */
int  vocab_unspell(const char *spelling, size_t n, char *out);
#endif
