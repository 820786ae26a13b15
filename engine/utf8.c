/* utf8: the lead byte fixes the length and the range of the second byte (which rules out overlong forms,
 * surrogates and code points past U+10FFFF); all later bytes are 80..BF. */
#include "engine/utf8.h"
#include <stdlib.h>
#include <string.h>

struct form {
    int len;
    unsigned char lo, hi; /* range of the second byte */
};

static struct form form_of(unsigned char lead)
{
    if (lead < 0x80)
        return (struct form){1, 0, 0};
    if (lead < 0xC2 || lead > 0xF4)
        return (struct form){0, 0, 0};
    if (lead < 0xE0)
        return (struct form){2, 0x80, 0xBF};
    if (lead < 0xF0)
        return (struct form){3, lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF};
    return (struct form){4, lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF};
}

enum utf8_kind utf8_next(const char *p, size_t n, int *len, uint32_t *code)
{
    const unsigned char *b = (const unsigned char *)p;
    struct form f = form_of(b[0]);
    *len = 1;
    *code = 0xFFFD;
    if (f.len == 0)
        return UTF8_BAD;
    if (f.len == 1) {
        *code = b[0];
        return UTF8_CHAR;
    }
    uint32_t c = b[0] & (0x7Fu >> f.len);
    for (int i = 1; i < f.len; i++) {
        *len = i;
        if ((size_t)i >= n)
            return UTF8_CUT;
        if (b[i] < (i == 1 ? f.lo : 0x80) || b[i] > (i == 1 ? f.hi : 0xBF))
            return UTF8_BAD;
        c = c << 6 | (b[i] & 0x3Fu);
    }
    *len = f.len;
    *code = c;
    return UTF8_CHAR;
}

size_t utf8_valid(const char *p, size_t n)
{
    size_t i = 0;
    while (i < n) {
        int len = 1;
        uint32_t code;
        if ((unsigned char)p[i] >= 0x80 && utf8_next(p + i, n - i, &len, &code) != UTF8_CHAR)
            return i;
        i += (size_t)len;
    }
    return n;
}

char *utf8_clean(const char *p, size_t n, size_t *n_out)
{
    char *out = malloc(3 * n + 1);
    if (!out)
        return NULL;
    size_t used = 0;
    for (size_t i = 0; i < n;) {
        int len;
        uint32_t code;
        if (utf8_next(p + i, n - i, &len, &code) == UTF8_CHAR) {
            memcpy(out + used, p + i, (size_t)len);
            used += (size_t)len;
        } else {
            memcpy(out + used, UTF8_REPLACEMENT, 3);
            used += 3;
        }
        i += (size_t)len;
    }
    *n_out = used;
    return out;
}

int utf8_is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}
