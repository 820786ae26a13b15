/* safetensors: the header is parsed once into a table sorted by name; nothing of the data is read before it
 * is used. Hostile files are the normal case here: every number is checked before it becomes an address. */
#include "engine/safetensors.h"
#include "engine/err.h"
#include "engine/json.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LENGTH_BYTES = 8, HEADER_MAX_BYTES = 100000000 /* the reference implementation's limit */ };

/* What is known of the file while its header is walked. */
struct scan {
    const char *what;
    const unsigned char *data;
    size_t data_bytes;
};

static unsigned element_bits(const char *dtype)
{
    static const struct {
        const char *name;
        unsigned bits;
    } known[] = {{"BOOL", 8},        {"U8", 8},          {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8},
                 {"F8_E8M0", 8},     {"I16", 16},        {"U16", 16}, {"F16", 16},    {"BF16", 16},
                 {"I32", 32},        {"U32", 32},        {"F32", 32}, {"I64", 64},    {"U64", 64},
                 {"F64", 64},        {"C64", 64},        {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6},
                 {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"", 0} /* end */};
    for (size_t i = 0; known[i].bits; i++)
        if (strcmp(dtype, known[i].name) == 0)
            return known[i].bits;
    return 0;
}

static int read_size(const json_t *v, size_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return 0;
    *out = (size_t)json_integer_value(v);
    return 1;
}

static int read_dtype(const struct scan *s, const json_t *entry, struct tensor *t, unsigned *bits)
{
    const json_t *dtype = json_object_get(entry, "dtype");
    if (!json_is_string(dtype))
        FAIL(ERR_FORMAT, "%s: tensor '%s': 'dtype': expected a string, found %s", s->what, t->name,
             json_type_name(dtype));
    const char *text = json_string_value(dtype);
    *bits = element_bits(text);
    if (*bits == 0)
        FAIL(ERR_FORMAT, "%s: tensor '%s': 'dtype': expected one such as BF16, F16 or F32, found '%.40s'",
             s->what, t->name, text);
    memcpy(t->dtype, text, strlen(text) + 1);
    return 0;
}

static int read_shape(const struct scan *s, const json_t *entry, struct tensor *t, unsigned bits)
{
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape))
        FAIL(ERR_FORMAT, "%s: tensor '%s': 'shape': expected an array, found %s", s->what, t->name,
             json_type_name(shape));
    size_t n = json_array_size(shape), elements = 1, total_bits;
    if (n > TENSOR_MAX_DIMS)
        FAIL(ERR_FORMAT, "%s: tensor '%s': 'shape': expected at most %d dimensions, found %zu", s->what,
             t->name, TENSOR_MAX_DIMS, n);
    for (size_t i = 0; i < n; i++) {
        if (!read_size(json_array_get(shape, i), &t->shape[i]))
            FAIL(ERR_FORMAT, "%s: tensor '%s': 'shape': expected whole numbers >= 0, found %s at index %zu",
                 s->what, t->name, json_type_name(json_array_get(shape, i)), i);
        if (__builtin_mul_overflow(elements, t->shape[i], &elements))
            FAIL(ERR_FORMAT, "%s: tensor '%s': 'shape': expected a size below 2^64, found more elements",
                 s->what, t->name);
    }
    if (__builtin_mul_overflow(elements, (size_t)bits, &total_bits) || total_bits % CHAR_BIT != 0)
        FAIL(ERR_FORMAT, "%s: tensor '%s': expected whole bytes below 2^61, found %zu elements of %u bits",
             s->what, t->name, elements, bits);
    t->n_dims = (int)n;
    t->bytes = total_bits / CHAR_BIT;
    return 0;
}

