/* checkpoint: one or many safetensors files seen as one set of tensors. The index of a sharded checkpoint is
 * held against the shards in both directions, so that a half-finished download is noticed before any weight
 * is read. */
#include "engine/checkpoint.h"
#include "engine/err.h"
#include "engine/json.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SINGLE_FILE "model.safetensors"
#define INDEX_FILE  "model.safetensors.index.json"
#define TORCH_FILE  "pytorch_model.bin"

enum { HASHERS = 8, TENSORS_A_HASHER = 256 };

/* DIR/name on the heap; NULL when out of memory. */
static char *path_join(const char *dir, const char *name)
{
    char *path = NULL;
    return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

static int file_exists(const char *dir, const char *name)
{
    char *path = path_join(dir, name);
    int exists = path && access(path, F_OK) == 0;
    free(path);
    return exists;
}

static int open_files(struct checkpoint *c, int n)
{
    c->files = calloc((size_t)n, sizeof *c->files);
    if (!c->files)
        FAIL(ERR_MEMORY, "%s: out of memory for %d files", c->dir, n);
    c->n_files = n;
    return 0;
}

static int open_file(struct checkpoint *c, int i, const char *name)
{
    char *path = path_join(c->dir, name);
    if (!path)
        FAIL(ERR_MEMORY, "%s: out of memory for a path", c->dir);
    int rc = safetensors_open(&c->files[i], path);
    free(path);
    return rc;
}

/* Shards in the order in which the index first names them, each once: file name -> number. */
static int list_shards(const json_t *map, const char *what, json_t *shards)
{
    const char *tensor;
    json_t *v;
    json_object_foreach((json_t *)map, tensor, v)
    {
        const char *file = json_string_value(v);
        if (!file)
            FAIL(ERR_FORMAT, "%s: 'weight_map': expected a file name for '%s', found %s", what, tensor,
                 json_type_name(v));
        if (*file == 0 || strchr(file, '/'))
            FAIL(ERR_FORMAT, "%s: 'weight_map': expected a file of the same directory for '%s', found '%s'",
                 what, tensor, file);
        if (!json_object_get(shards, file) &&
            json_object_set_new(shards, file, json_integer((json_int_t)json_object_size(shards))) != 0)
            FAIL(ERR_MEMORY, "%s: out of memory for its shards", what);
    }
    if (json_object_size(shards) == 0)
        FAIL(ERR_FORMAT, "%s: 'weight_map': expected at least one tensor, found none", what);
    if (json_object_size(shards) > 1 << 16)
        FAIL(ERR_LIMIT, "%s: expected at most %d shards, found %zu", what, 1 << 16, json_object_size(shards));
    return 0;
}

/* Every tensor of the index is in its shard, and every shard holds only what the index says it holds. */
static int check_index(const struct checkpoint *c, const json_t *map, const json_t *shards, const char *what)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)map, key, v)
    {
        const char *file = json_string_value(v);
        const struct safetensors *st = &c->files[json_integer_value(json_object_get(shards, file))];
        if (!safetensors_find(st, key))
            FAIL(ERR_FORMAT,
                 "%s: expected tensor '%s' in '%s', which does not hold it: fetch that file again", what, key,
                 file);
    }
    json_object_foreach((json_t *)shards, key, v)
    {
        const struct safetensors *st = &c->files[json_integer_value(v)];
        for (int i = 0; i < st->n; i++) {
            const char *home = json_string_value(json_object_get(map, st->tensors[i].name));
            if (!home)
                FAIL(ERR_FORMAT, "%s: '%s' holds tensor '%s', which the index does not list", what, key,
                     st->tensors[i].name);
            if (strcmp(home, key) != 0)
                FAIL(ERR_FORMAT, "%s: expected tensor '%s' in one shard, found it in '%s' and in '%s'", what,
                     st->tensors[i].name, home, key);
        }
    }
    return 0;
}

static int open_index(struct checkpoint *c, const json_t *index, const char *what, json_t *shards)
{
    const char *name;
    json_t *v;
    const json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map))
        FAIL(ERR_FORMAT, "%s: 'weight_map': expected an object, found %s", what, json_type_name(map));
    if (!shards)
        FAIL(ERR_MEMORY, "%s: out of memory for its shards", what);
    TRY(list_shards(map, what, shards));
    TRY(open_files(c, (int)json_object_size(shards)));
    json_object_foreach(shards, name, v)
        TRY_CTX(open_file(c, (int)json_integer_value(v), name), "%s: opening its shard '%s'", what, name);
    return check_index(c, map, shards, what);
}

static int open_sharded(struct checkpoint *c)
{
    int rc;
    json_t *index = NULL, *shards = json_object();
    char *path = path_join(c->dir, INDEX_FILE);
    if (!path) {
        rc = ERR_SET(ERR_MEMORY, "%s: out of memory for a path", c->dir);
        goto out;
    }
    rc = json_read_file(path, &index);
    if (rc)
        goto out;
    rc = open_index(c, index, path, shards);
out:
    json_decref(index);
    json_decref(shards);
    free(path);
    return rc;
}

