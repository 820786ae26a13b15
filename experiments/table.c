/* Cells keep full numbers; each form of output rounds or does not. Widths are counted in terminal columns,
 * not bytes: labels and categories come from foreign files in any script. */
#include "experiments/table.h"
#include "engine/err.h"
#include "engine/utf8.h"
#include "experiments/display.h"
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CELL_MAX = 256, GAP = 2, MIN_TEXT = 8, HEAD = -2, UNIT = -1 };

void table_init(struct table *t, const struct table_column *columns, int n_columns)
{
    memset(t, 0, sizeof *t);
    t->columns = columns;
    t->n_columns = n_columns;
}

void table_deinit(struct table *t)
{
    for (int i = 0; i < t->n_rows * t->n_columns; i++)
        free(t->cells[i].text);
    free(t->cells);
    free(t->breaks);
    memset(t, 0, sizeof *t);
}

static int grow(struct table *t)
{
    int cap = t->cap ? 2 * t->cap : 16;
    struct table_cell *cells = realloc(t->cells, (size_t)cap * (size_t)t->n_columns * sizeof *cells);
    if (cells)
        t->cells = cells;
    char *breaks = realloc(t->breaks, (size_t)cap);
    if (breaks)
        t->breaks = breaks;
    if (!cells || !breaks)
        return ERR_MEMORY;
    t->cap = cap;
    return 0;
}

void table_row(struct table *t)
{
    if (t->n_rows == t->cap && grow(t)) {
        t->failed = 1;
        return;
    }
    for (int c = 0; c < t->n_columns; c++)
        t->cells[t->n_rows * t->n_columns + c] = (struct table_cell){NULL, NAN, NAN, NAN};
    t->breaks[t->n_rows++] = 0;
}

void table_break(struct table *t)
{
    if (!t->failed)
        t->breaks[t->n_rows - 1] = 1;
}

/* The last row's cell of this key, NULL after a failure. */
static struct table_cell *cell(struct table *t, const char *key, int *kind)
{
    int c = 0;
    while (c < t->n_columns && strcmp(t->columns[c].key, key))
        c++;
    assert(c < t->n_columns);
    *kind = (int)t->columns[c].kind;
    if (t->failed)
        return NULL;
    assert(t->n_rows > 0);
    return &t->cells[(t->n_rows - 1) * t->n_columns + c];
}

void table_text(struct table *t, const char *key, const char *text)
{
    int kind;
    struct table_cell *x = cell(t, key, &kind);
    assert(kind == TABLE_TEXT);
    if (!x)
        return;
    free(x->text);
    x->text = strdup(text);
    t->failed |= !x->text;
}

void table_number(struct table *t, const char *key, double value)
{
    int kind;
    struct table_cell *x = cell(t, key, &kind);
    assert(kind == TABLE_COUNT || kind == TABLE_REAL || kind == TABLE_SHARE);
    if (x)
        x->value = value;
}

void table_interval(struct table *t, const char *key, struct stats_interval v)
{
    int kind;
    struct table_cell *x = cell(t, key, &kind);
    assert(kind == TABLE_INTERVAL);
    if (x)
        *x = (struct table_cell){NULL, v.value, v.lo, v.hi};
}

/* A cell as the text form shows it, of an interval the value alone. */
static const char *show(const struct table_column *col, const struct table_cell *x, char *buf, size_t n)
{
    if (col->kind == TABLE_TEXT)
        return x->text ? x->text : "";
    if (isnan(x->value))
        snprintf(buf, n, "-");
    else if (col->kind == TABLE_SHARE)
        snprintf(buf, n, "%.*f %%", col->decimals, 100 * x->value);
    else
        snprintf(buf, n, "%.*f", col->kind == TABLE_COUNT ? 0 : col->decimals, x->value);
    return buf;
}

/* " [lo, hi]"; nothing for an interval of no width: it is certain by construction (an arm against itself). */
static int show_range(const struct table_column *col, const struct table_cell *x, char *buf, size_t n)
{
    buf[0] = 0;
    if (col->kind != TABLE_INTERVAL || isnan(x->lo) || (x->lo == x->value && x->hi == x->value))
        return 0;
    int len = snprintf(buf, n, " [%.*f, %.*f]", col->decimals, x->lo, col->decimals, x->hi);
    return len < (int)n ? len : (int)n - 1;
}

static int is_empty(const struct table *t, int c)
{
    for (int r = 0; r < t->n_rows; r++) {
        const struct table_cell *x = &t->cells[r * t->n_columns + c];
        if (t->columns[c].kind == TABLE_TEXT ? x->text && *x->text : !isnan(x->value))
            return 0;
    }
    return 1;
}

struct extent {
    int width; /* columns; 0: not shown */
    int range; /* of these, for the ranges of intervals, which line up like a column of their own */
};

static struct extent measure(const struct table *t, int c)
{
    const struct table_column *col = &t->columns[c];
    int head = display_width(col->head), unit = display_width(col->unit), value = 0, range = 0;
    for (int r = 0; r < t->n_rows; r++) {
        char buf[CELL_MAX];
        const struct table_cell *x = &t->cells[r * t->n_columns + c];
        int v = display_width(show(col, x, buf, sizeof buf)), w = show_range(col, x, buf, sizeof buf);
        value = v > value ? v : value;
        range = w > range ? w : range;
    }
    int width = value + range;
    width = head > width ? head : width;
    return (struct extent){unit > width ? unit : width, range};
}

