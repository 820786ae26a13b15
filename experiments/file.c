/* file: read by doubling, so that pipes work too. */
#include "experiments/file.h"
#include "engine/err.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int file_read(const char *path, size_t max, char **bytes, size_t *n)
{
    int rc = 0;
    char *text = NULL;
    size_t used = 0, cap = 0, got = 0;
    FILE *f = fopen(path, "rb");
    if (!f) {
        rc = ERR_SET(ERR_IO, "%s: cannot open: %s", path, strerror(errno));
        goto out;
    }
    do {
        if (cap - used < 2) {
            cap = cap ? 2 * cap : 1 << 16;
            char *grown = realloc(text, cap);
            if (!grown) {
                rc = ERR_SET(ERR_MEMORY, "%s: out of memory while reading; wanted %zu bytes", path, cap);
                goto out;
            }
            text = grown;
        }
        got = fread(text + used, 1, cap - used - 1, f);
        used += got;
        if (used > max) {
            rc = ERR_SET(ERR_LIMIT, "%s: expected at most %zu bytes, found more", path, max);
            goto out;
        }
    } while (got > 0);
    if (ferror(f)) {
        rc = ERR_SET(ERR_IO, "%s: cannot read: %s", path, strerror(errno));
        goto out;
    }
    text[used] = 0;
    *bytes = text;
    *n = used;
    text = NULL;
out:
    free(text);
    if (f)
        fclose(f);
    return rc;
}