static int open_any(struct checkpoint *c)
{
    if (file_exists(c->dir, SINGLE_FILE)) {
        TRY(open_files(c, 1));
        return open_file(c, 0, SINGLE_FILE);
    }
    if (file_exists(c->dir, INDEX_FILE))
        return open_sharded(c);
    if (file_exists(c->dir, TORCH_FILE))
        FAIL(ERR_FORMAT,
             "%s: expected " SINGLE_FILE ", found only " TORCH_FILE
             ": convert it with transformers, model.save_pretrained(DIR, safe_serialization=True)",
             c->dir);
    FAIL(ERR_IO, "%s: expected " SINGLE_FILE " or " INDEX_FILE ", found neither", c->dir);
}

static size_t count_tensors(const struct checkpoint *c)
{
    size_t n = 0;
    for (int i = 0; i < c->n_files; i++)
        n += (size_t)c->files[i].n;
    return n;
}

int checkpoint_open(struct checkpoint *c, const char *dir)
{
    int rc;
    struct checkpoint new = {.dir = strdup(dir)};
    if (!new.dir) {
        rc = ERR_SET(ERR_MEMORY, "%s: out of memory for its path", dir);
        goto out;
    }
    rc = open_any(&new);
    if (rc)
        goto out;
    new.seen = calloc(count_tensors(&new) + 1, 1);
    if (!new.seen) {
        rc = ERR_SET(ERR_MEMORY, "%s: out of memory for %zu tensors", dir, count_tensors(&new));
        goto out;
    }
    *c = new;
    new = (struct checkpoint){0};
out:
    checkpoint_close(&new);
    return rc;
}

void checkpoint_close(struct checkpoint *c)
{
    for (int i = 0; i < c->n_files; i++)
        safetensors_close(&c->files[i]);
    free(c->files);
    free(c->seen);
    free(c->dir);
    *c = (struct checkpoint){0};
}

/* The tensor, and its place in seen: tensors count through all files. */
static const struct tensor *find(const struct checkpoint *c, const char *name, size_t *place)
{
    size_t before = 0;
    for (int i = 0; i < c->n_files; i++) {
        const struct tensor *t = safetensors_find(&c->files[i], name);
        if (t) {
            *place = before + (size_t)(t - c->files[i].tensors);
            return t;
        }
        before += (size_t)c->files[i].n;
    }
    return NULL;
}

/* "[576, 1536]" */
static void shape_text(char *out, size_t cap, const size_t *shape, int n)
{
    size_t at = (size_t)snprintf(out, cap, "[");
    for (int i = 0; i < n && at < cap; i++)
        at += (size_t)snprintf(out + at, cap - at, i ? ", %zu" : "%zu", shape[i]);
    if (at < cap)
        snprintf(out + at, cap - at, "]");
}

static int is_float(const struct tensor *t)
{
    return strcmp(t->dtype, "BF16") == 0 || strcmp(t->dtype, "F16") == 0 || strcmp(t->dtype, "F32") == 0;
}

static int usable(const struct tensor *t, unsigned dtypes)
{
    return (dtypes & CHECKPOINT_FLOATS && is_float(t)) ||
           (dtypes & CHECKPOINT_FP8 && strcmp(t->dtype, "F8_E4M3") == 0) ||
           (dtypes & CHECKPOINT_I64 && strcmp(t->dtype, "I64") == 0) ||
           (dtypes & CHECKPOINT_BOOL && strcmp(t->dtype, "BOOL") == 0);
}

static const char *dtypes_text(unsigned dtypes)
{
    return dtypes & CHECKPOINT_I64    ? "I64"
           : dtypes & CHECKPOINT_BOOL ? "BOOL"
           : dtypes & CHECKPOINT_FP8  ? "BF16, F16, F32 or F8_E4M3"
                                      : "BF16, F16 or F32";
}

int checkpoint_take_as(struct checkpoint *c, const char *name, const struct checkpoint_want *want,
                       const struct tensor **out)
{
    size_t place = 0;
    char expected[96], found[200];
    const struct tensor *t = find(c, name, &place);
    shape_text(expected, sizeof expected, want->shape, want->n_dims);
    if (!t)
        FAIL(ERR_FORMAT, "%s: tensor '%s': expected %s, found no such tensor", c->dir, name, expected);
    shape_text(found, sizeof found, t->shape, t->n_dims);
    if (t->n_dims != want->n_dims ||
        memcmp(t->shape, want->shape, (size_t)want->n_dims * sizeof *want->shape) != 0)
        FAIL(ERR_FORMAT, "%s: tensor '%s': expected %s, found %s %s", c->dir, name, expected, t->dtype,
             found);
    if (!usable(t, want->dtypes))
        FAIL(ERR_FORMAT, "%s: tensor '%s': expected %s %s, found %s %s", c->dir, name,
             dtypes_text(want->dtypes), expected, t->dtype, found);
    c->seen[place] = 1;
    *out = t;
    return 0;
}

