/* file: a whole file in memory. */
#ifndef EXPERIMENTS_FILE_H
#define EXPERIMENTS_FILE_H
#include <stddef.h>

/* bytes is malloc'ed, the caller's, and terminated by a 0 that n does not count. ERR_IO: cannot open or read, ERR_LIMIT: more than max
 * bytes, ERR_MEMORY. */
int file_read(const char *path, size_t max, char **bytes, size_t *n);
#endif
