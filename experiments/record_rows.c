/* record_rows: arrays that double. */
#include "experiments/record_rows.h"
#include "engine/err.h"
#include <stdlib.h>
#include <string.h>

int row_list_reserve(struct row_list *r, enum record_table t, int64_t n)
{
    size_t bytes = record_tables[t].row_bytes;
    if (r->n + n <= r->cap)
        return 0;
    int64_t cap = 2 * r->cap > r->n + n ? 2 * r->cap : r->n + n + 16;
    void *grown = realloc(r->data, (size_t)cap * bytes);
    if (!grown)
        FAIL(ERR_MEMORY, "record: out of memory for %lld rows of /%s", (long long)cap, record_tables[t].name);
    r->data = grown;
    r->cap = cap;
    return 0;
}

void *row_list_add(struct row_list *r, enum record_table t, const void *rows, int64_t n)
{
    size_t bytes = record_tables[t].row_bytes;
    char *at = r->data ? (char *)r->data + (size_t)r->n * bytes : NULL;
    if (n > 0)
        memcpy(at, rows, (size_t)n * bytes);
    r->n += n;
    return at;
}

int64_t row_list_end(const struct row_list *r)
{
    return r->first + r->n;
}

void row_list_drop_before(struct row_list *r, enum record_table t, int64_t row)
{
    size_t bytes = record_tables[t].row_bytes;
    int64_t gone = row - r->first;
    if (gone <= 0)
        return;
    memmove(r->data, (char *)r->data + (size_t)gone * bytes, (size_t)(r->n - gone) * bytes);
    r->first = row;
    r->n -= gone;
}

int record_own_texts(const struct field *fields, int n, void *row)
{
    int missing = 0;
    for (int i = 0; i < n; i++) {
        char **text = (char **)(void *)((char *)row + fields[i].offset);
        if (fields[i].kind == FIELD_TEXT && !(*text = strdup(*text)))
            missing = 1;
    }
    for (int i = 0; missing && i < n; i++)
        if (fields[i].kind == FIELD_TEXT)
            free(*(char **)(void *)((char *)row + fields[i].offset));
    if (missing)
        FAIL(ERR_MEMORY, "record: out of memory while copying texts");
    return 0;
}

void record_free_texts(enum record_table t, void *rows, int64_t n)
{
    const struct table *table = &record_tables[t];
    for (int64_t i = 0; table->has_text && i < n; i++)
        for (int k = 0; k < table->n_fields; k++) {
            char **text =
                (char **)(void *)((char *)rows + (size_t)i * table->row_bytes + table->fields[k].offset);
            if (table->fields[k].kind == FIELD_TEXT) {
                free(*text);
                *text = NULL;
            }
        }
}
