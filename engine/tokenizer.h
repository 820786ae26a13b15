/* tokenizer: byte-level BPE from a Hugging Face tokenizer.json. Encode gives, id for id, what the library
 * `tokenizers` gives; decode streams bytes, holding back an unfinished UTF-8 sequence.
 * Immutable after opening: any number of threads may share one. */
#ifndef ENGINE_TOKENIZER_H
#define ENGINE_TOKENIZER_H
#include <stddef.h>

struct tokenizer; /* opaque */

/* dir holds tokenizer.json, and optionally tokenizer_config.json and generation_config.json.
 * ERR_IO, ERR_FORMAT (with what was expected and found), ERR_LIMIT for a kind of tokenizer that is not built in. */
int  tokenizer_open(struct tokenizer **out, const char *dir);
/* The same from bytes in memory, for tests and fuzzing; `what` names them in messages. */
int  tokenizer_parse(struct tokenizer **out, const char *json, size_t n, const char *what);
void tokenizer_close(struct tokenizer *t); /* accepts NULL */

int  tokenizer_vocab_size(const struct tokenizer *t);  /* highest id + 1, added tokens included */

/* Text [n bytes, need not be valid UTF-8: an invalid byte counts as U+FFFD, as Python's errors="replace" gives]
 * to ids. With `special`, text that spells an added special token becomes that token (chat templates); without,
 * it is ordinary text (what a user typed). No begin-of-text is added; see tokenizer_bos. *ids grows by realloc
 * (owned by the caller, *cap elements, start with NULL and 0); *n_ids is appended to. ERR_MEMORY, ERR_LIMIT. */
int  tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, int special, int **ids, int *n_ids, int *cap);
/* Id of the token spelled `text`, added tokens included; -1 if there is none. */
int  tokenizer_id(const struct tokenizer *t, const char *text);
/* Bytes of one token, lent, not terminated; *n = 0 for ids outside the vocabulary. Special tokens spell themselves. */
const char *tokenizer_bytes(const struct tokenizer *t, int id, size_t *n);
int  tokenizer_is_special(const struct tokenizer *t, int id);

/* The post-processor's begin-of-text id, or -1 (SmolLM2 has none, Llama 3 and 4 do). */
int  tokenizer_bos(const struct tokenizer *t);

/* Streaming decode. Feed tokens one by one; each call appends the bytes that are certain to buf. */
struct tokenizer_stream {
    unsigned char pending[4]; /* an unfinished UTF-8 sequence */
    int n_pending;
};
/* Bytes made certain by `id`, into buf [cap]; returns how many (never more than cap; cap >= 4 +
 * tokenizer_max_bytes). Invalid sequences become U+FFFD as Rust's from_utf8_lossy makes them; special tokens are
 * skipped. id -1 flushes the rest. */
int  tokenizer_stream_push(const struct tokenizer *t, struct tokenizer_stream *s, int id, char *buf, int cap);
int  tokenizer_max_bytes(const struct tokenizer *t); /* 3 for each byte of the longest: all may be invalid */
/* All of ids at once: a malloc'ed, terminated string, the caller's; NULL when out of memory. */
char *tokenizer_decode(const struct tokenizer *t, const int *ids, int n);
#endif