int checkpoint_take(struct checkpoint *c, const char *name, size_t rows, size_t cols,
                    const struct tensor **out)
{
    const struct checkpoint_want want = {{rows, cols}, cols ? 2 : 1, CHECKPOINT_FLOATS};
    return checkpoint_take_as(c, name, &want, out);
}

const struct tensor *checkpoint_peek(const struct checkpoint *c, const char *name)
{
    size_t place;
    return find(c, name, &place);
}

int checkpoint_has(const struct checkpoint *c, const char *name)
{
    return checkpoint_peek(c, name) != NULL;
}

void checkpoint_release(const struct checkpoint *c, const void *at, size_t bytes)
{
    for (int i = 0; i < c->n_files; i++)
        safetensors_release(&c->files[i], at, bytes);
}

static int starts_with(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

static int ends_with(const char *name, const char *suffix)
{
    const size_t n = strlen(name), k = strlen(suffix);
    return n >= k && strcmp(name + n - k, suffix) == 0;
}

static int may_stay(const char *name, unsigned spare)
{
    if (spare & CHECKPOINT_VISION &&
        (starts_with(name, "vision_model.") || starts_with(name, "multi_modal_projector.")))
        return 1;
    return ends_with(name, "rotary_emb.inv_freq") ||
           (spare & CHECKPOINT_TIED &&
            (strcmp(name, "lm_head.weight") == 0 || strcmp(name, "language_model.lm_head.weight") == 0));
}

int checkpoint_unused(const struct checkpoint *c, unsigned spare)
{
    size_t place = 0, left = 0;
    const char *first = NULL;
    for (int i = 0; i < c->n_files; i++)
        for (int j = 0; j < c->files[i].n; j++, place++)
            if (!c->seen[place] && !may_stay(c->files[i].tensors[j].name, spare) && left++ == 0)
                first = c->files[i].tensors[j].name;
    if (left)
        FAIL(ERR_FORMAT,
             "%s: expected only the tensors of its config.json, found %zu more, the first '%s': "
             "these weights belong to another architecture",
             c->dir, left, first);
    return 0;
}

static uint64_t hash_bytes(uint64_t h, const void *bytes, size_t n)
{
    const unsigned char *p = bytes;
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * UINT64_C(0x100000001b3);
    return h;
}

/* FNV-1a of what a tensor is, and of up to eight pieces spread evenly over its data, both ends included. */
static uint64_t hash_tensor(const struct tensor *t)
{
    enum { PIECES = 8, PIECE = 32 };
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    h = hash_bytes(h, t->name, strlen(t->name) + 1);
    h = hash_bytes(h, t->dtype, strlen(t->dtype) + 1);
    for (int i = 0; i < t->n_dims; i++)
        for (int shift = 0; shift < 64; shift += 8)
            h = (h ^ ((uint64_t)t->shape[i] >> shift & 0xff)) * UINT64_C(0x100000001b3);
    if (t->bytes <= PIECES * PIECE)
        return hash_bytes(h, t->data, t->bytes);
    for (size_t i = 0; i < PIECES; i++)
        h = hash_bytes(h, (const char *)t->data + (t->bytes - PIECE) / (PIECES - 1) * i, PIECE);
    return hash_bytes(h, (const char *)t->data + t->bytes - PIECE, PIECE);
}

/* One thread's tensors: every so-manieth. */
struct hashing {
    const struct checkpoint *c;
    size_t first, step;
    uint64_t sum;
};

static void *hash_some(void *arg)
{
    struct hashing *h = arg;
    size_t place = 0;
    for (int i = 0; i < h->c->n_files; i++)
        for (int j = 0; j < h->c->files[i].n; j++, place++) {
            const struct tensor *t = &h->c->files[i].tensors[j];
            if (place % h->step != h->first)
                continue;
            h->sum += hash_tensor(t);
            safetensors_release(&h->c->files[i], t->data, t->bytes);
        }
    return NULL;
}

/* Summed over tensors, so that how a checkpoint is cut into files does not matter, nor who hashes what:
 * thousands of experts are thousands of waits for a disk. */
uint64_t checkpoint_fingerprint(const struct checkpoint *c)
{
    struct hashing h[HASHERS];
    pthread_t thread[HASHERS] = {0};
    const size_t n =
        count_tensors(c) / TENSORS_A_HASHER < HASHERS - 1 ? count_tensors(c) / TENSORS_A_HASHER : HASHERS - 1;
    int started[HASHERS] = {0};
    uint64_t sum = 0;
    for (size_t i = 0; i <= n; i++) {
        h[i] = (struct hashing){.c = c, .first = i, .step = n + 1};
        started[i] = i < n && pthread_create(&thread[i], NULL, hash_some, &h[i]) == 0;
    }
    for (size_t i = 0; i <= n; i++)
        if (!started[i])
            hash_some(&h[i]);
    for (size_t i = 0; i <= n; i++) {
        if (started[i])
            pthread_join(thread[i], NULL);
        sum += h[i].sum;
    }
    return sum;
}
