/* table: rows of typed cells, printed three ways: aligned text for people (some columns, rounded, UTF-8 aware), CSV (RFC 4180) and JSON (all
 * columns, full precision). What a column is called and how it rounds stands in one const array. */
#ifndef EXPERIMENTS_TABLE_H
#define EXPERIMENTS_TABLE_H
#include "experiments/stats.h"
#include <jansson.h>
#include <stdio.h>

enum table_kind {
    TABLE_TEXT,
    TABLE_COUNT,   /* a whole number */
    TABLE_REAL,
    TABLE_SHARE,   /* 0..1; text shows percent */
    TABLE_INTERVAL /* value [lo, hi]; in CSV three columns: KEY, KEY_lo, KEY_hi */
};

struct table_column {
    const char *key;         /* in CSV and JSON */
    const char *head, *unit; /* the two header lines of the text form */
    enum table_kind kind;
    int decimals;
    unsigned views;          /* bit set: the text forms that show it; 0: only CSV and JSON */
};

struct table_cell {
    char *text;            /* owned; NULL: an empty cell, shown as "-" (numbers) or nothing (text) */
    double value, lo, hi;  /* NaN: undefined, shown as "-", CSV empty, JSON null */
};

struct table {
    const struct table_column *columns; /* borrowed, outlives this */
    int n_columns;
    struct table_cell *cells;           /* owned [n_rows, n_columns] */
    char *breaks;                       /* owned [n_rows] 1: a blank line before this row in the text form */
    int n_rows, cap;
    int failed;                         /* out of memory in some call since init; told by the print functions */
};

void table_init(struct table *t, const struct table_column *columns, int n_columns);
void table_deinit(struct table *t); /* a zeroed struct is fine */

/* Start a row of empty cells; the setters write into the last row. An unknown key or another kind is our own mistake (assert). */
void table_row(struct table *t);
void table_break(struct table *t); /* a blank line before the last row */
void table_text(struct table *t, const char *key, const char *text);
void table_number(struct table *t, const char *key, double value);
void table_interval(struct table *t, const char *key, struct stats_interval x);

/* The columns of view `view` (a bit) that are not empty in all rows. Text columns shrink until a line fits `width`.
 * ERR_MEMORY. */
int table_print_text(const struct table *t, unsigned view, int width, FILE *out);
int table_print_csv(const struct table *t, FILE *out); /* ERR_MEMORY */
int table_json(const struct table *t, json_t **out);   /* an array of objects, the caller's. ERR_MEMORY */

/* jansson string of any bytes: what is not UTF-8 becomes U+FFFD. NULL: out of memory. */
json_t *table_json_string(const char *bytes);
#endif
