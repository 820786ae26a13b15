/* err: one buffer a thread; a context is inserted in front and what follows is indented one level deeper. */
#include "engine/err.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { TEXT_MAX = 4096 };
static _Thread_local char text[TEXT_MAX];

int err_set(int code, const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n >= 0 && n < (int)sizeof text) {
        const char *name = strrchr(file, '/');
        while (name && name > file && name[-1] != '/')
            name--;
        snprintf(text + n, sizeof text - (size_t)n, "  [%s:%d]", name ? name : file, line);
    }
    return code;
}

void err_context(const char *fmt, ...)
{
    char old[TEXT_MAX], front[TEXT_MAX / 4];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(front, sizeof front, fmt, ap);
    va_end(ap);
    memcpy(old, text, sizeof old);
    size_t n = (size_t)snprintf(text, sizeof text, "%s:\n  ", front);
    for (const char *p = old; *p && n + 4 < sizeof text; p++) {
        text[n++] = *p;
        if (*p == '\n') {
            text[n++] = ' ';
            text[n++] = ' ';
        }
    }
    text[n] = 0;
}

const char *err_text(void)
{
    return text;
}

void err_clear(void)
{
    text[0] = 0;
}
