/* pretokenize: every step is a regular expression, also Digits and the one built into ByteLevel. */
#include "engine/pretokenize.h"
#include "engine/err.h"
#include "engine/json.h"
#include <stdlib.h>
#include <string.h>

/* GPT-2's, which ByteLevel uses unless use_regex is false. */
static const char byte_level_regex[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
/* Digits goes by the tables of Rust, which have Unicode 17's numbers already. */
static const char digit_regex[] =
    "[\\p{N}\xF0\x91\xB7\xA0-\xF0\x91\xB7\xA9\xF0\x96\xBF\xB4-\xF0\x96\xBF\xB6]";
static const char digits_regex[] =
    "[\\p{N}\xF0\x91\xB7\xA0-\xF0\x91\xB7\xA9\xF0\x96\xBF\xB4-\xF0\x96\xBF\xB6]+";

static int add_split(struct pretokenize_step *step, const json_t *spec, const char *what)
{
    static const int no = 0;
    const char *behavior;
    int invert;
    TRY(json_get_string(spec, "behavior", what, NULL, &behavior));
    TRY(json_get_bool(spec, "invert", what, &no, &invert));
    if (strcmp(behavior, "Isolated") != 0)
        FAIL(ERR_LIMIT, "%s: Split: 'behavior': expected Isolated, found '%s'", what, behavior);
    if (invert)
        FAIL(ERR_LIMIT, "%s: Split: 'invert': expected false, found true", what);
    const json_t *pattern = json_object_get(spec, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    if (!json_is_string(regex))
        FAIL(ERR_LIMIT, "%s: Split: 'pattern': expected an object with a string 'Regex', found %s", what,
             json_is_object(pattern) ? "an object without" : json_type_name(pattern));
    return regex_open(&step->regex, json_string_value(regex), json_string_length(regex), what);
}

static int add_byte_level(struct pretokenize_step *step, const json_t *spec, const char *what)
{
    static const int yes = 1;
    int use_regex;
    TRY(json_get_bool(spec, "add_prefix_space", what, &yes, &step->prefix_space));
    TRY(json_get_bool(spec, "use_regex", what, &yes, &use_regex));
    return use_regex ? regex_open(&step->regex, byte_level_regex, strlen(byte_level_regex), what) : 0;
}

static int add_digits(struct pretokenize_step *step, const json_t *spec, const char *what)
{
    static const int no = 0;
    int individual;
    TRY(json_get_bool(spec, "individual_digits", what, &no, &individual));
    const char *regex = individual ? digit_regex : digits_regex;
    return regex_open(&step->regex, regex, strlen(regex), what);
}

/* The next step; ByteLevel must be the last, because only it turns text into bytes, and all steps cut text.
 */
static int add_step(struct pretokenize *p, const json_t *spec, int last, const char *what)
{
    struct pretokenize_step *step = &p->steps[p->n++];
    const char *type;
    TRY(json_get_string(spec, "type", what, NULL, &type));
    if ((strcmp(type, "ByteLevel") == 0) != last)
        FAIL(ERR_LIMIT, "%s: 'type': expected ByteLevel at the end and only there, found '%s' %s", what, type,
             last ? "at the end" : "before it");
    if (last)
        return add_byte_level(step, spec, what);
    if (strcmp(type, "Split") == 0)
        return add_split(step, spec, what);
    if (strcmp(type, "Digits") == 0)
        return add_digits(step, spec, what);
    FAIL(ERR_LIMIT, "%s: 'type': expected Split, Digits or ByteLevel, found '%s'", what, type);
}

static int add_steps(struct pretokenize *p, const json_t *spec, const char *what)
{
    const char *type;
    TRY(json_get_string(spec, "type", what, NULL, &type));
    if (strcmp(type, "Sequence") != 0)
        return add_step(p, spec, 1, what);
    const json_t *list = json_object_get(spec, "pretokenizers");
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n < 1 || n > PRETOKENIZE_STEPS)
        FAIL(ERR_LIMIT, "%s: 'pretokenizers': expected an array of 1 to %d elements, found %s of %zu", what,
             PRETOKENIZE_STEPS, json_type_name(list), n);
    for (size_t i = 0; i < n; i++)
        TRY(add_step(p, json_array_get(list, i), i + 1 == n, what));
    return 0;
}

int pretokenize_init(struct pretokenize *p, const json_t *spec, const char *what)
{
    *p = (struct pretokenize){0};
    int rc = add_steps(p, spec, what);
    if (rc) {
        err_context("%s: 'pre_tokenizer'", what);
        pretokenize_deinit(p);
    }
    return rc;
}

void pretokenize_deinit(struct pretokenize *p)
{
    for (int i = 0; i < p->n; i++)
        regex_close(p->steps[i].regex);
    *p = (struct pretokenize){0};
}

struct run {
    const struct pretokenize *p;
    struct regex_scratch *scratch;
    pretokenize_sink sink;
    void *self;
};

static int run_from(const struct run *r, int step, const char *text, size_t n);

/* Cut text by the step's regular expression and give every piece to the next step. An empty match cuts and
 * moves on by a character. */
static int cut(const struct run *r, int step, const char *text, size_t n)
{
    size_t done = 0, from = 0, start, end;
    while (from < n) {
        int found;
        TRY(regex_find(r->p->steps[step].regex, r->scratch, text, n, from, &found, &start, &end));
        if (!found)
            break;
        if (start > done)
            TRY(run_from(r, step + 1, text + done, start - done));
        if (end > start)
            TRY(run_from(r, step + 1, text + start, end - start));
        done = from = end;
        if (end == start)
            for (from++; from < n && ((unsigned char)text[from] & 0xC0) == 0x80;)
                from++;
    }
    return done < n ? run_from(r, step + 1, text + done, n - done) : 0;
}

static int run_prefixed(const struct run *r, int step, const char *text, size_t n)
{
    char *copy = malloc(n + 1);
    if (!copy)
        FAIL(ERR_MEMORY, "tokenizer: out of memory for a piece of %zu bytes", n);
    copy[0] = ' ';
    memcpy(copy + 1, text, n);
    int rc = r->p->steps[step].regex ? cut(r, step, copy, n + 1) : run_from(r, step + 1, copy, n + 1);
    free(copy);
    return rc;
}

/* Depth is at most PRETOKENIZE_STEPS. */
static int run_from(const struct run *r, int step, const char *text, size_t n)
{
    if (step == r->p->n)
        return r->sink(r->self, text, n);
    if (r->p->steps[step].prefix_space && text[0] != ' ')
        return run_prefixed(r, step, text, n);
    return r->p->steps[step].regex ? cut(r, step, text, n) : run_from(r, step + 1, text, n);
}

int pretokenize_run(const struct pretokenize *p, struct regex_scratch *scratch, const char *text, size_t n,
                    pretokenize_sink sink, void *self)
{
    struct run r = {p, scratch, sink, self};
    return n ? run_from(&r, 0, text, n) : 0;
}
