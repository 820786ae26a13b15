/* readahead: threads that bring the pages of mapped files into memory, in the order in which a loader will come to them and only so far
 * ahead. What they read is the system's page cache; whether they are there changes how long a load takes, never what it gives.
 * First the ranges are noted, then readahead_start, then the loader calls readahead_next as it comes to each of them. */
#ifndef ENGINE_READAHEAD_H
#define ENGINE_READAHEAD_H
#include <stddef.h>

struct read_range {
    const char *at;
    size_t bytes;
};

struct readers; /* opaque: the threads */

struct readahead {
    struct read_range *range; /* owned [n] */
    int n, cap;
    int next;                 /* of the loader */
    size_t bytes;             /* of all ranges */
    struct readers *readers;  /* owned; NULL: not started */
};

/* ERR_MEMORY; no ranges may follow readahead_start. */
int  readahead_note(struct readahead *r, const void *at, size_t bytes);
/* ERR_MEMORY. Fewer threads than asked for are no error, nor is none. threads 0: nobody reads ahead. */
int  readahead_start(struct readahead *r, int threads);
void readahead_next(struct readahead *r);
/* Wait for the threads; *seconds: how long they were reading, the mean over them. Afterwards nobody reads ahead any more. */
void readahead_stop(struct readahead *r, double *seconds);
void readahead_deinit(struct readahead *r); /* a zeroed struct is fine */
#endif