static int read_offsets(const struct scan *s, const json_t *entry, struct tensor *t)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    size_t begin, end;
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
        !read_size(json_array_get(offsets, 0), &begin) || !read_size(json_array_get(offsets, 1), &end))
        FAIL(ERR_FORMAT, "%s: tensor '%s': 'data_offsets': expected two whole numbers [begin, end]", s->what,
             t->name);
    if (begin > end || end > s->data_bytes)
        FAIL(ERR_FORMAT,
             "%s: tensor '%s': 'data_offsets': expected begin <= end <= %zu (the file's data), "
             "found [%zu, %zu]: the file is damaged or cut short, fetch it again",
             s->what, t->name, s->data_bytes, begin, end);
    if (end - begin != t->bytes)
        FAIL(ERR_FORMAT, "%s: tensor '%s': expected %zu bytes by its shape and %s, found %zu by its offsets",
             s->what, t->name, t->bytes, t->dtype, end - begin);
    t->data = s->data + begin;
    return 0;
}

static int read_tensor(const struct scan *s, const char *name, const json_t *entry, struct tensor *t)
{
    unsigned bits = 0;
    t->name = strdup(name);
    if (!t->name)
        FAIL(ERR_MEMORY, "%s: out of memory for the name of a tensor", s->what);
    if (!json_is_object(entry))
        FAIL(ERR_FORMAT, "%s: tensor '%s': expected an object, found %s", s->what, name,
             json_type_name(entry));
    TRY(read_dtype(s, entry, t, &bits));
    TRY(read_shape(s, entry, t, bits));
    return read_offsets(s, entry, t);
}

static int check_metadata(const struct scan *s, const json_t *meta)
{
    const char *key;
    json_t *v;
    if (!json_is_object(meta))
        FAIL(ERR_FORMAT, "%s: '__metadata__': expected an object of strings, found %s", s->what,
             json_type_name(meta));
    json_object_foreach((json_t *)meta, key, v) if (!json_is_string(v))
        FAIL(ERR_FORMAT, "%s: '__metadata__': expected strings, found %s for '%s'", s->what,
             json_type_name(v), key);
    return 0;
}

