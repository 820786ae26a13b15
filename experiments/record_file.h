/* record_file: one result file, an HDF5 file with the data sets and attributes of record_fields.h. All use of HDF5 is here.
 * Rows are structs of trace.h. Two layouts, alike to readers: FILE_GROWING has uncompressed chunks, so that appending a few rows
 * at a time rewrites bytes in place and leaves no holes; FILE_COMPACT (shuffle, deflate level 1) is written once from beginning to end.
 * Errors: ERR_IO from the operating system or HDF5 (with its innermost reason), ERR_FORMAT for a file that is no result,
 * ERR_MEMORY. */
#ifndef EXPERIMENTS_RECORD_FILE_H
#define EXPERIMENTS_RECORD_FILE_H
#include "experiments/record_fields.h"
#include "experiments/trace.h"

enum file_layout { FILE_GROWING, FILE_COMPACT };
enum file_mode { FILE_READ, FILE_APPEND };

struct record_file; /* opaque */

int  record_file_create(struct record_file **out, const char *path, const struct trace_meta *meta, enum file_layout layout);
/* Checks schema and the shape of every data set; what the schema of an older file lacks has no rows, or is 0. A reader comes in while a run
 * writes; where another program has the very file open for writing, ERR_IO after half a second. */
int  record_file_open(struct record_file **out, const char *path, enum file_mode mode);
/* Reports what earlier writes hid, unless one of them failed already. Accepts NULL, frees in any case. */
int  record_file_close(struct record_file *f);

int64_t record_file_rows(const struct record_file *f, enum record_table t);
int  record_file_append(struct record_file *f, enum record_table t, const void *rows, int64_t n);
/* rows [n] of the table's struct; texts become the caller's (record_free_texts), on error none is left. */
int  record_file_read(struct record_file *f, enum record_table t, int64_t begin, int64_t n, void *rows);
/* The root attributes; the texts are the caller's (trace_meta_deinit). */
int  record_file_meta(struct record_file *f, struct trace_meta *meta);
/* Write the rows of `from` to the new file `to`. */
int  record_file_copy(const char *from, const char *to, const struct trace_meta *meta, enum file_layout layout);

void record_file_library(char *buf, size_t n); /* "hdf5 1.10.8" */
#endif
