/* tokenizer_parts: what a tokenizer consists of; for tokenizer.c, which uses it, and tokenizer_load.c, which fills it. */
#ifndef ENGINE_TOKENIZER_PARTS_H
#define ENGINE_TOKENIZER_PARTS_H
#include "engine/added_tokens.h"
#include "engine/bpe.h"
#include "engine/pretokenize.h"
#include "engine/vocab.h"
#include <jansson.h>

struct tokenizer {
    struct vocab vocab;
    struct added_tokens added[2]; /* [0] those with "normalized" false, found first; [1] the others */
    struct pretokenize pretokenize;
    struct bpe bpe;
    int byte_id[256];  /* token of a single byte; -1: none, the byte disappears */
    int ignore_merges; /* a piece that is a token is not merged */
    int bos;           /* id, -1: none */
};

/* Fill a zeroed t from a parsed tokenizer.json. After a failure the caller closes t. */
int tokenizer_load(struct tokenizer *t, const json_t *root, const char *what);
#endif
