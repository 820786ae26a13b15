/* Widths by ranges of code points: enough for labels, a few lines instead of a table of Unicode. */
#include "experiments/display.h"
#include "engine/utf8.h"
#include <stdint.h>
#include <string.h>

static int in_ranges(uint32_t code, const uint32_t (*range)[2], size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (code >= range[i][0] && code <= range[i][1])
            return 1;
    return 0;
}

/* Terminal columns of a code point: 0 for marks that combine, 2 for East Asian wide characters and emoji
 * (Unicode UAX 11). */
static int code_width(uint32_t code)
{
    static const uint32_t none[][2] = {
        {0x300, 0x36F}, {0x200B, 0x200F}, {0x20D0, 0x20FF}, {0xFE00, 0xFE0F}, {0xFEFF, 0xFEFF}};
    static const uint32_t wide[][2] = {{0x1100, 0x115F},   {0x2E80, 0xA4CF},   {0xAC00, 0xD7A3},
                                       {0xF900, 0xFAFF},   {0xFE30, 0xFE6F},   {0xFF00, 0xFF60},
                                       {0xFFE0, 0xFFE6},   {0x1F300, 0x1F64F}, {0x1F680, 0x1F6FF},
                                       {0x1F900, 0x1F9FF}, {0x20000, 0x3FFFD}};
    if (in_ranges(code, none, sizeof none / sizeof *none))
        return 0;
    return in_ranges(code, wide, sizeof wide / sizeof *wide) ? 2 : 1;
}

/* Controls, and the marks that reorder or break a line. */
static int is_control(uint32_t code)
{
    return code < 0x20 || (code >= 0x7F && code < 0xA0) || (code >= 0x2028 && code <= 0x202E) ||
           (code >= 0x2066 && code <= 0x2069);
}

/* What is shown of the text's next part, n > 0 bytes left: *len bytes and *width columns; 0: a question mark.
 */
static int next(const char *s, size_t n, int *len, int *width)
{
    uint32_t code;
    int shown = utf8_next(s, n, len, &code) == UTF8_CHAR && !is_control(code);
    *width = shown ? code_width(code) : 1;
    return shown;
}

static int measure(const char *s, size_t n)
{
    int total = 0;
    for (int len, width; n; s += len, n -= (size_t)len) {
        next(s, n, &len, &width);
        total += width;
    }
    return total;
}

static int put(const char *s, size_t n, int width, FILE *out)
{
    int cut = measure(s, n) > width, room = width - cut, used = 0;
    for (int len, w; n; s += len, n -= (size_t)len) {
        int shown = next(s, n, &len, &w);
        if (used + w > room)
            break;
        fwrite(shown ? s : "?", 1, shown ? (size_t)len : 1, out);
        used += w;
    }
    if (cut)
        fputs("\u2026", out);
    return used + cut;
}

int display_width(const char *text)
{
    return measure(text, strlen(text));
}

int display_put(const char *text, int width, FILE *out)
{
    return put(text, strlen(text), width, out);
}

void display_paragraph(const char *text, int indent, int width, FILE *out)
{
    int used = 0;
    for (const char *s = text; *s;) {
        size_t n = strcspn(s, " ");
        int w = measure(s, n);
        if (used && used + 1 + w > width) {
            fprintf(out, "\n%*s", indent, "");
            used = indent;
        } else if (used) {
            fputc(' ', out);
            used++;
        }
        used += put(s, n, w, out);
        s += n + (s[n] == ' ');
    }
    fputc('\n', out);
}
