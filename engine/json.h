/* json: reading JSON with errors a person can act on. The only thin layer over jansson, which callers use
 * directly for everything else. Every getter's `what` names the document in messages ("models/x/config.json"). */
#ifndef ENGINE_JSON_H
#define ENGINE_JSON_H
#include <jansson.h>
#include <stddef.h>

/* Parse bytes or a whole file; the result is the caller's (json_decref). ERR_IO, ERR_FORMAT with line and column. */
int json_parse(const char *bytes, size_t n, const char *what, json_t **out);
int json_read_file(const char *path, json_t **out);

/* Typed members of an object. Missing or null: `fallback` is stored, unless it is NULL, then ERR_FORMAT.
 * A wrong type is always ERR_FORMAT: "models/x/config.json: 'hidden_size': expected an integer, found a string".
 * json_get_string lends: the text lives as long as obj. Integers must lie in [lo, hi]. */
int json_get_int(const json_t *obj, const char *key, const char *what, long lo, long hi, const long *fallback, long *out);
int json_get_double(const json_t *obj, const char *key, const char *what, const double *fallback, double *out);
int json_get_bool(const json_t *obj, const char *key, const char *what, const int *fallback, int *out);
int json_get_string(const json_t *obj, const char *key, const char *what, const char *fallback, const char **out);
const char *json_type_name(const json_t *v); /* "an object", "a string", ...; NULL gives "nothing" */
#endif