static int by_place(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;
    uintptr_t px = (uintptr_t)x->data, py = (uintptr_t)y->data;
    if (px != py)
        return px < py ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

/* In order of place each tensor must begin where the one before ended, and the last end with the file. */
static int check_cover(const struct scan *s, struct tensor *tensors, int n)
{
    size_t end = 0;
    const char *before = "the header";
    if (n > 0)
        qsort(tensors, (size_t)n, sizeof *tensors, by_place);
    for (int i = 0; i < n; i++) {
        size_t begin = (size_t)((const unsigned char *)tensors[i].data - s->data);
        if (begin != end)
            FAIL(ERR_FORMAT,
                 "%s: tensor '%s': expected its data at offset %zu, where '%s' ends, found %zu: %s", s->what,
                 tensors[i].name, end, before, begin, begin < end ? "the two overlap" : "there is a hole");
        end = begin + tensors[i].bytes;
        before = tensors[i].name;
    }
    if (end != s->data_bytes)
        FAIL(ERR_FORMAT, "%s: expected %zu bytes of data, which its tensors cover, found %zu", s->what, end,
             s->data_bytes);
    return 0;
}

static int read_tensors(struct safetensors *st, const struct scan *s, const json_t *header)
{
    const char *key;
    json_t *v;
    if (!json_is_object(header))
        FAIL(ERR_FORMAT, "%s: header: expected an object, found %s", s->what, json_type_name(header));
    if (json_object_size(header) > INT_MAX)
        FAIL(ERR_LIMIT, "%s: expected at most %d tensors, found %zu", s->what, INT_MAX,
             json_object_size(header));
    st->tensors = calloc(json_object_size(header) + 1, sizeof *st->tensors);
    if (!st->tensors)
        FAIL(ERR_MEMORY, "%s: out of memory for a table of %zu tensors", s->what, json_object_size(header));
    json_object_foreach((json_t *)header, key, v)
    {
        if (strcmp(key, "__metadata__") == 0)
            TRY(check_metadata(s, v));
        else
            TRY(read_tensor(s, key, v, &st->tensors[st->n++]));
    }
    TRY(check_cover(s, st->tensors, st->n));
    if (st->n > 0)
        qsort(st->tensors, (size_t)st->n, sizeof *st->tensors, by_name);
    return 0;
}

static int header_length(const unsigned char *bytes, size_t n, const char *what, size_t *out)
{
    uint64_t length = 0;
    if (n < LENGTH_BYTES)
        FAIL(ERR_FORMAT, "%s: expected a safetensors file of at least %d bytes, found %zu: fetch it again",
             what, LENGTH_BYTES, n);
    for (int i = 0; i < LENGTH_BYTES; i++)
        length |= (uint64_t)bytes[i] << (8 * i);
    if (length > HEADER_MAX_BYTES)
        FAIL(ERR_FORMAT,
             "%s: expected a header of at most %d bytes, found %llu: this is not a safetensors file", what,
             HEADER_MAX_BYTES, (unsigned long long)length);
    if (length > n - LENGTH_BYTES)
        FAIL(ERR_FORMAT,
             "%s: expected a header of %llu bytes, found %zu before the end: fetch the file again", what,
             (unsigned long long)length, n - LENGTH_BYTES);
    *out = (size_t)length;
    return 0;
}

int safetensors_parse(struct safetensors *st, const void *bytes, size_t n, const char *what)
{
    int rc;
    size_t length = 0;
    json_t *header = NULL;
    struct safetensors new = {0};
    rc = header_length(bytes, n, what, &length);
    if (rc)
        goto out;
    const unsigned char *json = (const unsigned char *)bytes + LENGTH_BYTES;
    rc = json_parse((const char *)json, length, what, &header);
    if (rc)
        goto out;
    new.path = strdup(what);
    if (!new.path) {
        rc = ERR_SET(ERR_MEMORY, "%s: out of memory for its path", what);
        goto out;
    }
    struct scan s = {.what = what, .data = json + length, .data_bytes = n - LENGTH_BYTES - length};
    rc = read_tensors(&new, &s, header);
    if (rc)
        goto out;
    *st = new;
    new = (struct safetensors){0};
out:
    json_decref(header);
    safetensors_close(&new);
    return rc;
}

int safetensors_open(struct safetensors *st, const char *path)
{
    int rc = 0;
    size_t n = 0;
    void *map = MAP_FAILED;
    struct stat info = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info) != 0) {
        rc = ERR_SET(ERR_IO, "%s: cannot open: %s", path, strerror(errno));
        goto out;
    }
    if (!S_ISREG(info.st_mode)) {
        rc = ERR_SET(ERR_IO, "%s: expected a regular file, found something else", path);
        goto out;
    }
    n = (size_t)info.st_size;
    if (n == 0) {
        rc = header_length(NULL, 0, path, &n);
        goto out;
    }
    map = mmap(NULL, n, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) {
        rc = ERR_SET(ERR_IO, "%s: cannot map %zu bytes: %s", path, n, strerror(errno));
        goto out;
    }
    rc = safetensors_parse(st, map, n, path);
    if (rc)
        goto out;
    st->map = map;
    st->map_bytes = n;
    map = MAP_FAILED;
out:
    if (map != MAP_FAILED)
        munmap(map, n);
    if (fd >= 0)
        close(fd);
    return rc;
}

void safetensors_close(struct safetensors *st)
{
    for (int i = 0; i < st->n; i++)
        free(st->tensors[i].name);
    free(st->tensors);
    free(st->path);
    if (st->map)
        munmap(st->map, st->map_bytes);
    *st = (struct safetensors){0};
}

const struct tensor *safetensors_find(const struct safetensors *st, const char *name)
{
    struct tensor key = {.name = (char *)name};
    return st->n ? bsearch(&key, st->tensors, (size_t)st->n, sizeof key, by_name) : NULL;
}

/* Only whole pages inside the range: a neighbour may still need the ones at its edges. */
void safetensors_release(const struct safetensors *st, const void *at, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)st->map, from = (uintptr_t)at;
    const uintptr_t first = (from + page - 1) / page * page, last = (from + bytes) / page * page;
    if (st->map && from >= start && from - start < st->map_bytes && first < last)
        madvise((unsigned char *)st->map + (first - start), last - first, MADV_DONTNEED);
}
