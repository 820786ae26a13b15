/* record: writing a result file so that at every moment, SIGKILL included, the file at `path` is a cleanly closed HDF5 file that holds
 * every finished request. Two files take turns: finished rows are appended to the hidden one (PATH.next), it is closed, and
 * renameat2(RENAME_EXCHANGE) swaps the names; the other then catches up with the next batch. Every row is written twice while the run
 * lasts, and once more, compressed, at the end; readers only ever see closed files. A reader that still has the older file open (HDF5
 * locks it) keeps it, and the writer goes on with a copy. Where the file system cannot exchange, the new file is renamed into place and copied.
 * PATH.lock (flock) keeps a second writer out. Both vanish at the end. Guards against the death of the process, not of the machine. */
#ifndef EXPERIMENTS_RECORD_H
#define EXPERIMENTS_RECORD_H
#include "experiments/trace.h"
#include "spec/loop.h"

struct record; /* opaque */

/* One answer being generated: everything it will write, grown in memory between steps. */
struct record_request; /* opaque */

enum record_mode { RECORD_NEW, RECORD_FORCE, RECORD_RESUME };

/* What of record_open can be said before the model is there: NEW and a file that exists. */
int  record_may_open(const char *path, enum record_mode mode);
/* NEW: ERR_CONFIG when path exists (names --force and --resume). RESUME: the file must be of this schema, configuration and fingerprint,
 * else ERR_CONFIG saying what differs; a missing file starts a new one; status becomes "running". ERR_IO: folder missing or unwritable,
 * locked by another writer (its pid), disk full. meta is copied. */
int  record_open(struct record **out, const char *path, const struct trace_meta *meta, enum record_mode mode);
/* Status "complete" or "interrupted", the end time, final swap, clean-up. Accepts NULL. Frees in any case. */
int  record_close(struct record *r, const char *status);

/* Rows of small tables, returned as row numbers; an equal row that exists already (resume) is found, not repeated. */
int  record_arm(struct record *r, const struct trace_arm *arm, int *row);
int  record_prompt(struct record *r, const struct trace_prompt *p, int *row);
/* Row of a finished request, -1: not in the file. For --resume. */
int64_t record_find(const struct record *r, int arm, uint32_t request);
/* Emitted tokens of a finished row: malloc'ed, the caller's. */
int  record_tokens(struct record *r, int64_t row, int32_t **ids, int64_t *n);

/* head: arm, prompt, repeat, request, seed, concurrency, started. The object is reused after record_finish through record_begin. */
int  record_begin(struct record *r, const struct trace_request *head, const int *prompt, int n_prompt, struct record_request **out);
/* Copy a step into memory. Fast: called between steps. ERR_MEMORY. */
int  record_step(struct record_request *q, const struct step_record *s);
/* Append the request's rows and publish them; q is spent. ERR_IO (disk full names the file and bytes): what was published stays readable. */
int  record_finish(struct record *r, struct record_request *q, const struct spec_finished *f);
/* The same for a request whose answer was given: its scores [n] (their `request` is filled in), and how long they took. No step was
 * recorded. ERR_IO as record_finish. */
int  record_finish_scored(struct record *r, struct record_request *q, const struct trace_score *scores, int n, int64_t ns_prefill,
                          int64_t ns_total);
void record_drop(struct record *r, struct record_request *q); /* an abandoned request leaves no row */
#endif
