/* config_option: numbers are parsed strictly (all of the text, no hexadecimal, no infinity) and printed with
 * as few digits as read back to the same bits. */
#include "experiments/config_option.h"
#include "engine/err.h"
#include "engine/utf8.h"
#include "experiments/suggest.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void *member(const struct config *c, const struct config_option *o)
{
    return (char *)c + o->offset;
}

int config_fail_unknown(const char *key, const char *place, const char *where)
{
    char hint[160];
    config_suggest(key, hint, sizeof hint);
    FAIL(ERR_CONFIG, "%s: unknown key '%s'%s%s", where, key, place, hint);
}

int config_list_copy(struct config_list *to, char *const *items, int n)
{
    struct config_list l = {.items = n ? calloc((size_t)n, sizeof *l.items) : NULL};
    if (n && !l.items)
        FAIL(ERR_MEMORY, "out of memory for a list of %d texts", n);
    for (; l.n < n; l.n++) {
        l.items[l.n] = strdup(items[l.n]);
        if (!l.items[l.n]) {
            config_list_free(&l);
            FAIL(ERR_MEMORY, "out of memory for a list of %d texts", n);
        }
    }
    *to = l;
    return 0;
}

void config_list_free(struct config_list *l)
{
    for (int i = 0; i < l->n; i++)
        free(l->items[i]);
    free(l->items);
    *l = (struct config_list){0};
}

static int store_string(char **to, const char *text)
{
    char *copy = strdup(text);
    if (!copy)
        FAIL(ERR_MEMORY, "out of memory for %zu bytes of text", strlen(text));
    free(*to);
    *to = copy;
    return 0;
}

/* A one-line quotation of at most 60 bytes, for messages. */
static void quote(const char *text, char buf[64])
{
    size_t n = 0;
    for (; n < 60 && text[n]; n++)
        buf[n] = (unsigned char)text[n] < ' ' ? ' ' : text[n];
    if (text[n]) {
        n = utf8_valid(buf, 57);
        memcpy(buf + n, "...", 3);
        n += 3;
    }
    buf[n] = 0;
}

static int fail_value(const struct config_option *o, const char *text, const char *where)
{
    char expected[256], found[64];
    config_option_expected(o, expected, sizeof expected);
    quote(text, found);
    if (!text[0])
        FAIL(ERR_CONFIG, "%s: %s: expected %s, found nothing", where, o->key, expected);
    FAIL(ERR_CONFIG, "%s: %s: expected %s, found '%s'", where, o->key, expected, found);
}

static int set_int(struct config *c, const struct config_option *o, const char *text, const char *where)
{
    char *end;
    size_t sign = text[0] == '-';
    errno = 0;
    long v = strtol(text, &end, 10);
    if (text[sign] < '0' || text[sign] > '9' || *end || errno || (double)v < o->lo)
        return fail_value(o, text, where);
    if (o->store != CONFIG_AS_LONG && (double)v > o->hi)
        return fail_value(o, text, where);
    if (o->store == CONFIG_AS_LONG)
        *(long *)member(c, o) = v;
    else if (o->store == CONFIG_AS_INT)
        *(int *)member(c, o) = (int)v;
    else
        *(double *)member(c, o) = (double)v;
    return 0;
}

static int set_real(struct config *c, const struct config_option *o, const char *text, const char *where)
{
    char *end;
    double v = strtod(text, &end);
    if (!text[0] || text[strspn(text, "0123456789+-.eE")] || *end)
        return fail_value(o, text, where);
    if (!(o->lo_open ? v > o->lo : v >= o->lo) || !(v <= o->hi))
        return fail_value(o, text, where);
    *(double *)member(c, o) = v;
    return 0;
}

static int set_choice(struct config *c, const struct config_option *o, const char *text, const char *where)
{
    struct suggest s;
    suggest_begin(&s, text);
    for (int i = 0; config_option_word(o, i); i++) {
        if (!strcmp(config_option_word(o, i), text)) {
            if (o->store == CONFIG_AS_STRING)
                return store_string(member(c, o), text);
            *(double *)member(c, o) = i;
            return 0;
        }
        suggest_try(&s, config_option_word(o, i));
    }
    if (!s.best)
        return fail_value(o, text, where);
    char expected[256], found[64];
    config_option_expected(o, expected, sizeof expected);
    quote(text, found);
    FAIL(ERR_CONFIG, "%s: %s: expected %s, found '%s'; did you mean '%s'?", where, o->key, expected, found,
         s.best);
}

static int set_list(struct config *c, const struct config_option *o, char *const *text, int n,
                    const char *where)
{
    struct config_list l = {0};
    for (int i = 0; i < n; i++)
        if (!text[i][0])
            FAIL(ERR_CONFIG, "%s: %s: expected non-empty texts, found an empty one as item %d", where, o->key,
                 i + 1);
    TRY(config_list_copy(&l, text, n));
    config_list_free(member(c, o));
    *(struct config_list *)member(c, o) = l;
    return 0;
}

