/* record_file: HDF5 through its plain C interface. Every object is opened for one call and closed again, so a
 * file holds no handle but its own; types are built from the tables of record_fields.c. HDF5 prints nothing:
 * its error stack becomes part of our message, and must be read before the next call clears it. */
#include "experiments/record_file.h"
#include "engine/err.h"
#include "experiments/record_rows.h"
#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    CHUNK_TEXT = 4096,
    CHUNK_GROWING = 32768,
    CHUNK_COMPACT = 131072,
    COPY_ROWS = 4096,
    REASON_MAX = 512,
    OPEN_TRIES = 50,
    OPEN_PAUSE_US = 10000
};

struct record_file {
    char *path; /* owned */
    hid_t id;
    hid_t row_type[RECORD_TABLES]; /* as rows lie in memory */
    int64_t rows[RECORD_TABLES];
    int schema; /* of an opened file */
    int failed; /* a write failed and was reported: closing has nothing to add */
};

/* A failed system call comes wrapped in a line of its arguments: only what the system said is for people. */
static herr_t take_innermost(unsigned n, const H5E_error2_t *e, void *text)
{
    static const char mark[] = "error message = '";
    if (n > 0)
        return 0;
    const char *system = e->desc ? strstr(e->desc, mark) : NULL;
    if (system)
        snprintf(text, REASON_MAX, "%.*s", (int)strcspn(system + sizeof mark - 1, "'"),
                 system + sizeof mark - 1);
    else
        snprintf(text, REASON_MAX, "%s", e->desc && *e->desc ? e->desc : "no reason given");
    return 0;
}

/* What HDF5 says of the call that just failed. */
static const char *reason(char text[REASON_MAX])
{
    snprintf(text, REASON_MAX, "no reason given");
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_innermost, text);
    return text;
}

/* Locks where the file system has them, so that writers notice readers; on others HDF5 would refuse to open
 * anything. */
static hid_t file_access(void)
{
    hid_t plist = H5Pcreate(H5P_FILE_ACCESS);
#if H5_VERSION_GE(1, 10, 7)
    H5Pset_file_locking(plist, 1, 1);
#endif
    return plist;
}

static hid_t kind_type(enum field_kind kind, int in_file)
{
    hid_t text;
    switch (kind) {
    case FIELD_I32:
        return H5Tcopy(in_file ? H5T_STD_I32LE : H5T_NATIVE_INT32);
    case FIELD_U32:
        return H5Tcopy(in_file ? H5T_STD_U32LE : H5T_NATIVE_UINT32);
    case FIELD_I64:
        return H5Tcopy(in_file ? H5T_STD_I64LE : H5T_NATIVE_INT64);
    case FIELD_U64:
        return H5Tcopy(in_file ? H5T_STD_U64LE : H5T_NATIVE_UINT64);
    case FIELD_F32:
        return H5Tcopy(in_file ? H5T_IEEE_F32LE : H5T_NATIVE_FLOAT);
    case FIELD_TEXT:
        text = H5Tcopy(H5T_C_S1);
        H5Tset_size(text, H5T_VARIABLE);
        H5Tset_cset(text, H5T_CSET_UTF8);
        return text;
    }
    return -1;
}

static int is_plain(const struct table *t)
{
    return !*t->fields[0].name;
}

/* A row as the struct in memory, or packed and little-endian as in the file. */
static hid_t table_type(const struct table *t, int in_file)
{
    if (is_plain(t))
        return kind_type(t->fields[0].kind, in_file);
    hid_t type = H5Tcreate(H5T_COMPOUND, t->row_bytes);
    for (int i = 0; i < t->n_fields; i++) {
        hid_t kind = kind_type(t->fields[i].kind, in_file);
        H5Tinsert(type, t->fields[i].name, t->fields[i].offset, kind);
        H5Tclose(kind);
    }
    if (in_file)
        H5Tpack(type);
    return type;
}

/* Before any other call. Every file is closed by hand; after a failed write HDF5's own clean-up at exit would
 * crash. Each opened file takes a cache of 1 MiB: kept for the next one, its pages need not be faulted in
 * again. */
