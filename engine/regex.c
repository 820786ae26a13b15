/* regex: a pattern is read once, left to right, and written again for PCRE2; then the JIT compiler takes it
 * (where there is none, PCRE2 interprets). Cost of a search: about 0.1 us for a word. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/regex.h"
#include "engine/err.h"
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { PATTERN_MAX = 4096, REPEAT_MAX = 1000 };

struct regex {
    pcre2_code *code; /* owned */
};

struct regex_scratch {
    pcre2_match_data *data; /* owned; one pair of offsets */
};

/* Reading position in the pattern, and where the translation goes. */
struct reader {
    const char *p, *end;
    const char *what; /* borrowed: names the pattern */
    FILE *out;        /* owned by regex_open: a memory stream */
};

static const char space_ranges[] =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}"
    "\\x{202f}\\x{205f}\\x{3000}";

static int at(const struct reader *r, const char *text)
{
    size_t n = strlen(text);
    return (size_t)(r->end - r->p) >= n && memcmp(r->p, text, n) == 0;
}

/* ERR_LIMIT about the next n bytes of the pattern, or fewer where it ends. */
static int refuse(const struct reader *r, int n)
{
    int left = (int)(r->end - r->p);
    FAIL(ERR_LIMIT, "%s: expected only what this program reads of Oniguruma's syntax, found '%.*s'", r->what,
         n < left ? n : left, r->p);
}

static int copy(struct reader *r, int n)
{
    fwrite(r->p, 1, (size_t)n, r->out);
    r->p += n;
    return 0;
}

/* Inside brackets: \p{category} and what Unicode 15 and 16 added to it. */
static void put_category(struct reader *r, const char *name)
{
    fprintf(r->out, "\\p{%s}", name);
    for (int i = 0; i < regex_n_recent; i++) {
        const struct regex_range *g = &regex_recent[i];
        if (strncmp(g->category, name, strlen(name)) == 0)
            fprintf(r->out, "\\x{%x}-\\x{%x}", g->lo, g->hi);
    }
}

/* \p{L}, \P{Lu}: a general category of one or two letters; in_class: the brackets are there already. */
static int read_category(struct reader *r, int in_class)
{
    static const char known[] =
        " L Lu Ll Lt Lm Lo M Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp ";
    char name[3] = "", spaced[5];
    int negated = r->p[1] == 'P';
    const char *close = memchr(r->p, '}', (size_t)(r->end - r->p));
    size_t n = close ? (size_t)(close - r->p) : 0;
    if (n < 4 || n > 5 || r->p[2] != '{' || (negated && in_class))
        return refuse(r, (int)n + 1 > 3 ? (int)n + 1 : 3);
    memcpy(name, r->p + 3, n - 3);
    snprintf(spaced, sizeof spaced, " %s ", name);
    if (!strstr(known, spaced))
        return refuse(r, (int)n + 1);
    if (!in_class)
        fputs(negated ? "[^" : "[", r->out);
    put_category(r, name);
    if (!in_class)
        fputc(']', r->out);
    r->p = close + 1;
    return 0;
}

static int read_escape(struct reader *r, int in_class)
{
    unsigned code;
    char hex[5] = "";
    int used = 0;
    char c = r->end - r->p > 1 ? r->p[1] : 'z';
    switch (c) {
    case 's':
        fprintf(r->out, in_class ? "%s" : "[%s]", space_ranges);
        r->p += 2;
        return 0;
    case 'S':
        if (in_class)
            return refuse(r, 2);
        fprintf(r->out, "[^%s]", space_ranges);
        r->p += 2;
        return 0;
    case 'd':
        fputs(in_class ? "" : "[", r->out);
        put_category(r, "Nd");
        fputs(in_class ? "" : "]", r->out);
        r->p += 2;
        return 0;
    case 'p':
    case 'P':
        return read_category(r, in_class);
    case 'v': /* a vertical tab; PCRE2 would read a class */
        fputs("\\x{b}", r->out);
        r->p += 2;
        return 0;
    case 'u':
        memcpy(hex, r->p + 2, r->end - r->p >= 6 ? 4 : 0);
        if (sscanf(hex, "%4x%n", &code, &used) != 1 || used != 4)
            return refuse(r, 6);
        fprintf(r->out, "\\x{%x}", code);
        r->p += 6;
        return 0;
    }
    if (!strchr("rntf", c) &&
        !(c > ' ' && c < 0x7F && !((c | 32) >= 'a' && (c | 32) <= 'z') && !(c >= '0' && c <= '9')))
        return refuse(r, 2);
    return copy(r, 2);
}

static int read_class(struct reader *r)
{
    copy(r, at(r, "[^") ? 2 : 1);
    if (at(r, "]"))
        return refuse(r, 1);
    while (r->p < r->end && *r->p != ']') {
        if (*r->p == '\\')
            TRY(read_escape(r, 1));
        else if (*r->p == '[' || at(r, "&&"))
            return refuse(r, 2);
        else
            copy(r, 1);
    }
    if (r->p == r->end)
        FAIL(ERR_FORMAT, "%s: expected ']' before the end of the regular expression", r->what);
    return copy(r, 1);
}

