/* record_swap: the file names of a result being written. `path` is what readers see, `next` (path.next) the hidden file that the
 * writer fills, and path.lock, held through flock, keeps a second writer out: the lock dies with its process, so a dead writer
 * blocks nobody. Errors: ERR_IO. */
#ifndef EXPERIMENTS_RECORD_SWAP_H
#define EXPERIMENTS_RECORD_SWAP_H

struct record_swap {
    char *path, *next, *lock; /* owned */
    int fd;                   /* the lock, -1: not held */
};

/* Take the lock, creating nothing else. Another writer is named by its pid. */
int  record_swap_open(struct record_swap *s, const char *path);
/* Remove PATH.next and PATH.lock. A struct with fd -1 and NULLs is fine. */
void record_swap_close(struct record_swap *s);
/* Make `next`, which is closed, the file at path. *exchanged 1: `next` is now the file that was at path; 0: a copy of the new one. */
int  record_swap_publish(struct record_swap *s, int *exchanged);
/* Put `next` at path for good. */
int  record_swap_finish(struct record_swap *s);
/* 1: a reader opened `next` when it was at path, and has it still (HDF5 locks what it reads). */
int  record_swap_is_read(const struct record_swap *s);
/* Replace `next` by a copy of the file at path. */
int  record_swap_copy(struct record_swap *s);
#endif