static void start_library(void)
{
    H5dont_atexit();
    H5set_free_list_limits(-1, -1, -1, -1, -1, -1);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

static int new_file(struct record_file **out, const char *path)
{
    struct record_file *f = calloc(1, sizeof *f);
    char *copy = strdup(path);
    if (!f || !copy) {
        free(f);
        free(copy);
        FAIL(ERR_MEMORY, "%s: out of memory while opening", path);
    }
    start_library();
    f->path = copy;
    f->id = -1;
    for (int t = 0; t < RECORD_TABLES; t++)
        f->row_type[t] = table_type(&record_tables[t], 0);
    *out = f;
    return 0;
}

int record_file_close(struct record_file *f)
{
    int rc = 0;
    char why[REASON_MAX];
    if (!f)
        return 0;
    for (int t = 0; t < RECORD_TABLES; t++)
        H5Tclose(f->row_type[t]);
    /* HDF5 is in no state to close a file that it failed to write: left open, it ends with the process. */
    if (f->id >= 0 && !f->failed && H5Fclose(f->id) < 0)
        rc = ERR_SET(ERR_IO, "%s: cannot finish writing: %s", f->path, reason(why));
    free(f->path);
    free(f);
    return rc;
}

/* One value, or an array when n > 0, as an attribute of an open object. */
static int write_attribute(hid_t object, const char *name, enum field_kind kind, const void *values, int n)
{
    hsize_t dim = (hsize_t)n;
    hid_t mem = kind_type(kind, 0), file = kind_type(kind, 1);
    hid_t space = n > 0 ? H5Screate_simple(1, &dim, NULL) : H5Screate(H5S_SCALAR);
    hid_t attr = H5Acreate2(object, name, file, space, H5P_DEFAULT, H5P_DEFAULT);
    int rc = attr < 0 || H5Awrite(attr, mem, values) < 0 ? -1 : 0;
    if (attr >= 0)
        H5Aclose(attr);
    H5Sclose(space);
    H5Tclose(file);
    H5Tclose(mem);
    return rc;
}

static int describe_table(hid_t set, const struct table *t)
{
    const char *name[32], *unit[32], *text[32];
    int n = 0;
    for (; n < t->n_fields && n < 32; n++) {
        name[n] = t->fields[n].name;
        unit[n] = t->fields[n].unit;
        text[n] = t->fields[n].description;
    }
    if (write_attribute(set, "description", FIELD_TEXT, &t->description, 0))
        return -1;
    if (is_plain(t))
        return 0;
    return write_attribute(set, "fields", FIELD_TEXT, name, n) ||
           write_attribute(set, "units", FIELD_TEXT, unit, n) ||
           write_attribute(set, "descriptions", FIELD_TEXT, text, n);
}

static int create_table(struct record_file *f, const struct table *t, enum file_layout layout)
{
    size_t bytes = t->has_text ? CHUNK_TEXT : layout == FILE_COMPACT ? CHUNK_COMPACT : CHUNK_GROWING;
    hsize_t none = 0, unlimited = H5S_UNLIMITED, chunk = bytes / t->row_bytes;
    char why[REASON_MAX];
    int rc = 0;
    hid_t type = table_type(t, 1), space = H5Screate_simple(1, &none, &unlimited);
    hid_t plist = H5Pcreate(H5P_DATASET_CREATE), set = -1;
    H5Pset_chunk(plist, 1, &chunk);
    H5Pset_obj_track_times(plist, 0);
    if (layout == FILE_COMPACT && !t->has_text) {
        H5Pset_shuffle(plist);
        H5Pset_deflate(plist, 1);
    }
    set = H5Dcreate2(f->id, t->name, type, space, H5P_DEFAULT, plist, H5P_DEFAULT);
    if (set < 0 || describe_table(set, t))
        rc = ERR_SET(ERR_IO, "%s: cannot create /%s: %s", f->path, t->name, reason(why));
    if (set >= 0)
        H5Dclose(set);
    H5Pclose(plist);
    H5Sclose(space);
    H5Tclose(type);
    return rc;
}

static const void *member(const void *row, const struct field *f)
{
    return (const char *)row + f->offset;
}

static int write_meta(struct record_file *f, const struct trace_meta *meta)
{
    char why[REASON_MAX];
    for (const struct field *m = record_meta_fields; m->name; m++)
        if (write_attribute(f->id, m->name, m->kind, member(meta, m), 0))
            FAIL(ERR_IO, "%s: cannot write attribute '%s': %s", f->path, m->name, reason(why));
    return 0;
}

int record_file_create(struct record_file **out, const char *path, const struct trace_meta *meta,
                       enum file_layout layout)
{
    struct record_file *f = NULL;
    char why[REASON_MAX];
    TRY(new_file(&f, path));
    hid_t plist = H5Pcreate(H5P_FILE_CREATE), access = file_access();
    H5Pset_obj_track_times(plist, 0);
    f->id = H5Fcreate(path, H5F_ACC_TRUNC, plist, access);
    int rc = f->id < 0 ? ERR_SET(ERR_IO, "%s: cannot create: %s", path, reason(why)) : 0;
    H5Pclose(access);
    H5Pclose(plist);
    if (!rc)
        rc = write_meta(f, meta);
    for (int t = 0; !rc && t < RECORD_TABLES; t++)
        rc = create_table(f, &record_tables[t], layout);
    if (rc) {
        record_file_close(f);
        return rc;
    }
    *out = f;
    return 0;
}

/* Before HDF5 sees the file: is it there, is it a plain file, is it HDF5 at all? */
static int check_file(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        FAIL(ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    char byte;
    ssize_t got = read(fd, &byte, 1);
    int error = errno;
    close(fd);
    if (got < 0)
        FAIL(ERR_IO, "%s: cannot read: %s", path, strerror(error));
    if (H5Fis_hdf5(path) == 0)
        FAIL(ERR_FORMAT, "%s: expected a result file (HDF5), found something else", path);
    return 0;
}

static int check_schema(struct record_file *f)
{
    int32_t schema = 0;
    char why[REASON_MAX];
    if (H5Aexists(f->id, "schema") <= 0)
        FAIL(ERR_FORMAT, "%s: an HDF5 file, but no result of specbed: it has no attribute 'schema'", f->path);
    hid_t attr = H5Aopen(f->id, "schema", H5P_DEFAULT), space = H5Aget_space(attr);
    int bad = H5Sget_simple_extent_npoints(space) != 1 || H5Aread(attr, H5T_NATIVE_INT32, &schema) < 0;
    if (space >= 0)
        H5Sclose(space);
    H5Aclose(attr);
    if (bad)
        FAIL(ERR_FORMAT, "%s: attribute 'schema': expected one integer: %s", f->path, reason(why));
    if (schema > TRACE_SCHEMA)
        FAIL(ERR_FORMAT, "%s: expected schema %d, found %d: written by a newer specbed, which can read it",
             f->path, TRACE_SCHEMA, schema);
    if (schema < 1)
        FAIL(ERR_FORMAT, "%s: expected schema %d, found %d", f->path, TRACE_SCHEMA, schema);
    f->schema = schema;
    return 0;
}

static const char *kind_name(enum field_kind kind)
{
    return kind == FIELD_TEXT ? "text of variable length" : kind == FIELD_F32 ? "a float" : "an integer";
}

static int kind_fits(hid_t type, enum field_kind kind)
{
    H5T_class_t class = H5Tget_class(type);
    if (kind == FIELD_TEXT)
        return class == H5T_STRING && H5Tis_variable_str(type) > 0;
    return class == (kind == FIELD_F32 ? H5T_FLOAT : H5T_INTEGER);
}

static int check_fields(const struct record_file *f, const struct table *t, hid_t type)
{
    if (is_plain(t) && !kind_fits(type, t->fields[0].kind))
        FAIL(ERR_FORMAT, "%s: /%s: expected %s a row, found another type", f->path, t->name,
             kind_name(t->fields[0].kind));
    if (is_plain(t))
        return 0;
    if (H5Tget_class(type) != H5T_COMPOUND)
        FAIL(ERR_FORMAT, "%s: /%s: expected rows with named fields, found another type", f->path, t->name);
    for (int i = 0; i < t->n_fields; i++) {
        int at = H5Tget_member_index(type, t->fields[i].name);
        hid_t field = at < 0 ? -1 : H5Tget_member_type(type, (unsigned)at);
        int fits = field >= 0 ? kind_fits(field, t->fields[i].kind) : f->schema < t->fields[i].since;
        if (field >= 0)
            H5Tclose(field);
        if (!fits)
            FAIL(ERR_FORMAT, "%s: /%s: expected field '%s' to be %s, found %s", f->path, t->name,
                 t->fields[i].name, kind_name(t->fields[i].kind), at < 0 ? "no such field" : "another type");
    }
    return 0;
}

/* Deflate packs at most 1032 to 1, so a data set that claims more rows than its bytes can hold is not
 * believed. */
static int check_rows(struct record_file *f, enum record_table t, hid_t set, hid_t space, hid_t type)
{
    const struct table *table = &record_tables[t];
    hssize_t n = H5Sget_simple_extent_npoints(space);
    if (H5Sget_simple_extent_ndims(space) != 1 || n < 0)
        FAIL(ERR_FORMAT, "%s: /%s: expected a list of rows, found another shape", f->path, table->name);
    hsize_t stored = H5Dget_storage_size(set);
    if ((hsize_t)n > (1032 * stored + CHUNK_COMPACT) / H5Tget_size(type))
        FAIL(ERR_FORMAT, "%s: /%s: claims %lld rows, but only %llu bytes are stored", f->path, table->name,
             (long long)n, (unsigned long long)stored);
    f->rows[t] = n;
    return 0;
}

static int check_table(struct record_file *f, enum record_table t)
{
    const char *name = record_tables[t].name;
    hid_t set = H5Lexists(f->id, name, H5P_DEFAULT) > 0 ? H5Dopen2(f->id, name, H5P_DEFAULT) : -1;
    if (set < 0 && f->schema < record_tables[t].since)
        return 0;
    if (set < 0)
        FAIL(ERR_FORMAT, "%s: expected a data set /%s, found none", f->path, name);
    hid_t type = H5Dget_type(set), space = H5Dget_space(set);
    int rc = check_fields(f, &record_tables[t], type);
    if (!rc)
        rc = check_rows(f, t, set, space, type);
    H5Sclose(space);
    H5Tclose(type);
    H5Dclose(set);
    return rc;
}

/* What a name stands for. */
static struct stat look_up(const char *path)
{
    struct stat s = {.st_ino = 0};
    if (stat(path, &s))
        return (struct stat){.st_ino = 0};
    return s;
}

static int same_file(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* HDF5 locks a file a moment after it has opened it. In between a writer may have exchanged it, and append to
 * it now: then a reader opens what the name stands for by now. */
static int open_hdf5(struct record_file *f, enum file_mode mode, hid_t access)
{
    char why[REASON_MAX];
    for (int tries = 0;; tries++) {
        const struct stat before = look_up(f->path);
        f->id = H5Fopen(f->path, mode == FILE_READ ? H5F_ACC_RDONLY : H5F_ACC_RDWR, access);
        if (f->id >= 0)
            return 0;
        reason(why);
        const struct stat after = look_up(f->path);
        const int locked = strcmp(why, strerror(EAGAIN)) == 0;
        if (mode == FILE_READ && (locked || !same_file(&before, &after)) && tries < OPEN_TRIES)
            usleep(OPEN_PAUSE_US);
        else if (locked)
            FAIL(ERR_IO, "%s: another program has it open for writing; try again when that is done", f->path);
        else
            FAIL(ERR_FORMAT, "%s: HDF5 cannot open it: %s", f->path, why);
    }
}

int record_file_open(struct record_file **out, const char *path, enum file_mode mode)
{
    struct record_file *f = NULL;
    int rc;
    hid_t access = -1;
    TRY(new_file(&f, path));
    rc = check_file(path);
    if (rc)
        goto out;
    access = file_access();
    rc = open_hdf5(f, mode, access);
    if (rc)
        goto out;
    rc = check_schema(f);
    for (int t = 0; !rc && t < RECORD_TABLES; t++)
        rc = check_table(f, (enum record_table)t);
out:
    if (access >= 0)
        H5Pclose(access);
    if (rc)
        record_file_close(f);
    else
        *out = f;
    return rc;
}

int64_t record_file_rows(const struct record_file *f, enum record_table t)
{
    return f->rows[t];
}

int record_file_append(struct record_file *f, enum record_table t, const void *rows, int64_t n)
{
    char why[REASON_MAX];
    hsize_t begin = (hsize_t)f->rows[t], count = (hsize_t)n, total = begin + count;
    if (n == 0)
        return 0;
    int rc = 0;
    hid_t space = -1, mem = H5Screate_simple(1, &count, NULL);
    hid_t set = H5Dopen2(f->id, record_tables[t].name, H5P_DEFAULT);
    if (set < 0 || H5Dset_extent(set, &total) < 0 || (space = H5Dget_space(set)) < 0 ||
        H5Sselect_hyperslab(space, H5S_SELECT_SET, &begin, NULL, &count, NULL) < 0 ||
        H5Dwrite(set, f->row_type[t], mem, space, H5P_DEFAULT, rows) < 0)
        rc = ERR_SET(ERR_IO, "%s: cannot append %lld rows (%zu bytes) to /%s: %s", f->path, (long long)n,
                     (size_t)n * record_tables[t].row_bytes, record_tables[t].name, reason(why));
    if (space >= 0)
        H5Sclose(space);
    if (set >= 0 && H5Dclose(set) < 0 && !rc)
        rc = ERR_SET(ERR_IO, "%s: cannot write /%s: %s", f->path, record_tables[t].name, reason(why));
    H5Sclose(mem);
    f->failed |= rc != 0;
    if (!rc)
        f->rows[t] += n;
    return rc;
}

/* HDF5 gives NULL for a text that was never written; ours are never NULL. */
static int fill_missing_texts(const struct record_file *f, enum record_table t, void *rows, int64_t n)
{
    const struct table *table = &record_tables[t];
    for (int64_t i = 0; table->has_text && i < n; i++)
        for (int k = 0; k < table->n_fields; k++) {
            char **text =
                (char **)(void *)((char *)rows + (size_t)i * table->row_bytes + table->fields[k].offset);
            if (table->fields[k].kind == FIELD_TEXT && !*text && !(*text = strdup("")))
                FAIL(ERR_MEMORY, "%s: out of memory while reading /%s", f->path, table->name);
        }
    return 0;
}

int record_file_read(struct record_file *f, enum record_table t, int64_t begin, int64_t n, void *rows)
{
    const struct table *table = &record_tables[t];
    char why[REASON_MAX];
    hsize_t first = (hsize_t)begin, count = (hsize_t)n;
    if (begin < 0 || n < 0 || n > f->rows[t] || begin > f->rows[t] - n)
        FAIL(ERR_FORMAT, "%s: /%s: expected rows %lld to %lld, found %lld rows", f->path, table->name,
             (long long)begin, (long long)begin + (long long)n, (long long)f->rows[t]);
    if (n == 0)
        return 0;
    memset(rows, 0, (size_t)n * table->row_bytes);
    int rc = 0;
    hid_t space = -1, mem = H5Screate_simple(1, &count, NULL);
    hid_t set = H5Dopen2(f->id, table->name, H5P_DEFAULT);
    if (set < 0 || (space = H5Dget_space(set)) < 0 ||
        H5Sselect_hyperslab(space, H5S_SELECT_SET, &first, NULL, &count, NULL) < 0 ||
        H5Dread(set, f->row_type[t], mem, space, H5P_DEFAULT, rows) < 0)
        rc = ERR_SET(ERR_IO, "%s: cannot read /%s: %s", f->path, table->name, reason(why));
    else
        rc = fill_missing_texts(f, t, rows, n);
    if (space >= 0)
        H5Sclose(space);
    if (set >= 0)
        H5Dclose(set);
    H5Sclose(mem);
    if (rc)
        record_free_texts(t, rows, n);
    return rc;
}

/* Of a file that is older than the attribute; numbers are 0 already. */
static int read_nothing(const struct record_file *f, const struct field *m, void *value)
{
    if (m->kind == FIELD_TEXT && !(*(char **)value = strdup("")))
        FAIL(ERR_MEMORY, "%s: out of memory while reading attribute '%s'", f->path, m->name);
    return 0;
}

static int read_attribute(struct record_file *f, const struct field *m, void *value)
{
    char why[REASON_MAX];
    const int is_there = H5Aexists(f->id, m->name) > 0;
    if (!is_there && f->schema < m->since)
        return read_nothing(f, m, value);
    if (!is_there)
        FAIL(ERR_FORMAT, "%s: expected an attribute '%s', found none", f->path, m->name);
    hid_t attr = H5Aopen(f->id, m->name, H5P_DEFAULT), type = H5Aget_type(attr), space = H5Aget_space(attr);
    hid_t mem = kind_type(m->kind, 0);
    int rc = 0;
    if (!kind_fits(type, m->kind) || H5Sget_simple_extent_npoints(space) != 1)
        rc = ERR_SET(ERR_FORMAT, "%s: attribute '%s': expected %s, found something else", f->path, m->name,
                     kind_name(m->kind));
    else if (H5Aread(attr, mem, value) < 0)
        rc = ERR_SET(ERR_IO, "%s: cannot read attribute '%s': %s", f->path, m->name, reason(why));
    else if (m->kind == FIELD_TEXT && !*(char **)value && !(*(char **)value = strdup("")))
        rc = ERR_SET(ERR_MEMORY, "%s: out of memory while reading attribute '%s'", f->path, m->name);
    H5Tclose(mem);
    H5Sclose(space);
    H5Tclose(type);
    H5Aclose(attr);
    return rc;
}

int record_file_meta(struct record_file *f, struct trace_meta *meta)
{
    struct trace_meta m = {0};
    for (const struct field *field = record_meta_fields; field->name; field++) {
        int rc = read_attribute(f, field, (char *)&m + field->offset);
        if (rc) {
            trace_meta_deinit(&m);
            return rc;
        }
    }
    *meta = m;
    return 0;
}

static int copy_table(struct record_file *from, struct record_file *to, enum record_table t)
{
    int rc = 0;
    void *rows = malloc(COPY_ROWS * record_tables[t].row_bytes);
    if (!rows)
        FAIL(ERR_MEMORY, "%s: out of memory while copying /%s", from->path, record_tables[t].name);
    for (int64_t begin = 0, n; !rc && begin < from->rows[t]; begin += n) {
        n = from->rows[t] - begin < COPY_ROWS ? from->rows[t] - begin : COPY_ROWS;
        rc = record_file_read(from, t, begin, n, rows);
        if (rc)
            break;
        rc = record_file_append(to, t, rows, n);
        record_free_texts(t, rows, n);
    }
    free(rows);
    return rc;
}

int record_file_copy(const char *from, const char *to, const struct trace_meta *meta, enum file_layout layout)
{
    struct record_file *source = NULL, *target = NULL;
    int rc = record_file_open(&source, from, FILE_READ);
    if (!rc)
        rc = record_file_create(&target, to, meta, layout);
    for (int t = 0; !rc && t < RECORD_TABLES; t++)
        rc = copy_table(source, target, (enum record_table)t);
    int closed = record_file_close(target);
    record_file_close(source);
    return rc ? rc : closed;
}

void record_file_library(char *buf, size_t n)
{
    unsigned major = 0, minor = 0, release = 0;
    start_library();
    H5get_libversion(&major, &minor, &release);
    snprintf(buf, n, "hdf5 %u.%u.%u", major, minor, release);
}