/* {n}, {n,}, {n,m}; a '+' or '?' after it means one thing to Oniguruma and another to PCRE2. */
static int read_repeat(struct reader *r)
{
    int lo, hi, used = 0;
    char text[16] = "";
    size_t left = (size_t)(r->end - r->p);
    memcpy(text, r->p, left < sizeof text - 1 ? left : sizeof text - 1);
    if (text[1] < '0' || text[1] > '9')
        return refuse(r, 2);
    if ((sscanf(text, "{%4d}%n", &lo, &used) < 1 || !used) &&
        (sscanf(text, "{%4d,}%n", &lo, &used) < 1 || !used) &&
        (sscanf(text, "{%4d,%4d}%n", &lo, &hi, &used) < 2 || !used || hi < lo || hi > REPEAT_MAX))
        return refuse(r, 12);
    if (lo > REPEAT_MAX || text[used] == '+' || text[used] == '?' || text[used] == '*' || text[used] == '{')
        return refuse(r, used + 1);
    return copy(r, used);
}

/* (?i:...): plain ASCII letters only, and none of the pairs that one character, such as the German sharp s,
 * equals when case does not count: Oniguruma follows that, PCRE2 does not. */
static int copy_caseless(struct reader *r)
{
    static const char *const ligatures[] = {"ss", "st", "ff", "fi", "fl"};
    copy(r, 4);
    while (r->p < r->end && *r->p != ')') {
        for (size_t i = 0; i < sizeof ligatures / sizeof ligatures[0]; i++)
            if (r->end - r->p > 1 && strncasecmp(r->p, ligatures[i], 2) == 0)
                return refuse(r, 2);
        int letter = (*r->p | 32) >= 'a' && (*r->p | 32) <= 'z';
        if (!letter && *r->p != '\'' && *r->p != '|')
            return refuse(r, 1);
        copy(r, 1);
    }
    if (r->p == r->end)
        FAIL(ERR_FORMAT, "%s: expected ')' before the end of the regular expression", r->what);
    return copy(r, 1);
}

static int read_group(struct reader *r)
{
    static const char *const openings[] = {"(?:", "(?=", "(?!", "(?>"};
    if (at(r, "(?i:"))
        return copy_caseless(r);
    for (size_t i = 0; i < sizeof openings / sizeof openings[0]; i++)
        if (at(r, openings[i]))
            return copy(r, 3);
    if (at(r, "(?") || at(r, "(*"))
        return refuse(r, 3);
    return copy(r, 1);
}

static int translate(struct reader *r)
{
    while (r->p < r->end) {
        switch (*r->p) {
        case '\\':
            TRY(read_escape(r, 0));
            break;
        case '[':
            TRY(read_class(r));
            break;
        case '(':
            TRY(read_group(r));
            break;
        case '{':
            TRY(read_repeat(r));
            break;
        case '^':
        case '$':
        case 0:
            return refuse(r, 1);
        default:
            copy(r, 1);
        }
    }
    return 0;
}

static int compile(struct regex *re, const char *pattern, size_t n, const char *what)
{
    int code;
    size_t offset;
    char message[128];
    re->code = pcre2_compile((PCRE2_SPTR)pattern, n, PCRE2_UTF | PCRE2_UCP, &code, &offset, NULL);
    if (!re->code) {
        pcre2_get_error_message(code, (PCRE2_UCHAR *)message, sizeof message);
        FAIL(ERR_FORMAT, "%s: expected a regular expression, found: %s", what, message);
    }
    /* A failure here only costs speed: PCRE2 then interprets. */
    (void)pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE);
    return 0;
}

int regex_open(struct regex **out, const char *pattern, size_t n, const char *what)
{
    int rc = 0;
    char *text = NULL;
    size_t n_text = 0;
    struct reader r = {pattern, pattern + n, what, NULL};
    struct regex *re = NULL;
    if (n > PATTERN_MAX) {
        rc = ERR_SET(ERR_LIMIT, "%s: expected at most %d bytes, found %zu", what, PATTERN_MAX, n);
        goto out;
    }
    re = calloc(1, sizeof *re);
    r.out = open_memstream(&text, &n_text);
    if (!re || !r.out) {
        rc = ERR_SET(ERR_MEMORY, "%s: out of memory", what);
        goto out;
    }
    rc = translate(&r);
    if (rc)
        goto out;
    if (fflush(r.out) || ferror(r.out)) {
        rc = ERR_SET(ERR_MEMORY, "%s: out of memory", what);
        goto out;
    }
    rc = compile(re, text, n_text, what);
    if (rc)
        goto out;
    *out = re;
    re = NULL;
out:
    if (r.out)
        fclose(r.out);
    free(text);
    regex_close(re);
    return rc;
}

void regex_close(struct regex *re)
{
    if (re)
        pcre2_code_free(re->code);
    free(re);
}

int regex_scratch_new(struct regex_scratch **out)
{
    struct regex_scratch *s = calloc(1, sizeof *s);
    if (s)
        s->data = pcre2_match_data_create(1, NULL);
    if (!s || !s->data) {
        free(s);
        FAIL(ERR_MEMORY, "tokenizer: out of memory");
    }
    *out = s;
    return 0;
}

void regex_scratch_free(struct regex_scratch *s)
{
    if (s)
        pcre2_match_data_free(s->data);
    free(s);
}

int regex_find(const struct regex *re, struct regex_scratch *s, const char *text, size_t n, size_t from,
               int *found, size_t *start, size_t *end)
{
    int rc = pcre2_match(re->code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK, s->data, NULL);
    if (rc == PCRE2_ERROR_NOMATCH) {
        *found = 0;
        return 0;
    }
    if (rc < 0) {
        char message[128];
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)message, sizeof message);
        FAIL(ERR_LIMIT, "tokenizer: a pre-tokenizer's regular expression gives up at byte %zu of %zu: %s",
             from, n, message);
    }
    const PCRE2_SIZE *offsets = pcre2_get_ovector_pointer(s->data);
    *found = 1;
    *start = offsets[0];
    *end = offsets[1];
    return 0;
}