int config_option_set(struct config *c, const struct config_option *o, char *const *text, int n,
                      const char *where)
{
    if (o->type == CONFIG_LIST)
        return set_list(c, o, text, n, where);
    if (n != 1) {
        char expected[256];
        config_option_expected(o, expected, sizeof expected);
        FAIL(ERR_CONFIG,
             "%s: %s: expected %s, found a list of %d; to try several values, write sweep: {%s: [...]}",
             where, o->key, expected, n, o->key);
    }
    switch (o->type) {
    case CONFIG_INT:
        return set_int(c, o, text[0], where);
    case CONFIG_REAL:
        return set_real(c, o, text[0], where);
    case CONFIG_CHOICE:
        return set_choice(c, o, text[0], where);
    case CONFIG_BOOL:
        if (strcmp(text[0], "true") != 0 && strcmp(text[0], "false") != 0)
            return fail_value(o, text[0], where);
        *(int *)member(c, o) = text[0][0] == 't';
        return 0;
    default:
        return store_string(member(c, o), text[0]);
    }
}

int config_option_copy(struct config *to, const struct config *from, const struct config_option *o)
{
    const struct config_list *l = member(from, o);
    switch (o->store) {
    case CONFIG_AS_INT:
        *(int *)member(to, o) = *(int *)member(from, o);
        return 0;
    case CONFIG_AS_LONG:
        *(long *)member(to, o) = *(long *)member(from, o);
        return 0;
    case CONFIG_AS_DOUBLE:
        *(double *)member(to, o) = *(double *)member(from, o);
        return 0;
    case CONFIG_AS_STRING:
        return store_string(member(to, o), *(char **)member(from, o));
    case CONFIG_AS_LIST:
        config_list_free(member(to, o));
        return config_list_copy(member(to, o), l->items, l->n);
    }
    return 0;
}

void config_option_free(struct config *c, const struct config_option *o)
{
    char **string = member(c, o);
    if (o->store == CONFIG_AS_LIST)
        config_list_free(member(c, o));
    if (o->store == CONFIG_AS_STRING) {
        free(*string);
        *string = NULL;
    }
}

/* Text that YAML reads as itself without quotes, wherever it stands. */
static int is_plain(const char *text)
{
    static const char first[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/";
    static const char rest[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-";
    return text[0] && strchr(first, text[0]) && text[strspn(text, rest)] == 0;
}

/* Characters that YAML would fold, strip or refuse when they stand for themselves between double quotes. */
static int needs_escape(uint32_t code)
{
    return code < 0x20 || (code >= 0x7F && code <= 0xA0) || code == 0x2028 || code == 0x2029 ||
           code == 0xFEFF || code == 0xFFFE || code == 0xFFFF;
}

void config_print_text(const char *text, FILE *out)
{
    if (is_plain(text)) {
        fputs(text, out);
        return;
    }
    fputc('"', out);
    for (size_t left = strlen(text); left > 0;) {
        int len;
        uint32_t code;
        utf8_next(text, left, &len, &code);
        if (code == '"' || code == '\\')
            fprintf(out, "\\%c", (char)code);
        else if (code == '\n')
            fputs("\\n", out);
        else if (needs_escape(code))
            fprintf(out, "\\u%04X", (unsigned)code);
        else
            fprintf(out, "%.*s", len, text);
        text += len;
        left -= (size_t)len;
    }
    fputc('"', out);
}

void config_print_list(const struct config_list *l, FILE *out)
{
    fputc('[', out);
    for (int i = 0; i < l->n; i++) {
        fputs(i ? ", " : "", out);
        config_print_text(l->items[i], out);
    }
    fputc(']', out);
}

static void print_real(double v, FILE *out)
{
    char buf[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(buf, sizeof buf, "%.*g", digits, v);
        if (strtod(buf, NULL) == v)
            break;
    }
    fputs(buf, out);
}

void config_option_print(const struct config *c, const struct config_option *o, FILE *out)
{
    const void *v = member(c, o);
    switch (o->store) {
    case CONFIG_AS_INT:
        if (o->type == CONFIG_BOOL)
            fputs(*(const int *)v ? "true" : "false", out);
        else
            fprintf(out, "%d", *(const int *)v);
        break;
    case CONFIG_AS_LONG:
        fprintf(out, "%ld", *(const long *)v);
        break;
    case CONFIG_AS_DOUBLE:
        if (o->type == CONFIG_CHOICE)
            fputs(config_option_word(o, (int)*(const double *)v), out);
        else
            print_real(*(const double *)v, out);
        break;
    case CONFIG_AS_STRING:
        config_print_text(*(char *const *)v, out);
        break;
    case CONFIG_AS_LIST:
        config_print_list(v, out);
        break;
    }
}
