/* fuzz_tokenizer: an input that begins with '{' is a tokenizer.json, then a zero byte and a text for it; any
 * other is a text for a built-in tokenizer that has a token for every byte, so that the text must come back.
 */
#include "engine/err.h"
#include "engine/tokenizer.h"
#include "engine/utf8.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* All bytes in the byte-level alphabet with ids 0..255, some merges, a special token and one that is not. */
static char *built_in_json(void)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    fputs("{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_"
          "digits\":true},"
          "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}]},\"decoder\":{\"type\":\"ByteLevel\"},"
          "\"added_tokens\":"
          "[{\"id\":260,\"content\":\"<|x|>\",\"special\":true},{\"id\":261,\"content\":\"<y>\",\"special\":"
          "false}],"
          "\"model\":{\"type\":\"BPE\",\"merges\":[\"a b\",\"b a\",\"ab ab\",\"\\u0120 a\"],\"vocab\":{",
          f);
    for (unsigned b = 0, shown = 0x100; b < 256; b++) {
        int printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD);
        fprintf(f, "\"\\u%04x\":%u,", printable ? b : shown, b);
        shown += !printable;
    }
    fputs("\"ab\":256,\"ba\":257,\"abab\":258,\"\\u0120a\":259}}}", f);
    fclose(f);
    return text;
}

/* Every id exists; special tokens appear only where they were asked for; decoding stays within its bounds. */
static void check_ids(const struct tokenizer *t, const int *ids, int n, int special)
{
    char *buf = malloc((size_t)tokenizer_max_bytes(t) + 4);
    struct tokenizer_stream s = {.n_pending = 0};
    size_t streamed = 0;
    for (int i = 0; i <= n; i++) {
        if (i < n && (ids[i] < 0 || ids[i] >= tokenizer_vocab_size(t)))
            abort();
        if (i < n && !special && tokenizer_is_special(t, ids[i]) && tokenizer_id(t, "<|x|>") >= 0)
            abort();
        streamed +=
            (size_t)tokenizer_stream_push(t, &s, i < n ? ids[i] : -1, buf, tokenizer_max_bytes(t) + 4);
    }
    char *text = tokenizer_decode(t, ids, n);
    if (!text || utf8_valid(text, streamed) != streamed || text[streamed])
        abort();
    free(text);
    free(buf);
}

/* The bytes of the ids are the text, with U+FFFD for what is not UTF-8. */
static void check_round_trip(const struct tokenizer *t, const int *ids, int n_ids, const char *text, size_t n)
{
    size_t n_clean, at = 0, n_token;
    char *clean = utf8_clean(text, n, &n_clean);
    for (int i = 0; i < n_ids; i++) {
        const char *bytes = tokenizer_bytes(t, ids[i], &n_token);
        if (n_token > n_clean - at || memcmp(bytes, clean + at, n_token) != 0)
            abort();
        at += n_token;
    }
    if (at != n_clean)
        abort();
    free(clean);
}

static void encode(const struct tokenizer *t, const char *text, size_t n, int round_trip)
{
    for (int special = 0; special < 2; special++) {
        int *ids = NULL, n_ids = 0, cap = 0;
        int rc = tokenizer_encode(t, text, n, special, &ids, &n_ids, &cap);
        if (rc && (round_trip || n_ids))
            abort();
        if (round_trip) {
            check_ids(t, ids, n_ids, special);
            check_round_trip(t, ids, n_ids, text, n);
        } else {
            check_ids(t, ids, n_ids, 1);
        }
        free(ids);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct tokenizer *t = NULL;
    int built_in = n == 0 || data[0] != '{';
    char *json = built_in ? built_in_json() : NULL;
    const uint8_t *zero = built_in ? NULL : memchr(data, 0, n);
    size_t n_json = built_in ? strlen(json) : zero ? (size_t)(zero - data) : n;
    const char *text = built_in ? (const char *)data : zero ? (const char *)zero + 1 : "";
    size_t n_text = built_in ? n : zero ? n - n_json - 1 : 0;
    err_clear();
    if (tokenizer_parse(&t, built_in ? json : (const char *)data, n_json, "fuzz") == 0)
        encode(t, text, n_text, built_in);
    else if (built_in || !*err_text())
        abort();
    tokenizer_close(t);
    free(json);
    return 0;
}