/* What is shown, and how wide; takes from the widest text column until the line fits. */
static void fit(const struct table *t, unsigned view, int limit, struct extent *e)
{
    int total = -GAP;
    for (int c = 0; c < t->n_columns; c++) {
        if (!(t->columns[c].views & view) || is_empty(t, c))
            continue;
        e[c] = measure(t, c);
        total += e[c].width + GAP;
    }
    for (; total > limit; total--) {
        int widest = -1;
        for (int c = 0; c < t->n_columns; c++)
            if (t->columns[c].kind == TABLE_TEXT && e[c].width > MIN_TEXT &&
                (widest < 0 || e[c].width > e[widest].width))
                widest = c;
        if (widest < 0)
            break;
        e[widest].width--;
    }
}

/* A row, or one of the header lines: text to the left, numbers to the right, ranges behind their values. No
 * blanks at the end. */
static void put_line(const struct table *t, int row, const struct extent *e, FILE *out)
{
    int owed = 0;
    for (int c = 0; c < t->n_columns; c++) {
        const struct table_column *col = &t->columns[c];
        char buf[CELL_MAX], range[CELL_MAX] = "";
        if (!e[c].width)
            continue;
        const char *s = row == HEAD ? col->head : row == UNIT ? col->unit : NULL;
        int room = e[c].width, tail = 0;
        if (!s) {
            const struct table_cell *x = &t->cells[row * t->n_columns + c];
            s = show(col, x, buf, sizeof buf);
            tail = show_range(col, x, range, sizeof range);
            room -= e[c].range;
        }
        int w = display_width(s), pad = w < room ? room - w : 0, left = col->kind == TABLE_TEXT ? 0 : pad;
        if (*s) {
            fprintf(out, "%*s", owed + left, "");
            display_put(s, room, out);
            fputs(range, out);
            owed = GAP + pad - left + (e[c].width - room - tail);
        } else {
            owed += e[c].width + GAP;
        }
    }
    fputc('\n', out);
}

int table_print_text(const struct table *t, unsigned view, int limit, FILE *out)
{
    struct extent *e = t->failed ? NULL : calloc((size_t)t->n_columns, sizeof *e);
    if (!e)
        FAIL(ERR_MEMORY, "table: no memory for %d rows of %d columns", t->n_rows, t->n_columns);
    fit(t, view, limit, e);
    put_line(t, HEAD, e, out);
    put_line(t, UNIT, e, out);
    for (int r = 0; r < t->n_rows; r++) {
        if (t->breaks[r])
            fputc('\n', out);
        put_line(t, r, e, out);
    }
    free(e);
    return 0;
}

static void csv_field(const char *s, FILE *out)
{
    if (!s[strcspn(s, ",\"\r\n")]) {
        fputs(s, out);
        return;
    }
    fputc('"', out);
    for (; *s; s++) {
        if (*s == '"')
            fputc('"', out);
        fputc(*s, out);
    }
    fputc('"', out);
}

static void csv_number(double v, FILE *out)
{
    if (!isnan(v))
        fprintf(out, "%.17g", v);
}

int table_print_csv(const struct table *t, FILE *out)
{
    if (t->failed)
        FAIL(ERR_MEMORY, "table: no memory for %d rows of %d columns", t->n_rows, t->n_columns);
    for (int c = 0; c < t->n_columns; c++) {
        const struct table_column *col = &t->columns[c];
        fprintf(out, "%s%s", c ? "," : "", col->key);
        if (col->kind == TABLE_INTERVAL)
            fprintf(out, ",%s_lo,%s_hi", col->key, col->key);
    }
    fputs("\r\n", out);
    for (int i = 0; i < t->n_rows * t->n_columns; i++) {
        const struct table_column *col = &t->columns[i % t->n_columns];
        const struct table_cell *x = &t->cells[i];
        if (i % t->n_columns)
            fputc(',', out);
        if (col->kind == TABLE_TEXT)
            csv_field(x->text ? x->text : "", out);
        else
            csv_number(x->value, out);
        if (col->kind == TABLE_INTERVAL) {
            fputc(',', out);
            csv_number(x->lo, out);
            fputc(',', out);
            csv_number(x->hi, out);
        }
        if ((i + 1) % t->n_columns == 0)
            fputs("\r\n", out);
    }
    return 0;
}

json_t *table_json_string(const char *bytes)
{
    size_t n;
    char *clean = utf8_clean(bytes, strlen(bytes), &n);
    json_t *v = clean ? json_stringn(clean, n) : NULL;
    free(clean);
    return v;
}

static json_t *json_number(double v, enum table_kind kind)
{
    if (!isfinite(v))
        return json_null();
    return kind == TABLE_COUNT ? json_integer((json_int_t)v) : json_real(v);
}

static json_t *json_cell(const struct table_column *col, const struct table_cell *x)
{
    if (col->kind == TABLE_TEXT)
        return x->text ? table_json_string(x->text) : json_null();
    if (col->kind != TABLE_INTERVAL)
        return json_number(x->value, col->kind);
    return json_pack("{s:o, s:o, s:o}", "value", json_number(x->value, col->kind), "lo",
                     json_number(x->lo, col->kind), "hi", json_number(x->hi, col->kind));
}

int table_json(const struct table *t, json_t **out)
{
    json_t *rows = t->failed ? NULL : json_array();
    int bad = !rows;
    for (int r = 0; r < t->n_rows && !bad; r++) {
        json_t *row = json_object();
        for (int c = 0; c < t->n_columns && !bad; c++)
            bad = json_object_set_new(row, t->columns[c].key,
                                      json_cell(&t->columns[c], &t->cells[r * t->n_columns + c])) != 0;
        bad |= json_array_append_new(rows, row) != 0;
    }
    if (bad) {
        json_decref(rows);
        FAIL(ERR_MEMORY, "table: no memory for JSON of %d rows", t->n_rows);
    }
    *out = rows;
    return 0;
}
