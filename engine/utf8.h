/* utf8: one rule for what is valid UTF-8 and how far an invalid part reaches, used both ways: before encoding
 * and while decoding. An invalid part is the longest beginning of some character (Unicode 16, 3.9 "maximal
 * subpart"), or one byte; one U+FFFD stands for it, as in Python's errors="replace" and Rust's from_utf8_lossy. */
#ifndef ENGINE_UTF8_H
#define ENGINE_UTF8_H
#include <stddef.h>
#include <stdint.h>

enum utf8_kind {
    UTF8_CHAR, /* one character */
    UTF8_BAD,  /* an invalid part */
    UTF8_CUT   /* the valid beginning of a character, cut off by the end of the bytes */
};
enum { UTF8_MAX = 4 }; /* bytes of the longest character */

#define UTF8_REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

/* What p [n bytes, n >= 1] begins with: *len bytes of that kind; *code is the code point of a UTF8_CHAR, else U+FFFD. */
enum utf8_kind utf8_next(const char *p, size_t n, int *len, uint32_t *code);
/* Bytes at the start of p [n] that are valid UTF-8; n when all of them are. */
size_t utf8_valid(const char *p, size_t n);
/* p [n] with U+FFFD for every invalid part: malloc'ed, the caller's, not terminated; NULL when out of memory. */
char *utf8_clean(const char *p, size_t n, size_t *n_out);
/* White space as Unicode's White_Space property has it. */
int utf8_is_space(uint32_t code);
#endif
