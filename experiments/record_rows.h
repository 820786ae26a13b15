/* record_rows: rows of one table on their way to the file. */
#ifndef EXPERIMENTS_RECORD_ROWS_H
#define EXPERIMENTS_RECORD_ROWS_H
#include "experiments/record_fields.h"
#include <stdint.h>

/* Rows [first, first + n) of a table. */
struct row_list {
    void *data; /* owned [cap] of the table's struct */
    int64_t first, n, cap;
};

int  row_list_reserve(struct row_list *r, enum record_table t, int64_t n); /* room for n more; ERR_MEMORY */
/* After row_list_reserve: append n rows; returns where they lie now. */
void *row_list_add(struct row_list *r, enum record_table t, const void *rows, int64_t n);
int64_t row_list_end(const struct row_list *r);
void row_list_drop_before(struct row_list *r, enum record_table t, int64_t row); /* of tables without texts */

/* Replace the texts of a row, or of struct trace_meta, by copies; on failure none is left. ERR_MEMORY. */
int  record_own_texts(const struct field *fields, int n, void *row);
void record_free_texts(enum record_table t, void *rows, int64_t n); /* leaves NULLs */
#endif
