/* fuzz_json: any bytes through the parser, then every getter on every member of what came out. */
#include "engine/err.h"
#include "engine/json.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* A getter that fails says so and leaves its output alone; one that succeeds leaves a value in range. */
static void get_all(const json_t *obj, const char *key)
{
    static const long no_int = -7;
    static const double no_double = -7;
    static const int no_bool = 7;
    long i = 99;
    double d;
    int b = 99;
    const char *s = NULL;
    err_clear();
    int rc = json_get_int(obj, key, "fuzz", -1000, 1000, &no_int, &i);
    if (rc ? i != 99 || !*err_text() : i < -1000 || i > 1000)
        abort();
    rc = json_get_bool(obj, key, "fuzz", &no_bool, &b);
    if (rc ? b != 99 : b != 0 && b != 1 && b != 7)
        abort();
    if (json_get_string(obj, key, "fuzz", NULL, &s) == 0 && strlen(s) > (size_t)1 << 30)
        abort();
    (void)json_get_double(obj, key, "fuzz", &no_double, &d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    json_t *root = NULL, *value;
    const char *key;
    err_clear();
    if (json_parse((const char *)data, n, "fuzz", &root)) {
        if (root || !*err_text())
            abort();
        return 0;
    }
    json_object_foreach(root, key, value) get_all(root, key);
    get_all(root, "missing");
    json_decref(root);
    return 0;
}
