/* json: jansson does the parsing; this adds what its messages lack: the document, the key, what was expected.
 */
#include "engine/json.h"
#include "engine/err.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_MAX_BYTES = 1 << 30 };

int json_parse(const char *bytes, size_t n, const char *what, json_t **out)
{
    json_error_t e;
    json_t *v = json_loadb(n ? bytes : "", n, JSON_REJECT_DUPLICATES, &e);
    if (!v && json_error_code(&e) == json_error_out_of_memory)
        FAIL(ERR_MEMORY, "%s: out of memory while parsing %zu bytes of JSON", what, n);
    if (!v)
        FAIL(ERR_FORMAT, "%s: line %d, column %d: expected JSON, found: %s", what, e.line, e.column, e.text);
    *out = v;
    return 0;
}

/* Appends what is left of f to *bytes, growing it by doubling; the caller frees *bytes whatever happens. */
static int read_all(FILE *f, const char *path, char **bytes, size_t *n)
{
    size_t cap = 0;
    for (;;) {
        if (*n == cap) {
            if (cap >= FILE_MAX_BYTES)
                FAIL(ERR_LIMIT, "%s: expected a JSON file of less than %d bytes, found more", path,
                     FILE_MAX_BYTES);
            cap = cap ? 2 * cap : 1 << 16;
            char *grown = realloc(*bytes, cap);
            if (!grown)
                FAIL(ERR_MEMORY, "%s: out of memory while reading; wanted %zu bytes", path, cap);
            *bytes = grown;
        }
        size_t got = fread(*bytes + *n, 1, cap - *n, f);
        *n += got;
        if (got == 0 && ferror(f))
            FAIL(ERR_IO, "%s: cannot read: %s", path, strerror(errno));
        if (got == 0)
            return 0;
    }
}

int json_read_file(const char *path, json_t **out)
{
    int rc;
    char *bytes = NULL;
    size_t n = 0;
    FILE *f = fopen(path, "rb");
    if (!f) {
        rc = ERR_SET(ERR_IO, "%s: cannot open: %s", path, strerror(errno));
        goto out;
    }
    rc = read_all(f, path, &bytes, &n);
    if (rc)
        goto out;
    rc = json_parse(bytes, n, path, out);
out:
    free(bytes);
    if (f)
        fclose(f);
    return rc;
}

const char *json_type_name(const json_t *v)
{
    if (!v)
        return "nothing";
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        return "null";
    }
    return "an unknown value";
}

/* The member, or NULL where it is missing or null and the caller has a fallback; anything else is an error.
 */
static int member(const json_t *obj, const char *key, const char *what, const char *expected, int optional,
                  json_t **v)
{
    if (!json_is_object(obj))
        FAIL(ERR_FORMAT, "%s: expected an object with '%s', found %s", what, key, json_type_name(obj));
    json_t *found = json_object_get(obj, key);
    if (found && !json_is_null(found)) {
        *v = found;
        return 0;
    }
    if (!optional)
        FAIL(ERR_FORMAT, "%s: '%s': expected %s, found %s", what, key, expected, json_type_name(found));
    *v = NULL;
    return 0;
}

int json_get_int(const json_t *obj, const char *key, const char *what, long lo, long hi, const long *fallback,
                 long *out)
{
    json_t *v = NULL;
    TRY(member(obj, key, what, "an integer", fallback != NULL, &v));
    if (!v) {
        *out = *fallback;
        return 0;
    }
    if (!json_is_integer(v))
        FAIL(ERR_FORMAT, "%s: '%s': expected an integer, found %s", what, key, json_type_name(v));
    json_int_t i = json_integer_value(v);
    if (i < lo || i > hi)
        FAIL(ERR_FORMAT, "%s: '%s': expected an integer from %ld to %ld, found %lld", what, key, lo, hi,
             (long long)i);
    *out = (long)i;
    return 0;
}

int json_get_double(const json_t *obj, const char *key, const char *what, const double *fallback, double *out)
{
    json_t *v = NULL;
    TRY(member(obj, key, what, "a number", fallback != NULL, &v));
    if (v && !json_is_number(v))
        FAIL(ERR_FORMAT, "%s: '%s': expected a number, found %s", what, key, json_type_name(v));
    *out = v ? json_number_value(v) : *fallback;
    return 0;
}

int json_get_bool(const json_t *obj, const char *key, const char *what, const int *fallback, int *out)
{
    json_t *v = NULL;
    TRY(member(obj, key, what, "true or false", fallback != NULL, &v));
    if (v && !json_is_boolean(v))
        FAIL(ERR_FORMAT, "%s: '%s': expected true or false, found %s", what, key, json_type_name(v));
    *out = v ? json_is_true(v) : *fallback;
    return 0;
}

int json_get_string(const json_t *obj, const char *key, const char *what, const char *fallback,
                    const char **out)
{
    json_t *v = NULL;
    TRY(member(obj, key, what, "a string", fallback != NULL, &v));
    if (v && !json_is_string(v))
        FAIL(ERR_FORMAT, "%s: '%s': expected a string, found %s", what, key, json_type_name(v));
    *out = v ? json_string_value(v) : fallback;
    return 0;
}
